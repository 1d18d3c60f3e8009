"""Predict pictures with the network of a run: predictions.csv, predictions.html, Grad-CAM overlays."""

import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
from tqdm import tqdm

from breakhis_pl.config import PredictConfig
from breakhis_pl.errors import DataError, RunFolderError, join_truncated, pluralize
from breakhis_pl.inference.page import N_SHOWN, PREDICTIONS_PAGE, write_page
from breakhis_pl.inference.pictures import find_pictures
from breakhis_pl.inference.predictor import NOTICE, Picture, Predictor, Unreadable, open_predictor
from breakhis_pl.metrics.calibration import at_temperature
from breakhis_pl.metrics.predictions import PREDICTIONS_CSV
from breakhis_pl.reporting.checks import prediction_checks
from breakhis_pl.reporting.gallery import save_picture
from breakhis_pl.reporting.program import log_checks
from breakhis_pl.reporting.runs import read_run
from breakhis_pl.run_folder import lock_run

log = logging.getLogger(__name__)

Value = TypeVar("Value")

PARTIAL_CSV = "predictions.partial.csv"
UNREADABLE_CSV = "unreadable.csv"
GRADCAM_FOLDER = "gradcam"
OUT_OF_DISTRIBUTION = ("out_of_distribution", "out_of_distribution_distance")


def predict(config: PredictConfig, folder: Path) -> None:
    """Predict pictures and write the results into a folder.

    Args:
        config: The configuration.
        folder: Folder of the results; it is created if it does not exist.

    Raises:
        BreakHisError: If pictures, run or folder cannot be used.
        DataError: After everything is written, if pictures cannot be read.
    """
    paths, folders = find_pictures(config.images if isinstance(config.images, list) else [config.images])
    predictor = open_predictor(config.run, checkpoint=config.checkpoint, trainer=config.trainer)
    classes, backbone = predictor.classifier.parent_classes, predictor.classifier.config.backbone
    log.info("%s in %s on %s: %s", backbone, predictor.precision, predictor.device, pluralize(len(paths), "picture"))
    with lock_run(folder), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # of odd metadata, which is not used
        if (folder / PREDICTIONS_CSV).exists():
            raise RunFolderError(f"{folder}: holds {PREDICTIONS_CSV}; set hydra.run.dir to another folder")
        table, unreadable = predict_pictures(config, predictor, paths, folder)
        rows = [*folders, *((each.path, each.reason) for each in unreadable)]
        failures = pd.DataFrame([(str(path), reason) for path, reason in rows], columns=["image", "reason"])
        if rows:
            append_csv(failures, folder / UNREADABLE_CSV, header=True)
        checks = prediction_checks(read_run(config.run))
        by_uncertainty = sort_by_uncertainty(table, classes)
        shown = map(predictor.decode, map(Path, by_uncertainty["image"].head(N_SHOWN)))
        write_page(
            folder / PREDICTIONS_PAGE,
            by_uncertainty,
            [each.pixels if isinstance(each, Picture) else None for each in shown],
            failures,
            classes=classes,
            calibration=predictor.calibration,
            title=f"{backbone}, {config.run.name}",
            checks=checks,
        )
    log_checks(checks)
    for column in table.columns.intersection(["predicted", "decision", "out_of_distribution"]):
        counts = table.loc[table[column] != "", column].value_counts()
        values = ", ".join(f"{name} {n:,}" for name, n in counts.items())
        log.info("%s: %s", column, values or "empty, because nothing was fitted for this checkpoint")
    log.info("%s, %s\n%s", folder / PREDICTIONS_CSV, PREDICTIONS_PAGE, NOTICE)
    if rows:
        names = join_truncated(f"{path} ({reason})" for path, reason in rows)
        raise DataError(f"{pluralize(len(rows), 'picture')} cannot be read, see {folder / UNREADABLE_CSV}: {names}")


def predict_pictures(
    config: PredictConfig, predictor: Predictor, paths: Sequence[Path], folder: Path
) -> tuple[pd.DataFrame, list[Unreadable]]:
    """Predict pictures; write the table batch by batch, and the overlays.

    The table is called predictions.partial.csv until all pictures are predicted.

    Returns:
        The table, with the columns of `to_table`, and the pictures that cannot be read.
    """
    n_left = len(paths) if config.gradcam is True else int(config.gradcam)  # pictures to explain
    tables, unreadable = [to_table([], predictor)], list[Unreadable]()
    append_csv(tables[0], folder / PARTIAL_CSV, header=True)
    with tqdm(total=len(paths), desc="predicting", unit=" pictures", disable=None) as bar:
        for batch in decode_batches(predictor.decode, paths, size=config.batch_size, n_threads=config.threads):
            unreadable += [each for each in batch if isinstance(each, Unreadable)]
            pictures = [each for each in batch if isinstance(each, Picture)]
            if pictures:
                rows = to_table(pictures, predictor)
                explained = pictures[:n_left]
                if explained:
                    names = write_overlays(folder, explained, rows, predictor, first=1 + sum(map(len, tables)))
                    rows.loc[: len(names) - 1, "gradcam"] = names
                append_csv(rows, folder / PARTIAL_CSV)
                tables.append(rows)
                n_left -= len(explained)
            bar.update(len(batch))
    (folder / PARTIAL_CSV).replace(folder / PREDICTIONS_CSV)
    return pd.concat(tables[1:] or tables, ignore_index=True), unreadable


def decode_batches(
    decode: Callable[[Path], Value], paths: Sequence[Path], *, size: int, n_threads: int | None
) -> Iterator[list[Value]]:
    """Yield batches of decoded pictures in order; the next batch is decoded while one is used."""
    with ThreadPoolExecutor(n_threads or os.cpu_count()) as pool:
        pending = pool.map(decode, paths[:size])
        for start in range(size, len(paths) + size, size):
            following = pool.map(decode, paths[start : start + size])
            yield list(pending)
            pending = following


def to_table(pictures: Sequence[Picture], predictor: Predictor) -> pd.DataFrame:
    """Predict pictures; return rows of predictions.csv.

    What is not known is empty. Only two classes have a calibrated probability and a decision.
    """
    classes = np.array(predictor.classifier.parent_classes)
    probabilities, distances = np.empty((0, len(classes))), None
    if pictures:
        probabilities, distances = predictor.predict(np.stack([picture.pixels for picture in pictures]))
    positive, calibration = f"prob_{classes[-1]}_calibrated", predictor.calibration
    of_calibration = (positive, "decision") if len(classes) == 2 else ()
    table = pd.DataFrame(
        {
            "image": [str(picture.path) for picture in pictures],
            "width": [picture.width for picture in pictures],
            "height": [picture.height for picture in pictures],
            **{f"prob_{name}": probabilities[:, index] for index, name in enumerate(classes)},
            "predicted": classes[probabilities.argmax(axis=1)],
            **dict.fromkeys((*of_calibration, *OUT_OF_DISTRIBUTION, "gradcam"), ""),
        }
    )
    if calibration is not None:
        table[positive] = at_temperature(probabilities, calibration.temperature)[:, 1]
        table["decision"] = classes[(table[positive] >= calibration.threshold).astype(int)]
    if distances is not None:
        table[OUT_OF_DISTRIBUTION[0]] = np.where(distances > 1, "true", "false")
        table[OUT_OF_DISTRIBUTION[1]] = distances
    return table


def sort_by_uncertainty(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Sort rows by the probability of the predicted class, the least certain ones first."""
    highest = table[[f"prob_{name}" for name in classes]].max(axis=1)
    return table.loc[highest.sort_values(kind="stable").index]


def write_overlays(
    folder: Path, pictures: Sequence[Picture], rows: pd.DataFrame, predictor: Predictor, *, first: int
) -> list[str]:
    """Write Grad-CAM overlays of the predicted classes, in the aspect ratio of the pictures.

    Args:
        folder: Folder of the results.
        pictures: The pictures.
        rows: Their rows, and more.
        predictor: The network.
        first: Number of the first picture; the names of the files begin with it.

    Returns:
        Paths of the files, relative to the folder.
    """
    classes = [predictor.classifier.parent_classes.index(name) for name in rows["predicted"].head(len(pictures))]
    maps = predictor.explain(np.stack([picture.pixels for picture in pictures]), np.array(classes))
    (folder / GRADCAM_FOLDER).mkdir(exist_ok=True)
    names = []
    for number, (picture, heat) in enumerate(zip(pictures, maps, strict=True), start=first):
        stem = re.sub(r"[^A-Za-z0-9.+-]+", "_", picture.path.stem)[:60]
        names.append(f"{GRADCAM_FOLDER}/{number:06}_{stem}.jpg")
        save_picture(folder / names[-1], picture.pixels, heat, aspect=picture.width / picture.height)
    return names


def append_csv(table: pd.DataFrame, path: Path, *, header: bool = False) -> None:
    """Append rows to a file; with a header, replace the file. Names may hold bytes that are no UTF-8."""
    mode = "w" if header else "a"
    with path.open(mode, encoding="utf-8", errors="surrogateescape", newline="") as file:
        table.to_csv(file, index=False, header=header, lineterminator="\n", float_format="%.9g")
