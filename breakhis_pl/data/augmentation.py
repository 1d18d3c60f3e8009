"""Augmentation and normalization of a batch on its device.

Parameters belong to images, not to batches: they are sampled for all images of an epoch at once, as a function of
(seed, epoch, image). To add a transform, add its key to `AugmentationConfig` and an entry to `list_transforms`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import torch
from hydra.utils import instantiate
from torch import Tensor
from torch.nn import functional

from breakhis_pl.config import AugmentationConfig, Target
from breakhis_pl.errors import ConfigurationError
from breakhis_pl.randomness import derived_seed

STAIN_VECTORS = ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105), (0.268, 0.570, 0.776))
"""Optical density of hematoxylin, eosin and DAB in red, green and blue (Ruifrok and Johnston 2001)."""

GRAY_WEIGHTS = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in gray (ITU-R BT.601), rounded as in torchvision."""

CHROMA_WEIGHTS = ((0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
"""Weights of red, green and blue in I and Q of the color space YIQ (NTSC)."""

Stage: TypeAlias = Literal["geometry", "stain", "blur", "color", "own"]
Uniform: TypeAlias = Callable[..., Tensor]
"""uniform(stream, *shape): random numbers in [0, 1); equal streams give equal numbers."""


@dataclass(frozen=True, slots=True)
class Transform:
    """A random transform.

    Attributes:
        keys: Keys of `AugmentationConfig`; the transform is off if all of them are 0.
        stage: Stage of `AugmentationParameters.apply` that it is part of.
        sample: Sample the values of n images, (n, ...), such as angles.
        parameters: Convert the values to the tensor that the stage takes, (n, ...), such as rotation matrices.
    """

    keys: tuple[str, ...]
    stage: Stage
    sample: Callable[[int, Uniform], Tensor]
    parameters: Callable[[Tensor], Tensor]


def list_transforms(config: AugmentationConfig) -> tuple[Transform, ...]:
    """List all transforms in the order in which they change an image."""
    c = config
    flip_probabilities = torch.tensor([c.horizontal_flip, c.vertical_flip])
    stain_strengths = torch.tensor([[c.stain], [c.stain_shift]])
    color_strengths = torch.tensor([c.brightness, c.contrast, c.saturation, c.hue])
    return (
        Transform(  # (n, 2): -1 to flip, else 1, along x and y
            keys=("horizontal_flip", "vertical_flip"),
            stage="geometry",
            sample=lambda n, uniform: 1 - 2 * uniform("augmentation", 3, n)[:2].T.lt(flip_probabilities).float(),
            parameters=scale_matrices,
        ),
        Transform(  # degrees, counterclockwise
            keys=("rotation",),
            stage="geometry",
            sample=lambda n, uniform: (2 * uniform("augmentation", 3, n)[2] - 1) * c.rotation,
            parameters=rotation_matrices,
        ),
        Transform(  # number of quarter turns, 0 to 3, counterclockwise
            keys=("quarter_turn",),
            stage="geometry",
            sample=lambda n, uniform: sample_quarter_turns(uniform("augmentation turn", n), c.quarter_turn),
            parameters=lambda turns: rotation_matrices(90.0 * turns).round(),  # exactly 0, 1 and -1
        ),
        Transform(  # factor
            keys=("zoom",),
            stage="geometry",
            sample=lambda n, uniform: torch.exp((2 * uniform("augmentation zoom", n) - 1) * math.log1p(c.zoom)),
            parameters=lambda zoom: scale_matrices(1 / zoom[:, None].expand(-1, 2)),
        ),
        Transform(  # to the right and down, as a fraction of the side
            keys=("shift",),
            stage="geometry",
            sample=lambda n, uniform: (2 * uniform("augmentation shift", n, 2) - 1) * c.shift,
            parameters=lambda shift: translation_matrices(-2 * shift),  # a side is 2 long
        ),
        Transform(  # (n, 2, 3): factors, then shifts, of the three stains
            keys=("stain", "stain_shift"),
            stage="stain",
            sample=lambda n, uniform: (
                torch.tensor([[1.0], [0.0]]) + stain_strengths * (2 * uniform("augmentation stain", n, 2, 3) - 1)
            ),
            parameters=stain_matrices,
        ),
        Transform(  # standard deviation in pixels
            keys=("blur",),
            stage="blur",
            sample=lambda n, uniform: c.blur * uniform("augmentation blur", n),
            parameters=lambda sigma: gaussian_kernels(sigma, radius=max(1, math.ceil(3 * c.blur))),
        ),
        Transform(  # (n, 4): factors of brightness, contrast and saturation; rotation of the hue in turns
            keys=("brightness", "contrast", "saturation", "hue"),
            stage="color",
            sample=lambda n, uniform: (
                torch.tensor([1.0, 1.0, 1.0, 0.0]) + color_strengths * (2 * uniform("augmentation color", n, 4) - 1)
            ),
            parameters=color_matrices,
        ),
    )


class OwnTransform(Protocol):
    """A transform of the user's own.

    Attributes:
        n_random: How many random numbers it needs for an image.
    """

    n_random: int

    def __call__(self, images: Tensor, random: Tensor) -> Tensor:
        """Transform images, float32 (n, 3, size, size) in [0, 255], by uniform random numbers, (n, n_random)."""


def make_own(config: Target) -> OwnTransform:
    """Instantiate the transform of `augmentation.own`.

    Raises:
        ConfigurationError: If it does not exist, does not take its arguments, or has no `n_random`.
    """
    try:
        found: OwnTransform = instantiate({**config.model_dump(), "_convert_": "all"})
        if found.n_random < 0:
            raise ValueError("n_random is below 0")
    except Exception as error:  # whatever the module raises
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ConfigurationError(f"augmentation.own={config.target}: cannot be used ({reason})") from error
    return found


class Augmentation:
    """Random transforms of train images.

    Args:
        config: Keys of `augmentation`.
        seed: Seed of the run.
    """

    def __init__(self, config: AugmentationConfig, *, seed: int) -> None:
        self.is_identity = config.is_identity
        self._own = None if config.own is None else make_own(config.own)
        self._border = config.border
        self._seed = seed
        self._transforms = [
            transform for transform in list_transforms(config) if any(getattr(config, key) for key in transform.keys)
        ]

    def sample(self, n_images: int, epoch: int, device: torch.device | str) -> "AugmentationParameters":
        """Sample the parameters of all images of an epoch on the CPU and move them to a device.

        Shapes are the same in every epoch. Transforms have random numbers of their own: switching one on does not
        change the others.

        Args:
            n_images: Number of images; parameters depend on it.
            epoch: Epoch, from 0.
            device: Device of the batches.
        """

        def uniform(stream: str, *shape: int) -> Tensor:
            generator = torch.Generator().manual_seed(derived_seed(self._seed, stream, epoch))
            return torch.rand(shape, generator=generator)

        tensors: dict[Stage, Tensor] = {}
        for transform in self._transforms:
            own = transform.parameters(transform.sample(n_images, uniform))
            # matrices map output to input coordinates: the first transform stands on the left
            tensors[transform.stage] = tensors[transform.stage] @ own if transform.stage in tensors else own
        if self._own is not None:
            tensors["own"] = uniform("augmentation own", n_images, self._own.n_random)
        on_device = {stage: tensor.to(device) for stage, tensor in tensors.items()}
        return AugmentationParameters(on_device, self._border, self._own)


@dataclass(frozen=True, slots=True)
class AugmentationParameters:
    """Sampled parameters of images.

    Attributes:
        tensors: float32, (n_images, ...), by stage; stages without a transform are absent.
        border: Fill beyond the edge of an image.
        own: Transform of the user's own, which comes last.
    """

    tensors: Mapping[Stage, Tensor]
    border: Literal["black", "mirror"]
    own: "OwnTransform | None" = None

    def select(self, indices: Tensor) -> "AugmentationParameters":
        """Select the parameters of some images: int64, (n_indices,)."""
        selected = {stage: tensor.index_select(0, indices) for stage, tensor in self.tensors.items()}
        return AugmentationParameters(selected, self.border, self.own)

    def fill(self, other: "AugmentationParameters") -> "AugmentationParameters":
        """Overwrite the tensors by those of another epoch; return these parameters."""
        for stage, tensor in self.tensors.items():
            tensor.copy_(other.tensors[stage])
        return self

    def apply(self, images: Tensor) -> Tensor:
        """Transform images: orientation and position, then stain (slide), blur (lens) and color (camera).

        Runs without host synchronization, so that a CUDA graph can capture it.

        Args:
            images: float32, (n_images, 3, size, size), RGB in [0, 255].

        Returns:
            Same shape and range.
        """
        if "geometry" in self.tensors:
            images = resample(images, self.tensors["geometry"], border=self.border)
        if "stain" in self.tensors:
            images = change_stain(images, self.tensors["stain"])
        if "blur" in self.tensors:
            images = blur(images, self.tensors["blur"])
        if "color" in self.tensors:
            images = change_color(images, self.tensors["color"])
        if self.own is not None:
            images = self.own(images, self.tensors["own"])
        return images


def normalize(
    pixels: Tensor,
    *,
    mean: Tensor,
    std: Tensor,
    parameters: AugmentationParameters | None,
    memory_format: torch.memory_format = torch.channels_last,
) -> Tensor:
    """Convert pixels to the input of a network: augment if parameters are given, then normalize.

    Args:
        pixels: uint8, (n_images, size, size, 3), RGB.
        mean: float32, (3,), of values in [0, 1].
        std: float32, (3,), of values in [0, 1].
        parameters: Augmentation of these images; None for evaluation.
        memory_format: Memory format of the result.

    Returns:
        float32, (n_images, 3, size, size).
    """
    images = pixels.permute(0, 3, 1, 2).float()  # (n_images, 3, size, size)
    if parameters is not None:
        images = parameters.apply(images)
    scale, shift = 1 / (255 * std), -mean / std
    return images.mul_(scale.view(3, 1, 1)).add_(shift.view(3, 1, 1)).contiguous(memory_format=memory_format)


def sample_quarter_turns(uniform: Tensor, probability: float) -> Tensor:
    """Convert uniform numbers to 1, 2 or 3 with equal probabilities that sum to `probability`, 0 otherwise."""
    return torch.where(uniform < probability, (3 * uniform / probability).long().clamp(max=2) + 1, 0)


def scale_matrices(factors: Tensor) -> Tensor:
    """Build matrices, (n, 3, 3), that multiply x and y of homogeneous coordinates by factors, (n, 2)."""
    return torch.diag_embed(functional.pad(factors, (0, 1), value=1.0))


def rotation_matrices(degrees: Tensor) -> Tensor:
    """Build matrices, (n, 3, 3), that rotate coordinates clockwise, hence images counterclockwise, by angles, (n,)."""
    cosine, sine = torch.cos(degrees * (math.pi / 180)), torch.sin(degrees * (math.pi / 180))
    matrices = torch.eye(3).repeat(len(degrees), 1, 1)
    matrices[:, 0, 0], matrices[:, 0, 1] = cosine, -sine
    matrices[:, 1, 0], matrices[:, 1, 1] = sine, cosine
    return matrices


def translation_matrices(shift: Tensor) -> Tensor:
    """Build matrices, (n, 3, 3), that add x and y, (n, 2), to homogeneous coordinates."""
    matrices = torch.eye(3).repeat(len(shift), 1, 1)
    matrices[:, :2, 2] = shift
    return matrices


def resample(images: Tensor, matrices: Tensor, *, border: Literal["black", "mirror"]) -> Tensor:
    """Resample images by bilinear interpolation.

    Args:
        images: float32, (n_images, channels, size, size).
        matrices: float32, (n_images, 3, 3), from output to input coordinates, which are homogeneous and in [-1, 1].
        border: Fill beyond the edge of an image.

    Returns:
        Same shape.
    """
    size = images.shape[-1]
    centers = (2 * torch.arange(size, dtype=matrices.dtype, device=matrices.device) + 1) / size - 1  # (size,)
    along_x, along_y, shift = (matrices[:, None, None, :2, column] for column in range(3))  # (n_images, 1, 1, 2)
    # as affine_grid, without its matrix product, which may be rounded to TF32 on a GPU
    columns = torch.addcmul(shift, along_y, centers.view(1, size, 1, 1))  # (n_images, size, 1, 2)
    grid = torch.addcmul(columns, along_x, centers.view(1, 1, size, 1))  # (n_images, size, size, 2)
    padding = "reflection" if border == "mirror" else "zeros"
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def stain_matrices(values: Tensor) -> Tensor:
    """Build matrices for `change_stain`.

    The optical density log10(255 / level) of a pixel is a sum of stains. The amount of each stain is multiplied by a
    factor, then shifted.

    Args:
        values: float32, (n_images, 2, 3); factors, then shifts in optical density, of `STAIN_VECTORS`.

    Returns:
        float32, (n_images, 3, 4); for logarithms of levels, a matrix and an offset.

    Source:
        Ruifrok and Johnston 2001, Anal. Quant. Cytol. Histol. 23(4); Tellez et al. 2018, doi:10.1109/TMI.2018.2820199.
    """
    factor, shift = values.unbind(dim=1)
    vectors = functional.normalize(torch.tensor(STAIN_VECTORS), dim=1)  # (stain, channel)
    mixing = (torch.linalg.inv(vectors) * factor[:, None, :]) @ vectors  # (n_images, channel in, channel out)
    # log(255) is part of the offset, so that logarithms of levels serve as densities
    offset = math.log(255) * (1 - mixing.sum(dim=1)) - math.log(10) * (shift @ vectors)  # (n_images, 3)
    return torch.cat([mixing.mT, offset[:, :, None]], dim=2)


def change_stain(images: Tensor, matrices: Tensor) -> Tensor:
    """Change the amounts of stains by `stain_matrices`; levels below 1 count as 1."""
    logarithms = images.clamp(min=1).log_()
    return _mix_channels(logarithms, matrices[:, :, :3], matrices[:, :, 3:]).exp_().clamp_(max=255)


def gaussian_kernels(sigma: Tensor, *, radius: int) -> Tensor:
    """Build kernels, (n, 2 * radius + 1), of standard deviations, (n,), in pixels; 0 is the identity."""
    places = torch.arange(-radius, radius + 1)
    kernels = torch.exp(-0.5 * (places / sigma.clamp(min=1e-3)[:, None]) ** 2)
    return kernels / kernels.sum(dim=1, keepdim=True)


def blur(images: Tensor, kernels: Tensor) -> Tensor:
    """Convolve each image with its kernel, (n_images, 2 * radius + 1), along both axes; borders are mirrored."""
    n_images, n_channels, height, width = images.shape
    radius = kernels.shape[1] // 2
    kernels = kernels.repeat_interleave(n_channels, dim=0)  # (n_images * n_channels, 2 * radius + 1)
    planes = images.reshape(1, n_images * n_channels, height, width)
    planes = functional.pad(planes, (radius,) * 4, mode="reflect")
    planes = functional.conv2d(planes, kernels[:, None, None, :], groups=len(kernels))
    planes = functional.conv2d(planes, kernels[:, None, :, None], groups=len(kernels))
    return planes.view(images.shape)


def color_matrices(values: Tensor) -> Tensor:
    """Build matrices for `change_color`: brightness, then contrast, saturation and hue, which are linear in levels.

    Args:
        values: float32, (n_images, 4); factor of levels, of the distance from the mean gray of the image and of the
            distance from the gray of the pixel, then rotation about the gray axis of YIQ in turns.

    Returns:
        float32, (n_images, 3, 6); a matrix for levels and one for the mean of the image.
    """
    brightness, contrast, saturation, _ = values[:, :, None, None].unbind(dim=1)  # (n_images, 1, 1)
    gray = torch.tensor(GRAY_WEIGHTS).expand(3, 3)  # each row gives the gray of a pixel
    saturate = saturation * torch.eye(3) + (1 - saturation) * gray
    yiq = torch.tensor((GRAY_WEIGHTS, *CHROMA_WEIGHTS))
    turn = rotation_matrices(360 * values[:, 3]).roll((1, 1), dims=(1, 2))  # about the first axis, Y
    mixing = torch.linalg.inv(yiq) @ turn @ yiq @ saturate  # (n_images, 3, 3)
    return torch.cat([brightness * contrast * mixing, brightness * (1 - contrast) * (mixing @ gray)], dim=2)


def change_color(images: Tensor, matrices: Tensor) -> Tensor:
    """Change colors by `color_matrices`; levels are clipped to [0, 255]."""
    mean = images.mean(dim=(2, 3))[:, :, None]  # (n_images, 3, 1)
    return _mix_channels(images, matrices[:, :, :3], matrices[:, :, 3:] @ mean).clamp_(0, 255)


def _mix_channels(images: Tensor, matrices: Tensor, offset: Tensor) -> Tensor:
    """Multiply each pixel by the matrix, (n_images, 3, 3), of its image and add an offset, (n_images, 3, 1)."""
    return torch.baddbmm(offset, matrices, images.reshape(len(images), 3, -1)).view(images.shape)
