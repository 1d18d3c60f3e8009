"""Write the page of a finished run and the comparison of its sweep: python -m breakhis_pl.reporting <sweep> [<run>].

A sweep on a GPU starts it after each run but the last, so that the next run does not wait for figures.
"""

import logging
import sys
from contextlib import suppress
from pathlib import Path

from breakhis_pl.errors import RunFolderError
from breakhis_pl.reporting.comparison import write_comparison
from breakhis_pl.reporting.program import report

if __name__ == "__main__":
    sweep, *runs = map(Path, sys.argv[1:])
    files = [logging.FileHandler(run / "train.log") for run in runs if (run / "train.log").exists()]
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[logging.StreamHandler(), *files])
    with suppress(RunFolderError):  # no results, as with trainer.fast_dev_run
        for run in runs:
            report(run)
    with suppress(RunFolderError):  # no run has begun
        logging.info("comparison: %s", write_comparison(sweep)[0].with_suffix(".html"))
