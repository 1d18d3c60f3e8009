"""What a run goes on with besides weights: optimizer, schedule, progress, history; checked before anything takes it.

torch and Lightning take such states as they are: a schedule's values become its attributes, an optimizer's settings
replace those of the configuration. So a checkpoint is compared with what this run's own parts would have written.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from breakhis_pl.errors import CheckpointError
from breakhis_pl.evaluation.texts import quoted
from breakhis_pl.models.backbones import state_faults
from breakhis_pl.models.classifier import Classifier
from breakhis_pl.models.tensor_files import plain_dict
from breakhis_pl.training.averaging import OWN_WEIGHTS, AveragedWeights

_LARGEST_INTEGER = 2**63

_MAJOR_VERSION = "2."
"""Of Lightning: checkpoints of others are rewritten by code that expects their layout."""


def check_training_state(
    content: Mapping[str, Any], path: Path, *, trainer: L.Trainer, classifier: Classifier, history: str
) -> None:
    """Makes sure that a run can go on with what a checkpoint holds.

    Args:
        content: Of the checkpoint; weights and epoch are checked by `load_checkpoint`.
        path: Where it was read.
        trainer: That is to go on.
        classifier: That is to be trained.
        history: Name under which the history of the epochs is kept.

    Raises:
        CheckpointError: If it is no state of this run.
    """
    try:
        _check(content, trainer, classifier, history)
    except _MisfitError as fault:
        raise CheckpointError(
            f"{path} cannot be gone on with: {fault}; expected what this run wrote after an epoch; bring that back, "
            "or delete the file, and the run starts from its first epoch"
        ) from None


class _MisfitError(ValueError):
    """Says which part of a state does not fit."""


def _check(content: Mapping[str, Any], trainer: L.Trainer, classifier: Classifier, history: str) -> None:
    """Looks at every part.

    Raises:
        _MisfitError: At the first that does not fit.
    """
    n_done = content["epoch"] + 1
    version = content.get("pytorch-lightning_version")
    if not isinstance(version, str) or not version.startswith(_MAJOR_VERSION) or not version.isprintable():
        raise _MisfitError(f"its version of Lightning is {_shown(version)}, not {_MAJOR_VERSION}x")
    _check_averages(content, trainer, classifier)
    progress = _entries(_entries(content.get("loops"), "loops").get("fit_loop"), "loops.fit_loop")
    _compare(progress, trainer.fit_loop.state_dict(), "loops.fit_loop", may_have_more=True)
    n_counted = progress["epoch_progress"]["current"]["processed"]
    rows = _history_rows(content, history, classifier.evaluated)
    if not n_done == n_counted == len(rows):
        raise _MisfitError(f"it is of epoch {n_done}, counts {n_counted} epochs, and has a history of {len(rows)}")
    made: Any = classifier.configure_optimizers()
    if not isinstance(made, Mapping):
        raise TypeError(f"expected an optimizer and a schedule, got {type(made).__name__}")
    (saved,) = _list_of(content, "optimizer_states", 1)
    _check_optimizer(_entries(saved, "optimizer_states"), made["optimizer"])
    (schedule,) = _list_of(content, "lr_schedulers", 1)
    own = made["lr_scheduler"]["scheduler"].state_dict()
    steps = _entries(schedule, "lr_schedulers")
    _compare(steps, own, "lr_schedulers", may_lack=True)
    rates = [group["lr"] for group in saved["param_groups"]]
    if steps.get("last_epoch") != n_done or steps.get("_last_lr") != rates:
        raise _MisfitError(f"its schedule is not that of its optimizer after {n_done} epochs")


def _check_averages(content: Mapping[str, Any], trainer: L.Trainer, classifier: Classifier) -> None:
    """Makes sure that a run with averaged weights finds its own ones, and no other run any."""
    averages = [each for each in trainer.callbacks if isinstance(each, AveragedWeights)]  # type: ignore[attr-defined]
    if not averages:
        if OWN_WEIGHTS in content:
            raise _MisfitError(f"it has {OWN_WEIGHTS}, and this run averages none")
        return
    faults = state_faults(_entries(content.get(OWN_WEIGHTS), OWN_WEIGHTS), classifier.state_dict())
    if faults:
        raise _MisfitError(f"{OWN_WEIGHTS} does not fit {classifier.backbone}; {'; '.join(faults)}")
    kept = _entries(_entries(content.get("callbacks"), "callbacks").get(averages[0].state_key), "averaged weights")
    n_steps = kept.get("n_steps")
    if not isinstance(n_steps, int) or isinstance(n_steps, bool) or not 0 < n_steps < _LARGEST_INTEGER:
        raise _MisfitError(f"it counts {_shown(n_steps)} averaged steps")


def _history_rows(content: Mapping[str, Any], name: str, evaluated: Sequence[str]) -> list[Any]:
    kept = _entries(_entries(content.get("callbacks"), "callbacks").get(name), name)
    rows = kept.get("rows")
    if not isinstance(rows, list) or not _is_number(kept.get("train_seconds")):
        raise _MisfitError(f"{name} holds no rows, or no time")
    known = {"epoch", "learning_rate", "images_per_second"}
    known |= {f"{subset}_{quantity}" for subset in ("train", *evaluated) for quantity in ("loss", "accuracy")}
    for number, row in enumerate(rows, start=1):
        values = _entries(row, f"{name} row {number}")
        if not known <= values.keys() or values.keys() != dict(rows[0]).keys():
            raise _MisfitError(f"{name} row {number} has other columns than {', '.join(sorted(known))}")
        if values["epoch"] != number or not all(_is_number(value) for value in values.values()):
            raise _MisfitError(f"{name} row {number} is no row of that epoch")
    return rows


def _check_optimizer(saved: Mapping[str, Any], own: Optimizer) -> None:
    """Compares settings with those of the configuration, and what is kept of each parameter with its shape."""
    groups, expected = saved.get("param_groups"), own.state_dict()["param_groups"]
    if not isinstance(groups, list) or len(groups) != len(expected):
        raise _MisfitError(f"optimizer_states has no {len(expected)} groups of parameters")
    for found, group in zip(groups, expected, strict=True):
        _compare(_entries(found, "a group of parameters"), group, "param_groups")
        differing = [name for name in group if name != "lr" and found[name] != group[name]]
        if differing:
            raise _MisfitError(
                f"its optimizer has {differing[0]}={_shown(found[differing[0]])}, not {_shown(group[differing[0]])}"
            )
        if not _is_number(found["lr"]) or found["lr"] < 0:
            raise _MisfitError(f"its learning rate is {_shown(found['lr'])}")
    parameters = [parameter for group in own.param_groups for parameter in group["params"]]
    kept, quantities = _entries(saved.get("state"), "the optimizer's state"), _quantities(own)
    if quantities and not kept:
        raise _MisfitError("its optimizer keeps nothing")
    for place, values in kept.items():
        if not isinstance(place, int) or not 0 <= place < len(parameters):
            raise _MisfitError(f"its optimizer keeps something of parameter {_shown(place)}")
        _check_kept(_entries(values, f"parameter {place}"), quantities, parameters[place], place)


def _check_kept(values: Mapping[str, Any], quantities: Mapping[str, bool], parameter: Tensor, place: int) -> None:
    if values.keys() != quantities.keys():
        raise _MisfitError(f"its optimizer keeps other things of parameter {place} than {', '.join(quantities)}")
    for name, is_scalar in quantities.items():
        shape = torch.Size() if is_scalar else parameter.shape
        value = values[name]
        if not isinstance(value, Tensor) or value.shape != shape or not value.is_floating_point():
            raise _MisfitError(f"{name} of parameter {place} is no tensor of shape {tuple(shape)}")
        if not bool(value.isfinite().all()):
            raise _MisfitError(f"{name} of parameter {place} is not finite")


def _quantities(own: Optimizer) -> dict[str, bool]:
    """What such an optimizer keeps of a parameter after a step: name, and whether it is a single number."""
    parameter = nn.Parameter(torch.zeros(2, 3))
    parameter.grad = torch.zeros_like(parameter)
    probe = type(own).__new__(type(own))
    Optimizer.__init__(probe, [parameter], dict(own.defaults))
    probe.step()
    return {name: value.ndim == 0 for name, value in probe.state[parameter].items() if isinstance(value, Tensor)}


def _compare(
    found: Mapping[str, Any], own: Mapping[str, Any], where: str, *, may_have_more: bool = False, may_lack: bool = False
) -> None:
    """Compares names and kinds of values, all the way down.

    Raises:
        _MisfitError: If they differ.
    """
    more, lacking = found.keys() - own.keys(), own.keys() - found.keys()
    if (more and not may_have_more) or (lacking and not may_lack):
        name = min(map(str, more if more and not may_have_more else lacking))
        raise _MisfitError(f"{where} has {'a strange' if name in map(str, more) else 'no'} {_shown(name)}")
    for name in own.keys() & found.keys():
        _compare_value(found[name], own[name], f"{where}.{name}", may_have_more=may_have_more, may_lack=may_lack)


def _compare_value(found: object, own: object, where: str, *, may_have_more: bool, may_lack: bool) -> None:
    if isinstance(own, Mapping):
        _compare(_entries(found, where), own, where, may_have_more=may_have_more, may_lack=may_lack)
        return
    if isinstance(own, list | tuple):
        if not isinstance(found, list | tuple) or len(found) != len(own):
            raise _MisfitError(f"{where} is no list of {len(own)}")
        for number, (ours, theirs) in enumerate(zip(found, own, strict=True)):
            _compare_value(ours, theirs, f"{where}[{number}]", may_have_more=may_have_more, may_lack=may_lack)
        return
    is_number = isinstance(own, int | float) and not isinstance(own, bool)
    if not (_is_number(found) if is_number else type(found) is type(own)):
        raise _MisfitError(f"{where} is {_shown(found)}")


def _list_of(content: Mapping[str, Any], name: str, length: int) -> Iterator[Any]:
    values = content.get(name)
    if not isinstance(values, list) or len(values) != length:
        raise _MisfitError(f"{name} is no list of {length}")
    return iter(values)


def _entries(value: object, where: str) -> dict[str, Any]:
    entries = plain_dict(value)
    if entries is None:
        raise _MisfitError(f"{where} is {_shown(value)}, not a dict")
    return entries


def _is_number(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST_INTEGER


def _shown(value: object) -> str:
    """A value for a message; of containers from a stranger's file, which may be endless, only what they are."""
    return quoted(value) if value is None or isinstance(value, str | int | float) else f"a {type(value).__name__}"
