"""What keeps a run whole: one process in its folder, its own images, errors in words that say what to do."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from traceback import clear_frames
from typing import Any

from breakhis_pl.config import EvaluateConfig, TrainConfig
from breakhis_pl.data.datamodule import BreakHisDataModule
from breakhis_pl.errors import BreakHisError, CheckpointError, ConfigurationError, RunFolderError, StorageError
from breakhis_pl.files import clear_leftovers
from breakhis_pl.locks import locked
from breakhis_pl.models.networks import NetworkSpec, takes_single_images
from breakhis_pl.training.checkpoints import TrainedNetwork
from breakhis_pl.training.distributed import is_first
from breakhis_pl.training.finite import explained

log = logging.getLogger(__name__)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keeps every other process that would write a run out of its folder until the block ends.

    Of the processes that share a run only the first one writes; the others pass.

    Raises:
        RunFolderError: If another process writes there.
        StorageError: If nothing can be written there.
    """
    if not is_first():
        yield
        return
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder / ".lock", say=log.warning))
        except BlockingIOError:
            raise RunFolderError(f"another process writes {folder} at this moment; wait until it has ended") from None
        except OSError as error:
            raise StorageError(
                f"cannot write in {folder} ({error.strerror}); mend that, or choose another folder"
            ) from error
        for place in (folder, *(path for path in folder.iterdir() if path.is_dir())):
            clear_leftovers(place, of="*")
        yield


@contextmanager
def errors_explained(config: TrainConfig | EvaluateConfig, folder: Path) -> Iterator[None]:
    """Puts an error that says what to do in place of one that does not, where there is such.

    Args:
        config: The typed configuration.
        folder: The run folder.

    Raises:
        StorageError: In place of an error of the file system.
        TrainingError: In place of a lack of memory.
    """
    again = f"resume={folder}" if isinstance(config, TrainConfig) else f"evaluate again: run={folder}"
    try:
        yield
    except BreakHisError:
        raise
    except Exception as error:
        reason = explained(error, config)
        if reason is not None:
            clear_frames(error.__traceback__)  # they hold the tensors of the step
            raise reason from error
        if not isinstance(error, OSError):
            raise
        raise StorageError(
            f"{error.filename or folder}: {error.strerror or error}; what was finished before is kept: "
            f"mend that, then {again}"
        ) from error


def check_single_images(data: BreakHisDataModule, spec: NetworkSpec, *, limit: int | None) -> None:
    """Makes sure that no train batch is a single image, where the network cannot be trained on one.

    Args:
        data: After `index`.
        spec: The network.
        limit: Train batches per epoch; None takes all.

    Raises:
        ConfigurationError: If one is.
    """
    if spec.library == "report" or not data.has_single_images(limit=limit) or takes_single_images(spec):
        return
    raise ConfigurationError(
        f"{data.single_images}, which batch norm in {spec.backbone} cannot take at "
        f"data.image_size={spec.image_size}; change one of them"
    )


def check_same_split(data: BreakHisDataModule, run: Mapping[str, Any], folder: Path) -> None:
    """Makes sure that images and subsets are those of a run.

    Raises:
        RunFolderError: If they are not.
    """
    if data.split.checksum() != run["data"]["split_checksum"]:
        raise RunFolderError(
            f"the images are not those of run {folder}: there it was {run['data'].get('description')}, "
            f"here it is {data.description}; set data.root to the folder the run was trained on"
        )


def check_same_pixels(data: BreakHisDataModule, run: Mapping[str, Any], folder: Path) -> None:
    """Makes sure that what the images show is what they showed in a run.

    Raises:
        RunFolderError: If it is not.
    """
    if run["data"].get("pixels_checksum") not in (None, data.store.checksum()):
        raise RunFolderError(
            f"the images have the names of those of run {folder}, but other pixels; "
            "set data.root to the folder the run was trained on"
        )


def check_fits(network: TrainedNetwork, path: Path, run: Mapping[str, Any], trained: TrainConfig, folder: Path) -> None:
    """Makes sure that a checkpoint may be evaluated on the images of a run.

    Raises:
        CheckpointError: If it is of another network, image size or split.
    """
    if network.image_size != trained.data.image_size:
        raise CheckpointError(
            f"{path} was trained on images of {network.image_size} pixels, "
            f"the run {folder} on {trained.data.image_size}"
        )
    spec, model = network.classifier.spec, trained.model
    there = (spec.library, spec.backbone, dict(spec.arguments), spec.head, f"task={spec.task}")
    here = (model.library, model.backbone, model.arguments or {}, model.head, f"task={trained.task}")
    if there != here:
        differing = [pair for pair in zip(there, here, strict=True) if pair[0] != pair[1]]
        texts = [", ".join(str(pair[side]) for pair in differing) for side in (0, 1)]
        raise CheckpointError(f"{path} holds {texts[0]}, the run {folder} {texts[1]}")
    stain = "none" if network.stain is None else network.stain.method
    if stain != trained.data.stain:
        raise CheckpointError(f"{path} needs data.stain={stain}, the run {folder} has data.stain={trained.data.stain}")
    if network.split_checksum not in (None, run["data"]["split_checksum"]):
        raise CheckpointError(
            f"{path} was trained on another split than the run {folder}: it may have seen these test images"
        )
