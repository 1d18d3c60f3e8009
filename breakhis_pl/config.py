"""Every key of the configuration: type, bounds, meaning; and the rules across keys.

Hydra composes the files of conf/, which hold every value; `validate` turns the result into one of the models below.
Imports neither torch nor Hydra.
"""

import difflib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from breakhis_pl.errors import ConfigurationError, join_truncated

MIN_IMAGE_SIZE = 32
"""The networks halve an image five times: 32 pixels become one."""

UserPath: TypeAlias = Annotated[Path, AfterValidator(lambda path: path.expanduser())]
AS_TUPLE = BeforeValidator(lambda value: tuple(value) if isinstance(value, list | tuple) else (value,))
Magnification: TypeAlias = Literal[40, 100, 200, 400]
BreakHisMagnifications: TypeAlias = Annotated[tuple[Magnification, ...], AS_TUPLE, Field(min_length=1)]
Magnifications: TypeAlias = Annotated[tuple[Annotated[int, Field(gt=0)], ...], AS_TUPLE, Field(min_length=1)]
Monitor: TypeAlias = Literal["val_loss", "val_accuracy", "val_balanced_accuracy", "val_weighted_f1", "val_auroc"]
Accelerator: TypeAlias = Literal["auto", "cpu", "gpu", "mps"]
Precision: TypeAlias = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
Task: TypeAlias = Literal["binary", "subtype"]
TTA: TypeAlias = Literal["none", "flips", "dihedral"]
Fraction: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
Probability: TypeAlias = Annotated[float, Field(ge=0, le=1)]


class Group(BaseModel):
    """Base of all groups of keys: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class SharedDataConfig(Group):
    """Keys of `data` that all sources of images share."""

    source: str = Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")
    """Module of the data set: its name in breakhis_pl.data, or an import path."""
    cache_dir: UserPath
    """Folder of the caches of decoded images; it may be deleted at any time."""
    magnification: Magnifications | None
    """Of train images, or a list of several; null: all."""
    test_magnification: Magnifications | None
    """Of test and validation images; null: that of the train images."""
    image_size: int = Field(ge=MIN_IMAGE_SIZE, le=4096)
    """Side in pixels that images are resized to; the aspect ratio is not kept."""
    batch_size: int = Field(ge=1)
    """Train images per step and device."""
    eval_batch_size: int | None = Field(ge=1)
    """Images per evaluation step; null: batch_size on a CPU, four times as many on a GPU."""
    pixels: Literal["auto", "device", "host"]
    """Where decoded images are kept; auto: on the device if they fit."""
    split: Literal["official", "ratio"] | None
    """official: that of the data set; ratio: a random split by group; null: official if there is one, else ratio."""
    fold: int | str | None
    """Fold of the data set that is tested, for split=official."""
    group: Literal["case", "patient"]
    """Images that a ratio split keeps together."""
    test_fraction: float = Field(gt=0, lt=1)
    """Fraction of test images, for split=ratio."""
    val_fraction: Fraction
    """Fraction of train images that become validation images, whole cases at a time."""
    balance: Literal["none", "downsample", "sampler", "loss"]
    """Treatment of classes of unequal size in train."""
    stain: Literal["none", "macenko", "reinhard"]
    """Stain normalization, fitted on train images."""
    verify: bool
    """Decode all images again and compare them with the cache."""

    @property
    def all_magnifications(self) -> tuple[int, ...]:
        """Magnifications of train images, then those only evaluated images have; empty for all."""
        return tuple(dict.fromkeys((*(self.magnification or ()), *(self.test_magnification or ()))))


class BreakHisNamesConfig(SharedDataConfig):
    """Keys of data sets with BreakHis names."""

    magnification: BreakHisMagnifications
    """40, 100, 200 or 400, or a list of them."""
    test_magnification: BreakHisMagnifications | None
    """Of test and validation images; null: that of the train images."""
    split: Literal["official", "ratio"]
    """official: the authors' folds; ratio: a random split by group."""
    fold: Literal[1, 2, 3, 4, 5]
    """The authors' fold, for split=official."""


class BreakHisDataConfig(BreakHisNamesConfig):
    """Keys of `data=breakhis`."""

    source: Literal["breakhis"]
    """Selects this kind of data."""
    root: UserPath
    """Folder that holds files with BreakHis names, at any depth."""
    require_complete: bool
    """Refuse a folder that does not hold exactly the published images."""


class SyntheticDataConfig(BreakHisNamesConfig):
    """Keys of `data=synthetic`."""

    source: Literal["synthetic"]
    """Selects this kind of data."""
    images_per_patient: int = Field(ge=1, le=999)
    """Images generated per patient and magnification."""
    width: int = Field(ge=32, le=4096)
    """Width of the generated images in pixels; that of the originals is 700."""
    draw_seed: int = Field(ge=0)
    """Seed of the generated images, apart from the seed of the run."""


class TableDataConfig(SharedDataConfig):
    """Keys of `data=table`."""

    source: Literal["table"]
    """Selects this kind of data."""
    table: UserPath
    """CSV file with the columns image and label; docs/own_images.md has the others."""
    root: UserPath | None
    """Folder that the paths of the images are relative to; null: that of the table."""
    positive: str | None
    """Of two classes, the one whose recall is the sensitivity; null: malignant, or the last one by name."""


class OtherDataConfig(SharedDataConfig):
    """Keys of a data set of your own; its module checks those that are not shared."""

    model_config = ConfigDict(extra="allow")


def _by_key(key: str, known: Mapping[str, str]) -> Discriminator:
    """Select a model by the value of a key; "other" for import paths that have no model of their own."""
    attribute = key.strip("_")
    return Discriminator(
        lambda value: known.get(
            str(value.get(key) if isinstance(value, dict) else getattr(value, attribute, None)), "other"
        )
    )


DataConfig: TypeAlias = Annotated[
    Annotated[BreakHisDataConfig, Tag("breakhis")]
    | Annotated[SyntheticDataConfig, Tag("synthetic")]
    | Annotated[TableDataConfig, Tag("table")]
    | Annotated[OtherDataConfig, Tag("other")],
    _by_key("source", {name: name for name in ("breakhis", "synthetic", "table")}),
]


class Target(Group):
    """A class by its import path, with its keyword arguments."""

    model_config = ConfigDict(serialize_by_alias=True)
    target: str = Field(alias="_target_", pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")
    """Import path of the class."""


class AugmentationConfig(Group):
    """Keys of `augmentation`; 0 switches a transform off."""

    horizontal_flip: Probability
    """Probability of a left-right flip."""
    vertical_flip: Probability
    """Probability of an up-down flip."""
    rotation: float = Field(ge=0, le=180)
    """Largest rotation to either side, in degrees."""
    quarter_turn: Probability
    """Probability of a rotation by 90, 180 or 270 degrees."""
    zoom: float = Field(ge=0, le=1)
    """Largest zoom; 0.2 scales by 1/1.2 to 1.2."""
    shift: float = Field(ge=0, le=0.5)
    """Largest shift in each direction, as a fraction of the side."""
    border: Literal["black", "mirror"]
    """Fill beyond the edge of an image."""
    stain: Fraction
    """Largest relative change of the amount of each stain."""
    stain_shift: float = Field(ge=0, le=1)
    """Largest shift of each stain in optical density."""
    brightness: Fraction
    """Largest relative change of brightness."""
    contrast: Fraction
    """Largest relative change of contrast."""
    saturation: Fraction
    """Largest relative change of saturation."""
    hue: float = Field(ge=0, le=0.5)
    """Largest rotation of the hue, as a fraction of the color circle."""
    blur: float = Field(ge=0, le=5)
    """Largest standard deviation of a Gaussian blur in pixels."""
    own: Target | None
    """A transform of one's own by its import path; docs/yours.md shows one."""

    @property
    def is_identity(self) -> bool:
        """Whether no transform has a probability or strength above 0."""
        return not any(value for name, value in self if name != "border")


class ModelConfig(Group):
    """Keys of `model`."""

    library: Literal["torchvision", "timm", "python"]
    """Library that has the backbone; python: a class of one's own by its import path."""
    backbone: str = Field(min_length=1)
    """Name of the backbone in its library, or the import path of a torch.nn.Module that returns features."""
    arguments: dict[str, Any] | None
    """Keyword arguments of timm.create_model, or of the class."""
    weights: str = Field(min_length=1)
    """imagenet (those of the library), none, or the path of a file."""
    head: Literal["mlp", "linear"]
    """mlp: fully connected layers of 256, 100 and n_classes units; linear: one layer."""
    freeze: bool
    """Train the head alone."""
    l2: float = Field(gt=0)
    """L2 penalty of the logistic regression that freeze=true head=linear fits."""
    dropout: Fraction
    """Probability of dropout in head=mlp."""
    epochs: int = Field(ge=1)
    """Number of epochs this network is trained for."""

    @property
    def weights_file(self) -> Path | None:
        """Path of a file of weights; None for imagenet and none."""
        return None if self.weights in ("imagenet", "none") else Path(self.weights).expanduser()


class OptimizerBase(Target):
    """Keys that all optimizers share."""

    lr: float = Field(gt=0)
    """Learning rate."""


class AdamConfig(OptimizerBase):
    """Keys of `optimizer=adamax` and `optimizer=adamw`."""

    betas: tuple[Fraction, Fraction]
    """Decay of the moving averages of gradient and of its norm or square."""
    weight_decay: float = Field(ge=0)
    """L2 penalty; decoupled weight decay of AdamW."""


class SGDConfig(OptimizerBase):
    """Keys of `optimizer=sgd`."""

    momentum: Fraction
    """Momentum."""
    nesterov: bool
    """Use Nesterov's momentum."""
    weight_decay: float = Field(ge=0)
    """L2 penalty."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("optimizer.nesterov=true: needs optimizer.momentum above 0")
        return self


class OtherOptimizer(OptimizerBase):
    """Any other class of torch.optim, or one of your own; torch checks its arguments."""

    model_config = ConfigDict(extra="allow")


class ExponentialConfig(Target):
    """Keys of `scheduler=exponential`."""

    gamma: float = Field(gt=0, le=1)
    """Factor on the learning rate after each epoch."""


class CosineConfig(Target):
    """Keys of `scheduler=cosine`."""

    T_max: int = Field(ge=1)
    """Epochs until the learning rate reaches eta_min."""
    eta_min: float = Field(ge=0)
    """Lowest learning rate."""


class WarmupCosineConfig(CosineConfig):
    """Keys of `scheduler=warmup_cosine`."""

    warmup_epochs: int = Field(ge=0)
    """Epochs in which the learning rate rises."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup_epochs >= self.T_max:
            raise ValueError(f"scheduler.warmup_epochs={self.warmup_epochs}: must be below T_max={self.T_max}")
        return self


class ConstantConfig(Target):
    """Keys of `scheduler=constant`."""

    factor: float = Field(ge=1, le=1)
    """Torch's own default changes the learning rate; 1 keeps it."""


class OtherTarget(Target):
    """Any other scheduler or logger; its own library checks its arguments."""

    model_config = ConfigDict(extra="allow")


OptimizerConfig: TypeAlias = Annotated[
    Annotated[AdamConfig, Tag("adam")] | Annotated[SGDConfig, Tag("sgd")] | Annotated[OtherOptimizer, Tag("other")],
    _by_key("_target_", {"torch.optim.Adamax": "adam", "torch.optim.AdamW": "adam", "torch.optim.SGD": "sgd"}),
]
SchedulerConfig: TypeAlias = Annotated[
    Annotated[ExponentialConfig, Tag("exponential")]
    | Annotated[CosineConfig, Tag("cosine")]
    | Annotated[WarmupCosineConfig, Tag("warmup_cosine")]
    | Annotated[ConstantConfig, Tag("constant")]
    | Annotated[OtherTarget, Tag("other")],
    _by_key(
        "_target_",
        {
            "torch.optim.lr_scheduler.ExponentialLR": "exponential",
            "torch.optim.lr_scheduler.CosineAnnealingLR": "cosine",
            "breakhis_pl.training.trainer.warmup_cosine": "warmup_cosine",
            "torch.optim.lr_scheduler.ConstantLR": "constant",
        },
    ),
]


class TrainerConfig(Group):
    """Keys of `trainer`."""

    accelerator: Accelerator
    """auto: the GPU if there is one."""
    precision: Precision
    """auto: bf16-mixed or 16-mixed on a GPU, 32-true elsewhere."""
    strategy: Literal["auto", "ddp"]
    """ddp: distributed data parallel, one process per device."""
    devices: int = Field(ge=1, le=1024)
    """Devices per machine."""
    num_nodes: int = Field(ge=1, le=10_000)
    """Machines."""
    max_epochs: int = Field(ge=1)
    """Epochs to train for."""
    deterministic: bool
    """Use deterministic algorithms only; slower."""
    monitor: Monitor | None
    """Validation metric that selects the epoch; null: the last epoch is evaluated."""
    patience: int | None = Field(ge=1)
    """Epochs without improvement of the monitor after which training stops."""
    memory_format: Literal["auto", "channels_last", "contiguous"]
    """auto: channels_last, but contiguous on a CPU below 96 pixels."""
    keep_memory: bool
    """On a CPU, let the C library keep freed memory for the next step."""
    cuda_graphs: bool | None
    """Replay whole train steps as a CUDA graph; null: for ResNets in one process on a GPU."""
    compile: bool
    """Compile the network with torch.compile."""
    limit_train_batches: int | None = Field(ge=1)
    """Train batches per epoch; null: all."""
    overfit_batches: int = Field(ge=0)
    """Train on the same few batches in every epoch, to debug; 0: off."""
    show_batch: bool
    """Write a picture of a train batch as the network receives it, and stop."""
    fast_dev_run: bool
    """Run one train and one evaluation batch, write no checkpoint and no results, to debug."""
    progress_bar: bool
    """Show a progress bar on a terminal."""

    @property
    def is_distributed(self) -> bool:
        """Whether training runs in several processes."""
        return self.strategy == "ddp" or self.devices * self.num_nodes > 1


class TrainingConfig(Group):
    """Keys of `training`; the defaults are those of Otto et al. 2022."""

    label_smoothing: Fraction
    """Fraction of a target that is spread over all classes."""
    mixup: float = Field(ge=0, le=10)
    """Alpha of mixup's Beta distribution; 0: off."""
    ema_decay: float | None = Field(gt=0, lt=1)
    """Decay of an exponential moving average of the weights, which is evaluated; null: off."""
    layer_decay: float = Field(gt=0, le=1)
    """Factor on the learning rate per group of about twelve parameter tensors, from the head down; needs timm."""
    frozen_epochs: int = Field(ge=0)
    """First epochs, in which only the head is trained."""


class TrainConfig(Group):
    """All keys of train.py."""

    data: DataConfig
    augmentation: AugmentationConfig
    model: ModelConfig
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    trainer: TrainerConfig
    training: TrainingConfig
    logger: dict[str, OtherTarget]
    """Loggers by name."""
    task: Task
    """binary: the classes of the data set; subtype: the eight tumor types of BreakHis, summed to its two classes."""
    seed: int = Field(ge=0)
    """Seed of everything random in the run."""
    gallery: int = Field(ge=0)
    """Images of each kind that Grad-CAM explains; 0: none."""
    resume: UserPath | None = None
    """Run folder to resume."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse(_train_rules(self))
        return self

    @property
    def is_linear_probe(self) -> bool:
        """Whether the head is fitted as a logistic regression instead of trained by steps."""
        return self.model.freeze and self.model.head == "linear" and self.augmentation.is_identity


class MovedDataConfig(Group):
    """Keys of `data` in app.py; null: as in training."""

    root: UserPath | None
    """Folder of the images, if it has moved."""
    table: UserPath | None
    """Table of the images, if it has moved."""
    cache_dir: UserPath | None
    """Folder of the caches of decoded images."""


class EvaluateDataConfig(MovedDataConfig):
    """Keys of `data` in evaluate.py; null: as in training."""

    batch_size: int | None = Field(ge=1)
    """Images per step."""


class DeviceConfig(Group):
    """Keys of `trainer` in programs that train nothing."""

    accelerator: Accelerator
    """auto: the GPU if there is one."""
    precision: Precision
    """auto: that of the training on this type of device; else bf16-mixed or 16-mixed on a GPU, 32-true elsewhere."""


class EvaluateConfig(Group):
    """All keys of evaluate.py."""

    run: UserPath | None
    """Run folder to evaluate."""
    runs: UserPath | list[UserPath] | None
    """Sweep folder, or list of run folders, to compare."""
    predictions: UserPath | None
    """predictions.csv whose metrics.json is computed again."""
    ensemble: bool
    """Average the probabilities of the runs and compare the ensemble with them."""
    out: UserPath | None
    """Folder of the comparison or ensemble; null: the sweep folder, or one below outputs/."""
    checkpoint: str = Field(min_length=1)
    """auto: best if there is one, else last; best; last; or a path."""
    subset: Literal["test", "val", "train"]
    """Images to evaluate on."""
    tta: TTA
    """Test-time augmentation: average over 4 flips, or 8 flips and quarter turns."""
    calibrate: bool
    """Fit temperature and threshold on the validation images again."""
    sensitivity: float | None = Field(gt=0, lt=1)
    """Target of the threshold that calibrate=true fits; null: 0.95."""
    gallery: int = Field(ge=0)
    """Images of each kind that Grad-CAM explains; 0: none."""
    data: EvaluateDataConfig
    trainer: DeviceConfig

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse(_evaluate_rules(self))
        return self


class PredictConfig(Group):
    """All keys of predict.py."""

    run: UserPath
    """Run folder."""
    images: UserPath | list[UserPath]
    """File, folder, glob pattern, or a list of these."""
    checkpoint: str = Field(min_length=1)
    """auto: best if there is one, else last; best; last; or a path."""
    batch_size: int = Field(ge=1)
    """Images per step."""
    threads: int | None = Field(ge=1, le=256)
    """Threads that decode images; null: one per core."""
    gradcam: bool | Annotated[int, Field(ge=0)]
    """Write Grad-CAM overlays: true for all images, or a number of images."""
    trainer: DeviceConfig


class AppConfig(Group):
    """All keys of app.py."""

    run: UserPath
    """Run folder."""
    checkpoint: str = Field(min_length=1)
    """auto: best if there is one, else last; best; last; or a path."""
    host: str = Field(min_length=1)
    """Address that the page is served at; 127.0.0.1 is this machine only."""
    port: int = Field(ge=1, le=65535)
    """Port of the address."""
    data: MovedDataConfig
    trainer: DeviceConfig


def refuse(faults: Iterator[str]) -> None:
    """Raise one ValueError that holds all faults, if there are any."""
    found = list(faults)
    if found:
        raise ValueError("\n".join(found))


def _train_rules(config: TrainConfig) -> Iterator[str]:
    """Yield every combination of keys that is not possible."""
    data, model, trainer, training = config.data, config.model, config.trainer, config.training
    yield from _data_rules(data)
    if trainer.patience is not None and trainer.monitor is None:
        yield f"trainer.patience={trainer.patience}: needs trainer.monitor, for example trainer.monitor=val_loss"
    if config.task == "subtype" and not isinstance(data, BreakHisNamesConfig):
        yield f"task=subtype: needs the tumor types of BreakHis, which data.source={data.source} does not have; drop it"
    if trainer.monitor is not None and data.val_fraction == 0 and isinstance(data, BreakHisNamesConfig):
        yield (
            f"trainer.monitor={trainer.monitor}: needs validation images, because nothing is selected on test images; "
            "set data.val_fraction=0.2"
        )
    if training.frozen_epochs >= trainer.max_epochs and training.frozen_epochs > 0:
        yield f"training.frozen_epochs={training.frozen_epochs}: must be below trainer.max_epochs={trainer.max_epochs}"
    if training.mixup > 0 and data.batch_size == 1:
        yield f"training.mixup={training.mixup:g}: mixes the images of a batch; set data.batch_size above 1"
    if training.layer_decay < 1 and importlib.util.find_spec("timm") is None:
        yield f"training.layer_decay={training.layer_decay:g}: needs the package timm; run `uv sync --extra all`"
    yield from _device_rules(trainer)
    yield from _model_rules(config)
    for name, logger in config.logger.items():
        package = {"MLFlowLogger": "mlflow", "WandbLogger": "wandb"}.get(logger.target.rpartition(".")[2])
        if package is not None and importlib.util.find_spec(package) is None:
            yield f"logger={name}: needs the package {package}; run `uv sync --extra all`, or use logger=tensorboard"
        for key, value in (logger.model_extra or {}).items():
            if re.search(r"://[^/@\s]*:[^/@\s]+@", str(value)):
                yield (
                    f"logger.{name}.{key}: has a password, which run.json would hold; set it in the environment, for "
                    "MLflow MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
                )
    if model.freeze:
        no_effect = {
            "training.mixup": training.mixup > 0,
            "training.frozen_epochs": training.frozen_epochs > 0,
            "training.layer_decay": training.layer_decay < 1,
            "trainer.compile": trainer.compile,
        }
        yield from (
            f"{key}: has no effect with model.freeze=true; drop one of them" for key, on in no_effect.items() if on
        )
    if config.is_linear_probe:
        yield from _linear_probe_rules(config)


def _data_rules(data: SharedDataConfig) -> Iterator[str]:
    for name in ("magnification", "test_magnification"):
        values = getattr(data, name) or ()
        if len(set(values)) < len(values):
            yield f"data.{name}={list(values)}: has a value twice"
    if data.split == "official" and data.group == "patient":
        yield "data.group=patient: has no effect on data.split=official; set data.split=ratio"
    if data.split == "ratio" and data.fold is not None and not isinstance(data, BreakHisNamesConfig):
        yield f"data.fold={data.fold}: has no effect on data.split=ratio; drop one of them"
    if data.test_magnification is not None and data.magnification is None:
        yield "data.test_magnification: needs data.magnification; set both"


def _device_rules(trainer: TrainerConfig) -> Iterator[str]:
    if not trainer.is_distributed:
        return
    if trainer.accelerator == "mps":
        yield "trainer.accelerator=mps: is a single device; set trainer.devices=1 trainer.strategy=auto"
    if trainer.accelerator == "cpu" and trainer.strategy != "ddp":
        yield f"trainer.devices={trainer.devices}: one CPU process uses all cores; trainer.strategy=ddp starts several"


def _model_rules(config: TrainConfig) -> Iterator[str]:
    model = config.model
    if model.library == "timm" and importlib.util.find_spec("timm") is None:
        yield "model.library=timm: needs the package timm; run `uv sync --extra all`"
    if model.arguments and model.library == "torchvision":
        yield f"model.arguments={model.arguments}: only for model.library=timm or python"
    if model.library == "python" and model.weights == "imagenet":
        yield "model.weights=imagenet: model.library=python has none; set model.weights to none or a file"
    if model.freeze and model.weights == "none":
        yield "model.weights=none: model.freeze=true would keep random weights; set model.weights to imagenet or a file"


def _linear_probe_rules(config: TrainConfig) -> Iterator[str]:
    why = "with model.freeze=true model.head=linear and no augmentation, a logistic regression is fitted once"
    if config.trainer.max_epochs != 1:
        yield f"trainer.max_epochs={config.trainer.max_epochs}: {why}; set trainer.max_epochs=1"
    no_effect = {
        "trainer.limit_train_batches": config.trainer.limit_train_batches is not None,
        "trainer.monitor": config.trainer.monitor is not None,
        "training.label_smoothing": config.training.label_smoothing > 0,
        "training.ema_decay": config.training.ema_decay is not None,
        "data.balance": config.data.balance in ("sampler", "downsample"),
        "trainer.strategy": config.trainer.is_distributed,
    }
    yield from (f"{key}: has no effect, because {why}; drop it" for key, on in no_effect.items() if on)


def _evaluate_rules(config: EvaluateConfig) -> Iterator[str]:
    given = [name for name in ("run", "runs", "predictions") if getattr(config, name) is not None]
    if not given:
        yield "run: nothing to evaluate; set run=<run folder>, runs=<sweep folder> or predictions=<predictions.csv>"
    if len(given) > 1:
        yield f"{', '.join(given)}: set one of them"
    if config.ensemble and config.runs is None:
        yield "ensemble=true: averages several runs; set runs=<sweep folder> or runs=[<run folder>,<run folder>]"
    for_run = {
        "subset": config.subset != "test",
        "checkpoint": config.checkpoint != "auto",
        "calibrate": config.calibrate,
        "tta": config.tta != "none" and config.predictions is not None,
    }
    yield from (f"{key}: has no effect without run; drop it" for key, on in for_run.items() if on and not config.run)
    if config.out is not None and config.runs is None:
        yield f"out={config.out}: is for the comparison of runs; drop it"
    if config.tta != "none" and config.runs is not None and not config.ensemble:
        yield f"tta={config.tta}: a comparison reads the runs' test/ tables; add ensemble=true or drop it"
    if config.tta != "none" and config.calibrate:
        yield f"calibrate=true: is fitted without test-time augmentation; drop tta={config.tta}"
    if config.sensitivity is not None and not config.calibrate:
        yield f"sensitivity={config.sensitivity:g}: is for calibrate=true; add it"


ConfigT = TypeVar("ConfigT", bound=Group)
_TAGGED = (("data",), ("optimizer",), ("scheduler",))


def validate(model: type[ConfigT], composed: DictConfig | Mapping[str, Any]) -> ConfigT:
    """Turn a composed configuration into a typed one.

    Args:
        model: The program's model, such as `TrainConfig`.
        composed: What Hydra composed, or the plain values of a run.json.

    Raises:
        ConfigurationError: One line per fault.
    """
    if isinstance(composed, DictConfig) and "hydra" in composed:
        composed = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    missing = sorted(OmegaConf.missing_keys(composed)) if isinstance(composed, DictConfig) else []
    if missing:
        raise ConfigurationError("\n".join(f"{key}: has no value; set {key}=…" for key in missing))
    try:
        values = OmegaConf.to_container(composed, resolve=True) if isinstance(composed, DictConfig) else composed
    except OmegaConfBaseException as error:
        raise ConfigurationError(str(error).splitlines()[0]) from error
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = [_fault(details, values) for details in error.errors(include_url=False)]
        raise ConfigurationError("\n".join(dict.fromkeys(faults))) from error


def _fault(details: Any, values: Any) -> str:
    """Format one of pydantic's errors as `group.key=value: rule`."""
    place_of_tag = 2 if details["loc"][:1] == ("search_space",) else 1 if details["loc"][:1] in _TAGGED else None
    location = [part for place, part in enumerate(details["loc"]) if place != place_of_tag]
    location = [str(part) for part in location if not str(part).startswith(("function-", "list[", "tuple["))]
    key, value, kind = ".".join(location), details["input"], details["type"]
    if kind == "value_error":
        return f"{key}: {details['ctx']['error']}" if location[:1] == ["search_space"] else str(details["ctx"]["error"])
    if kind == "extra_forbidden":
        siblings = _at(values, location[:-1])
        known = [str(name) for name in siblings if name != location[-1]] if isinstance(siblings, Mapping) else []
        near = difflib.get_close_matches(location[-1], known, n=1)
        hint = (
            f"did you mean {'.'.join((*location[:-1], near[0]))}?" if near else f"keys are {join_truncated(known, 30)}"
        )
        return f"{key}={value}: unknown key; {hint}"
    if kind == "missing":
        return f"{key}: has no value; set {key}=…"
    rule = details["msg"].replace("Input should be", "must be").replace("String should", "must")
    rule = rule.replace("Value should", "must")
    return f"{key}={'null' if value is None else value}: {rule[0].lower()}{rule[1:]}"


def _at(values: Any, location: list[str]) -> Any:
    for part in location:
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def plain(config: Group) -> dict[str, Any]:
    """Return a configuration as JSON-compatible values, as run.json holds it."""
    return config.model_dump(mode="json", by_alias=True, exclude={"resume"})


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested values to dotted keys.

    Example:
        >>> flatten({"data": {"fold": 2}, "seed": 0})
        {'data.fold': 2, 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def make_title(network: str, data: SharedDataConfig) -> str:
    """Return the title of a run's figures: network, table, magnification, split, stain normalization."""
    parts = [network, *([data.table.name] if isinstance(data, TableDataConfig) else [])]
    parts += ["+".join(f"{each}X" for each in data.magnification)] if data.magnification is not None else []
    if data.test_magnification is not None:
        parts.append(f"tested at {'+'.join(f'{each}X' for each in data.test_magnification)}")
    by = "" if data.group == "case" else f" by {data.group}"
    if data.split == "ratio":
        parts.append(f"ratio split{by}, {data.test_fraction:g} test")
    elif data.fold is not None:
        parts.append(f"fold {data.fold}")
    parts += [] if data.stain == "none" else [f"{data.stain.capitalize()} stains"]
    return ", ".join(parts)
