"""The Markdown page of a comparison, as text."""

import re
from collections.abc import Iterable, Sequence

from breakhis_pl.evaluation.pages import Table
from breakhis_pl.evaluation.run_summary import Estimate
from breakhis_pl.evaluation.sections import ComparisonPage, Section

ABSENT = "-"


def comparison_markdown(page: ComparisonPage, *, picture: str) -> str:
    """The page as Markdown; no text of a name, a file or an error is read as markup.

    Args:
        page: Its content.
        picture: File name of the picture, beside the page.
    """
    blocks = ["# Comparison", "\n".join(map(escaped, page.lead))]
    blocks += [f"**Warning. {escaped(heading)}** {escaped(sentence)}" for heading, sentence in page.warnings]
    for section in page.sections:
        blocks += _section_blocks(section, picture)
    return "\n\n".join(blocks) + "\n"


def escaped(text: object) -> str:
    r"""Text on one line in which nothing is markup, for a paragraph or a cell of a table.

    Example:
        >>> escaped("a|b`c\nd")
        'a\\|b\\`c d'
    """
    one_line = re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in str(text))).strip()
    one_line = re.sub(r"([\\|`*\[\]~])|(?<![A-Za-z0-9])(_)|(_)(?![A-Za-z0-9])", r"\\\g<0>", one_line)
    one_line = one_line.replace("&", "&amp;").replace(">", "&gt;")
    return re.sub(r"<(?! )", "&lt;", one_line)  # "p < 0.001" opens no element


def _section_blocks(section: Section, picture: str) -> Iterable[str]:
    yield f"## {section.heading}"
    if section.points:
        yield "\n".join(f"- {escaped(point)}" for point in section.points)
    if section.picture is not None:
        yield f"![{escaped(section.picture.alt)}]({picture})"
        yield escaped(section.caption)
    for table in section.tables:
        if len(section.tables) > 1:
            yield f"{escaped(table.caption)}:"
        yield "\n".join(_table_lines(table))
        if table.note:
            yield escaped(table.note)
    yield from map(escaped, section.notes)


def _table_lines(table: Table) -> Iterable[str]:
    yield _line([escaped(column.heading) for column in table.columns])
    yield _line(["---:" if column.is_number else "---" for column in table.columns])
    for row in table.rows:
        yield _line([_cell(content) for content in row])


def _cell(content: str | Estimate | None) -> str:
    match content:
        case None:
            return ABSENT
        case Estimate(value, None):
            return f"{value:.3f}"
        case Estimate(value, (low, high)):
            return f"{value:.3f} ({low:.2f} to {high:.2f})"
        case _:
            return escaped(content)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
