"""`python -m breakhis_pl.data.export`: a split as folders train/B, train/M, test/B and test/M, for other tools."""

import argparse
import math
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from breakhis_pl.data.breakhis import CLASS_NAMES, FOLDS, MAGNIFICATIONS
from breakhis_pl.data.index import ImageRecord, check_complete, index_images
from breakhis_pl.data.splits import Split, check_usable, official_split, ratio_split
from breakhis_pl.errors import BreakHisError, DataFolderError
from breakhis_pl.files import folder_aside

CLASS_FOLDERS = dict(zip(CLASS_NAMES, ("B", "M"), strict=True))
"""Folder of each class, as in the report."""

_OPTIONS = {
    "data.root": "--root",
    "data.magnification": "--magnification",
    "data.test_fraction": "--test-fraction",
    "data.require_complete=false": "--allow-incomplete",
    ", or try `data=synthetic`": "",
}
"""How settings that errors name are called at this command line."""


def export_split(split: Split, target: Path, *, copy: bool) -> dict[str, int]:
    """Writes images into a folder for each subset and class: train/B, train/M, test/B, test/M.

    The folders are made aside and put in place when they are whole.

    Args:
        split: Images and their subsets.
        target: Folder to make; it must not exist, or be empty.
        copy: Whether to copy the files; otherwise relative symbolic links are made.

    Returns:
        Number of images by folder, "train/B" first.

    Raises:
        DataFolderError: If the target is in use or cannot be written, or a file cannot be linked or copied.
    """
    place = target.resolve()
    if place.exists() and not (place.is_dir() and next(place.iterdir(), None) is None):
        raise DataFolderError(f"{target} exists and is no empty folder; choose another one, or remove it")
    try:
        with folder_aside(place) as aside:
            for folder in _folders(split):
                (aside / folder).mkdir(parents=True)
            for record, subset in zip(split.records, split.subsets, strict=True):
                folder = f"{subset}/{CLASS_FOLDERS[record.name.class_name]}"
                if copy:
                    shutil.copyfile(record.path, aside / folder / record.name.file_name)
                else:
                    _link(record, aside / folder)
            if place.exists():
                place.rmdir()
            aside.rename(place)
    except BreakHisError:
        raise
    except OSError as error:
        raise DataFolderError(f"{target} cannot be written: {error}; make room or give access") from error
    return _folders(split)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status."""
    options = _parse(argv)
    try:
        counts = _export(options)
    except BreakHisError as error:
        text = str(error)
        for setting, option in _OPTIONS.items():
            text = text.replace(setting, option)
        sys.stderr.write(f"{text}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted; nothing was written to {options.to}\n")
        return 130
    for folder, n_images in counts.items():
        sys.stdout.write(f"{options.to / folder}: {n_images:,} images\n")
    return 0


def _export(options: argparse.Namespace) -> dict[str, int]:
    root, target = options.root.resolve(), options.to.resolve()
    if target.is_relative_to(root):
        raise DataFolderError(
            f"{options.to} lies in {options.root}, where its images would be found as duplicates; "
            "choose a folder outside"
        )
    records = index_images(options.root, options.magnification)
    if not options.allow_incomplete:
        check_complete(records, options.magnification)
    if options.split == "official":
        split, asked = official_split(records, fold=options.fold), f"--fold {options.fold}"
    else:
        split = ratio_split(records, test_fraction=options.test_fraction, seed=options.seed)
        asked = f"--split ratio --test-fraction {options.test_fraction} --seed {options.seed}"
    check_usable(split, asked)
    return export_split(split, options.to, copy=options.copy)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m breakhis_pl.data.export",
        description="Writes a split as folders train/B, train/M, test/B and test/M, for other tools "
        "(for one, torchvision's ImageFolder).",
    )
    parser.add_argument(
        "--root", type=Path, default=Path("data"), metavar="FOLDER", help="folder with the images (default: data)"
    )
    parser.add_argument(
        "--to", type=Path, required=True, metavar="FOLDER", help="folder to make; new or empty, and outside --root"
    )
    parser.add_argument(
        "--split",
        choices=("official", "ratio"),
        default="official",
        help="one of the authors' folds, or a random split of whole cases (default: official)",
    )
    parser.add_argument(
        "--fold",
        type=int,
        choices=FOLDS,
        metavar="N",
        help="with --split official: which of the authors' folds, 1 to 5 (default: 2, the report's)",
    )
    parser.add_argument(
        "--test-fraction",
        type=_fraction,
        metavar="SHARE",
        help="with --split ratio: share of the images of each class that goes to test (default: 0.3)",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="with --split ratio: chooses the split (default: 0)")
    parser.add_argument(
        "--magnification",
        type=int,
        nargs="+",
        choices=MAGNIFICATIONS,
        default=[200],
        metavar="N",
        help="40, 100, 200, 400, or several of them (default: 200)",
    )
    parser.add_argument("--copy", action="store_true", help="copy the files (default: relative symbolic links)")
    parser.add_argument(
        "--allow-incomplete", action="store_true", help="take what is there (default: all published images must be)"
    )
    options = parser.parse_args(argv)
    if options.split == "ratio" and options.fold is not None:
        parser.error("--fold belongs to --split official; with --split ratio, use --seed")
    if options.split == "official" and (options.test_fraction is not None or options.seed is not None):
        parser.error("--test-fraction and --seed belong to --split ratio; add that, or use --fold")
    for name, default in (("fold", 2), ("test_fraction", 0.3), ("seed", 0)):
        if getattr(options, name) is None:
            setattr(options, name, default)
    return options


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number between 0 and 1")
    return value


def _folders(split: Split) -> dict[str, int]:
    """Number of images by folder."""
    return {
        f"{subset}/{CLASS_FOLDERS[class_name]}": n_images
        for subset, by_class in split.counts().items()
        for class_name, n_images in by_class.items()
    }


def _link(record: ImageRecord, folder: Path) -> None:
    """Makes a relative link to an image."""
    try:
        (folder / record.name.file_name).symlink_to(os.path.relpath(record.path.resolve(), folder))
    except (OSError, ValueError, NotImplementedError) as error:  # ValueError: on another drive of Windows
        reason = getattr(error, "strerror", None) or error
        raise DataFolderError(
            f"no symbolic links to {record.path} can be made in {folder.parents[2]} ({reason}); use --copy"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
