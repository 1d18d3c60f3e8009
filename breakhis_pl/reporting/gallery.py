"""Gallery of a result: images worth a look, with Grad-CAM."""

import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from PIL import Image

from breakhis_pl.metrics.predictions import IntArray, Predictions
from breakhis_pl.run_folder import atomic_folder

UInt8Array: TypeAlias = npt.NDArray[np.uint8]
HeatArray: TypeAlias = npt.NDArray[np.float32]

GALLERY = "gallery"
MISTAKE, HARD_PATIENT, CORRECT = "most confident mistake", "hardest patient", "correct"
"""Kinds of images, in the order of the gallery."""

IMAGES_PER_PATIENT = 2
"""Most confident mistakes of one patient, at most."""

LARGEST_SIDE = 256
"""Longer side of an image in the gallery, in pixels."""

GAP = 8
"""White columns between image and heat map, in pixels."""

COLORMAP = "viridis"
"""Perceptually uniform, and readable without seeing red or green."""


@dataclass(frozen=True)
class GalleryEntry:
    """An image of a gallery.

    Attributes:
        file: Its picture, "01.jpg".
        kind: Why it is shown.
        image: Its name.
        patient: Its patient.
        target: True class.
        predicted: Predicted class.
        probability: Probability of the predicted class.
        n_correct: Correct images of the patient.
        n_images: Images of the patient.
        has_heat: Whether the picture has a heat map beside the image.
    """

    file: str
    kind: str
    image: str
    patient: str
    target: str
    predicted: str
    probability: float
    n_correct: int
    n_images: int
    has_heat: bool

    @property
    def caption(self) -> str:
        """One line on the image."""
        sure = ">99.9%" if self.probability > 0.9995 else f"{self.probability:.1%}"
        verb = "called" if self.predicted == self.target else "wrongly called"
        return f"{self.target[:1].upper()}{self.target[1:]}, {verb} {self.predicted} ({sure})." + (
            f" Of this patient's {self.n_images} images, {self.n_correct} are correct." if self.n_images > 1 else ""
        )


def choose_images(predictions: Predictions, *, n_per_kind: int) -> list[tuple[str, int]]:
    """Choose images, none twice; the same rows in any order give the same images.

    1. Most confident mistakes, at most two of a patient.
    2. Hardest patients, by their fraction of correct images: the most confident mistake that is not shown yet.
    3. Correct images: the most confident of each class in turn, each of another patient.

    Args:
        predictions: The rows.
        n_per_kind: Largest number of images of each kind.

    Returns:
        Kind and row.
    """
    by_name = np.argsort(predictions.image, kind="stable")
    confidence = predictions.probabilities[np.arange(len(predictions)), predictions.predicted]
    order = by_name[np.argsort(-confidence[by_name], kind="stable")]
    wrong, correct = order[~predictions.correct[order]], order[predictions.correct[order]]
    seen: Counter[str] = Counter()
    mistakes: list[int] = []
    for row in wrong:
        seen[predictions.patient[row]] += 1
        if seen[predictions.patient[row]] <= IMAGES_PER_PATIENT and len(mistakes) < n_per_kind:
            mistakes.append(int(row))
    left = wrong[~np.isin(wrong, mistakes) & (not predictions.are_independent)]
    hardest = list(_first_of_each_patient(predictions, left))
    fraction = {name: predictions.correct[predictions.patient == name].mean() for name in set(predictions.patient)}
    hardest.sort(key=lambda row: (fraction[predictions.patient[row]], predictions.image[row]))
    of_class = [
        list(_first_of_each_patient(predictions, correct[predictions.target[correct] == index]))
        for index in range(predictions.n_classes)
    ]
    in_turn = [rows[place] for place in range(n_per_kind) for rows in of_class if place < len(rows)]
    chosen = {MISTAKE: mistakes, HARD_PATIENT: hardest[:n_per_kind], CORRECT: in_turn[:n_per_kind]}
    return [(kind, row) for kind, rows in chosen.items() for row in rows]


def _first_of_each_patient(predictions: Predictions, rows: IntArray) -> Iterator[int]:
    seen = set()
    for row in rows:
        if predictions.patient[row] not in seen:
            seen.add(predictions.patient[row])
            yield int(row)


def write_gallery(
    folder: Path,
    predictions: Predictions,
    chosen: Sequence[tuple[str, int]],
    pixels: UInt8Array,
    heat: HeatArray | None,
) -> None:
    """Write the pictures of a gallery and gallery.json; an older gallery is replaced.

    Args:
        folder: Folder of the result.
        predictions: Its rows.
        chosen: From `choose_images`.
        pixels: The chosen images; uint8, (n, size, size, 3), RGB.
        heat: Support for the predicted class; float32, (n, size, size), 0 to 1. None shows the images alone.
    """
    entries = []
    with atomic_folder(folder / GALLERY) as temporary:
        for number, (kind, row) in enumerate(chosen):
            patient = predictions.patient[row]
            correct = predictions.correct[predictions.patient == patient]
            entry = GalleryEntry(
                file=f"{number + 1:02d}.jpg",
                kind=kind,
                image=str(predictions.image[row]),
                patient=str(patient),
                target=predictions.classes[predictions.target[row]],
                predicted=predictions.classes[predictions.predicted[row]],
                probability=float(predictions.probabilities[row, predictions.predicted[row]]),
                n_correct=int(correct.sum()),
                n_images=len(correct),
                has_heat=heat is not None,
            )
            entries.append(entry)
            save_picture(temporary / entry.file, pixels[number], None if heat is None else heat[number])
        (temporary / "gallery.json").write_text(json.dumps([asdict(entry) for entry in entries], indent=2) + "\n")
        shutil.rmtree(folder / GALLERY, ignore_errors=True)


def read_gallery(folder: Path) -> list[tuple[GalleryEntry, bytes, tuple[int, int]]]:
    """Return entry, JPEG and its size in pixels of every picture in the gallery of a result; none without a gallery."""
    path = folder / GALLERY / "gallery.json"
    found = []
    for facts in json.loads(path.read_text(encoding="utf-8")) if path.is_file() else ():
        content = (path.parent / facts["file"]).read_bytes()
        found.append((GalleryEntry(**facts), content, Image.open(io.BytesIO(content)).size))
    return found


def save_picture(path: Path, image: UInt8Array, heat: HeatArray | None, *, aspect: float = 1.0) -> None:
    """Write an image as JPEG, with its heat map beside it.

    Args:
        path: The file.
        image: uint8, (size, size, 3), RGB.
        heat: float32, (size, size), 0 to 1; None for the image alone.
        aspect: Width by height of the picture that was resized to the square image.
    """
    size = min(image.shape[0], LARGEST_SIDE)
    width, height = max(1, round(size * min(aspect, 1))), max(1, round(size / max(aspect, 1)))
    halves = [image] if heat is None else [image, tint(image, heat)]
    picture = Image.new("RGB", (len(halves) * (width + GAP) - GAP, height), "white")
    for number, half in enumerate(halves):
        picture.paste(
            Image.fromarray(half).resize((width, height), Image.Resampling.LANCZOS), (number * (width + GAP), 0)
        )
    picture.save(path, format="JPEG", quality=85)


def tint(image: UInt8Array, heat: HeatArray) -> UInt8Array:
    """Turn an image gray and multiply it by the color of its heat, so that tissue stays visible.

    Args:
        image: uint8, (size, size, 3), RGB.
        heat: float32, (size, size), 0 to 1.
    """
    luma = image @ np.array([0.299, 0.587, 0.114]) / 255  # (size, size), ITU-R BT.601
    lightened = 0.3 + 0.7 * luma[..., None]  # (size, size, 1)
    color = mpl.colormaps[COLORMAP](0.35 + 0.65 * heat)[..., :3]  # (size, size, 3), without the nearly black end
    strength = 0.9 * heat[..., None]  # (size, size, 1)
    tinted: UInt8Array = np.round(255 * lightened * (1 - strength + strength * color)).astype(np.uint8)
    return tinted
