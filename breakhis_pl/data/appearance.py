"""Stain, color and sharpness of a whole batch, each image by draws of its own, on the device of the batch.

As in `data.augment`, the draws of an epoch belong to images: what happens to one is a function of (seed, epoch, image).
Images are float32, (n_images, 3, height, width), RGB, values 0 to 255, and stay within that range.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

from breakhis_pl.config import AugmentationConfig
from breakhis_pl.randomness import derived_seed

STAIN_VECTORS = ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105), (0.268, 0.570, 0.776))
"""Optical density in red, green and blue of hematoxylin, eosin and what is left (Ruifrok and Johnston 2001)."""

GRAY_WEIGHTS = (0.2989, 0.587, 0.114)
"""Of red, green and blue in what contrast and saturation call gray (ITU-R BT.601), as torchvision rounds them."""

CHROMA_WEIGHTS = ((0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
"""Of red, green and blue in I and Q of NTSC's YIQ, the plane in which the hue is turned."""

_WHITE = 255.0
_REACH = 3
"""Standard deviations that the kernel of a blur reaches to either side."""


@dataclass(frozen=True, slots=True)
class AppearanceDraws:
    """What happens to each image; None where a transform is off.

    Attributes:
        stain: float32, (n_images, 3, 4); from `stain_transforms`.
        color: float32, (n_images, 3, 6); from `color_transforms`.
        blur: float32, (n_images,); standard deviation in pixels.
        blur_radius: Of the kernel, in pixels.
    """

    stain: Tensor | None = None
    color: Tensor | None = None
    blur: Tensor | None = None
    blur_radius: int = 1

    def to(self, device: torch.device) -> "AppearanceDraws":
        """The same on a device."""
        return AppearanceDraws(
            **{name: None if value is None else value.to(device) for name, value in self._tensors().items()},
            blur_radius=self.blur_radius,
        )

    def of(self, rows: Tensor) -> "AppearanceDraws":
        """What happens to some images: int64, (n_rows,)."""
        return AppearanceDraws(
            **{name: None if value is None else value.index_select(0, rows) for name, value in self._tensors().items()},
            blur_radius=self.blur_radius,
        )

    def _tensors(self) -> dict[str, Tensor | None]:
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "blur_radius"}


def draw_appearance(n_images: int, config: AugmentationConfig, *, seed: int, epoch: int) -> AppearanceDraws:
    """The draws for all images of an epoch, on the CPU; each transform has a stream of its own.

    Args:
        n_images: Number of images.
        config: Strengths.
        seed: The run's seed.
        epoch: Counted from 0.
    """

    def uniform(purpose: str, *shape: int) -> Tensor:
        """In [-1, 1)."""
        generator = torch.Generator().manual_seed(derived_seed(seed, f"augmentation {purpose}", epoch))
        return 2 * torch.rand((n_images, *shape), generator=generator) - 1

    stain = color = None
    if config.stain > 0 or config.stain_shift > 0:
        drawn = uniform("stain", 2, 3)
        stain = stain_transforms(1 + config.stain * drawn[:, 0], config.stain_shift * drawn[:, 1])
    if config.brightness > 0 or config.contrast > 0 or config.saturation > 0 or config.hue > 0:
        drawn = uniform("color", 4) * torch.tensor([config.brightness, config.contrast, config.saturation, config.hue])
        color = color_transforms(1 + drawn[:, 0], 1 + drawn[:, 1], 1 + drawn[:, 2], drawn[:, 3])
    return AppearanceDraws(
        stain=stain,
        color=color,
        blur=uniform("blur").add(1).mul(config.blur / 2) if config.blur > 0 else None,
        blur_radius=max(1, math.ceil(_REACH * config.blur)),
    )


def changes_appearance(config: AugmentationConfig) -> bool:
    """Whether train images can have other stain, color or sharpness than evaluated ones."""
    of_color = (config.brightness, config.contrast, config.saturation, config.hue)
    return any(strength > 0 for strength in (config.stain, config.stain_shift, *of_color, config.blur))


def with_appearance(images: Tensor, draws: AppearanceDraws) -> Tensor:
    """Images after stain (the slide), blur (the lens) and color (the camera), in this order.

    Args:
        images: float32, (n_images, 3, height, width), 0 to 255.
        draws: Of these images.

    Returns:
        Like `images`.
    """
    if draws.stain is not None:
        images = with_stain(images, draws.stain)
    if draws.blur is not None:
        images = blurred(images, draws.blur, radius=draws.blur_radius)
    if draws.color is not None:
        images = with_color(images, draws.color)
    return images


def stain_transforms(factor: Tensor, shift: Tensor) -> Tensor:
    """What multiplies and shifts the amounts of stains, as `with_stain` takes it.

    The optical density log10(255 / value) of a pixel is a sum of stains.

    Args:
        factor: float32, (n_images, 3); of the amount of each stain of `STAIN_VECTORS`.
        shift: float32, (n_images, 3); added to it, in units of optical density.

    Returns:
        float32, (n_images, 3, 4); for logarithms of values, a matrix and beside it an offset.

    Source:
        Ruifrok and Johnston 2001, Anal. Quant. Cytol. Histol. 23(4); Tellez et al. 2018, doi:10.1109/TMI.2018.2820199.
    """
    vectors = functional.normalize(torch.tensor(STAIN_VECTORS), dim=1)  # (stain, channel)
    amounts = torch.linalg.inv(vectors)  # (channel, stain)
    mixing = (amounts * factor[:, None, :]) @ vectors  # (n_images, channel before, channel after)
    # log(255) goes into the offset, so that logarithms of values serve as densities
    offset = math.log(_WHITE) * (1 - mixing.sum(dim=1)) - math.log(10) * (shift @ vectors)  # (n_images, 3)
    return torch.cat([mixing.mT, offset[:, :, None]], dim=2)


def with_stain(images: Tensor, transforms: Tensor) -> Tensor:
    """Images with other amounts of their stains; values below 1 count as 1.

    Args:
        images: float32, (n_images, 3, height, width), 0 to 255.
        transforms: float32, (n_images, 3, 4), from `stain_transforms`.

    Returns:
        Like `images`.
    """
    logarithms = images.clamp(min=1).log_()
    return _mixed(logarithms, transforms[:, :, :3], transforms[:, :, 3:]).exp_().clamp_(max=_WHITE)


def color_transforms(brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """What changes brightness, then contrast, saturation and hue, as `with_color` takes it: all are linear in values.

    Args:
        brightness: float32, (n_images,); factor on values.
        contrast: float32, (n_images,); factor on the distance from the mean gray of the image.
        saturation: float32, (n_images,); factor on the distance from the gray of the pixel.
        hue: float32, (n_images,); rotation about the gray axis (in YIQ) in turns; gray stays gray.

    Returns:
        float32, (n_images, 3, 6); a matrix for values, and beside it one for the mean of the image.
    """
    gray = torch.tensor(GRAY_WEIGHTS)
    identity, to_gray = torch.eye(3), gray.expand(3, 3)  # each row gives the gray of a pixel
    brightness, contrast, saturation, turn = (
        each.view(-1, 1, 1) for each in (brightness, contrast, saturation, 2 * math.pi * hue)
    )
    saturating = saturation * identity + (1 - saturation) * to_gray
    axes = torch.tensor((GRAY_WEIGHTS, *CHROMA_WEIGHTS))
    in_plane, across = torch.zeros(3, 3), torch.zeros(3, 3)
    in_plane[1, 1] = in_plane[2, 2] = across[2, 1] = 1.0
    across[1, 2] = -1.0
    back = torch.linalg.inv(axes)
    turning = identity + back @ ((torch.cos(turn) - 1) * in_plane + torch.sin(turn) * across) @ axes
    mixing = turning @ saturating  # (n_images, 3, 3)
    of_mean = brightness * (1 - contrast) * (mixing @ to_gray)
    return torch.cat([brightness * contrast * mixing, of_mean], dim=2)


def with_color(images: Tensor, transforms: Tensor) -> Tensor:
    """Images with other colors; what leaves the range is cut off.

    Args:
        images: float32, (n_images, 3, height, width), 0 to 255.
        transforms: float32, (n_images, 3, 6), from `color_transforms`.

    Returns:
        Like `images`.
    """
    mean = images.mean(dim=(2, 3))[:, :, None]  # (n_images, 3, 1)
    return _mixed(images, transforms[:, :, :3], transforms[:, :, 3:] @ mean).clamp_(0, _WHITE)


def blurred(images: Tensor, blur: Tensor, *, radius: int) -> Tensor:
    """Images after a Gaussian blur each of its own; borders are mirrored.

    Args:
        images: float32, (n_images, channels, height, width).
        blur: float32, (n_images,); standard deviation in pixels, 0 leaves an image as it is.
        radius: Of the kernel, in pixels; less than a side.

    Returns:
        Like `images`.
    """
    n_images, n_channels, height, width = images.shape
    places = torch.arange(-radius, radius + 1, device=images.device)
    kernels = torch.exp(-0.5 * (places / blur.clamp(min=1e-3)[:, None]) ** 2)  # (n_images, 2 * radius + 1)
    kernels = (kernels / kernels.sum(dim=1, keepdim=True)).repeat_interleave(n_channels, dim=0)
    planes = images.reshape(1, n_images * n_channels, height, width)
    padded = functional.pad(planes, (radius,) * 4, mode="reflect")
    across = functional.conv2d(padded, kernels[:, None, None, :], groups=len(kernels))
    along = functional.conv2d(across, kernels[:, None, :, None], groups=len(kernels))
    return along.view(images.shape)


def _mixed(images: Tensor, mixing: Tensor, offset: Tensor) -> Tensor:
    """A matrix (n_images, 3, 3) times each pixel, and an offset (n_images, 3, 1) added; a new tensor."""
    pixels = images.reshape(len(images), 3, -1)  # (n_images, 3, height * width)
    return torch.baddbmm(offset, mixing, pixels).view(images.shape)
