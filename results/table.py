"""Print the table of results/README.md from the runs in this folder: `uv run python results/table.py`."""

import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
METRICS = ("accuracy", "weighted_f1", "auroc", "patient_recognition_rate")
HEADER = ("run", "network", "seed", "test images", "accuracy", "weighted F1", "AUROC", "patient recognition rate")


def estimate(value: dict[str, Any]) -> str:
    """A value with its interval, two digits each."""
    low, high = value["ci95"]
    return f"{value['value']:.3f} ({low:.2f} to {high:.2f})"


def row(run: Path) -> tuple[str, ...]:
    """The cells of a run's row."""
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    metrics = json.loads((run / "test" / "metrics.json").read_text(encoding="utf-8"))
    config = facts["config"]
    return (
        f"[{run.name}]({run.relative_to(FOLDER).as_posix()})",
        config["model"]["backbone"],
        str(config["seed"]),
        str(metrics["n_images"]),
        *(estimate(metrics[name]) for name in METRICS),
    )


def table() -> str:
    """All runs as a Markdown table, sorted by folder."""
    runs = sorted(path.parent for path in FOLDER.glob("*/*/run.json"))
    lines = [HEADER, tuple("---" for _ in HEADER), *(row(run) for run in runs)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table())
