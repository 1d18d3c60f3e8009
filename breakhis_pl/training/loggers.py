"""TensorBoard with one event folder per subset, so that train and test of a quantity share a chart."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

SUBSETS = ("train", "val", "test")


class SubsetTensorBoardLogger(TensorBoardLogger):
    """Write `test_loss` as the quantity `loss` of the folder `test/`, and so on.

    Other values go to `train/`. Final metrics, `hp/…`, lie beside the hyperparameters, where TensorBoard expects them.

    Args:
        save_dir: The run folder; events go to its tensorboard/.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir, name="", version="tensorboard", default_hp_metric=False)
        self._writers: dict[str, SummaryWriter] = {}

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a point per value at a step, which is the epoch."""
        for name, value in metrics.items():
            subset, _, quantity = name.partition("_")
            if name.startswith("hp/"):
                self.experiment.add_scalar(name, value, global_step=step)
            elif subset in SUBSETS:
                self.writer(subset, step).add_scalar(quantity, value, global_step=step)
            else:
                self.writer("train", step).add_scalar(name, value, global_step=step)

    @rank_zero_only
    def log_image(self, subset: str, path: Path, *, step: int) -> None:
        """Add a picture file, under its name."""
        pixels = np.array(Image.open(path).convert("RGB"))
        self.writer(subset, step).add_image(path.stem, pixels, global_step=step, dataformats="HWC")

    @rank_zero_only
    def log_text(self, subset: str, name: str, text: str) -> None:
        """Add a text as a block of code."""
        self.writer(subset, None).add_text(name, f"```\n{text}\n```")

    def writer(self, subset: str, step: int | None) -> SummaryWriter:
        """Return the writer of a subset; a resumed run removes the points from its first epoch on."""
        if subset not in self._writers:
            folder = Path(self.log_dir) / subset
            self._writers[subset] = SummaryWriter(str(folder), purge_step=step if folder.exists() else None)
        return self._writers[subset]

    @rank_zero_only
    def save(self) -> None:
        """Flush all writers."""
        for writer in self._all_writers():
            writer.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Flush all writers; they stay open, because results are logged after the training."""
        self.save()

    @rank_zero_only
    def close(self) -> None:
        """Close all writers."""
        for writer in self._all_writers():
            writer.close()
        self._writers.clear()

    def _all_writers(self) -> list[SummaryWriter]:
        return [*self._writers.values(), *([self._experiment] if self._experiment else [])]


def log_results(loggers: Iterable[Logger], params: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    """Log the configuration with the final metrics: TensorBoard's HPARAMS page compares the runs of a sweep by them.

    Args:
        loggers: All loggers of a run.
        params: Configuration by dotted key.
        metrics: Final metrics, such as test_weighted_f1.
    """
    final = {f"hp/{name}": value for name, value in metrics.items()}
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(dict(params), metrics=final)
        else:
            logger.log_hyperparams(dict(params))
            logger.log_metrics(final)
        logger.save()
