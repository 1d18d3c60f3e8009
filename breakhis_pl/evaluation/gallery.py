"""Which images of a result are worth a look, and the folder of their pictures (no torch).

A gallery is a folder of JPEG files and gallery.json, which says what they show. Each picture has the image as it is on
the left. On the right the same image is gray, and tinted by how much its parts speak for the predicted class: gray is
nothing, then teal, green, and yellow where it is most.
"""

import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import zip_longest
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from breakhis_pl.data.breakhis import CLASS_NAMES, SUBTYPES
from breakhis_pl.errors import ConfigurationError, RunFolderError, ShapeError, join_truncated
from breakhis_pl.evaluation.figures import count_of_images
from breakhis_pl.evaluation.file_texts import DamagedFileError
from breakhis_pl.evaluation.gallery_pictures import UInt8Array, check_pictures, save_picture
from breakhis_pl.evaluation.json_values import is_number, json_document
from breakhis_pl.evaluation.predictions import Predictions, subtype_of_patient
from breakhis_pl.evaluation.texts import quoted
from breakhis_pl.run_folder import atomic_folder

FloatArray: TypeAlias = npt.NDArray[np.float64]

GALLERY = "gallery"
"""Folder of the pictures, inside the folder of the predictions."""

KINDS = ("surest mistake", "hardest patient", "right")
"""Why an image is shown, in the order of the gallery."""

IMAGES_PER_PATIENT = 2
"""Of one kind at most, so that no patient fills the gallery."""

MOST_ENTRIES = 3_000
"""Of a gallery.json."""

LARGEST_PICTURE = 2 * 1024**2
"""Bytes of one picture; one of noise has 150,000."""

LONGEST_SIDE = 4096
"""Of a picture, in pixels."""

_FILE = re.compile(r"gallery/[0-9]{2,9}\.jpg")


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
        has_heat: Whether the picture shows what speaks for the predicted class; not so of networks that Grad-CAM
            cannot explain.
    """

    file: str
    kind: str
    image: str
    patient: str
    target: str
    predicted: str
    prob_malignant: float
    caption: str
    has_heat: bool = True


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
    folder: Path, chosen: Sequence[GalleryEntry], pixels: UInt8Array, heat: npt.NDArray[np.float32] | None
) -> list[GalleryEntry]:
    """Writes the pictures of a gallery and gallery.json; they take the place of an older gallery all at once.

    Args:
        folder: The folder of the predictions; made if need be.
        chosen: From `choose_gallery`.
        pixels: The images as they are, in the order of `chosen`; uint8, (n, size, size, 3), RGB.
        heat: What speaks for the predicted class; float, (n, size, size), in [0, 1]. None shows the images alone.

    Returns:
        What was written, as `read_gallery` reads it.

    Raises:
        ShapeError: If there is not one image and one map of its size for each entry, or a value is out of range.
        OSError: If the files cannot be written; an older gallery is then untouched.
    """
    shown = np.zeros(pixels.shape[:3], dtype=np.float32) if heat is None else heat
    check_pictures(len(chosen), pixels, shown)
    entries = [replace(entry, has_heat=heat is not None) for entry in chosen]
    gallery = folder / GALLERY
    with atomic_folder(gallery) as aside:
        for entry, image, map_ in zip(entries, pixels, shown, strict=True):
            save_picture(aside / Path(entry.file).name, image, map_ if entry.has_heat else None)
        content = json.dumps([asdict(entry) for entry in entries], indent=2, allow_nan=False)
        (aside / "gallery.json").write_text(content + "\n", encoding="utf-8")
        shutil.rmtree(gallery, ignore_errors=True)
    return entries


def read_gallery(folder: Path) -> list[GalleryEntry]:
    """The entries of the gallery in a folder of predictions; none where there is no gallery.

    Raises:
        RunFolderError: If gallery.json is damaged, or a picture is missing or lies outside the gallery.
    """
    path = folder / GALLERY / "gallery.json"
    if not path.exists():
        return []
    try:
        content = json_document(path)
        if not isinstance(content, list):
            raise DamagedFileError(f"it holds a {type(content).__name__}, not a list")
        if len(content) > MOST_ENTRIES:
            raise DamagedFileError(f"it has {len(content):,} entries; expected at most {MOST_ENTRIES:,}")
        entries = [_read_entry(folder, facts) for facts in content]
        twice = [name for name, n in Counter(entry.file for entry in entries).items() if n > 1]
        if twice:
            raise DamagedFileError(f"{join_truncated(twice)} is there more than once")
    except DamagedFileError as damage:
        raise RunFolderError(
            f"{path} is damaged: {damage}; expected what a run wrote there, evaluate the run again or delete the folder"
        ) from damage
    return entries


def picture_content(folder: Path, entry: GalleryEntry) -> tuple[bytes, tuple[int, int]]:
    """The picture of an entry, and its width and height in pixels; it is not decoded.

    Args:
        folder: Of the predictions.
        entry: From `read_gallery`.

    Raises:
        RunFolderError: If the file cannot be read, or is no JPEG of that kind.
    """
    path = folder / entry.file
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_PICTURE + 1)
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            size = image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _no_picture(path, "it is no JPEG") from error
    if len(content) > LARGEST_PICTURE or max(size) > LONGEST_SIDE:
        raise _no_picture(path, f"{len(content):,} bytes or more, {size[0]} x {size[1]} pixels")
    return content, size


def _no_picture(path: Path, fault: str) -> RunFolderError:
    return RunFolderError(
        f"{path} is no picture of a gallery: {fault}; evaluate the run again or delete the folder gallery"
    )


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


def _read_entry(folder: Path, facts: object) -> GalleryEntry:
    """An entry of gallery.json.

    Raises:
        DamagedFileError: If it is no entry, a value is not possible, or its picture is not in the gallery.
    """
    names = {field.name for field in fields(GalleryEntry)}
    # galleries of before there were networks without a heat map do not say whether there is one
    if not isinstance(facts, dict) or facts.keys() | {"has_heat"} != names:
        raise DamagedFileError(f"{quoted(facts, longest=200)} is no entry")
    if not isinstance(facts.get("has_heat", True), bool):
        raise DamagedFileError(f"has_heat {quoted(facts['has_heat'])} is neither true nor false")
    not_texts = {"prob_malignant", "has_heat"}
    wrong = [name for name, value in facts.items() if name not in not_texts and not isinstance(value, str)]
    if wrong:
        raise DamagedFileError(f"{join_truncated(wrong)} of {quoted(facts, longest=200)} should be texts")
    entry = GalleryEntry(**facts)
    for value, possible in ((entry.kind, KINDS), (entry.target, CLASS_NAMES), (entry.predicted, CLASS_NAMES)):
        if value not in possible:
            raise DamagedFileError(f"{quoted(value)} is none of {join_truncated(possible)}")
    if not is_number(entry.prob_malignant) or not 0 <= entry.prob_malignant <= 1:
        raise DamagedFileError(f"prob_malignant {quoted(entry.prob_malignant)} is not between 0 and 1")
    if _FILE.fullmatch(entry.file) is None or (folder / entry.file).is_symlink():
        raise DamagedFileError(f"{quoted(entry.file)} is no picture inside {GALLERY}/")
    if not (folder / entry.file).is_file():
        raise DamagedFileError(f"{quoted(entry.file)} is missing")
    return entry
