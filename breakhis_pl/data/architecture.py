"""How the eight tumor types of BreakHis are built, as far as a drawing can tell: which shapes, lined by which cells.

Benign: ducts and acini with an open lumen, lined by one or two orderly layers of small and uniform nuclei. Malignant:
glands lost or irregular, nuclei larger, darker, more crowded and of uneven size and shape.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from breakhis_pl.data.breakhis import SUBTYPES
from breakhis_pl.data.tissue import (
    Canvas,
    CellKind,
    FloatArray,
    Flow,
    Material,
    along,
    blobs,
    inset,
    ribbons,
    scatter,
)
from breakhis_pl.errors import ConfigurationError, listed

STROMA = (Material.COLLAGEN, Material.LOOSE)


@dataclass(frozen=True, slots=True)
class Traits:
    """What the images of one patient have in common.

    Attributes:
        epithelium: The cells of glands or of the tumor.
        crowding: Number of cells over the usual, about 0.8 to 1.3.
        extent: Share of the tissue that is gland or tumor over the usual, about 0.8 to 1.2.
        spindles: Distance of the fibroblasts in the stroma, um.
        lymphocytes: Distance of the lymphocytes where they gather, um.
        is_inflamed: Whether lymphocytes gather at all.
    """

    epithelium: CellKind
    crowding: float
    extent: float
    spindles: float
    lymphocytes: float
    is_inflamed: bool


def draw_traits(rng: Generator, subtype: str) -> Traits:
    """Random traits of a patient with a given tumor type, a key of `SUBTYPES`."""
    darkness = float(rng.uniform(0.4, 0.6))
    if SUBTYPES[subtype].class_name == "benign":
        kind = CellKind(
            radius=float(rng.normal(3.2, 0.22)),
            elongation=float(rng.uniform(1.2, 1.55)),
            spread=float(rng.uniform(0.06, 0.12)),
            roughness=0.03,
            darkness=darkness,
            vesicular=float(rng.uniform(0.1, 0.5)),
        )
    else:
        grade = float(rng.beta(1.6, 1.6))
        small = 0.85 if subtype == "LC" else 1.0
        kind = CellKind(
            radius=small * float(rng.normal(4.1 + 1.1 * grade, 0.2)),
            elongation=float(rng.uniform(1.1, 1.35)),
            spread=small * (0.13 + 0.17 * grade),
            roughness=0.05 + 0.06 * grade,
            darkness=darkness + 0.1 * grade,
            darkness_spread=0.08 + 0.1 * grade,
            vesicular=float(rng.uniform(0.3, 0.8)),
            nucleoli=0.15 + 0.45 * grade,
            cytoplasm=float(rng.uniform(1.45, 1.8)),
        )
    return Traits(
        epithelium=kind,
        crowding=float(rng.uniform(0.85, 1.25)),
        extent=float(rng.uniform(0.8, 1.2)),
        spindles=float(rng.uniform(10.5, 13.5) if subtype == "PT" else rng.uniform(15, 26)),
        lymphocytes=float(rng.uniform(8, 12)),
        is_inflamed=bool(rng.random() < 0.35),
    )


def build(canvas: Canvas, rng: Generator, subtype: str, traits: Traits, flow: Flow) -> None:
    """Draw the tissue of a tumor type, a key of `SUBTYPES`, onto an empty canvas.

    Raises:
        ConfigurationError: If there is no such tumor type.
    """
    tumor, nests, stroma, vessels, fat = rng.spawn(5)
    match subtype:
        case "A":
            _adenosis(canvas, tumor, traits)
        case "F":
            _fibroadenoma(canvas, tumor, traits, flow)
        case "PT":
            _phyllodes_tumor(canvas, tumor, traits)
        case "TA":
            _tubular_adenoma(canvas, tumor, traits)
        case "DC":
            _ductal_carcinoma(canvas, tumor, traits, flow)
        case "LC":
            _lobular_carcinoma(canvas, tumor, traits, flow)
        case "MC":
            _mucinous_carcinoma(canvas, tumor, traits)
        case "PC":
            _papillary_carcinoma(canvas, tumor, traits)
        case _:
            raise ConfigurationError(f"subtype {subtype} cannot be drawn; expected {listed(SUBTYPES)}")
    _fat(canvas, fat)
    _vessels(canvas, vessels, flow)
    _stroma_cells(canvas, stroma, traits, flow)
    _fill_nests(canvas, nests, traits)


def _adenosis(canvas: Canvas, rng: Generator, traits: Traits) -> None:
    centers = _clustered(canvas, rng, spacing=46 / np.sqrt(traits.extent), share=0.75)
    radius = rng.normal(17.5, 2, len(centers)).clip(13, 23)
    _glands(canvas, rng, traits, blobs(rng, centers, radius, elongation=1.35), lumen=(8.5, 11))


def _tubular_adenoma(canvas: Canvas, rng: Generator, traits: Traits) -> None:
    centers = _clustered(canvas, rng, spacing=54 / np.sqrt(traits.extent), share=0.85)
    radius = rng.normal(23, 2.5, len(centers)).clip(16, 27)
    _glands(canvas, rng, traits, blobs(rng, centers, radius, elongation=1.12, roughness=0.04), lumen=(9.5, 12.5))


def _fibroadenoma(canvas: Canvas, rng: Generator, traits: Traits, flow: Flow) -> None:
    canvas.fill_all(Material.LOOSE)
    centers = scatter(rng, canvas.field, 114 / np.sqrt(traits.extent), jitter=0.2)
    centers = centers[rng.random(len(centers)) < 0.85]
    n = len(centers)
    angles = flow.direction(centers) + rng.normal(0, 0.5, n)
    ducts = ribbons(rng, centers, angles, rng.uniform(70, 190, n), rng.uniform(23, 33, n), bend=0.7)
    is_open = rng.random(n) < 0.3
    ducts[is_open] = ribbons(rng, centers, angles, rng.uniform(45, 85, n), rng.uniform(38, 55, n), bend=0.2)[is_open]
    _glands(canvas, rng, traits, ducts, lumen=(10.5, 10.5))


def _phyllodes_tumor(canvas: Canvas, rng: Generator, traits: Traits) -> None:
    canvas.fill_all(Material.LOOSE)
    centers = scatter(rng, canvas.field, 300 / np.sqrt(traits.extent), jitter=0.1)
    n = len(centers)
    turn = rng.uniform(0, 2 * np.pi, n)
    length, width = rng.uniform(190, 280, n), rng.uniform(90, 140, n)
    _glands(canvas, rng, traits, ribbons(rng, centers, turn, length, width, bend=0.25), lumen=(10, 10), filled=0.0)
    tip = 0.5 * length * np.stack((np.cos(turn), np.sin(turn)))
    leaves = ribbons(rng, centers - 0.45 * tip.T, turn, length, width * rng.uniform(0.5, 0.72, n), bend=0.2)
    canvas.fill(leaves, Material.EPITHELIUM)
    canvas.fill(inset(leaves, 10), Material.LOOSE)
    stalks = (leaves[:, 2] + leaves[:, -3]) / 2
    canvas.fill(blobs(rng, stalks, 0.34 * width), Material.LOOSE)
    _lining(canvas, rng, traits, leaves)


def _ductal_carcinoma(canvas: Canvas, rng: Generator, traits: Traits, flow: Flow) -> None:
    spacing = rng.uniform(65, 170)
    centers = scatter(rng, canvas.field, spacing, jitter=0.22)
    centers = centers[rng.random(len(centers)) < 0.9]
    n = len(centers)
    radius = spacing * 0.4 * np.sqrt(traits.extent) * np.exp(rng.normal(0, 0.25, n))
    nests = blobs(rng, centers, radius, elongation=1.6, roughness=0.12)
    angles = flow.direction(centers) + rng.normal(0, 0.3, n)
    cords = ribbons(rng, centers, angles, radius * rng.uniform(2.5, 5, n), rng.uniform(14, 30, n), bend=0.5)
    is_cord = rng.random(n) < rng.uniform(0, 0.7)
    _nests(canvas, rng, nests[~is_cord])
    _nests(canvas, rng, cords[is_cord])
    holes = scatter(rng, canvas.field, 48, jitter=0.3)
    holes = holes[rng.random(len(holes)) < rng.choice([0.05, 0.3])]
    holes = holes[canvas.is_material(holes, Material.NEST)]
    canvas.fill(blobs(rng, holes, rng.uniform(3, 10, len(holes)), elongation=1.7, roughness=0.18), Material.EMPTY)


def _lobular_carcinoma(canvas: Canvas, rng: Generator, traits: Traits, flow: Flow) -> None:
    starts = scatter(rng, canvas.field, 34 / np.sqrt(traits.extent), jitter=0.35)
    n_cells = rng.integers(1, 11, len(starts))
    gap = 2.5 * traits.epithelium.radius / traits.crowding**0.5
    trail = starts
    kind = replace(traits.epithelium, cytoplasm=1.6)
    for step in range(10):
        points = trail[n_cells > step]
        angles = flow.direction(points) + rng.normal(0, 0.3, len(points))
        canvas.place_cells(rng, points + rng.normal(0, 0.9, points.shape), angles, kind)
        heading = flow.direction(trail)
        trail = trail + gap * np.stack((np.cos(heading), np.sin(heading)), axis=1)


def _mucinous_carcinoma(canvas: Canvas, rng: Generator, traits: Traits) -> None:
    spacing = rng.uniform(170, 300)
    centers = scatter(rng, canvas.field, spacing, jitter=0.1)
    pools = blobs(rng, centers, spacing * rng.uniform(0.47, 0.58, len(centers)), elongation=1.25, roughness=0.05)
    canvas.fill(pools, Material.MUCIN)
    centers = scatter(rng, canvas.field, rng.uniform(62, 85) / np.sqrt(traits.extent), jitter=0.22)
    centers = centers[canvas.is_material(centers, Material.MUCIN)]
    centers = centers[rng.random(len(centers)) < 0.85]
    n = len(centers)
    clusters = blobs(rng, centers, rng.uniform(11, 30, n), elongation=1.6, roughness=0.1)
    canvas.fill(inset(clusters, -2.5), Material.EMPTY)
    canvas.fill(clusters, Material.NEST)


def _papillary_carcinoma(canvas: Canvas, rng: Generator, traits: Traits) -> None:
    canvas.fill_all(Material.EMPTY)
    centers = scatter(rng, canvas.field, rng.uniform(95, 120) / np.sqrt(traits.extent), jitter=0.16)
    n = len(centers)
    width = rng.uniform(54, 80, n)
    fronds = ribbons(rng, centers, rng.uniform(0, np.pi, n), rng.uniform(110, 240, n), width, bend=0.9)
    canvas.fill(fronds, Material.EPITHELIUM)
    canvas.fill(inset(fronds, 19), Material.COLLAGEN)
    kind = replace(traits.epithelium, elongation=1.65, cytoplasm=0.0)
    for depth in (6.5, 13.5):
        points, angles = along(inset(fronds, depth), rng, 2.0 * kind.radius / traits.crowding**0.5)
        points, angles = points + rng.normal(0, 1.2, points.shape), angles + rng.normal(0, 0.3, len(angles))
        is_shown = canvas.is_material(points, Material.EPITHELIUM, Material.EMPTY)
        canvas.place_cells(rng, points[is_shown], angles[is_shown], kind)


def _clustered(canvas: Canvas, rng: Generator, *, spacing: float, share: float) -> FloatArray:
    """Points that gather in lobules and leave stroma between them."""
    points = scatter(rng, canvas.field, spacing, jitter=0.09)
    turn, phase = rng.uniform(0, 2 * np.pi, (2, 3))
    number = 2 * np.pi / rng.uniform(120, 420, 3)
    waves = np.sin(points @ (number * (np.cos(turn), np.sin(turn))) + phase)
    lobules: FloatArray = points[waves.sum(axis=1) < 3 * (2 * share - 1)]
    return lobules


def _glands(
    canvas: Canvas,
    rng: Generator,
    traits: Traits,
    outlines: FloatArray,
    *,
    lumen: tuple[float, float],
    filled: float = 0.25,
) -> None:
    """Glands with a lumen that begins at a depth drawn from a range, um, and two orderly layers of cells."""
    _cleft(canvas, rng, outlines, Material.EMPTY)
    canvas.fill(inset(outlines, -0.9), Material.MEMBRANE)
    canvas.fill(outlines, Material.EPITHELIUM)
    depth = rng.uniform(*lumen, (len(outlines), 1, 1))
    inside = outlines + depth * (inset(outlines, 1.0) - outlines)
    is_filled = rng.random(len(outlines)) < filled
    canvas.fill(inside[~is_filled], Material.EMPTY)
    canvas.fill(inside[is_filled], Material.SECRETION)
    _lining(canvas, rng, traits, outlines)


def _lining(canvas: Canvas, rng: Generator, traits: Traits, outlines: FloatArray) -> None:
    """An orderly layer of cells and a looser, flat one outside it, wherever the epithelium is still in view."""
    kind = traits.epithelium
    spacing = 2.35 * kind.radius / traits.crowding
    points, angles = along(inset(outlines, 5.8), rng, spacing)
    points, angles = points + rng.normal(0, 0.5, points.shape), angles + rng.normal(0, 0.15, len(angles))
    is_shown = canvas.is_material(points, Material.EPITHELIUM)
    canvas.place_cells(rng, points[is_shown], angles[is_shown], kind)
    points, angles = along(inset(outlines, 1.2), rng, 2.2 * spacing)
    is_shown = canvas.is_material(points, Material.EPITHELIUM, Material.MEMBRANE)
    flat = replace(kind, radius=0.75 * kind.radius, elongation=2.3, darkness=kind.darkness + 0.1, vesicular=0.0)
    canvas.place_cells(rng, points[is_shown], angles[is_shown] + np.pi / 2, flat)


def _cleft(canvas: Canvas, rng: Generator, outlines: FloatArray, material: Material) -> None:
    """Gaps here and there around shapes, where fixed tissue has shrunk away from its surroundings."""
    turn = np.linspace(0, 2 * np.pi, outlines.shape[1], endpoint=False)
    phase = rng.uniform(0, 2 * np.pi, (2, len(outlines), 1))
    width = 1.4 * np.sin(turn + phase[0]) + np.sin(3 * turn + phase[1]) + rng.normal(-0.4, 1, (len(outlines), 1))
    canvas.fill(inset(outlines, -width.clip(0)[..., None]), material)


def _nests(canvas: Canvas, rng: Generator, outlines: FloatArray) -> None:
    _cleft(canvas, rng, outlines, Material.EMPTY)
    canvas.fill(outlines, Material.NEST)


def _fill_nests(canvas: Canvas, rng: Generator, traits: Traits) -> None:
    """Crowded cells without order wherever there is a nest."""
    points = scatter(rng, canvas.field, 2.75 * traits.epithelium.radius / traits.crowding**0.5, jitter=0.16)
    points = points[canvas.is_material(points, Material.NEST)]
    canvas.place_cells(rng, points, rng.uniform(0, np.pi, len(points)), traits.epithelium)


def _fat(canvas: Canvas, rng: Generator) -> None:
    """Now and then a few fat cells, which the solvents leave empty."""
    if rng.random() > 0.25:
        return
    place = rng.uniform(0, 1, 2) * canvas.field
    centers = place + rng.normal(0, 40, (int(rng.integers(1, 5)), 2))
    cells = blobs(rng, centers, rng.uniform(14, 32, len(centers)), elongation=1.25, roughness=0.04)
    canvas.fill(inset(cells, -1.2), Material.MEMBRANE)
    canvas.fill(cells, Material.EMPTY)


def _vessels(canvas: Canvas, rng: Generator, flow: Flow) -> None:
    """Capillaries with red cells."""
    centers = scatter(rng, canvas.field, 95, jitter=0.35)
    centers = centers[(rng.random(len(centers)) < 0.3) & canvas.is_material(centers, *STROMA)]
    n = len(centers)
    walls = ribbons(rng, centers, flow.direction(centers), rng.uniform(13, 34, n), rng.uniform(8, 14, n), bend=0.3)
    canvas.fill(walls, Material.MEMBRANE)
    canvas.fill(inset(walls, 1.6), Material.EMPTY)
    blood = np.repeat(centers, 3, axis=0) + rng.normal(0, 2.4, (3 * n, 2))
    canvas.fill(blobs(rng, blood, rng.uniform(1.6, 2.4, 3 * n), elongation=1.2), Material.RED_CELL)
    points, angles = along(inset(walls, 0.6), rng, 16)
    endothelium = CellKind(radius=1.8, elongation=2.8, spread=0.1, darkness=0.5, vesicular=0.0)
    canvas.place_cells(rng, points, angles + np.pi / 2, endothelium)


def _stroma_cells(canvas: Canvas, rng: Generator, traits: Traits, flow: Flow) -> None:
    """Fibroblasts along the fibers; lymphocytes where the patient has an inflammation."""
    points = scatter(rng, canvas.field, traits.spindles, jitter=0.35)
    points = points[canvas.is_material(points, *STROMA)]
    angles = flow.direction(points) + rng.normal(0, 0.2, len(points))
    spindle = CellKind(radius=2.1, elongation=3.4, spread=0.2, darkness=0.5, darkness_spread=0.1, vesicular=0.2)
    canvas.place_cells(rng, points, angles, spindle)
    if traits.is_inflamed:
        points = scatter(rng, canvas.field, traits.lymphocytes, jitter=0.3)
        place = rng.uniform(0, 1, 2) * canvas.field
        points = points[np.linalg.norm(points - place, axis=1) < rng.gamma(4, 12, len(points))]
        points = points[canvas.is_material(points, *STROMA)]
        round_dark = CellKind(radius=2.3, elongation=1.1, spread=0.06, darkness=0.8, vesicular=0.0)
        canvas.place_cells(rng, points, np.zeros(len(points)), round_dark)
