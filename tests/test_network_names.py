from collections.abc import Iterator

import pytest

from breakhis_pl import network_names
from breakhis_pl.network_names import ARGUMENTS, argument_faults, image_size_fault, known_names, network_faults


def test_names_are_those_that_torchvision_lists() -> None:
    from torchvision import models

    assert set(known_names("torchvision")) == set(models.list_models(module=models))


def test_names_are_those_that_timm_lists() -> None:
    import timm

    assert set(known_names("timm")) == set(timm.list_models())


@pytest.fixture
def without_timm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    known_names.cache_clear()
    monkeypatch.setattr(network_names, "find_spec", lambda _: None)
    yield
    known_names.cache_clear()


@pytest.mark.usefixtures("without_timm")
def test_a_missing_timm_is_said_with_the_command_that_installs_it() -> None:
    assert list(network_faults("timm", "resnet18", {})) == ["model=timm needs the package timm: uv sync --extra timm"]


@pytest.mark.parametrize(
    ("library", "name"),
    [("torchvision", "resnet50"), ("timm", "vit_small_patch16_224.augreg_in1k"), ("report", "resnext50")],
)
def test_names_there_are_have_no_fault(library: str, name: str) -> None:
    assert list(network_faults(library, name, {})) == []


@pytest.mark.parametrize(
    ("library", "name", "expected"),
    [
        (
            "torchvision",
            "resnt50",
            "model.backbone=resnt50 is not possible; torchvision has 80 networks; did you mean r",
        ),
        ("torchvision", "resnet50.a1", "resnet50.a1 is not possible; torchvision has 80 networks"),
        ("timm", "vit_smal_patch16_224", "networks; did you mean vit_small_patch16_224 or "),
        (
            "timm",
            "hf-hub:someone/else",
            "someone/else is not possible; timm has .* a network from a file is model.weig",
        ),
        ("timm", "local-dir:/tmp", "local-dir:/tmp is not possible"),
        ("timm", "../resnet18", r"\.\./resnet18 is not possible"),
        ("timm", "x" * 10_000, "model.backbone='x{60}'… is not possible"),
        ("timm", "\x1b[31m", r"model.backbone='\\x1b\[31m'… is not possible"),
        ("report", "resnet50", "expected one of resnet18, .*; any other network: model=torchvision or model=timm"),
        ("os", "system", "model.library=os is not possible; expected one of report, torchvision, timm"),
    ],
)
def test_names_there_are_not_are_refused_with_the_nearest(library: str, name: str, expected: str) -> None:
    import re

    (fault,) = network_faults(library, name, {})
    assert re.search(expected, fault), fault
    assert fault.isprintable()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"checkpoint_path": "/etc/passwd"}, "model.arguments has 'checkpoint_path'"),
        ({"pretrained": True}, "model.arguments has 'pretrained'; possible are: img_size"),
        ({"pretrained_cfg": {"url": "http://x"}}, "model.arguments has 'pretrained_cfg'"),
        ({"img_sise": 96}, "model.arguments has 'img_sise' (did you mean img_size?)"),
        ({7: 1}, "model.arguments has 'a int'"),
        ({"depth": 1000}, "model.arguments.depth=1000 is not possible; expected a whole number from 1 to 64"),
        ({"depth": True}, "model.arguments.depth=True is not possible"),
        ({"depth": 2.5}, "model.arguments.depth=2.5 is not possible"),
        (
            {"init_values": float("nan")},
            "model.arguments.init_values=nan is not possible; expected a number from 0 to 1",
        ),
        ({"img_size": [96, 96]}, "model.arguments.img_size=a list is not possible"),
        ({"dynamic_img_size": 1}, "model.arguments.dynamic_img_size=1 is not possible; expected true or false"),
        ({"mlp_layer": "os.system"}, "model.arguments.mlp_layer='os.system' is not possible; expected one of Mlp"),
    ],
)
def test_arguments_that_are_not_on_the_list_are_refused_by_name(arguments: dict[str, object], expected: str) -> None:
    (fault,) = argument_faults(arguments)
    assert expected in fault


def test_arguments_are_for_timm_and_are_written_as_a_dict() -> None:
    assert list(network_faults("torchvision", "resnet18", {"img_size": 96})) == [
        "model.arguments={'img_size': 96} is for model=timm; the networks of torchvision take none"
    ]
    assert "model.arguments=3 is not possible; expected as in" in next(network_faults("timm", "resnet18", 3))


def test_the_arguments_of_published_pathology_encoders_are_possible() -> None:
    shapes = {"img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "embed_dim": 1536, "reg_tokens": 8}
    layers = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu", "mlp_ratio": 5.33334, "init_values": 1e-5}
    flags = {"no_embed_class": True, "dynamic_img_size": True}
    assert list(argument_faults(shapes | layers | flags)) == []
    assert len(ARGUMENTS) == len(set(ARGUMENTS))


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("inception_v3", 64, "data.image_size=64 is not possible for inception_v3; expected at least 75"),
        ("alexnet", 32, "expected at least 63"),
        ("vit_b_16", 100, "which divides images into patches of 16 pixels; expected a multiple of 16"),
        ("vit_h_14", 64, "expected a multiple of 14"),
        ("maxvit_t", 256, "windows of 7 at four scales; expected a multiple of 224"),
    ],
)
def test_image_sizes_a_network_cannot_take_are_refused(name: str, size: int, expected: str) -> None:
    assert expected in (image_size_fault("torchvision", name, size) or "")


def test_image_sizes_a_network_can_take_are_not_refused() -> None:
    for name, size in (("inception_v3", 75), ("vit_b_32", 96), ("maxvit_t", 448), ("resnet50", 33)):
        assert image_size_fault("torchvision", name, size) is None
    assert image_size_fault("timm", "vit_small_patch16_224", 100) is None  # building it tells
