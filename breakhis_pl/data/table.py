"""Images of your own: a CSV table with a row per image. docs/own_images.md says how to write one.

Columns: image and label; optional are patient, case, split, fold, magnification and weight. Others are ignored.
"""

import csv
import io
import os.path
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from breakhis_pl.config import TableDataConfig
from breakhis_pl.data.breakhis import CLASS_NAMES
from breakhis_pl.data.dataset import Dataset, ImageRecord, Subset
from breakhis_pl.errors import DataError, join_truncated, pluralize

REQUIRED = ("image", "label")
OPTIONAL = ("patient", "case", "split", "fold", "magnification", "weight")
SUBSETS = [subset.value for subset in Subset]

MISSPELLED = {"subset": "split", "class": "label", "target": "label", "file": "image", "path": "image"}
"""Names of columns that are easily mistaken for ours; they are not ignored."""

MAX_FAULTS = 20
"""Largest number of faults in a message."""


def open_dataset(config: TableDataConfig, *, task: str, progress_bar: bool) -> Dataset:  # noqa: ARG001
    """Open the data set of a configuration.

    Images are named by their files, or by their paths in the table if files in several folders have the same name.

    Raises:
        DataError: If table or images cannot be used, with all reasons.
    """
    table, root = read_table(config.table), config.table.parent if config.root is None else config.root
    faults = list(_faults(table, config, root))
    if faults:
        raise _data_error(config.table, faults)
    classes = sorted(table["label"].unique(), key=lambda name: (name == config.positive, name))
    names = table["image"].map(os.path.basename)
    names = table["image"] if names.duplicated().any() else names
    own_split = None if config.split == "ratio" else _own_split(table, config)
    patients = table.get("patient", table.get("case", names))
    columns = (
        (root / path for path in table["image"]),
        names,
        table["label"].map({name: index for index, name in enumerate(classes)}),
        patients,
        table.get("case", patients),
        table["magnification"].astype(float).astype(int) if "magnification" in table else [None] * len(table),
        [None] * len(table) if own_split is None else map(Subset, own_split),
        table["weight"].astype(float) if "weight" in table else [1.0] * len(table),
    )
    records = sorted((ImageRecord(*row) for row in zip(*columns, strict=True)), key=lambda record: record.image)
    if config.magnification is not None:
        records = [record for record in records if record.magnification in config.all_magnifications]
    counts = Counter(classes[record.target] for record in records)
    has_patients = "patient" in table or "case" in table
    groups = ", taken as independent"
    if has_patients:
        n_patients, n_cases = (len({getattr(record, name) for record in records}) for name in ("patient", "case"))
        groups = f" of {pluralize(n_patients, 'patient')} in {pluralize(n_cases, 'case')}"
    by_class = ", ".join(f"{counts[name]:,} {name}" for name in classes)
    return Dataset(
        name=config.table.name,
        records=tuple(records),
        classes=tuple(classes),
        parents=None,
        parent_classes=tuple(classes),
        description=f"{pluralize(len(records), 'image')} of {config.table.name} ({by_class}){groups}",
        has_patients=has_patients,
    )


def read_table(path: Path) -> pd.DataFrame:
    """Read the known columns of a table as stripped text, indexed by line number.

    Values are separated by commas, or, if the first line has none, by semicolons or tabs.

    Raises:
        DataError: If it is not a UTF-8 CSV table, has no rows, or a column is missing or duplicated.
    """
    if not path.is_file():
        raise DataError(f"data.table={path}: is not a file; set it to a CSV table with the columns image and label")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
        first = text.partition("\n")[0]
        separator = next((each for each in ",;\t" if each in first), ",")
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        rows = list(reader) or [[]]
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise _data_error(path, [f"line {line}: is not UTF-8; save the table as CSV in UTF-8"]) from error
    except csv.Error as error:
        rule = f"is not CSV ({error}); close each quote, and double those within a value"
        raise _data_error(path, [f"line {reader.line_num}: {rule}"]) from error
    n_columns = len(rows[0])
    too_long = [line for line, row in enumerate(rows, start=1) if len(row) > n_columns]
    if too_long:
        rule = f"more values than the {n_columns} columns of line 1; put a value that contains {separator!r} in quotes"
        raise _data_error(path, list(_at(too_long, rule)))
    table = pd.DataFrame([[*map(str.strip, row), *[""] * (n_columns - len(row))] for row in rows], dtype=str)
    table.columns, table.index = table.iloc[0], table.index + 1  # here, because pandas renames a column that is twice
    names, table = list(table.columns), table[1:][(table[1:] != "").any(axis=1)]
    faults = [
        f"line 1: column {name} is missing; there is {', '.join(names) or 'none'}"
        for name in REQUIRED
        if name not in names
    ]
    faults += [f"line 1: column {name} is repeated" for name in (*REQUIRED, *OPTIONAL) if names.count(name) > 1]
    known = {*REQUIRED, *OPTIONAL}
    near = {name: MISSPELLED.get(word := name.lower().removesuffix("_id"), word) for name in names if name not in known}
    faults += [
        f"line 1: column {name}: is it {meant}? rename it"
        for name, meant in near.items()
        if meant in known.difference(names)
    ]
    if table.empty:
        faults.append("has no rows; write one per image")
    if faults:
        raise _data_error(path, faults)
    table = table[[name for name in (*REQUIRED, *OPTIONAL) if name in names]]
    for name in table.columns.intersection(["fold", "magnification"]):  # spreadsheets may write 2 as 2.0
        table[name] = table[name].str.replace(r"^(\d+)\.0+$", r"\1", regex=True)
    return table


def _faults(table: pd.DataFrame, config: TableDataConfig, root: Path) -> Iterator[str]:
    """Yield the faults of the rows: lines and rule."""
    for name in table.columns.difference(["split", "fold"]):
        yield from _at(table.index[table[name] == ""], f"column {name} is empty")
    named = table["image"][table["image"] != ""]
    missing = named[[not os.path.isfile(os.path.join(root, path)) for path in named]]  # noqa: PTH113, PTH118 - five times faster
    first = root / missing.iloc[0] if len(missing) else ""
    yield from _at(missing.index, f"no file {first}; correct the path, or set data.root")
    places = named.map(lambda path: os.path.normpath(os.path.join(root, path)))  # noqa: PTH118 - five times faster
    is_repeated = places.duplicated()
    yield from _at(named.index[is_repeated], "image repeats an earlier line")
    classes = sorted(set(table["label"]) - {""})
    if len(classes) < 2:
        yield f"column label is {join_truncated(classes)} on all lines; there must be two classes or more"
    elif config.positive is not None and (len(classes) > 2 or config.positive not in classes):
        yield f"data.positive={config.positive}: must be one of two classes; there is {join_truncated(classes)}"
    elif config.positive == CLASS_NAMES[0] and classes == list(CLASS_NAMES):
        yield f"data.positive={config.positive}: must be {CLASS_NAMES[1]} of these two classes"
    for _, own in table.groupby(table["label"].str.casefold().str.replace(" ", ""))["label"]:
        if own.nunique() > 1:
            lines = own.index[own != own.mode()[0]]
            yield from _at(
                lines, f"labels {join_truncated(own.unique())} differ only in case or spaces; use one of them"
            )
    if "patient" in table and "case" in table:
        yield from _inconsistent(table, "patient", "case")
    if config.split != "ratio":
        yield from _faults_of_split(table, config)
    for name, rule in {"magnification": "a whole number above 0", "weight": "a number above 0"}.items():
        if name in table:
            values = pd.to_numeric(table[name], errors="coerce")
            is_right = (values > 0) & np.isfinite(values) & ((name == "weight") | (values % 1 == 0))
            wrong = table[name][~is_right & (table[name] != "")]
            yield from _at(wrong.index, f"column {name} is {join_truncated(wrong.unique(), 3)}; expected {rule}")
    if config.magnification is not None:
        present = set(table.get("magnification", pd.Series(dtype=str)))
        absent = [each for each in config.all_magnifications if str(each) not in present]
        if absent:
            found = f"is only {join_truncated(sorted(present))}" if present else "is missing"
            yield f"data.magnification={join_truncated(absent)}: column magnification {found}; set it to null for all"


def _faults_of_split(table: pd.DataFrame, config: TableDataConfig) -> Iterator[str]:
    """Yield the faults of the column split, or fold with data.fold."""
    column = "split" if config.fold is None else "fold"
    if column not in table:
        if config.fold is not None or config.split == "official":
            yield f"line 1: column {column} is missing; add it, or set data.split=ratio and data.fold=null"
        return
    wrong = table[column][table[column].eq("") if column == "fold" else ~table[column].isin(SUBSETS)]
    expected = "the fold of the image" if column == "fold" else " or ".join(SUBSETS)
    yield from _at(
        wrong.index, f"column {column} is {join_truncated(map(repr, wrong.unique()), 3)}; expected {expected}"
    )
    if column == "fold" and str(config.fold) not in set(table["fold"]):
        folds = join_truncated(sorted(table["fold"].unique()))
        yield f"data.fold={config.fold}: must be a value of the column fold; they are {folds}"
        return
    right = table.drop(wrong.index)
    for group in ["patient"] if "patient" in table else ["case"] if "case" in table else []:
        yield from _inconsistent(right, group, column)
    subsets = _own_split(table, config)
    if wrong.empty and subsets is not None:
        for name, own in subsets.groupby(table["label"]):
            if name and own.nunique() == 1 and subsets.nunique() > 1:
                yield from _at(own.index, f"all images of class {name} are in {own.iloc[0]}; every subset needs some")


def _inconsistent(table: pd.DataFrame, group: str, column: str) -> Iterator[str]:
    """Yield a fault for each patient or case with several values of a column that it may have only one of."""
    rows = table[table[group] != ""]
    n_values = rows.groupby(group)[column].transform("nunique")
    for name, own in rows[n_values > 1].groupby(group)[column]:
        yield from _at(own.index, f"{group} {name} has several values of {column}: {join_truncated(own.unique())}")


def _own_split(table: pd.DataFrame, config: TableDataConfig) -> pd.Series | None:
    """Return the subset of each row by the column fold, with data.fold, or split; None without the column."""
    if config.fold is not None:
        return table["fold"].eq(str(config.fold)).map({True: Subset.TEST.value, False: Subset.TRAIN.value})
    return table.get("split")


def _at(lines: Sequence[int] | pd.Index, rule: str) -> Iterator[str]:
    """Yield a rule with the lines that break it, if there are any."""
    if len(lines):
        yield f"line {join_truncated(lines, 5)}: {rule}"


def _data_error(path: Path, faults: Sequence[str]) -> DataError:
    more = [f"and {pluralize(len(faults) - MAX_FAULTS, 'more fault')}"] if len(faults) > MAX_FAULTS else []
    return DataError("\n  ".join([f"data.table={path}: {faults[0]}", *faults[1:MAX_FAULTS], *more]))
