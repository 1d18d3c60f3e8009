"""What is not possible in a configuration: values outside their bounds, and keys that do not go together.

Importing this module imports neither Hydra nor torch.
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from breakhis_pl.config import (
    MONITORS,
    NAMED_CHECKPOINTS,
    TTA,
    Bounds,
    DataConfig,
    EvaluateConfig,
    MlflowLoggerConfig,
    ModelConfig,
    PredictConfig,
    ProcessesConfig,
    SGDConfig,
    TrainConfig,
    WandbLoggerConfig,
    WarmupCosineConfig,
    has_fixed_features,
    is_exported,
    is_solved,
)
from breakhis_pl.data.breakhis import MAGNIFICATIONS
from breakhis_pl.errors import listed
from breakhis_pl.network_names import LIBRARIES, image_size_fault, network_faults


def faults(config: object, prefix: str = "") -> Iterator[str]:
    """A sentence for every value of a configuration dataclass that is not possible, in the order of the keys."""
    for entry in fields(config):  # type: ignore[arg-type]
        name, value = f"{prefix}{entry.name}", getattr(config, entry.name)
        if is_dataclass(value):
            yield from faults(value, f"{name}.")
            continue
        if value == "":
            yield f"{name} is empty; expected {entry.metadata.get('meaning', 'a text')}"
            continue
        if value is None and entry.default is None:
            continue
        if isinstance(value, str) and "\0" in value:
            yield f"{name}={value!r} holds a zero byte; expected {entry.metadata.get('meaning', 'a text')}"
            continue
        bounds: Bounds = entry.metadata.get("bounds", Bounds())
        for part in value if isinstance(value, tuple) else (value,):
            expectation = bounds.expectation(part)
            if expectation is not None:
                yield f"{name}={part} is not possible; expected {expectation}"
    yield from _faults_of_processes(config, prefix)
    yield from _faults_across(config, prefix)
    if isinstance(config, EvaluateConfig):
        yield from _faults_of_averages(config)


def _faults_of_processes(config: object, prefix: str) -> Iterator[str]:
    """Faults of a run in several processes."""
    match config:
        case TrainConfig(data=DataConfig() as data, trainer=trainer) if data.batch_size < trainer.n_processes:
            yield (
                f"data.batch_size={data.batch_size} is too small for {trainer.n_processes} processes "
                "(trainer.devices x trainer.num_nodes): it counts the images of a step over all of them"
            )
        case ProcessesConfig(is_distributed=True):
            accelerator = getattr(config, "accelerator", "auto")
            if accelerator == "mps":
                yield f"{prefix}accelerator=mps is a single device; set {prefix}devices=1 {prefix}strategy=auto"
            elif accelerator == "cpu" and config.strategy != "ddp":
                yield (
                    f"{prefix}devices={config.devices} {prefix}num_nodes={config.num_nodes} on a CPU: one process uses "
                    f"all its cores already; {prefix}strategy=ddp starts several all the same"
                )
            if getattr(config, "cuda_graphs", None):
                yield f"{prefix}cuda_graphs=true is for one process; drop it, or train on one device"
        case _:
            pass


def _faults_across(config: object, prefix: str) -> Iterator[str]:
    """Faults that only several keys together show."""
    match config:
        case DataConfig():
            yield from _faults_of_data(config, prefix)
        case ModelConfig(library=library, backbone=backbone, arguments=arguments) if library in LIBRARIES:
            yield from network_faults(library, backbone, {} if arguments is None else arguments)
        case TrainConfig():
            yield from _faults_of_selection(config)
            yield from _faults_of_training(config)
            if isinstance(config.model, ModelConfig) and isinstance(config.data, DataConfig):
                yield from _faults_of_network(config)
        case EvaluateConfig():
            yield from _faults_of_evaluation(config)
        case PredictConfig():
            yield from _predict_faults(config)
        case MlflowLoggerConfig() | WandbLoggerConfig() if importlib.util.find_spec(config.kind) is None:
            yield (
                f"logger={config.kind} needs a package that is not installed: uv sync --extra {config.kind}; "
                "or take logger=tensorboard"
            )
        case SGDConfig(nesterov=True, momentum=momentum) if momentum == 0:
            yield f"{prefix}nesterov=true needs {prefix}momentum above 0"
        case WarmupCosineConfig(T_max=n_epochs, warmup_epochs=n_warmup) if n_warmup >= n_epochs:
            yield f"{prefix}warmup_epochs={n_warmup} is not possible; expected fewer than {prefix}T_max={n_epochs}"
        case _:
            pass


def _faults_of_evaluation(config: EvaluateConfig) -> Iterator[str]:
    """Faults of what evaluate.py was asked for."""
    match config:
        case EvaluateConfig(calibrate=True, checkpoint=checkpoint) if checkpoint not in NAMED_CHECKPOINTS:
            yield (
                f"calibrate=true checkpoint={checkpoint}: what is kept with a run is fitted for the checkpoint that "
                "counts; drop one of them"
            )
        case EvaluateConfig(calibrate=False, sensitivity=sensitivity) if sensitivity is not None:
            yield f"sensitivity={sensitivity} is for calibrate=true, which fits the threshold; add that"
        case EvaluateConfig(run=None, runs=None):
            yield "nothing to evaluate: set run=<run folder>, or runs=<folder of a sweep> to compare runs"
        case EvaluateConfig(run=str(), runs=runs) if runs is not None:
            yield "run and runs are both set; run evaluates one run, runs compares several"
        case EvaluateConfig(run=None, runs=runs) if not _is_text_or_texts(runs):
            yield f"runs={runs} is not possible; expected the folder of a sweep, or a list of run folders"
        case _:
            pass


def _faults_of_averages(config: EvaluateConfig) -> Iterator[str]:
    """Faults of averages over views of an image or over runs."""
    if config.tta != "none" and config.calibrate:
        yield f"calibrate=true tta={config.tta}: calibration.json is for single views; leave one of them out"
    if config.tta != "none" and config.runs is not None and not config.ensemble:
        yield (
            f"runs and tta={config.tta}: a comparison takes the tables in test/; evaluate each run with "
            f"run=<run folder> tta={config.tta}, then average these tables with ensemble=true"
        )
    if config.checkpoint.removesuffix(".ckpt").endswith(TTA[1:]):
        yield f"checkpoint={config.checkpoint}: its results would lie where those of tta do; give the file another name"
    if not config.ensemble:
        return
    if config.runs is None:
        yield "ensemble=true averages several runs; set runs=<folder of a sweep>, or 'runs=[<run folder>,<run folder>]'"
    for key_name, value, only in (
        ("checkpoint", config.checkpoint, "auto"),
        ("subset", config.subset, "test"),
        ("calibrate", config.calibrate, False),
    ):
        if value != only:
            shown = str(value).lower() if isinstance(value, bool) else value
            yield f"ensemble=true {key_name}={shown}: the test tables that runs hold are averaged as they are"


def _predict_faults(config: PredictConfig) -> Iterator[str]:
    """Faults of what predict.py was asked for."""
    if config.run is None:
        yield "nothing to predict with: set run=<run folder>, or run=<exported network>.onnx"
    if config.images is None:
        yield "nothing to predict: set images=<file, folder or pattern>"
    elif not _is_text_or_texts(config.images) or (isinstance(config.images, list) and "" in config.images):
        yield (
            f"images={config.images} is not possible; expected a file, a folder, a pattern, or a list of these "
            "(a name that is a number is written ./2024)"
        )
    is_count = isinstance(config.gradcam, int) and config.gradcam >= 0  # true and false are whole numbers too
    if not is_count:
        yield f"gradcam={config.gradcam} is not possible; expected true, false or a number of images, at least 0"
    if not is_exported(config.run):
        return
    if is_count and config.gradcam:
        yield f"gradcam={config.gradcam} needs gradients, which an exported network has not; set run=<run folder>"
    if config.checkpoint != "auto":
        yield f"checkpoint={config.checkpoint} is for a run folder; {config.run} holds one network"
    if config.trainer.accelerator not in {"auto", "cpu"} or config.trainer.precision not in {"auto", "32-true"}:
        yield (
            f"trainer.accelerator={config.trainer.accelerator} trainer.precision={config.trainer.precision}: an "
            "exported network runs on the CPU in 32-true; set run=<run folder>"
        )


def _faults_of_data(config: DataConfig, prefix: str) -> Iterator[str]:
    """Lists that hold nothing or something twice, and a key without effect."""
    for name in ("magnification", "test_magnification"):
        asked = getattr(config, name)
        if asked == ():
            yield f"{prefix}{name}=[] is not possible; expected at least one of {listed(MAGNIFICATIONS)}"
        if isinstance(asked, tuple) and len(set(asked)) < len(asked):
            yield f"{prefix}{name}={list(asked)} names one of them twice"
    if config.split == "official" and config.group == "patient":
        yield (
            f"{prefix}group=patient has no effect on {prefix}split=official, whose folds are by patient; "
            f"drop it, or set {prefix}split=ratio"
        )
    if config.split == "official" and config.test_fraction != DataConfig.test_fraction:
        yield (
            f"{prefix}test_fraction={config.test_fraction:g} has no effect on {prefix}split=official, whose test "
            f"images are the authors'; drop it, or set {prefix}split=ratio"
        )
    if config.split == "ratio" and config.fold != DataConfig.fold:
        yield (
            f"{prefix}fold={config.fold} has no effect on {prefix}split=ratio, which draws cases by seed; "
            f"drop it, or set {prefix}split=official"
        )


def _faults_of_selection(config: TrainConfig) -> Iterator[str]:
    """Choosing an epoch without images to choose on, and waiting for nothing."""
    monitor, patience = config.trainer.monitor, config.trainer.patience
    if patience is not None and monitor is None:
        yield (
            f"trainer.patience={patience} needs a value to watch; expected trainer.monitor, one of {listed(MONITORS)}"
        )
    if monitor is not None and isinstance(config.data, DataConfig) and config.data.val_fraction == 0:
        yield (
            f"trainer.monitor={monitor} needs validation images, and nothing is chosen on test images; "
            "set data.val_fraction above 0, as in data.val_fraction=0.2"
        )


def _faults_of_training(config: TrainConfig) -> Iterator[str]:
    """Faults of `training` together with other groups."""
    n_frozen, n_epochs = config.training.frozen_epochs, config.trainer.max_epochs
    if n_frozen > 0 and n_frozen >= n_epochs:
        yield f"training.frozen_epochs={n_frozen} is not possible; expected fewer than trainer.max_epochs={n_epochs}"
    if config.training.mixup > 0 and getattr(config.data, "batch_size", None) == 1:
        yield f"training.mixup={config.training.mixup:g} mixes the images of a batch; expected data.batch_size above 1"


def _faults_of_network(config: TrainConfig) -> Iterator[str]:
    """Faults of a network with the images and the training it is to have."""
    model = config.model
    fault = image_size_fault(model.library, model.backbone, config.data.image_size)
    if fault is not None:
        yield fault
    if model.freeze and model.weights == "none":
        yield "model.freeze=true keeps the network as it is, and model.weights=none is random numbers; set a file"
    yield from _faults_of_frozen(config)
    for name in ("cuda_graphs", "compile"):
        if model.freeze and getattr(config.trainer, name):
            yield f"trainer.{name}=true is for networks that are trained; model.freeze=true trains the head alone"
    if not is_solved(config):
        if model.l2 != ModelConfig.l2:
            yield f"model.l2={model.l2:g} is for heads that are solved for at once, as by experiment=frozen; drop it"
        return
    once = f"model.freeze=true model.head={model.head} without augmentation solves for the head at once"
    if config.trainer.max_epochs != 1:
        yield (
            f"trainer.max_epochs={config.trainer.max_epochs}: {once}, in one pass over the images; "
            "add trainer.max_epochs=1, or use experiment=frozen"
        )
    if config.trainer.limit_train_batches is not None:
        yield f"trainer.limit_train_batches={config.trainer.limit_train_batches}: {once}, from all train images"


def _faults_of_frozen(config: TrainConfig) -> Iterator[str]:
    """Options of training that a frozen network, or a head of one layer, leaves nothing to do for."""
    model, training = config.model, config.training
    asked = {
        "training.mixup": (training.mixup, 0, model.freeze, "mixes images, whose features are not those of a mixture"),
        "training.frozen_epochs": (training.frozen_epochs, 0, model.freeze, "is for networks that are trained later"),
        "training.layer_decay": (training.layer_decay, 1, model.freeze, "is for networks whose layers are trained"),
        "training.label_smoothing": (training.label_smoothing, 0, model.head == "svm", "is for cross-entropy"),
        "data.balance": (config.data.balance, "none", is_solved(config), "is for heads that are trained by steps"),
        "training.ema_decay": (training.ema_decay, None, is_solved(config), "is for heads that are trained by steps"),
        "trainer.monitor": (config.trainer.monitor, None, is_solved(config), "chooses an epoch; here is but one"),
    }
    if has_fixed_features(config) and config.trainer.n_processes > 1:
        yield (
            f"trainer.devices={config.trainer.devices} trainer.num_nodes={config.trainer.num_nodes}: model.freeze=true "
            "without augmentation computes what the head sees once for all images, in one process; drop them"
        )
    if model.head == "svm" and config.data.balance == "loss":
        yield "data.balance=loss weighs cross-entropy; model.head=svm has another loss: take balance=sampler"
    for name, (value, usual, matters, why) in asked.items():
        if matters and value != usual:
            yield f"{name}={value} {why}; drop it, or model.freeze, or take another model.head"
    if is_solved(config) and training.label_smoothing > 0:
        yield f"training.label_smoothing={training.label_smoothing:g} is for heads that are trained by steps; drop it"


def _is_text_or_texts(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and len(value) > 0 and all(isinstance(part, str) for part in value)
    )
