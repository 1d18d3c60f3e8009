import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from breakhis_pl.config import AugmentationConfig
from breakhis_pl.data.augment import (
    Augmentation,
    AugmentationDraws,
    augmentation_of_epoch,
    changes_anything,
    draw_augmentation,
    resample,
    to_network_input,
)

MEAN, STD = torch.tensor([0.8, 0.6, 0.7]), torch.tensor([0.1, 0.15, 0.12])
NOTHING = AugmentationConfig(horizontal_flip=0, vertical_flip=0, rotation=0)


def photographs(n_images: int, size: int = 48) -> torch.Tensor:
    """Smooth random images: uint8 (n_images, size, size, 3)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((n_images, 3, 9, 9), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    return (255 * smooth).round().byte().permute(0, 2, 3, 1).contiguous()


def by_torchvision(image: torch.Tensor, *, horizontal: bool, vertical: bool, angle: float) -> torch.Tensor:
    """The report's transforms one after the other, on (3, size, size), values 0 to 255."""
    turned = image.permute(2, 0, 1).float()
    if horizontal:
        turned = functional.horizontal_flip(turned)
    if vertical:
        turned = functional.vertical_flip(turned)
    return functional.rotate(turned, angle, interpolation=InterpolationMode.BILINEAR)


@pytest.mark.parametrize("size", [33, 48])
def test_one_resampling_agrees_with_torchvisions_transforms_given_the_same_draws(size: int) -> None:
    pixels = photographs(16, size)
    draws = draw_augmentation(16, AugmentationConfig(), seed=3, epoch=1)
    ours = resample(pixels.permute(0, 3, 1, 2).float(), draws.matrices())
    for index in range(16):
        theirs = by_torchvision(
            pixels[index],
            horizontal=bool(draws.horizontal_flip[index]),
            vertical=bool(draws.vertical_flip[index]),
            angle=float(draws.angle[index]),
        )
        assert torch.allclose(ours[index], theirs, atol=0.05), index  # of 255; float32 coordinates differ in rounding


def test_angles_turn_counter_clockwise() -> None:
    pixels = torch.zeros((1, 33, 33, 3), dtype=torch.uint8)
    pixels[0, 16, 26] = 255  # right of the center
    draws = AugmentationDraws(torch.tensor([False]), torch.tensor([False]), torch.tensor([90.0]))
    turned = resample(pixels.permute(0, 3, 1, 2).float(), draws.matrices())
    assert torch.nonzero(turned[0, 0] > 200).tolist() == [[6, 16]]  # above the center


def test_flips_alone_move_pixels_exactly() -> None:
    pixels = photographs(2)
    draws = AugmentationDraws(torch.tensor([True, False]), torch.tensor([False, True]), torch.zeros(2))
    turned = resample(pixels.permute(0, 3, 1, 2).float(), draws.matrices())
    assert torch.allclose(turned[0], pixels[0].permute(2, 0, 1).flip(2).float(), atol=0.01)
    assert torch.allclose(turned[1], pixels[1].permute(2, 0, 1).flip(1).float(), atol=0.01)


def test_draws_are_uniform_and_independent() -> None:
    draws = draw_augmentation(20_000, AugmentationConfig(), seed=0, epoch=0)
    angle = draws.angle.numpy()
    assert stats.kstest(angle, stats.uniform(-20, 40).cdf).pvalue > 0.01
    assert angle.min() >= -20
    assert angle.max() <= 20
    for flips in (draws.horizontal_flip, draws.vertical_flip):
        assert stats.binomtest(int(flips.sum()), 20_000, 0.5).pvalue > 0.01
    table = torch.stack([draws.horizontal_flip, draws.vertical_flip, draws.angle > 0]).numpy().astype(float)
    correlations = [abs(stats.pearsonr(table[i], table[j])[0]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert max(correlations) < 0.03


def test_draws_follow_seed_and_epoch_and_nothing_else() -> None:
    first = draw_augmentation(50, AugmentationConfig(), seed=1, epoch=2)
    torch.rand(7)
    again = draw_augmentation(50, AugmentationConfig(), seed=1, epoch=2)
    assert torch.equal(first.angle, again.angle)
    assert not torch.equal(first.angle, draw_augmentation(50, AugmentationConfig(), seed=1, epoch=3).angle)
    assert not torch.equal(first.angle, draw_augmentation(50, AugmentationConfig(), seed=2, epoch=2).angle)


def test_probabilities_of_flips_are_taken_from_the_configuration() -> None:
    config = AugmentationConfig(horizontal_flip=1, vertical_flip=0, rotation=5)
    draws = draw_augmentation(200, config, seed=0, epoch=0)
    assert draws.horizontal_flip.all()
    assert not draws.vertical_flip.any()
    assert draws.angle.abs().max() <= 5
    assert changes_anything(config)
    assert not changes_anything(NOTHING)


def test_normalization_is_torchvisions() -> None:
    pixels = photographs(4)
    expected = v2.Normalize(MEAN.tolist(), STD.tolist())(pixels.permute(0, 3, 1, 2).float() / 255)
    assert torch.allclose(to_network_input(pixels, mean=MEAN, std=STD), expected, atol=1e-5)


def test_corners_are_black_before_normalization() -> None:
    pixels = torch.full((1, 48, 48, 3), 255, dtype=torch.uint8)
    draws = AugmentationDraws(torch.tensor([False]), torch.tensor([False]), torch.tensor([20.0]))
    images = to_network_input(pixels, mean=MEAN, std=STD, augmentation=Augmentation(draws.matrices()))
    assert torch.allclose(images[0, :, 0, 0], -MEAN / STD, atol=1e-5)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_quarter_turns_move_pixels_exactly(turns: int) -> None:
    pixels = photographs(1)
    off = torch.tensor([False])
    draws = AugmentationDraws(off, off, torch.zeros(1), quarter_turns=torch.tensor([turns]))
    turned = resample(pixels.permute(0, 3, 1, 2).float(), draws.matrices())
    expected = torch.rot90(pixels[0].permute(2, 0, 1), turns, dims=(1, 2)).float()
    assert torch.allclose(turned[0], expected, atol=0.01)


@pytest.mark.parametrize("size", [33, 48])
def test_everything_in_one_resampling_agrees_with_torchvisions_affine_transform(size: int) -> None:
    pixels = photographs(16, size)
    config = AugmentationConfig(rotation=30, quarter_turn=0.7, zoom=0.3, shift=0.2)
    draws = draw_augmentation(16, config, seed=0, epoch=0)
    assert draws.quarter_turns is not None
    assert draws.zoom is not None
    assert draws.shift is not None
    ours = resample(pixels.permute(0, 3, 1, 2).float(), draws.matrices())
    for index in range(16):
        image = pixels[index].permute(2, 0, 1).float()
        image = image.flip(2) if draws.horizontal_flip[index] else image
        image = image.flip(1) if draws.vertical_flip[index] else image
        theirs = functional.affine(
            image,
            angle=-float(draws.angle[index]) - 90 * int(draws.quarter_turns[index]),  # clockwise there
            translate=[float(size * by) for by in draws.shift[index]],
            scale=float(draws.zoom[index]),
            shear=[0.0, 0.0],
            interpolation=InterpolationMode.BILINEAR,
        )
        assert torch.allclose(ours[index], theirs, atol=0.1), index


def test_a_mirror_lies_beyond_the_border() -> None:
    pixels = photographs(1, 32)
    off = torch.tensor([False])
    draws = AugmentationDraws(off, off, torch.zeros(1), shift=torch.tensor([[0.25, 0.0]]))
    images = pixels.permute(0, 3, 1, 2).float()
    moved, black = (resample(images, draws.matrices(), border=border) for border in ("mirror", "black"))
    assert torch.allclose(moved[..., 8:], images[..., :24], atol=0.01)
    assert torch.allclose(moved[..., :8], images[..., :8].flip(3), atol=0.01)
    assert not black[..., :8].any()


def test_turns_zoom_and_shift_are_drawn_as_asked_and_leave_the_reports_draws_alone() -> None:
    config = AugmentationConfig(quarter_turn=0.6, zoom=0.25, shift=0.1)
    draws, plain = (draw_augmentation(8_000, each, seed=5, epoch=1) for each in (config, AugmentationConfig()))
    assert torch.equal(draws.angle, plain.angle)
    assert torch.equal(draws.horizontal_flip, plain.horizontal_flip)
    assert draws.quarter_turns is not None
    assert draws.zoom is not None
    assert draws.shift is not None
    counts = torch.bincount(draws.quarter_turns).tolist()
    assert stats.chisquare(counts, [3200, 1600, 1600, 1600]).pvalue > 0.01
    assert stats.kstest(draws.zoom.log().numpy() / np.log(1.25), stats.uniform(-1, 2).cdf).pvalue > 0.01
    assert stats.kstest(draws.shift.flatten().numpy(), stats.uniform(-0.1, 0.2).cdf).pvalue > 0.01
    again = draw_augmentation(8_000, AugmentationConfig(shift=0.1), seed=5, epoch=1)
    assert again.shift is not None
    assert torch.equal(again.shift, draws.shift)


def test_an_augmentation_of_some_rows_is_theirs() -> None:
    pixels = photographs(4)
    config = AugmentationConfig(quarter_turn=0.75, border="mirror", brightness=0.3, blur=1)
    drawn = augmentation_of_epoch(4, config, seed=0, epoch=0, device=torch.device("cpu"))
    together = to_network_input(pixels, mean=MEAN, std=STD, augmentation=drawn)
    rows = torch.tensor([3, 1])
    apart = to_network_input(pixels[rows], mean=MEAN, std=STD, augmentation=drawn.of(rows))
    assert torch.allclose(apart, together[rows], atol=1e-4)
    assert not torch.allclose(together[0], to_network_input(pixels, mean=MEAN, std=STD)[0], atol=0.1)
