"""What the pages of a comparison are made of, before it becomes Markdown or HTML; nothing in it is escaped yet."""

from collections.abc import Sequence
from dataclasses import dataclass

from breakhis_pl.evaluation.pages import Column, Picture, Table

Warnings = Sequence[tuple[str, str]]
"""What a reader must know before any number: a heading, and a sentence."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page.

    Attributes:
        key: Its address on the page.
        heading: Stands above it.
        points: A list of sentences.
        picture: Stands below them.
        caption: Of the picture.
        tables: Stand below it, each with its own note.
        notes: Paragraphs at the end.
    """

    key: str
    heading: str
    points: Sequence[str] = ()
    picture: Picture | None = None
    caption: str = ""
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ComparisonPage:
    """The content of comparison.md and comparison.html.

    Attributes:
        lead: Sentences on what was trained and tested on.
        warnings: What to beware of.
        sections: In their order.
    """

    lead: Sequence[str]
    warnings: Warnings
    sections: Sequence[Section]


def columns(texts: Sequence[str], numbers: Sequence[str]) -> list[Column]:
    """Columns of text, then columns of numbers, by their headings."""
    return [*(Column(heading) for heading in texts), *(Column(heading, is_number=True) for heading in numbers)]


def number_cell(value: float | None, form: str) -> str | None:
    """A number as text, None where there is none.

    Example:
        >>> number_cell(0.25, "{:+.3f}"), number_cell(None, "{}")
        ('+0.250', None)
    """
    return None if value is None else form.format(value)


def matrix_cell(matrix: Sequence[Sequence[int]] | None) -> str | None:
    """A matrix on one line.

    Example:
        >>> matrix_cell([[119, 49], [25, 404]])
        '119, 49; 25, 404'
    """
    return None if matrix is None else "; ".join(", ".join(str(count) for count in row) for row in matrix)
