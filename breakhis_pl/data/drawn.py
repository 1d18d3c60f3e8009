"""The folder of drawn images that `data=synthetic` uses: drawn once, then found again."""

import hashlib
from pathlib import Path

from tqdm import tqdm

from breakhis_pl.config import SyntheticDataConfig
from breakhis_pl.data.breakhis import IMAGE_SIZE
from breakhis_pl.data.synthetic import write_synthetic
from breakhis_pl.files import folder_aside

DRAWING_VERSION = 1
"""To be raised whenever the drawing changes, so that older drawings are not found again."""


def synthetic_folder(config: SyntheticDataConfig, *, show_progress: bool = True) -> Path:
    """Folder of the drawn images, below the cache folder; draws them if they are not there.

    Args:
        config: The keys of `data=synthetic`.
        show_progress: Whether a bar is shown on a terminal while drawing.

    Raises:
        ConfigurationError: If images cannot be drawn like this.
    """
    width, height = config.width, round(config.width * IMAGE_SIZE[1] / IMAGE_SIZE[0])
    asked = (DRAWING_VERSION, width, height, config.draw_seed, config.images_per_patient, *sorted(config.magnification))
    cache = Path(config.cache_dir)
    folder = cache / f"synthetic-{hashlib.sha256(repr(asked).encode()).hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    with (
        folder_aside(folder) as aside,
        tqdm(desc="drawing images", unit=" images", disable=None if show_progress else True) as bar,
    ):

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        write_synthetic(
            aside,
            magnifications=config.magnification,
            images_per_patient=config.images_per_patient,
            size=(width, height),
            seed=config.draw_seed,
            on_progress=report,
        )
        try:
            aside.replace(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    return folder
