"""comparison.html: the comparison of runs in one file, to open offline, to print, to send."""

from matplotlib.figure import Figure

from breakhis_pl.evaluation.pages import CSS_PIXELS_PER_INCH, Picture, data_uri, render
from breakhis_pl.evaluation.sections import ComparisonPage

TEMPLATE = "comparison.html.j2"


def comparison_html(page: ComparisonPage, *, title: str) -> str:
    """The page as HTML; every text in it is escaped.

    Args:
        page: Its content.
        title: Of the page, such as the name of the sweep's folder.
    """
    sections = [(section.key, section.heading) for section in page.sections]
    return render(TEMPLATE, page=page, title=title, toc=sections)


def picture_of_png(png: bytes, figure: Figure, *, alt: str) -> Picture:
    """A figure that is drawn already, for a page.

    Args:
        png: What `figures.figure_png` returned for it.
        figure: Its size in inches becomes the size on the page.
        alt: What it shows, in words and numbers.
    """
    width, height = figure.get_size_inches()
    return Picture(
        src=data_uri(png, "image/png"),
        width=round(width * CSS_PIXELS_PER_INCH),
        height=round(height * CSS_PIXELS_PER_INCH),
        alt=alt,
    )
