"""Batch augmentation against per-image loops with torchvision, numpy and colorsys."""

import cmath
import colorsys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from breakhis_pl.config import AugmentationConfig
from breakhis_pl.data.augmentation import STAIN_VECTORS, Augmentation, list_transforms, normalize
from breakhis_pl.randomness import derived_seed

MEAN, STD = torch.tensor([0.8, 0.6, 0.7]), torch.tensor([0.1, 0.15, 0.12])
Reference = Callable[[Tensor, Tensor], Tensor]
STRENGTHS = [name for name in AugmentationConfig.model_fields if name not in ("border", "own")]


def config(**values: Any) -> AugmentationConfig:
    return AugmentationConfig(**{**dict.fromkeys(STRENGTHS, 0.0), "border": "black", "own": None, **values})


GEOMETRY = config(horizontal_flip=0.5, vertical_flip=0.5, rotation=45, quarter_turn=0.75, zoom=0.3, shift=0.2)
EVERYTHING = config(**dict.fromkeys(STRENGTHS, 0.2))


def smooth_images(n_images: int, size: int = 48) -> Tensor:
    """uint8, (n_images, size, size, 3), in [60, 180], so that mild changes of color clip nothing."""
    coarse = torch.rand((n_images, 3, 9, 9), generator=torch.Generator().manual_seed(0))
    smooth = 60 + 120 * torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    return smooth.round().byte().permute(0, 2, 3, 1).contiguous()


def sampled_values(config: AugmentationConfig, n_images: int, *, seed: int = 0, epoch: int = 0) -> dict[str, Tensor]:
    """Values of all transforms by their first key."""

    def uniform(stream: str, *shape: int) -> Tensor:
        return torch.rand(shape, generator=torch.Generator().manual_seed(derived_seed(seed, stream, epoch)))

    return {transform.keys[0]: transform.sample(n_images, uniform) for transform in list_transforms(config)}


def augment(pixels: Tensor, config: AugmentationConfig, *, seed: int = 0, epoch: int = 0) -> Tensor:
    parameters = Augmentation(config, seed=seed).sample(len(pixels), epoch, "cpu")
    return parameters.apply(pixels.permute(0, 3, 1, 2).float())


@pytest.mark.parametrize("size", [33, 48])
def test_all_geometry_in_one_resampling_equals_torchvisions_affine_transform(size: int) -> None:
    pixels, values = smooth_images(16, size), sampled_values(GEOMETRY, 16)
    augmented = augment(pixels, GEOMETRY)
    for index in range(16):
        image = pixels[index].permute(2, 0, 1).float()
        flip_x, flip_y = values["horizontal_flip"][index] < 0
        image = image.flip(2) if flip_x else image
        image = image.flip(1) if flip_y else image
        expected = functional.affine(
            image,
            angle=-float(values["rotation"][index]) - 90 * int(values["quarter_turn"][index]),  # clockwise there
            translate=[float(size * shift) for shift in values["shift"][index]],
            scale=float(values["zoom"][index]),
            shear=[0.0, 0.0],
            interpolation=InterpolationMode.BILINEAR,
        )
        assert torch.allclose(augmented[index], expected, atol=0.1), index


@pytest.mark.parametrize(("border", "mode"), [("black", "constant"), ("mirror", "symmetric")])
def test_the_border_is_filled_as_numpy_pads(border: str, mode: Any) -> None:
    shifting = config(shift=0.5, border=border)
    pixels, shifts = smooth_images(8, 32), 32 * sampled_values(shifting, 8)["shift"]
    for image, before, shift in zip(augment(pixels, shifting), pixels, shifts.tolist(), strict=True):
        padded = np.pad(before.numpy().astype(np.float32), ((33, 33), (33, 33), (0, 0)), mode)
        rows, columns = (np.arange(32) - by + 33 for by in (shift[1], shift[0]))
        for values, axis in ((rows, 0), (columns, 1)):
            low, part = np.floor(values).astype(int), (values % 1).reshape([-1, 1, 1] if axis == 0 else [1, -1, 1])
            padded = padded.take(low, axis) * (1 - part) + padded.take(low + 1, axis) * part
        assert np.allclose(image.permute(1, 2, 0), padded, atol=0.02)


def stain_reference(image: Tensor, values: Tensor) -> Tensor:
    """Ruifrok and Johnston's color deconvolution, with amounts changed as by Tellez et al. 2018."""
    vectors = np.array(STAIN_VECTORS) / np.linalg.norm(STAIN_VECTORS, axis=1, keepdims=True)
    densities = np.log10(255 / image.permute(1, 2, 0).double().numpy())
    amounts = np.linalg.solve(vectors.T, densities.reshape(-1, 3).T).T
    changed = 255 * 10 ** -((amounts * values[0].numpy() + values[1].numpy()) @ vectors)
    return torch.from_numpy(changed.clip(max=255)).float().T.reshape(image.shape)


def color_reference(image: Tensor, values: Tensor) -> Tensor:
    brightness, contrast, saturation, turns = values.tolist()
    image = functional.adjust_brightness(image / 255, brightness)
    image = functional.adjust_saturation(functional.adjust_contrast(image, contrast), saturation)
    if turns == 0:
        return 255 * image
    for pixel in image.flatten(1).T:
        luma, in_phase, quadrature = colorsys.rgb_to_yiq(*pixel.tolist())
        chroma = complex(in_phase, quadrature) * cmath.rect(1, 2 * cmath.pi * turns)
        pixel[:] = torch.tensor(colorsys.yiq_to_rgb(luma, chroma.real, chroma.imag))
    return 255 * image


@pytest.mark.parametrize(
    ("strengths", "key", "reference", "tolerance"),
    [
        ({"stain": 0.2, "stain_shift": 0.05}, "stain", stain_reference, 0.02),
        (
            {"blur": 1.5},
            "blur",
            lambda image, sigma: functional.gaussian_blur(image, [11, 11], [float(sigma)] * 2),
            0.01,
        ),
        ({"brightness": 0.3}, "brightness", color_reference, 0.05),
        ({"contrast": 0.3}, "brightness", color_reference, 0.05),
        ({"saturation": 0.3}, "brightness", color_reference, 0.05),
        ({"brightness": 0.1, "contrast": 0.1, "saturation": 0.1}, "brightness", color_reference, 0.05),
        ({"hue": 0.1}, "brightness", color_reference, 1.0),  # colorsys rounds its weights to two digits
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_colors_and_blur_equal_a_reference(strengths: Any, key: str, reference: Reference, tolerance: float) -> None:
    pixels, values = smooth_images(6, 33), sampled_values(config(**strengths), 6)[key]
    for image, before, own in zip(augment(pixels, config(**strengths)), pixels, values, strict=True):
        expected = reference(before.permute(2, 0, 1).float(), own)
        assert torch.allclose(image, expected, atol=tolerance)


@pytest.mark.parametrize(
    ("key", "limits"),
    [
        ("rotation", [(-45, 45)]),
        ("shift", [(-0.2, 0.2)] * 2),
        ("stain", [(0.8, 1.2)] * 3 + [(-0.2, 0.2)] * 3),
        ("blur", [(0, 0.2)]),
        ("brightness", [(0.8, 1.2)] * 3 + [(-0.2, 0.2)]),
    ],
)
def test_values_are_uniform_between_their_limits(key: str, limits: list[tuple[float, float]]) -> None:
    values = sampled_values(EVERYTHING.model_copy(update={"rotation": 45.0}), 5_000)[key].reshape(5_000, -1)
    for column, (low, high) in zip(values.numpy().T, limits, strict=True):
        assert stats.kstest(column, stats.uniform(low, high - low).cdf).pvalue > 0.01


def test_zoom_is_uniform_in_its_logarithm_and_flips_and_turns_have_their_probabilities() -> None:
    values = sampled_values(config(horizontal_flip=0.5, vertical_flip=0.2, quarter_turn=0.6, zoom=0.25), 8_000)
    assert stats.kstest(values["zoom"].log().numpy() / np.log(1.25), stats.uniform(-1, 2).cdf).pvalue > 0.01
    for column, probability in enumerate((0.5, 0.2)):
        n_flips = int((values["horizontal_flip"][:, column] < 0).sum())
        assert stats.binomtest(n_flips, 8_000, probability).pvalue > 0.01
    counts = torch.bincount(values["quarter_turn"], minlength=4).tolist()
    assert stats.chisquare(counts, [3200, 1600, 1600, 1600]).pvalue > 0.01


def test_parameters_are_a_function_of_seed_and_epoch() -> None:
    pixels = smooth_images(4)
    first = augment(pixels, EVERYTHING, seed=1, epoch=2)
    torch.rand(7)
    assert torch.equal(augment(pixels, EVERYTHING, seed=1, epoch=2), first)
    assert not torch.allclose(augment(pixels, EVERYTHING, seed=1, epoch=3), first, atol=1)
    assert not torch.allclose(augment(pixels, EVERYTHING, seed=2, epoch=2), first, atol=1)


def test_an_image_is_augmented_alike_in_every_batch() -> None:
    pixels, parameters = smooth_images(6), Augmentation(EVERYTHING, seed=0).sample(6, 0, "cpu")
    together = normalize(pixels, mean=MEAN, std=STD, parameters=parameters)
    for batch in ([3], [5, 0], [4, 3, 2, 1]):
        selected = parameters.select(torch.tensor(batch))
        alone = normalize(pixels[batch], mean=MEAN, std=STD, parameters=selected)
        assert torch.allclose(alone, together[batch], atol=1e-4)


@pytest.mark.parametrize("key", STRENGTHS)
def test_every_key_alone_changes_the_images(key: str) -> None:
    pixels = smooth_images(8)
    changed = augment(pixels, config(**{key: 0.5}))
    assert not torch.allclose(changed, pixels.permute(0, 3, 1, 2).float(), atol=0.1)


@pytest.mark.parametrize("transform", list_transforms(EVERYTHING), ids=lambda transform: transform.keys[0])
def test_a_transform_keeps_its_parameters_when_others_are_switched_on(transform: Any) -> None:
    alone = config(**dict.fromkeys(transform.keys, 0.2))
    key = transform.keys[0]
    assert torch.equal(sampled_values(alone, 9)[key], sampled_values(EVERYTHING, 9)[key])
    if transform.stage != "geometry":  # whose matrices are multiplied
        tensors = [Augmentation(each, seed=0).sample(9, 0, "cpu").tensors for each in (alone, EVERYTHING)]
        assert list(tensors[0]) == [transform.stage]
        assert torch.equal(tensors[0][transform.stage], tensors[1][transform.stage])


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_without_parameters_pixels_are_normalized_as_by_torchvision(memory_format: torch.memory_format) -> None:
    pixels = smooth_images(4)
    before = pixels.clone()
    expected = v2.Normalize(MEAN.tolist(), STD.tolist())(pixels.permute(0, 3, 1, 2).float() / 255)
    nothing = Augmentation(config(), seed=0)
    assert nothing.is_identity
    for parameters in (None, nothing.sample(4, 0, "cpu")):
        images = normalize(pixels, mean=MEAN, std=STD, parameters=parameters, memory_format=memory_format)
        assert torch.allclose(images, expected, atol=1e-5)
        assert images.is_contiguous(memory_format=memory_format)
    assert torch.equal(pixels, before)


def test_black_corners_are_black_before_normalization() -> None:
    pixels = torch.full((4, 48, 48, 3), 255, dtype=torch.uint8)
    parameters = Augmentation(config(shift=0.5), seed=0).sample(4, 0, "cpu")
    images = normalize(pixels, mean=MEAN, std=STD, parameters=parameters)
    assert torch.allclose(images.amin(dim=(0, 2, 3)), -MEAN / STD, atol=1e-4)


def test_levels_stay_in_range_under_the_strongest_changes() -> None:
    strongest = config(stain=0.9, stain_shift=1, brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5, blur=5)
    noise = 255 * torch.randint(0, 2, (16, 32, 32, 3), generator=torch.Generator().manual_seed(0)).byte()
    changed = augment(noise, strongest)
    assert changed.isfinite().all()
    assert changed.min() >= 0
    assert changed.max() <= 255


def test_shapes_depend_on_no_value_so_that_a_cuda_graph_can_be_captured() -> None:
    # the meta device has no values: .item(), boolean indices and constants made on the CPU raise an error there
    parameters = Augmentation(EVERYTHING, seed=0).sample(8, 0, "meta").select(torch.arange(4, device="meta"))
    pixels = smooth_images(4).to("meta")
    images = normalize(pixels, mean=MEAN.to("meta"), std=STD.to("meta"), parameters=parameters)
    assert images.shape == (4, 3, 48, 48)


class Dim:
    """A transform of one's own."""

    n_random = 1

    def __call__(self, images: Tensor, random: Tensor) -> Tensor:
        return images * random.view(-1, 1, 1, 1)


def test_a_transform_of_ones_own_gets_the_random_numbers_of_its_images() -> None:
    pixels = smooth_images(4)
    found = augment(pixels, config(own={"_target_": "tests.unit.data.test_augmentation.Dim"}), seed=1, epoch=2)
    generator = torch.Generator().manual_seed(derived_seed(1, "augmentation own", 2))
    expected = pixels.permute(0, 3, 1, 2).float() * torch.rand((4, 1), generator=generator).view(-1, 1, 1, 1)
    assert torch.equal(found, expected)
