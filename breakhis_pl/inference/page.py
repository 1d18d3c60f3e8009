"""The page predictions.html: counts of the classes, the most uncertain pictures, unreadable files."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from breakhis_pl.errors import pluralize
from breakhis_pl.metrics.calibration import Calibration
from breakhis_pl.reporting.checks import Check, documentation_link
from breakhis_pl.reporting.pages import Picture, Table, data_uri, render
from breakhis_pl.run_folder import write_text

PREDICTIONS_PAGE = "predictions.html"
N_SHOWN = 100
"""Largest number of pictures, and of unreadable files, on the page."""

THUMBNAIL_SIDE = 192
"""Longer side of a thumbnail in pixels."""


def write_page(
    path: Path,
    table: pd.DataFrame,
    pixels: Sequence[npt.NDArray[np.uint8] | None],
    failures: pd.DataFrame,
    *,
    classes: Sequence[str],
    calibration: Calibration | None,
    title: str,
    checks: Sequence[Check],
) -> None:
    """Write the page.

    Args:
        path: The file.
        table: Rows of predictions.csv; those of the pictures that are shown come first.
        pixels: The pictures that are shown, uint8, (size, size, 3); None for one that is no longer there.
        failures: Rows of unreadable.csv.
        classes: Names of the classes.
        calibration: Temperature and threshold of the decisions.
        title: Network and run.
        checks: Checks that the run did not pass.
    """
    is_flagged = table["out_of_distribution"] == "true"
    columns = {"predicted": table["predicted"]}
    if calibration is not None:
        columns["decided"] = table["decision"]
    if (table["out_of_distribution"] != "").any():
        columns["out of distribution"] = table["predicted"].where(is_flagged)
    counts = [[name, *(f"{(values == name).sum():,}" for values in columns.values())] for name in classes]
    warnings = []
    if is_flagged.any():
        warnings.append(
            (f"{pluralize(is_flagged.sum(), 'picture')} out of distribution.", "Do not use their predictions.")
        )
    if len(failures) > 0:
        warnings.append((f"{pluralize(len(failures), 'picture')} cannot be read.", "The reasons are listed below."))
    text = render(
        "predictions.html.j2",
        title=title,
        n_pictures=len(table),
        checks=checks,
        documentation=documentation_link(path.parent),
        warnings=warnings,
        counts=Table("Pictures by class", ["class", *columns], counts),
        calibration=calibration,
        positive=classes[-1],
        thumbnails=[
            (make_thumbnail(row, image), row["image"], make_caption(row, classes))
            for (_, row), image in zip(table.iterrows(), pixels, strict=False)
            if image is not None
        ],
        failures=Table(
            f"Pictures that cannot be read, {min(len(failures), N_SHOWN)} of {len(failures):,}",
            ["picture", "reason"],
            failures.head(N_SHOWN).to_numpy().tolist(),
            texts={"reason"},
        ),
    )
    write_text(path, text)


def make_thumbnail(row: pd.Series, pixels: npt.NDArray[np.uint8]) -> Picture:
    """Make a thumbnail in the aspect ratio of the file's picture."""
    scale = THUMBNAIL_SIDE / max(row["width"], row["height"])
    width, height = (max(1, round(scale * row[side])) for side in ("width", "height"))
    content = io.BytesIO()
    Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS).save(content, "JPEG", quality=80)
    return Picture(data_uri(content.getvalue(), "image/jpeg"), width, height, alt=f"Picture {row['image']}")


def make_caption(row: pd.Series, classes: Sequence[str]) -> str:
    """Describe the prediction of a picture."""
    predicted = row["predicted"]
    parts = [f"{predicted}, probability {row[f'prob_{predicted}']:.3f}"]
    if row.get("decision", "") != "":
        parts.append(f"decision {row['decision']}, calibrated probability {row[f'prob_{classes[-1]}_calibrated']:.3f}")
    if row["out_of_distribution"] == "true":
        parts.append(f"out of distribution, distance {row['out_of_distribution_distance']:.2f}")
    return "; ".join(parts)
