from types import SimpleNamespace

import pytest
import torch

from breakhis_pl import composition
from breakhis_pl.config import TrainConfig
from breakhis_pl.training import speed
from breakhis_pl.training.speed import keep_freed_memory, resolve_speed
from tests.programs import TINY

GIGABYTE = 10**9


@pytest.fixture(scope="module", autouse=True)
def schema() -> None:
    composition.register()


def config(*overrides: str) -> TrainConfig:
    composed: TrainConfig = composition.compose_checked("train", [*TINY, *overrides])
    return composed


@pytest.mark.parametrize(
    ("accelerator", "size", "expected"),
    [
        ("cpu", 64, "contiguous"),
        ("cpu", 96, "channels_last"),
        ("cpu", 224, "channels_last"),
        ("cuda", 64, "channels_last"),
    ],
)
def test_the_memory_format_follows_device_and_image_size(
    monkeypatch: pytest.MonkeyPatch, accelerator: str, size: int, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (GIGABYTE, GIGABYTE))
    assert resolve_speed(config(f"data.image_size={size}"), accelerator, n_pixel_bytes=1).memory_format == expected


@pytest.mark.parametrize(("n_bytes", "expected"), [(GIGABYTE // 2, "device"), (GIGABYTE // 2 + 1, "host")])
def test_pixels_that_do_not_fit_on_the_device_stay_on_the_host(
    monkeypatch: pytest.MonkeyPatch, n_bytes: int, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (GIGABYTE, 4 * GIGABYTE))
    assert resolve_speed(config(), "cuda", n_pixel_bytes=n_bytes).pixels == expected
    assert resolve_speed(config(), "cpu", n_pixel_bytes=n_bytes).pixels == "device"


@pytest.mark.parametrize(
    ("override", "attribute", "expected"),
    [
        ("data.pixels=host", "pixels", "host"),
        ("trainer.memory_format=channels_last", "memory_format", "channels_last"),
        ("trainer.keep_memory=false", "keep_memory", False),
        ("trainer.compile=true", "compile", True),
        ("data.eval_batch_size=7", "eval_batch_size", 7),
    ],
)
def test_every_choice_is_switched_by_a_key(override: str, attribute: str, expected: object) -> None:
    assert getattr(resolve_speed(config(), "cpu", n_pixel_bytes=1), attribute) != expected
    assert getattr(resolve_speed(config(override), "cpu", n_pixel_bytes=1), attribute) == expected


def test_a_gpu_evaluates_in_larger_batches_and_alone_has_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (GIGABYTE, GIGABYTE))
    asked = config("data.batch_size=8", "trainer.cuda_graphs=true")
    on_gpu, on_cpu = (resolve_speed(asked, accelerator, n_pixel_bytes=1) for accelerator in ("cuda", "cpu"))
    assert (on_gpu.eval_batch_size, on_cpu.eval_batch_size) == (32, 8)
    assert (on_gpu.cuda_graphs, on_cpu.cuda_graphs) == (True, False)
    assert (on_gpu.keep_memory, on_cpu.keep_memory) == (False, keep_freed_memory())


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), True),
        (("model=resnext50",), True),
        (("trainer.cuda_graphs=false",), False),
        (("trainer.deterministic=true",), False),
        (("trainer.compile=true",), False),
        (("trainer=ddp", "trainer.devices=2"), False),
        (("model=torchvision", "model.backbone=resnet34"), False),
        (("model=torchvision", "model.backbone=resnet34", "trainer.cuda_graphs=true"), True),
        (("model.freeze=true", "model.weights=file.pth"), False),
    ],
)
def test_graphs_are_taken_by_themselves_where_they_were_measured(
    monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], expected: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (GIGABYTE, GIGABYTE))
    assert resolve_speed(config(*overrides), "cuda", n_pixel_bytes=1).cuda_graphs is expected


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed.ctypes, "CDLL", lambda _: SimpleNamespace())
    assert keep_freed_memory() is False
    assert resolve_speed(config(), "cpu", n_pixel_bytes=1).keep_memory is False
