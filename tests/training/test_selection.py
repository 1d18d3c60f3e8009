import random
from pathlib import Path

import numpy as np
import pytest
import torch

from breakhis_pl.config import MONITORS
from breakhis_pl.errors import CheckpointError, ConfigurationError
from breakhis_pl.training import background
from breakhis_pl.training.background import BackgroundCheckpointIO
from breakhis_pl.training.checkpoints import best_content, counting_checkpoint, mend_best, named_checkpoint
from breakhis_pl.training.selection import Selection, monitored_value


def chosen(values: list[float], monitor: str = "val_loss", patience: int | None = None) -> Selection:
    selection = Selection(monitor, patience=patience)
    for epoch, value in enumerate(values, start=1):
        if selection.stopped_after is None:
            selection.take(epoch, value)
    return selection


@pytest.mark.parametrize("monitor", MONITORS)
def test_the_best_epoch_is_the_first_of_the_best_value(monitor: str) -> None:
    values = [0.5, 0.3, 0.7, 0.3, 0.7]
    selection = chosen(values, monitor)
    best = min(values) if monitor == "val_loss" else max(values)
    assert (selection.best_epoch, selection.best_value) == (values.index(best) + 1, best)
    assert selection.stopped_after is None


@pytest.mark.parametrize(("patience", "stopped"), [(1, 3), (2, 6), (3, 7), (4, None)])
def test_patience_counts_the_epochs_since_the_best(patience: int, stopped: int | None) -> None:
    values = [0.9, 0.5, 0.6, 0.4, 0.4, 0.5, 0.6]
    assert chosen(values, patience=patience).stopped_after == stopped


def test_patience_begins_when_the_whole_network_is_trained() -> None:
    values = [0.5, 0.6, 0.6, 0.6, 0.6, 0.6]
    ends = []
    for n_frozen in (0, 2, 4, 9):
        selection = Selection("val_loss", patience=2, n_frozen=n_frozen)
        for epoch, value in enumerate(values, start=1):
            if selection.stopped_after is None:
                selection.take(epoch, value)
        ends.append((selection.best_epoch, selection.stopped_after))
    assert ends == [(1, 3), (1, 4), (1, 6), (1, None)]


def test_a_choice_goes_on_from_its_state_as_if_it_never_stopped() -> None:
    chance = random.Random(0)
    for _ in range(50):
        values = [chance.choice([0.1, 0.2, 0.3, 0.4]) for _ in range(12)]
        cut = chance.randrange(1, 12)
        whole, first = chosen(values, patience=3), chosen(values[:cut], patience=3)
        second = Selection("val_loss", patience=3)
        second.load_state_dict(first.state_dict())
        for epoch in range(cut + 1, 13):
            if second.stopped_after is None:
                second.take(epoch, values[epoch - 1])
        assert second.state_dict() == whole.state_dict()


def test_an_unknown_monitor_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"trainer\.monitor=test_loss is not possible"):
        Selection("test_loss")


def test_values_that_the_history_lacks_are_computed_from_logits() -> None:
    targets = np.array([0, 0, 1, 1, 1])
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [0.0, 2.0], [1.0, 0.0]])
    assert monitored_value("val_balanced_accuracy", targets, logits) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert monitored_value("val_auroc", targets, logits) == pytest.approx(5 / 6)  # one pair of six is wrong
    with pytest.raises(ConfigurationError, match="is not computed from logits"):
        monitored_value("val_loss", targets, logits)
    with pytest.raises(ConfigurationError, match="needs validation images of both classes"):
        monitored_value("val_auroc", targets[2:], logits[2:])


def state(epoch: int) -> dict[str, object]:
    """A checkpoint as Lightning counts its epochs, from 0."""
    return {"epoch": epoch - 1, "weights": torch.full((3,), float(epoch))}


def on_disk(path: Path) -> int:
    content = torch.load(path)
    assert content["weights"].tolist() == [content["epoch"] + 1.0] * 3
    return int(content["epoch"]) + 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "checkpoints").mkdir()
    return tmp_path


def save(writer: BackgroundCheckpointIO, folder: Path, epoch: int, *, is_best: bool) -> None:
    best = folder / "checkpoints" / "best.ckpt"
    writer.save_checkpoint(state(epoch), folder / "checkpoints" / "last.ckpt", best if is_best else None)


def test_the_best_state_waits_beside_newer_ones_and_is_written_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    put_same = background.put_same
    monkeypatch.setattr(background, "put_same", lambda a, b: (written.append("best"), put_same(a, b)))
    save_file = torch.save
    monkeypatch.setattr(
        background.torch, "save", lambda content, path: (written.append(content["epoch"] + 1), save_file(content, path))
    )
    writer = BackgroundCheckpointIO()
    writer._not_before = float("inf")  # everything waits
    for epoch in range(1, 7):
        save(writer, folder, epoch, is_best=epoch in (1, 2, 4))
    writer.flush()
    writer.teardown()
    assert written == [4, "best", 6]
    assert (on_disk(folder / "checkpoints/best.ckpt"), on_disk(folder / "checkpoints/last.ckpt")) == (4, 6)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


def test_at_every_moment_the_best_checkpoint_is_there_or_can_be_mended(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each change on the disk, whatever waited, as a killed process would leave it."""
    chance = random.Random(1)
    values = [chance.random() for _ in range(40)]
    best_of = {epoch: chosen(values[:epoch]) for epoch in range(1, 41)}
    moments = 0

    def look() -> None:
        nonlocal moments
        last = on_disk(folder / "checkpoints/last.ckpt")
        best = folder / "checkpoints/best.ckpt"
        expected = best_of[last].best_epoch
        assert last == expected or on_disk(best) == expected
        moments += 1

    replace = Path.replace

    def replaced(self: Path, target: Path) -> Path:
        result = replace(self, target)
        look()
        return result

    monkeypatch.setattr(Path, "replace", replaced)
    writer = BackgroundCheckpointIO()
    for epoch in range(1, 41):
        writer._not_before = float("inf") if chance.random() < 0.6 else 0.0
        save(writer, folder, epoch, is_best=best_of[epoch].best_epoch == epoch)
        while writer.is_busy:
            pass
    writer.flush()
    writer.teardown()
    assert moments > 10
    assert on_disk(folder / "checkpoints/best.ckpt") == best_of[40].best_epoch


def test_a_run_killed_between_the_two_files_gets_its_best_back(folder: Path) -> None:
    torch.save(state(3), folder / "checkpoints/last.ckpt")
    torch.save(state(1), folder / "checkpoints/best.ckpt")
    mend_best(folder, chosen([0.9, 0.8, 0.7]), last_epoch=3)
    assert on_disk(folder / "checkpoints/best.ckpt") == 3
    torch.save(state(4), folder / "other")
    (folder / "other").replace(folder / "checkpoints/last.ckpt")
    mend_best(folder, chosen([0.9, 0.8, 0.7, 0.8]), last_epoch=4)
    assert best_content(folder, chosen([0.9, 0.8, 0.7, 0.8]))["epoch"] == 2


def test_without_hard_links_the_file_is_copied(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    torch.save(state(1), folder / "checkpoints/last.ckpt")
    mend_best(folder, chosen([0.9]), last_epoch=1)
    assert on_disk(folder / "checkpoints/best.ckpt") == 1


def test_a_best_checkpoint_that_is_another_one_or_gone_is_said(folder: Path) -> None:
    torch.save(state(3), folder / "checkpoints/last.ckpt")
    with pytest.raises(CheckpointError, match=r"best\.ckpt cannot be read .*expected epoch 2, the best .*val_loss"):
        mend_best(folder, chosen([0.9, 0.7, 0.8]), last_epoch=3)
    torch.save(state(1), folder / "checkpoints/best.ckpt")
    with pytest.raises(CheckpointError, match=r"best\.ckpt is of another epoch; expected epoch 2"):
        mend_best(folder, chosen([0.9, 0.7, 0.8]), last_epoch=3)


def test_names_of_checkpoints_are_those_of_the_run(folder: Path) -> None:
    last, best = (folder / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    assert counting_checkpoint(folder) == named_checkpoint(folder, "auto") == last
    with pytest.raises(CheckpointError, match=r"checkpoint=best: .* nothing was chosen in that run; take"):
        named_checkpoint(folder, "best")
    best.touch()
    assert counting_checkpoint(folder) == named_checkpoint(folder, "auto") == named_checkpoint(folder, "best") == best
    assert named_checkpoint(folder, "last") == last
    assert named_checkpoint(folder, "a/b.ckpt") == Path("a/b.ckpt")
