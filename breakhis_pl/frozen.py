"""A network whose lower part is frozen: its features computed once for all images, and a linear head solved for."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from tqdm import tqdm

from breakhis_pl.config import TrainConfig
from breakhis_pl.data.breakhis import Subset
from breakhis_pl.data.datamodule import BreakHisDataModule
from breakhis_pl.engine import evaluate_subsets, make_trainer
from breakhis_pl.models.classifier import Classifier
from breakhis_pl.models.networks import head_of, watch_features
from breakhis_pl.training.background import BackgroundCheckpointIO
from breakhis_pl.training.checkpoints import LAST_CHECKPOINT
from breakhis_pl.training.history import History
from breakhis_pl.training.solver import solve_head

log = logging.getLogger(__name__)


def know_features(
    config: TrainConfig, classifier: Classifier, data: BreakHisDataModule, *, accelerator: str, precision: str
) -> float:
    """Computes what the head is given for every image, once, and leaves it with the classifier.

    The images come in the batches of an evaluation, so that an evaluation gives the same bits without what is known.

    Args:
        config: The typed configuration.
        classifier: Its frozen network has its final weights.
        data: The run's data.
        accelerator: "cpu", "cuda" or "mps".
        precision: As Lightning names it.

    Returns:
        Seconds that it took.
    """
    started = time.perf_counter()
    trainer = make_trainer(config, accelerator=accelerator, precision=precision, callbacks=[])
    kept: list[Tensor] = []
    bar = tqdm(
        total=len(data.records), desc="features", unit=" images", leave=False, disable=not config.trainer.progress_bar
    )

    def see(features: Tensor) -> None:
        kept.append(features)
        bar.update(len(features))

    watching = watch_features(classifier.network, see)
    try:
        with _all_subsets(classifier, data) as subsets:
            evaluate_subsets(trainer, classifier, data)
            rows = torch.cat([classifier.evaluated_logits(subset)[0] for subset in subsets])
    finally:
        watching.remove()
        bar.close()
    features = torch.cat(kept)
    known = torch.zeros((len(data.records), features.shape[1]), dtype=features.dtype, device=features.device)
    known[rows.to(features.device)] = features
    classifier.known_features = known
    seconds = time.perf_counter() - started
    log.info("%d features of %s images in %.0f s", known.shape[1], f"{len(rows):,}", seconds)
    return seconds


def solve(
    config: TrainConfig,
    folder: Path,
    classifier: Classifier,
    data: BreakHisDataModule,
    history: History,
    trainer: L.Trainer,
    writer: BackgroundCheckpointIO,
    *,
    seconds: float,
) -> None:
    """Solves for the head, evaluates it, and keeps both as an ordinary run of one epoch does.

    Args:
        config: The typed configuration.
        folder: The run folder.
        classifier: After `know_features`; its head is changed.
        data: The run's data.
        history: Gets one row.
        trainer: Evaluates, and makes the checkpoint.
        writer: The trainer's plugin that writes it.
        seconds: That the features took.

    Raises:
        TrainingError: If there is no solution.
        StorageError: If the checkpoint cannot be written.
    """
    started = time.perf_counter()
    head, known = head_of(classifier.network), classifier.known_features
    if not isinstance(head, nn.Linear) or known is None:
        raise TypeError(f"expected a linear head and its features, got a {type(head).__name__}")
    rows = torch.tensor(data.split.indices(Subset.TRAIN))
    targets = torch.tensor([data.records[row].name.target_of(data.task) for row in rows.tolist()])
    solution = solve_head(
        head, known[rows.to(known.device)], targets, loss=classifier.loss_function, l2=config.model.l2
    )
    seconds += time.perf_counter() - started
    log.info("head solved for in %d iterations, largest gradient %.1g", solution.n_iterations, solution.gradient)
    with _all_subsets(classifier, data):
        evaluate_subsets(trainer, classifier, data)
    history.add_solution(classifier, n_images=len(rows), seconds=seconds)
    path = folder / LAST_CHECKPOINT
    path.parent.mkdir(exist_ok=True)
    trainer.save_checkpoint(path)
    writer.teardown()


@contextmanager
def _all_subsets(classifier: Classifier, data: BreakHisDataModule) -> Iterator[tuple[Subset, ...]]:
    """Evaluations within it are of the train images too; each subset in batches of its own, as ever."""
    wanted, names = data.evaluated, classifier.evaluated
    data.evaluated = (Subset.TRAIN, *(subset for subset in wanted if subset is not Subset.TRAIN))
    classifier.evaluated = tuple(data.evaluated)
    try:
        yield data.evaluated
    finally:
        data.evaluated, classifier.evaluated = wanted, names
