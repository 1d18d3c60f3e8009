"""The checkpoint of the last finished epoch, and what is read from one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback

from breakhis_pl.config import SMALLEST_IMAGE
from breakhis_pl.data.breakhis import CLASS_NAMES
from breakhis_pl.errors import CheckpointError, ConfigurationError, StorageError, listed
from breakhis_pl.evaluation.texts import quoted
from breakhis_pl.models.backbones import state_faults
from breakhis_pl.models.classifier import Classifier
from breakhis_pl.models.networks import NetworkSpec, build_on_paper
from breakhis_pl.models.tensor_files import TensorFileError, plain_dict, read_tensor_file
from breakhis_pl.network_names import ARGUMENTS, HEADS, LIBRARIES, REPORT_NETWORKS, network_faults
from breakhis_pl.training.background import BackgroundCheckpointIO

LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"
"""Inside the run folder."""

_LARGEST_SIDE = 4096
_MOST_EPOCHS = 1_000_000


class LastCheckpoint(Callback):
    """Keeps the state after the last finished epoch.

    Args:
        folder: The run folder.
        writer: The trainer's plugin that writes checkpoints.
    """

    def __init__(self, folder: Path, writer: BackgroundCheckpointIO) -> None:
        self.path = folder / LAST_CHECKPOINT
        self.writer = writer

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Has the checkpoint written."""
        self.path.parent.mkdir(exist_ok=True)  # not the run folder: one that has vanished does not come back half
        trainer.save_checkpoint(self.path)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Waits for the last file."""
        self.writer.flush()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Waits for the last file; that it failed is said only where nothing else is."""
        if not isinstance(exception, StorageError):
            self.writer.flush()


@dataclass(frozen=True, slots=True)
class TrainedNetwork:
    """A network as a checkpoint holds it.

    Attributes:
        classifier: With the trained weights, on the CPU.
        mean: Of the train images, per channel, values in [0, 1].
        std: Likewise the standard deviation.
        image_size: Side in pixels of the images it was trained on.
        split_checksum: Of the split it was trained on.
        epoch: Number of finished epochs.
    """

    classifier: Classifier
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int
    split_checksum: str | None
    epoch: int


def load_checkpoint(
    path: Path,
    *,
    evaluated: tuple[str, ...] = ("test",),
    memory_format: torch.memory_format = torch.channels_last,
) -> TrainedNetwork:
    """The network in a checkpoint, rebuilt from plain values; nothing in the file is run.

    Args:
        path: Written by `LastCheckpoint`.
        evaluated: Subsets the classifier will be evaluated on.
        memory_format: Of the network.

    Raises:
        CheckpointError: If the file is missing, damaged, or something else.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; expected a checkpoint, as in <run folder>/{LAST_CHECKPOINT}")
    try:
        content = read_tensor_file(path)
    except TensorFileError as error:
        raise CheckpointError(f"{path} is no checkpoint: {error}; expected one that train.py wrote") from error
    facts, state, statistics = (
        plain_dict(content.get(key)) for key in ("breakhis_pl", "state_dict", "BreakHisDataModule")
    )
    if facts is None or state is None or statistics is None:
        raise CheckpointError(f"{path} is no checkpoint of breakhis_pl; expected one that train.py wrote")
    try:
        image_size = _whole_number(statistics, "image_size", at_least=SMALLEST_IMAGE, at_most=_LARGEST_SIDE)
        spec = _network_spec(facts, image_size)
        _check_weights(spec, state, n_bytes=path.stat().st_size)
        classifier = Classifier(**asdict(spec), evaluated=evaluated, memory_format=memory_format)
        _load_weights(classifier, state)
        return TrainedNetwork(
            classifier=classifier,
            mean=_three(statistics, "mean"),
            std=_three(statistics, "std", above=0),
            image_size=image_size,
            split_checksum=_split_checksum(statistics),
            epoch=_whole_number(content, "epoch", at_least=0, at_most=_MOST_EPOCHS) + 1,
        )
    except ValueError as error:
        raise CheckpointError(
            f"{path} does not hold a network of breakhis_pl: {error}; expected a checkpoint that train.py wrote"
        ) from error


def _network_spec(facts: Mapping[str, Any], image_size: int) -> NetworkSpec:
    """The network that is meant; names are looked up in the library's own list, arguments in a closed one.

    Raises:
        ValueError: If no such network tells these classes apart.
    """
    if facts.get("class_names") != list(CLASS_NAMES):
        raise ValueError(f"class_names is not {list(CLASS_NAMES)}")
    # a checkpoint of before other libraries names the backbone and dropout alone
    library, head = _one_of(facts, "library", LIBRARIES), _one_of(facts, "head", HEADS)
    backbone, is_frozen = facts.get("backbone"), facts.get("is_frozen", False)
    arguments = plain_dict(facts.get("arguments", {}))
    if not isinstance(backbone, str) or (library == "report" and backbone not in REPORT_NETWORKS):
        raise ValueError(f"backbone is {_shown(backbone)}, not one of {listed(REPORT_NETWORKS)}")
    if not isinstance(is_frozen, bool):
        raise ValueError(f"is_frozen is {_shown(is_frozen)}, neither true nor false")
    if arguments is None or len(arguments) > len(ARGUMENTS):
        raise ValueError("arguments is no short dict")
    faults = list(network_faults(library, backbone, arguments))
    if faults:
        raise ValueError("; ".join(faults))
    return NetworkSpec(
        backbone=backbone,
        library=library,
        arguments=arguments,
        head=head,
        dropout=_number(facts.get("dropout"), "dropout", is_possible=lambda value: 0 <= value < 1),
        image_size=image_size,
        is_frozen=is_frozen,
    )


def _one_of(facts: Mapping[str, Any], name: str, choices: Sequence[str]) -> str:
    value = facts.get(name, choices[0])
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} is {_shown(value)}, not one of {listed(choices)}")
    return value


def _check_weights(spec: NetworkSpec, state: Mapping[str, Any], *, n_bytes: int) -> None:
    """Makes sure that a network is the one whose weights a file holds, before memory is taken for it.

    Raises:
        ValueError: If it is larger than the file, its weights are those of another, or it cannot be built.
    """
    if spec.library == "report":
        return
    try:
        wanted = build_on_paper(spec).state_dict()
    except ConfigurationError as error:
        raise ValueError(str(error)) from error
    if sum(value.numel() for value in wanted.values()) > n_bytes:
        raise ValueError(f"{spec.backbone} has more weights than the file has bytes")
    start = "network."
    given = {
        key.removeprefix(start): value for key, value in state.items() if isinstance(key, str) and key.startswith(start)
    }
    shapes = [fault for fault in state_faults(given, wanted) if not fault.startswith("not finite")]
    if shapes:
        raise ValueError(f"its weights do not fit {spec.backbone}; {'; '.join(shapes)}")


def _load_weights(classifier: Classifier, state: Mapping[str, Any]) -> None:
    """Copies the weights.

    Raises:
        ValueError: If they are those of another network, or not finite.
    """
    faults = state_faults(state, classifier.state_dict())
    if faults:
        raise ValueError(f"its weights do not fit {classifier.backbone}; {'; '.join(faults)}")
    classifier.load_state_dict(state)


def _three(statistics: Mapping[str, Any], name: str, *, above: float = -1) -> tuple[float, float, float]:
    """Values of red, green and blue, each at most 1.

    Raises:
        ValueError: If there are others.
    """
    values = statistics.get(name)
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise ValueError(f"{name} is {_shown(values)}, not a list of three numbers")
    red, green, blue = (
        _number(value, name, is_possible=lambda value: 0 <= value <= 1 and value > above) for value in values
    )
    return red, green, blue


def _number(value: object, name: str, *, is_possible: Callable[[float], bool]) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not is_possible(value):
        raise ValueError(f"{name} is {_shown(value)}")
    return float(value)


def _whole_number(values: Mapping[str, Any], name: str, *, at_least: int, at_most: int) -> int:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not at_least <= value <= at_most:
        raise ValueError(f"{name} is {_shown(value)}, not a whole number from {at_least} to {at_most:,}")
    return value


def _split_checksum(statistics: Mapping[str, Any]) -> str | None:
    value = statistics.get("split_checksum")
    if value is not None and not isinstance(value, str):
        raise ValueError(f"split_checksum is {_shown(value)}, not a text")
    return value


def _shown(value: object) -> str:
    """A value for a message; of containers from a stranger's file, which may be endless, only what they are."""
    return quoted(value) if value is None or isinstance(value, str | int | float) else f"a {type(value).__name__}"
