"""Why a run ended before it began, from the log that is all it left."""

import re
from pathlib import Path

_LOG_MARK = "[ERROR] - "
"""Before the text of an error in Hydra's log."""

_NEXT_LINE = re.compile(r"\n\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\]\[")
"""What follows an error in the log."""

_LOG_BYTES = 1024**2
"""Of a log's end that are looked through."""


def refusal(folder: Path) -> str:
    """The last error in the run's log, which is all that a refused run leaves."""
    for path in sorted(each for each in folder.glob("*.log") if each.is_file()):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_BYTES))
            text = file.read(_LOG_BYTES).decode("utf-8", errors="replace")
        _, mark, reason = text.rpartition(_LOG_MARK)
        if mark and reason.strip():
            return _NEXT_LINE.split(reason, maxsplit=1)[0].strip()
    return "refused before it began"
