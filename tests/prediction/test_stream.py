import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from breakhis_pl.prediction import stream
from breakhis_pl.prediction.stream import Decoded, Unreadable, decode, decoded


def test_a_file_is_resized_and_described(tmp_path: Path) -> None:
    Image.effect_noise((70, 46), 60).convert("RGB").save(tmp_path / "a.png")
    image = decode(str(tmp_path / "a.png"), 32)
    assert isinstance(image, Decoded)
    assert (image.width, image.height, image.pixels.shape, image.pixels.dtype) == (70, 46, (32, 32, 3), np.uint8)


def test_a_file_that_cannot_be_read_gives_its_reason(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    assert decode(str(tmp_path / "a.png"), 32) == Unreadable(str(tmp_path / "a.png"), "empty file (0 bytes)")


def test_a_lack_of_memory_for_one_file_stops_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(stream, "resized", full)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    found = decode(str(tmp_path / "a.png"), 32)
    assert isinstance(found, Unreadable)
    assert "not enough memory for it" in found.reason


def test_results_come_in_order_whatever_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    first_may_end = threading.Event()

    def slow(path: str, *_: object) -> Unreadable:
        if path == "0":
            first_may_end.wait(10)
        if path == "3":
            first_may_end.set()
        return Unreadable(path, "")

    monkeypatch.setattr(stream, "decode", slow)
    results = decoded([str(n) for n in range(20)], image_size=32, n_threads=4, n_ahead=8)
    assert [each.path for each in results] == [str(n) for n in range(20)]


def test_no_more_than_asked_for_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []

    def counted(path: str, *_: object) -> Unreadable:
        begun.append(path)
        return Unreadable(path, "")

    monkeypatch.setattr(stream, "decode", counted)
    results = decoded((str(n) for n in range(100_000)), image_size=32, n_threads=2, n_ahead=6)
    for number in range(10):
        assert next(results).path == str(number)
        assert len(begun) <= number + 1 + 6
    results.close()  # type: ignore[attr-defined]
    assert len(begun) <= 10 + 6
