"""The steps of a run: data, network, trainer, fit, evaluation, page."""

import gc
import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from breakhis_pl.config import TrainConfig, flatten, make_title, plain, validate
from breakhis_pl.data.datamodule import BreakHisDataModule
from breakhis_pl.data.dataset import Subset
from breakhis_pl.data.splits import write_split_csv
from breakhis_pl.errors import CheckpointError, ConfigurationError
from breakhis_pl.models.classifier import Classifier
from breakhis_pl.run_folder import RunFolder, RunRecord, check_same_images, check_same_run, lock_run
from breakhis_pl.training.callbacks import History, duration
from breakhis_pl.training.loggers import SubsetTensorBoardLogger, log_results
from breakhis_pl.training.performance import (
    choose_memory_format,
    device_name,
    keep_freed_memory,
    reason_against_cuda_graph,
    resolve_device,
)
from breakhis_pl.training.provenance import command_line, now, source_state, versions
from breakhis_pl.training.trainer import make_loggers, make_optimizers, make_trainer

log = logging.getLogger(__name__)


def train(
    config: TrainConfig,
    folder: Path,
    *,
    callbacks: Sequence[Callback] = (),
    evaluate_on: Sequence[Subset] = (Subset.VAL, Subset.TEST),
) -> bool:
    """Train a network and evaluate it; resume the run that the folder holds, if there is one.

    Args:
        config: The configuration.
        folder: The run folder.
        callbacks: Called before the run's own.
        evaluate_on: Subsets that are evaluated after every epoch and at the end, if the split has them.

    Returns:
        Whether there are new results on test images, for a page; False in further processes of a distributed run.

    Raises:
        BreakHisError: If images, weights or device cannot be used, or the folder holds another run.
    """
    run, start = RunFolder(folder), time.perf_counter()
    is_first = rank_zero_only.rank == 0  # type: ignore[attr-defined]  # of the processes of a distributed run
    with lock_run(folder) if is_first and not config.trainer.fast_dev_run else nullcontext():
        before = run.read() if run.run_json.exists() else None
        if before is not None and is_finished(before, config, run):
            return False
        device, precision = resolve_device(config.trainer)
        data = make_data(config, device=device, evaluate_on=evaluate_on)
        if before is not None:
            check_same_images(before, folder, **data.identity())
        checkpoint = run.last_checkpoint if before is not None and run.last_checkpoint.exists() else None
        if checkpoint is not None:
            try:
                torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
            except Exception as error:  # torch raises many kinds for damaged files
                raise CheckpointError(f"{checkpoint}: is damaged; delete it to train from the first epoch") from error
        classifier = make_classifier(config, data, pretrained=checkpoint is None)
        record = make_record(config, data, classifier, before, device=device, precision=precision)
        loggers = make_loggers(config, folder, run_ids=record.run_ids)
        trainer = make_trainer(
            config,
            run,
            device=device,
            precision=precision,
            captures=record.no_cuda_graph is None,
            callbacks=callbacks,
            loggers=list(loggers.values()),
        )
        make_optimizers(config, classifier.network)  # raises if a class cannot be used, before anything is written
        data.trainer = trainer  # knows how many processes share an epoch
        data.train_dataloader()  # raises if batch norm cannot use the last batch
        writes = is_first and not config.trainer.fast_dev_run
        if writes:
            for logger in loggers.values():
                getattr(logger, "experiment", None)  # W&B names a run when it starts
            record.run_ids = {name: str(logger.version) for name, logger in loggers.items()}
            run.write(record)
            write_split_csv(run.split_csv, data.split)
            describe(record, config, data)
        try:
            trainer.fit(classifier, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            if writes:
                evaluate_run(config, run, trainer, classifier, data, device=device, precision=precision)
                finish(record, run, trainer, seconds=time.perf_counter() - start)
        except BaseException as error:
            if writes:
                fail(record, run, error)
            raise
        finally:
            if writes:
                draw_curves(config, run, trainer, data)
            close(loggers.values(), data)
    return writes and Subset.TEST in data.evaluated_subsets


def is_finished(record: RunRecord, config: TrainConfig, run: RunFolder) -> bool:
    """Whether the run in a folder has all configured epochs, its results and its page.

    Raises:
        RunFolderError: If it is another run.
    """
    stored = validate(TrainConfig, record.config)
    check_same_run(run.path, stored, config)
    has_page = run.report_page.exists() or not run.checkpoints.exists()
    if record.status != "finished" or not has_page or stored.trainer.max_epochs < config.trainer.max_epochs:
        return False
    log.info("%s: is finished; its results are in test/, its page is %s", run.path, run.report_page.name)
    return True


def make_data(config: TrainConfig, *, device: str, evaluate_on: Sequence[Subset]) -> BreakHisDataModule:
    """Build the datamodule of a run, with images decoded and split."""
    if config.trainer.keep_memory and device == "cpu":
        keep_freed_memory()
    data = BreakHisDataModule(
        config.data,
        config.augmentation,
        seed=config.seed,
        task=config.task,
        evaluate_on=evaluate_on,
        memory_format=choose_memory_format(
            config.trainer.memory_format, device=device, image_size=config.data.image_size
        ),
        overfit_batches=config.trainer.overfit_batches,
        progress_bar=config.trainer.progress_bar,
    )
    data.setup()
    if config.trainer.monitor is not None and Subset.VAL not in data.split.subsets:
        raise ConfigurationError(
            f"trainer.monitor={config.trainer.monitor}: needs validation images; set data.val_fraction=0.2"
        )
    return data


def show_batch(config: TrainConfig, folder: Path) -> None:
    """Write batch.png: the first train batch as the network receives it, augmented, in rows of eight, in 0 to 255."""
    from torchvision.utils import make_grid, save_image  # noqa: PLC0415 - for this alone

    data = make_data(config, device="cpu", evaluate_on=())
    images = data.batch(next(iter(data.train_dataloader())), epoch=0).images
    scale = [torch.tensor(values).view(3, 1, 1) for values in (data.std, data.mean)]
    save_image(make_grid(images * scale[0] + scale[1], nrow=8, pad_value=1.0).clamp(0, 1), folder / "batch.png")
    log.info("%s: %d train images", folder / "batch.png", len(images))


def make_classifier(config: TrainConfig, data: BreakHisDataModule, *, pretrained: bool) -> Classifier:
    """Build the classifier of a run."""
    classifier = Classifier(
        config.model.model_dump(),
        classes=data.dataset.classes,
        parents=data.dataset.parents,
        parent_classes=data.dataset.parent_classes,
        image_size=config.data.image_size,
        pretrained=pretrained,
        seed=config.seed,
        memory_format=data.memory_format,
        subsets=data.evaluated_subsets,
        configure=lambda network: make_optimizers(config, network),
        class_weights=data.class_weights,
        label_smoothing=config.training.label_smoothing,
        mixup=config.training.mixup,
    )
    if config.trainer.compile:
        classifier.network.compile()
    return classifier


def make_record(
    config: TrainConfig,
    data: BreakHisDataModule,
    classifier: Classifier,
    before: RunRecord | None,
    *,
    device: str,
    precision: str,
) -> RunRecord:
    """Build the content of run.json at the start of a run."""
    parameters = list(classifier.parameters())
    return RunRecord(
        status="running",
        command=command_line() if before is None else before.command,
        started=now() if before is None else before.started,
        resumed=[] if before is None else [*before.resumed, now()],
        **source_state(),
        versions=versions(),
        config=plain(config),
        data={
            "name": data.dataset.name,
            "split": config.data.split or ("ratio" if data.dataset.records[0].subset is None else "official"),
            "synthetic": data.dataset.is_synthetic,
            "complete": data.dataset.is_complete,
            "n_images": data.split.counts(),
            **data.identity(),
            "mean": list(data.mean),
            "std": list(data.std),
        },
        model={
            "backbone": config.model.backbone,
            "n_parameters": sum(parameter.numel() for parameter in parameters),
            "n_trained": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        },
        device=device_name(device),
        precision=precision,
        no_cuda_graph=reason_against_cuda_graph(config, device=device, precision=precision),
        torch_threads=torch.get_num_threads(),
        run_ids={} if before is None else before.run_ids,
    )


def describe(record: RunRecord, config: TrainConfig, data: BreakHisDataModule) -> None:
    """Log a summary before training, in two or three lines."""
    if data.dataset.note is not None:
        log.warning("%s", data.dataset.note)
    counts = "; ".join(
        f"{subset} {sum(by_class.values()):,} ({', '.join(f'{n:,} {name}' for name, n in by_class.items())})"
        for subset, by_class in data.split.counts().items()
    )
    log.info("%s: %s", make_title(config.model.backbone, config.data), counts)
    log.info(
        "%s parameters, weights %s, max_epochs=%d; %s on %s",
        f"{record.model['n_parameters']:,}",
        config.model.weights,
        config.trainer.max_epochs,
        record.precision,
        record.device,
    )


def evaluate_run(
    config: TrainConfig,
    run: RunFolder,
    trainer: L.Trainer,
    classifier: Classifier,
    data: BreakHisDataModule,
    *,
    device: str,
    precision: str,
) -> None:
    """Evaluate the selected checkpoint on every subset; write the results and log them."""
    from breakhis_pl.evaluate import (  # noqa: PLC0415 - imports matplotlib, which the training does not need
        DEFAULT_SENSITIVITY,
        calibrate,
        evaluate_subset,
    )
    from breakhis_pl.inference.ood import fit_ood  # noqa: PLC0415
    from breakhis_pl.metrics.evaluation import classification_report  # noqa: PLC0415

    content = torch.load(run.selected_checkpoint(), map_location="cpu", weights_only=True, mmap=True)
    classifier.load_state_dict(content["state_dict"])
    selection = _selection(trainer)
    epoch = len(_history(trainer).rows) if selection is None else selection["best_epoch"]
    if Subset.TEST in data.evaluated_subsets:
        detector = fit_ood(classifier, data, device=device, precision=precision)
        if detector is not None:
            detector.save(run.ood_npz)
    final: dict[str, float] = {}
    for subset in data.evaluated_subsets:
        metrics = evaluate_subset(
            run.path / subset,
            classifier,
            data,
            subset,
            device=device,
            precision=precision,
            n_explained=config.gallery if Subset.TEST in data.evaluated_subsets else 0,
        )
        if (
            subset is Subset.VAL and len(data.dataset.parent_classes) == 2
        ):  # comes before test, whose metrics use what is fitted here
            calibrate(run, sensitivity=DEFAULT_SENSITIVITY)
        report = classification_report(metrics)
        for logger in trainer.loggers:
            if isinstance(logger, SubsetTensorBoardLogger):
                logger.log_image(subset, run.path / subset / "confusion_matrix.png", step=epoch)
                logger.log_text(subset, "classification_report", report)
        for name in ("accuracy", "weighted_f1", "auroc"):
            value = metrics[name]["value"]
            final |= {} if value is None else {f"{subset}_{name}": float(value)}
        log.info("%s images\n\n%s", subset, report)
    log_results(trainer.loggers, flatten(plain(config)), final)


def finish(record: RunRecord, run: RunFolder, trainer: L.Trainer, *, seconds: float) -> None:
    """Write run.json at the end of a run."""
    train_seconds = _history(trainer).train_seconds
    record.status, record.finished = "finished", now()
    record.seconds = {"total": None if record.resumed else round(seconds, 3), "training": round(train_seconds, 3)}
    record.selection = _selection(trainer)
    from breakhis_pl.training.cuda_graph_callback import CudaGraphs  # noqa: PLC0415 - not needed before

    failed = (each.reason for each in trainer.callbacks if isinstance(each, CudaGraphs))  # type: ignore[attr-defined]
    record.no_cuda_graph = next(failed, record.no_cuda_graph)
    run.write(record)
    log.info("%s after %s", run.path, duration(seconds))


def _selection(trainer: L.Trainer) -> dict[str, Any] | None:
    """Return which epoch a validation metric selected; None if the last one counts."""
    checkpoints = [each for each in trainer.callbacks if isinstance(each, ModelCheckpoint)]  # type: ignore[attr-defined]
    checkpoint = next((each for each in checkpoints if each.monitor is not None), None)
    if checkpoint is None or checkpoint.monitor is None or checkpoint.best_model_score is None:
        return None
    stopping = next((each for each in trainer.callbacks if isinstance(each, EarlyStopping)), None)  # type: ignore[attr-defined]
    values = [row[checkpoint.monitor] for row in _history(trainer).rows]
    best = min(values) if checkpoint.mode == "min" else max(values)
    return {
        "monitor": checkpoint.monitor,
        "best_epoch": values.index(best) + 1,
        "best_value": best,
        "stopped_after": stopping.stopped_epoch + 1 if stopping is not None and stopping.stopped_epoch else None,
    }


def _history(trainer: L.Trainer) -> History:
    return next(each for each in trainer.callbacks if isinstance(each, History))  # type: ignore[attr-defined]


def fail(record: RunRecord, run: RunFolder, error: BaseException) -> None:
    """Write run.json of a run that ended early."""
    is_interrupted = isinstance(error, SystemExit | KeyboardInterrupt)
    record.status = "pruned" if type(error).__name__ == "TrialPruned" else "failed"
    record.error = "interrupted" if is_interrupted else str(error) or type(error).__name__
    record.finished = now()
    run.write(record)


def draw_curves(config: TrainConfig, run: RunFolder, trainer: L.Trainer, data: BreakHisDataModule) -> None:
    """Draw curves.png from the finished epochs."""
    import pandas as pd  # noqa: PLC0415 - takes a second

    from breakhis_pl.reporting.figures import curves_figure, save_figure  # noqa: PLC0415 - imports matplotlib

    rows = _history(trainer).rows
    if rows:
        selection = _selection(trainer)
        figure = curves_figure(
            pd.DataFrame(rows),
            title=make_title(config.model.backbone, config.data),
            note=data.dataset.note,
            selected_epoch=None if selection is None else selection["best_epoch"],
        )
        save_figure(figure, run.curves_png)


def close(loggers: Iterable[Logger], data: BreakHisDataModule) -> None:
    """Close the loggers and free the memory of the device for the next run of a sweep."""
    for logger in loggers:
        if isinstance(logger, SubsetTensorBoardLogger):
            logger.close()
        elif type(logger).__name__ == "WandbLogger":
            # the next run of a sweep would be logged to this one
            logger.experiment.finish()  # type: ignore[attr-defined]
    data.release()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
