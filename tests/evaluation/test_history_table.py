from pathlib import Path

import pytest

from breakhis_pl.evaluation.file_texts import DamagedFileError
from breakhis_pl.evaluation.history_table import MOST_EPOCHS, read_history

HEADER = "epoch,train_loss,train_accuracy,test_loss,test_accuracy,learning_rate,images_per_second"
ROW = "1,0.5,0.75,0.4,0.8,0.001,100"

DAMAGES = {
    "": "column epoch, train_loss, train_accuracy is missing",
    "epoch,train_loss\nx,nan\n": "column train_accuracy is missing",
    f"{HEADER}\n{ROW.replace('0.5', 'much')}\n": "line 2, column 'train_loss': 'much' is no number",
    f"{HEADER}\n{ROW.replace('0.75', '75')}\n": "line 2, column 'train_accuracy': '75' is not possible",
    f"{HEADER}\n{ROW.replace('0.5', '-1')}\n": "line 2, column 'train_loss': '-1' is not possible",
    f"{HEADER}\n{ROW}\n{ROW.replace('1,', '3,', 1)}\n": "line 3 is of epoch '3'; expected 2",
    f"{HEADER}\n{ROW}\n{ROW}\n": "line 3 is of epoch '1'; expected 2",
    f"{HEADER}\nx{ROW[1:]}\n": "line 2, column 'epoch': 'x' is no number",
    f"{HEADER}\n{ROW[1:]}\n": "line 2 is of epoch ''; expected 1",
    f"{HEADER}\n1,0.5\n": "line 2 has 2 values, not 7",
    "\x89PNG\r\n\x1a\n": "column epoch, .* is missing",
}


@pytest.mark.parametrize("content", DAMAGES)
def test_a_damaged_history_is_named_by_line_and_column(tmp_path: Path, content: str) -> None:
    (tmp_path / "history.csv").write_text(content, encoding="utf-8")

    with pytest.raises(DamagedFileError, match=DAMAGES[content]):
        read_history(tmp_path / "history.csv")


def test_a_history_of_more_epochs_than_can_be_meant_and_a_folder_are_refused(tmp_path: Path) -> None:
    rows = "\n".join(ROW.replace("1,", f"{epoch},", 1) for epoch in range(1, MOST_EPOCHS + 2))
    (tmp_path / "history.csv").write_text(f"{HEADER}\n{rows}\n")

    with pytest.raises(DamagedFileError, match="more than 10,000 epochs"):
        read_history(tmp_path / "history.csv")
    with pytest.raises(DamagedFileError, match="cannot be read"):
        read_history(tmp_path)


def test_empty_and_infinite_cells_are_no_values(tmp_path: Path) -> None:
    (tmp_path / "history.csv").write_text(f"{HEADER}\n1,inf,,nan,0.5,0.1,-inf\n")

    assert read_history(tmp_path / "history.csv") == (
        {
            **{"epoch": 1, "train_loss": None, "train_accuracy": None, "test_loss": None, "test_accuracy": 0.5},
            **{"learning_rate": 0.1, "images_per_second": None},
        },
    )


def test_a_history_without_an_epoch_yet_is_empty(tmp_path: Path) -> None:
    (tmp_path / "history.csv").write_text(f"{HEADER}\n")

    assert read_history(tmp_path / "history.csv") == ()


def test_a_trial_of_a_study_has_no_column_of_test(tmp_path: Path) -> None:
    (tmp_path / "history.csv").write_text("epoch,train_loss,train_accuracy,val_loss\n1,0.5,0.75,0.4\n")

    (row,) = read_history(tmp_path / "history.csv")
    assert "test_loss" not in row
