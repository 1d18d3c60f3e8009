"""Kills runs with SIGKILL at random moments, resumes them, and compares them with a run that nobody killed.

`python -m tests.killed_runs` does it 20 times and prints a line each; the slow test does the same. A seed of the
moments, `trainer.checkpoint_share` and a number of runs may follow: `python -m tests.killed_runs 1 0.01 10`.
"""

import csv
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

N_TRIALS = 20
N_EPOCHS = 6
SETTINGS = ("data=synthetic", "data.images_per_patient=1", "data.width=64", "data.image_size=32", "model.weights=none")
MORE_SETTINGS = (f"trainer.max_epochs={N_EPOCHS}", "trainer=cpu", "gallery=1")


@dataclass(frozen=True, slots=True)
class Trial:
    """One killed run.

    Attributes:
        moment: What the run was at when it was killed.
        n_epochs: Epochs in its history then.
        differences: Files in which the resumed run differs from the one nobody killed.
    """

    moment: str
    n_epochs: int
    differences: tuple[str, ...]


def _train(arguments: Sequence[str], folder: str) -> None:
    """In a process of its own."""
    from breakhis_pl.command_line import main

    os.chdir(folder)
    with Path("output.txt").open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        sys.argv = ["train.py"]
        main("train", arguments)


def started(arguments: Sequence[str], folder: Path) -> multiprocessing.context.ForkServerProcess:
    """A training in a process that has imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["breakhis_pl.run", "breakhis_pl.composition", "breakhis_pl.command_line"])
    process = context.Process(target=_train, args=(list(arguments), str(folder)))
    process.start()
    return process


def contents(run: Path) -> dict[str, object]:
    """What must be equal: weights, rows, metrics, split, history without times."""
    import torch

    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    with (run / "history.csv").open() as table:
        history = [[row[name] for name in row if name != "images_per_second"] for row in csv.DictReader(table)]
    files = {name: (run / name).read_bytes() for name in ("test/predictions.csv", "test/metrics.json", "split.csv")}
    return {
        **files,
        "history.csv": history,
        "weights": {name: value.numpy().tobytes() for name, value in state.items()},
    }


def killed_and_resumed(
    folder: Path, expected: dict[str, object], chance: random.Random, *, duration_s: float, share: float
) -> Trial:
    """Starts a run, kills it at a random moment (half of them while a checkpoint is written), and resumes it.

    Args:
        folder: An empty folder.
        expected: `contents` of a run that nobody killed.
        chance: Where moments come from.
        duration_s: Of a run that nobody kills.
        share: Of the time that writing checkpoints may take.
    """
    arguments = (*SETTINGS, *MORE_SETTINGS, f"data.cache_dir={folder.parent / 'cache'}", "hydra.run.dir=run")
    arguments += (f"trainer.checkpoint_share={share}",)
    run = folder / "run"
    process = started(arguments, folder)
    if chance.random() < 0.5:
        moment = _while_a_checkpoint_is_written(run, process, chance.randrange(N_EPOCHS // 2), duration_s=duration_s)
    else:
        seconds = chance.uniform(0, duration_s)
        moment = f"after {seconds:.2f} s"
        process.join(seconds)
    process.kill()
    process.join()
    n_epochs = len((run / "history.csv").read_text().splitlines()) - 1 if (run / "history.csv").exists() else 0
    again = ("resume=run",) if (run / "run.json").exists() else arguments
    resumed = started(again, folder)
    resumed.join()
    if resumed.exitcode != 0:
        return Trial(moment, n_epochs, (f"exit status {resumed.exitcode}: {(folder / 'output.txt').read_text()}",))
    found = contents(run)
    return Trial(moment, n_epochs, tuple(name for name in expected if found[name] != expected[name]))


def _while_a_checkpoint_is_written(
    run: Path, process: multiprocessing.context.ForkServerProcess, n_before: int, *, duration_s: float
) -> str:
    """Waits for the file aside of a checkpoint, after so many others."""
    seen: set[str] = set()
    deadline = time.monotonic() + 3 * duration_s
    while process.is_alive() and time.monotonic() < deadline:
        seen |= {path.name for path in run.glob("checkpoints/.last.ckpt-*")}
        if len(seen) > n_before:
            return f"while checkpoint {len(seen)} was written"
    return "after the last checkpoint"


def trials(folder: Path, *, n_trials: int = N_TRIALS, seed: int = 0, share: float = 1) -> list[Trial]:
    """Kills and resumes so many runs.

    Args:
        folder: An empty folder.
        n_trials: How many.
        seed: Of the moments.
        share: Of the time that writing checkpoints may take; 1 writes after every epoch.
    """
    arguments = (*SETTINGS, *MORE_SETTINGS, f"data.cache_dir={folder / 'cache'}", "hydra.run.dir=run")
    durations = []
    for name in ("first", "whole"):  # the first one draws the images
        (folder / name).mkdir()
        began = time.monotonic()
        process = started(arguments, folder / name)
        process.join()
        durations.append(time.monotonic() - began)
        if process.exitcode != 0:
            raise RuntimeError((folder / name / "output.txt").read_text())
    expected = contents(folder / "whole" / "run")
    chance = random.Random(seed)
    found = []
    for number in range(n_trials):
        (folder / str(number)).mkdir()
        found.append(killed_and_resumed(folder / str(number), expected, chance, duration_s=durations[1], share=share))
        print(
            f"{number + 1:2} killed {found[-1].moment}, {found[-1].n_epochs} epochs done: "
            f"{found[-1].differences or 'equal'}",
            flush=True,
        )
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        seed, share, n_trials = (*sys.argv[1:], *("0", "1", str(N_TRIALS))[len(sys.argv) - 1 :])
        outcomes = trials(Path(place), seed=int(seed), share=float(share), n_trials=int(n_trials))
    n_equal = sum(not trial.differences for trial in outcomes)
    print(f"{n_equal} of {len(outcomes)} equal, signal {signal.SIGKILL.name}")
    sys.exit(n_equal != len(outcomes))
