"""predict.py and the export of a network, on one small run."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from breakhis_pl import export_onnx
from breakhis_pl.config import PredictConfig
from breakhis_pl.door import check_at_the_door
from breakhis_pl.errors import (
    CheckpointError,
    ConfigurationError,
    DataFolderError,
    ImageError,
    RunFolderError,
    StorageError,
)
from breakhis_pl.evaluation.calibration import Calibration, write_calibration
from breakhis_pl.evaluation.csv_tables import read_columns
from breakhis_pl.help_texts import help_text
from breakhis_pl.prediction import program, run_network
from breakhis_pl.prediction.facts import NOTICE, NetworkFacts
from breakhis_pl.prediction.rows import COLUMNS
from breakhis_pl.prediction.run_network import open_run
from breakhis_pl.training.checkpoints import load_checkpoint
from tests.conftest import REPOSITORY
from tests.programs import run_program

CALIBRATION = Calibration(1.5, 0.5, 0.95, 20, 5, 0.5, 0.4, 1.0, 0.5)
SIZE = 32


def rows(folder: Path, name: str = "predictions.csv") -> list[dict[str, str]]:
    return [cells for _, cells in read_columns(folder / name, ())]


@pytest.fixture(scope="module")
def run(finished_run: Path) -> Path:
    return finished_run


@pytest.fixture(scope="module")
def images(run: Path, drawn_cache: Path) -> Path:
    """The folder of the images that the run was made from."""
    assert run.is_dir()
    return next(path for path in drawn_cache.iterdir() if path.name.startswith("synthetic-"))


class Answers:
    """Stands for a network: the mean of an image is its logit."""

    title = "a stand-in"

    def __init__(self, facts: NetworkFacts | None = None) -> None:
        self.facts = facts or NetworkFacts("none", SIZE, (0.5,) * 3, (0.1,) * 3, None, None)
        self.batches: list[int] = []

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        self.batches.append(len(pixels))
        return np.stack([np.zeros(len(pixels)), pixels.mean(axis=(1, 2, 3)) - 128], axis=1).astype(np.float32)

    def heat(self, pixels: np.ndarray, classes: np.ndarray) -> np.ndarray:
        assert len(classes) == len(pixels)
        return np.zeros(pixels.shape[:3], dtype=np.float32)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    network = Answers()
    monkeypatch.setattr(program, "open_network", lambda _: network)
    return network


def drawn(folder: Path, n: int, suffix: str = "png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(n):
        Image.new("RGB", (8, 6), (number * 7 % 256,) * 3).save(folder / f"{number:03}.{suffix}")
    return folder


def predict(images: Any, folder: Path, **keys: Any) -> None:
    program.predict(PredictConfig(run="run", images=str(images), **keys), folder)


def test_the_test_images_of_a_run_get_the_rows_of_its_own_table(run: Path, images: Path, tmp_path: Path) -> None:
    outcome = run_program(
        "predict", f"run={run}", f"images={images}", "trainer.accelerator=cpu", "hydra.run.dir=out", cwd=tmp_path
    )
    assert outcome.status == 0, outcome.err
    found = {Path(cells["image"]).name: cells for cells in rows(tmp_path / "out")}
    assert len(found) == 82
    own = rows(run / "test")
    for cells in own:
        for column in ("prob_benign", "prob_malignant"):
            assert abs(float(cells[column]) - float(found[cells["image"]][column])) <= 1e-6
        assert cells["predicted"] == found[cells["image"]]["predicted"]
    assert all(cells["out_of_domain"] in {"true", "false"} for cells in found.values())
    assert "82 images predicted: benign" in outcome.out
    assert "out/predictions.csv" in outcome.out
    assert NOTICE in outcome.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".hydra", "predict.log", "predictions.csv"]


def test_pictures_that_are_no_tissue_are_flagged(run: Path, tmp_path: Path) -> None:
    drawn(tmp_path / "in", 0)
    Image.new("RGB", (700, 460), "white").save(tmp_path / "in" / "empty.png")
    Image.effect_noise((700, 460), 90).save(tmp_path / "in" / "noise.jpg")
    program.predict(PredictConfig(run=str(run), images=str(tmp_path / "in")), tmp_path / "out")
    assert [cells["out_of_domain"] for cells in rows(tmp_path / "out")] == ["true", "true"]
    assert all(cells["out_of_domain_reason"] for cells in rows(tmp_path / "out"))


def test_calibration_is_used_for_the_checkpoint_it_was_fitted_for(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    write_calibration(copy / "calibration.json", CALIBRATION)
    other = tmp_path / "other.ckpt"
    shutil.copy(copy / "checkpoints/last.ckpt", other)
    opened = open_run(copy, checkpoint="last", accelerator="cpu", precision="auto")
    assert opened.facts.calibration == CALIBRATION
    with caplog.at_level("INFO"):
        opened = open_run(copy, checkpoint=str(other), accelerator="cpu", precision="auto")
    assert opened.facts.calibration is None
    assert "was fitted for the checkpoint that counts" in caplog.text
    with pytest.raises(CheckpointError, match=r"checkpoint=best: .* has no checkpoints/best\.ckpt"):
        open_run(copy, checkpoint="best", accelerator="cpu", precision="auto")
    shutil.copy(other, copy / "checkpoints/best.ckpt")
    assert open_run(copy, checkpoint="auto", accelerator="cpu", precision="auto").facts.calibration == CALIBRATION
    assert open_run(copy, checkpoint="last", accelerator="cpu", precision="auto").facts.calibration is None


def test_a_run_is_run_in_the_precision_it_was_trained_in(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    facts = json.loads((copy / "run.json").read_text()) | {"precision": "bf16-mixed"}
    (copy / "run.json").write_text(json.dumps(facts))
    assert open_run(copy, checkpoint="last", accelerator="cpu", precision="auto").dtype == torch.bfloat16
    assert open_run(copy, checkpoint="last", accelerator="cpu", precision="32-true").dtype is None


def test_a_checkpoint_without_looks_leaves_the_flag_empty(run: Path, tmp_path: Path) -> None:
    content = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert load_checkpoint(run / "checkpoints/last.ckpt").domain is not None
    del content["BreakHisDataModule"]["domain"]
    torch.save(content, tmp_path / "old.ckpt")
    assert load_checkpoint(tmp_path / "old.ckpt").domain is None
    content["BreakHisDataModule"]["domain"] = {"mean": 1}
    torch.save(content, tmp_path / "odd.ckpt")
    with pytest.raises(CheckpointError, match="not those of this version"):
        load_checkpoint(tmp_path / "odd.ckpt")


def test_overlays_have_the_shape_of_their_pictures(run: Path, tmp_path: Path) -> None:
    for name, size in (("wide", (80, 40)), ("high", (20, 80)), ("third", (40, 40))):
        Image.effect_noise(size, 90).save(tmp_path / f"{name}.png")
    config = PredictConfig(run=str(run), images=str(tmp_path / "*.png"), gradcam=2, batch_size=1)
    program.predict(config, tmp_path / "out")
    found = [cells["gradcam"] for cells in rows(tmp_path / "out")]
    assert found == ["gradcam/000001_high.jpg", "gradcam/000002_third.jpg", ""]
    with Image.open(tmp_path / "out" / found[0]) as high, Image.open(tmp_path / "out" / found[1]) as square:
        assert high.format == "JPEG"
        assert (high.height, square.height) == (32, 32)
        assert (high.width - 8, square.width - 8) == (2 * 8, 2 * 32)


def test_a_network_that_cannot_be_explained_says_so(run: Path) -> None:
    network = open_run(run, checkpoint="last", accelerator="cpu", precision="auto")
    network.classifier.network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIZE**2, 2))
    with pytest.raises(ConfigurationError, match="gradcam is not possible: Sequential has no"):
        network.heat(np.zeros((1, SIZE, SIZE, 3), np.uint8), np.zeros(1, np.int64))


def test_unreadable_pictures_are_all_listed_and_stop_nothing(
    answers: Answers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    drawn(tmp_path / "in", 30)
    for number in range(12):
        (tmp_path / "in" / f"bad{number}.png").write_bytes(b"")
    (tmp_path / "in" / "note.txt").write_text("")
    with caplog.at_level("INFO"), pytest.raises(ImageError, match="12 could not be read") as caught:
        predict(tmp_path / "in", tmp_path / "out", batch_size=7)
    assert str(caught.value).count("empty file (0 bytes)") == 12
    assert len(rows(tmp_path / "out")) == 30
    assert [cells["reason"] for cells in rows(tmp_path / "out", "unreadable.csv")] == ["empty file (0 bytes)"] * 12
    assert answers.batches == [7, 7, 7, 7, 2]
    assert "no pictures by their suffix: 1 files (.txt 1)" in caplog.text
    assert "30 images predicted: benign 19, malignant 11" in caplog.text


def test_only_unreadable_pictures_give_an_empty_table(answers: Answers, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"x")
    with pytest.raises(ImageError, match="1 could not be read"):
        predict(tmp_path / "bad.png", tmp_path / "out")
    assert rows(tmp_path / "out") == []
    assert answers.batches == []


def test_interrupted_it_keeps_the_rows_so_far_under_another_name(
    answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    drawn(tmp_path / "in", 20)
    logits = answers.logits

    def interrupted(pixels: np.ndarray) -> np.ndarray:
        if len(answers.batches) == 2:
            raise KeyboardInterrupt
        return logits(pixels)

    monkeypatch.setattr(answers, "logits", interrupted)
    with caplog.at_level("INFO"), pytest.raises(KeyboardInterrupt):
        predict(tmp_path / "in", tmp_path / "out", batch_size=4)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.partial.csv"]
    assert len(rows(tmp_path / "out", "predictions.partial.csv")) == 8
    assert "predictions.partial.csv holds the rows of 8 images" in caplog.text


def test_values_that_are_not_finite_are_no_answer(
    answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn(tmp_path / "in", 2)
    monkeypatch.setattr(answers, "logits", lambda pixels: np.full((len(pixels), 2), np.nan, np.float32))
    with pytest.raises(CheckpointError, match="a stand-in answers with values that are not finite"):
        predict(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out" / "predictions.csv").exists()


@pytest.mark.usefixtures("answers")
def test_names_of_any_kind_stay_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [b'a "b", c.png', b"line\nbreak.png", b"\xff\xfe.png"]
    drawn(tmp_path / "in", 1)
    for name in names:
        shutil.copy(tmp_path / "in/000.png", os.fsencode(tmp_path / "in") + b"/" + name)
    (Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/\xfd.png"))).write_bytes(b"")
    with caplog.at_level("INFO"), pytest.raises(ImageError) as caught:
        predict(tmp_path / "in", tmp_path / "out", gradcam=True)
    found = {os.fsencode(Path(cells["image"]).name) for cells in rows(tmp_path / "out")}
    assert found == {*names, b"000.png"}
    assert "\\xfd.png" in str(caught.value)
    assert all((tmp_path / "out" / cells["gradcam"]).is_file() for cells in rows(tmp_path / "out"))


@pytest.mark.usefixtures("answers")
def test_a_folder_with_predictions_is_left_alone(tmp_path: Path) -> None:
    drawn(tmp_path / "in", 1)
    predict(tmp_path / "in", tmp_path / "out")
    before = (tmp_path / "out/predictions.csv").read_bytes()
    with pytest.raises(RunFolderError, match=r"holds predictions\.csv already"):
        predict(tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out/predictions.csv").read_bytes() == before


@pytest.mark.usefixtures("answers")
def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    from breakhis_pl.locks import locked

    drawn(tmp_path / "in", 1)
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out/.lock", say=print), pytest.raises(RunFolderError, match="another process writes"):
        predict(tmp_path / "in", tmp_path / "out")


@pytest.mark.usefixtures("answers")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    drawn(tmp_path / "in", 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write in .*file/out"):
        predict(tmp_path / "in", tmp_path / "file/out")


def test_nothing_found_is_an_error_before_anything_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataFolderError, match=r"none\.png \(does not exist\)"):
        predict("none.png", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigurationError, match="needs run="):
        program.predict(PredictConfig(), tmp_path)


REFUSED: list[tuple[Sequence[str], str]] = [
    (["images=a"], "nothing to predict with"),
    (["run=a"], "nothing to predict: set images="),
    (["run=a", "images=5"], "images=5 is not possible"),
    (["run=a", "images=[]"], "images=[] is not possible"),
    (["run=a", "images=[a,'']"], "is not possible"),
    (["run=a", "images=a", "gradcam=-1"], "gradcam=-1 is not possible"),
    (["run=a", "images=a", "gradcam=some"], "gradcam=some is not possible"),
    (["run=a", "images=a", "batch_size=0"], "batch_size=0 is not possible"),
    (["run=a", "images=a", "threads=0"], "threads=0 is not possible"),
    (["run=a.onnx", "images=a", "gradcam=2"], "gradcam=2 needs gradients"),
    (["run=a.ONNX", "images=a", "checkpoint=best"], "checkpoint=best is for a run folder"),
    (["run=a.onnx", "images=a", "trainer.accelerator=gpu"], "runs on the CPU in 32-true"),
    (["run=a", "images=a,b"], "several images are written as a list: 'images=[a,b]'"),
    (["-m", "run=a,b", "images=a"], "predict.py predicts with one run at a time"),
    (["run=a", "images=a", "imags=b"], "unknown key imags"),
    (["run=a", "images=none.png"], "none.png (does not exist)"),
]


@pytest.mark.parametrize(("arguments", "text"), REFUSED)
def test_what_cannot_be_is_refused_at_the_door(arguments: Sequence[str], text: str, tmp_path: Path) -> None:
    outcome = run_program("predict", *arguments, cwd=tmp_path)
    assert outcome.status == 1
    assert text in outcome.err
    assert "Traceback" not in outcome.err


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    drawn(tmp_path / "in", 1)
    outcome = run_program("predict", "run=in", "images=in", "hydra.run.dir=out", cwd=tmp_path)
    assert outcome.status == 1
    assert "run=in holds no run.json" in outcome.err


def commands_for_predict() -> list[str]:
    """Those that docs/predict.md and `--help` show."""
    page = (REPOSITORY / "docs" / "predict.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    shown = [line for block in [*blocks, help_text("predict")] for line in block.splitlines()]
    return [line.split("   ")[0] for line in (line.strip() for line in shown) if " predict.py run=" in line]


def test_the_commands_that_are_shown_are_possible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [command for command in commands_for_predict() if not command.startswith("usage")]
    assert len(commands) >= 8
    for command in commands:
        filled = re.sub(r"<[^>]+>", "here", command)
        check_at_the_door("predict", shlex.split(filled)[shlex.split(filled).index("predict.py") + 1 :])


def test_help_names_every_key() -> None:
    text = help_text("predict")
    for field in fields(PredictConfig):
        assert re.search(rf"\b{field.name}\b", text)


# the exported network


@pytest.fixture(scope="module")
def exported(run: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's network with a calibration, as an ONNX file."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("export")
    copy = folder / "run"
    shutil.copytree(run, copy)
    write_calibration(copy / "calibration.json", CALIBRATION)
    with pytest.MonkeyPatch.context() as patched:  # as networks on larger images are
        patched.setattr(run_network, "CHANNELS_LAST_FROM", SIZE)
        done = export_onnx.export_onnx(copy, images=str(images))
    assert done.path == copy / "network.onnx"
    assert done.n_checked >= export_onnx.N_CHECKED
    assert done.logit_difference <= export_onnx.TOLERANCE
    return done.path


CODE = """
import sys
from breakhis_pl.command_line import main
try:
    main("predict", sys.argv[1:])
finally:
    print([name for name in ("torch", "lightning", "torchvision") if name in sys.modules])
"""


def test_an_exported_network_answers_alike_without_torch(exported: Path, images: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, f"run={exported}", f"images={images}", "hydra.run.dir=onnx"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    config = PredictConfig(run=str(exported.parent), images=str(images), batch_size=5)
    config.trainer.accelerator = "cpu"
    program.predict(config, tmp_path / "torch")
    pairs = list(zip(rows(tmp_path / "onnx"), rows(tmp_path / "torch"), strict=True))
    assert len(pairs) == 82
    for onnx, torch_ in pairs:
        for column in COLUMNS:
            if column.startswith("prob"):
                assert abs(float(onnx[column]) - float(torch_[column])) < 1e-4
            elif column != "decision":
                assert onnx[column] == torch_[column]  # the looks of an image come from the same pixels


def test_the_file_says_what_belongs_to_it(exported: Path) -> None:
    import onnx

    entries = {
        entry.key.removeprefix("breakhis_pl."): json.loads(entry.value) for entry in onnx.load(exported).metadata_props
    }
    trained = load_checkpoint(exported.parent / "checkpoints/last.ckpt")
    assert entries["class_names"] == ["benign", "malignant"]
    assert (entries["image_size"], entries["backbone"]) == (32, "resnet18")
    assert (entries["mean"], entries["std"]) == (list(trained.mean), list(trained.std))
    assert entries["calibration"]["temperature"] == CALIBRATION.temperature
    assert entries["domain"]["limit"] == trained.domain.limit  # type: ignore[union-attr]
    assert len(entries["checkpoint_sha256"]) == 64
    assert entries["drawn_images"] is True
    assert "not a medical device" in entries["notice"]
    assert {"commit", "license", "resized", "input", "output", "data"} <= entries.keys()


def program_that(save: Callable[..., None]) -> SimpleNamespace:
    """Stands for what torch's exporter gives."""
    return SimpleNamespace(model=SimpleNamespace(metadata_props={}), save=save)


def test_a_file_that_is_not_what_torch_gives_is_not_left(
    exported: Path, run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(path: Path, *, external_data: bool) -> None:
        assert not external_data
        shutil.copy(exported, path)  # what the exporter gave before

    monkeypatch.setattr(export_onnx, "_exported", lambda _: program_that(save))
    with pytest.raises(CheckpointError, match="the facts in the file's metadata are not those of the run"):
        export_onnx.export_onnx(run, out=tmp_path / "a.onnx", images=str(images))  # that run has no calibration
    monkeypatch.setattr(export_onnx, "TOLERANCE", -1.0)
    with pytest.raises(CheckpointError, match="ONNX Runtime gives other logits than torch"):
        export_onnx.export_onnx(exported.parent, out=tmp_path / "a.onnx", images=str(images))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_said(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(torch.onnx, "export", broken)
    with pytest.raises(CheckpointError, match="cannot export resnet18: RuntimeError: no such operator"):
        export_onnx.export_onnx(run, out=tmp_path / "a.onnx")  # on drawn images, for the run names no folder
    with pytest.raises(ConfigurationError, match=r"expected a name that ends in \.onnx"):
        export_onnx.export_onnx(run, out=tmp_path / "a.bin")
    (tmp_path / "bad.png").write_bytes(b"")
    with pytest.raises(DataFolderError, match="none of the 1 images"):
        export_onnx.export_onnx(run, out=tmp_path / "a.onnx", images=str(tmp_path / "bad.png"))
    with pytest.raises(DataFolderError, match="does not exist"):
        export_onnx.export_onnx(run, out=tmp_path / "a.onnx", images=str(tmp_path / "none"))


@pytest.mark.parametrize("data", ["some text", 7, None, {"root": ["a"]}])
def test_a_run_that_says_nothing_of_its_images_is_compared_on_drawn_ones(data: object, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"config": {"data": data}, "data": {"split_checksum": "x"}}))
    pixels, what = export_onnx._images_to_check(tmp_path, 32, None)
    assert (pixels.shape[1:], what) == ((32, 32, 3), "drawn images")


def test_a_full_disk_is_one_of_our_errors(
    exported: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(path: Path, *, external_data: bool) -> None:
        assert not external_data
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(export_onnx, "_exported", lambda _: program_that(save))
    with pytest.raises(StorageError, match="cannot be written \\(No space left on device\\)"):
        export_onnx.export_onnx(exported.parent, out=tmp_path / "a.onnx", images=str(images))


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["--help"], 0, "usage: python -m breakhis_pl.export_onnx"),
        ([], 2, "usage: python -m breakhis_pl.export_onnx"),
        (["rum=a"], 1, "rum=a is not possible"),
        (["run=a", "run=b"], 1, "run=b is not possible"),
        (["out=a.onnx"], 1, "set run=<run folder>"),
        (["run=none"], 1, "run=none does not exist"),
    ],
)
def test_the_export_command_says_what_is_wrong(
    arguments: list[str], status: int, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_onnx, "packages", lambda: None)
    assert export_onnx.main(arguments) == status
    captured = capsys.readouterr()
    assert text in captured.out + captured.err


def test_the_export_command_says_what_it_did(
    exported: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = export_onnx.Exported(exported, 32, "drawn images", 1e-7)
    monkeypatch.setattr(export_onnx, "export_onnx", lambda *_, **__: done)
    assert export_onnx.main(["run=a"]) == 0
    out = capsys.readouterr().out
    assert "differ by 1.0e-07 at most in a logit (32 drawn images)" in out
    assert NOTICE in out

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export_onnx, "export_onnx", interrupted)
    assert export_onnx.main(["run=a"]) == 130
