import cmath
import colorsys

import pytest
import torch
from scipy import stats
from torchvision.transforms.v2 import functional

from breakhis_pl.config import AugmentationConfig
from breakhis_pl.data.appearance import (
    STAIN_VECTORS,
    AppearanceDraws,
    blurred,
    changes_appearance,
    color_transforms,
    draw_appearance,
    stain_transforms,
    with_appearance,
    with_color,
    with_stain,
)

ALL = AugmentationConfig(stain=0.2, stain_shift=0.05, brightness=0.1, contrast=0.2, saturation=0.3, hue=0.05, blur=1.5)
ONE, ZERO = torch.ones(1), torch.zeros(1)


def tissue(n_images: int = 4, size: int = 33) -> torch.Tensor:
    """Values far from both ends of the range: float32 (n_images, 3, size, size)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((n_images, 3, 9, 9), generator=generator)
    return 60 + 120 * torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")


@pytest.mark.parametrize(
    ("name", "by_torchvision"),
    [
        ("brightness", functional.adjust_brightness),
        ("contrast", functional.adjust_contrast),
        ("saturation", functional.adjust_saturation),
    ],
)
def test_colors_are_torchvisions(name: str, by_torchvision: object) -> None:
    images = tissue()
    factors = torch.tensor([0.7, 0.9, 1.0, 1.3])
    neutral = {"brightness": torch.ones(4), "contrast": torch.ones(4), "saturation": torch.ones(4)}
    ours = with_color(images, color_transforms(**{**neutral, name: factors}, hue=torch.zeros(4)))
    for image, factor, expected in zip(ours, factors.tolist(), images, strict=True):
        theirs = 255 * by_torchvision(expected / 255, factor)  # type: ignore[operator]
        assert torch.allclose(image, theirs, atol=0.05)
        assert torch.allclose(image, expected, atol=0.05) == (factor == 1.0)


def test_brightness_contrast_and_saturation_follow_each_other_as_in_torchvision() -> None:
    images = tissue()
    ours = with_color(images, color_transforms(*(torch.full((4,), factor) for factor in (1.1, 0.8, 1.2, 0.0))))
    theirs = functional.adjust_brightness(images / 255, 1.1)
    theirs = functional.adjust_saturation(functional.adjust_contrast(theirs, 0.8), 1.2)
    assert torch.allclose(ours, 255 * theirs, atol=0.1)


@pytest.mark.parametrize("turns", [-0.1, 0.02, 0.25])
def test_the_hue_turns_in_the_plane_of_yiq(turns: float) -> None:
    pixel = (140.0, 110.0, 130.0)
    ours = with_color(torch.tensor(pixel).view(1, 3, 1, 1), color_transforms(ONE, ONE, ONE, turns * ONE))
    luma, in_phase, quadrature = colorsys.rgb_to_yiq(*(value / 255 for value in pixel))
    turned = complex(in_phase, quadrature) * cmath.rect(1, 2 * cmath.pi * turns)
    theirs = colorsys.yiq_to_rgb(luma, turned.real, turned.imag)
    assert ours.flatten().tolist() == pytest.approx([255 * value for value in theirs], abs=1.0)


def test_gray_stays_gray_whatever_the_hue_and_saturation() -> None:
    images = torch.full((1, 3, 4, 4), 120.0)
    changed = with_color(images, color_transforms(ONE, ONE, 1.5 * ONE, 0.2 * ONE))
    assert torch.allclose(changed, images, atol=0.5)


def test_stains_are_multiplied_and_shifted_in_optical_density() -> None:
    vectors = torch.nn.functional.normalize(torch.tensor(STAIN_VECTORS), dim=1)
    amounts = torch.tensor([0.3, 0.2, 0.05])  # of hematoxylin, eosin and what is left
    factor, shift = torch.tensor([1.2, 0.8, 1.0]), torch.tensor([0.02, -0.03, 0.01])
    pixel = 255 * 10 ** -(amounts @ vectors)
    expected = 255 * 10 ** -((amounts * factor + shift) @ vectors)
    changed = with_stain(pixel.view(1, 3, 1, 1), stain_transforms(factor[None], shift[None]))
    assert torch.allclose(changed.flatten(), expected, atol=0.01)


def test_more_hematoxylin_darkens_red_more_than_more_eosin_does() -> None:
    images = tissue(1)
    more_of = [
        with_stain(images, stain_transforms(1 + 0.5 * torch.eye(3)[[stain]], torch.zeros(1, 3)))[0, 0].mean()
        for stain in (0, 1)
    ]
    assert more_of[0] < more_of[1]


@pytest.mark.parametrize("radius", [2, 5])
def test_a_blur_is_torchvisions(radius: int) -> None:
    images = tissue()
    sigmas = torch.tensor([0.4, 0.8, 1.3, 0.0])
    ours = blurred(images, sigmas, radius=radius)
    for image, sigma, before in zip(ours, sigmas.tolist(), images, strict=True):
        size = [2 * radius + 1] * 2
        expected = functional.gaussian_blur(before, size, [sigma, sigma]) if sigma > 0 else before
        assert torch.allclose(image, expected, atol=1e-3)


def test_draws_are_uniform_within_their_strengths() -> None:
    blur = draw_appearance(5_000, ALL, seed=0, epoch=0).blur
    assert blur is not None
    assert stats.kstest(blur.numpy(), stats.uniform(0, 1.5).cdf).pvalue > 0.01
    color = draw_appearance(5_000, AugmentationConfig(brightness=0.1), seed=0, epoch=0).color
    assert color is not None
    assert stats.kstest(color[:, 0, 0].numpy(), stats.uniform(0.9, 0.2).cdf).pvalue > 0.01
    stain = draw_appearance(5_000, AugmentationConfig(stain_shift=0.05), seed=0, epoch=0).stain
    assert stain is not None
    white = with_stain(torch.full((5_000, 3, 1, 1), 255.0), stain)
    assert white.max() == 255
    assert white.min() > 255 * 10 ** (-0.05 * 3)


def test_draws_follow_seed_epoch_and_image_and_one_transform_does_not_move_another() -> None:
    def drawn(config: AugmentationConfig = ALL, *, n_images: int = 9, seed: int = 1, epoch: int = 2) -> torch.Tensor:
        blur = draw_appearance(n_images, config, seed=seed, epoch=epoch).blur
        assert blur is not None
        return blur

    assert torch.equal(drawn(), drawn())
    assert torch.equal(drawn(AugmentationConfig(blur=1.5)), drawn())
    assert not torch.equal(drawn(epoch=3), drawn())
    assert not torch.equal(drawn(seed=2), drawn())


def test_what_happens_to_an_image_does_not_depend_on_its_batch() -> None:
    images, draws = tissue(), draw_appearance(4, ALL, seed=0, epoch=0)
    together = with_appearance(images, draws)
    for row in range(4):
        alone = with_appearance(images[row : row + 1], draws.of(torch.tensor([row])))
        assert torch.allclose(alone[0], together[row], atol=1e-3)


def test_values_stay_in_range_at_both_ends() -> None:
    strongest = AugmentationConfig(
        stain=0.9, stain_shift=1, brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5, blur=5
    )
    images = 255 * (torch.rand((16, 3, 32, 32), generator=torch.Generator().manual_seed(0)) > 0.5).float()
    changed = with_appearance(images, draw_appearance(16, strongest, seed=0, epoch=0))
    assert changed.isfinite().all()
    assert changed.min() >= 0
    assert changed.max() <= 255


def test_without_strengths_nothing_is_drawn() -> None:
    assert draw_appearance(3, AugmentationConfig(), seed=0, epoch=0) == AppearanceDraws(blur_radius=1)
    assert not changes_appearance(AugmentationConfig())
    for name in ("stain", "stain_shift", "brightness", "contrast", "saturation", "hue", "blur"):
        assert changes_appearance(AugmentationConfig(**{name: 0.1})), name
