"""The folder of drawn images that `data=synthetic` uses: drawn once, then found again."""

import hashlib
import json
from pathlib import Path

from tqdm import tqdm

from breakhis_pl.config import SyntheticDataConfig, all_magnifications
from breakhis_pl.data.breakhis import IMAGE_SIZE
from breakhis_pl.data.synthetic import write_synthetic
from breakhis_pl.errors import StorageError
from breakhis_pl.files import clear_leftovers, folder_aside, open_file, put_in_place

DRAWING_VERSION = 1
"""To be raised whenever the drawing changes, so that older drawings are not found again."""

NOTE = ".drawn.json"
"""Names and lengths of the images; a folder that holds others is drawn again."""

_LARGEST_NOTE = 10_000_000


def synthetic_folder(config: SyntheticDataConfig, *, show_progress: bool = True) -> Path:
    """Folder of the drawn images, below the cache folder; draws them if they are not all there.

    Args:
        config: The keys of `data=synthetic`.
        show_progress: Whether a bar is shown on a terminal while drawing.

    Raises:
        ConfigurationError: If images cannot be drawn like this.
        StorageError: If the cache folder cannot be written to, or its disk is full, or if a process that
            draws was ended from outside.
    """
    width, height = config.width, round(config.width * IMAGE_SIZE[1] / IMAGE_SIZE[0])
    drawn = sorted(all_magnifications(config))
    asked = (DRAWING_VERSION, width, height, config.draw_seed, config.images_per_patient, *drawn)
    cache = Path(config.cache_dir)
    folder = cache / f"synthetic-{hashlib.sha256(repr(asked).encode()).hexdigest()[:16]}"
    clear_leftovers(cache, of="synthetic-*")
    if _is_whole(folder):
        return folder
    try:
        _draw(config, folder, size=(width, height), show_progress=show_progress)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"{cache} cannot take the drawn images ({error}); make room or give access, "
            "or set data.cache_dir to a folder elsewhere"
        ) from error
    return folder


def _draw(config: SyntheticDataConfig, folder: Path, *, size: tuple[int, int], show_progress: bool) -> None:
    """Draws the images aside and puts them in their place.

    Raises:
        OSError: If they cannot be written.
    """
    with (
        folder_aside(folder) as aside,
        tqdm(desc="drawing images", unit=" images", disable=None if show_progress else True) as bar,
    ):

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        write_synthetic(
            aside,
            magnifications=all_magnifications(config),
            images_per_patient=config.images_per_patient,
            size=size,
            seed=config.draw_seed,
            on_progress=report,
        )
        (aside / NOTE).write_text(json.dumps(_lengths(aside)), encoding="utf-8")
        put_in_place(aside, folder, is_whole=lambda: _is_whole(folder))


def _is_whole(folder: Path) -> bool:
    """Whether a folder holds the images that were drawn into it, no more, no less, none shorter."""
    try:
        with open_file(folder / NOTE) as file:
            noted = json.loads(file.read(_LARGEST_NOTE))
        return bool(noted == _lengths(folder))
    except (OSError, ValueError, RecursionError):
        return False


def _lengths(folder: Path) -> dict[str, int]:
    """Bytes of each image by its path below the folder."""
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*.png"))}
