"""Flips, turns, zoom and shift of a whole batch in one resampling, on the device of the batch.

The random numbers of an epoch are drawn at once and belong to images, not to batches: what happens to an image is a
function of (seed, epoch, image).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from breakhis_pl.config import AugmentationConfig
from breakhis_pl.data.appearance import AppearanceDraws, changes_appearance, draw_appearance, with_appearance
from breakhis_pl.randomness import derived_seed


@dataclass(frozen=True, slots=True)
class AugmentationDraws:
    """What happens to each image.

    Attributes:
        horizontal_flip: bool, (n_images,); left and right are swapped.
        vertical_flip: bool, (n_images,); up and down are swapped, after the horizontal flip.
        angle: float32, (n_images,), degrees; counter-clockwise rotation after both flips.
        quarter_turns: int64, (n_images,), 0 to 3; exact turns by 90 degrees, counter-clockwise, after that; None
            where there are none.
        zoom: float32, (n_images,); magnification after that, about the center; None where it is 1.
        shift: float32, (n_images, 2); to the right and downwards, as a share of the side, at the end; None where it
            is 0.
    """

    horizontal_flip: Tensor
    vertical_flip: Tensor
    angle: Tensor
    quarter_turns: Tensor | None = None
    zoom: Tensor | None = None
    shift: Tensor | None = None

    def matrices(self) -> Tensor:
        """The transforms from output to input coordinates; float32, (n_images, 2, 3), as `affine_grid` takes them."""
        radians = self.angle * (math.pi / 180)
        cosine, sine = torch.cos(radians), torch.sin(radians)
        if self.quarter_turns is not None:  # exact where the angle is 0: the numbers are 0 and 1 then
            quarter_cosine, quarter_sine = torch.tensor(_QUARTERS)[self.quarter_turns].unbind(dim=1)
            cosine, sine = (
                cosine * quarter_cosine - sine * quarter_sine,
                sine * quarter_cosine + cosine * quarter_sine,
            )
        if self.zoom is not None:
            cosine, sine = cosine / self.zoom, sine / self.zoom
        flip_x = 1.0 - 2.0 * self.horizontal_flip.float()
        flip_y = 1.0 - 2.0 * self.vertical_flip.float()
        zero = torch.zeros_like(cosine)
        matrices = torch.stack(
            [
                torch.stack([flip_x * cosine, -flip_x * sine, zero], dim=1),
                torch.stack([flip_y * sine, flip_y * cosine, zero], dim=1),
            ],
            dim=1,
        )  # (n_images, 2, 3)
        if self.shift is not None:  # a side is 2 long
            matrices[:, :, 2:] = -matrices[:, :, :2] @ (2 * self.shift[:, :, None])
        return matrices


_QUARTERS = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))
"""Cosine and sine of whole quarter turns."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What happens to images, as `to_network_input` takes it; None where nothing does.

    Attributes:
        matrices: float32, (n_images, 2, 3), for `resample`.
        appearance: For `with_appearance`.
        border: What lies beyond the edge of an image, "black" or "mirror".
    """

    matrices: Tensor | None = None
    appearance: AppearanceDraws | None = None
    border: str = "black"

    def of(self, rows: Tensor) -> "Augmentation":
        """What happens to some of the images: int64, (n_rows,)."""
        return Augmentation(
            matrices=None if self.matrices is None else self.matrices.index_select(0, rows),
            appearance=None if self.appearance is None else self.appearance.of(rows),
            border=self.border,
        )


def augmentation_of_epoch(
    n_images: int, config: AugmentationConfig, *, seed: int, epoch: int, device: torch.device
) -> Augmentation:
    """What happens to every image in an epoch, on a device.

    Args:
        n_images: Number of images.
        config: The keys of `augmentation`.
        seed: The run's seed.
        epoch: Counted from 0.
        device: Where batches are made.
    """
    matrices = appearance = None
    if changes_geometry(config):
        matrices = draw_augmentation(n_images, config, seed=seed, epoch=epoch).matrices().to(device)
    if changes_appearance(config):
        appearance = draw_appearance(n_images, config, seed=seed, epoch=epoch).to(device)
    return Augmentation(matrices=matrices, appearance=appearance, border=config.border)


def draw_augmentation(n_images: int, config: AugmentationConfig, *, seed: int, epoch: int) -> AugmentationDraws:
    """The draws for all images of an epoch, on the CPU; turns, zoom and shift each have a stream of their own.

    Args:
        n_images: Number of images.
        config: Probabilities of flips and turns, largest angle, zoom and shift.
        seed: The run's seed.
        epoch: Counted from 0.
    """

    def uniform(purpose: str, *shape: int) -> Tensor:
        """In [0, 1)."""
        own = torch.Generator().manual_seed(derived_seed(seed, f"augmentation {purpose}", epoch))
        return torch.rand((n_images, *shape), generator=own)

    generator = torch.Generator().manual_seed(derived_seed(seed, "augmentation", epoch))
    horizontal, vertical, turn = torch.rand((3, n_images), generator=generator)
    return AugmentationDraws(
        horizontal_flip=horizontal < config.horizontal_flip,
        vertical_flip=vertical < config.vertical_flip,
        angle=(2 * turn - 1) * config.rotation,
        quarter_turns=_quarter_turns(uniform("turn"), config.quarter_turn) if config.quarter_turn > 0 else None,
        zoom=torch.exp((2 * uniform("zoom") - 1) * math.log1p(config.zoom)) if config.zoom > 0 else None,
        shift=(2 * uniform("shift", 2) - 1) * config.shift if config.shift > 0 else None,
    )


def _quarter_turns(drawn: Tensor, probability: float) -> Tensor:
    """1, 2 or 3 turns, each as likely, where a number in [0, 1) is below the probability; 0 elsewhere."""
    return torch.where(drawn < probability, (3 * drawn / probability).long().clamp_(max=2) + 1, 0)


def changes_geometry(config: AugmentationConfig) -> bool:
    """Whether train images can lie otherwise than evaluated ones."""
    strengths = (config.rotation, config.zoom, config.shift)
    return any(value > 0 for value in (config.horizontal_flip, config.vertical_flip, config.quarter_turn, *strengths))


def changes_anything(config: AugmentationConfig) -> bool:
    """Whether train images can look different from evaluated ones."""
    return changes_geometry(config) or changes_appearance(config)


def resample(images: Tensor, matrices: Tensor, *, border: str = "black") -> Tensor:
    """Each image seen through its transform: bilinear.

    Args:
        images: float, (n_images, channels, size, size); square, so that rotation does not shear.
        matrices: float32, (n_images, 2, 3), from output to input coordinates in [-1, 1].
        border: What is seen where nothing was: "black", or "mirror" for the image again.

    Returns:
        Like `images`.
    """
    size = images.shape[-1]
    center = (2 * torch.arange(size, dtype=matrices.dtype, device=matrices.device) + 1) / size - 1  # (size,)
    along_x, along_y, shift = (matrices[:, None, None, :, column] for column in range(3))  # (n_images, 1, 1, 2)
    columns = torch.addcmul(shift, along_y, center.view(1, size, 1, 1))  # (n_images, size, 1, 2)
    grid = torch.addcmul(columns, along_x, center.view(1, 1, size, 1))  # (n_images, size, size, 2); as affine_grid's
    padding = "reflection" if border == "mirror" else "zeros"
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def to_network_input(
    pixels: Tensor,
    *,
    mean: Tensor,
    std: Tensor,
    augmentation: Augmentation | None = None,
    memory_format: torch.memory_format = torch.channels_last,
) -> Tensor:
    """Pixels as a network takes them: augmented if asked, then normalized.

    Args:
        pixels: uint8, (n_images, size, size, 3), RGB.
        mean: float32, (3,), of values in [0, 1].
        std: float32, (3,).
        augmentation: Of these images; None leaves them as they are.
        memory_format: Of the result.

    Returns:
        float32, (n_images, 3, size, size).
    """
    images = pixels.permute(0, 3, 1, 2).float()  # (n_images, 3, size, size)
    if augmentation is not None and augmentation.matrices is not None:
        images = resample(images, augmentation.matrices, border=augmentation.border)
    if augmentation is not None and augmentation.appearance is not None:
        images = with_appearance(images, augmentation.appearance)
    scale = 1 / (255 * std)
    shift = -mean / std
    normalized = images.mul_(scale.view(3, 1, 1)).add_(shift.view(3, 1, 1))
    return normalized.contiguous(memory_format=memory_format)
