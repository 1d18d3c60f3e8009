"""A progress bar with loss, accuracy, images per second and the time left of the whole run."""

import time
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from tqdm import tqdm

from breakhis_pl.models.classifier import Classifier
from breakhis_pl.training.history import duration, rate

REFRESH_S = 0.5
"""Reading loss and accuracy waits for the device, so it is done at most this often."""


class RunProgressBar(LightningProgressBar):
    """One bar per epoch, over its train batches and its evaluation; it vanishes when the epoch is done.

    It is drawn on a terminal only; the line that `History` prints after an epoch is there in any case.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm[Any] | None = None
        self._is_enabled = True
        self._started = 0.0
        self._epoch_started = 0.0
        self._refreshed = 0.0
        self._n_epochs_done = 0
        self._n_batches = 0

    def disable(self) -> None:
        """Draws nothing; Lightning asks for this in all processes but one."""
        self._is_enabled = False

    def enable(self) -> None:
        """Draws again."""
        self._is_enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock of the run."""
        self._started = time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Opens the bar of an epoch."""
        self._epoch_started = time.perf_counter()
        self._n_batches = int(self.total_train_batches) + sum(int(n) for n in trainer.num_val_batches)
        self._bar = tqdm(
            total=self._n_batches,
            desc=f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}",
            leave=False,
            disable=None if self._is_enabled else True,
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} batches{postfix}",
        )

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        """Moves the bar, and refreshes its numbers now and then."""
        if not self._advance():
            return
        now = time.perf_counter()
        if now - self._refreshed < REFRESH_S or not isinstance(pl_module, Classifier) or self._bar is None:
            return
        self._refreshed = now
        loss, accuracy = pl_module.loss_and_accuracy("train", of_all=False)
        n_done = self._n_epochs_done * self._n_batches + self._bar.n
        n_left = ((trainer.max_epochs or 0) - trainer.current_epoch) * self._n_batches - self._bar.n
        left = (now - self._started) / n_done * n_left
        speed = (batch_idx + 1) * trainer.datamodule.data.batch_size / (now - self._epoch_started)
        self._bar.set_postfix_str(
            f"loss {loss:.3f}, accuracy {accuracy:.3f}, {rate(speed)} images/s, {duration(left)} left"
        )

    def on_validation_batch_end(  # type: ignore[no-untyped-def]
        self,
        trainer,
        pl_module,
        outputs,
        batch,
        batch_idx,
        dataloader_idx=0,
    ) -> None:
        """Moves the bar."""
        self._advance()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Closes the bar of the epoch."""
        self._n_epochs_done += 1
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leaves the terminal clean."""
        self._close()

    def _advance(self) -> bool:
        """Moves the bar by a batch; False if there is none to see."""
        if self._bar is None or self._bar.disable:
            return False
        self._bar.update()
        return True

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
