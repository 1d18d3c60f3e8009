import io
from pathlib import Path

import pytest

from tests.programs import TINY, run_program


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_bar_shows_loss_accuracy_speed_and_time_left(
    tmp_path: Path, drawn_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from breakhis_pl.training import progress

    monkeypatch.setattr(progress, "REFRESH_S", 0.0)
    terminal = Terminal()
    made = progress.tqdm
    monkeypatch.setattr(progress, "tqdm", lambda **options: made(file=terminal, mininterval=0, ncols=200, **options))
    arguments = (*TINY, f"data.cache_dir={drawn_cache}", "trainer.max_epochs=1", "hydra.run.dir=run")
    outcome = run_program("train", *arguments, cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    text = terminal.getvalue()
    assert "epoch 1/1" in text
    for part in ("loss 0.", "accuracy 0.", "images/s", " left"):
        assert part in text
    assert "7/9 batches" in text or "9/9 batches" in text or "/3 batches" in text
