"""Reading run.json, without torch."""

import contextlib
import json
from pathlib import Path
from typing import Any

from breakhis_pl.errors import RunFolderError
from breakhis_pl.files import write_text

RUN_JSON = "run.json"
REPORT_PAGE = "report.html"


def beginning(folder: Path) -> tuple[object, object] | None:
    """When the run in a folder was started, and when it went on; None where there is none."""
    try:
        content = read_run(folder)
    except RunFolderError:
        return None
    return content.get("started"), content.get("resumed")


def note_failure(folder: Path, reason: str) -> None:
    """Says in run.json that a run has failed, where the process that wrote it could not; its other content stays.

    Args:
        folder: The run folder; where it holds no run.json nothing is written.
        reason: Why.
    """
    with contextlib.suppress(RunFolderError, OSError):
        content = read_run(folder)
        if content.get("status") != "finished":
            text = json.dumps(content | {"status": "failed", "error": reason}, indent=2, ensure_ascii=False)
            write_text(folder / RUN_JSON, text + "\n")


def read_run(folder: Path) -> dict[str, Any]:
    """The content of a run folder's run.json.

    Raises:
        RunFolderError: If the folder is none of a run, or the file is damaged.
    """
    path = folder / RUN_JSON
    if not path.is_file():
        what = "holds no run.json" if folder.is_dir() else "does not exist"
        raise RunFolderError(f"run={folder} {what}; expected a run folder that train.py made, below outputs/")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise RunFolderError(f"{path} is damaged: {error}") from error
    facts = content.get("data") if isinstance(content, dict) else None
    if not isinstance(facts, dict) or not isinstance(content.get("config"), dict) or "split_checksum" not in facts:
        raise RunFolderError(f"{path} is not the run.json of a run: configuration or data are not in it")
    if not isinstance(content.get("resumed", []), list) or not isinstance(content.get("precision"), str | None):
        raise RunFolderError(f"{path} is not the run.json of a run: resumed or precision is of another kind")
    return dict(content)
