"""Pictures of what speaks for a prediction: the image, and beside it in gray, tinted (no torch)."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePath

from breakhis_pl.evaluation.gallery_pictures import save_picture
from breakhis_pl.files import written_aside
from breakhis_pl.prediction.facts import Float32Array
from breakhis_pl.prediction.stream import Decoded

FOLDER = "gradcam"
_LONGEST_NAME = 60


def write_overlays(folder: Path, images: Sequence[Decoded], heat: Float32Array, *, first: int) -> list[str]:
    """Writes a JPEG file for each image, in the shape that its picture has.

    Args:
        folder: That of predictions.csv.
        images: What was predicted.
        heat: float32, (n, size, size), in [0, 1].
        first: Number of the first image's row in the table, counted from 1; begins the names of the files.

    Returns:
        Paths of the files, relative to the folder.

    Raises:
        OSError: If they cannot be written.
    """
    (folder / FOLDER).mkdir(exist_ok=True)
    names = []
    for number, (image, map_) in enumerate(zip(images, heat, strict=True), start=first):
        names.append(f"{FOLDER}/{number:06}_{_plain(PurePath(image.path).stem)}.jpg")
        with written_aside(folder / names[-1]) as aside:
            save_picture(aside, image.pixels, map_, aspect=image.width / image.height)
    return names


def _plain(name: str) -> str:
    r"""A name of letters, digits and a few signs, for any file system.

    Example:
        >>> _plain('SOB "1"\n.x')
        'SOB_1_.x'
    """
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", name)[:_LONGEST_NAME]
