import gc

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.limit import Case, Mode, forward_steps, modes, train_steps
from benchmarks.step import fastest_mode, flops_per_image, step_name
from benchmarks.timing import Measurement
from breakhis_pl.models.backbones import build_network

CASE = Case("resnet18", image_size=32, batch_size=2, precision="32-true", device=torch.device("cpu"))


@pytest.mark.parametrize("network", ["resnet18", "wide_resnet50", "resnext50"])
def test_operations_are_those_that_torch_counts(network: str) -> None:
    with torch.device("meta"):
        built, images = build_network(network, dropout=0.4), torch.empty((2, 3, 224, 224))
        with FlopCounterMode(display=False) as counter:
            built(images)
    assert 3 * counter.get_total_flops() / 2 == pytest.approx(flops_per_image(network, 224), rel=0.01)


@pytest.mark.parametrize("mode", modes(torch.device("cpu")))
def test_steps_train_and_count_images(mode: Mode) -> None:
    assert train_steps(CASE, mode).run(3) == 6
    assert forward_steps(CASE, mode).run(3) == 6


def test_bf16_is_bf16_inside() -> None:
    case = Case("resnet18", image_size=32, batch_size=2, precision="bf16-mixed", device=torch.device("cpu"))
    with case.autocast(Mode.CHANNELS_LAST):
        assert case.built(Mode.CHANNELS_LAST)(case.images(Mode.CHANNELS_LAST)).dtype is torch.bfloat16


def test_images_have_the_memory_format_of_their_mode() -> None:
    assert CASE.images(Mode.CHANNELS_LAST).is_contiguous(memory_format=torch.channels_last)
    assert CASE.images(Mode.CONTIGUOUS).is_contiguous()


def test_the_fastest_mode_is_that_with_the_highest_median() -> None:
    figures = [
        Measurement(step_name("resnet18", 32, Mode.CONTIGUOUS, "train"), "images/s", (5.0, 6.0, 7.0)),
        Measurement(step_name("resnet18", 32, Mode.CHANNELS_LAST, "train"), "images/s", (1.0, 5.5, 99.0)),
        Measurement(step_name("resnet18", 32, Mode.CHANNELS_LAST, "forward"), "images/s", (99.0,)),
    ]
    assert fastest_mode(figures, "resnet18", 32) is Mode.CONTIGUOUS
    assert fastest_mode(figures, "resnet18", 32, what="forward") is Mode.CHANNELS_LAST
    assert fastest_mode([], "resnet18", 32) is Mode.CHANNELS_LAST


def test_a_gpu_has_more_modes_and_none_is_compiled_unasked() -> None:
    everything = modes(torch.device("cuda"))
    assert set(modes(torch.device("cpu"))) < set(everything)
    assert Mode.COMPILED not in everything


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_a_graph_works_on_lives_as_long_as_the_graph() -> None:
    case = Case("resnet18", 32, 4, "bf16-mixed", torch.device("cuda"))
    steps = train_steps(case, Mode.GRAPH)
    gc.collect()
    torch.cuda.empty_cache()
    overwritten = [torch.full((2**20,), torch.nan, device="cuda") for _ in range(200)]
    assert steps.run(3) == 12
    assert len(overwritten) == 200
