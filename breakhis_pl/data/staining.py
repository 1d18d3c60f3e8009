"""How drawn tissue takes up stain and looks under a camera: amounts of hematoxylin and eosin, then light."""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from breakhis_pl.data.breakhis import IMAGE_SIZE
from breakhis_pl.data.tissue import CYTOPLASM_LEVELS, NUCLEUS_LEVELS, Canvas, FloatArray, Flow, Material

ByteArray = NDArray[np.uint8]
Float32Array = NDArray[np.float32]

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
    strength = np.exp(rng.normal(0, (0.2, 0.32))) * (0.92, 0.8)
    return Staining(
        vectors=directions * strength[:, None],
        light=rng.uniform((0.86, 0.88, 0.88), (0.96, 0.97, 0.97)),
        vignette=float(rng.uniform(0, 0.12)),
        blur=float(rng.uniform(0.5, 1.4)),
        noise=float(rng.uniform(0.008, 0.018)),
    )


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
        unit: FloatArray = noise / noise.std()
        return unit

    fibers = 0.6 * filtered(30, 2.4) + 0.6 * filtered(14, 1.1) + 0.3 * filtered(60, 9) + 0.5 * filtered(35, 35)
    grain = filtered(1.1, 1.1) + 0.5 * filtered(4, 4)
    return (fibers / fibers.std()).astype(np.float32), (grain / grain.std()).astype(np.float32)


def stain_amounts(
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


def photograph(hematoxylin: Float32Array, eosin: Float32Array, staining: Staining, rng: Generator) -> ByteArray:
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
