"""Test images of which the network has seen another slide of the same case."""

import csv
from pathlib import Path

from breakhis_pl.data.breakhis import Subset
from breakhis_pl.errors import PredictionsError, listed

_COLUMNS = ("image", "case", "subset")


def siblings_from_split(path: Path) -> frozenset[str]:
    """File names of the test images whose case also occurs in train or val.

    Args:
        path: The split.csv of a run, with at least the columns image, case and subset.

    Raises:
        PredictionsError: If the file cannot be read, or a column is missing.
    """
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file)
            missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise PredictionsError(f"{path}: column {listed(missing)} is missing; expected the split.csv of a run")
            rows = [(row["image"], row["case"], row["subset"]) for row in reader]
    except OSError as error:
        raise PredictionsError(f"{path} cannot be read ({error.strerror}); expected the split.csv of a run") from error
    seen = {case for _, case, subset in rows if subset != Subset.TEST}
    return frozenset(image for image, case, subset in rows if subset == Subset.TEST and case in seen)
