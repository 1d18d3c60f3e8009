"""Training of one run, from its configuration to its last file."""

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from omegaconf import OmegaConf

from breakhis_pl import composition
from breakhis_pl.config import TrainConfig, has_fixed_features, is_solved
from breakhis_pl.data.breakhis import Subset
from breakhis_pl.data.splits import write_split_csv
from breakhis_pl.engine import (
    averaged_weights,
    evaluate_subsets,
    fit,
    free_device,
    frozen_start,
    graphs,
    make_trainer,
)
from breakhis_pl.errors import Pruned, RunFolderError, Stopped
from breakhis_pl.evaluation.metrics import classification_report
from breakhis_pl.evaluation.report import write_report
from breakhis_pl.evaluation.results import Result
from breakhis_pl.frozen import know_features, solve
from breakhis_pl.guards import errors_explained, only_writer
from breakhis_pl.models.tensor_files import read_tensor_file
from breakhis_pl.outcome import DEFAULT_SENSITIVITY, calibrate, figure_note, run_title, say_result, write_outcome
from breakhis_pl.preparation import Ready, prepare, run_facts
from breakhis_pl.run_json import RUN_JSON, read_run
from breakhis_pl.training import distributed
from breakhis_pl.training.background import BackgroundCheckpointIO
from breakhis_pl.training.checkpoints import LastCheckpoint, best_content, mend_best
from breakhis_pl.training.finite import FiniteTraining
from breakhis_pl.training.history import History
from breakhis_pl.training.logger_choice import make_logger
from breakhis_pl.training.loggers import RunLogger
from breakhis_pl.training.progress import RunProgressBar
from breakhis_pl.training.provenance import RunRecord
from breakhis_pl.training.selection import Selection
from breakhis_pl.training.speed import has_fast_bf16
from breakhis_pl.training.training_state import check_training_state

log = logging.getLogger(__name__)


def train(
    config: TrainConfig,
    folder: Path,
    *,
    callbacks: Sequence[L.Callback] = (),
    evaluated: Sequence[Subset] = (Subset.VAL, Subset.TEST),
) -> None:
    """Trains a network and evaluates it on the test images.

    Args:
        config: The typed configuration.
        folder: The run folder.
        callbacks: Called before the run's own.
        evaluated: Subsets that are looked at, where there are such; of others nothing is computed, shown or kept.

    Raises:
        BreakHisError: Before anything is written, if data, weights or device are not usable.
        KeyboardInterrupt: If the training was interrupted.
    """
    if distributed.is_first() and (folder / RUN_JSON).exists():
        raise RunFolderError(
            f"{folder} holds a run already; resume={folder} goes on with it, another hydra.run.dir starts anew"
        )
    with only_writer(folder), errors_explained(config, folder):
        _train(config, folder, callbacks, evaluated)


def resume(config: TrainConfig, folder: Path, *, callbacks: Sequence[L.Callback] = ()) -> None:
    """Goes on with a run after its last checkpoint, or from its start where there is none.

    Args:
        config: The run's own, from `resuming.resumed_config`.
        folder: The run folder.
        callbacks: Called before the run's own.

    Raises:
        BreakHisError: As `train`, and if the images are not those of the run.
        KeyboardInterrupt: If the training was interrupted.
    """
    with only_writer(folder), errors_explained(config, folder):
        before = distributed.told(read_run(folder))
        _train(config, folder, callbacks, [Subset(name) for name in before.get("evaluated", Subset)], before=before)


def _train(
    config: TrainConfig,
    folder: Path,
    callbacks: Sequence[L.Callback],
    evaluated: Sequence[Subset],
    *,
    before: Mapping[str, Any] | None = None,
) -> None:
    """Trains a network from the start, or (`before` is what run.json held) from its last checkpoint."""
    started = time.perf_counter()
    with distributed.first_of_machine_first():
        ready = prepare(config, folder, evaluated, before)
    if not distributed.is_first():
        with contextlib.ExitStack() as stack:
            stack.callback(free_device, ready.data)
            _fit_or_take(config, folder, ready, _history(config, folder, ready), callbacks)
        return
    writers = make_logger(config.logger, folder, configuration=composition.plain(config), first_epoch=ready.n_done + 1)
    record = RunRecord(folder, run_facts(config, ready), before=before)
    history = _history(config, folder, ready, writers)
    try:
        with errors_explained(config, folder):
            write_split_csv(folder / "split.csv", ready.data.split)
            _announce(config, ready, record.content, folder)
            if ready.n_done == 0:
                writers.add_text("train", "configuration", _code(OmegaConf.to_yaml(composition.plain(config))))
            _fit_or_take(config, folder, ready, history, callbacks)
            result = _conclude(config, folder, ready, writers, epoch=history.counted_epoch)
    except BaseException as error:
        was_stopped = isinstance(error, KeyboardInterrupt | Stopped)
        reason = "interrupted" if was_stopped else str(error) or type(error).__name__
        record.fail(reason, status="pruned" if isinstance(error, Pruned) else "failed")
        raise
    finally:
        with contextlib.suppress(OSError):  # of a full disk, said already
            writers.close()
        free_device(ready.data)
    seconds = time.perf_counter() - started
    chosen = {} if history.selection is None else {"selection": history.selection.state_dict()}
    record.finish(seconds_total=seconds, seconds_training=history.train_seconds, **chosen)
    last = ready.data.evaluated[-1]
    if last is Subset.TEST:
        log.info("page: %s", write_report(folder))
    say_result(result, folder / last, last, seconds)


def _fit_or_take(
    config: TrainConfig, folder: Path, ready: Ready, history: History, callbacks: Sequence[L.Callback]
) -> None:
    """Trains; where all epochs are done, or patience has run out, evaluates the epoch that counts."""
    writer = BackgroundCheckpointIO(share=config.trainer.checkpoint_share)
    bars = [RunProgressBar()] if config.trainer.progress_bar and distributed.is_first() else []
    steps = [*frozen_start(config), *graphs(config, ready.speed), FiniteTraining(), *averaged_weights(config)]
    own = [*bars, *steps, history, LastCheckpoint(folder, writer, selection=history.selection)]
    trainer = make_trainer(
        config,
        accelerator=ready.accelerator,
        precision=ready.precision,
        callbacks=[*callbacks, *own],
        plugins=[writer],
    )
    if ready.speed.compile:
        ready.classifier.network.compile()
    selection = history.selection
    content: Mapping[str, Any] | None = None if ready.checkpoint is None else read_tensor_file(ready.checkpoint)
    if content is not None and ready.checkpoint is not None:
        if not is_solved(config):  # which has no steps to go on with
            check_training_state(
                content, ready.checkpoint, trainer=trainer, classifier=ready.classifier, history=history.state_key
            )
        history.load_state_dict(content["callbacks"][history.state_key])
        if selection is not None and distributed.is_first():
            mend_best(folder, selection, last_epoch=ready.n_done)
    has_stopped = selection is not None and selection.stopped_after is not None
    if content is not None and (ready.n_done >= config.trainer.max_epochs or has_stopped):
        history.write_table()
    else:
        if content is not None and has_fixed_features(config):
            ready.classifier.load_state_dict(content["state_dict"])  # the features are those of these weights
        content = None  # as large as all weights three times
        _fit_or_solve(config, folder, ready, history, trainer, writer)
    if selection is not None:
        log.info("epoch %d of %d counts, the best by %s", history.counted_epoch, len(history.rows), selection.monitor)
        distributed.meet()  # the first process has written its files
        content = best_content(folder, selection)
    if content is not None:
        ready.classifier.load_state_dict(content["state_dict"])
        evaluate_subsets(trainer, ready.classifier, ready.data)


def _fit_or_solve(
    config: TrainConfig,
    folder: Path,
    ready: Ready,
    history: History,
    trainer: L.Trainer,
    writer: BackgroundCheckpointIO,
) -> None:
    """Trains by steps, or solves for a head on features that never change."""
    seconds = 0.0
    if has_fixed_features(config):
        seconds = know_features(
            config, ready.classifier, ready.data, accelerator=ready.accelerator, precision=ready.precision
        )
    if is_solved(config):
        solve(config, folder, ready.classifier, ready.data, history, trainer, writer, seconds=seconds)
    else:
        fit(trainer, ready.classifier, ready.data, checkpoint=ready.checkpoint)


def _history(config: TrainConfig, folder: Path, ready: Ready, writers: RunLogger | None = None) -> History:
    """The history of a run; without writers that of a process that writes nothing."""
    monitor, patience, n_frozen = config.trainer.monitor, config.trainer.patience, config.training.frozen_epochs
    return History(
        folder,
        writers,
        title=run_title(ready.classifier.spec.title, config.data),
        note=figure_note(ready.data),
        selection=None if monitor is None else Selection(monitor, patience=patience, n_frozen=n_frozen),
    )


def _conclude(config: TrainConfig, folder: Path, ready: Ready, writers: RunLogger, *, epoch: int) -> Result:
    """Writes the results of every evaluated subset; gives those of the last one, test as a rule.

    Args:
        config: The typed configuration.
        folder: The run folder.
        ready: After the evaluation of the epoch that counts.
        writers: Where curves are kept.
        epoch: The epoch that counts.
    """
    data, classifier = ready.data, ready.classifier
    results = {}
    for subset in data.evaluated:
        results[subset] = write_outcome(
            folder / subset,
            data,
            classifier,
            subset,
            n_explained=config.gallery if Subset.TEST in data.evaluated else 0,
            device=torch.device(ready.accelerator),
        )
        if subset is Subset.VAL:  # comes before test, whose metrics then use it
            calibrate(folder, sensitivity=DEFAULT_SENSITIVITY)
        writers.add_image(subset, "confusion_matrix", results[subset].confusion_matrix, epoch=epoch)
        writers.add_text(subset, "classification_report", _code(classification_report(results[subset].metrics)))
        writers.add_results(subset, results[subset].metrics, epoch=epoch)
    return results[data.evaluated[-1]]


def _code(text: str) -> str:
    """A text as a block of TensorBoard's Markdown."""
    return f"```\n{text}\n```"


def _announce(config: TrainConfig, ready: Ready, facts: Mapping[str, Any], folder: Path) -> None:
    """Says what is about to happen, in three or four lines."""
    data = ready.data
    if not data.is_complete:
        what = "drawn images, no tissue" if facts["data"]["synthetic"] else "incomplete archive"
        log.warning("%s: %s", what, data.description)
    counts = ", ".join(
        f"{subset} {sum(by_class.values()):,} ({by_class['benign']:,} benign, {by_class['malignant']:,} malignant)"
        for subset, by_class in data.split.counts().items()
    )
    log.info("%s: %s", run_title(ready.classifier.spec.title, config.data), counts)
    log.info(
        "%.1f million parameters, weights %s; %s in %s on %s",
        facts["model"]["n_parameters"] / 1e6,
        config.model.weights,
        "1 epoch" if config.trainer.max_epochs == 1 else f"{config.trainer.max_epochs} epochs",
        facts["precision"],
        facts["device"],
    )
    if config.trainer.is_distributed:
        log.info(
            "each step's %d images shared by %d processes, %d on each machine",
            config.data.batch_size,
            facts["processes"]["all"],
            config.trainer.devices,
        )
    if facts["precision"] == "32-true" and facts["device"].startswith("cpu") and has_fast_bf16():
        log.info("this CPU multiplies bf16 in hardware: trainer.precision=bf16-mixed trains faster, in other bits")
    if ready.n_done > 0:
        log.info("goes on after epoch %d", ready.n_done)
    log.info("run folder: %s", folder)
