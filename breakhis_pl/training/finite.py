"""Trainings that go wrong: stops where something is no longer finite, and explains a lack of memory."""

import errno
import math
import re
from collections.abc import Iterable, Iterator, Sequence

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from breakhis_pl.config import SMALLEST_IMAGE, BreakHisDataConfig, EvaluateConfig, SyntheticDataConfig, TrainConfig
from breakhis_pl.errors import BreakHisError, TrainingError, listed
from breakhis_pl.training.speed import may_have_graphs

LOOK_EVERY = 100
"""Steps between two looks at what a device has noted: each look waits for it."""

ALL_FROM_PIXELS = 32 * 128 * 128
"""Pixels of a batch from which all gradients are read in every step on a CPU. Reading those of ResNet-18 takes 4 ms:
0.5 % of a step of 32 images at 64 pixels and 0.2 % of one at 128 on a single core, more on several, which share memory.
The other networks have more to compute for each weight."""

ALL_EVERY = 20
"""Steps on a CPU after which all gradients are read where there are fewer pixels; the vectors are in every step."""


class FiniteTraining(Callback):
    """Stops a training at the first loss or gradient that is not finite, and before anything not finite is saved.

    On a CPU every step is looked at before the optimizer takes it: the loss and all gradients. Where a batch has fewer
    than `ALL_FROM_PIXELS`, all of them are read in every `ALL_EVERY`th step only, the vectors in every one. Each
    weight of these networks has such a vector behind it, its own bias or that of the batch norm that follows, whose
    gradient is the sum of what came back to the weight. What these do not show has become too large in the weight
    itself: the optimizer takes that step, and the weight makes the loss of the next one not finite, which stops there
    and names the step before. The last step of an epoch is always looked at before anything is saved.

    Elsewhere the device notes the size of loss and gradients of each step, and is asked now and then, and at the end
    of an epoch. Under fp16, where a scaler skips steps whose gradients are infinite, only the loss counts. Before the
    evaluation that ends an epoch, all that is about to be saved is looked at.

    Args:
        look_every: Steps between two looks; None looks at every step on a CPU, at every `LOOK_EVERY` elsewhere.
    """

    def __init__(self, look_every: int | None = None) -> None:
        self.look_every = look_every
        self._steps_per_look = 1
        self._is_scaled = False
        self._parameters: list[tuple[str, nn.Parameter]] = []
        self._step = 0
        self._learning_rate = 0.0
        self._rate_before = 0.0
        self._reads_all = False
        self._loss: Tensor | None = None
        self._notes: Tensor | None = None  # (steps_per_look, 1 + n_gradients)
        self._noted: list[str] = []
        self._n_notes = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Decides how often to look, and at what."""
        usual = 1 if pl_module.device.type == "cpu" else LOOK_EVERY
        self._steps_per_look = usual if self.look_every is None else self.look_every
        self._is_scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        self._parameters = [(name, each) for name, each in pl_module.named_parameters() if each.requires_grad]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forgets the notes of an epoch that was broken off."""
        self._n_notes = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        """Notes which step it is."""
        self._step = batch_idx + 1
        self._reads_all = self._step % ALL_EVERY == 0 or _n_pixels(batch) >= ALL_FROM_PIXELS
        self._rate_before = self._learning_rate
        self._learning_rate = float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Looks at the loss.

        Raises:
            TrainingError: If it is not finite.
        """
        self._loss = loss.detach()
        if self._steps_per_look == 1 and not math.isfinite(float(self._loss)):
            damaged = not_finite(self._parameters)
            if damaged and self._step > 1:
                self._learning_rate = self._rate_before
                what = f"the optimizer made {listed(damaged, limit=3)} not finite"
                raise self._error(trainer, what, self._step - 1)
            raise self._error(trainer, f"the loss is {float(self._loss):g}", self._step)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Looks at the gradients, or has the device note them.

        Raises:
            TrainingError: If they are not finite, or were not in a step before.
        """
        gradients = [] if self._is_scaled else list(self._gradients())
        if self._steps_per_look > 1:
            self._note(gradients)
            if self._n_notes == self._steps_per_look:
                self._read_notes(trainer)
        elif may_hold_nonfinite(self._to_look_at([gradient for _, gradient in gradients])):
            self._refuse(trainer, not_finite(gradients), self._step)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Looks at the whole epoch, before it is evaluated and saved.

        Raises:
            TrainingError: If a step, or what is about to be saved, is not finite.
        """
        if trainer.state.fn != "fit":
            return
        self._read_notes(trainer)
        state = [*_state(pl_module), *_optimizer_state(trainer, self._parameters)]
        if may_hold_nonfinite([tensor for _, tensor in state]):
            names = not_finite(state)
            if names:
                raise self._error(trainer, f"not finite: {listed(names, limit=3)}", self._step)

    def _gradients(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self._parameters:
            if parameter.grad is not None:
                yield name, parameter.grad

    def _to_look_at(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """All gradients, or the vectors alone, put together."""
        vectors = [gradient for gradient in gradients if gradient.ndim == 1]
        return gradients if self._reads_all or not vectors else [torch.cat(vectors)]

    def _note(self, gradients: list[tuple[str, Tensor]]) -> None:
        """Has the device keep loss and largest magnitudes of a step; nothing waits for it."""
        if self._loss is None:
            raise TypeError("a step without a loss; expected automatic optimization")
        self._noted = [name for name, _ in gradients]
        sizes = torch._foreach_norm([gradient for _, gradient in gradients], math.inf) if gradients else ()
        values = [self._loss, *sizes]
        if self._notes is None or self._notes.shape[1] != len(values):
            self._notes = torch.empty((self._steps_per_look, len(values)), device=self._loss.device)
        torch.stack(values, out=self._notes[self._n_notes])
        self._n_notes += 1

    def _read_notes(self, trainer: L.Trainer) -> None:
        if self._notes is None or self._n_notes == 0:
            return
        notes, n_notes = self._notes[: self._n_notes].cpu(), self._n_notes
        self._n_notes = 0
        is_bad = ~notes.isfinite()  # (n_notes, 1 + n_gradients)
        if not is_bad.any():
            return
        first = int(is_bad.any(dim=1).int().argmax())
        step = self._step - n_notes + 1 + first
        if is_bad[first, 0]:
            raise self._error(trainer, f"the loss is {float(notes[first, 0]):g}", step)
        names = [name for name, bad in zip(self._noted, is_bad[first, 1:].tolist(), strict=True) if bad]
        self._refuse(trainer, names, step)

    def _refuse(self, trainer: L.Trainer, names: Sequence[str], step: int) -> None:
        """Raises if there are names of gradients."""
        if names:
            raise self._error(trainer, f"the gradient is not finite for {listed(names, limit=3)}", step)

    def _error(self, trainer: L.Trainer, what: str, step: int) -> TrainingError:
        precision = str(trainer.precision)
        ways = ["lower optimizer.lr"]
        ways += [] if precision == "32-true" else [f"set trainer.precision=32-true (it is {precision})"]
        kept = (
            "the checkpoint of an epoch before is kept" if trainer.current_epoch > 0 else "no checkpoint is there yet"
        )
        return TrainingError(
            f"{what} in epoch {trainer.current_epoch + 1}, step {step} of {trainer.num_training_batches}, "
            f"at learning rate {self._learning_rate:g}; {kept}; {', or '.join(ways)}"
        )


def explained(error: BaseException, config: TrainConfig | EvaluateConfig) -> BreakHisError | None:
    """What to say where memory ran out: how much was asked for, and which keys to lower from which values.

    Args:
        error: What a training or an evaluation raised.
        config: The typed configuration of the program, whose keys the text names.

    Returns:
        None if the error is none of memory.
    """
    if not _is_lack_of_memory(error):
        return None
    ways = list(_ways_to_less_memory(config, on_device=_is_of_device(error)))
    what_next = f"lower one of these: {', '.join(ways)}" if ways else "no key is left to lower"
    return TrainingError(f"out of memory: {_what_was_asked(error)}; {what_next}; or leave more memory free")


_MEMORY_TEXTS = re.compile(
    r"not enough memory: you tried to allocate|can't allocate memory: you tried to allocate|out of memory"
    r"|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
"""Of errors that torch raises as RuntimeError: the CPU's allocator, CUDA beside torch's own, Apple's GPU, cuBLAS."""


def _is_lack_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, BreakHisError):
        return False
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _MEMORY_TEXTS.search(str(error)) is not None


def _is_of_device(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in ("CUDA", "CUDNN", "MPS"))


def _what_was_asked(error: BaseException) -> str:
    """How much was asked for and how much was free, or what else the error says in its first line."""
    text = str(error).strip()
    asked = re.search(r"tried to allocate ([\d.]+ \w+)", text, re.IGNORECASE)
    free = re.search(r"of which ([\d.]+ \w+) is free", text)
    if asked is None:
        return text.splitlines()[0].rstrip(".") if text else type(error).__name__
    return f"{asked.group(1)} were asked for" + (f", {free.group(1)} were free" if free else "")


def _ways_to_less_memory(config: TrainConfig | EvaluateConfig, *, on_device: bool) -> Iterator[str]:
    """Keys with their present values, those that help most first; none that is as low as it gets."""
    match config:
        case EvaluateConfig():
            yield f"data.batch_size={_shown(config.data.batch_size)}"
            if config.gallery > 0:
                yield f"gallery={config.gallery}"
            if on_device:
                yield f"trainer.accelerator=cpu instead of {config.trainer.accelerator}"
        case TrainConfig(data=BreakHisDataConfig() | SyntheticDataConfig() as data):
            if data.batch_size > 1:
                yield f"data.batch_size={data.batch_size}"
            if data.eval_batch_size != 1:
                yield f"data.eval_batch_size={_shown(data.eval_batch_size)}"
            if data.image_size > SMALLEST_IMAGE:
                yield f"data.image_size={data.image_size}"
            if config.model.backbone != "resnet18":
                yield f"model=resnet18 instead of {config.model.backbone}"
            if on_device and data.pixels != "host":
                yield f"data.pixels=host instead of {data.pixels}"
            if on_device and may_have_graphs(config):
                yield f"trainer.cuda_graphs=false instead of {_shown(config.trainer.cuda_graphs)}"
        case _:
            raise TypeError(f"expected the configuration of a program, got {type(config).__name__}")


def _shown(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def may_hold_nonfinite(tensors: Sequence[Tensor]) -> bool:
    """Whether any element may be infinite or not a number: never False if one is; True also for very large ones.

    Args:
        tensors: Of any shapes, floating-point.

    Example:
        >>> may_hold_nonfinite([torch.ones(2, 3), torch.tensor(torch.nan)])
        True
    """
    return not math.isfinite(float(get_total_norm(tensors)))


def _n_pixels(batch: object) -> int:
    """Of all images of a batch together; 0 where there are none."""
    images = getattr(batch, "images", None)
    return images.shape[0] * images.shape[-2] * images.shape[-1] if isinstance(images, Tensor) else 0


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of the tensors that hold an element that is infinite or not a number.

    Args:
        tensors: Name and tensor, of any shape.
    """
    return [name for name, tensor in tensors if not bool(tensor.isfinite().all())]


def _state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights and statistics by name."""
    yield from ((name, parameter.detach()) for name, parameter in module.named_parameters())
    yield from ((name, buffer) for name, buffer in module.named_buffers() if buffer.is_floating_point())


def _optimizer_state(
    trainer: L.Trainer, parameters: Iterable[tuple[str, nn.Parameter]]
) -> Iterator[tuple[str, Tensor]]:
    """What the optimizers keep of each parameter."""
    for optimizer in trainer.optimizers:
        for name, parameter in parameters:
            for quantity, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and value.is_floating_point():
                    yield f"{quantity} of {name}", value
