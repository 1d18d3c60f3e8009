"""report.html and comparison.html in Chromium."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from breakhis_pl.reporting.comparison import write_comparison
from tests.unit.reporting.conftest import make_table, with_decisions, write_run

CHROMIUM = Path("/usr/bin/chromium")
NAMES = ("report", "comparison")

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")

OpenPage = Callable[..., Any]


@pytest.fixture(scope="module")
def pages(full_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of a run with all parts, and a comparison of runs with long names over three folds."""
    folder = tmp_path_factory.mktemp("sweep")
    for number, fold in enumerate((1, 3, 1, 2, 3)):
        backbone = "resnet18" if number < 2 else "a_network_with_a_rather_long_name_of_one_word"
        name = f"model.backbone={backbone},optimizer.lr=0.0005,data.fold={number}"
        table = with_decisions(make_table(), make_table(seed=number, skill=0.7))
        write_run(folder / name, table, f"data.fold={fold}", f"model.backbone={backbone}")
    write_run(folder / "failed", status="failed", error="a_word_that_never_ends_" * 10)
    write_comparison(folder)
    return {"report": full_run / "report.html", "comparison": folder / "comparison.html"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any, pages: dict[str, Path]) -> Iterator[OpenPage]:
    """Open a page in a context of its own; fail if it logs, raises or requests anything."""
    contexts, faults = [], []

    def open_one(name: str, *, width: int, scheme: str = "light", javascript: bool = True) -> Any:
        address = pages[name].as_uri()

        def handle(route: Any) -> None:
            if route.request.url != address and not route.request.url.startswith("data:"):
                faults.append(route.request.url)
            route.continue_()

        size = {"width": width, "height": 900}
        context = browser.new_context(viewport=size, color_scheme=scheme, java_script_enabled=javascript)
        contexts.append(context)
        page = context.new_page()
        page.route("**/*", handle)
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
        page.goto(address)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert not faults


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), pytest.param(1280, "dark", marks=pytest.mark.slow)])
def test_pages_fit_the_screen_and_show_every_cell(open_page: OpenPage, name: str, width: int, scheme: str) -> None:
    page = open_page(name, width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = page.evaluate("[...document.querySelectorAll('.table-box')].map(b => [b.scrollWidth, b.clientWidth])")
    assert all(content <= box for content, box in boxes)
    cells = page.evaluate(
        "[...document.querySelectorAll('tbody td')].map(cell => {const box = cell.getBoundingClientRect();"
        " return [box.width, box.left, box.right, cell.innerText]})"
    )
    assert len(cells) > 50
    for cell_width, left, right, text in cells:
        assert cell_width > 0, text
        assert left >= 0, text
        assert right <= width, text
    background = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (min(background) > 200) is (scheme == "light")


@pytest.mark.parametrize("width", [400, pytest.param(1280, marks=pytest.mark.slow)])
def test_a_click_enlarges_an_image_and_a_second_one_closes_it(open_page: OpenPage, width: int) -> None:
    page = open_page("report", width=width, javascript=False)
    for image in (page.locator(".gallery img").first, page.locator(".gallery img").last):
        before = image.bounding_box()
        image.click()
        assert image.bounding_box() == {"x": 0, "y": 0, "width": width, "height": 900}
        image.click()
        assert image.bounding_box()["width"] == before["width"] < width
