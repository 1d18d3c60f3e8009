"""Shapes of drawn breast tissue: outlines, nuclei, and the canvas that collects them.

All lengths are micrometers in the tissue, so a picture's geometry depends on neither its size in pixels nor its
magnification; only the canvas knows both. Which shapes make which tumor type says `architecture.py`.
"""

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from breakhis_pl.data.breakhis import IMAGE_SIZE

FloatArray = NDArray[np.float64]

MICROMETERS_PER_PIXEL = 0.35  # at 200X and 700 pixels: drawn nuclei of 3 to 5 um radius look as large as BreakHis's
NUCLEUS_LEVELS = (64, 255)
CYTOPLASM_LEVELS = (16, 31)
_MAP_SIZE = (350, 230)  # of the coarse map of materials, which must not depend on the size of the picture


class Material(IntEnum):
    """What a canvas value below `CYTOPLASM_LEVELS` means; cytoplasm and nuclei have a range of values each."""

    COLLAGEN = 0
    LOOSE = 1
    EMPTY = 2
    MUCIN = 3
    SECRETION = 4
    MEMBRANE = 5
    RED_CELL = 6
    EPITHELIUM = 7
    NEST = 8


@dataclass(frozen=True, slots=True)
class CellKind:
    """How the cells of one population look.

    Attributes:
        radius: Mean radius of the nucleus, um.
        elongation: Long over short axis of the nucleus.
        spread: Standard deviation of the logarithm of the radius: pleomorphism of size.
        roughness: Standard deviation of the outline, as a share of the radius: pleomorphism of shape.
        darkness: Mean density of hematoxylin, 0 to 1.
        darkness_spread: Its standard deviation.
        vesicular: Share of nuclei with a pale inside and a dark rim.
        nucleoli: Share of nuclei with a nucleolus.
        cytoplasm: Radius of the cell over that of its nucleus; 0 draws no cytoplasm.
    """

    radius: float
    elongation: float = 1.2
    spread: float = 0.08
    roughness: float = 0.03
    darkness: float = 0.5
    darkness_spread: float = 0.06
    vesicular: float = 0.3
    nucleoli: float = 0.0
    cytoplasm: float = 0.0


@dataclass(frozen=True, slots=True)
class Flow:
    """Direction of collagen fibers: parallel lines bent by two sine waves.

    Attributes:
        angle: Mean direction of the fibers, radians.
        waves: Wave number x and y (1/um), phase, amplitude (um) of each wave; float, (n_waves, 4).
    """

    angle: float
    waves: FloatArray

    @classmethod
    def draw(cls, rng: Generator) -> "Flow":
        """A random flow."""
        turn = rng.uniform(0, 2 * np.pi, 3)
        length = rng.uniform((110, 45, 20), (220, 90, 35))
        steepness = rng.uniform((0.2, 0.1, 0.05), (0.55, 0.35, 0.15))
        number = 2 * np.pi / length
        waves = (number * np.cos(turn), number * np.sin(turn), rng.uniform(0, 2 * np.pi, 3), steepness / number)
        return cls(float(rng.uniform(0, np.pi)), np.stack(waves, axis=1))

    def coordinates(self, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Position along and across the fibers, um, of points that broadcast."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        along, across = x * cos + y * sin, y * cos - x * sin
        for kx, ky, phase, amplitude in self.waves.tolist():
            across = across + amplitude * np.sin(kx * x + ky * y + phase)
        return along, across

    def direction(self, points: FloatArray) -> FloatArray:
        """Direction of the fibers in radians, (n,), at points, (n, 2)."""
        gradient_x = np.full(len(points), -math.sin(self.angle))
        gradient_y = np.full(len(points), math.cos(self.angle))
        for kx, ky, phase, amplitude in self.waves.tolist():
            slope = amplitude * np.cos(kx * points[:, 0] + ky * points[:, 1] + phase)
            gradient_x += kx * slope
            gradient_y += ky * slope
        angles: FloatArray = np.arctan2(-gradient_x, gradient_y)
        return angles


class Canvas:
    """A picture of material values, drawn larger than needed so that edges come out smooth.

    Args:
        magnification: 40, 100, 200 or 400.
        size: Width and height of the final picture, pixels.

    Attributes:
        field: Width and height of the tissue in view, um; float, (2,).
        supersampling: Canvas pixels per final pixel, along each axis.
        picture: The material values; mode "L", supersampling * size.
    """

    def __init__(self, magnification: int, size: tuple[int, int]) -> None:
        self.field: FloatArray = np.asarray(IMAGE_SIZE) * MICROMETERS_PER_PIXEL * 200 / magnification
        self.supersampling = 2 if size[0] > IMAGE_SIZE[0] // 2 else 4
        full = (size[0] * self.supersampling, size[1] * self.supersampling)
        self.picture = Image.new("L", full, Material.COLLAGEN)
        self._map = Image.new("L", _MAP_SIZE, Material.COLLAGEN)
        self._scale = np.asarray(full) / self.field
        self._map_scale = np.asarray(_MAP_SIZE) / self.field
        self._pen = ImageDraw.Draw(self.picture)
        self._map_pen = ImageDraw.Draw(self._map)

    def fill_all(self, material: Material) -> None:
        """Cover the whole field with a material."""
        self.picture.paste(int(material), (0, 0, *self.picture.size))
        self._map.paste(int(material), (0, 0, *self._map.size))

    def fill(self, outlines: FloatArray, material: Material) -> None:
        """Cover closed shapes, float, (n_shapes, n_vertices, 2), um, with a material."""
        for corners in self._visible(outlines) * self._scale:
            self._pen.polygon(corners.ravel().tolist(), fill=int(material))
        for corners in self._visible(outlines) * self._map_scale:
            self._map_pen.polygon(corners.ravel().tolist(), fill=int(material))

    def is_material(self, points: FloatArray, *materials: Material) -> NDArray[np.bool_]:
        """Whether the regions at points, (n, 2), um, are of one of the materials; bool, (n,). Cells do not count."""
        cells = (points * self._map_scale).astype(int).clip(0, np.asarray(_MAP_SIZE) - 1)
        return np.isin(np.asarray(self._map)[cells[:, 1], cells[:, 0]], materials)

    def place_cells(self, rng: Generator, points: FloatArray, angles: FloatArray, kind: CellKind) -> None:
        """Draw a population of cells.

        Args:
            rng: Source of their variation.
            points: Centers of the nuclei, um; float, (n, 2).
            angles: Directions of the long axes, radians; float, (n,).
            kind: How they look.
        """
        n = len(points)
        radius = kind.radius * np.exp(rng.normal(0, kind.spread, n))
        elongation = np.maximum(1, kind.elongation * np.exp(rng.normal(0, 0.6 * kind.spread + 0.05, n)))
        axes = np.stack((radius * np.sqrt(elongation), radius / np.sqrt(elongation)), axis=1)
        darkness = rng.normal(kind.darkness, kind.darkness_spread, n).clip(0.12, 1)
        is_vesicular, has_nucleolus = rng.random((2, n)) < [[kind.vesicular], [kind.nucleoli]]
        tone = rng.integers(CYTOPLASM_LEVELS[0], CYTOPLASM_LEVELS[1], n, endpoint=True)
        cell = closed_curve(rng, n, vertices=10, roughness=0.08)
        pixels = kind.radius * float(self._scale[0]) / self.supersampling
        nucleus = closed_curve(rng, n, vertices=12 if pixels > 4 else 8, roughness=kind.roughness)
        dot = closed_curve(rng, n, vertices=6, roughness=0.05) * 0.28 + rng.normal(0, 0.25, (n, 1, 2)).clip(-0.5, 0.5)

        if kind.cytoplasm:
            self._draw_each(_posed(cell * kind.cytoplasm, points, angles, axes), tone)
        inside = darkness * np.where(is_vesicular, 0.65, 0.95)
        if pixels < 2.5:  # too small for a rim and a nucleolus to be seen: their mean
            self._draw_each(_posed(nucleus, points, angles, axes), _level(0.35 * darkness + 0.65 * inside + 0.02))
            return
        self._draw_each(_posed(nucleus, points, angles, axes), _level(darkness + 0.05))
        self._draw_each(_posed(nucleus * 0.78, points, angles, axes), _level(inside))
        self._draw_each(_posed(dot, points, angles, axes)[has_nucleolus], _level(darkness + 0.22)[has_nucleolus])

    def _visible(self, outlines: FloatArray) -> FloatArray:
        low, high = outlines.min(axis=1), outlines.max(axis=1)
        shown: FloatArray = outlines[((high > 0) & (low < self.field)).all(axis=1)]
        return shown

    def _draw_each(self, outlines: FloatArray, values: NDArray[np.int64]) -> None:
        corners = (outlines * self._scale).reshape(len(outlines), 2 * outlines.shape[1]).tolist()
        for row, value in zip(corners, values.tolist(), strict=True):
            self._pen.polygon(row, fill=value)


def closed_curve(rng: Generator, n: int, *, vertices: int, roughness: float) -> FloatArray:
    """Rough circles of mean radius 1 around the origin; float, (n, vertices, 2)."""
    turn = np.linspace(0, 2 * np.pi, vertices, endpoint=False)
    harmonic = np.arange(2, 5)
    phase = rng.uniform(0, 2 * np.pi, (n, 3, 1))
    amplitude = roughness * rng.normal(0, 1, (n, 3, 1)) * (2 / harmonic)[:, None]
    radius = 1 + (amplitude * np.cos(harmonic[:, None] * turn + phase)).sum(axis=1).clip(-0.6, 0.6)  # (n, vertices)
    return np.stack((radius * np.cos(turn), radius * np.sin(turn)), axis=-1)


def blobs(
    rng: Generator, centers: FloatArray, radius: FloatArray, *, elongation: float = 1.2, roughness: float = 0.06
) -> FloatArray:
    """Rough ellipses of given centers, (n, 2), and radii, (n,), turned at random; float, (n, 32, 2), um."""
    n = len(centers)
    stretch = np.sqrt(1 + (elongation - 1) * rng.uniform(0, 2, n))
    axes = np.stack((radius * stretch, radius / stretch), axis=1)
    return _posed(closed_curve(rng, n, vertices=32, roughness=roughness), centers, rng.uniform(0, np.pi, n), axes)


def ribbons(
    rng: Generator, centers: FloatArray, angles: FloatArray, length: FloatArray, width: FloatArray, *, bend: float
) -> FloatArray:
    """Bent bands with round ends; float, (n, 48, 2), um.

    Args:
        rng: Source of bends and uneven widths.
        centers: float, (n, 2), um.
        angles: Direction in the middle, radians; float, (n,).
        length: um; float, (n,).
        width: um; float, (n,).
        bend: Standard deviation of the turn from the middle to an end, radians.
    """
    n = len(centers)
    step = -np.cos(np.linspace(0, np.pi, 24))  # -1..1, denser at the round ends
    wave = 0.5 * bend * np.sin(rng.uniform(2, 5, (n, 1)) * step + rng.uniform(0, 6.3, (n, 1)))
    heading = angles[:, None] + rng.normal(0, bend, (n, 1)) * step + wave
    gap = np.gradient(step) * length[:, None] / 2
    middle = np.stack(((np.cos(heading) * gap).cumsum(axis=1), (np.sin(heading) * gap).cumsum(axis=1)), axis=-1)
    middle += centers[:, None] - middle[:, 12:13]
    uneven = 1 + 0.13 * np.sin(rng.uniform(3, 9, (n, 1)) * step + rng.uniform(0, 6.3, (n, 1)))
    half = width[:, None] / 2 * uneven * np.sqrt((1 - np.abs(step) ** 8).clip(0.01))
    side = np.stack((-np.sin(heading), np.cos(heading)), axis=-1) * half[..., None]
    return np.concatenate((middle + side, (middle - side)[:, ::-1]), axis=1)


def inset(outlines: FloatArray, depth: float | FloatArray) -> FloatArray:
    """Shapes made smaller by a distance in um, along their normals; a negative depth makes them larger."""
    return outlines + depth * _inward(outlines)


def along(outlines: FloatArray, rng: Generator, spacing: float) -> tuple[FloatArray, FloatArray]:
    """Points in even steps around shapes, and the direction inward there.

    Returns:
        Points, float, (n, 2), um, and directions, float, (n,), radians.
    """
    if len(outlines) == 0:
        return np.empty((0, 2)), np.empty(0)
    segment = np.roll(outlines, -1, axis=1) - outlines
    ends = np.linalg.norm(segment, axis=-1).ravel().cumsum()
    place = np.arange(spacing / 2, ends[-1], spacing)
    place = (place + rng.normal(0, 0.12 * spacing, len(place))).clip(0, ends[-1] * (1 - 1e-9))
    index = np.searchsorted(ends, place, side="right")
    lengths = np.diff(ends, prepend=0.0)[index]
    share = 1 - (ends[index] - place) / np.maximum(lengths, 1e-9)
    points = outlines.reshape(-1, 2)[index] + share[:, None] * segment.reshape(-1, 2)[index]
    inward = _inward(outlines).reshape(-1, 2)[index]
    return points, np.arctan2(inward[:, 1], inward[:, 0])


def scatter(rng: Generator, field: FloatArray, spacing: float, *, jitter: float = 0.25) -> FloatArray:
    """Points of a hexagonal grid moved at random, one spacing beyond the field; float, (n, 2), um.

    Args:
        rng: Source of the moves.
        field: Width and height, um; float, (2,).
        spacing: Distance of neighbors, um.
        jitter: Standard deviation of the moves, as a share of the spacing.
    """
    columns = np.arange(-spacing, field[0] + 1.5 * spacing, spacing)
    rows = np.arange(-spacing, field[1] + spacing, spacing * math.sqrt(0.75))
    x, y = np.meshgrid(columns, rows)
    x[1::2] += spacing / 2
    grid = np.stack((x.ravel(), y.ravel()), axis=1) + rng.uniform(-0.5, 0.5, 2) * spacing
    points: FloatArray = grid + rng.normal(0, jitter * spacing, grid.shape)
    return points


def _inward(outlines: FloatArray) -> FloatArray:
    tangent = np.roll(outlines, -1, axis=1) - np.roll(outlines, 1, axis=1)
    length = np.linalg.norm(tangent, axis=-1, keepdims=True)
    normal = np.stack((-tangent[..., 1], tangent[..., 0]), axis=-1) / np.maximum(length, 1e-9)
    x, y = outlines[..., 0], outlines[..., 1]
    area = (x * np.roll(y, -1, axis=1) - np.roll(x, -1, axis=1) * y).sum(axis=1)
    inward: FloatArray = normal * np.sign(area)[:, None, None]
    return inward


def _posed(shapes: FloatArray, centers: FloatArray, angles: FloatArray, axes: FloatArray) -> FloatArray:
    """Unit shapes, (n, vertices, 2), stretched by axes, (n, 2), turned and moved."""
    x, y = (shapes * axes[:, None]).transpose(2, 0, 1)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    return np.stack((x * cos - y * sin, x * sin + y * cos), axis=-1) + centers[:, None]


def _level(darkness: FloatArray) -> NDArray[np.int64]:
    """Canvas values of nuclei of a given darkness."""
    low, high = NUCLEUS_LEVELS
    levels: NDArray[np.int64] = np.rint(low + (high - low) * darkness.clip(0, 1)).astype(np.int64)
    return levels
