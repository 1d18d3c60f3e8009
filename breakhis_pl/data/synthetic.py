"""Drawn H&E images under true BreakHis names: the demo and the tests, for whoever has no archive yet.

An image is a function of seed, patient, number, magnification and size alone. Nothing is learned or copied from real
images; who trains on these has tested the software and learned nothing about tissue.
"""

import hashlib
import math
import multiprocessing
import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from PIL.PngImagePlugin import PngInfo

from breakhis_pl.data.architecture import build, draw_traits
from breakhis_pl.data.breakhis import (
    IMAGE_SIZE,
    MAGNIFICATIONS,
    archive_folder,
    official_patients,
    parse_file_name,
)
from breakhis_pl.data.tissue import CYTOPLASM_LEVELS, NUCLEUS_LEVELS, Canvas, FloatArray, Flow, Material
from breakhis_pl.errors import ConfigurationError, listed

ByteArray = NDArray[np.uint8]
Float32Array = NDArray[np.float32]

DESCRIPTION = "synthetic, drawn by breakhis_pl; no tissue"
SMALLEST_SIDE = 16
_POOL_PIXELS = 40_000_000  # below about this many pixels, starting processes takes longer than drawing
_PORTION = 4  # images a process draws at a time
_COMPRESS_LEVEL = 3  # noise hardly compresses; higher levels take time and save little

_DENSITY_STEPS = 100  # canvas bytes per unit of stain amount
_TEXTURE_SIDE = 512
_TEXEL = 0.7  # um


@dataclass(frozen=True, slots=True)
class Staining:
    """How the slides of one patient were stained and photographed.

    Attributes:
        vectors: Optical density per channel of hematoxylin and of eosin at amount 1; float, (2, 3).
        light: Brightness of empty glass per channel; float, (3,), 0..1.
        vignette: Loss of light in the corners, share.
        blur: Radius, pixels at a width of 700.
        noise: Standard deviation, 0..1.
    """

    vectors: FloatArray
    light: FloatArray
    vignette: float
    blur: float
    noise: float


def draw_staining(rng: Generator) -> Staining:
    """A random staining, independent of the tumor.

    Source:
        Directions of the stains: Ruifrok, Johnston 2001, Analytical and Quantitative Cytology and Histology 23(4).
    """
    directions = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105]]) + rng.normal(
        [[-0.06, 0.02, 0.03], [0.05, 0, 0.24]], [[0.06, 0.04, 0.05], [0.05, 0.02, 0.09]]
    )
    directions = directions.clip(0.02)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    strength = np.exp(rng.normal(0, (0.22, 0.4))) * (0.92, 0.8)
    return Staining(
        vectors=directions * strength[:, None],
        light=rng.uniform((0.86, 0.88, 0.88), (0.96, 0.97, 0.97)),
        vignette=float(rng.uniform(0, 0.12)),
        blur=float(rng.uniform(0.5, 1.4)),
        noise=float(rng.uniform(0.008, 0.018)),
    )


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
    hematoxylin, eosin = _stain_amounts(canvas, flow, texture, size)
    return _photograph(hematoxylin, eosin, staining, noise)


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
        workers: Number of processes; None for one per core, or a single one where there is little to draw.

    Returns:
        The root.

    Raises:
        ConfigurationError: If an argument is out of range, or there is no such patient or magnification.
    """
    names = _planned_names(magnifications, images_per_patient, size, seed, patients)
    if workers is None:
        workers = (os.cpu_count() or 1) if len(names) * size[0] * size[1] > _POOL_PIXELS else 1
    elif workers < 1:
        raise ConfigurationError(f"workers {workers} is not possible; expected 1 or more, or None for one per core")
    portions = [names[start : start + _PORTION] for start in range(0, len(names), _PORTION)]
    write = partial(_write_images, root, size, seed)
    n_done = 0
    with ExitStack() as stack:
        if workers > 1:
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(workers, mp_context=context))
            written = pool.map(write, portions)
        else:
            written = map(write, portions)
        for n_written in written:
            n_done += n_written
            if on_progress is not None:
                on_progress(n_done, len(names))
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


def _material_tables() -> tuple[list[float], ...]:
    """Per canvas value: amount of hematoxylin, of eosin, and share of fibers in the texture."""
    hematoxylin, eosin, fibers = np.zeros((3, 256))
    for material, values in {
        Material.COLLAGEN: (0.06, 0.36, 1.0),
        Material.LOOSE: (0.06, 0.16, 0.8),
        Material.EMPTY: (0.0, 0.01, 0.0),
        Material.MUCIN: (0.13, 0.03, 0.6),
        Material.SECRETION: (0.03, 0.3, 0.1),
        Material.MEMBRANE: (0.12, 0.5, 0.2),
        Material.RED_CELL: (0.0, 0.8, 0.0),
        Material.EPITHELIUM: (0.17, 0.24, 0.1),
        Material.NEST: (0.15, 0.22, 0.1),
    }.items():
        hematoxylin[material], eosin[material], fibers[material] = values
    low, high = CYTOPLASM_LEVELS
    hematoxylin[low : high + 1] = np.linspace(0.14, 0.24, high - low + 1)
    eosin[low : high + 1] = np.linspace(0.22, 0.34, high - low + 1)
    low, high = NUCLEUS_LEVELS
    hematoxylin[low : high + 1] = np.linspace(0.2, 1.15, high - low + 1)
    eosin[low : high + 1] = 0.16
    return hematoxylin.tolist(), eosin.tolist(), fibers.tolist()


@cache
def _lookup_tables() -> tuple[list[int], ...]:
    return tuple([round(value * _DENSITY_STEPS) for value in table] for table in _material_tables())


@cache
def _textures() -> tuple[Float32Array, Float32Array]:
    """Tiling noise with unit variance, fibers along the first axis and grain; float32, (512, 512)."""
    spectrum = np.fft.rfft2(np.random.default_rng(0).normal(size=(_TEXTURE_SIDE, _TEXTURE_SIDE)))
    fy, fx = np.fft.fftfreq(_TEXTURE_SIDE)[:, None], np.fft.rfftfreq(_TEXTURE_SIDE)[None]

    def filtered(along: float, across: float) -> FloatArray:
        noise = np.fft.irfft2(spectrum * np.exp(-2 * np.pi**2 * ((along * fx) ** 2 + (across * fy) ** 2)))
        return noise / noise.std()

    fibers = 0.6 * filtered(30, 2.4) + 0.6 * filtered(14, 1.1) + 0.3 * filtered(60, 9) + 0.5 * filtered(35, 35)
    grain = filtered(1.1, 1.1) + 0.5 * filtered(4, 4)
    return (fibers / fibers.std()).astype(np.float32), (grain / grain.std()).astype(np.float32)


def _stain_amounts(
    canvas: Canvas, flow: Flow, rng: Generator, size: tuple[int, int]
) -> tuple[Float32Array, Float32Array]:
    """Amounts of hematoxylin and eosin; float32, (height, width) each."""
    hematoxylin, eosin, fibrous = (
        np.asarray(canvas.picture.point(table).reduce(canvas.supersampling), dtype=np.float32) / _DENSITY_STEPS
        for table in _lookup_tables()
    )
    fibers, grain = _texture_fields(canvas.field, flow, rng, size)
    strands = 1 + fibrous * (np.tanh(0.9 * fibers + 0.35) * 0.8 - 0.15)
    return hematoxylin * strands * (1 + 0.2 * grain), eosin * strands * (1 + 0.12 * grain)


def _texture_fields(
    field: FloatArray, flow: Flow, rng: Generator, size: tuple[int, int]
) -> tuple[Float32Array, Float32Array]:
    """Fibers and grain at every pixel; float32, (height, width) each."""
    columns, rows = (
        int(np.clip(math.ceil(extent / _TEXEL), 8, max(side, min(2 * side, 350))))
        for extent, side in zip(field.tolist(), size, strict=True)
    )
    x = (np.arange(columns) + 0.5)[None] * (field[0] / columns)
    y = (np.arange(rows) + 0.5)[:, None] * (field[1] / rows)
    offset = rng.uniform(0, _TEXTURE_SIDE * _TEXEL, 2)
    along, across = flow.coordinates(x, y)
    fibers, grain = _textures()
    u = ((along + offset[0]) / _TEXEL).astype(np.int64) % _TEXTURE_SIDE
    v = ((across + offset[1]) / _TEXEL).astype(np.int64) % _TEXTURE_SIDE
    gu = ((x + offset[1]) / _TEXEL).astype(np.int64) % _TEXTURE_SIDE
    gv = ((y + offset[0]) / _TEXEL).astype(np.int64) % _TEXTURE_SIDE
    fields = (fibers[v, u], grain[gv, gu])
    if (columns, rows) == size:
        return fields
    scaled = (Image.fromarray(values).resize(size, Image.Resampling.BILINEAR) for values in fields)
    first, second = (np.asarray(image, dtype=np.float32) for image in scaled)
    return first, second


def _photograph(hematoxylin: Float32Array, eosin: Float32Array, staining: Staining, rng: Generator) -> ByteArray:
    """Light that passes the stained tissue, as a camera sees it; uint8, (height, width, 3)."""
    height, width = hematoxylin.shape
    x, y = np.linspace(-1, 1, width)[None], np.linspace(-1, 1, height)[:, None]
    center = rng.uniform(-0.3, 0.3, 2)
    falloff = (1 - staining.vignette * ((x - center[0]) ** 2 + (y - center[1]) ** 2) / 2).astype(np.float32)
    vectors = (-math.log(10) * staining.vectors).astype(np.float32)
    rgb = np.empty((height, width, 3), dtype=np.float32)
    for channel in range(3):
        density = hematoxylin * vectors[0, channel] + eosin * vectors[1, channel]
        rgb[..., channel] = np.exp(density) * (255 * np.float32(staining.light[channel])) * falloff
    sharp = Image.fromarray(rgb.astype(np.uint8))
    radius = staining.blur * width / IMAGE_SIZE[0]
    smooth = np.asarray(sharp.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32)
    grain = rng.standard_normal((height, width, 1), dtype=np.float32) * (255 * staining.noise)
    result: ByteArray = (smooth + grain).clip(0, 255).astype(np.uint8)
    return result


def _check(patients: Collection[str], magnifications: Sequence[int], size: tuple[int, int], seed: int) -> None:
    """Refuse what cannot be drawn."""
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
