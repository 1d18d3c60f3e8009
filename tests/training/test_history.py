import pytest

from breakhis_pl.training.history import duration, epoch_line


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (3599, "59 min 59 s"), (7260, "2 h 1 min")]
)
def test_time_spans_are_readable(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_the_line_of_an_epoch_names_every_subset_and_the_time_left() -> None:
    row = {
        "epoch": 2,
        "train_loss": 0.5,
        "train_accuracy": 0.75,
        "val_loss": 0.6,
        "val_accuracy": 0.7,
        "test_loss": 0.61234,
        "test_accuracy": 0.71,
        "learning_rate": 1e-3,
        "images_per_second": 1234.5,
    }
    assert epoch_line(row, max_epochs=5, seconds_per_epoch=30) == (
        "epoch 2/5  train loss 0.500 accuracy 0.750  val loss 0.600 accuracy 0.700  "
        "test loss 0.612 accuracy 0.710  1,234 images/s, 1 min 30 s left"
    )
