"""Synthetic H&E images under BreakHis names, for the demo and for tests without the archive.

An image is a function of its name, its width and a seed. Nothing is copied from real images: a network trained on these
shows that the software works and nothing about tissue. Lengths are micrometers (um) of tissue, so that a small image
shows what the large one shows.
"""

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter
from PIL.PngImagePlugin import PngInfo
from scipy import ndimage
from tqdm import tqdm

from breakhis_pl.config import SyntheticDataConfig
from breakhis_pl.data.breakhis import (
    IMAGE_SIZE,
    ImageName,
    archive_folder,
    official_patients,
    open_breakhis,
    parse_file_name,
)
from breakhis_pl.data.dataset import Dataset
from breakhis_pl.randomness import derived_seed
from breakhis_pl.run_folder import atomic_folder

VERSION = 2
"""Version of the generator. Raise it when pixels change, so that older folders are not reused."""
FIELD_WIDTH = 245.0
"""Width of an image at 200X, um; nuclei then look as large as in BreakHis."""
MIN_POOL_PIXELS = 4_000_000
"""Pixels from which images are generated in several processes."""

FloatArray = npt.NDArray[np.float64]
Tissue = tuple[int, int, int]

# Percent of hematoxylin and of eosin, and share of fibers (0 to 255), which also identifies the tissue: the three
# channels of a Pillow image.
COLLAGEN: Tissue = (6, 38, 255)
LOOSE: Tissue = (7, 22, 240)
MUCIN: Tissue = (11, 4, 70)
MEMBRANE: Tissue = (10, 45, 40)
EPITHELIUM: Tissue = (17, 24, 21)
CELLS: Tissue = (15, 22, 20)
SECRETION: Tissue = (3, 30, 10)
NUCLEUS: Tissue = (100, 18, 5)
RED_CELLS: Tissue = (0, 75, 1)
EMPTY: Tissue = (0, 1, 0)
STROMA = (COLLAGEN, LOOSE)


@dataclass(frozen=True, slots=True)
class Cells:
    """Appearance of a population of cells."""

    radius: float  # mean of the nuclei, um
    spacing: float = 2.4  # distance of neighbors, in radii
    elongation: float = 1.2  # ratio of the long to the short axis
    spread: float = 0.1  # standard deviation of the logarithm of the radius: pleomorphism
    darkness: float = 0.65  # mean amount of hematoxylin
    pallor: float = 0.1  # mean fraction of hematoxylin that is missing inside the nuclear membrane
    cytoplasm: float = 0.0  # radius of a cell, in radii of its nucleus; 0 omits the cytoplasm


@dataclass(frozen=True, slots=True)
class Slide:
    """Properties that all images of a patient share."""

    stains: FloatArray  # optical density per color channel of hematoxylin and eosin, (2, 3)
    light: FloatArray  # color of empty glass, (3,), 0..1
    blur: float  # standard deviation, um at 200X
    tumor: Cells
    spindles: Cells


def sample_slide(rng: np.random.Generator, name: ImageName) -> Slide:
    """Sample the slide of a patient. Nuclei of malignant tumors are larger and vary more.

    Source:
        Stains: Ruifrok and Johnston 2001, Analytical and Quantitative Cytology and Histology 23(4), with more spread.
    """
    stains = rng.normal([[0.60, 0.72, 0.32], [0.12, 0.96, 0.30]], [[0.04, 0.03, 0.04], [0.04, 0.02, 0.06]]).clip(0.02)
    stains *= np.exp(rng.normal((-0.05, -0.2), (0.12, 0.2)) - np.log(np.linalg.norm(stains, axis=1)))[:, None]
    atypia = 0.3 * rng.beta(1.5, 3) if name.class_name == "benign" else 0.4 + 0.6 * rng.beta(3, 2)
    tumor = Cells(
        radius=(rng.normal(2.8, 0.1) + 2.6 * atypia) * (0.85 if name.subtype == "LC" else 1),
        spacing=rng.uniform(2.2, 2.7),
        elongation=rng.uniform(1.15, 1.5),
        spread=0.06 + 0.2 * atypia,
        darkness=rng.uniform(0.5, 0.7) + 0.1 * atypia,
        pallor=rng.uniform(0.05, 0.25),
    )
    spacing = rng.uniform(5, 6) if name.subtype == "PT" else rng.uniform(7, 11)
    spindles = Cells(2.1, spacing=spacing, elongation=3.4, spread=0.2)
    return Slide(stains, rng.uniform(0.86, 0.97, 3), rng.uniform(0.2, 0.45), tumor, spindles)


class Canvas:
    """Map of tissue, drawn larger than the image so that edges are smooth.

    Random numbers are drawn before anything depends on pixels, so the width changes no shape.
    """

    def __init__(self, rng: np.random.Generator, width: int, magnification: int, background: Tissue) -> None:
        self.rng = rng
        self.pixel = FIELD_WIDTH * 200 / magnification / width
        self.oversampling = 2 if width > 350 else 4
        self.size = (width, round(width * IMAGE_SIZE[1] / IMAGE_SIZE[0]))
        self.field = np.array(self.size) * self.pixel
        self.image = Image.new("RGB", (self.size[0] * self.oversampling, self.size[1] * self.oversampling), background)
        self.fiber_angle = rng.uniform(0, math.pi)
        turn, phase = rng.uniform(0, 2 * math.pi, (2, 3))
        length = rng.uniform((110, 45, 20), (220, 90, 35)) / (2 * math.pi)
        amplitude = rng.uniform((0.2, 0.1, 0.1), (0.6, 0.4, 0.25)) * length
        self.waves = np.stack((np.cos(turn) / length, np.sin(turn) / length, phase, amplitude), axis=1).tolist()

    def fiber_coordinates(self, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the positions along and across the wavy fibers, um, of points."""
        cos, sin = math.cos(self.fiber_angle), math.sin(self.fiber_angle)
        along, across = x * cos + y * sin, y * cos - x * sin
        for kx, ky, phase, amplitude in self.waves:
            across = across + amplitude * np.sin(kx * x + ky * y + phase)
        return along, across

    def fiber_angles(self, points: FloatArray) -> FloatArray:
        """Return the direction of the fibers at points; float, (n,), radians."""
        x, y = points[:, 0] + [[0.0], [1.0], [0.0]], points[:, 1] + [[0.0], [0.0], [1.0]]
        here, right, below = self.fiber_coordinates(x, y)[1]
        return np.asarray(np.arctan2(here - right, below - here), np.float64)

    def grid(self, spacing: float, *, jitter: float = 0.25) -> FloatArray:
        """Return the points of a hexagonal grid, each moved at random; float, (n, 2), um."""
        columns = np.arange(-spacing, self.field[0] + 1.5 * spacing, spacing)
        rows = np.arange(-spacing, self.field[1] + spacing, spacing * math.sqrt(0.75))
        x, y = np.meshgrid(columns, rows)
        x[1::2] += spacing / 2
        points = np.stack((x.ravel(), y.ravel()), axis=1) + self.rng.uniform(-0.5, 0.5, 2) * spacing
        return points + self.rng.normal(0, jitter * spacing, points.shape)

    def shapes(
        self,
        centers: FloatArray,
        radius: npt.ArrayLike,  # um; a tuple holds the bounds of a uniform distribution
        elongation: npt.ArrayLike = 1.0,  # ratio of the axes, or such bounds
        angles: npt.ArrayLike | None = None,
        *,
        roughness: float = 0.05,
        bend: float = 0.0,
        vertices: int = 40,
    ) -> FloatArray:
        """Return irregular ellipses, bent into an S, at random angles by default; float, (n, vertices, 2), um."""
        n, rng = len(centers), self.rng
        radius, elongation = (
            rng.uniform(each[0], each[1], n) if isinstance(each, tuple) else np.broadcast_to(each, n)
            for each in (radius, elongation)
        )
        turn = np.linspace(0, 2 * math.pi, vertices, endpoint=False)
        harmonics = np.arange(2, 5)[:, None]
        waves = rng.normal(0, roughness, (n, 3, 1)) * np.cos(harmonics * turn + rng.uniform(0, 6.3, (n, 3, 1)))
        distance = 1 + (waves * 2 / harmonics).sum(axis=1).clip(-0.5, 0.5)  # (n, vertices)
        stretch = np.sqrt(elongation)[:, None]
        x, y = distance * np.cos(turn) * stretch, distance * np.sin(turn) / stretch
        y += bend * stretch * np.sin(2 * x / stretch + rng.uniform(0, 6.3, (n, 1)))
        angles = np.broadcast_to(rng.uniform(0, math.pi, n) if angles is None else angles, n)[:, None]
        turned = np.stack((x * np.cos(angles) - y * np.sin(angles), x * np.sin(angles) + y * np.cos(angles)), axis=-1)
        return np.asarray(turned * radius[:, None, None] + centers[:, None], np.float64)

    def fill(self, shapes: FloatArray, tissue: npt.ArrayLike, *, with_gaps: bool = False) -> None:
        """Fill shapes with one tissue, or with one each; with gaps beside some, where fixed tissue has shrunk."""
        if with_gaps:
            turn = np.linspace(0, 2 * math.pi, shapes.shape[1], endpoint=False)
            phase, size = self.rng.normal(0, (2, 1.5), (len(shapes), 2)).T[..., None]
            self.fill(inset(shapes, -(size + 2 * np.sin(turn + phase) + np.sin(3 * turn)).clip(0)[..., None]), EMPTY)
        pen = ImageDraw.Draw(self.image)
        corners = (shapes * self.oversampling / self.pixel).reshape(len(shapes), 2 * shapes.shape[1]).tolist()
        colors = np.broadcast_to(tissue, (len(shapes), 3)).clip(0, 255).astype(int).tolist()
        for polygon, color in zip(corners, colors, strict=True):
            pen.polygon(polygon, fill=tuple(color))

    def is_in(self, points: FloatArray, *tissues: Tissue) -> npt.NDArray[np.bool_]:
        """Return whether points lie in one of the tissues; bool, (n,)."""
        x, y = (points * self.oversampling / self.pixel).astype(int).clip(0, np.array(self.image.size) - 1).T
        is_near = ((points > -10) & (points < self.field + 10)).all(axis=1)
        return is_near & np.isin(np.asarray(self.image.getchannel(2))[y, x], [tissue[2] for tissue in tissues])

    def add_cells(self, points: FloatArray, angles: FloatArray, cells: Cells, *tissues: Tissue) -> None:
        """Draw cells at those points that lie in one of the tissues."""
        n, rng, is_shown = len(points), self.rng, self.is_in(points, *tissues)
        radius = cells.radius * np.exp(rng.normal(0, cells.spread, n))
        elongation = 1 + (cells.elongation - 1) * rng.gamma(4, 0.25, n)
        tone = np.exp(rng.normal(0, 0.05 + 0.6 * cells.spread, (n, 1)) * (1, 0, 0))
        color = np.array(NUCLEUS) * tone * (cells.darkness, 1, 1)
        pallor = cells.pallor * rng.uniform(0, 2, (n, 1)) * (1, 0, 0)
        if cells.cytoplasm:
            tint = CELLS + rng.normal(0, 1, (n, 1)) * (3, 4, 0)
            bodies = self.shapes(points, cells.cytoplasm * radius, elongation, angles, vertices=10)
            self.fill(bodies[is_shown], tint[is_shown])
        nuclei = self.shapes(points, radius, elongation, angles, roughness=0.02 + 0.3 * cells.spread, vertices=12)
        shifts = rng.normal(0, 0.25, (n, 1, 2)) * radius[:, None, None]
        has_nucleolus = is_shown & (rng.random(n) < 3 * cells.spread)
        if cells.radius < 3 * self.pixel:  # too small for details: their mean
            self.fill(nuclei[is_shown], (color * (1 - pallor / 2))[is_shown])
            return
        around = nuclei - points[:, None]
        self.fill(nuclei[is_shown], color[is_shown])
        self.fill((points[:, None] + 0.78 * around)[is_shown], (color * (1 - pallor))[is_shown])
        nucleoli = points[:, None] + shifts + 0.25 * around
        self.fill(nucleoli[has_nucleolus], (1.2 * color)[has_nucleolus])

    def add_glands(self, shapes: FloatArray, cells: Cells, inside: npt.ArrayLike, *, rows: Sequence[float]) -> None:
        """Draw an epithelium with rows of nuclei at some depths, um, around other tissue."""
        self.fill(inset(shapes, -1), MEMBRANE, with_gaps=True)
        self.fill(shapes, EPITHELIUM)
        self.fill(inset(shapes, rows[-1] + 1.3 * cells.radius), inside)
        for depth in rows:
            points, angles = rim(inset(shapes, depth), cells.spacing * cells.radius)
            noise = self.rng.normal(0, 0.3 + 4 * cells.spread, (len(points), 3))
            self.add_cells(points + noise[:, :2], angles + 0.2 * noise[:, 2], cells, EPITHELIUM)


def inset(shapes: FloatArray, depth: float | FloatArray) -> FloatArray:
    """Move outlines inward by a depth, um."""
    x, y = np.moveaxis(np.roll(shapes, -1, axis=1) - np.roll(shapes, 1, axis=1), -1, 0)
    inward = np.stack((-y, x), axis=-1)  # vertices run from the x axis to the y axis
    return np.asarray(shapes + depth * inward / np.linalg.norm(inward, axis=-1, keepdims=True).clip(1e-9), np.float64)


def rim(shapes: FloatArray, spacing: float) -> tuple[FloatArray, FloatArray]:
    """Return points at equal steps along outlines, (n, 2), um, and the directions inward, (n,), radians."""
    sides = (np.roll(shapes, -1, axis=1) - shapes).reshape(-1, 2)
    ends = np.linalg.norm(sides, axis=1).cumsum()
    place = np.interp(np.arange(0, ends[-1], spacing), np.append(0, ends), np.arange(len(ends) + 1.0))
    index = place.astype(int)
    points = shapes.reshape(-1, 2)[index] + (place - index)[:, None] * sides[index]
    return points, np.arctan2(sides[index, 0], -sides[index, 1])


def draw_tumor(canvas: Canvas, cells: Cells, subtype: str) -> None:
    """Draw the glands, nests, files or papillae of a tumor type.

    Benign glands have a lumen and two orderly rows of cells. Carcinomas lose this order. Some benign ducts are filled
    with cells and some carcinomas form lumina, so that the classes overlap.
    """
    rng = canvas.rng
    match subtype:
        case "A" | "TA":  # lobules of round or compressed tubules
            size, longest = (17, 2.0) if subtype == "A" else (23, 1.3)
            centers = canvas.grid(2.35 * size, jitter=0.09)
            lobules = np.sin(centers / rng.uniform(25, 60, 2) + rng.uniform(0, 6.3, 2)).sum(axis=1)
            centers = centers[lobules < rng.uniform(0, 1.5)]
            n = len(centers)
            inside = np.array((EMPTY, SECRETION, CELLS))[rng.choice(3, n, p=(0.7, 0.2, 0.1))]
            shapes = canvas.shapes(centers, rng.normal(size, 2, n), (1, longest))
            canvas.add_glands(shapes, cells, inside, rows=(1.5, 6))
        case "F":  # ducts compressed to slits
            centers = canvas.grid(rng.uniform(85, 120), jitter=0.2)
            angles = canvas.fiber_angles(centers) + rng.normal(0, 0.4, len(centers))
            inside = np.array((EMPTY, CELLS))[rng.choice(2, len(centers), p=(0.85, 0.15))]
            shapes = canvas.shapes(centers, (28, 40), (1.5, 7), angles, bend=0.25)
            canvas.add_glands(shapes, cells, inside, rows=(1.5, 6))
        case "PT":  # fronds of cellular stroma in clefts
            n = len(centers := canvas.grid(rng.uniform(200, 280), jitter=0.15))
            angles = rng.uniform(0, math.pi, n)
            for radius, content in ((90, EMPTY), (62, LOOSE)):
                shapes = canvas.shapes(centers, rng.normal(radius, 6, n), (1.5, 2.5), angles, bend=0.2)
                canvas.add_glands(shapes, cells, content, rows=(2, 6))
        case "DC":  # nests and cords, some with lumina
            spacing = rng.uniform(55, 120)
            centers = canvas.grid(spacing)
            angles, sizes = canvas.fiber_angles(centers), spacing * rng.uniform(0.25, 0.5, len(centers))
            nests = canvas.shapes(centers, sizes, (1, 6), angles, roughness=0.12, bend=0.15)
            canvas.fill(nests, CELLS, with_gaps=True)
            lumina = canvas.grid(rng.uniform(35, 150), jitter=0.3)
            shapes = canvas.shapes(lumina, (3, 10), (1, 2.5), roughness=0.15)
            canvas.fill(shapes[canvas.is_in(lumina, CELLS)], EMPTY)
        case "LC":  # single files along the fibers
            centers = canvas.grid(rng.uniform(32, 50), jitter=0.3)
            files = canvas.shapes(centers, 8, (10, 60), canvas.fiber_angles(centers), bend=0.15)
            points, angles = rim(files, 2.2 * cells.spacing * cells.radius)
            canvas.add_cells(points, angles, replace(cells, cytoplasm=1.5), COLLAGEN)
        case "MC":  # nests in pools of mucin
            pools, spacing = canvas.grid(180, jitter=0.1), rng.uniform(45, 75)
            canvas.fill(canvas.shapes(pools, 100, (1, 1.5)), MUCIN)
            centers = canvas.grid(spacing)
            nests = canvas.shapes(centers, (9, 26), (1, 2.5), roughness=0.1)
            canvas.fill(nests[canvas.is_in(centers, MUCIN)], CELLS, with_gaps=True)
        case _:  # PC: papillae with a core of collagen
            shapes = canvas.shapes(canvas.grid(rng.uniform(75, 110)), (32, 50), (1.5, 6), roughness=0.08, bend=0.3)
            canvas.add_glands(shapes, cells, COLLAGEN, rows=(5, 10, 15))
    points = canvas.grid(1.12 * cells.spacing * cells.radius, jitter=0.16)
    canvas.add_cells(points, rng.uniform(0, math.pi, len(points)), replace(cells, cytoplasm=1.5), CELLS)


def draw_stroma(canvas: Canvas, spindles: Cells) -> None:
    """Draw capillaries, spindle cells, and in some images fat and lymphocytes."""
    rng = canvas.rng
    centers = canvas.grid(120, jitter=0.35)
    n, is_shown = len(centers), canvas.is_in(centers, *STROMA)
    walls = canvas.shapes(centers, (5, 8), (1, 6), canvas.fiber_angles(centers), bend=0.1)
    canvas.fill(inset(walls, -1.2)[is_shown], MEMBRANE)
    canvas.fill(walls[is_shown], EMPTY)
    for _ in range(4):
        blood = canvas.shapes(centers + rng.normal(0, 2.4, (n, 2)), 1.9, vertices=10)
        canvas.fill(blood[is_shown], RED_CELLS)
    points = canvas.grid(spindles.spacing * spindles.radius, jitter=0.35)
    canvas.add_cells(points, canvas.fiber_angles(points) + rng.normal(0, 0.2, len(points)), spindles, *STROMA)
    middle = rng.uniform(0, 1, 2) * canvas.field
    n_fat, n_lymphocytes = max(int(rng.integers(-20, 6)), 0), max(int(rng.integers(-400, 120)), 0)
    centers = middle + rng.normal(0, 35, (n_fat, 2))
    fat = canvas.shapes(centers, 22, 1.2)[canvas.is_in(centers, *STROMA)]
    canvas.fill(inset(fat, -1.2), MEMBRANE)
    canvas.fill(fat, EMPTY)
    points = rng.uniform(0, 1, 2) * canvas.field + rng.normal(0, 28, (n_lymphocytes, 2))
    canvas.add_cells(points, np.zeros(len(points)), Cells(2.3, spread=0.06, darkness=0.85), *STROMA)


@cache
def texture_tiles() -> tuple[FloatArray, FloatArray]:
    """Return tiling noise of unit variance, fibers along the second axis and grain; float, (512, 512)."""
    noise = np.random.default_rng(0).normal(size=(512, 512))

    def smooth(across: float, along: float) -> FloatArray:
        smoothed = ndimage.gaussian_filter(noise, (across, along), mode="wrap")
        return np.asarray(smoothed / smoothed.std(), np.float64)

    fibers = smooth(2.2, 24) + smooth(1.0, 12) + 0.5 * smooth(8, 50) + 0.6 * smooth(30, 30)
    grain = smooth(1, 1) + 0.6 * smooth(4, 4)
    return (fibers / fibers.std()).astype(np.float32), (grain / grain.std()).astype(np.float32)


def photograph(canvas: Canvas, slide: Slide) -> npt.NDArray[np.uint8]:
    """Return the stained tissue as a camera sees it; uint8, (height, width, 3)."""
    width, height = canvas.size
    hematoxylin, eosin, share = np.moveaxis(np.asarray(canvas.image.reduce(canvas.oversampling), np.float32), -1, 0)
    x, y = np.meshgrid(*(np.arange(side, dtype=np.float32) * np.float32(canvas.pixel) for side in canvas.size))
    texel = np.float32(max(0.7, canvas.pixel / 2))  # coarser at low magnification, where the texture would alias
    offsets = canvas.rng.integers(0, 512, 4)
    places = zip((*canvas.fiber_coordinates(x, y), x, y), offsets, strict=True)
    along, across, column, row = (((place / texel).astype(np.int32) + offset) % 512 for place, offset in places)
    fibers, grain = texture_tiles()
    strands = 1 + share / 255 * (0.9 * np.tanh(0.9 * fibers[across, along] + 0.3) - 0.1)
    grain = grain[row, column]
    amounts = np.stack((hematoxylin * (1 + 0.22 * grain), eosin * (1 + 0.12 * grain)), axis=-1) * strands[..., None]
    density = amounts @ (slide.stains * math.log(10) / 100).astype(np.float32)  # (height, width, 3)
    light = np.exp(-density) * (255 * slide.light).astype(np.float32)
    sharp = Image.fromarray(light.clip(0, 255).astype(np.uint8))
    blurred = sharp.filter(ImageFilter.GaussianBlur(slide.blur * width / FIELD_WIDTH))
    noise = canvas.rng.standard_normal((height, width, 1), np.float32) * 3
    return np.asarray((np.asarray(blurred) + noise).clip(0, 255).astype(np.uint8), np.uint8)


def generate_image(name: ImageName, *, width: int, seed: int) -> npt.NDArray[np.uint8]:
    """Return a generated image with the aspect ratio of the originals; uint8, (height, width, 3), RGB.

    Example:
        >>> generate_image(parse_file_name("SOB_B_F-14-9133-200-001.png"), width=70, seed=0).shape
        (46, 70, 3)
    """
    slide = sample_slide(np.random.default_rng(derived_seed(seed, name.patient)), name)
    rng = np.random.default_rng(derived_seed(seed, name.file_name))
    background = {"F": LOOSE, "PT": LOOSE, "PC": EMPTY}.get(name.subtype, COLLAGEN)
    canvas = Canvas(rng, width, name.magnification, background)
    draw_tumor(canvas, slide.tumor, name.subtype)
    draw_stroma(canvas, slide.spindles)
    return photograph(canvas, slide)


def open_dataset(config: SyntheticDataConfig, *, task: str, progress_bar: bool) -> Dataset:
    """Open the data set of a configuration; images are generated if they do not exist."""
    magnifications = config.all_magnifications
    folder = synthetic_folder(
        config.cache_dir,
        magnifications=magnifications,
        images_per_patient=config.images_per_patient,
        width=config.width,
        seed=config.draw_seed,
        progress_bar=progress_bar,
    )
    dataset = open_breakhis(folder, task=task, magnifications=magnifications, require_complete=False, fold=config.fold)
    return replace(dataset, name="synthetic images", is_synthetic=True)


def synthetic_folder(
    cache_dir: Path,
    *,
    magnifications: Sequence[int],
    images_per_patient: int,
    width: int,
    seed: int,
    progress_bar: bool,
) -> Path:
    """Return a folder of synthetic images of all 82 patients; generate them if it does not exist.

    A patient has at most as many images per magnification as are published. `progress_bar` shows one on a terminal.

    Raises:
        OSError: If the folder cannot be written.
    """
    key = f"v{VERSION}_{'-'.join(map(str, magnifications))}_{images_per_patient}_{width}px_seed{seed}"
    folder = cache_dir / f"synthetic_{key}"
    if folder.is_dir():
        return folder
    names = [
        f"{patient}-{magnification}-{number:03d}.png"
        for patient, published in official_patients().items()
        for magnification in magnifications
        for number in range(1, min(images_per_patient, published.n_images[magnification]) + 1)
    ]
    with atomic_folder(folder) as temporary, ExitStack() as stack:
        images: Iterator[None] = map(write := partial(_write_image, temporary, width=width, seed=seed), names)
        if len(names) * width**2 >= MIN_POOL_PIXELS:  # for fewer, starting processes would take longer
            n_processes = min(os.cpu_count() or 1, 61)  # more are not possible on Windows
            pool = stack.enter_context(ProcessPoolExecutor(n_processes, mp_context=get_context("spawn")))
            images = pool.map(write, names, chunksize=4)
        hide = None if progress_bar else True
        list(tqdm(images, total=len(names), desc="generating images", disable=hide, leave=False))
    return folder


def _write_image(root: Path, file_name: str, *, width: int, seed: int) -> None:
    name, comment = parse_file_name(file_name), PngInfo()
    folder = root / archive_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    comment.add_text("Comment", "synthetic image, generated by breakhis_pl; no tissue")
    image = Image.fromarray(generate_image(name, width=width, seed=seed))
    image.save(folder / file_name, pnginfo=comment, compress_level=3)
