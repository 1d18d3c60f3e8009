"""Runs in a notebook: their tables, their networks, predictions and Grad-CAM of pictures."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from breakhis_pl.config import DeviceConfig
from breakhis_pl.data.images import UInt8Array
from breakhis_pl.errors import ConfigurationError, DataError, RunFolderError
from breakhis_pl.inference.ood import Float32Array
from breakhis_pl.inference.predict import to_table
from breakhis_pl.inference.predictor import Picture, Predictor, open_predictor
from breakhis_pl.models.classifier import Classifier
from breakhis_pl.reporting.pairs import compare_runs
from breakhis_pl.reporting.repeats import with_names
from breakhis_pl.reporting.runs import Run, distinct_names, read_run

BATCH_SIZE = 32


class FinishedRun:
    """A run with a result.

    Args:
        folder: The run folder.

    Raises:
        RunFolderError: If it is not the folder of a run with a result.

    Example:
        >>> run = open_run("outputs/2026-01-31/12-00-00_resnet18")  # doctest: +SKIP
        >>> run.predictions[run.predictions.predicted != run.predictions.target]  # doctest: +SKIP
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.run = _read(self.folder)

    @property
    def predictions(self) -> pd.DataFrame:
        """Rows of test/predictions.csv: image, patient, case, magnification, target, prob_<class>, predicted."""
        return pd.DataFrame() if self.run.predictions is None else self.run.predictions.to_frame()

    @property
    def metrics(self) -> dict[str, Any]:
        """Content of test/metrics.json: each metric as {"value": 0.9, "ci95": [0.8, 1.0]}."""
        return dict(self.run.metrics or {})

    @property
    def history(self) -> pd.DataFrame:
        """Loss and metrics of every epoch, as in history.csv."""
        return self.run.history

    @cached_property
    def predictor(self) -> Predictor:
        """The network with its preprocessing, on the GPU if there is one."""
        return open_predictor(
            self.folder, checkpoint="auto", trainer=DeviceConfig(accelerator="auto", precision="auto")
        )

    @property
    def network(self) -> Classifier:
        """The trained network, a torch.nn.Module in evaluation mode."""
        return self.predictor.classifier

    def predict(self, pictures: str | Path | Iterable[str | Path]) -> pd.DataFrame:
        """Predict picture files of any size.

        Args:
            pictures: One path or several.

        Returns:
            A row per picture, with the columns of the predictions.csv of predict.py.

        Raises:
            DataError: If a picture cannot be read.
        """
        paths = [pictures] if isinstance(pictures, str | Path) else list(pictures)
        batches = (paths[start : start + BATCH_SIZE] for start in range(0, len(paths), BATCH_SIZE))
        tables = [to_table([self._decode(path) for path in batch], self.predictor) for batch in batches]
        return pd.concat(tables or [to_table([], self.predictor)], ignore_index=True)

    def explain(self, picture: str | Path, class_name: str | None = None) -> tuple[UInt8Array, Float32Array]:
        """Compute the Grad-CAM map of a picture.

        Args:
            picture: Its path.
            class_name: Class to explain; None: the predicted one.

        Returns:
            The picture as the network receives it, uint8 (size, size, 3), and the map, float32 (size, size) in [0, 1].

        Raises:
            DataError: If the picture cannot be read.
            ConfigurationError: If there is no such class, or no feature map that Grad-CAM can weight.
        """
        pixels, classes = self._decode(picture).pixels, self.network.parent_classes
        if class_name not in (None, *classes):
            raise ConfigurationError(f"class_name={class_name}: is not one of {', '.join(classes)}")
        if class_name is None:
            index = int(self.predictor.predict(pixels[None])[0].argmax())
        else:
            index = classes.index(class_name)
        return pixels, self.predictor.explain(pixels[None], np.array([index]))[0]

    def _decode(self, path: str | Path) -> Picture:
        found = self.predictor.decode(Path(path).expanduser())
        if not isinstance(found, Picture):
            raise DataError(f"{found.path}: {found.reason}")
        return found


def _read(folder: Path, name: str | None = None) -> Run:
    run = read_run(folder, name=name)
    if run.metrics is None:
        raise RunFolderError(f"{folder}: {run.error}; name the folder of a run with a result")
    return run


def open_run(folder: str | Path) -> FinishedRun:
    """Open a run folder.

    Raises:
        RunFolderError: If it is not the folder of a run with a result.
    """
    return FinishedRun(folder)


def compare(*folders: str | Path) -> pd.DataFrame:
    """Compare runs on the same test images in pairs, as comparison.html does.

    Args:
        *folders: Two run folders or more.

    Returns:
        A row per pair and metric: first, second, metric, difference, low, high (95% interval over cases), p, p_holm.

    Raises:
        RunFolderError: If one is not the folder of a run with a result.
        PredictionsError: If one is given twice.
    """
    paths = [Path(folder).expanduser() for folder in folders]
    names = distinct_names(paths) if paths else []
    runs = with_names([_read(path, name) for path, name in zip(paths, names, strict=True)])
    rows = [
        (pair.first, pair.second, name, found.value, *(found.ci95 or (None, None)), found.p, pair.p_holm.get(name))
        for pair in compare_runs(runs)
        for name, found in pair.differences.items()
    ]
    return pd.DataFrame(rows, columns=["first", "second", "metric", "difference", "low", "high", "p", "p_holm"])
