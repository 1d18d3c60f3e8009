"""One run on several devices, by Lightning's DDP: the group of its processes, and what they have to agree on.

`data.batch_size` counts the images of a step over all processes. Every step takes the batch that a single process would
take and deals it out; the gradient is that of the whole batch, however the shares differ in size. Evaluation deals out
whole batches, so that every image is seen in the same company, and gives the same bits, as in a single process.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import lightning.pytorch as L
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from breakhis_pl.data.datamodule import BreakHisDataModule
from breakhis_pl.errors import ConfigurationError
from breakhis_pl.models.classifier import Classifier
from breakhis_pl.processes import ALONE, Place

T = TypeVar("T")

_LONGEST_WAIT = timedelta(days=1)
"""That a process waits for another outside of training steps: decoding a large archive takes a while."""

_place = ALONE
_talk: dist.ProcessGroup | None = None


def place() -> Place:
    """Where this process stands; alone unless it has joined others."""
    return _place


def is_first() -> bool:
    """Whether this is the process that writes."""
    return _place.rank == 0


@contextmanager
def joined(own: Place, accelerator: str) -> Iterator[None]:
    """Joins the processes of a run until the block ends.

    Args:
        own: Where this one stands.
        accelerator: "auto", "cpu" or "gpu".

    Raises:
        ConfigurationError: If there are not as many devices.
    """
    global _place, _talk  # noqa: PLW0603 - a process has one place for the time it works with others
    is_gpu = _check_devices(own.n_local, accelerator)
    if is_gpu:
        torch.cuda.set_device(own.local_rank)
    dist.init_process_group(
        "nccl" if is_gpu else "gloo",
        init_method=f"tcp://{own.address}:{own.port}",
        rank=own.rank,
        world_size=own.n_ranks,
    )
    # on the host, where one notices that another has gone
    _talk = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=_LONGEST_WAIT))
    _place = own
    try:
        yield
        meet()
    finally:
        _place, _talk = ALONE, None
        dist.destroy_process_group()


def _check_devices(n_local: int, accelerator: str) -> bool:
    """Whether the processes of this machine have a GPU each.

    Raises:
        ConfigurationError: If there are fewer devices than processes.
    """
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if accelerator == "gpu" or (accelerator == "auto" and n_gpus > 0):
        if n_gpus < n_local:
            raise ConfigurationError(
                f"trainer.devices={n_local}: torch {torch.__version__} sees {n_gpus} GPUs; set at most as many"
            )
        return True
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if n_cores < n_local:
        raise ConfigurationError(
            f"trainer.devices={n_local}: there is no GPU, and only {n_cores} cores; set at most as many"
        )
    return False


def meet() -> None:
    """Waits until all processes are here."""
    if _talk is not None:
        dist.barrier(group=_talk)


def told(value: T) -> T:
    """What the first process says: its value, in every process."""
    if _talk is None:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_talk)
    return values[0]


def gathered(value: T) -> list[T]:
    """The values of all processes, in their order, in every process."""
    if _talk is None:
        return [value]
    values: list[Any] = [None] * _place.n_ranks
    dist.all_gather_object(values, value, group=_talk)
    return values


@contextmanager
def first_of_machine_first() -> Iterator[None]:
    """Lets one process on each machine go through a block before the others: it builds what these then find."""
    if _place.local_rank > 0:
        meet()
    yield
    if _place.local_rank == 0:
        meet()


def trainer_arguments() -> dict[str, Any]:
    """What Lightning's Trainer is told of devices."""
    if _talk is None:
        # a task of SLURM's that trains alone is not looked at
        return {"devices": 1, "plugins": [LightningEnvironment()], "callbacks": []}
    strategy = SharingDDP(cluster_environment=_Environment(_place))
    return {
        "devices": _place.n_local,
        "num_nodes": _place.n_nodes,
        "strategy": strategy,
        "plugins": [],
        "callbacks": [Agreement()],
    }


class SharingDDP(DDPStrategy):
    """DDP whose gradient is that of the whole batch, where shares differ in size.

    DDP takes the mean over processes. Each loss, a mean over the images of a share, is weighted by that share.
    """

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """As that of DDP, of the weighted loss."""
        trainer = cast(Any, self.lightning_module).trainer
        weight = share_weight(trainer.datamodule, trainer.fit_loop.batch_idx)
        return super().backward(closure_loss if weight == 1 else closure_loss * weight, optimizer, *args, **kwargs)

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        self._trained = _trained(model)
        wrapped = super()._setup_model(model)
        wrapped.broadcast_buffers = False  # each batch norm sees its share; `average_buffers` puts them together
        return wrapped

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """As that of DDP; looks in the first step of an epoch, after every callback's start of it, what is trained."""
        if cast(Any, self.lightning_module).trainer.fit_loop.batch_idx == 0:
            self.follow_trained()
        return super().training_step(*args, **kwargs)

    def follow_trained(self) -> None:
        """Wraps the network anew where other weights than before are trained: DDP sees only those it began with."""
        module = self.lightning_module
        if isinstance(self.model, DistributedDataParallel) and module is not None and self._trained != _trained(module):
            self.model = module  # the old wrapper goes first, and takes its hooks with it
            self.model = self._setup_model(module)


def _trained(module: nn.Module) -> list[str]:
    return [name for name, each in module.named_parameters() if each.requires_grad]


def share_weight(data: BreakHisDataModule, step: int) -> float:
    """Weight of a process's loss in a step, for a mean over processes to be one over images."""
    n_whole = min(data.data.batch_size, data.n_train_images - step * data.data.batch_size)
    n_own = len(range(_place.rank, n_whole, _place.n_ranks))
    return n_own * _place.n_ranks / n_whole


class Agreement(Callback):
    """What processes have to agree on beside gradients."""

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Averages what batch norm has seen, so that it is of all images, and the same everywhere."""
        if trainer.state.fn == "fit":
            average_buffers(pl_module)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Has every process know the logits of all."""
        if isinstance(pl_module, Classifier):
            pl_module.gather_outputs(gathered)


def average_buffers(module: nn.Module) -> None:
    """Puts the mean over all processes in place of every floating-point buffer."""
    put_means([buffer for buffer in module.buffers() if buffer.is_floating_point()])


def put_means(tensors: Sequence[Tensor]) -> None:
    """Puts the mean over all processes in place of each tensor; they are of one type and on the devices that train."""
    if _talk is None or not tensors:
        return
    whole = torch.cat([each.reshape(-1) for each in tensors])
    dist.all_reduce(whole)
    whole /= _place.n_ranks
    for each, mean in zip(tensors, torch.split(whole, [each.numel() for each in tensors]), strict=True):
        each.copy_(mean.view_as(each))


class _Environment(ClusterEnvironment):
    """Tells Lightning where a process stands; processes are never Lightning's to start."""

    def __init__(self, own: Place) -> None:
        super().__init__()
        self._place = own

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self._place.address

    @property
    def main_port(self) -> int:
        return self._place.port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self._place.n_ranks

    def set_world_size(self, size: int) -> None:
        pass

    def global_rank(self) -> int:
        return self._place.rank

    def set_global_rank(self, rank: int) -> None:
        pass

    def local_rank(self) -> int:
        return self._place.local_rank

    def node_rank(self) -> int:
        return self._place.rank // self._place.n_local
