"""Every file that a page or a table is made from, changed thousands of times: refused in words, or read."""

import random
import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from breakhis_pl.errors import BreakHisError
from breakhis_pl.evaluation import pages
from breakhis_pl.evaluation.__main__ import main
from breakhis_pl.evaluation.calibration import fit_calibration, write_calibration
from breakhis_pl.evaluation.comparison import write_comparison
from breakhis_pl.evaluation.metrics import write_metrics
from breakhis_pl.evaluation.report import report_html
from breakhis_pl.evaluation.run_files import read_run_files
from breakhis_pl.evaluation.run_metrics import evaluate_table
from tests.evaluation.mutations import mutated_csv, mutated_json
from tests.evaluation.page_outline import outline_of
from tests.evaluation.written_runs import add_gallery, drawn_predictions, write_run

N_MUTATIONS = 1_500
LONGEST_MESSAGE = 3_000
LONGEST_SECONDS = 10
MOST_MEBIBYTES = 300

FILES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "test/predictions.csv": mutated_csv,
    "history.csv": mutated_csv,
    "split.csv": mutated_csv,
    "test/metrics.json": mutated_json,
    "run.json": mutated_json,
    "calibration.json": mutated_json,
    "test/gallery/gallery.json": mutated_json,
}


def whole_run(folder: Path) -> Path:
    """A run with every file that there may be."""
    write_run(folder, drawn_predictions(images_per_patient=1), with_validation=True)
    add_gallery(folder, n_per_kind=1)
    write_calibration(folder / "calibration.json", fit_calibration(drawn_predictions()))
    write_metrics(folder / "test/metrics.json", evaluate_table(folder / "test/predictions.csv", n_draws=100))
    return folder


def look_at(folder: Path, number: int) -> None:
    """What the programs do with a run; what takes long only with some of the files."""
    files = read_run_files(folder)
    if number % 10 == 0:
        page = outline_of(report_html(files))
        assert not page.all("script")
        assert not {character for character in page.text() if not character.isprintable()}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_refused_in_words_or_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pages, "png_data_uri", lambda _: "data:,")  # drawing is not what is tried here
    folder = whole_run(tmp_path / "sweep" / "run")
    path, table = folder / name, folder / "test/predictions.csv"
    whole = path.read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    messages: list[str] = []
    for number in range(N_MUTATIONS):
        content = FILES[name](whole, random.Random(f"{name} {number}"))
        path.write_bytes(content)
        began = time.monotonic()
        try:
            look_at(folder, number)
        except BreakHisError as error:
            messages.append(str(error))
        if number % 5 == 0:
            write_comparison(folder.parent)
        if name.endswith(".csv") and number % 5 == 0:
            assert main([str(table), "--draws", "100", "--out", str(tmp_path / "out")]) in (0, 1)
            assert "Traceback" not in capsys.readouterr().err
        assert time.monotonic() - began < LONGEST_SECONDS, number
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    assert len(messages) < N_MUTATIONS
    assert len(messages) > N_MUTATIONS / 10 or name == "history.csv"  # of which a page says that it cannot be read
    assert max(map(len, messages), default=0) < LONGEST_MESSAGE
    assert grown < MOST_MEBIBYTES * 1024
