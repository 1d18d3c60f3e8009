"""Loss and accuracy of every subset after every epoch: history.csv, curves.png, TensorBoard, a printed line."""

import contextlib
import csv
import io
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import lightning.pytorch as L
import numpy as np
from lightning.pytorch.callbacks import Callback

from breakhis_pl.data.breakhis import Subset
from breakhis_pl.errors import TrainingError
from breakhis_pl.evaluation.figures import curves_figure, save_figure
from breakhis_pl.files import write_text
from breakhis_pl.models.classifier import Classifier
from breakhis_pl.models.tasks import summed
from breakhis_pl.training.distributed import gathered
from breakhis_pl.training.loggers import RunLogger
from breakhis_pl.training.selection import Selection, monitored_value

log = logging.getLogger(__name__)

CURVES_EVERY_S = 30.0
"""Drawing curves.png takes as long as a short epoch; it is drawn anew at most this often, and at the end."""

HistoryRow: TypeAlias = Mapping[str, float | int]


class History(Callback):
    """Keeps the history of a run and writes it after every epoch; curves.png now and then, and at the end.

    Args:
        folder: The run folder.
        writers: Where curves are kept beside history.csv; None in a process that writes nothing.
        title: Of the figure.
        note: Put on the figure, as for synthetic images.
        selection: What chooses the epoch that counts, and may end the training; None where the last one counts.

    Attributes:
        rows: One mapping per finished epoch: epoch (from 1), train_loss, train_accuracy, the same of every evaluated
            subset, learning_rate (during the epoch; 0 where the head was solved for), images_per_second (train images
            over train time), and the value that chooses the epoch where it is another one.
        train_seconds: Time spent in train batches so far.
    """

    def __init__(
        self,
        folder: Path,
        writers: RunLogger | None,
        *,
        title: str,
        note: str | None = None,
        selection: Selection | None = None,
    ) -> None:
        self.folder = folder
        self.writers = writers
        self.title = title
        self.note = note
        self.selection = selection
        self.rows: list[HistoryRow] = []
        self.train_seconds = 0.0
        self._n_images = 0
        self._epoch_started = 0.0
        self._train_ended = 0.0
        self._learning_rate = 0.0
        self._drawn = time.perf_counter()
        self._n_drawn = 0

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: a run that goes on keeps its history."""
        chosen = {} if self.selection is None else {"selection": self.selection.state_dict()}
        return {"rows": [dict(row) for row in self.rows], "train_seconds": self.train_seconds, **chosen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the history of the epochs before."""
        self.rows = list(state_dict["rows"])
        self.train_seconds = state_dict["train_seconds"]
        if self.selection is not None:
            self.selection.load_state_dict(state_dict["selection"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes rows out of the table that the checkpoint does not have yet."""
        if self.rows:
            self.write_table()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock and notes the learning rate before the schedule changes it."""
        self._n_images = 0
        self._epoch_started = self._train_ended = time.perf_counter()
        self._learning_rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        """Counts images."""
        self._n_images += len(batch.rows)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stops the clock: what follows is evaluation."""
        if trainer.state.fn == "fit" and isinstance(pl_module, Classifier):
            pl_module.loss_and_accuracy("train", of_all=False)  # waits until the device is done
            self._train_ended = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Adds a row and writes everything."""
        if not isinstance(pl_module, Classifier):
            raise TypeError(f"expected a Classifier, got {type(pl_module).__name__}")
        row = self._add(
            pl_module,
            epoch=trainer.current_epoch + 1,
            n_images=sum(gathered(self._n_images)),
            seconds=self._train_ended - self._epoch_started,
            trainer=trainer,
        )
        line = epoch_line(row, max_epochs=trainer.max_epochs or 0, seconds_per_epoch=self._seconds_per_epoch())
        log.info("%s%s", line, self._mark(int(row["epoch"])))

    def add_solution(self, classifier: Classifier, *, n_images: int, seconds: float) -> None:
        """Adds the only row of a run whose head was solved for, after an evaluation of all subsets.

        Args:
            classifier: The solved one.
            n_images: Train images.
            seconds: That features and solution took.
        """
        row = self._add(classifier, epoch=1, n_images=n_images, seconds=seconds)
        log.info("%s", epoch_line(row, max_epochs=1, seconds_per_epoch=0.0))
        self._draw()

    def _add(
        self, classifier: Classifier, *, epoch: int, n_images: int, seconds: float, trainer: L.Trainer | None = None
    ) -> HistoryRow:
        """Adds a row and writes everything; of a training that has epochs to choose from, lets it decide."""
        self.train_seconds += seconds
        row: dict[str, float | int] = {"epoch": epoch}
        for subset in ("train", *classifier.evaluated):
            row[f"{subset}_loss"], row[f"{subset}_accuracy"] = classifier.loss_and_accuracy(subset)
        row["learning_rate"] = self._learning_rate
        row["images_per_second"] = n_images / seconds
        bad = [subset for subset in ("train", *classifier.evaluated) if not math.isfinite(row[f"{subset}_loss"])]
        if bad:
            raise TrainingError(
                f"the loss of {', '.join(bad)} is not finite in epoch {row['epoch']} "
                f"at learning rate {self._learning_rate:g}; "
                "the checkpoint of the epoch before is kept; lower optimizer.lr"
            )
        if self.selection is not None and trainer is not None:
            self._choose(row, trainer, classifier, self.selection)
        self.rows.append(row)
        self._write(row, ("train", *classifier.evaluated))
        return row

    def _choose(
        self, row: dict[str, float | int], trainer: L.Trainer, classifier: Classifier, selection: Selection
    ) -> None:
        """Lets the value of this epoch decide, which is added to the row if it is not there."""
        if selection.monitor not in row:
            rows, logits = classifier.evaluated_logits(Subset.VAL)
            records = trainer.datamodule.records  # type: ignore[attr-defined]  # of BreakHisDataModule
            targets = np.array([records[place].name.target for place in rows.tolist()], dtype=np.int64)
            row[selection.monitor] = monitored_value(selection.monitor, targets, summed(logits, classifier.spec.task))
        selection.take(int(row["epoch"]), row[selection.monitor])
        trainer.should_stop = trainer.should_stop or selection.stopped_after is not None

    def _mark(self, epoch: int) -> str:
        """What is said behind an epoch's line about the choice."""
        if self.selection is None:
            return ""
        if self.selection.best_epoch == epoch:
            return f"  best {self.selection.monitor} so far"
        if self.selection.stopped_after == epoch:
            return f"  no better {self.selection.monitor} for {self.selection.patience} epochs: stops here"
        return ""

    @property
    def counted_epoch(self) -> int:
        """The epoch whose network is evaluated in the end, from 1; the last where nothing chooses."""
        chosen = None if self.selection is None else self.selection.best_epoch
        return len(self.rows) if chosen is None else chosen

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws the curves of the whole run."""
        self._draw()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Draws the curves of the epochs there are; if it cannot be, the callbacks behind this one are still told."""
        with contextlib.suppress(OSError):
            self._draw()

    def _draw(self) -> None:
        if self.writers is not None and self._n_drawn < len(self.rows):
            counted = None if self.selection is None else self.counted_epoch
            figure = curves_figure(self.rows, title=self.title, note=self.note, counted=counted)
            save_figure(figure, self.folder / "curves.png")
            self._drawn, self._n_drawn = time.perf_counter(), len(self.rows)

    def write_table(self) -> None:
        """Writes history.csv."""
        if self.writers is None:
            return
        table = io.StringIO()
        writer = csv.DictWriter(table, fieldnames=list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _number(value) for name, value in row.items()} for row in self.rows)
        write_text(self.folder / "history.csv", table.getvalue())

    def _write(self, row: HistoryRow, subsets: tuple[str, ...]) -> None:
        if self.writers is None:
            return
        self.write_table()
        if time.perf_counter() - self._drawn >= CURVES_EVERY_S:
            self._draw()
        for subset in subsets:
            for quantity in ("loss", "accuracy"):
                self.writers.add_scalar(subset, quantity, row[f"{subset}_{quantity}"], epoch=int(row["epoch"]))
        if self.selection is not None and self.selection.monitor in ("val_balanced_accuracy", "val_auroc"):
            quantity = self.selection.monitor.removeprefix("val_")
            self.writers.add_scalar("val", quantity, row[self.selection.monitor], epoch=int(row["epoch"]))
        self.writers.add_scalar("train", "learning_rate", row["learning_rate"], epoch=int(row["epoch"]))
        self.writers.add_scalar("train", "images_per_second", row["images_per_second"], epoch=int(row["epoch"]))
        self.writers.flush()  # what a checkpoint holds, the curves hold, whenever the process is killed

    def _seconds_per_epoch(self) -> float:
        """Time from the start of this epoch until now, evaluation included."""
        return time.perf_counter() - self._epoch_started


def epoch_line(row: HistoryRow, *, max_epochs: int, seconds_per_epoch: float) -> str:
    """What is printed after an epoch.

    Args:
        row: As in `History.rows`.
        max_epochs: Epochs of the whole run.
        seconds_per_epoch: Of this epoch, evaluation included.
    """
    subsets = [name.removesuffix("_loss") for name in row if name.endswith("_loss")]
    parts = [f"{name} loss {row[f'{name}_loss']:.3f} accuracy {row[f'{name}_accuracy']:.3f}" for name in subsets]
    left = (max_epochs - row["epoch"]) * seconds_per_epoch
    speed = f"{rate(row['images_per_second'])} images/s"
    ending = f", {duration(left)} left" if left > 0 else ""
    return f"epoch {row['epoch']}/{max_epochs}  {'  '.join(parts)}  {speed}{ending}"


def rate(per_second: float) -> str:
    """Images per second for reading.

    Example:
        >>> rate(1234.5), rate(5.678)
        ('1,234', '5.7')
    """
    return f"{per_second:,.0f}" if per_second >= 20 else f"{per_second:.1f}"


def duration(seconds: float) -> str:
    """A time span for reading.

    Example:
        >>> duration(75)
        '1 min 15 s'
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.9g}"
