import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from breakhis_pl.errors import CheckpointError
from breakhis_pl.evaluate import load_classifier
from breakhis_pl.inference.onnx import export, main
from breakhis_pl.metrics.calibration import at_temperature, read_calibration

DOCS = Path(__file__).resolve().parents[3] / "docs" / "predict.md"
Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch
pytestmark = pytest.mark.extra("onnx", "onnxscript", "onnxruntime")


@pytest.fixture(scope="module")
def subtype_run(make_run: Callable[..., Path]) -> Path:
    """A run with three classes, two of which are malignant."""
    return make_run(classes=["A", "DC", "LC"], parents=[0, 1, 1], calibrated=True)


@pytest.fixture(scope="module")
def exported(subtype_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with network.onnx and picture.png; an export takes seconds."""
    folder = tmp_path_factory.mktemp("exported")
    assert main([f"run={subtype_run}", f"out={folder / 'network.onnx'}"]) == 0
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    return folder


def test_the_documented_lines_give_the_probabilities(subtype_run: Path, exported: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(exported)
    code = re.search(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    names: dict[str, object] = {}
    exec(code[1], names)  # noqa: S102 - the lines of the documentation
    classifier, statistics = load_classifier(subtype_run / "checkpoints/last.ckpt")
    mean, std = (torch.tensor(statistics[name]).view(3, 1, 1) for name in ("mean", "std"))
    image = torch.from_numpy(np.array(Image.open("picture.png"))).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        expected = classifier((image - mean) / std).softmax(dim=1)
    np.testing.assert_allclose(np.asarray(names["probabilities"]), expected, atol=1e-5)
    fitted = read_calibration(subtype_run / "calibration.json")
    calibrated = at_temperature(expected.double().numpy(), fitted.temperature)[:, 1]
    np.testing.assert_allclose(np.asarray(names["calibrated"]), calibrated, atol=1e-5)
    assert names["decisions"] == ["malignant" if calibrated[0] >= fitted.threshold else "benign"]


def test_metadata_hold_what_a_user_of_the_file_needs(exported: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(exported / "network.onnx", providers=["CPUExecutionProvider"])
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["breakhis_pl"])
    assert metadata["classes"] == ["benign", "malignant"]
    assert metadata["image_size"] == 32
    assert metadata["mean"] == pytest.approx([0.7, 0.5, 0.6])
    assert metadata["calibration"]["threshold"] == 0.4
    assert "diagnose" in metadata["notice"]
    card = (exported / "network.md").read_text(encoding="utf-8")
    assert metadata["checkpoint_sha256"] in card
    assert "0.400" in card


@pytest.mark.parametrize("difference", [1e-3, np.nan])
def test_a_file_with_other_logits_is_not_left(run: Path, tmp_path: Path, monkeypatch: Patch, difference: float) -> None:
    monkeypatch.setattr("breakhis_pl.inference.onnx.write_onnx", lambda *arguments: arguments[1].write_bytes(b"file"))
    monkeypatch.setattr("breakhis_pl.inference.onnx.compare", lambda *_: difference)
    with pytest.raises(CheckpointError, match="resnet18"):
        export(run, tmp_path / "network.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_cannot_be_exported_is_named(
    run: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("unsupported operator")

    monkeypatch.setattr("torch.onnx.export", fail)
    assert main([f"run={run}", f"out={tmp_path / 'network.onnx'}"]) == 1
    assert "resnet18: cannot be exported" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], ["out=network.onnx"], ["run=somewhere", "opset=18"]])
def test_missing_and_unknown_keys_are_refused(arguments: list[str]) -> None:
    assert main(arguments) == 1
