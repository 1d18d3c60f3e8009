"""Which rows of the store make a batch: in which order, and in which process."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset, Sampler

from breakhis_pl.data.balance import TrainOrder
from breakhis_pl.processes import Place


class Rows(Dataset[Tensor]):
    """Rows of the store as a dataset."""

    def __init__(self, rows: Sequence[int]) -> None:
        self.rows = torch.tensor(rows)  # (n_rows,)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def __getitem__(self, position: int) -> Tensor:
        """The row at a position; int64, ()."""
        return self.rows[position]

    def __getitems__(self, positions: list[int]) -> Tensor:
        """The rows at some positions at once, as DataLoader asks for a batch; int64, (n_positions,)."""
        return self.rows[positions]


def as_they_are(rows: Any) -> Any:
    """A batch that `Rows` has put together."""
    return rows


class SharedBatches(Sampler[list[int]]):
    """The share of a process of every batch: of ten positions and four processes, 3, 3, 2 and 2; it may be empty."""

    def __init__(self, batches: BatchSampler, place: Place) -> None:
        self.batches = batches
        self.place = place

    def __len__(self) -> int:
        """Number of batches, the same in every process."""
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        """Positions of each share."""
        for batch in self.batches:
            yield batch[self.place.rank :: self.place.n_ranks]


class DealtBatches(Sampler[list[int]]):
    """Whole batches, dealt to the processes by turns; an empty one to a process for which none is left."""

    def __init__(self, batches: BatchSampler, place: Place) -> None:
        own = range(place.rank, len(batches), place.n_ranks)
        self.own = [batch for number, batch in enumerate(batches) if number in own] or [[]]

    def __len__(self) -> int:
        """Number of this process's batches; at least one, so that all go through the same steps."""
        return len(self.own)

    def __iter__(self) -> Iterator[list[int]]:
        """Positions of each batch."""
        return iter(self.own)


class ShuffledSampler(Sampler[int]):
    """Positions in an order that is a function of seed and epoch.

    Lightning makes the first iterator of a resumed run before it tells samplers the epoch
    (https://github.com/Lightning-AI/pytorch-lightning, 2.6: `_FitLoop.on_run_start`); so the epoch is asked for when
    the first position is drawn.
    """

    def __init__(self, order: TrainOrder, *, epoch: Callable[[], int]) -> None:
        self.order = order
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of positions."""
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        """The positions of the current epoch."""
        yield from self.order.positions(self.epoch())
