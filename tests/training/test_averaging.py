from types import SimpleNamespace
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn

from breakhis_pl.training.averaging import OWN_WEIGHTS, AveragedWeights, decay_of_step

FIT: Any = SimpleNamespace(state=SimpleNamespace(fn="fit"))


class Normalized(L.LightningModule):
    """A layer with statistics and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def trained(callback: AveragedWeights, module: Normalized, n_steps: int, first: int = 0) -> list[dict[str, Tensor]]:
    """Weights before the first step and after each, which are drawn by the number of the step."""
    states = [{name: value.clone() for name, value in module.state_dict().items()}]
    for step in range(first, first + n_steps):
        torch.manual_seed(step)
        with torch.no_grad():
            for value in module.parameters():
                value.add_(torch.randn_like(value))
        module.network(torch.randn(4, 2))
        callback.on_train_batch_end(FIT, module, None, None, step)
        states.append({name: value.clone() for name, value in module.state_dict().items()})
    return states


def saved(callback: AveragedWeights, module: Normalized) -> dict[str, Any]:
    content: dict[str, Any] = {"state_dict": module.state_dict()}
    callback.on_save_checkpoint(FIT, module, content)
    return content


def test_the_average_is_that_of_a_loop_by_hand_and_counters_are_counts() -> None:
    callback, module = AveragedWeights(0.3), Normalized()
    callback.on_train_start(FIT, module)
    states = trained(callback, module, 6)
    found = saved(callback, module)["state_dict"]
    for name in ("network.0.weight", "network.1.running_var"):
        expected = states[0][name]
        for step, state in enumerate(states[1:]):
            decay = min(0.3, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * state[name]
        assert torch.allclose(found[name], expected, atol=1e-6)
        assert not torch.allclose(found[name], states[-1][name], atol=1e-3)
    assert found["network.1.num_batches_tracked"] == 6


def test_an_evaluation_sees_the_average_and_training_gets_its_weights_back() -> None:
    callback, module = AveragedWeights(0.9), Normalized()
    callback.on_train_start(FIT, module)
    own = trained(callback, module, 3)[-1]
    average = {name: value.clone() for name, value in saved(callback, module)["state_dict"].items()}
    callback.on_validation_start(FIT, module)
    assert all(torch.equal(value, average[name]) for name, value in module.state_dict().items())
    callback.on_validation_end(FIT, module)
    assert all(torch.equal(value, own[name]) for name, value in module.state_dict().items())
    assert not torch.equal(average["network.0.weight"], own["network.0.weight"])
    callback.on_train_end(FIT, module)
    assert all(torch.equal(value, average[name]) for name, value in module.state_dict().items())


def test_an_evaluation_outside_of_training_takes_the_weights_there_are() -> None:
    callback, module = AveragedWeights(0.9), Normalized()
    callback.on_train_start(FIT, module)
    own = trained(callback, module, 2)[-1]
    callback.on_validation_start(SimpleNamespace(state=SimpleNamespace(fn="validate")), module)  # type: ignore[arg-type]
    assert all(torch.equal(value, own[name]) for name, value in module.state_dict().items())
    callback.on_validation_end(FIT, module)
    assert all(torch.equal(value, own[name]) for name, value in module.state_dict().items())


def test_an_average_that_goes_on_has_the_same_bits() -> None:
    torch.manual_seed(0)
    whole, module = AveragedWeights(0.9), Normalized()
    start = {name: value.clone() for name, value in module.state_dict().items()}
    whole.on_train_start(FIT, module)
    trained(whole, module, 5)
    expected = saved(whole, module)

    first, cut = AveragedWeights(0.9), Normalized()
    cut.load_state_dict(start)
    first.on_train_start(FIT, cut)
    trained(first, cut, 2)
    content, counted = saved(first, cut), first.state_dict()
    second, again = AveragedWeights(0.9), Normalized()
    again.load_state_dict(content["state_dict"])  # as Lightning does before it asks callbacks
    second.on_load_checkpoint(FIT, again, content)
    second.load_state_dict(counted)
    second.on_train_start(FIT, again)
    trained(second, again, 3, first=2)
    found = saved(second, again)
    for part in ("state_dict", OWN_WEIGHTS):
        assert all(torch.equal(found[part][name], expected[part][name]) for name in expected[part])


def test_first_weights_are_soon_forgotten() -> None:
    left = 1.0
    for step in range(50):
        left *= decay_of_step(step, 0.999)
    assert left < 1e-8
    assert decay_of_step(1_000_000, 0.999) == 0.999
