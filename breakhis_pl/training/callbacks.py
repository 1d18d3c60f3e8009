"""Callbacks of a training: history, NaN guard, head warm-up, checkpoints, linear probe, progress bar."""

import logging
import math
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import BaseFinetuning, Callback, ModelCheckpoint, TQDMProgressBar
from torch import Tensor, nn
from torch.nn import functional

from breakhis_pl.errors import TrainingError
from breakhis_pl.models.linear_probe import fit_linear_probe
from breakhis_pl.run_folder import RunFolder, write_text

log = logging.getLogger(__name__)

NAN_CHECK_EVERY = 50
"""Steps between two checks on a GPU: each one waits for the device."""


class History(Callback):
    """Write history.csv and the loggers' curves after every epoch, and print a line.

    A row holds every value that was logged with `self.log` for the epoch, so what a module logs appears by itself.

    Args:
        run: The run folder.

    Attributes:
        rows: One mapping per finished epoch: epoch (from 1), loss and metrics by subset, learning_rate (during the
            epoch), images_per_second (train images over train time).
        train_seconds: Time spent in train batches.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.rows: list[dict[str, float]] = []
        self.train_seconds = 0.0
        self._n_images = 0
        self._epoch_start = 0.0
        self._train_end = 0.0
        self._learning_rate = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the rows, which a resumed run continues."""
        return {"rows": self.rows, "train_seconds": self.train_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the rows."""
        self.rows, self.train_seconds = list(state_dict["rows"]), state_dict["train_seconds"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove rows that are newer than the checkpoint."""
        if self.rows:
            self._write_table(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock; note the learning rate, which Lightning changes before the epoch is evaluated."""
        self._n_images = 0
        self._epoch_start = time.perf_counter()
        self._learning_rate = learning_rate(trainer)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        """Count images; stop the clock when the device has finished the last step."""
        self._n_images += len(batch if isinstance(batch, Tensor) else batch.indices) * trainer.world_size
        if trainer.is_last_batch:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize()
            self._train_end = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add a row."""
        seconds = self._train_end - self._epoch_start
        self.train_seconds += seconds
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        order = [name for subset in ("train", "val", "test") for name in values if name.startswith(f"{subset}_")]
        row = {"epoch": trainer.current_epoch + 1, **{name: values[name] for name in (*order, *values)}}
        row |= {"learning_rate": self._learning_rate, "images_per_second": self._n_images / seconds}
        self.rows.append(row)
        self._write_table(trainer)
        for logger in trainer.loggers:
            logger.log_metrics({name: value for name, value in row.items() if name != "epoch"}, step=int(row["epoch"]))
            logger.save()
        log.info(
            "%s", epoch_line(row, n_epochs=trainer.max_epochs or 0, seconds=time.perf_counter() - self._epoch_start)
        )

    def _write_table(self, trainer: L.Trainer) -> None:
        import pandas as pd  # noqa: PLC0415 - takes a second, which the first step need not wait for

        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            write_text(self.run.history_csv, pd.DataFrame(self.rows).to_csv(index=False, float_format="%.9g"))


def learning_rate(trainer: L.Trainer) -> float:
    """Return the highest learning rate of the groups of parameters; 0 for a linear probe, which has no optimizer."""
    return max((group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups), default=0.0)


def epoch_line(row: dict[str, float], *, n_epochs: int, seconds: float) -> str:
    """Return the line that is printed after an epoch.

    Args:
        row: As in `History.rows`.
        n_epochs: Epochs of the run.
        seconds: Time of this epoch, evaluation included.
    """
    subsets = [name.removesuffix("_loss") for name in row if name.endswith("_loss")]
    parts = [f"{name} loss {row[f'{name}_loss']:.3f} accuracy {row[f'{name}_accuracy']:.3f}" for name in subsets]
    rate = row["images_per_second"]
    left = (n_epochs - row["epoch"]) * seconds
    ending = f", {duration(left)} left" if left > 0 else ""
    return (
        f"epoch {row['epoch']:.0f}/{n_epochs}  {'  '.join(parts)}  {rate:,.{0 if rate >= 20 else 1}f} images/s{ending}"
    )


def duration(seconds: float) -> str:
    """Format a time span.

    Example:
        >>> duration(75)
        '1 min 15 s'
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{minutes} min {rest} s" if hours == 0 else f"{hours} h {minutes} min"


class NaNGuard(Callback):
    """Stop a training whose loss or weights are not finite, before anything is saved.

    The loss is checked in every step on a CPU, in every 50th step elsewhere, and the weights before every evaluation.
    """

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        """Check the sum of the losses of the epoch.

        Raises:
            TrainingError: If one is not finite.
        """
        if pl_module.device.type == "cpu" or (batch_idx + 1) % NAN_CHECK_EVERY == 0:
            self._check(trainer, "the loss", pl_module.train_sums[0], step=batch_idx + 1)

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Check loss and weights at the end of an epoch.

        Raises:
            TrainingError: If one is not finite.
        """
        self._check(trainer, "the loss", pl_module.train_sums[0], step=trainer.num_training_batches)
        weights = torch.stack([value.detach().float().sum() for value in pl_module.state_dict().values()])
        self._check(trainer, "a weight", weights.sum(), step=trainer.num_training_batches)

    def _check(self, trainer: L.Trainer, what: str, value: Tensor, *, step: float) -> None:
        if math.isfinite(value.item()):
            return
        rate = learning_rate(trainer)
        raise TrainingError(
            f"epoch {trainer.current_epoch + 1}, step {step:.0f}: {what} is not finite at learning rate {rate:g}; "
            "finished epochs are kept, lower optimizer.lr"
        )


class HeadWarmup(Callback):
    """Train the head alone in the first epochs.

    Args:
        n_epochs: Number of these epochs.
    """

    def __init__(self, n_epochs: int) -> None:
        self.n_epochs = n_epochs

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Freeze or unfreeze the backbone; a function of the epoch, so a resumed run needs no state."""
        if trainer.current_epoch < self.n_epochs:
            BaseFinetuning.freeze(pl_module.network.backbone, train_bn=False)
            pl_module.network.backbone.eval()
        else:
            BaseFinetuning.make_trainable(pl_module.network.backbone)
            pl_module.network.backbone.train()


class MovableCheckpoint(ModelCheckpoint):
    """ModelCheckpoint that keeps its best score if the run folder has moved since."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the scores, with paths in the present folder; Lightning forgets them if the folder differs."""

        def here(path: str) -> str:
            return str(Path(self.dirpath or "", Path(path).name)) if path else path

        paths = {name: here(path) for name, path in state_dict.items() if name.endswith("_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})


class LinearProbe(Callback):
    """Fit the head as a logistic regression on the features of one pass over the train images.

    Args:
        l2: Penalty on the weights.
        checkpoint: Written at the end; ModelCheckpoint skips epochs without an optimizer step.
    """

    def __init__(self, *, l2: float, checkpoint: Path) -> None:
        self.l2 = l2
        self.checkpoint = checkpoint
        self._features: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._weights: list[Tensor] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Switch off the optimization by steps, and keep the features of the train images."""
        pl_module.automatic_optimization = False

        def keep(_module: nn.Module, _images: tuple[Tensor, ...], features: Tensor) -> None:
            if trainer.training:
                self._features.append(features.detach().float())

        self._hook = pl_module.network.backbone.register_forward_hook(keep)  # type: ignore[union-attr]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        """Fit after the last batch."""
        self._targets.append(batch.targets)
        self._weights += [] if batch.weights is None else [batch.weights]
        if batch_idx + 1 < trainer.num_training_batches:
            return
        features, targets = torch.cat(self._features), torch.cat(self._targets)  # (n, n_features), (n,)
        head = pl_module.network.head
        weights = torch.cat(self._weights) if self._weights else None
        fit_linear_probe(head, features, targets, l2=self.l2, class_weights=pl_module.class_weights, weights=weights)
        with torch.no_grad():
            logits = head(features)
        pl_module.train_sums.zero_()  # of the steps, whose head was not fitted
        pl_module.add_to_sums(functional.cross_entropy(logits, targets), logits, targets)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Stop keeping features."""
        self._hook.remove()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the fitted head."""
        trainer.save_checkpoint(self.checkpoint)


class ProgressBar(TQDMProgressBar):
    """Lightning's progress bar, with images per second."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=5)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Add images per second to what the bar shows."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        rate = self.train_progress_bar.format_dict["rate"]
        batch_size = trainer.datamodule.data.batch_size * trainer.world_size  # type: ignore[attr-defined]
        return metrics if rate is None else {**metrics, "images/s": f"{rate * batch_size:.0f}"}
