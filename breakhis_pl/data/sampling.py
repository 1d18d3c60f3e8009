"""Order of train images, class weights, and how batches are distributed over the ranks of a distributed run."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from breakhis_pl.errors import ConfigurationError
from breakhis_pl.randomness import derived_seed


class EpochSampler(Sampler[int]):
    """Sampler of positions, shuffled and balanced as a function of (seed, epoch).

    Args:
        targets: Class of each train image.
        balance: none and loss: every image once. downsample: every image of the rarest class once and as many of every
            other class, a new selection in every epoch. sampler: as many images as there are, of all classes equally
            many, so that images of rare classes are repeated and some of frequent ones left out.
        seed: Seed of the run.
        epoch: Return the current epoch. It is called when the first position is drawn: on resume, Lightning 2.6 makes
            the loader's iterator before the epoch is known.
        rank: Rank of the process.
        world_size: Number of processes, which share the positions of an epoch; some are repeated so that all have
            equally many.
    """

    def __init__(
        self,
        targets: Sequence[int],
        *,
        balance: Literal["none", "downsample", "sampler", "loss"],
        seed: int,
        epoch: Callable[[], int],
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.targets = torch.tensor(targets)
        self.balance = balance
        self.seed = seed
        self.epoch = epoch
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        """Return the number of positions of this process."""
        return math.ceil(sum(self._n_wanted(0).values()) / self.world_size)

    def __iter__(self) -> Iterator[int]:
        """Iterate over the positions of this process in the current epoch."""
        positions = self.positions(self.epoch())
        padded = np.resize(positions, len(self) * self.world_size)  # repeats from the start
        yield from padded[self.rank :: self.world_size].tolist()

    def positions(self, epoch: int) -> list[int]:
        """Return the positions of all processes in an epoch, counted from 0."""
        shuffle = torch.Generator().manual_seed(derived_seed(self.seed, "shuffle", epoch))
        if self.balance in ("none", "loss"):
            return torch.randperm(len(self.targets), generator=shuffle).tolist()
        choice = torch.Generator().manual_seed(derived_seed(self.seed, "balance", epoch))
        chosen = torch.cat(
            [
                _sample((self.targets == target).nonzero().flatten(), n_wanted, choice)
                for target, n_wanted in self._n_wanted(epoch).items()
            ]
        )
        return chosen[torch.randperm(len(chosen), generator=shuffle)].tolist()

    def _n_wanted(self, epoch: int) -> dict[int, int]:
        """Return the number of positions by class; epochs take turns in which class gets the remainder."""
        counts = dict(sorted(Counter(self.targets.tolist()).items()))
        if self.balance == "downsample":
            return dict.fromkeys(counts, min(counts.values()))
        if self.balance == "sampler":
            share, remainder = divmod(len(self.targets), len(counts))
            return {target: share + ((place + epoch) % len(counts) < remainder) for place, target in enumerate(counts)}
        return counts


def _sample(positions: Tensor, n_wanted: int, generator: torch.Generator) -> Tensor:
    """Sample positions at random, each once before any is repeated; int64, (n_wanted,)."""
    n_rounds = math.ceil(n_wanted / len(positions))
    rounds = [positions[torch.randperm(len(positions), generator=generator)] for _ in range(n_rounds)]
    return torch.cat(rounds)[:n_wanted]


def class_weights(targets: Sequence[int], *, n_classes: int) -> Tensor:
    """Compute weights for the loss with which all classes contribute equally.

    Args:
        targets: Class of each train image.
        n_classes: Number of classes.

    Returns:
        float32, (n_classes,): mean number of images of a class divided by that of the class; 0 for classes without
        images. The mean over the train images is 1.

    Source:
        King and Zeng 2001, doi:10.1093/oxfordjournals.pan.a004868, section 4.2.

    Example:
        >>> class_weights([0, 1, 1, 1], n_classes=2)
        tensor([2.0000, 0.6667])
    """
    counts = torch.bincount(torch.tensor(targets), minlength=n_classes)
    return torch.where(counts > 0, len(targets) / ((counts > 0).sum() * counts.clamp(min=1)), 0.0)


def distribute_batches(n_samples: int, batch_size: int, *, rank: int, world_size: int) -> list[list[int]]:
    """Distribute positions over ranks, without repetition and in equally many batches.

    All ranks have to run a network equally often, because DDP synchronizes its buffers in every forward pass.

    Args:
        n_samples: Number of positions of all ranks.
        batch_size: Largest number of positions in a batch.
        rank: Rank of the process.
        world_size: Number of processes.

    Returns:
        Positions of each batch of this rank, ascending.

    Raises:
        ConfigurationError: If a rank would get an empty batch.
    """
    own = np.arange(rank, n_samples, world_size)
    if world_size == 1:
        return [own[start : start + batch_size].tolist() for start in range(0, n_samples, batch_size)]
    n_batches = math.ceil(n_samples / (batch_size * world_size))
    if n_samples // world_size < n_batches:
        raise ConfigurationError(
            f"trainer.devices: {n_samples} images are too few for {world_size} processes with batches of {batch_size}; "
            "use fewer devices, or a larger data.eval_batch_size"
        )
    return [batch.tolist() for batch in np.array_split(own, n_batches)]
