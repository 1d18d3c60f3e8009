"""Stores of images with normalized stains, made once from a store of decoded images and a fitted target.

Both what was fitted and the images lie beside the store they come from, under names that change with its pixels and
with everything else they depend on; they are whole or not there, and made again where they are damaged.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from breakhis_pl.data.index import ImageRecord
from breakhis_pl.data.png import UInt8Array
from breakhis_pl.data.stain import ESTIMATES, StainTarget, fitted_target, restored_target
from breakhis_pl.data.store import Store, in_threads, open_or_build
from breakhis_pl.errors import StorageError
from breakhis_pl.files import open_file, write_text

VERSION = 1
"""Of the estimates and the way they are applied; another one makes other stores."""

_LARGEST_NOTE = 10_000


def fit_stain(method: str, store: Store, rows: Sequence[int], *, show_progress: bool = True) -> StainTarget:
    """What the stains of all images are brought to: fitted to some of them, and kept beside their store.

    Args:
        method: "macenko" or "reinhard".
        store: Decoded images.
        rows: Of the train images.
        show_progress: Whether a progress bar is shown on a terminal.

    Raises:
        ImageError: If no image has stains that can be told apart.
        StorageError: If the cache folder cannot be written to.
    """
    key = _digest(method, *(store.checksums[row] for row in rows))
    note = store.folder.parent / f"stain-{method}-{key}.json"
    kept = _kept(note, method)
    if kept is not None:
        return kept

    def estimate(position: int) -> StainTarget | None:
        return ESTIMATES[method](store.pixels[rows[position]])

    target = fitted_target(method, in_threads(estimate, len(rows), show_progress=show_progress, doing="fitting stains"))
    try:
        write_text(note, json.dumps(target.plain()))
    except OSError as error:
        raise StorageError(
            f"{note.parent} cannot take what was fitted ({error}); make room or give access, "
            "or set data.cache_dir to a folder elsewhere"
        ) from error
    return target


def open_stained_store(
    store: Store, records: Sequence[ImageRecord], target: StainTarget, *, show_progress: bool = True
) -> Store:
    """The store of these images with their stains brought to a target, built if there is none that is whole.

    Args:
        store: Decoded images.
        records: The images, in the order of the store's rows.
        target: From `fit_stain`, or from a checkpoint.
        show_progress: Whether a progress bar is shown on a terminal while building.

    Raises:
        StorageError: If the cache folder cannot be written to, or there is not enough room on its disk.
    """

    def image_of(row: int) -> UInt8Array:
        return target.applied(store.pixels[row])

    key = _digest(json.dumps(target.plain()), *store.checksums)
    return open_or_build(
        store.folder.with_name(f"{store.folder.name}-{target.method}-{key}"),
        records,
        image_size=store.pixels.shape[1],
        image_of=image_of,
        show_progress=show_progress,
        doing="normalizing stains",
    )


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join((str(VERSION), *parts)).encode()).hexdigest()[:16]


def _kept(note: Path, method: str) -> StainTarget | None:
    """What was fitted before; None where there is nothing, or nothing whole."""
    try:
        with open_file(note) as file:
            target = restored_target(json.loads(file.read(_LARGEST_NOTE)))
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return target if target.method == method else None
