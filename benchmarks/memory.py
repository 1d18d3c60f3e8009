"""Peak memory of a piece of work in this process."""

import contextlib
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


class MemoryWatch:
    """Starts with what is resident now.

    On Linux the kernel's own peak is set back to it. `getrusage` cannot do that, and counts what the process held
    before it became this program, its parent's memory; it is for other systems.
    """

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): resets the peak
        self.base_mb = _status_mb("VmRSS") or _usage_mb()

    def peak_mb(self) -> float:
        """Largest resident memory since then, MB."""
        return _status_mb("VmHWM") or _usage_mb()


def _status_mb(name: str) -> float | None:
    """A line of the process's status; None where there is no such file."""
    try:
        return int(_STATUS.read_text(encoding="ascii").partition(f"{name}:")[2].split()[0]) * 1024 / 1e6
    except (OSError, IndexError, ValueError):
        return None


def _usage_mb() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
