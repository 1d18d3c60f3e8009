"""Pages in one file: templates, pictures inside the page, tables. All text is escaped."""

import base64
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from breakhis_pl.metrics.evaluation import format_estimate
from breakhis_pl.reporting.figures import figure_png

CSS_PIXELS_PER_INCH = 96
"""Figures are drawn at 150 dpi, so that they stay sharp on fine screens and on paper."""

Estimate: TypeAlias = Mapping[str, Any]
"""A value with its interval as in metrics.json: `{"value": 0.9, "ci95": [0.8, 1.0]}`."""


@dataclass(frozen=True)
class Picture:
    """An image inside a page: data URI, size in CSS pixels, text alternative."""

    src: str
    width: int
    height: int
    alt: str


@dataclass(frozen=True)
class Link:
    """A cell that links to a file beside the page, relative to it."""

    text: str
    href: str


Cell: TypeAlias = str | Estimate | Link | None


@dataclass(frozen=True)
class Table:
    """A table of a page.

    Attributes:
        caption: Text above it.
        headings: One per column; the first column names the rows.
        rows: One cell per column.
        texts: Columns of text; the others are numbers. The first one is always text.
        emphasized: Rows to emphasize.
        note: Text below it.
    """

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    texts: Collection[str] = ()
    emphasized: Collection[int] = ()
    note: str | None = None

    def is_number(self, index: int) -> bool:
        """Whether a column has numbers."""
        return index > 0 and self.headings[index] not in self.texts


@dataclass(frozen=True)
class Section:
    """A part of a comparison: anchor, heading, sentences, pictures with captions, tables, notes."""

    key: str
    heading: str
    points: Sequence[str] = ()
    pictures: Sequence[tuple[Picture, str]] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()


def _show(value: object) -> object:
    """Write control characters out, such as those that reverse the direction of text."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\u{ord(c):04x}" for c in value)


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("breakhis_pl.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_show,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render(template: str, **context: object) -> str:
    """Render a page.

    Args:
        template: Name of a file in templates/.
        **context: Values of the template.
    """
    return _environment().get_template(template).render(**context)


def data_uri(content: bytes, media_type: str) -> str:
    """Put a file into a URI.

    Example:
        >>> data_uri(b"abc", "image/png")
        'data:image/png;base64,YWJj'
    """
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def picture_of(figure: Figure, *, alt: str) -> Picture:
    """Put a figure into a page, in the size in which it was drawn."""
    width, height = (round(inches * CSS_PIXELS_PER_INCH) for inches in figure.get_size_inches())
    return Picture(data_uri(figure_png(figure), "image/png"), width, height, alt)


def relative_path(path: Path, folder: Path) -> str:
    """Return a path relative to a folder; a file URL if it is on another drive of Windows."""
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:
        return path.resolve().as_uri()


def link(text: str, page: Path, folder: Path) -> Cell:
    """Return a link from a page in a folder to another page; the text alone if that does not exist."""
    return Link(text, relative_path(page, folder)) if page.is_file() else text


def three_digits(value: float | None) -> str | None:
    """Format a number; None stays None."""
    return None if value is None else f"{value:.3f}"


def to_markdown(text: object) -> str:
    r"""Write text on one line in which nothing is markup.

    Example:
        >>> to_markdown("a|b`c\nd")
        'a\\|b\\`c d'
    """
    line = re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in str(text))).strip()
    line = re.sub(r"([\\|`*\[\]~<>])|(?<![A-Za-z0-9])(_)|(_)(?![A-Za-z0-9])", r"\\\g<0>", line)
    return line.replace("&", "&amp;")


def table_to_markdown(table: Table) -> str:
    """Write a table as Markdown."""
    numbers = range(len(table.headings))
    lines = [
        [to_markdown(heading) for heading in table.headings],
        ["---:" if table.is_number(index) else "---" for index in numbers],
        *([_cell_to_markdown(cell) for cell in row] for row in table.rows),
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell_to_markdown(cell: Cell) -> str:
    match cell:
        case None:
            return "-"
        case Link(text, href):
            return f"[{to_markdown(text)}](<{href.replace('|', '%7C')}>)"
        case Mapping():
            return format_estimate(cell)
        case _:
            return to_markdown(cell)
