"""The report's three trainings as one command with a cold store, from its start to its last file."""

import time

from benchmarks.bench import REPOSITORY, Bench
from benchmarks.processes import timed_python
from benchmarks.timing import Measurement

WHOLE = "command to last file"


def measure(bench: Bench) -> list[Measurement]:
    """Seconds of `train.py -m`; nothing where the plan has no sweep."""
    overrides = bench.plan.sweep
    if overrides is None:
        return []
    folder = bench.folder / "sweep"
    fixed = (
        *("-m", "model.weights=none", f"data.root='{bench.root.resolve()}'", f"data.cache_dir='{folder / 'cold'}'"),
        *("trainer.progress_bar=false", "data.require_complete=false", f"trainer.precision={bench.precision}"),
        f"trainer.accelerator={'gpu' if bench.device.type == 'cuda' else bench.device.type}",
        f"hydra.sweep.dir='{folder / 'runs'}'",
    )
    started = time.time()
    seconds, _ = timed_python([str(REPOSITORY / "train.py"), *fixed, *overrides], cwd=bench.folder)
    written = [path.stat().st_mtime for path in (folder / "runs").rglob("*") if path.is_file()]
    return [
        Measurement(WHOLE, "s", (max(written) - started,)),
        Measurement("command to its end", "s", (seconds,)),
    ]
