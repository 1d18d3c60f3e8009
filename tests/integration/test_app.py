"""The page of app.py in Chromium."""

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from breakhis_pl.config import AppConfig, validate
from tests.configs import compose_all
from tests.conftest import REPOSITORY
from tests.programs import run_program

CHROMIUM = Path("/usr/bin/chromium")

pytestmark = pytest.mark.extra("gradio")


@pytest.fixture(scope="module")
def address(finished_run: Path) -> Iterator[str]:
    """The page of a run, served on a free port of this machine by a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, str(REPOSITORY / "app.py"), f"run={finished_run}", f"port={port}"]
    with subprocess.Popen(command, cwd=finished_run.parent, stdout=subprocess.DEVNULL) as process:
        for _ in range(240):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
        process.terminate()


@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")
@pytest.mark.parametrize("width", [1280, 400])
def test_pictures_are_predicted_and_explained_without_a_request_elsewhere(
    address: str, finished_run: Path, synthetic_cache: Path, tmp_path: Path, width: int
) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    row = pd.read_csv(finished_run / "test" / "predictions.csv").iloc[0]
    (tmp_path / "no picture").write_text("text")
    picture = shutil.copy(next(synthetic_cache.rglob(row["image"])), tmp_path)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        page.set_input_files("input[type=file]", [picture, str(tmp_path / "no picture")])
        page.wait_for_selector("figcaption", timeout=60_000)
        cells = page.eval_on_selector_all(".prose td", "all => all.map(each => each.textContent)")
        text = page.inner_text("body")
        overflow = page.evaluate("document.documentElement.scrollWidth")
        browser.close()
    probability = max(row["prob_benign"], row["prob_malignant"])
    assert cells[:3] == [row["image"], row["predicted"], f"{probability:.3f}"]
    assert cells[5] == "no picture"
    assert "not a medical device" in text
    assert "C02 Synthetic images" in text
    assert text.count("similarity") == 6
    assert overflow <= width
    assert all(url.startswith((address.rstrip("/"), "data:", "blob:")) for url in requests)


@pytest.mark.parametrize(("argument", "key"), [("run=nowhere", "nowhere"), ("port=0", "port=0")])
def test_a_run_or_port_that_cannot_be_used_is_refused(
    finished_run: Path, tmp_path: Path, argument: str, key: str
) -> None:
    outcome = run_program("app", f"run={finished_run}", argument, cwd=tmp_path)
    assert outcome.status == 1
    assert key in outcome.err


def test_other_train_images_than_those_of_the_run_are_not_shown(finished_run: Path, tmp_path: Path) -> None:
    from breakhis_pl.inference.app import open_train_images
    from breakhis_pl.inference.predictor import open_predictor

    copy = shutil.copytree(finished_run, tmp_path / "run")
    config = validate(AppConfig, compose_all("app", f"run={copy}", "trainer.accelerator=cpu"))
    predictor = open_predictor(copy, checkpoint="auto", trainer=config.trainer)
    assert open_train_images(config, predictor) is not None
    record = json.loads((copy / "run.json").read_text())
    record["data"]["split_checksum"] = "of other images"
    (copy / "run.json").write_text(json.dumps(record))
    assert open_train_images(config, predictor) is None


def test_nothing_in_a_cell_is_markup() -> None:
    from breakhis_pl.inference.app import to_html

    assert "<b>" not in to_html(pd.DataFrame({"picture": ["<b>"]}))
