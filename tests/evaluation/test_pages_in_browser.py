"""The pages of a run and of a comparison as a browser shows them; skipped where there is no Chromium."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from breakhis_pl.evaluation.comparison import write_comparison
from breakhis_pl.evaluation.report import write_report
from tests.evaluation.written_runs import add_gallery, drawn_predictions, write_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SWITCHES = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
NASTY = "<script>alert(1)</script>"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of a run with a gallery and a command that is markup, and that of two runs beside each other."""
    folder = tmp_path_factory.mktemp("two runs")
    report_folder = write_run(folder / "a run", facts={"command": f"uv run train.py {NASTY}"})
    add_gallery(report_folder, n_per_kind=3)
    write_run(folder / "another run with a name that is rather long", drawn_predictions(skill=0.5))
    write_comparison(folder)
    return {"report": write_report(report_folder), "comparison": folder / "comparison.html"}


@pytest.fixture(scope="module")
def browser():  # type: ignore[no-untyped-def]  # playwright is imported where chromium is there
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(SWITCHES))
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, pages: dict[str, Path]) -> Iterator[Callable]:  # type: ignore[no-untyped-def,type-arg]
    """Opens the page in a window of its own and fails on anything it asks for, logs or runs."""
    windows, faults = [], []

    def open_page(  # type: ignore[no-untyped-def]
        name: str = "report", *, width: int, scheme: str = "light", javascript: bool = True
    ):
        address = pages[name].as_uri()
        window = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=javascript
        )
        windows.append(window)
        page = window.new_page()

        def only_the_file(route) -> None:  # type: ignore[no-untyped-def]
            if route.request.url == address or route.request.url.startswith("data:"):
                route.continue_()
            else:
                faults.append(f"asks for {route.request.url}")
                route.abort()

        page.route("**/*", only_the_file)
        page.on("console", lambda message: faults.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(address)
        return page

    yield open_page
    for window in windows:
        window.close()
    assert not faults


@pytest.mark.parametrize("name", ["report", "comparison"])
@pytest.mark.parametrize(
    ("scheme", "width"),
    [
        *(("light", width) for width in (320, 400, 800, 1100, 1600)),
        ("dark", 320),
        *(pytest.param("dark", width, marks=pytest.mark.slow) for width in (400, 800, 1100, 1600)),  # colors differ
    ],
)
def test_the_page_never_scrolls_sideways(opened: Callable, name: str, width: int, scheme: str) -> None:
    page = opened(name, width=width, scheme=scheme)

    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.documentElement.scrollHeight") > 900


@pytest.mark.parametrize(("name", "n_pictures"), [("report", 6 + 9), ("comparison", 1)])
def test_every_picture_loads_and_has_an_alternative_text(opened: Callable, name: str, n_pictures: int) -> None:
    page = opened(name, width=1600)
    pictures = page.evaluate("[...document.images].map(i => [i.naturalWidth, i.clientWidth, i.clientHeight, i.alt])")

    assert len(pictures) == n_pictures
    for natural_width, shown_width, shown_height, alternative in pictures:
        assert min(natural_width, shown_width, shown_height) > 100
        assert len(alternative) > 20


def test_wide_tables_scroll_in_their_own_box(opened: Callable) -> None:
    boxes = opened(width=400).evaluate(
        "[...document.querySelectorAll('table')].map(t => [t.offsetWidth, t.parentElement.clientWidth])"
    )

    assert any(table > box for table, box in boxes)
    assert all(box < 400 for _, box in boxes)


@pytest.mark.parametrize("name", ["report", "comparison"])
def test_every_table_has_a_caption_and_headings(opened: Callable, name: str) -> None:
    page = opened(name, width=1600)
    faults = page.evaluate(
        "[...document.querySelectorAll('table')].filter(t => !t.caption || !t.querySelector('thead th[scope=col]') || "
        "[...t.tBodies[0].rows].some(r => !r.querySelector('th[scope=row]'))).length"
    )

    assert page.locator("table").count() >= 4
    assert faults == 0


@pytest.mark.parametrize("name", ["report", "comparison"])
def test_dark_and_light_differ_and_both_can_be_read(opened: Callable, name: str) -> None:
    """Contrast as WCAG 2.2 defines it; 4.5 is its demand for text."""
    contrast = """() => {
      const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(v => v / 255)
          .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
        if (!/, 0\\)$/.test(c)) return c; } return 'rgb(255, 255, 255)'; };
      return [...document.querySelectorAll('p, li, dt, dd, td, th, a, h1, h2, h3, figcaption, caption, code, strong')]
        .filter(e => e.textContent.trim() && e.checkVisibility()).map(e => {
          const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
          return [(a + 0.05) / (b + 0.05), e.textContent.slice(0, 40)]; }).sort((x, y) => x[0] - y[0])[0]; }"""
    paper = "getComputedStyle(document.body).backgroundColor"
    shown = [opened(name, width=1280, scheme=scheme) for scheme in ("light", "dark")]

    assert shown[0].evaluate(paper) != shown[1].evaluate(paper)
    for page in shown:
        least, text = page.evaluate(contrast)
        assert least > 4.5, text


def test_figures_keep_white_paper_in_the_dark(opened: Callable) -> None:
    page = opened(width=1280, scheme="dark")

    assert page.evaluate("getComputedStyle(document.querySelector('figure img')).backgroundColor") == (
        "rgb(255, 255, 255)"
    )


def test_markup_from_outside_is_text_on_the_page(opened: Callable) -> None:
    page = opened(width=1280)

    assert NASTY in page.locator("#repeat pre").inner_text()
    assert page.locator("script").count() == 0


def test_the_page_needs_no_script(opened: Callable) -> None:
    page = opened(width=1280, javascript=False)

    assert page.locator("#cite").is_visible()
    assert page.locator("table").count() == 6


@pytest.mark.parametrize("name", ["report", "comparison"])
def test_links_of_the_contents_lead_to_their_sections(opened: Callable, name: str) -> None:
    page = opened(name, width=1600)

    assert page.locator(".toc a").count() > 2
    for link in page.locator(".toc a").all():
        assert page.locator(str(link.get_attribute("href"))).count() == 1


def test_the_result_is_on_the_first_screen(opened: Callable) -> None:
    page = opened(width=1600)

    for selector in (".key-numbers", ".overview figure img", ".warnings"):
        box = page.locator(selector).first.bounding_box()
        assert box["y"] < 900


@pytest.mark.parametrize("name", ["report", "comparison"])
def test_it_prints_on_white_paper_without_the_contents(opened: Callable, name: str) -> None:
    page = opened(name, width=1280, scheme="dark")
    page.emulate_media(media="print")

    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator(".toc").is_visible()
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
