"""One run in several processes: where each stands, who starts them, and that they end together (no torch).

Either this process starts the others and watches over them, taking no part itself; or srun or torchrun started all of
them, and watch over them.
"""

import contextlib
import logging
import multiprocessing
import os
import re
import signal
import socket
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from breakhis_pl.errors import BreakHisError, ConfigurationError, Stopped, TrainingError

PATIENCE_S = 10.0
"""Seconds that processes have to end by themselves after one of them failed."""

FAREWELL_S = 60.0
"""Seconds that the first process has to write its last checkpoint after it was told to end."""

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_FIRST_PORT, _N_PORTS = 15_000, 20_000


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process stands among those of its run.

    Attributes:
        rank: Its number, from 0; the first one writes everything.
        n_ranks: How many there are.
        local_rank: Its number on its machine, and that of its GPU.
        n_local: How many there are on its machine.
        address: Of the machine of rank 0.
        port: Where rank 0 waits for the others.
    """

    rank: int
    n_ranks: int
    local_rank: int
    n_local: int
    address: str = "127.0.0.1"
    port: int = 0

    @property
    def n_nodes(self) -> int:
        """Number of machines."""
        return self.n_ranks // self.n_local


ALONE = Place(rank=0, n_ranks=1, local_rank=0, n_local=1)
"""Of a process that does a run by itself."""

Work = Callable[..., None]
"""What every process of a run does; its last argument is its place. A function of a module, so that it travels."""


def given_place(environment: Mapping[str, str], *, devices: int, num_nodes: int) -> Place | None:
    """The place of a process that srun or torchrun started; None where it stands alone.

    Args:
        environment: Variables of the process.
        devices: Wanted on each machine.
        num_nodes: Wanted machines.

    Raises:
        ConfigurationError: If the run is to have another number of processes than were started.

    Source:
        https://docs.pytorch.org/docs/stable/elastic/run.html, https://slurm.schedmd.com/srun.html
    """
    place = _place_of_torchrun(environment) or _place_of_srun(environment)
    wanted = f"trainer.devices={devices} trainer.num_nodes={num_nodes}"
    if place is None:
        if num_nodes > 1:
            raise ConfigurationError(
                f"{wanted}: processes on several machines are started by srun or torchrun, one for each device, as in "
                f"srun --nodes={num_nodes} --ntasks-per-node={devices} python train.py …"
            )
        return None
    if (place.n_local, place.n_nodes) != (devices, num_nodes):
        raise ConfigurationError(
            f"{place.n_ranks} processes were started, {place.n_local} on each of {place.n_nodes} machines, but "
            f"{wanted} is asked for; set both, or start as many"
        )
    return place


def is_follower(environment: Mapping[str, str]) -> bool:
    """Whether srun or torchrun started this process and it is not the first one."""
    place = _place_of_torchrun(environment) or _place_of_srun(environment)
    return place is not None and place.rank > 0


def is_shared(environment: Mapping[str, str]) -> bool:
    """Whether srun or torchrun started this process with others."""
    return (_place_of_torchrun(environment) or _place_of_srun(environment)) is not None


def _place_of_torchrun(environment: Mapping[str, str]) -> Place | None:
    if not all(name in environment for name in _TORCHRUN):
        return None
    rank, n_ranks, local_rank, n_local = (int(environment[name]) for name in _TORCHRUN[:4])
    return Place(rank, n_ranks, local_rank, n_local, environment["MASTER_ADDR"], int(environment["MASTER_PORT"]))


def _place_of_srun(environment: Mapping[str, str]) -> Place | None:
    """Of a step with several tasks; a batch script alone, or a step of one task, has none."""
    n_ranks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if n_ranks == 1:
        return None
    job = int(environment["SLURM_JOB_ID"])
    return Place(
        rank=int(environment["SLURM_PROCID"]),
        n_ranks=n_ranks,
        local_rank=int(environment["SLURM_LOCALID"]),
        n_local=n_ranks // int(environment["SLURM_STEP_NUM_NODES"]),
        address=environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"]),
        port=int(environment.get("MASTER_PORT", _FIRST_PORT + job % _N_PORTS)),
    )


def first_host(nodes: str) -> str:
    """The first machine of a list as SLURM writes it.

    Example:
        >>> first_host("gpu[07-09,12],login1"), first_host("a,b"), first_host("n[3]-ib")
        ('gpu07', 'a', 'n3-ib')
    """
    match = re.match(r"([^\[,]*)(?:\[([^\],-]+)[^\]]*\])?([^,\[]*)", nodes)
    return "".join(part or "" for part in match.groups()) if match else nodes


def run_together(work: Work, arguments: Sequence[Any], *, n_ranks: int) -> None:
    """Starts processes on this machine and waits until all have ended; if one fails, all end.

    Args:
        work: What each of them does.
        arguments: Before the place.
        n_ranks: How many.

    Raises:
        BreakHisError: That of the first process that raised one, or that one was killed.
        RuntimeError: With the traceback of any other error.
        BaseException: What interrupted this process, after the others have ended.
    """
    context = multiprocessing.get_context("spawn")
    port = _free_port()
    ranks: list[_Rank] = []
    try:
        for number in range(n_ranks):
            place = Place(number, n_ranks, number, n_ranks, port=port)
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_live, args=(work, tuple(arguments), place, sender), daemon=True)
            process.start()
            sender.close()
            ranks.append(_Rank(number, process, receiver))
        failed = _watch(ranks)
    except BaseException:
        _end(ranks)
        raise
    if failed:
        _wait(ranks, seconds=PATIENCE_S)
        dead = [rank for rank in ranks if not rank.process.is_alive()]
        _end(ranks)
        _raise_of(dead, n_ranks)


@dataclass(slots=True)
class _Rank:
    """A started process, and the pipe on which it says what went wrong."""

    number: int
    process: BaseProcess
    receiver: Connection
    said: object = None

    def listen(self) -> None:
        """Takes what it has said, if anything."""
        with contextlib.suppress(EOFError, OSError):
            if self.said is None and self.receiver.poll():
                self.said = self.receiver.recv()


def _watch(ranks: Sequence[_Rank]) -> bool:
    """Waits until all have ended, or one has failed; whether one has."""
    left = list(ranks)
    while left:
        wait([rank.process.sentinel for rank in left])
        ended = [rank for rank in left if not rank.process.is_alive()]
        if any(rank.process.exitcode for rank in ended):
            return True
        left = [rank for rank in left if rank not in ended]
    return False


def _wait(ranks: Iterable[_Rank], *, seconds: float) -> None:
    """Waits until these have ended, so long at most."""
    deadline = time.monotonic() + seconds
    for rank in ranks:
        rank.process.join(max(0.0, deadline - time.monotonic()))


def _end(ranks: Sequence[_Rank]) -> None:
    """Ends the first one in order, which has files to finish, while the others still answer it; then those."""
    for rank in ranks[:1]:
        if rank.process.is_alive():
            rank.process.terminate()
            _wait([rank], seconds=FAREWELL_S)
    for rank in ranks:
        rank.process.kill()
        rank.process.join()


def _raise_of(dead: Sequence[_Rank], n_ranks: int) -> None:
    """Raises what tells most: one of our errors, then that one was killed, then any other error.

    When one ends, the others notice that it no longer answers, and raise errors about that.
    """
    for rank in dead:
        rank.listen()
    ours = [rank.said for rank in dead if isinstance(rank.said, BreakHisError)]
    if ours:
        raise ours[0]
    killed = [rank for rank in dead if (rank.process.exitcode or 0) < 0]
    if killed:
        name = signal.Signals(-(killed[0].process.exitcode or 0)).name
        hint = "; the system does so where memory runs out" if name == "SIGKILL" else ""
        raise TrainingError(
            f"process {killed[0].number} of {n_ranks} was ended by {name}, and the others with it{hint}; "
            "the checkpoint before is kept"
        )
    texts = [f"process {rank.number} of {n_ranks} failed:\n{rank.said}" for rank in dead if rank.process.exitcode]
    raise RuntimeError(texts[0])


def _live(work: Work, arguments: tuple[Any, ...], place: Place, sender: Connection) -> None:
    """The life of a started process.

    Raises:
        SystemExit: With status 1 if it failed; why is said on the pipe.
    """
    be_quiet_unless_first(place)
    for name in ("SIGINT", "SIGUSR1"):  # a terminal and some schedulers signal all; the process that started us decides
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if place.rank == 0:
        signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_end_with_parent, args=(place,), daemon=True).start()
    try:
        work(*arguments, place)
    except BaseException as error:
        text = "".join(traceback.format_exception(error))
        with contextlib.suppress(OSError):
            sender.send(error if isinstance(error, BreakHisError) else text)
        raise SystemExit(1) from None


def be_quiet_unless_first(place: Place) -> None:
    """One process speaks for all: the others neither log nor warn."""
    if place.rank > 0:
        logging.disable(logging.CRITICAL)
        warnings.simplefilter("ignore")


def _stop(signum: int, _: FrameType | None) -> None:
    raise Stopped(signum)


def _end_with_parent(place: Place) -> None:
    """Ends this process when the one that started it is gone, however that came to be."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent.join()
    if place.rank == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(FAREWELL_S)
    os._exit(1)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
