"""Names and values from outside as messages, tables, pages and figures may show them.

A name of a file may hold line breaks, characters that turn the direction of writing around, and bytes that are no text.
None of them may change what stands beside it.
"""

import unicodedata

LONGEST_QUOTE = 60
"""Characters of a value that a message shows."""

_HARMLESS = frozenset(("Zs", "Co", "Cn"))
"""Categories that Python calls not printable, although they change nothing around them."""

_ESCAPED_BYTES = range(0xDC80, 0xDD00)
"""Stand for bytes that are no UTF-8: PEP 383."""


def quoted(value: object, *, longest: int = LONGEST_QUOTE) -> str:
    r"""A value as Python writes it, on one line, cut where it is long.

    Args:
        value: From a file, for example.
        longest: Characters to keep.

    Example:
        >>> quoted("a\nb"), quoted("x" * 100, longest=4)
        ("'a\\nb'", "'xxxx…' (100 characters)")
    """
    if isinstance(value, str):
        return repr(value) if len(value) <= longest else f"{f'{value[:longest]}…'!r} ({len(value):,} characters)"
    written = repr(value)
    return written if len(written) <= longest else f"{written[:longest]}…"


def named(text: str) -> str:
    r"""A name as it is, or as `quoted` where it is long or not all of it can be seen.

    Example:
        >>> named("a.png"), named("a\n.png")
        ('a.png', "'a\\n.png'")
    """
    is_plain = text.isprintable() and text == text.strip() and 0 < len(text) <= LONGEST_QUOTE
    return text if is_plain else quoted(text)


def visible(text: str) -> str:
    r"""A text in which what cannot be seen is written out; tabs and line breaks stay.

    Control characters, marks that turn the direction of writing around, and bytes that are no text become escapes, so
    that two names that differ look different.

    Example:
        >>> visible("a\u202eb\x07\udcff ä")
        'a\\u202eb\\x07\\xff ä'
    """
    return text if text.isprintable() else "".join(map(_visible_character, text))


def one_line(text: str, *, longest: int = 40) -> str:
    r"""A text on one line without anything that cannot be seen, the middle left out where it is too long.

    Args:
        text: A name, for example.
        longest: Characters to keep.

    Example:
        >>> one_line("a\r\nb" + 100 * "c" + "d", longest=8)
        'a bc…ccd'
    """
    line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    if len(line) <= longest:
        return line
    n_end = (longest - 1) // 2
    return f"{line[: longest - 1 - n_end]}…{line[len(line) - n_end :]}"


def _visible_character(character: str) -> str:
    if character in "\t\n" or character.isprintable() or unicodedata.category(character) in _HARMLESS:
        return character
    if ord(character) in _ESCAPED_BYTES:
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
