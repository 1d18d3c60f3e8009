"""Pages in one file: templates, pictures inside the page, tables; shared by the page of a run and that of a comparison.

Every text that reaches a template is escaped, and what cannot be seen in it is written out; a template that is given
too little fails instead of leaving a gap.
"""

import base64
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from breakhis_pl.errors import ShapeError
from breakhis_pl.evaluation.figures import figure_png
from breakhis_pl.evaluation.run_summary import Estimate
from breakhis_pl.evaluation.texts import visible

CSS_PIXELS_PER_INCH = 96
"""Of CSS; figures are drawn at 150, so that they stay sharp on finer screens and on paper."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image inside the page.

    Attributes:
        src: A data URI.
        width: In CSS pixels.
        height: In CSS pixels.
        alt: What it shows, in words and numbers.
    """

    src: str
    width: int
    height: int
    alt: str


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table; numbers stand right."""

    heading: str
    is_number: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a page.

    Attributes:
        caption: What it holds; stands above it.
        columns: The first one names the rows.
        rows: One cell per column: text, an `Estimate` for a value with its interval, None where there is nothing.
        note: Stands below it.
        emphasized: Indices of rows to emphasize.

    Raises:
        ShapeError: If a row has more or fewer cells than there are columns.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str | Estimate | None]]
    note: str | None = None
    emphasized: Collection[int] = ()

    def __post_init__(self) -> None:
        wrong = [len(row) for row in self.rows if len(row) != len(self.columns)]
        if wrong:
            raise ShapeError(
                f"table {self.caption!r}: rows of {wrong} cells; expected {len(self.columns)}, one for each column"
            )


def _shown(value: object) -> object:
    """What a template writes; markup comes from templates alone and holds nothing to be made visible."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def environment() -> Environment:
    """The templates of this package: autoescape on, unknown names are errors, unseen characters written out."""
    return Environment(
        loader=PackageLoader("breakhis_pl.evaluation", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render(template_name: str, **context: object) -> str:
    """A page as text.

    Args:
        template_name: File in templates/, such as "report.html.j2".
        **context: What the template asks for; every text in it is escaped.

    Raises:
        jinja2.TemplateError: If there is no such template, or it asks for a name that is not given.
    """
    return environment().get_template(template_name).render(**context)


def png_data_uri(figure: Figure) -> str:
    """A figure as a PNG file inside a URI, 150 dpi."""
    return data_uri(figure_png(figure), "image/png")


def data_uri(content: bytes, media_type: str) -> str:
    """A file inside a URI.

    Example:
        >>> data_uri(b"abc", "image/png")
        'data:image/png;base64,YWJj'
    """
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def picture_of(figure: Figure, *, alt: str) -> Picture:
    """A figure for a page, as large as it was drawn.

    Args:
        figure: Its size in inches becomes the size on the page.
        alt: What it shows, in words and numbers.
    """
    src = png_data_uri(figure)
    width, height = figure.get_size_inches()
    return Picture(
        src=src, width=round(width * CSS_PIXELS_PER_INCH), height=round(height * CSS_PIXELS_PER_INCH), alt=alt
    )
