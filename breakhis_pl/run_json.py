"""Reading run.json, without torch."""

import json
from pathlib import Path
from typing import Any

from breakhis_pl.errors import RunFolderError

RUN_JSON = "run.json"
REPORT_PAGE = "report.html"


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
