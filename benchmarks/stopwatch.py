"""Times the epochs of a training, with rounds of the step limit between them in the same process."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback

from benchmarks.limit import Case, Mode, Steps, forward_steps, train_steps
from benchmarks.timing import waiter


@dataclass(frozen=True, slots=True)
class LimitRates:
    """Images per second without data or Lightning, by mode."""

    train: Mapping[Mode, float]
    test: Mapping[Mode, float]


@dataclass(slots=True)
class EpochTimes:
    """An epoch of a training, seconds.

    Attributes:
        whole: From its start to the start of the next one, logging and checkpoint included.
        train: Until its evaluation begins.
        test: Its evaluation.
        n_train: Images trained on.
        n_test: Images evaluated.
    """

    whole: float = 0.0
    train: float = 0.0
    test: float = 0.0
    n_train: int = 0
    n_test: int = 0


@dataclass(frozen=True, slots=True)
class TimedRound:
    """The epochs between two rounds of the limit.

    Attributes:
        epochs: Those that count.
        limit: The mean of the rounds before and after them.
    """

    epochs: tuple[EpochTimes, ...]
    limit: LimitRates

    @property
    def images_per_second(self) -> float:
        """Train images over the time of whole epochs."""
        return sum(epoch.n_train for epoch in self.epochs) / sum(epoch.whole for epoch in self.epochs)

    def train_share(self, of: Sequence[Mode]) -> float:
        """Time that the fastest of these modes needs, over the time that the train parts took."""
        needed = sum(epoch.n_train for epoch in self.epochs) / max(self.limit.train[mode] for mode in of)
        return needed / sum(epoch.train for epoch in self.epochs)

    def test_share(self, of: Sequence[Mode]) -> float:
        """The same of the test parts."""
        needed = sum(epoch.n_test for epoch in self.epochs) / max(self.limit.test[mode] for mode in of)
        return needed / sum(epoch.test for epoch in self.epochs)

    def share(self, of: Sequence[Mode]) -> float:
        """The same of whole epochs."""
        train = sum(epoch.n_train for epoch in self.epochs) / max(self.limit.train[mode] for mode in of)
        test = sum(epoch.n_test for epoch in self.epochs) / max(self.limit.test[mode] for mode in of)
        return (train + test) / sum(epoch.whole for epoch in self.epochs)


class Limits:
    """Rounds of the limit in several modes.

    Args:
        train: The case of train steps.
        test: The case of evaluation.
        modes: To measure.
        seconds: That each mode takes about, for each of both.
        optimizer: Further arguments of the optimizer.
    """

    def __init__(
        self, train: Case, test: Case, *, modes: Sequence[Mode], seconds: float, optimizer: Mapping[str, Any]
    ) -> None:
        self.modes = tuple(dict.fromkeys(modes))
        self._train = {mode: _paced(train_steps(train, mode, optimizer=optimizer), seconds) for mode in self.modes}
        self._test = {mode: _paced(forward_steps(test, mode), seconds / 2) for mode in self.modes}

    @classmethod
    def none(cls) -> "Limits":
        """Of no mode, where only epochs are timed."""
        case = Case("resnet18", 32, 2, "32-true", torch.device("cpu"))
        return cls(case, case, modes=(), seconds=0.0, optimizer={})

    def round(self) -> LimitRates:
        """One round."""
        return LimitRates(
            train={mode: steps.rate(n_steps) for mode, (steps, n_steps) in self._train.items()},
            test={mode: steps.rate(n_steps) for mode, (steps, n_steps) in self._test.items()},
        )


def _paced(steps: Steps, seconds: float) -> tuple[Steps, int]:
    return steps, steps.pace(seconds)


class Stopwatch(Callback):
    """Times epochs in blocks, with a round of the limit before and after each block.

    What a run leaves to threads, such as writing its checkpoint, goes on in the next epoch. A pause would let it end
    for nothing; so the first epoch after a pause is not counted where blocks have more than one. The first block is
    not counted either.

    Args:
        block: Epochs between two rounds of the limit.
        make_limits: Called when the training starts.
        clock: In seconds.

    Attributes:
        epochs: All finished epochs.
        rates: Of all rounds of the limit; one more than there are blocks.
    """

    def __init__(
        self,
        *,
        block: int,
        make_limits: Callable[[L.Trainer, L.LightningModule], Limits],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.block = block
        self.make_limits = make_limits
        self.epochs: list[EpochTimes] = []
        self.rates: list[LimitRates] = []
        self.limits: Limits | None = None
        self._clock = clock
        self._wait: Callable[[], None] = lambda: None
        self._epoch: EpochTimes | None = None
        self._started = self._test_started = 0.0

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Modes of the limit; the first is the one of the run."""
        return () if not self.rates else tuple(self.rates[0].train)

    def rounds(self) -> list[TimedRound]:
        """The blocks that count."""
        n_blocks = len(self.epochs) // self.block
        skipped = 1 if self.block > 1 else 0
        return [
            TimedRound(
                epochs=tuple(self.epochs[number * self.block + skipped : (number + 1) * self.block]),
                limit=_mean(self.rates[number], self.rates[number + 1]),
            )
            for number in range(1, n_blocks)
        ]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Builds the limit."""
        self._wait = waiter(pl_module.device)
        self.limits = self.make_limits(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Ends the epoch before, measures the limit where a block begins, and starts the clock."""
        self._end_epoch()
        if len(self.epochs) % self.block == 0:
            self._measure_limit(trainer)
        self._epoch = EpochTimes()
        self._wait()
        self._started = self._clock()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]  # noqa: ARG002
        """Counts images."""
        if self._epoch is not None:
            self._epoch.n_train += len(batch[1])

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Ends the train part."""
        if self._epoch is not None:
            self._wait()
            self._test_started = self._clock()
            self._epoch.train = self._test_started - self._started

    def on_validation_batch_end(  # type: ignore[no-untyped-def]
        self,
        trainer,  # noqa: ARG002
        pl_module,  # noqa: ARG002
        outputs,  # noqa: ARG002
        batch,
        batch_idx,  # noqa: ARG002
        dataloader_idx=0,  # noqa: ARG002
    ) -> None:
        """Counts images."""
        if self._epoch is not None:
            self._epoch.n_test += len(batch[1])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Ends the test part."""
        if self._epoch is not None:
            self._wait()
            self._epoch.test = self._clock() - self._test_started

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Ends the last epoch, and measures the limit a last time."""
        self._end_epoch()
        self._measure_limit(trainer)
        self.limits = None  # its memory is not the run's

    def _end_epoch(self) -> None:
        if self._epoch is not None:
            self._wait()
            self._epoch.whole = self._clock() - self._started
            self.epochs.append(self._epoch)
            self._epoch = None

    def _measure_limit(self, trainer: L.Trainer) -> None:
        writer = trainer.strategy.checkpoint_io
        while getattr(writer, "is_busy", False):
            time.sleep(0.01)
        if self.limits is not None:
            self.rates.append(self.limits.round())


def _mean(before: LimitRates, after: LimitRates) -> LimitRates:
    return LimitRates(
        train={mode: mean((rate, after.train[mode])) for mode, rate in before.train.items()},
        test={mode: mean((rate, after.test[mode])) for mode, rate in before.test.items()},
    )
