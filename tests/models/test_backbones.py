import contextlib
import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from breakhis_pl.errors import WeightsError
from breakhis_pl.models import backbones
from breakhis_pl.models.backbones import BACKBONES, Backbone, build_network, load_pretrained
from breakhis_pl.network_names import REPORT_NETWORKS


def test_the_configuration_names_the_networks_there_are() -> None:
    assert set(REPORT_NETWORKS) == set(BACKBONES)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_head_is_the_reports(name: str) -> None:
    network = build_network(name, dropout=0.4)
    kinds = [type(layer) for layer in network.fc]
    assert kinds == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear, nn.ReLU, nn.Linear]
    outputs = [layer.out_features for layer in network.fc if isinstance(layer, nn.Linear)]
    assert outputs == [256, 100, 2]
    assert network.fc[2].p == 0.4
    network.eval()
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 2)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """A torchvision ResNet-18, with its old last layer."""
    torch.manual_seed(1)
    return models.resnet18().state_dict()


@pytest.mark.parametrize("kind", ["as it is", "without fc", "float16", "without counters"])
def test_state_dicts_of_torchvision_are_loaded(kind: str, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    match kind:
        case "without fc":
            state = {name: value for name, value in state.items() if not name.startswith("fc.")}
        case "float16":
            state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
        case "without counters":
            state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
        case _:
            pass
    torch.save(state, tmp_path / "weights.pth")
    network = build_network("resnet18", dropout=0.4)
    head = network.fc[0].weight.clone()
    load_pretrained(network, name="resnet18", weights=str(tmp_path / "weights.pth"))
    assert torch.equal(network.conv1.weight, state["conv1.weight"].float())
    assert torch.equal(network.layer4[1].bn2.running_var, state["layer4.1.bn2.running_var"].float())
    assert network.conv1.weight.dtype == torch.float32
    assert torch.equal(network.fc[0].weight, head)


def test_none_leaves_the_network_as_it_is() -> None:
    network = build_network("resnet18", dropout=0.4)
    before = network.conv1.weight.clone()
    load_pretrained(network, name="resnet18", weights="none")
    assert torch.equal(network.conv1.weight, before)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (models.resnet34, "belongs to another network than resnet18; unexpected: layer1.2.conv1.weight"),
        (models.resnext50_32x4d, "belongs to another network than resnet18; .*shape: "),
        ({}, "is no state dict: expected a dict of tensors by name"),
        ([1, 2], "is no state dict: it holds no dict; expected a file that torch.save wrote, of tensors by name"),
        ({1: torch.zeros(1)}, "is no state dict: expected a dict of tensors by name"),
        ({"state_dict": {}}, "is a checkpoint of a training; expected a torchvision state dict"),
        (nn.Linear(2, 2), "is no state dict: "),
        (b"nothing of the kind", "is no state dict: "),
    ],
)
def test_files_that_hold_something_else_are_refused(content: object, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(
            content().state_dict() if callable(content) and not isinstance(content, nn.Module) else content, path
        )
    with pytest.raises(WeightsError, match=expected):
        load_pretrained(build_network("resnet18", dropout=0.4), name="resnet18", weights=str(path))


def test_weights_that_are_not_finite_are_refused(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    state["layer1.0.conv1.weight"][0, 0, 0, 0] = torch.nan
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"not finite: layer1\.0\.conv1\.weight"):
        load_pretrained(build_network("resnet18", dropout=0.4), name="resnet18", weights=str(tmp_path / "weights.pth"))


def test_a_folder_is_no_file_of_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is a folder; expected imagenet, none or"):
        load_pretrained(build_network("resnet18", dropout=0.4), name="resnet18", weights=str(tmp_path))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(WeightsError, match=r"model\.weights=nowhere\.pth does not exist; expected imagenet, none or"):
        load_pretrained(build_network("resnet18", dropout=0.4), name="resnet18", weights="nowhere.pth")


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A web server on loopback."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch.hub."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub"


class ServedWeights:
    """Stands for torchvision's weights, at another address."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get_state_dict(self, **options: bool) -> dict[str, torch.Tensor]:
        """As torchvision's `WeightsEnum.get_state_dict`."""
        return torch.hub.load_state_dict_from_url(self.url, **options)


def point_imagenet_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights: object = ServedWeights(url)
    served = Backbone("ResNet-18", models.resnet18, weights)  # type: ignore[arg-type]
    monkeypatch.setattr(backbones, "BACKBONES", {"resnet18": served})


def test_imagenet_weights_are_torchvisions_first_version() -> None:
    names = {name: str(backbone.imagenet) for name, backbone in BACKBONES.items()}
    assert names == {
        "resnet18": "ResNet18_Weights.IMAGENET1K_V1",
        "wide_resnet50": "Wide_ResNet50_2_Weights.IMAGENET1K_V1",
        "resnext50": "ResNeXt50_32X4D_Weights.IMAGENET1K_V1",
    }
    assert all("weights_only" in torch.hub.load_state_dict_from_url.__code__.co_varnames for _ in names)


def test_imagenet_weights_are_downloaded_once(
    state: dict[str, torch.Tensor], hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = tmp_path / "served"
    served.mkdir()
    torch.save(state, served / "weights.pth")
    checksum = hashlib.sha256((served / "weights.pth").read_bytes()).hexdigest()[:8]
    (served / "weights.pth").rename(served / f"weights-{checksum}.pth")
    network = build_network("resnet18", dropout=0.4)
    with serving(served) as address:
        point_imagenet_at(f"{address}/weights-{checksum}.pth", monkeypatch)
        load_pretrained(network, name="resnet18", weights="imagenet")
    load_pretrained(network, name="resnet18", weights="imagenet")  # the server is gone
    assert torch.equal(network.conv1.weight, state["conv1.weight"])
    assert (hub / "checkpoints" / f"weights-{checksum}.pth").is_file()


def test_without_a_connection_the_error_says_where_to_put_the_file(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_imagenet_at("http://127.0.0.1:9/resnet18-f37072fd.pth", monkeypatch)
    with pytest.raises(WeightsError) as caught:
        load_pretrained(build_network("resnet18", dropout=0.4), name="resnet18", weights="imagenet")
    assert f"put it at {hub / 'checkpoints' / 'resnet18-f37072fd.pth'}" in str(caught.value)
    assert "model.weights=<file>, or model.weights=none" in str(caught.value)


def test_a_damaged_download_is_refused(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights-00000000.pth").write_bytes(b"a page of the hotel's network")
    with serving(tmp_path) as address:
        point_imagenet_at(f"{address}/weights-00000000.pth", monkeypatch)
        with pytest.raises(WeightsError, match="invalid hash value"):
            load_pretrained(build_network("resnet18", dropout=0.4), name="resnet18", weights="imagenet")
    assert list(hub.glob("checkpoints/*")) == []


def test_a_file_in_torchs_cache_whose_checksum_differs_is_refused(
    state: dict[str, torch.Tensor], hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_imagenet_at("http://127.0.0.1:9/weights-0badc0de.pth", monkeypatch)
    (hub / "checkpoints").mkdir(parents=True)
    torch.save(state, hub / "checkpoints" / "weights-0badc0de.pth")
    with pytest.raises(
        WeightsError, match=r"weights-0badc0de\.pth is damaged, its SHA-256 starts with [0-9a-f]{8}; del"
    ):
        load_pretrained(build_network("resnet18", dropout=0.4), name="resnet18", weights="imagenet")
