import errno
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from breakhis_pl.config import (
    BreakHisDataConfig,
    EvaluateConfig,
    EvaluateTrainerConfig,
    ModelConfig,
    SyntheticDataConfig,
    TrainConfig,
    TrainerConfig,
)
from breakhis_pl.errors import BreakHisError, StorageError, TrainingError
from breakhis_pl.training.finite import ALL_FROM_PIXELS, FiniteTraining, explained, may_hold_nonfinite, not_finite

N_STEPS = 5
Damage = Callable[["Line", Tensor], Tensor]


class Line(L.LightningModule):
    """A regression on a straight line; `damage` changes the loss of one step, `after` what lies behind an epoch."""

    def __init__(self, *, damage: Damage | None = None, epoch: int = 0, step: int = 2) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.register_buffer("seen", torch.zeros(1))
        self.damage, self.epoch, self.step = damage, epoch, step
        self.weights: list[Tensor] = []
        self.n_evaluated = 0

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.weights.append(self.layer.weight.detach().clone())
        loss: Tensor = self.layer(batch).square().mean()
        if self.damage is not None and (self.current_epoch, batch_idx) == (self.epoch, self.step):
            loss = self.damage(self, loss)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.n_evaluated += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def loss_of(value: float) -> Damage:
    return lambda _, loss: loss * value


def gradient_of_all(_: Line, loss: Tensor) -> Tensor:
    return loss + (loss - loss).sqrt()  # the slope of the root is infinite at 0; times 0 it is no number


def gradient_of_the_weight(module: Line, loss: Tensor) -> Tensor:
    return loss + (module.layer.weight * 0).sqrt().sum()


def buffer(module: Line, loss: Tensor) -> Tensor:
    module.seen.fill_(torch.inf)
    return loss


def momentum(module: Line, loss: Tensor) -> Tensor:
    module.trainer.optimizers[0].state[module.layer.bias]["momentum_buffer"].fill_(torch.nan)
    return loss


def fitted(module: Line, callback: FiniteTraining, **options: Any) -> L.Trainer:
    data = torch.randn((N_STEPS, 2), generator=torch.Generator().manual_seed(0))
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[callback],
        **options,
    )
    trainer.fit(module, DataLoader(data), DataLoader(data))
    return trainer


pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*isinstance.treespec, LeafSpec")


@pytest.mark.parametrize("look_every", [None, 2, 3, 100])
def test_a_training_that_stays_finite_is_left_alone(look_every: int | None) -> None:
    guarded, plain = Line(), Line()
    plain.load_state_dict(guarded.state_dict())
    fitted(guarded, FiniteTraining(look_every))
    fitted(plain, FiniteTraining())
    assert guarded.n_evaluated == 2 * N_STEPS
    assert torch.equal(guarded.layer.weight, plain.layer.weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_stops_that_step_before_the_optimizer_takes_it(value: float) -> None:
    module = Line(damage=loss_of(value))
    text = rf"the loss is {value:g} in epoch 1, step 3 of 5, at learning rate 0\.01; no checkpoint .*; lower optimizer"
    with pytest.raises(TrainingError, match=text):
        fitted(module, FiniteTraining())
    assert len(module.weights) == 3
    assert torch.equal(module.layer.weight, module.weights[-1])


def test_a_gradient_that_is_not_finite_stops_that_step_before_the_optimizer_takes_it() -> None:
    module = Line(damage=gradient_of_all, epoch=1)
    text = r"the gradient is not finite for layer\.weight, layer\.bias in epoch 2, step 3 of 5, .* epoch before is kept"
    with pytest.raises(TrainingError, match=text):
        fitted(module, FiniteTraining())
    assert torch.equal(module.layer.weight, module.weights[-1])


def test_a_gradient_that_no_vector_shows_is_named_in_its_own_step_by_the_next_loss() -> None:
    module = Line(damage=gradient_of_the_weight)
    text = r"the optimizer made layer\.weight not finite in epoch 1, step 3 of 5, at learning rate 0\.01"
    with pytest.raises(TrainingError, match=text):
        fitted(module, FiniteTraining())
    assert len(module.weights) == 4


@pytest.mark.parametrize(("side", "n_steps"), [(1024, 3), (1023, 4)], ids=["large images", "smaller ones"])
def test_all_gradients_are_read_in_every_step_of_large_images(
    side: int, n_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.empty(1).expand(1, 3, side, ALL_FROM_PIXELS // 1024)
    plain = FiniteTraining.on_train_batch_start

    def started(callback: FiniteTraining, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        assert isinstance(batch, Tensor)
        plain(callback, trainer, pl_module, SimpleNamespace(images=images), batch_idx)

    monkeypatch.setattr(FiniteTraining, "on_train_batch_start", started)
    module = Line(damage=gradient_of_the_weight)
    with pytest.raises(TrainingError, match=r"layer\.weight.* in epoch 1, step 3 of 5"):
        fitted(module, FiniteTraining())
    assert len(module.weights) == n_steps


def test_a_gradient_that_no_vector_shows_is_noticed_at_once_where_all_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("breakhis_pl.training.finite.ALL_EVERY", 3)
    with pytest.raises(TrainingError, match=r"not finite for layer\.weight in epoch 1, step 3 of 5"):
        fitted(Line(damage=gradient_of_the_weight), FiniteTraining())


@pytest.mark.parametrize(("damage", "name"), [(buffer, "seen"), (momentum, "momentum_buffer of layer.bias")])
def test_what_would_be_saved_is_looked_at_before_the_epoch_is_evaluated(damage: Damage, name: str) -> None:
    module = Line(damage=damage, epoch=1, step=N_STEPS - 1)
    with pytest.raises(TrainingError, match=rf"not finite: .*{name}.* in epoch 2, step 5 of 5"):
        fitted(module, FiniteTraining())
    assert module.n_evaluated == N_STEPS


@pytest.mark.parametrize("look_every", [2, 3, 4, 100])
@pytest.mark.parametrize("step", range(N_STEPS))
@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (loss_of(float("nan")), "the loss is nan"),
        (gradient_of_all, "the gradient is not finite for layer.weight, layer.bias"),
        (gradient_of_the_weight, "the gradient is not finite for layer.weight"),
    ],
)
def test_notes_tell_the_first_bad_step_at_the_next_look(damage: Damage, what: str, step: int, look_every: int) -> None:
    module = Line(damage=damage, epoch=1, step=step)
    with pytest.raises(TrainingError, match=rf"^{what} in epoch 2, step {step + 1} of 5,"):
        fitted(module, FiniteTraining(look_every))
    n_looked = min(-(-(step + 1) // look_every) * look_every, N_STEPS)
    assert len(module.weights) == N_STEPS + n_looked
    assert module.n_evaluated == N_STEPS


@pytest.mark.parametrize("look_every", [None, 2])
def test_under_a_gradient_scaler_only_the_loss_counts(look_every: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(callback: FiniteTraining, trainer: Any, pl_module: Any) -> None:
        plain(callback, trainer, pl_module)
        callback._is_scaled = True

    plain = FiniteTraining.on_train_start
    monkeypatch.setattr(FiniteTraining, "on_train_start", started)
    monkeypatch.setattr(torch.optim.SGD, "step", lambda _, closure: closure())  # skips, as a scaler does
    module = Line(damage=gradient_of_all)
    fitted(module, FiniteTraining(look_every))
    assert module.n_evaluated == 2 * N_STEPS
    with pytest.raises(TrainingError, match="the loss is inf in epoch 1, step 3 of 5"):
        fitted(Line(damage=loss_of(float("inf"))), FiniteTraining(look_every))


def test_a_scaler_is_found_where_lightning_keeps_it() -> None:
    for scaler, expected in ((torch.amp.GradScaler("cpu"), True), (None, False)):
        precision = MixedPrecision("16-mixed" if scaler else "bf16-mixed", "cpu", scaler)
        callback = FiniteTraining()
        callback.on_train_start(SimpleNamespace(precision_plugin=precision), Line())  # type: ignore[arg-type]
        assert callback._is_scaled is expected


def test_another_precision_is_offered_where_it_is_not_float32() -> None:
    module = Line(damage=loss_of(float("nan")))
    with pytest.raises(TrainingError, match=r"or set trainer\.precision=32-true \(it is bf16-mixed\)$"):
        fitted(module, FiniteTraining(), precision="bf16-mixed")


def test_very_large_values_are_suspected_but_not_accused() -> None:
    tensors = [("large", torch.full((3, 2), 3e38)), ("small", torch.zeros(()))]
    assert may_hold_nonfinite([tensor for _, tensor in tensors])
    assert not_finite(tensors) == []
    tensors[1][1].fill_(-torch.inf)
    assert not_finite(tensors) == ["small"]
    assert not may_hold_nonfinite([torch.ones(4), torch.zeros(2, 2)])


def config(**changes: Any) -> TrainConfig:
    data = SyntheticDataConfig(magnification=(200,), **changes.pop("data", {}))
    return TrainConfig(
        data=data,
        model=ModelConfig(backbone=changes.pop("backbone", "resnet18"), epochs=1),
        trainer=TrainerConfig(max_epochs=1, **changes),
    )


CUDA_TEXT = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.79 GiB of which 1.50 GiB is free. "
    "Including non-PyTorch memory, this process has 6.20 GiB memory in use. If reserved but unallocated memory is large"
)
CPU_TEXT = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: {} 4096 bytes. Error code 12"


@pytest.mark.parametrize(
    ("error", "asked", "on_device"),
    [
        (torch.OutOfMemoryError(CUDA_TEXT), "2.00 GiB were asked for, 1.50 GiB were free", True),
        (RuntimeError(CPU_TEXT.format("can't allocate memory: you tried to allocate")), "4096 bytes were asked", False),
        (RuntimeError(CPU_TEXT.format("not enough memory: you tried to allocate")), "4096 bytes were asked", False),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might"), "CUDA error: out of memory", True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "CUDA error: CUBLAS", True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "cuDNN error", True),
        (RuntimeError("MPS backend out of memory (MPS). Tried to allocate 1.20 GB on"), "1.20 GB were asked", True),
        (MemoryError("Unable to allocate 9.1 TiB for an array"), "Unable to allocate 9.1 TiB for an array", False),
        (MemoryError(), "MemoryError", False),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "[Errno 12] Cannot allocate memory", False),
    ],
)
def test_a_lack_of_memory_names_what_was_asked_for_and_the_keys_to_lower(
    error: BaseException, asked: str, on_device: bool
) -> None:
    asked_of_device = config(backbone="wide_resnet50", cuda_graphs=True, data={"batch_size": 64, "image_size": 128})
    known = explained(error, asked_of_device)
    assert isinstance(known, BreakHisError)
    keys = "data.batch_size=64, data.eval_batch_size=null, data.image_size=128, model=resnet18 instead of wide_resnet50"
    more = ", data.pixels=host instead of auto, trainer.cuda_graphs=false instead of true" if on_device else ""
    assert str(known).startswith(f"out of memory: {asked}")
    assert str(known).endswith(f"; lower one of these: {keys}{more}; or leave more memory free")


def test_what_is_as_low_as_it_gets_is_not_offered() -> None:
    lowest = config(cuda_graphs=False, data={"batch_size": 1, "eval_batch_size": 1, "image_size": 32, "pixels": "host"})
    known = explained(torch.OutOfMemoryError(CUDA_TEXT), lowest)
    assert "no key is left to lower; or leave more memory free" in str(known)


def test_an_evaluation_that_lacks_memory_names_its_own_keys() -> None:
    asked = EvaluateConfig(run="run", gallery=0, trainer=EvaluateTrainerConfig(accelerator="gpu"))
    assert "lower one of these: data.batch_size=null, trainer.accelerator=cpu instead of gpu;" in str(
        explained(torch.OutOfMemoryError(CUDA_TEXT), asked)
    )
    asked.gallery = 8
    assert "lower one of these: data.batch_size=null, gallery=8;" in str(explained(MemoryError("no room"), asked))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        OSError(errno.ENOSPC, "No space left on device"),
        StorageError("the disk is out of memory"),
        ValueError("out of memory"),
        KeyboardInterrupt(),
    ],
)
def test_other_errors_are_not_explained_by_memory(error: BaseException) -> None:
    assert explained(error, config()) is None


def test_a_configuration_of_neither_program_is_refused() -> None:
    with pytest.raises(TypeError, match="got BreakHisDataConfig"):
        explained(MemoryError(), BreakHisDataConfig())  # type: ignore[arg-type]
