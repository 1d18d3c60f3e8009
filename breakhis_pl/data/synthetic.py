"""Drawn H&E images under true BreakHis names: the demo and the tests, for whoever has no archive yet.

An image is a function of seed, patient, number, magnification and size alone. Nothing is learned or copied from real
images; who trains on these has tested the software and learned nothing about tissue.
"""

import hashlib
import multiprocessing
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from breakhis_pl.cores import n_cores
from breakhis_pl.data.architecture import build, draw_traits
from breakhis_pl.data.breakhis import (
    IMAGE_SIZE,
    MAGNIFICATIONS,
    archive_folder,
    official_patients,
    parse_file_name,
)
from breakhis_pl.data.staining import ByteArray, draw_staining, photograph, stain_amounts
from breakhis_pl.data.tissue import Canvas, Flow
from breakhis_pl.errors import ConfigurationError, StorageError, listed

DESCRIPTION = "synthetic, drawn by breakhis_pl; no tissue"
SMALLEST_SIDE = 16
_POOL_IMAGES = 100  # below about this many, starting processes takes longer than drawing
_PORTION = 4  # images a process draws at a time
_COMPRESS_LEVEL = 3  # noise hardly compresses; higher levels take time and save little


def draw_tissue(
    patient: str, number: int, *, magnification: int = 200, size: tuple[int, int] = IMAGE_SIZE, seed: int = 0
) -> ByteArray:
    """One drawn image of a patient.

    Args:
        patient: One of the 82 of `official_patients`.
        number: Of the image, from 1.
        magnification: 40, 100, 200 or 400; the field of view in the tissue is as wide as 200 / magnification.
        size: Width and height, pixels. A small picture shows what the large one shows.
        seed: Another one gives other images of other slides.

    Returns:
        uint8, (height, width, 3), RGB.

    Raises:
        ConfigurationError: If an argument is out of range, or there is no such patient or magnification.

    Example:
        >>> draw_tissue("SOB_B_F-14-9133", 1, size=(70, 46)).shape
        (46, 70, 3)
    """
    _check([patient], [magnification], size, seed)
    if not 1 <= number <= 999:
        raise ConfigurationError(f"image number {number} is not possible; expected 1 to 999, as in BreakHis names")
    subtype = parse_file_name(f"{patient}-{magnification}-{number:03d}.png").subtype
    staining = draw_staining(_generator(seed, patient, "staining"))
    traits = draw_traits(_generator(seed, patient, "traits"), subtype)
    geometry, texture, noise = _generator(seed, patient, magnification, number).spawn(3)

    flow = Flow.draw(geometry)
    canvas = Canvas(magnification, size)
    build(canvas, geometry, subtype, traits, flow)
    hematoxylin, eosin = stain_amounts(canvas, flow, texture, size)
    return photograph(hematoxylin, eosin, staining, noise)


def write_synthetic(
    root: Path,
    *,
    magnifications: Sequence[int] = (200,),
    images_per_patient: int | None = 8,
    size: tuple[int, int] = IMAGE_SIZE,
    seed: int = 0,
    patients: Collection[str] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> Path:
    """Write drawn images into the folders of the authors' archive, under names that BreakHis has.

    Args:
        root: Folder to write into; made if missing. Files that exist there under the same names are replaced.
        magnifications: Some of 40, 100, 200 and 400.
        images_per_patient: Number per patient and magnification, at most as many as published; None for all of them.
        size: Width and height, pixels.
        seed: As in `draw_tissue`.
        patients: Some of the 82; None for all.
        on_progress: Called with the number of images written and to write, after every few images.
        workers: Number of processes; None for one per core, or a single one where there is little to draw. They are
            spawned, so a script that calls this needs its `if __name__ == "__main__":`.

    Returns:
        The root.

    Raises:
        ConfigurationError: If an argument is out of range, or there is no such patient or magnification.
        StorageError: If one of the processes was ended from outside.
    """
    names = _planned_names(magnifications, images_per_patient, size, seed, patients)
    if workers is None:
        workers = n_cores() if len(names) >= _POOL_IMAGES else 1
    elif workers < 1:
        raise ConfigurationError(f"workers {workers} is not possible; expected 1 or more, or None for one per core")
    portions = [names[start : start + _PORTION] for start in range(0, len(names), _PORTION)]
    write = partial(_write_images, root, size, seed)
    n_done = 0
    with ExitStack() as stack:
        if workers > 1 and len(portions) > 1:
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(min(workers, len(portions)), mp_context=context))
            written = pool.map(write, portions)
        else:
            written = map(write, portions)
        try:
            for n_written in written:
                n_done += n_written
                if on_progress is not None:
                    on_progress(n_done, len(names))
        except BrokenProcessPool:
            raise StorageError(
                "a process that draws images was ended from outside, perhaps for want of memory; run the command again"
            ) from None
    return root


def _planned_names(
    magnifications: Sequence[int],
    images_per_patient: int | None,
    size: tuple[int, int],
    seed: int,
    patients: Collection[str] | None,
) -> list[str]:
    official = official_patients()
    chosen = list(official) if patients is None else sorted(set(patients))
    _check(chosen, magnifications, size, seed)
    if images_per_patient is not None and images_per_patient < 1:
        raise ConfigurationError(
            f"images_per_patient {images_per_patient} is not possible; expected 1 or more, or None for all published"
        )
    names = []
    for patient in chosen:
        for magnification in sorted(set(magnifications)):
            n_images = official[patient].n_images[magnification]
            if images_per_patient is not None:
                n_images = min(n_images, images_per_patient)
            names += [f"{patient}-{magnification}-{number:03d}.png" for number in range(1, n_images + 1)]
    return names


def _write_images(root: Path, size: tuple[int, int], seed: int, names: Sequence[str]) -> int:
    """Draw and write a portion of the images; how many that were."""
    text = PngInfo()
    text.add_text("Description", DESCRIPTION)
    for name in map(parse_file_name, names):
        number = int(name.file_name[-7:-4])
        image = draw_tissue(name.patient, number, magnification=name.magnification, size=size, seed=seed)
        folder = root / archive_folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        aside = folder / f".{name.file_name}.part"
        Image.fromarray(image).save(aside, format="PNG", pnginfo=text, compress_level=_COMPRESS_LEVEL)
        aside.replace(folder / name.file_name)
    return len(names)


def _generator(*key: object) -> Generator:
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype="<u4").tolist())


def _check(patients: Collection[str], magnifications: Sequence[int], size: tuple[int, int], seed: int) -> None:
    """Refuse what cannot be drawn."""
    if not patients or not magnifications:
        empty = "magnifications" if patients else "patients"
        raise ConfigurationError(f"the list of {empty} is empty; expected at least one, so that there is an image")
    unknown = [patient for patient in patients if patient not in official_patients()]
    if unknown:
        raise ConfigurationError(f"unknown patients {listed(unknown)}; expected some of the 82 of official_folds.csv")
    wrong = [value for value in magnifications if value not in MAGNIFICATIONS]
    if wrong:
        raise ConfigurationError(f"magnification {listed(wrong)} does not exist; expected {listed(MAGNIFICATIONS)}")
    if min(size) < SMALLEST_SIDE:
        raise ConfigurationError(f"size {size[0]}x{size[1]} is too small; expected at least {SMALLEST_SIDE} pixels")
    if seed < 0:
        raise ConfigurationError(f"seed {seed} is negative; expected 0 or more")
