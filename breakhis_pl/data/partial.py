"""A file that has been fetched in part, and what is known about the whole."""

import gzip
import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Source:
    """What a partial file is a part of; kept beside it as JSON.

    Attributes:
        url: Address as it was given.
        etag: Header ETag of the server, if any.
        last_modified: Header Last-Modified of the server, if any.
        total: Bytes of the whole file, if the server says so.
    """

    url: str
    etag: str | None
    last_modified: str | None
    total: int | None

    def differs_from(self, other: "Source") -> bool:
        """Whether the two cannot be the same file; what one of them does not know is no difference."""
        return self.url != other.url or any(
            mine is not None and theirs is not None and mine != theirs
            for mine, theirs in (
                (self.etag, other.etag),
                (self.last_modified, other.last_modified),
                (self.total, other.total),
            )
        )


@dataclass(frozen=True, slots=True)
class Part:
    """A file that is not whole yet.

    Attributes:
        path: The file.
        note: JSON beside it, of the `Source` that it belongs to.
    """

    path: Path
    note: Path

    @classmethod
    def of(cls, archive: Path) -> "Part":
        """The part of a file that is not there yet, `<name>.part`."""
        path = archive.with_name(f"{archive.name}.part")
        return cls(path=path, note=path.with_name(f"{path.name}.json"))

    @property
    def n_bytes(self) -> int:
        """Bytes that are there, 0 if there is no part."""
        return self.path.stat().st_size if self.path.exists() else 0

    def source(self) -> Source | None:
        """What the part belongs to, None if that is unknown."""
        try:
            source = Source(**json.loads(self.note.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        texts = (source.etag, source.last_modified)
        sound = isinstance(source.url, str) and all(isinstance(text, str | None) for text in texts)
        return source if sound and isinstance(source.total, int | None) else None

    def is_cut_short(self, *, max_bytes: int) -> bool:
        """Whether there should be more, by the gzip format alone; what else is wrong with it is not looked for.

        Args:
            max_bytes: Unpacked bytes after which to stop reading.
        """
        n_read = 0
        try:
            with gzip.open(self.path) as stream:
                while n_read <= max_bytes and (block := stream.read(1 << 20)):
                    n_read += len(block)
        except EOFError:
            return True
        except (zlib.error, gzip.BadGzipFile):
            return False
        return False

    def write_note(self, source: Source) -> None:
        """Writes down what the part belongs to."""
        self.note.write_text(json.dumps(asdict(source), indent=2) + "\n", encoding="utf-8")

    def discard(self) -> None:
        """Removes the part and its note."""
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)
