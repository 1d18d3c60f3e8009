"""Train images of unequal classes: which are shown in an epoch, in which order, and what their losses weigh."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from breakhis_pl.data.breakhis import CLASS_NAMES
from breakhis_pl.errors import ConfigurationError
from breakhis_pl.randomness import derived_seed


@dataclass(frozen=True, slots=True)
class TrainOrder:
    """The train images of every epoch: positions as a function of seed and epoch, of nothing that was drawn before.

    Attributes:
        targets: Index of the class of each train image.
        balance: As `data.balance`. none and loss show every image once. downsample shows each image of the rarest
            class once, and as many of every other class, drawn anew for each epoch. sampler shows as many images as
            there are, of all classes equally often (to one image): those of a rare class several times, of a
            frequent one not all, no image twice more often than another of its class.
        seed: The run's seed.
    """

    targets: tuple[int, ...]
    balance: str
    seed: int

    def __len__(self) -> int:
        """Number of positions in an epoch."""
        return sum(self._wanted())

    def positions(self, epoch: int) -> list[int]:
        """Positions in `targets` that an epoch, counted from 0, shows, in their order."""
        shuffle = torch.Generator().manual_seed(derived_seed(self.seed, "shuffle", epoch))
        if self.balance in ("none", "loss"):
            return torch.randperm(len(self.targets), generator=shuffle).tolist()
        choose = torch.Generator().manual_seed(derived_seed(self.seed, "balance", epoch))
        targets = torch.tensor(self.targets)
        chosen = torch.cat(
            [
                _in_turn((targets == target).nonzero().flatten(), n_wanted, choose)
                for target, n_wanted in enumerate(self._wanted(epoch))
                if n_wanted > 0
            ]
        )
        return chosen[torch.randperm(len(chosen), generator=shuffle)].tolist()

    def _wanted(self, epoch: int = 0) -> list[int]:
        """Number of positions by class; which class gets what cannot be divided goes round with the epochs.

        Raises:
            ConfigurationError: If `balance` is none of the known ones.
        """
        counts = Counter(self.targets)
        by_class = [counts[target] for target in range(max(counts, default=-1) + 1)]
        there = [target for target, n in enumerate(by_class) if n > 0]
        match self.balance:
            case "none" | "loss":
                return by_class
            case "downsample":
                fewest = min((by_class[target] for target in there), default=0)
                return [min(n, fewest) for n in by_class]
            case "sampler":
                share, rest = divmod(len(self.targets), max(len(there), 1))
                wanted = [0] * len(by_class)
                for place, target in enumerate(there):
                    wanted[target] = share + ((place + epoch) % len(there) < rest)
                return wanted
            case other:
                raise ConfigurationError(f"data.balance={other} is not possible")


def class_weights(targets: Sequence[int], *, n_classes: int = len(CLASS_NAMES)) -> tuple[float, ...]:
    """Weight of each class's losses, so that every class weighs the same in the whole of train.

    Args:
        targets: Index of the class of each train image.
        n_classes: Number of classes.

    Returns:
        One per class: the mean number of images of a class over its own, 0 where it has none. Over
        all train images they have mean 1.

    Source:
        King and Zeng, Logistic regression in rare events data, Political Analysis 2001,
        doi:10.1093/oxfordjournals.pan.a004868, section 4.2.

    Example:
        >>> class_weights([0, 1, 1, 1])
        (2.0, 0.6666666666666666)
    """
    counts = Counter(targets)
    return tuple(
        len(targets) / (len(counts) * counts[target]) if counts[target] else 0.0 for target in range(n_classes)
    )


def _in_turn(positions: Tensor, n_wanted: int, generator: torch.Generator) -> Tensor:
    """So many of some positions by chance, each once before any comes again; int64, (n_wanted,)."""
    rounds = -(-n_wanted // len(positions))
    orders = [positions[torch.randperm(len(positions), generator=generator)] for _ in range(rounds)]
    return torch.cat(orders)[:n_wanted]
