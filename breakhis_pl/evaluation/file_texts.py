"""The text of a file that may come from anyone: bounded in size, and said what it is where it is no text."""

from pathlib import Path

LARGEST_FILE = 16 * 1024**2
"""Bytes that a table or a JSON file may have: one of all 7,909 images of BreakHis has one million."""

_SIGNATURES = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"%PDF", "a PDF file"),
    (b"PK\x03\x04", "a ZIP archive, as spreadsheets are"),
    (b"\x1f\x8b", "compressed with gzip"),
    (b"\xff\xfe\x00\x00", "in UTF-32"),
    (b"\xff\xfe", "in UTF-16"),
    (b"\xfe\xff", "in UTF-16"),
)

_FIRST_BYTES = 1024


class DamagedFileError(ValueError):
    """A file of a run does not hold what it should."""


def text_of(path: Path, *, encoding: str = "utf-8", errors: str = "strict") -> str:
    """The text in a file.

    Args:
        path: The file.
        encoding: Of the text.
        errors: What becomes of bytes that are no text, as in `bytes.decode`.

    Raises:
        OSError: If the file cannot be read.
        DamagedFileError: If it is no text, or larger than `LARGEST_FILE`.
    """
    with path.open("rb") as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise DamagedFileError(f"it has more than {LARGEST_FILE // 1024**2} MiB; expected a file of a run")
    kind = _kind(content)
    if kind is not None:
        raise DamagedFileError(f"it is {kind}; expected text in UTF-8")
    try:
        return content.decode(encoding, errors=errors)
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"byte {error.start} is no UTF-8; expected text in UTF-8") from error


def _kind(content: bytes) -> str | None:
    """What a file is that is no text in UTF-8; None where it may be one."""
    for signature, kind in _SIGNATURES:
        if content.startswith(signature):
            return kind
    return "no text, for it holds zero bytes" if b"\0" in content[:_FIRST_BYTES] else None
