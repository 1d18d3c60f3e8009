"""Flips and rotation of a whole batch in one resampling, on the device of the batch.

The random numbers of an epoch are drawn at once and belong to images, not to batches: what happens to an image is a
function of (seed, epoch, image).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from breakhis_pl.config import AugmentationConfig
from breakhis_pl.randomness import derived_seed


@dataclass(frozen=True, slots=True)
class AugmentationDraws:
    """What happens to each image.

    Attributes:
        horizontal_flip: bool, (n_images,); left and right are swapped.
        vertical_flip: bool, (n_images,); up and down are swapped, after the horizontal flip.
        angle: float32, (n_images,), degrees; counter-clockwise rotation after both flips.
    """

    horizontal_flip: Tensor
    vertical_flip: Tensor
    angle: Tensor

    def matrices(self) -> Tensor:
        """The transforms from output to input coordinates; float32, (n_images, 2, 3), as `affine_grid` takes them."""
        radians = self.angle * (math.pi / 180)
        cosine, sine = torch.cos(radians), torch.sin(radians)
        flip_x = 1.0 - 2.0 * self.horizontal_flip.float()
        flip_y = 1.0 - 2.0 * self.vertical_flip.float()
        zero = torch.zeros_like(cosine)
        return torch.stack(
            [
                torch.stack([flip_x * cosine, -flip_x * sine, zero], dim=1),
                torch.stack([flip_y * sine, flip_y * cosine, zero], dim=1),
            ],
            dim=1,
        )  # (n_images, 2, 3)


def draw_augmentation(n_images: int, config: AugmentationConfig, *, seed: int, epoch: int) -> AugmentationDraws:
    """The draws for all train images of an epoch, on the CPU.

    Args:
        n_images: Number of train images.
        config: Probabilities of the flips and largest angle in degrees.
        seed: The run's seed.
        epoch: Counted from 0.
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, "augmentation", epoch))
    horizontal, vertical, turn = torch.rand((3, n_images), generator=generator)
    return AugmentationDraws(
        horizontal_flip=horizontal < config.horizontal_flip,
        vertical_flip=vertical < config.vertical_flip,
        angle=(2 * turn - 1) * config.rotation,
    )


def changes_anything(config: AugmentationConfig) -> bool:
    """Whether train images can look different from evaluated ones."""
    return config.horizontal_flip > 0 or config.vertical_flip > 0 or config.rotation > 0


def resample(images: Tensor, matrices: Tensor) -> Tensor:
    """Each image seen through its transform: bilinear, black where nothing was.

    Args:
        images: float, (n_images, channels, size, size); square, so that rotation does not shear.
        matrices: float32, (n_images, 2, 3), from output to input coordinates in [-1, 1].

    Returns:
        Like `images`.
    """
    size = images.shape[-1]
    center = (2 * torch.arange(size, dtype=matrices.dtype, device=matrices.device) + 1) / size - 1  # (size,)
    along_x, along_y, shift = (matrices[:, None, None, :, column] for column in range(3))  # (n_images, 1, 1, 2)
    columns = torch.addcmul(shift, along_y, center.view(1, size, 1, 1))  # (n_images, size, 1, 2)
    grid = torch.addcmul(columns, along_x, center.view(1, 1, size, 1))  # (n_images, size, size, 2); as affine_grid's
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def to_network_input(
    pixels: Tensor,
    *,
    mean: Tensor,
    std: Tensor,
    matrices: Tensor | None = None,
    memory_format: torch.memory_format = torch.channels_last,
) -> Tensor:
    """Pixels as a network takes them: augmented if asked, then normalized.

    Args:
        pixels: uint8, (n_images, size, size, 3), RGB.
        mean: float32, (3,), of values in [0, 1].
        std: float32, (3,).
        matrices: float32, (n_images, 2, 3), for `resample`; None leaves the images as they are.
        memory_format: Of the result.

    Returns:
        float32, (n_images, 3, size, size).
    """
    images = pixels.permute(0, 3, 1, 2).float()  # (n_images, 3, size, size)
    if matrices is not None:
        images = resample(images, matrices)
    scale = 1 / (255 * std)
    shift = -mean / std
    normalized = images.mul_(scale.view(3, 1, 1)).add_(shift.view(3, 1, 1))
    return normalized.contiguous(memory_format=memory_format)
