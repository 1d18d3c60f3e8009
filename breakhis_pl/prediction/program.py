"""predict.py: pictures in, a row for each out (torch is imported for run folders only)."""

import logging
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from breakhis_pl.config import PredictConfig, is_exported
from breakhis_pl.cores import n_cores
from breakhis_pl.data.breakhis import CLASS_NAMES
from breakhis_pl.errors import (
    BreakHisError,
    CheckpointError,
    ConfigurationError,
    ImageError,
    RunFolderError,
    StorageError,
)
from breakhis_pl.evaluation.texts import visible
from breakhis_pl.locks import locked
from breakhis_pl.prediction.facts import NOTICE, Network
from breakhis_pl.prediction.inputs import Inputs, find_inputs
from breakhis_pl.prediction.overlays import write_overlays
from breakhis_pl.prediction.rows import COLUMNS, UNREADABLE_COLUMNS, GrowingTable, rows_of, softmax
from breakhis_pl.prediction.stream import Decoded, Unreadable, decoded

log = logging.getLogger(__name__)

PREDICTIONS_CSV = "predictions.csv"
UNREADABLE_CSV = "unreadable.csv"


def predict(config: PredictConfig, folder: Path) -> None:
    """Predicts pictures and writes predictions.csv into a folder.

    Args:
        config: The typed configuration.
        folder: Where to; made if need be.

    Raises:
        BreakHisError: If pictures, network or folder are not usable.
        ImageError: After everything was written, if some pictures could not be read; the text names all of them.
        KeyboardInterrupt: If it was interrupted; the rows so far are in predictions.partial.csv.
    """
    if config.run is None or config.images is None:
        raise ConfigurationError("predict.py needs run=<run folder> and images=<file, folder or pattern>")
    started = time.perf_counter()
    inputs = find_inputs(config.images)
    network = open_network(config)
    _announce(network, inputs)
    with _own_folder(folder):
        counts = _Counts()
        try:
            _predict(config, folder, network, inputs, counts)
        except BaseException:
            if counts.n_images:
                log.info("%s holds the rows of %s", folder / "predictions.partial.csv", _images(counts.n_images))
            raise
    _report(counts, folder, network, time.perf_counter() - started)
    if counts.unreadable:
        lines = "".join(f"\n  {visible(each.path)}: {each.reason}" for each in counts.unreadable)
        raise ImageError(
            f"{len(counts.unreadable):,} could not be read, all others were predicted; they are listed in "
            f"{folder / UNREADABLE_CSV}:{lines}"
        )


def open_network(config: PredictConfig) -> Network:
    """The network that the configuration names.

    Raises:
        BreakHisError: If it is not usable.
    """
    run = str(config.run)
    if is_exported(run):
        from breakhis_pl.prediction.onnx_network import open_exported  # noqa: PLC0415 - an optional package

        return open_exported(Path(run))
    from breakhis_pl.prediction.run_network import open_run  # noqa: PLC0415 - imports torch

    trainer = config.trainer
    return open_run(
        Path(run), checkpoint=config.checkpoint, accelerator=trainer.accelerator, precision=trainer.precision
    )


@dataclass
class _Counts:
    """What became of the pictures so far."""

    by_class: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CLASS_NAMES, 0))
    by_decision: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CLASS_NAMES, 0))
    n_out_of_domain: int = 0
    n_pictures: int = 0
    unreadable: list[Unreadable] = field(default_factory=list)

    @property
    def n_images(self) -> int:
        """Images that were predicted."""
        return sum(self.by_class.values())

    def add(self, row: Sequence[str]) -> None:
        """Counts a row of predictions.csv."""
        cell = dict(zip(COLUMNS, row, strict=True))
        self.by_class[cell["predicted"]] += 1
        if cell["decision"]:
            self.by_decision[cell["decision"]] += 1
        self.n_out_of_domain += cell["out_of_domain"] == "true"
        self.n_pictures += cell["gradcam"] != ""


def _predict(config: PredictConfig, folder: Path, network: Network, inputs: Inputs, counts: _Counts) -> None:
    """Writes rows as they come, and gives the tables their names at the end."""
    n_wanted = len(inputs.paths) if config.gradcam is True else int(config.gradcam)
    n_threads = config.threads or n_cores()
    images = decoded(
        inputs.paths,
        image_size=network.facts.image_size,
        stain=network.facts.stain,
        n_threads=n_threads,
        n_ahead=config.batch_size + 2 * n_threads,
    )
    bar = tqdm(images, total=len(inputs.paths), desc="predicting", unit=" images", disable=None)
    counts.unreadable += [Unreadable(path, reason) for path, reason in inputs.unreadable]
    with ExitStack() as stack:
        stack.callback(images.close)  # type: ignore[attr-defined]  # a generator: its threads end with it
        stack.callback(bar.close)
        table = stack.enter_context(GrowingTable(folder / PREDICTIONS_CSV, COLUMNS))
        for batch in _batches(bar, config.batch_size, counts.unreadable):
            pixels = np.stack([image.pixels for image in batch])
            probabilities = softmax(network.logits(pixels))
            if not np.isfinite(probabilities).all():
                raise CheckpointError(
                    f"{network.title} answers with values that are not finite; use another checkpoint"
                )
            pictures = [""] * len(batch)
            n_more = min(n_wanted - counts.n_pictures, len(batch))
            if n_more > 0:
                heat = network.heat(pixels[:n_more], probabilities[:n_more].argmax(axis=1))
                pictures[:n_more] = write_overlays(folder, batch[:n_more], heat, first=counts.n_images + 1)
            rows = list(rows_of(batch, probabilities, network.facts, pictures))
            table.add(rows)
            for row in rows:
                counts.add(row)
        if counts.unreadable:
            with GrowingTable(folder / UNREADABLE_CSV, UNREADABLE_COLUMNS) as others:
                others.add((each.path, each.reason) for each in counts.unreadable)
                others.finish()
        table.finish()


def _batches(
    images: Iterable[Decoded | Unreadable], size: int, unreadable: list[Unreadable]
) -> Iterator[list[Decoded]]:
    """Readable images in batches; the others are added to `unreadable`."""
    batch: list[Decoded] = []
    for image in images:
        if isinstance(image, Unreadable):
            unreadable.append(image)
            continue
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@contextmanager
def _own_folder(folder: Path) -> Iterator[None]:
    """The folder as this process's own, and warnings of Pillow as this program wants them.

    Raises:
        RunFolderError: If it holds predictions already, or another process writes there.
        StorageError: If it cannot be written.
    """
    if (folder / PREDICTIONS_CSV).exists():
        raise RunFolderError(f"{folder} holds {PREDICTIONS_CSV} already; set hydra.run.dir to another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock", say=log.warning), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, which is not looked at
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except BlockingIOError:
        raise RunFolderError(f"another process writes {folder} at this moment; set another hydra.run.dir") from None
    except BreakHisError:
        raise
    except OSError as error:
        raise StorageError(
            f"cannot write in {folder} ({error.strerror or error}); make room or give access, or set hydra.run.dir to "
            "a folder elsewhere"
        ) from error


def _announce(network: Network, inputs: Inputs) -> None:
    """Says what is about to happen."""
    log.info("%s: %s", network.title, _images(len(inputs.paths)))
    if inputs.n_others:
        kinds = ", ".join(f"{visible(suffix)} {n:,}" for suffix, n in inputs.n_others.most_common(5))
        log.info("left out, for they are no pictures by their suffix: %s files (%s)", inputs.n_others.total(), kinds)
    if network.facts.domain is None:
        log.info("out_of_domain stays empty: the network does not say what its train images looked like")
    if network.facts.calibration is None:
        log.info("decision stays empty: no temperature and threshold were fitted (data.val_fraction)")


def _report(counts: _Counts, folder: Path, network: Network, seconds: float) -> None:
    """Says what came out, where it lies, and what it is not."""
    parts = [f"{name} {n:,}" for name, n in counts.by_class.items()]
    log.info("%s predicted: %s", _images(counts.n_images), ", ".join(parts))
    calibration = network.facts.calibration
    if calibration is not None:
        decisions = ", ".join(f"{name} {n:,}" for name, n in counts.by_decision.items())
        log.info(
            "decided at a calibrated probability of %.3g (fitted to find %.3g of the malignant): %s",
            calibration.threshold,
            calibration.sensitivity,
            decisions,
        )
    if network.facts.domain is not None:
        log.info("%s unlike the train images (out_of_domain)", _images(counts.n_out_of_domain))
    log.info("%s after %.1f s", folder / PREDICTIONS_CSV, seconds)
    if counts.n_pictures:
        log.info("Grad-CAM of %s: %s", _images(counts.n_pictures), folder / "gradcam")
    log.info(NOTICE)


def _images(n: int) -> str:
    return "1 image" if n == 1 else f"{n:,} images"
