"""Every key of the configuration, with its default, its meaning and its bounds.

The reference of all keys: one dataclass per group, or per option where the options of a group differ. Importing this
module imports neither Hydra nor torch. `faults` holds the rules; `breakhis_pl.composition` applies them to what Hydra
composed.
"""

import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from breakhis_pl.data.breakhis import FOLDS, MAGNIFICATIONS
from breakhis_pl.errors import listed
from breakhis_pl.network_names import HEADS, LIBRARIES, image_size_fault, network_faults

SPLITS = ("official", "ratio")
ACCELERATORS = ("auto", "cpu", "gpu", "mps")
PIXELS = ("auto", "device", "host")
MEMORY_FORMATS = ("auto", "channels_last", "contiguous")
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
SMALLEST_IMAGE = 32
"""The backbones halve an image five times: 32 pixels become one."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a value of the configuration may be."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple[object, ...] | None = None

    def expectation(self, value: object) -> str | None:
        """What was expected instead of `value`; None if it is possible."""
        if self.choices is not None:
            return None if value in self.choices else f"one of {listed(self.choices)}"
        if not isinstance(value, int | float) or isinstance(value, bool):
            return None
        limits = (
            (self.at_least, operator.ge, "at least"),
            (self.above, operator.gt, "above"),
            (self.at_most, operator.le, "at most"),
            (self.below, operator.lt, "below"),
        )
        if all(limit is None or holds(value, limit) for limit, holds, _ in limits) and math.isfinite(value):
            return None
        wanted = " and ".join(f"{word} {limit:g}" for limit, _, word in limits if limit is not None)
        return f"a number {wanted}" if wanted else "a finite number"


def key(default: Any, meaning: str, **bounds: Any) -> Any:
    """A field of a configuration dataclass: its default, what it means, and its `Bounds`."""
    metadata = {"meaning": meaning, "bounds": Bounds(**bounds)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class DataConfig:
    """Keys of `data` that all its options share."""

    source: str = key("???", "tells the options apart")
    cache_dir: str = key("outputs/cache", "folder of the stores of decoded images; may be deleted at any time")
    magnification: Any = key(200, "40, 100, 200 or 400, or a list of them", choices=MAGNIFICATIONS)
    image_size: int = key(
        224, "side in pixels that images are resized to, aspect not kept", at_least=SMALLEST_IMAGE, at_most=4096
    )
    batch_size: int = key(32, "images per training step", at_least=1)
    eval_batch_size: int | None = key(None, "images per evaluation step; null: batch_size, on a GPU 4 x", at_least=1)
    pixels: str = key("auto", "decoded images lie on the device, or on the host where they do not fit", choices=PIXELS)
    split: str = key("official", "official: the authors' folds; ratio: whole cases by chance", choices=SPLITS)
    fold: int = key(2, "the authors' fold, for split=official", choices=FOLDS)
    test_fraction: float = key(0.3, "share of test images, for split=ratio", above=0, below=1)
    val_fraction: float = key(0.0, "share of train images taken out for validation, whole cases", at_least=0, below=1)
    verify: bool = key(False, "decode all images again and compare them with the store")


@dataclass
class BreakHisDataConfig(DataConfig):
    """Keys of `data=breakhis`."""

    source: str = key("breakhis", "tells the options apart", choices=("breakhis",))
    root: str = key("data", "any folder that holds files with BreakHis names, at any depth")
    require_complete: bool = key(True, "refuse a folder that does not hold exactly the published images")


@dataclass
class SyntheticDataConfig(DataConfig):
    """Keys of `data=synthetic`."""

    source: str = key("synthetic", "tells the options apart", choices=("synthetic",))
    images_per_patient: int = key(8, "images drawn per patient and magnification", at_least=1)
    width: int = key(175, "width in pixels of the drawn images; 700 is that of the originals", at_least=32)
    draw_seed: int = key(0, "seed of the drawing, apart from the seed of the run", at_least=0)


@dataclass
class AugmentationConfig:
    """Keys of `augmentation`."""

    horizontal_flip: float = key(0.5, "probability of a left-right flip", at_least=0, at_most=1)
    vertical_flip: float = key(0.5, "probability of an up-down flip", at_least=0, at_most=1)
    rotation: float = key(20.0, "largest rotation to either side in degrees", at_least=0, at_most=180)


@dataclass
class ModelConfig:
    """Keys of `model`."""

    library: str = key("report", "where the network comes from; report: the three of the report", choices=LIBRARIES)
    backbone: str = key("???", "name of the network in its library")
    arguments: Any = key(None, "what timm's network is built with, as in {init_values: 1e-5}")
    weights: str = key("imagenet", "imagenet (those its library has for the name), none, or the path of a state dict")
    head: str = key("report", "report: 256-100-2; linear: one layer; svm: one layer and hinge loss", choices=HEADS)
    freeze: bool = key(False, "train the head alone, on what the pretrained network below it gives")
    l2: float = key(0.03, "penalty on the weights of a head that is solved for at once", above=0)
    dropout: float = key(0.4, "probability of dropout in the report's head", at_least=0, below=1)
    epochs: int = key("???", "epochs that this network is trained for; of the report's three as there", at_least=1)


@dataclass
class AdamaxConfig:
    """Keys of `optimizer=adamax`."""

    _target_: str = "torch.optim.Adamax"
    lr: float = key(5e-4, "learning rate", above=0)
    weight_decay: float = key(0.0, "L2 penalty", at_least=0)


@dataclass
class AdamWConfig:
    """Keys of `optimizer=adamw`."""

    _target_: str = "torch.optim.AdamW"
    lr: float = key(5e-4, "learning rate", above=0)
    weight_decay: float = key(0.01, "decoupled weight decay", at_least=0)


@dataclass
class SGDConfig:
    """Keys of `optimizer=sgd`."""

    _target_: str = "torch.optim.SGD"
    lr: float = key(5e-4, "learning rate", above=0)
    momentum: float = key(0.9, "momentum", at_least=0, below=1)
    nesterov: bool = key(False, "Nesterov's momentum")
    weight_decay: float = key(0.0, "L2 penalty", at_least=0)


@dataclass
class ExponentialConfig:
    """Keys of `scheduler=exponential`."""

    _target_: str = "torch.optim.lr_scheduler.ExponentialLR"
    gamma: float = key(0.9, "factor on the learning rate after each epoch", above=0, at_most=1)


@dataclass
class CosineConfig:
    """Keys of `scheduler=cosine`."""

    _target_: str = "torch.optim.lr_scheduler.CosineAnnealingLR"
    T_max: int = key("${trainer.max_epochs}", "epochs until the learning rate is at its lowest", at_least=1)
    eta_min: float = key(0.0, "lowest learning rate", at_least=0)


@dataclass
class ConstantConfig:
    """Keys of `scheduler=constant`."""

    _target_: str = "torch.optim.lr_scheduler.ConstantLR"
    factor: float = key(1.0, "torch's own default is another one; 1 keeps the learning rate", choices=(1.0,))


@dataclass
class TrainerConfig:
    """Keys of `trainer`."""

    accelerator: str = key("auto", "auto takes the GPU where there is one", choices=ACCELERATORS)
    precision: str = key("auto", "auto: bf16 or fp16 mixed on a GPU, float32 elsewhere", choices=PRECISIONS)
    max_epochs: int = key("${model.epochs}", "epochs to train for", at_least=1)
    deterministic: bool = key(False, "only deterministic algorithms, at the cost of speed")
    memory_format: str = key("auto", "auto: channels_last, on a CPU from 96 pixels on", choices=MEMORY_FORMATS)
    keep_memory: bool = key(True, "on a CPU, freed memory stays with the process for the next step")
    cuda_graphs: bool = key(False, "replay train steps as a CUDA graph; for small batches on a large GPU")
    compile: bool = key(False, "torch.compile the network; takes half a minute or more before the first step")
    checkpoint_share: float = key(
        0.01, "of the time that writing checkpoints may take; 1 writes after every epoch", above=0, at_most=1
    )
    limit_train_batches: int | None = key(None, "train batches per epoch; null takes all", at_least=1)
    progress_bar: bool = key(True, "a bar on a terminal; a line per epoch is always printed")


@dataclass
class TrainConfig:
    """All keys of train.py."""

    data: Any = key(None, "where images come from and how they are split")
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: Any = key(None, "the optimizer and its numbers")
    scheduler: Any = key(None, "the learning rate over the epochs")
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    seed: int = key(0, "seed of everything that is drawn during the run", at_least=0)
    gallery: int = key(8, "pictures of each kind that Grad-CAM explains; 0 for none", at_least=0)


@dataclass
class EvaluateDataConfig:
    """Keys of `data` in evaluate.py; null takes what the run was trained with."""

    root: str | None = key(None, "folder of the images, where they have moved")
    cache_dir: str | None = key(None, "folder of the stores of decoded images")
    batch_size: int | None = key(None, "images per step", at_least=1)


@dataclass
class EvaluateTrainerConfig:
    """Keys of `trainer` in evaluate.py."""

    accelerator: str = key("auto", "auto takes the GPU where there is one", choices=ACCELERATORS)
    precision: str = key("auto", "auto: bf16 or fp16 mixed on a GPU, float32 elsewhere", choices=PRECISIONS)


@dataclass
class EvaluateConfig:
    """All keys of evaluate.py."""

    run: str | None = key(None, "run folder to evaluate")
    runs: Any = key(None, "folder of a sweep, or a list of run folders, to compare")
    out: str | None = key(None, "folder of the comparison; null: the sweep's own, or outputs/comparisons/<date>/<time>")
    checkpoint: str = key("last", "last, or the path of a checkpoint")
    subset: str = key("test", "images to evaluate on", choices=("test", "val", "train"))
    calibrate: bool = key(False, "fit temperature and threshold on the validation images again")
    sensitivity: float | None = key(None, "wanted of the fitted threshold; null: 0.95", above=0, below=1)
    gallery: int = key(8, "pictures of each kind that Grad-CAM explains; 0 for none", at_least=0)
    data: EvaluateDataConfig = field(default_factory=EvaluateDataConfig)
    trainer: EvaluateTrainerConfig = field(default_factory=EvaluateTrainerConfig)


OptimizerConfig: TypeAlias = AdamaxConfig | AdamWConfig | SGDConfig
SchedulerConfig: TypeAlias = ExponentialConfig | CosineConfig | ConstantConfig

VARIANTS: Mapping[str, tuple[str, Mapping[str, type]]] = MappingProxyType(
    {
        "data": ("source", {"breakhis": BreakHisDataConfig, "synthetic": SyntheticDataConfig}),
        "optimizer": ("_target_", {v._target_: v for v in (AdamaxConfig, AdamWConfig, SGDConfig)}),
        "scheduler": ("_target_", {v._target_: v for v in (ExponentialConfig, CosineConfig, ConstantConfig)}),
    }
)
"""Groups whose options have keys of their own: the key that tells them apart, and the dataclass by its value."""

ProgramName: TypeAlias = Literal["train", "evaluate"]
PROGRAMS: Mapping[str, type] = MappingProxyType({"train": TrainConfig, "evaluate": EvaluateConfig})


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
        bounds: Bounds = entry.metadata.get("bounds", Bounds())
        for part in value if isinstance(value, tuple) else (value,):
            expectation = bounds.expectation(part)
            if expectation is not None:
                yield f"{name}={part} is not possible; expected {expectation}"
    yield from _faults_across(config, prefix)


def _faults_across(config: object, prefix: str) -> Iterator[str]:
    """Faults that only several keys together show."""
    match config:
        case ModelConfig(library=library, backbone=backbone, arguments=arguments) if library in LIBRARIES:
            yield from network_faults(library, backbone, {} if arguments is None else arguments)
        case TrainConfig(model=ModelConfig(), data=DataConfig()):
            yield from _faults_of_training(config)
        case DataConfig(magnification=()):
            yield f"{prefix}magnification=[] is not possible; expected at least one of {listed(MAGNIFICATIONS)}"
        case DataConfig(magnification=tuple() as asked) if len(set(asked)) < len(asked):
            yield f"{prefix}magnification={list(asked)} names one of them twice"
        case EvaluateConfig(calibrate=True, checkpoint=checkpoint) if checkpoint != "last":
            yield f"calibrate=true checkpoint={checkpoint}: what is kept with a run is fitted for its last checkpoint"
        case EvaluateConfig(calibrate=False, sensitivity=sensitivity) if sensitivity is not None:
            yield f"sensitivity={sensitivity} is for calibrate=true, which fits the threshold; add that"
        case EvaluateConfig(run=None, runs=None):
            yield "nothing to evaluate: set run=<run folder>, or runs=<folder of a sweep> to compare runs"
        case EvaluateConfig(run=str(), runs=runs) if runs is not None:
            yield "run and runs are both set; run evaluates one run, runs compares several"
        case EvaluateConfig(run=None, runs=runs) if not _is_text_or_texts(runs):
            yield f"runs={runs} is not possible; expected the folder of a sweep, or a list of run folders"
        case SGDConfig(nesterov=True, momentum=momentum) if momentum == 0:
            yield f"{prefix}nesterov=true needs {prefix}momentum above 0"
        case _:
            pass


def _faults_of_training(config: TrainConfig) -> Iterator[str]:
    """Faults of a network with the images and the training it is to have."""
    model = config.model
    fault = image_size_fault(model.library, model.backbone, config.data.image_size)
    if fault is not None:
        yield fault
    if model.freeze and model.weights == "none":
        yield "model.freeze=true keeps the network as it is, and model.weights=none is random numbers; set a file"
    for name in ("cuda_graphs", "compile"):
        if model.freeze and getattr(config.trainer, name):
            yield f"trainer.{name}=true is for networks that are trained; model.freeze=true trains the head alone"
    if not is_solved(config):
        return
    once = f"model.freeze=true model.head={model.head} without augmentation solves for the head at once"
    if config.trainer.max_epochs != 1:
        yield (
            f"trainer.max_epochs={config.trainer.max_epochs}: {once}, in one pass over the images; "
            "add trainer.max_epochs=1, or use experiment=frozen"
        )
    if config.trainer.limit_train_batches is not None:
        yield f"trainer.limit_train_batches={config.trainer.limit_train_batches}: {once}, from all train images"


def has_fixed_features(config: TrainConfig) -> bool:
    """Whether what the head is given for an image is the same in every epoch: nothing below it learns or is drawn."""
    drawn = (config.augmentation.horizontal_flip, config.augmentation.vertical_flip, config.augmentation.rotation)
    return config.model.freeze and not any(drawn)


def is_solved(config: TrainConfig) -> bool:
    """Whether the head is solved for instead of trained by steps: a convex problem on fixed features."""
    return has_fixed_features(config) and config.model.head != "report"


def _is_text_or_texts(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and len(value) > 0 and all(isinstance(part, str) for part in value)
    )


def magnifications(value: object) -> tuple[object, ...]:
    """The value of `data.magnification` as a tuple: it may be one number or a list of them."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    by_text = {text: number for number in MAGNIFICATIONS for text in (str(number), str(float(number)))}
    return tuple(by_text.get(str(part), part) for part in values)
