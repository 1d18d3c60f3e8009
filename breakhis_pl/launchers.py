"""Sweeps whose runs are jobs of their own, on this machine or of SLURM: `hydra/launcher=submitit_local|submitit_slurm`.

Hydra's plugin for submitit gives the keys (`hydra.launcher.…`) and the way into a job. What is ours: one job that dies
does not end the waiting for the others, local jobs end with the command that started them, those of a cluster do not,
and a job that is told to end, or that its time is up, first keeps what it has.

Importing this module needs the extra `slurm`; only `use` does.
"""

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import submitit
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher, LocalLauncher, SlurmLauncher
from omegaconf import OmegaConf

from breakhis_pl import composition
from breakhis_pl.errors import Stopped
from breakhis_pl.run_json import note_failure

log = logging.getLogger(__name__)

POLL_S = 0.5
"""Seconds between two looks at jobs of this machine; those of a cluster are asked about by submitit, more rarely."""

_ENDINGS = ("SIGTERM", "SIGUSR1")


class _WaitsForAll(BaseSubmititLauncher):  # type: ignore[misc]  # the plugin has no types
    """Submits a job per run and waits until all have ended, well or not."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs a batch of jobs.

        Args:
            job_overrides: Overrides of each run.
            initial_job_idx: Number of the first one.
        """
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        executor = self._executor()
        arguments = [
            (list(overrides), "hydra.sweep.dir", number, str(number), Singleton.get_state())
            for number, overrides in enumerate(job_overrides, start=initial_job_idx)
        ]
        jobs: list[Any] = []
        try:
            for job in self._submitted(executor, arguments, jobs):
                log.info("job %s: %s", job.job_id, " ".join(filter_overrides(arguments[len(jobs) - 1][0])))
            while not all(job.done() for job in jobs):
                time.sleep(POLL_S)
        except (KeyboardInterrupt, Stopped):
            self._leave([job for job in jobs if not job.done()])
            raise
        for job, (overrides, *_) in zip(jobs, arguments, strict=True):
            failure = job.exception()
            if failure is not None:
                note_failure(folder / composition.sweep_choice(filter_overrides(overrides)), _reason(job, failure))
        return [JobReturn(overrides=each[0], status=JobStatus.COMPLETED) for each in arguments]

    def _executor(self) -> Any:
        """Submitit's, with the keys of `hydra.launcher`; those of a cluster bear its name there."""
        shared = set(OmegaConf.structured(BaseQueueConf))
        keys = {name if name in shared else f"{self._EXECUTOR}_{name}": value for name, value in self.params.items()}
        own = {name: keys.pop(name) for name in (f"{self._EXECUTOR}_max_num_timeout",) if name in keys}
        executor = submitit.AutoExecutor(folder=keys.pop("submitit_folder"), cluster=self._EXECUTOR, **own)
        executor.update_parameters(**keys)
        return executor

    def _submitted(self, executor: Any, arguments: Sequence[tuple[Any, ...]], jobs: list[Any]) -> Iterator[Any]:
        """Submits the jobs, all at once, and adds them to `jobs` one by one."""
        for job in executor.map_array(self, *zip(*arguments, strict=True)):
            jobs.append(job)
            yield job

    def _leave(self, jobs: Sequence[Any]) -> None:
        """What becomes of unfinished jobs when the waiting ends."""
        raise NotImplementedError


class LocalJobs(_WaitsForAll):
    """Jobs of this machine: as many at a time as there are cores for, where `cpus_per_task` says how many one takes."""

    _EXECUTOR = LocalLauncher._EXECUTOR

    def _submitted(self, executor: Any, arguments: Sequence[tuple[Any, ...]], jobs: list[Any]) -> Iterator[Any]:
        cores = self.params.get("cpus_per_task")
        at_once = len(arguments) if cores is None else max(1, (os.cpu_count() or 1) // cores)
        for each in arguments:
            while sum(not job.done() for job in jobs) >= at_once:
                time.sleep(POLL_S)
            jobs.append(executor.submit(self, *each))
            yield jobs[-1]

    def _leave(self, jobs: Sequence[Any]) -> None:
        for job in jobs:  # the number of a job is that of its controller, which hands signals on
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(job.job_id), signal.SIGTERM)
        while not all(job.done() for job in jobs):
            time.sleep(POLL_S)


class SlurmJobs(_WaitsForAll):
    """Jobs of a SLURM cluster."""

    _EXECUTOR = SlurmLauncher._EXECUTOR

    def _leave(self, jobs: Sequence[Any]) -> None:
        names = " ".join(job.job_id for job in jobs)
        log.warning("jobs of the cluster go on without this command; scancel %s ends them", names)


def _reason(job: Any, failure: Exception) -> str:
    """Why a job died, in one line, and where it left its output."""
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    return f"job {job.job_id} died: {lines[-1] if lines else type(failure).__name__}; its output: {job.paths.stderr}"


def use() -> None:
    """Has Hydra take our launchers where it is asked for submitit's."""
    classes = Plugins.instance().class_name_to_class
    for theirs, ours in ((LocalLauncher, LocalJobs), (SlurmLauncher, SlurmJobs)):
        classes[f"{theirs.__module__}.{theirs.__qualname__}"] = ours


@contextmanager
def ended_in_order() -> Iterator[None]:
    """In a job: SIGTERM and SIGUSR1 end it in order, and so does the signal that its time is nearly up.

    After that one submitit has its turn: it puts the job into the queue again where `hydra.launcher.max_num_timeout`
    allows, and the run then goes on.

    Raises:
        Stopped: For SIGTERM and SIGUSR1, after what is running has ended.
    """
    time_is_up = submitit.JobEnvironment._usr_sig()

    def stop(signum: int, _: FrameType | None) -> None:
        raise Stopped(signum)

    before: dict[int, Callable[..., Any]] = {}
    for number in (*(getattr(signal, name) for name in _ENDINGS), time_is_up):
        before[number] = signal.signal(number, stop)  # type: ignore[assignment]  # submitit has set functions
    try:
        yield
    except Stopped as stopped:
        if stopped.signum != time_is_up:
            raise
        before[time_is_up](stopped.signum, None)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
