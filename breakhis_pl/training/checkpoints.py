"""The checkpoints of the last finished epoch and of the best one, and what is read from one.

Where a validation value chooses the epoch, each checkpoint says which one it is (`training.selection`), and the state
of a best epoch goes into last.ckpt first and into best.ckpt then, before any later one goes anywhere. So at any moment
best.ckpt is of the epoch that last.ckpt names, or last.ckpt is itself of that epoch, and `mend_best` repeats it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback

from breakhis_pl.config import SMALLEST_IMAGE
from breakhis_pl.data.breakhis import CLASS_NAMES, TASKS
from breakhis_pl.data.domain import Domain, restored_domain
from breakhis_pl.data.stain import StainTarget, restored_target
from breakhis_pl.errors import CheckpointError, ConfigurationError, StorageError, listed
from breakhis_pl.evaluation.texts import quoted
from breakhis_pl.files import force_to_disk, put_same
from breakhis_pl.models.backbones import state_faults
from breakhis_pl.models.classifier import Classifier
from breakhis_pl.models.networks import NetworkSpec, build_on_paper
from breakhis_pl.models.tensor_files import TensorFileError, plain_dict, read_tensor_file
from breakhis_pl.network_names import ARGUMENTS, HEADS, LIBRARIES, REPORT_NETWORKS, network_faults
from breakhis_pl.training.background import BackgroundCheckpointIO
from breakhis_pl.training.selection import Selection

LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"
"""Inside the run folder."""

BEST_CHECKPOINT = Path("checkpoints") / "best.ckpt"
"""Likewise, where a validation value chooses the epoch."""

_LARGEST_SIDE = 4096
_MOST_EPOCHS = 1_000_000


class LastCheckpoint(Callback):
    """Keeps the state after the last finished epoch.

    Args:
        folder: The run folder.
        writer: The trainer's plugin that writes checkpoints.
        selection: What chooses the epoch; its best one is kept in best.ckpt. None keeps no other than the last.
    """

    def __init__(self, folder: Path, writer: BackgroundCheckpointIO, *, selection: Selection | None = None) -> None:
        self.path = folder / LAST_CHECKPOINT
        self.best = folder / BEST_CHECKPOINT
        self.writer = writer
        self.selection = selection

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Has the checkpoint written."""
        if trainer.is_global_zero and not self.path.parent.exists():
            self.path.parent.mkdir()  # not the run folder: one that has vanished does not come back half
            force_to_disk(self.path.parent.parent)
        is_best = self.selection is not None and self.selection.best_epoch == trainer.current_epoch + 1
        trainer.save_checkpoint(self.path, storage_options=self.best if is_best else None)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Waits for the last file."""
        self.writer.flush()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Waits for the last file; that it failed is said only where nothing else is."""
        if not isinstance(exception, StorageError):
            self.writer.flush()


def counting_checkpoint(folder: Path) -> Path:
    """The checkpoint that a run's results are of: that of its best epoch where one was chosen, else of its last.

    Args:
        folder: The run folder.
    """
    best = folder / BEST_CHECKPOINT
    return best if best.exists() else folder / LAST_CHECKPOINT


def named_checkpoint(folder: Path, name: str) -> Path:
    """The checkpoint that evaluate.py was asked for.

    Args:
        folder: The run folder.
        name: "auto", "best", "last", or a path.

    Raises:
        CheckpointError: If the run has no best epoch.
    """
    match name:
        case "auto":
            return counting_checkpoint(folder)
        case "last":
            return folder / LAST_CHECKPOINT
        case "best":
            if not (folder / BEST_CHECKPOINT).exists():
                raise CheckpointError(
                    f"checkpoint=best: {folder} has no {BEST_CHECKPOINT}, for nothing was chosen in that run; take "
                    "checkpoint=last, or train with trainer.monitor and data.val_fraction"
                )
            return folder / BEST_CHECKPOINT
        case path:
            return Path(path)


def mend_best(folder: Path, selection: Selection, *, last_epoch: int) -> None:
    """Makes best.ckpt that of the best epoch, if the process was killed between the two files.

    Args:
        folder: The run folder.
        selection: As the last checkpoint holds it.
        last_epoch: Of the last checkpoint, from 1.

    Raises:
        CheckpointError: If best.ckpt is of another epoch, or missing, and cannot be mended.
    """
    if selection.best_epoch == last_epoch:
        put_same(folder / LAST_CHECKPOINT, folder / BEST_CHECKPOINT)
    best_content(folder, selection)


def best_content(folder: Path, selection: Selection) -> Mapping[str, Any]:
    """What best.ckpt holds.

    Args:
        folder: The run folder.
        selection: What chose its epoch.

    Raises:
        CheckpointError: If it is missing, damaged, or of another epoch.
    """
    path = folder / BEST_CHECKPOINT
    wanted = f"epoch {selection.best_epoch}, the best of this run by {selection.monitor}"
    try:
        content = read_tensor_file(path)
    except (OSError, TensorFileError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); expected {wanted}; train anew") from error
    if content.get("epoch") != (selection.best_epoch or 0) - 1:
        raise CheckpointError(f"{path} is of another epoch; expected {wanted}; put it back, or train anew")
    return content


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
        domain: What the train images looked like; None where there were too few, or an older version wrote the file.
        stain: What the stains of images must be brought to before the network sees them, by `stain.applied(image)`
            after resizing; None where they stay as they are.
    """

    classifier: Classifier
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int
    split_checksum: str | None
    epoch: int
    domain: Domain | None = None
    stain: StainTarget | None = None


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
            domain=None if statistics.get("domain") is None else restored_domain(statistics["domain"]),
            stain=_stain(statistics),
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
    tasks = [task for task, class_names in TASKS.items() if facts.get("class_names") == list(class_names)]
    if not tasks:
        raise ValueError(f"class_names is not {list(CLASS_NAMES)}, nor the eight tumor types")
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
        task=tasks[0],
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


def _stain(statistics: Mapping[str, Any]) -> StainTarget | None:
    """The target of stain normalization.

    Raises:
        ValueError: If something else is in its place.
    """
    if statistics.get("stain") is None:
        return None
    values = plain_dict(statistics["stain"])
    if values is None:
        raise ValueError(f"stain is {_shown(statistics['stain'])}")
    return restored_target(values)


def _shown(value: object) -> str:
    """A value for a message; of containers from a stranger's file, which may be endless, only what they are."""
    return quoted(value) if value is None or isinstance(value, str | int | float) else f"a {type(value).__name__}"
