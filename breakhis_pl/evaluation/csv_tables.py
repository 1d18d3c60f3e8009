"""Tables in CSV format: read row by row from files that may come from anyone, written so that any name survives."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from breakhis_pl.evaluation.file_texts import DamagedFileError, text_of
from breakhis_pl.evaluation.texts import quoted

MOST_COLUMNS = 100
"""More than any table here has; a file that is no table may seem to have millions."""


def read_header_and_rows(path: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The header of a table, and its rows with the number of the line that each begins on; empty lines are left out.

    Bytes that are no UTF-8 are kept as `os.fsdecode` keeps them; a byte order mark is passed over.

    Args:
        path: The file.

    Raises:
        OSError: If the file cannot be read.
        DamagedFileError: If it is no table; the rows raise it where they cease to be one.
    """
    text = text_of(path, encoding="utf-8-sig")
    rows = _numbered(text)
    _, header = next(rows, (1, []))
    if len(header) > MOST_COLUMNS:
        raise DamagedFileError(f"line 1 has {len(header):,} columns; expected at most {MOST_COLUMNS}")
    return header, rows


def read_columns(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a table by column, each with the number of its line; columns beyond the needed ones are kept.

    Args:
        path: The file.
        needed: Columns that must be there, each once.

    Raises:
        OSError: If the file cannot be read.
        DamagedFileError: If it is no table, a needed column is missing, or a row has another length than the header.
    """
    header, rows = read_header_and_rows(path)
    missing = [column for column in needed if column not in header]
    if missing:
        raise DamagedFileError(f"column {', '.join(missing)} is missing")
    twice = [column for column in dict.fromkeys(header) if header.count(column) > 1]
    if twice:
        raise DamagedFileError(f"column {quoted(twice[0])} is there {header.count(twice[0])} times")
    return _by_column(header, rows)


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    r"""A table as text: lines end in \n, and what is read from it again is what was written.

    Args:
        header: Names of the columns.
        rows: As many values each; None leaves a cell empty.

    Example:
        >>> csv_text(["a", "b"], [[1, 'say "x", y']])
        'a,b\n1,"say ""x"", y"\n'
    """
    return csv_lines((header, *rows))


def csv_lines(rows: Iterable[Sequence[object]]) -> str:
    """Rows as lines of a table without its header, as `csv_text` writes them.

    Args:
        rows: Values of each; None leaves a cell empty.
    """
    table = io.StringIO(newline="")
    plain = csv.writer(table, lineterminator="\n")
    # before Python 3.13 a lone \r is not quoted, and then ends the row for every reader
    all_quoted = csv.writer(table, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        has_return = any(isinstance(cell, str) and "\r" in cell for cell in row)
        (all_quoted if has_return else plain).writerow(row)
    return table.getvalue()


def _numbered(text: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    begins = 1
    try:
        for cells in reader:
            if cells or begins == 1:
                yield begins, cells
            begins = reader.line_num + 1
    except csv.Error as error:
        raise DamagedFileError(f"line {reader.line_num}: {error}; expected a table in CSV format") from error


def _by_column(header: Sequence[str], rows: Iterable[tuple[int, list[str]]]) -> Iterator[tuple[int, dict[str, str]]]:
    for line, cells in rows:
        if len(cells) != len(header):
            raise DamagedFileError(
                f"line {line} has {len(cells)} values, not {len(header)}: a row has more or fewer values than there "
                "are columns"
            )
        yield line, dict(zip(header, cells, strict=True))
