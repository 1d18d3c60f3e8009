"""The first augmented batch of a process with a warm store, and where the time goes; prints seconds as JSON.

    python -m benchmarks.first_batch <images> <cache> <image size> <device>

Seconds of `python` are those before this module, as Linux tells them; 0 elsewhere.
"""

import json
import os
import sys
import time
from pathlib import Path

_ARRIVED = time.perf_counter()


def main() -> None:
    """Prints the seconds of every part."""
    before = _seconds_before()
    root, cache, size, device_name = sys.argv[1:]
    import torch  # noqa: PLC0415 - what is timed here

    from benchmarks.bench import data_module, train_config  # noqa: PLC0415

    config = train_config(Path(root), Path(cache), f"data.image_size={size}", "data.split=ratio")
    imported = time.perf_counter()
    data = data_module(config)
    rows = next(iter(data.train_dataloader()))
    opened = time.perf_counter()
    device = torch.device(device_name)
    float(data.batch(rows.to(device), epoch=0).images.sum())  # waits for the device
    done = time.perf_counter()
    parts = {
        "python": before,
        "imports": imported - _ARRIVED,
        "opening": opened - imported,
        "first batch": done - opened,
    }
    sys.stdout.write(json.dumps(parts) + "\n")


def _seconds_before() -> float:
    """Age of this process when the module was reached."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return 0.0
    return max(0.0, age - (time.perf_counter() - _ARRIVED))


if __name__ == "__main__":
    main()
