from html.parser import HTMLParser
from pathlib import Path

import pytest

from breakhis_pl.evaluation.comparison import write_comparison
from tests.evaluation.run_folders import run_document, table, write_run

MARKUP = "<script>alert('x')</script> & \"b\""


class Elements(HTMLParser):
    """The elements of a page with their attributes, and the text of each element by its name."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.texts.setdefault(tag, []).append("")
        if tag not in {"img", "meta", "link", "line", "br"}:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in self._open:
            self.texts[tag][-1] += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def elements_of(folder: Path) -> Elements:
    return Elements(write_comparison(folder).with_suffix(".html").read_text(encoding="utf-8"))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    write_run(tmp_path, "resnet18", predictions=table((0, 3)))
    write_run(tmp_path, "wide", run_document("wide_resnet50_2"), predictions=table((1, 2, 6, 9)))
    write_run(tmp_path, "torn", {"status": "failed", "error": f"out of memory {MARKUP}"}).joinpath(
        "test", "metrics.json"
    ).unlink()
    return tmp_path


def test_the_page_holds_everything_and_asks_for_nothing(sweep: Path) -> None:
    page = elements_of(sweep)

    assert not page.named("script")
    addresses = [
        value for _, attributes in page.elements for name, value in attributes.items() if name in {"src", "href"}
    ]
    assert addresses
    assert all(address is not None and address.startswith(("data:", "#")) for address in addresses)
    assert "url(" not in "".join(page.texts["style"])
    assert page.named("html")[0]["lang"] == "en"
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.named("meta")


def test_sections_are_those_of_the_markdown_page_and_are_linked(sweep: Path) -> None:
    page = elements_of(sweep)

    markdown = (sweep / "comparison.md").read_text(encoding="utf-8")
    headings = [line.removeprefix("## ") for line in markdown.splitlines() if line.startswith("## ")]
    assert page.texts["h2"] == headings
    assert len(page.texts["h1"]) == 1
    keys = [attributes["id"] for attributes in page.named("section")]
    links = [attributes["href"] for attributes in page.named("a")]
    assert [f"#{key}" for key in keys] == links[-len(keys) :]
    assert len(page.texts["table"]) == sum(line.startswith("| ---") for line in markdown.splitlines())


def test_the_figure_is_embedded_and_says_its_numbers_in_words(sweep: Path) -> None:
    (picture,) = elements_of(sweep).named("img")

    assert (picture["src"] or "").startswith("data:image/png;base64,iVBOR")
    assert int(picture["width"] or 0) > 300
    assert "resnet18 minus wide +0.1" in (picture["alt"] or "")


def test_tables_have_headers_and_captions(sweep: Path) -> None:
    page = elements_of(sweep)

    assert len(page.named("caption")) == len(page.named("table"))
    assert all(page.texts["caption"])
    assert {attributes.get("scope") for attributes in page.named("th")} == {"col", "row"}
    assert all(text.strip() for text in page.texts["th"])


def test_what_comes_from_names_and_errors_is_text(sweep: Path) -> None:
    name = "a<b>&'c'"
    write_run(sweep, name, run_document("<img src=x onerror=alert(1)>"), predictions=table((5,)))

    page = elements_of(sweep)

    assert not page.named("script")
    assert not page.named("b")
    assert len(page.named("img")) == 1
    assert name in page.texts["th"]
    assert f"out of memory {MARKUP}" in page.texts["td"]
    assert name in (page.named("img")[0]["alt"] or "")


def test_runs_without_a_result_make_a_page_too(tmp_path: Path) -> None:
    (tmp_path / "refused" / ".hydra").mkdir(parents=True)

    page = elements_of(tmp_path)

    assert page.texts["h2"] == ["Runs without a full result"]
    assert "0 of 1 run with a result." in page.texts["p"][1]
    assert not page.named("img")
    assert not page.named("nav")


def test_warnings_stand_before_the_numbers_and_on_the_figure(tmp_path: Path) -> None:
    for name in "ab":
        write_run(tmp_path, name, run_document(synthetic=True), predictions=table((len(name),)))

    page = elements_of(tmp_path)

    assert page.texts["strong"] == ["Synthetic images, no tissue."]
    assert [name for name, _ in page.elements].index("strong") < [name for name, _ in page.elements].index("table")
