"""What a page holds, read by Python's own parser: elements, texts, headings."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "line"}


@dataclass
class Element:
    """An element with its attributes and the text inside it, that of its children included."""

    name: str
    attributes: dict[str, str | None]
    parents: tuple[str, ...]
    text: str = ""


@dataclass
class Outline(HTMLParser):
    """Elements of a page in their order."""

    elements: list[Element] = field(default_factory=list)
    open: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs), tuple(parent.name for parent in self.open))
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1].name == tag, f"</{tag}> closes <{self.open[-1].name}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data

    def all(self, *names: str) -> list[Element]:
        return [element for element in self.elements if element.name in names]

    def text(self) -> str:
        return " ".join(self.all("body")[0].text.split())


def outline_of(html: str) -> Outline:
    """The outline of a page; every element that is opened is closed."""
    outline = Outline()
    outline.feed(html)
    outline.close()
    assert not outline.open, [element.name for element in outline.open]
    return outline
