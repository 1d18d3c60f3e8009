"""Mixup: pairs of train images, and what they show, in shares that are drawn anew for every step."""

import numpy as np
import torch
from torch import Tensor

from breakhis_pl.randomness import derived_seed


def mixup_share(alpha: float, *, seed: int, epoch: int, step: int) -> float:
    """The share that each image of a batch keeps of itself, from a Beta(alpha, alpha) distribution.

    Args:
        alpha: 0 mixes nothing; near 0 mostly one of a pair is seen, at 1 all shares are as likely.
        seed: The run's seed.
        epoch: Counted from 0.
        step: Counted from 0.

    Returns:
        In [0, 1].

    Source:
        Zhang et al. 2018, arXiv:1710.09412.
    """
    if alpha == 0:
        return 1.0
    return float(np.random.default_rng(derived_seed(seed, "mixup", epoch, step)).beta(alpha, alpha))


def partners(batch: Tensor) -> Tensor:
    """What each image is mixed with: the one before it in the batch, whose order is drawn in every epoch."""
    return batch.roll(1, 0)


def mixed(images: Tensor, share: float) -> Tensor:
    """Each image, in its share, and its partner.

    Args:
        images: float32, (batch, 3, height, width).
        share: In [0, 1].

    Returns:
        Like `images`, in the same memory format.
    """
    return torch.lerp(partners(images), images, share).contiguous(memory_format=_memory_format(images))


def _memory_format(images: Tensor) -> torch.memory_format:
    is_channels_last = images.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_channels_last else torch.contiguous_format
