from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision import models

from breakhis_pl.errors import WeightsError
from breakhis_pl.models.networks import Network, NetworkSpec, build
from breakhis_pl.models.pretrained import load_weights, read_state, without_prefixes

SPEC = NetworkSpec("vit_tiny_patch16_224", "timm", {"img_size": 32, "depth": 1}, head="linear", image_size=32)
LAST = "blocks.0.mlp.fc2.weight"

Wrap = dict[str, Callable[[dict[str, Tensor]], object]]
WRAPPED: Wrap = {
    "bare": lambda state: state,
    "model": lambda state: {"model": state, "epoch": 3},
    "state_dict behind prefixes": lambda state: {
        "state_dict": {f"module.backbone.{key}": value for key, value in state.items()}
        | {"module.proj.a": torch.ones(1)}
    },
    "a teacher and a student": lambda state: {
        "student": {"backbone.nothing": torch.zeros(1)},
        "teacher": {f"backbone.{key}": value for key, value in state.items()},
    },
    "encoder": lambda state: {f"encoder.{key}": value for key, value in state.items()},
    "float16": lambda state: {key: value.half() for key, value in state.items()},
}


@pytest.fixture
def state() -> dict[str, Tensor]:
    """A state dict as timm's network has it, with its classifier."""
    import timm

    torch.manual_seed(3)
    network = timm.create_model(SPEC.backbone, img_size=32, depth=1, num_classes=10)
    return {key: torch.randn_like(value) for key, value in network.state_dict().items()}


def loaded(path: Path) -> dict[str, Tensor]:
    network = build(SPEC)
    load_weights(network, SPEC, str(path))
    assert isinstance(network, Network)
    return network.backbone.state_dict()


@pytest.mark.parametrize("kind", WRAPPED)
def test_files_of_trainings_are_unwrapped_and_their_classifier_is_left_out(
    kind: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(WRAPPED[kind](state), tmp_path / "a.pth")
    found = loaded(tmp_path / "a.pth")
    for name, value in found.items():
        torch.testing.assert_close(value, state[name], atol=2e-3, rtol=2e-3)


def test_safetensors_are_read(state: dict[str, Tensor], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(state, tmp_path / "a.safetensors")
    assert torch.equal(loaded(tmp_path / "a.safetensors")[LAST], state[LAST])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.safetensors", b"nothing of the kind", "is no state dict: it is damaged, or no safetensors file"),
        ("a.safetensors", b"\xff" * 64, "is no state dict: it is damaged, or no safetensors file"),
        ("a.pth", {"epoch": 3}, "expected a dict of tensors by name, or one under state_dict"),
        ("a.pth", {"model": {"model": {"model": {"a": torch.ones(1)}}}}, "expected a dict of tensors by name"),
        ("a.pth", {"model": torch.nn.Linear(2, 2)}, "is no state dict: it asks for"),
    ],
)
def test_files_that_hold_something_else_are_refused(name: str, content: object, expected: str, tmp_path: Path) -> None:
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(WeightsError, match=expected):
        read_state(tmp_path / name)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(WeightsError, match=r"model\.weights=nowhere\.safetensors does not exist"):
        read_state(Path("nowhere.safetensors"))


def test_weights_of_another_shape_are_refused_with_what_could_be_the_reason(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    state["pos_embed"] = torch.zeros(1, 197, 192)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"or to one built with other model\.arguments; shape: pos_embed \(1, 197"):
        loaded(tmp_path / "a.pth")
    state["pos_embed"] = torch.full((1, 5, 192), torch.nan)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="holds values that are not finite: pos_embed"):
        loaded(tmp_path / "a.pth")


def test_a_custom_stem_is_named(state: dict[str, Tensor], tmp_path: Path) -> None:
    state = {key: value for key, value in state.items() if not key.startswith("patch_embed")}
    torch.save(state | {"patch_embed.proj.0.weight": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"missing: patch_embed\.proj\.weight.*unexpected: patch_embed\.proj\.0"):
        loaded(tmp_path / "a.pth")


def test_prefixes_that_are_no_wrappers_are_left() -> None:
    assert without_prefixes({"decoder.a": 1}, ["a"]) == {"decoder.a": 1}
    assert without_prefixes({"a": 1, "module.a": 2}, ["a"]) == {"a": 1, "module.a": 2}
    assert without_prefixes({"model.module.a": 2, "x": 1}, ["a", "b.num_batches_tracked"]) == {"a": 2}


@pytest.mark.parametrize("name", ["squeezenet1_1", "googlenet", "mobilenet_v3_small"])
def test_torchvisions_own_state_dicts_are_loaded_without_their_classifiers(name: str, tmp_path: Path) -> None:
    options = {"init_weights": False} if name == "googlenet" else {}
    torch.manual_seed(1)
    original = models.get_model(name, **options).state_dict()
    torch.save(original, tmp_path / "a.pth")
    spec = NetworkSpec(name, "torchvision", head="linear")
    network = build(spec)
    load_weights(network, spec, str(tmp_path / "a.pth"))
    assert isinstance(network, Network)
    found = network.backbone.state_dict()
    assert found
    assert all(torch.equal(value, original[key]) for key, value in found.items())


def test_positions_of_another_image_size_are_resampled(tmp_path: Path) -> None:
    torch.manual_seed(1)
    original = models.vit_b_32(image_size=96).state_dict()
    original["encoder.pos_embedding"] = torch.ones(1, 10, 768)
    torch.save(original, tmp_path / "a.pth")
    spec = NetworkSpec("vit_b_32", "torchvision", head="linear", image_size=64)
    network = build(spec)
    load_weights(network, spec, str(tmp_path / "a.pth"))
    positions = network.get_submodule("backbone.encoder").pos_embedding
    torch.testing.assert_close(positions.detach(), torch.ones(1, 5, 768))


def test_without_a_connection_timms_weights_are_an_error_that_says_what_else_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import timm

    def unreachable(*_: object, pretrained: bool, **__: object) -> None:
        assert pretrained
        raise OSError("no route to host\nand more")

    network = build(SPEC)
    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(WeightsError) as caught:
        load_weights(network, SPEC, "imagenet")
    assert "timm has no usable weights for vit_tiny_patch16_224 (no route to host)" in str(caught.value)
    assert "model.weights=<file>" in str(caught.value)


def test_none_leaves_the_network_as_it_is() -> None:
    network = build(SPEC)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    load_weights(network, SPEC, "none")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
