"""Which images of a result are worth a look, and the folder of their pictures (no torch).

A gallery is a folder of JPEG files and gallery.json, which says what they show. Each picture has the image as it is on
the left. On the right the same image is gray, and tinted by how much its parts speak for the predicted class: gray is
nothing, then teal, green, and yellow where it is most.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import zip_longest
from pathlib import Path
from typing import TypeAlias

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from PIL import Image

from breakhis_pl.data.breakhis import CLASS_NAMES, SUBTYPES
from breakhis_pl.errors import ConfigurationError, RunFolderError, ShapeError, listed
from breakhis_pl.evaluation.figures import count_of_images
from breakhis_pl.evaluation.predictions import Predictions, subtype_of_patient
from breakhis_pl.files import folder_aside

UInt8Array: TypeAlias = npt.NDArray[np.uint8]
FloatArray: TypeAlias = npt.NDArray[np.float64]

GALLERY = "gallery"
"""Folder of the pictures, inside the folder of the predictions."""

KINDS = ("surest mistake", "hardest patient", "right")
"""Why an image is shown, in the order of the gallery."""

IMAGES_PER_PATIENT = 2
"""Of one kind at most, so that no patient fills the gallery."""

LARGEST_SIDE = 256
"""Of each half of a picture, in pixels; larger images are made smaller."""

GAP = 8
"""White columns between the halves, in pixels."""

JPEG_QUALITY = 85

COLORMAP = "viridis"
"""Perceptually uniform, and readable without seeing red or green."""

_FILE = re.compile(r"gallery/[0-9]{2,}\.jpg")


@dataclass(frozen=True, slots=True)
class GalleryEntry:
    """An image of a gallery.

    Attributes:
        file: Its picture, relative to the folder of the predictions, "gallery/01.jpg".
        kind: Why it is shown, one of `KINDS`.
        image: Its name.
        patient: The authors' unit.
        target: Name of the true class.
        predicted: Name of the predicted class.
        prob_malignant: Predicted probability of the malignant class, 0..1.
        caption: What it is and what became of it, in words; plain text.
    """

    file: str
    kind: str
    image: str
    patient: str
    target: str
    predicted: str
    prob_malignant: float
    caption: str


def choose_gallery(predictions: Predictions, *, n_per_kind: int = 8) -> list[GalleryEntry]:
    """The images worth a look, no image twice; the same rows give the same images in whatever order they come.

    1. The surest mistakes: wrong images by the probability of the wrong class, two of a patient at most.
    2. The hardest patients: those with the smallest share of right images, by their most wrong image not shown yet;
       a second one each where there are too few such patients.
    3. Right images: the surest of each class by turns, each of another patient.

    Args:
        predictions: The rows.
        n_per_kind: Images of each kind at most.

    Returns:
        In the order of `KINDS`; fewer of a kind where there are fewer.

    Raises:
        ConfigurationError: If `n_per_kind` is less than 1.
        ShapeError: If there is no row.
    """
    if n_per_kind < 1:
        raise ConfigurationError(f"n_per_kind={n_per_kind}; expected 1 or more images of each kind")
    if len(predictions) == 0:
        raise ShapeError("no predictions to choose from; expected at least one row")
    by_name = predictions.take(np.array(sorted(range(len(predictions)), key=predictions.image.__getitem__)))
    mistakes = _surest_mistakes(by_name, n_per_kind)
    hardest = _of_hardest_patients(by_name, n_per_kind, shown=mistakes)
    right = _surest_right(by_name, n_per_kind)
    of_patient = _right_of_patient(by_name)
    rows_of_kinds = zip(KINDS, (mistakes, hardest, right), strict=True)
    chosen = [(kind, row) for kind, rows in rows_of_kinds for row in rows]
    return [
        _entry(by_name, row, kind=kind, number=number, of_patient=of_patient[by_name.patient[row]])
        for number, (kind, row) in enumerate(chosen, start=1)
    ]


def write_gallery(
    folder: Path, chosen: Sequence[GalleryEntry], pixels: UInt8Array, heat: npt.NDArray[np.float32]
) -> None:
    """Writes the pictures of a gallery and gallery.json; they take the place of an older gallery all at once.

    Args:
        folder: The folder of the predictions; made if need be.
        chosen: From `choose_gallery`.
        pixels: The images as they are, in the order of `chosen`; uint8, (n, size, size, 3), RGB.
        heat: What speaks for the predicted class; float, (n, size, size), in [0, 1].

    Raises:
        ShapeError: If there is not one image and one map of its size for each entry, or a value is out of range.
        OSError: If the files cannot be written; an older gallery is then untouched.
    """
    _check_pictures(len(chosen), pixels, heat)
    gallery = folder / GALLERY
    with folder_aside(gallery) as aside:
        for entry, image, map_ in zip(chosen, pixels, heat, strict=True):
            _picture(image, map_).save(aside / Path(entry.file).name, format="JPEG", quality=JPEG_QUALITY)
        content = json.dumps([asdict(entry) for entry in chosen], indent=2, allow_nan=False)
        (aside / "gallery.json").write_text(content + "\n", encoding="utf-8")
        _put_in_place(aside, gallery)


def read_gallery(folder: Path) -> list[GalleryEntry]:
    """The entries of the gallery in a folder of predictions; none where there is no gallery.

    Raises:
        RunFolderError: If gallery.json is damaged, or a picture is missing or lies outside the gallery.
    """
    path = folder / GALLERY / "gallery.json"
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, list):
            raise TypeError(f"it holds a {type(content).__name__}, not a list")
        entries = [_read_entry(folder, facts) for facts in content]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise RunFolderError(
            f"{path} is damaged: {error}; expected what a run wrote there, evaluate the run again or delete the folder"
        ) from error
    return entries


def _surest_mistakes(predictions: Predictions, n: int) -> list[int]:
    """Rows of wrong images by the probability of the wrong class, few of each patient."""
    rows: list[int] = []
    n_of_patient: Counter[str] = Counter()
    for row in _most_wrong_first(predictions):
        n_of_patient[predictions.patient[row]] += 1
        if n_of_patient[predictions.patient[row]] <= IMAGES_PER_PATIENT:
            rows.append(row)
    return rows[:n]


def _of_hardest_patients(predictions: Predictions, n: int, *, shown: Sequence[int]) -> list[int]:
    """Rows of wrong images not shown yet, patient by patient, the smallest share of right images first."""
    left: dict[str, list[int]] = {}
    for row in _most_wrong_first(predictions):
        if row not in shown:
            left.setdefault(predictions.patient[row], []).append(row)
    share = {patient: right / n_images for patient, (right, n_images) in _right_of_patient(predictions).items()}
    patients = sorted(left, key=lambda patient: (share[patient], patient))[:n]
    rows: list[int] = []
    n_spare = n - len(patients)
    for patient in patients:
        n_more = min(n_spare, IMAGES_PER_PATIENT - 1, len(left[patient]) - 1)
        rows += left[patient][: 1 + n_more]
        n_spare -= n_more
    return rows


def _surest_right(predictions: Predictions, n: int) -> list[int]:
    """Rows of right images, the classes by turns, each of another patient."""
    of_truth = _prob_of_truth(predictions)
    rows = sorted(np.flatnonzero(predictions.correct).tolist(), key=lambda row: -of_truth[row])
    of_patient: dict[str, int] = {}
    for row in rows:
        of_patient.setdefault(predictions.patient[row], row)
    by_class = [
        [row for row in of_patient.values() if predictions.target[row] == index] for index in range(len(CLASS_NAMES))
    ]
    turns = [row for pair in zip_longest(*by_class) for row in pair if row is not None]
    return turns[:n]


def _most_wrong_first(predictions: Predictions) -> list[int]:
    """Rows of wrong images by the probability of the true class; equal ones in their order."""
    of_truth = _prob_of_truth(predictions)
    return sorted(np.flatnonzero(~predictions.correct).tolist(), key=lambda row: of_truth[row])


def _prob_of_truth(predictions: Predictions) -> FloatArray:
    return predictions.probabilities[np.arange(len(predictions)), predictions.target]


def _right_of_patient(predictions: Predictions) -> dict[str, tuple[int, int]]:
    """Number of right images and of all images, by patient."""
    right: Counter[str] = Counter()
    for patient, is_right in zip(predictions.patient, predictions.correct.tolist(), strict=True):
        right[patient] += is_right
    return {patient: (right[patient], n_images) for patient, n_images in Counter(predictions.patient).items()}


def _entry(predictions: Predictions, row: int, *, kind: str, number: int, of_patient: tuple[int, int]) -> GalleryEntry:
    target, predicted = CLASS_NAMES[predictions.target[row]], CLASS_NAMES[predictions.predicted[row]]
    patient = predictions.patient[row]
    subtype = subtype_of_patient(patient)
    tumor = "" if subtype is None else f"{SUBTYPES[subtype].name}, "
    share = _percent(predictions.probabilities[row, predictions.predicted[row]])
    n_right, n_images = of_patient
    return GalleryEntry(
        file=f"{GALLERY}/{number:02}.jpg",
        kind=kind,
        image=predictions.image[row],
        patient=patient,
        target=target,
        predicted=predicted,
        prob_malignant=float(predictions.prob_malignant[row]),
        caption=(
            f"{target.capitalize()} ({tumor}{predictions.magnification[row]}X), "
            f"{'rightly ' if predicted == target else ''}called {predicted} ({share}). "
            f"Patient {patient}: {n_right:,} of {count_of_images(n_images)} right."
        ),
    )


def _percent(probability: float) -> str:
    """A probability in percent; rounding does not make it certain.

    Example:
        >>> _percent(0.9996), _percent(0.5)
        ('>99.9%', '50.0%')
    """
    return ">99.9%" if probability > 0.9995 else f"{probability:.1%}"


def _check_pictures(n: int, pixels: UInt8Array, heat: npt.NDArray[np.float32]) -> None:
    """Refuses arrays that are not the pictures of `n` entries.

    Raises:
        ShapeError: Naming what is wrong.
    """
    size = pixels.shape[1] if pixels.ndim == 4 else 0
    if pixels.shape != (n, size, size, 3) or heat.shape != (n, size, size):
        raise ShapeError(
            f"{n} entries, pixels of shape {pixels.shape} and heat of shape {heat.shape}; "
            f"expected ({n}, size, size, 3) and ({n}, size, size)"
        )
    if pixels.dtype != np.uint8:
        raise ShapeError(f"pixels are {pixels.dtype}; expected uint8")
    lowest, highest = heat.min(initial=0), heat.max(initial=0)
    if not (lowest >= 0 and highest <= 1):  # also where one is not a number
        raise ShapeError(f"heat lies in {lowest:g} to {highest:g}; expected 0 to 1")


def _picture(image: UInt8Array, heat: npt.NDArray[np.float32]) -> Image.Image:
    """The image and the tinted image side by side.

    Args:
        image: uint8, (size, size, 3), RGB.
        heat: float, (size, size), in [0, 1].
    """
    size = min(image.shape[0], LARGEST_SIDE)
    picture = Image.new("RGB", (2 * size + GAP, size), "white")
    for left, half in ((0, image), (size + GAP, _tinted(image, heat))):
        picture.paste(Image.fromarray(half).resize((size, size), Image.Resampling.LANCZOS), (left, 0))
    return picture


def _tinted(image: UInt8Array, heat: npt.NDArray[np.float32]) -> UInt8Array:
    """The image in gray, multiplied by the color of the heat, so that tissue stays visible under any color."""
    luma = image @ np.array([0.299, 0.587, 0.114]) / 255  # (size, size), ITU-R BT.601
    lightened = 0.3 + 0.7 * luma[..., None]  # (size, size, 1)
    color = mpl.colormaps[COLORMAP](0.35 + 0.65 * heat)[..., :3]  # (size, size, 3), without the nearly black end
    strength = 0.9 * heat[..., None]  # (size, size, 1)
    tinted: UInt8Array = np.round(255 * lightened * (1 - strength + strength * color)).astype(np.uint8)
    return tinted


def _put_in_place(aside: Path, gallery: Path) -> None:
    """Renames a finished gallery; an older one in its place is moved away first."""
    if gallery.exists():
        with folder_aside(gallery) as away:
            gallery.replace(away / "older")
    aside.replace(gallery)


def _read_entry(folder: Path, facts: object) -> GalleryEntry:
    """An entry of gallery.json.

    Raises:
        TypeError: If it is no entry.
        ValueError: If a value is not possible, or its picture is not in the gallery.
    """
    if not isinstance(facts, dict) or facts.keys() != {field.name for field in fields(GalleryEntry)}:
        raise TypeError(f"{facts!r:.200} is no entry")
    wrong = [name for name, value in facts.items() if name != "prob_malignant" and not isinstance(value, str)]
    if wrong:
        raise TypeError(f"{listed(wrong)} of {facts!r:.200} should be texts")
    entry = GalleryEntry(**facts)
    for value, possible in ((entry.kind, KINDS), (entry.target, CLASS_NAMES), (entry.predicted, CLASS_NAMES)):
        if value not in possible:
            raise ValueError(f"{value!r} is none of {listed(possible)}")
    if type(entry.prob_malignant) not in (int, float) or not 0 <= entry.prob_malignant <= 1:
        raise ValueError(f"prob_malignant {entry.prob_malignant!r} is not between 0 and 1")
    if _FILE.fullmatch(entry.file) is None or (folder / entry.file).is_symlink():
        raise ValueError(f"{entry.file!r} is no picture inside {GALLERY}/")
    if not (folder / entry.file).is_file():
        raise ValueError(f"{entry.file} is missing")
    return entry
