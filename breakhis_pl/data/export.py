"""`python -m breakhis_pl.data.export`: Export a split as folders {train,test}/{B,M}, or as a CSV table."""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from breakhis_pl.data.breakhis import CLASS_LETTERS, FOLDS, MAGNIFICATIONS, open_breakhis
from breakhis_pl.data.splits import Split, check_trainable, official_split, ratio_split
from breakhis_pl.errors import BreakHisError, DataError, pluralize
from breakhis_pl.run_folder import atomic_folder, write_text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="uv run python -m breakhis_pl.data.export", description=__doc__.partition(": ")[2]
    )
    add = parser.add_argument
    add("--root", type=Path, default=Path("data"), help="folder with the images (default: data)")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--to", type=Path, help="new folder to write, outside of --root")
    target.add_argument("--table", type=Path, help="CSV table to write, for data=table; must not exist")
    add("--split", choices=("official", "ratio"), default="official", help="authors' fold, or random split by case")
    add("--fold", type=int, choices=FOLDS, default=2, help="for --split official (default: 2)")
    add("--test-fraction", type=float, default=0.3, help="for --split ratio (default: 0.3)")
    add("--seed", type=int, default=0, help="for --split ratio (default: 0)")
    add("--magnification", type=int, nargs="+", choices=MAGNIFICATIONS, default=[200], help="default: 200")
    add("--copy", action="store_true", help="copy the files (default: symbolic links)")
    add("--allow-incomplete", action="store_true", help="accept missing images (default: require all)")
    options = parser.parse_args(argv)
    if not 0 < options.test_fraction < 1:
        parser.error(f"--test-fraction {options.test_fraction}: must be between 0 and 1")
    if options.to is not None and options.to.resolve().is_relative_to(options.root.resolve()):
        parser.error(f"--to {options.to}: must be outside of --root, where its images would be duplicates")
    try:
        dataset = open_breakhis(
            options.root,
            task="binary",
            magnifications=options.magnification,
            require_complete=not options.allow_incomplete,
            fold=options.fold,
        )
        if options.split == "official":
            split = official_split(dataset)
        else:
            split = ratio_split(dataset, test_fraction=options.test_fraction, seed=options.seed)
        check_trainable(split, f"--split {options.split}")
        if options.table is not None:
            export_table(split, options.table)
        else:
            export_split(split, options.to, copy=options.copy)
    except (BreakHisError, OSError, ValueError) as error:  # ValueError: links to another drive of Windows
        message = str(error).replace("data.require_complete=false", "--allow-incomplete")
        message = message.replace("data.root=", "--root ").replace("data.test_fraction=", "--test-fraction ")
        sys.stderr.write(f"{message}\n")
        return 1
    for subset, counts in split.counts().items():
        for class_name, n_images in counts.items():
            where = f"{subset} {class_name}" if options.to is None else options.to / subset / CLASS_LETTERS[class_name]
            sys.stdout.write(f"{where}: {pluralize(n_images, 'image')}\n")
    return 0


def export_split(split: Split, folder: Path, *, copy: bool) -> None:
    """Write the images of a split to a folder per subset and class: train/B, train/M, test/B, test/M.

    Args:
        split: The split.
        folder: Folder to write; it must not exist.
        copy: Copy the files; otherwise make relative symbolic links.

    Raises:
        DataError: If the folder exists.
    """
    if folder.exists():
        raise DataError(f"--to {folder}: exists; choose another folder")
    with atomic_folder(folder.resolve()) as temporary:
        for subset, counts in split.counts().items():
            for class_name in counts:
                (temporary / subset / CLASS_LETTERS[class_name]).mkdir(parents=True)
        for record, subset in zip(split.records, split.subsets, strict=True):
            class_name = split.dataset.parent_classes[split.dataset.parent_of(record.target)]
            path = temporary / subset / CLASS_LETTERS[class_name] / record.image
            if copy:
                shutil.copyfile(record.path, path)
            else:
                path.symlink_to(os.path.relpath(record.path.resolve(), path.parent))


def export_table(split: Split, path: Path) -> None:
    """Write the images of a split as a table for data=table, with paths relative to it.

    Raises:
        DataError: If the file exists.
    """
    if path.exists():
        raise DataError(f"--table {path}: exists; choose another file")
    folder = path.parent.resolve()
    rows = [
        (
            Path(os.path.relpath(record.path.parent.resolve() / record.path.name, folder)).as_posix(),
            split.dataset.parent_classes[split.dataset.parent_of(record.target)],
            record.patient,
            record.case,
            record.magnification,
            subset.value,
        )
        for record, subset in zip(split.records, split.subsets, strict=True)
    ]
    columns = ["image", "label", "patient", "case", "magnification", "split"]
    write_text(path, pd.DataFrame(rows, columns=columns).to_csv(index=False, lineterminator="\n"))


if __name__ == "__main__":
    sys.exit(main())
