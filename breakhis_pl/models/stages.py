"""The stages of any network, from the stem to the head: what is trained at rates of its own, or later than the rest."""

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from torch import nn

Stage: TypeAlias = tuple[nn.Parameter, ...]

_CONTAINER_SHARE = 0.9
"""A child that holds more of the parameters below the head than this is taken apart."""


class ParameterGroup(NamedTuple):
    """Parameters that are trained together.

    Attributes:
        parameters: Of one stage.
        rate: Of the learning rate, in (0, 1].
    """

    parameters: Stage
    rate: float


def head_of(network: nn.Module) -> nn.Module:
    """The head: the last child that has parameters, as it has in the networks of torchvision and timm.

    Raises:
        ValueError: If the network has no child with parameters.
    """
    children = [child for child in network.children() if next(child.parameters(), None) is not None]
    if not children:
        raise ValueError(f"{type(network).__name__} has no layer with parameters")
    return children[-1]


def stages(network: nn.Module) -> tuple[Stage, ...]:
    """The parameters of a network by stage, the head last; each parameter once.

    A stage is a child in the order in which the network names its children. A child that holds nearly all parameters
    below the head, as `features` or `blocks`, is taken apart. Where a child has only vectors, as a normalization,
    it belongs to the stage before it; parameters that lie in no child, as tokens of a transformer, to the first.

    Args:
        network: Whose last child with parameters is its head.

    Raises:
        ValueError: If the network has no child with parameters.
    """
    head = head_of(network)
    of_head = {id(each) for each in head.parameters()}
    below = [each for each in network.parameters() if id(each) not in of_head]
    n_below = sum(each.numel() for each in below)
    seen = set(of_head)
    found: list[list[nn.Parameter]] = []
    for part in _parts(network, head, _CONTAINER_SHARE * n_below):
        new = [each for each in part if id(each) not in seen]
        seen |= {id(each) for each in new}
        if found and all(each.ndim <= 1 for each in new):
            found[-1] += new
        elif new:
            found.append(new)
    loose = [each for each in below if id(each) not in seen]
    if loose:
        found = [[*loose, *found[0]], *found[1:]] if found else [loose]
    return (*map(tuple, found), tuple(head.parameters()))


def _parts(module: nn.Module, head: nn.Module, largest: float) -> Iterator[list[nn.Parameter]]:
    """Parameters of each child but the head; of a child that has more than `largest` numbers, of its own children."""
    for child in module.children():
        if child is head:
            continue
        parameters = list(child.parameters())
        if sum(each.numel() for each in parameters) > largest and any(True for _ in child.children()):
            yield from _parts(child, head, largest)
        else:
            yield parameters


def layer_groups(network: nn.Module, *, decay: float) -> list[ParameterGroup]:
    """A group per stage, the head first: its learning rate is that of the run, each stage below has `decay` times it.

    Args:
        network: To be trained; what needs no gradient is left out.
        decay: In (0, 1].

    Source:
        Howard and Ruder 2018, doi:10.18653/v1/P18-1031 (discriminative fine-tuning).
    """
    groups = [
        ParameterGroup(tuple(each for each in stage if each.requires_grad), decay**depth)
        for depth, stage in enumerate(reversed(stages(network)))
    ]
    return [group for group in groups if group.parameters]
