"""Every key of the configuration, with its default, its meaning and its bounds.

The reference of all keys: one dataclass per group, or per option where the options of a group differ. Importing this
module imports neither Hydra nor torch. `breakhis_pl.config_faults` holds the rules across keys;
`breakhis_pl.composition` applies them to what Hydra composed.
"""

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from breakhis_pl.data.breakhis import FOLDS, MAGNIFICATIONS, TASKS
from breakhis_pl.errors import listed
from breakhis_pl.network_names import HEADS, LIBRARIES

SPLITS = ("official", "ratio")
GROUPS = ("case", "patient")
BALANCES = ("none", "downsample", "sampler", "loss")
STAINS = ("none", "macenko", "reinhard")
MONITORS = ("val_loss", "val_accuracy", "val_balanced_accuracy", "val_auroc")
ACCELERATORS = ("auto", "cpu", "gpu", "mps")
PIXELS = ("auto", "device", "host")
MEMORY_FORMATS = ("auto", "channels_last", "contiguous")
STRATEGIES = ("auto", "ddp")
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
TTA = ("none", "flips", "dihedral")
BORDERS = ("black", "mirror")
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
    test_magnification: Any = key(
        None, "of test and validation images, one or a list; null: data.magnification", choices=MAGNIFICATIONS
    )
    image_size: int = key(
        224, "side in pixels that images are resized to, aspect not kept", at_least=SMALLEST_IMAGE, at_most=4096
    )
    batch_size: int = key(32, "images per training step", at_least=1)
    eval_batch_size: int | None = key(None, "images per evaluation step; null: batch_size, on a GPU 4 x", at_least=1)
    pixels: str = key("auto", "decoded images lie on the device, or on the host where they do not fit", choices=PIXELS)
    split: str = key("official", "official: the authors' folds; ratio: whole cases by chance", choices=SPLITS)
    fold: int = key(2, "the authors' fold, for split=official", choices=FOLDS)
    group: str = key("case", "what split=ratio keeps together: cases, or the authors' patients", choices=GROUPS)
    test_fraction: float = key(0.3, "share of test images, for split=ratio", above=0, below=1)
    val_fraction: float = key(0.0, "share of train images taken out for validation, whole cases", at_least=0, below=1)
    balance: str = key("none", "what is done about train images of unequal classes", choices=BALANCES)
    stain: str = key("none", "stain normalization, fitted on the train images", choices=STAINS)
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
    images_per_patient: int = key(8, "images drawn per patient and magnification", at_least=1, at_most=999)
    width: int = key(
        175, "width in pixels of the drawn images; 700 is that of the originals", at_least=32, at_most=4096
    )
    draw_seed: int = key(0, "seed of the drawing, apart from the seed of the run", at_least=0)


@dataclass
class AugmentationConfig:
    """Keys of `augmentation`."""

    horizontal_flip: float = key(0.5, "probability of a left-right flip", at_least=0, at_most=1)
    vertical_flip: float = key(0.5, "probability of an up-down flip", at_least=0, at_most=1)
    rotation: float = key(20.0, "largest rotation to either side in degrees", at_least=0, at_most=180)
    quarter_turn: float = key(0.0, "probability of a turn by 90, 180 or 270 degrees", at_least=0, at_most=1)
    zoom: float = key(0.0, "largest zoom: 0.2 magnifies by 1/1.2 to 1.2", at_least=0, at_most=1)
    shift: float = key(0.0, "largest shift to every side, as a share of the side", at_least=0, at_most=0.5)
    border: str = key("black", "what lies beyond the edge of an image", choices=BORDERS)
    stain: float = key(0.0, "largest change of the amount of each stain: 0.2 is a fifth", at_least=0, below=1)
    stain_shift: float = key(0.0, "largest shift of each stain in optical density", at_least=0, at_most=1)
    brightness: float = key(0.0, "largest change of brightness: 0.2 is a fifth", at_least=0, below=1)
    contrast: float = key(0.0, "largest change of contrast", at_least=0, below=1)
    saturation: float = key(0.0, "largest change of saturation", at_least=0, below=1)
    hue: float = key(0.0, "largest turn of the hue, as a share of the color circle", at_least=0, at_most=0.5)
    blur: float = key(0.0, "largest standard deviation of a Gaussian blur in pixels", at_least=0, at_most=5)


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
class WarmupCosineConfig:
    """Keys of `scheduler=warmup_cosine`."""

    _target_: str = "breakhis_pl.training.schedules.WarmupCosine"
    T_max: int = key("${trainer.max_epochs}", "epochs until the learning rate is at its lowest", at_least=1)
    warmup_epochs: int = key(1, "epochs in which the learning rate rises; below T_max", at_least=0)
    eta_min: float = key(0.0, "lowest learning rate", at_least=0)


@dataclass
class ConstantConfig:
    """Keys of `scheduler=constant`."""

    _target_: str = "torch.optim.lr_scheduler.ConstantLR"
    factor: float = key(1.0, "torch's own default is another one; 1 keeps the learning rate", choices=(1.0,))


@dataclass
class ProcessesConfig:
    """Keys of `trainer` that say in how many processes a run is done, one for each device."""

    strategy: str = key("auto", "auto: one process, or DDP where there are several devices", choices=STRATEGIES)
    devices: int = key(1, "devices of each machine, a process each", at_least=1, at_most=1024)
    num_nodes: int = key(1, "machines", at_least=1, at_most=10_000)

    @property
    def n_processes(self) -> int:
        """Of all machines together."""
        return self.devices * self.num_nodes

    @property
    def is_distributed(self) -> bool:
        """Whether the run is done in processes of its own."""
        return self.strategy == "ddp" or self.n_processes > 1


@dataclass
class TrainerConfig(ProcessesConfig):
    """Keys of `trainer`."""

    accelerator: str = key("auto", "auto takes the GPU where there is one", choices=ACCELERATORS)
    precision: str = key("auto", "auto: bf16 or fp16 mixed on a GPU, float32 elsewhere", choices=PRECISIONS)
    max_epochs: int = key("${model.epochs}", "epochs to train for", at_least=1)
    deterministic: bool = key(False, "only deterministic algorithms, at the cost of speed")
    memory_format: str = key("auto", "auto: channels_last, on a CPU from 96 pixels on", choices=MEMORY_FORMATS)
    keep_memory: bool = key(True, "on a CPU, freed memory stays with the process for the next step")
    cuda_graphs: bool | None = key(
        None, "replay train steps as a CUDA graph; null: the report's networks in one process on a GPU"
    )
    compile: bool = key(False, "torch.compile the network; takes half a minute or more before the first step")
    checkpoint_share: float = key(
        0.01, "of the time that writing checkpoints may take; 1 writes after every epoch", above=0, at_most=1
    )
    monitor: str | None = key(None, "validation value that chooses the epoch; null: the last counts", choices=MONITORS)
    patience: int | None = key(None, "epochs without a better monitor after which training stops", at_least=1)
    limit_train_batches: int | None = key(None, "train batches per epoch; null takes all", at_least=1)
    progress_bar: bool = key(True, "a bar on a terminal; a line per epoch is always printed")


@dataclass
class TrainingConfig:
    """Keys of `training`; the defaults leave a training as the report's."""

    label_smoothing: float = key(0.0, "share of a target that is spread over all classes", at_least=0, below=1)
    mixup: float = key(0.0, "alpha of the Beta distribution of mixup's shares; 0 mixes nothing", at_least=0, at_most=10)
    ema_decay: float | None = key(
        None, "evaluate a moving average of the weights, of which a step keeps this share", above=0, below=1
    )
    layer_decay: float = key(1.0, "factor on the learning rate per stage, from the head down", above=0, at_most=1)
    frozen_epochs: int = key(0, "first epochs that train the head alone", at_least=0)


@dataclass
class TensorBoardLoggerConfig:
    """Keys of `logger=tensorboard`."""

    kind: str = key("tensorboard", "tells the options apart", choices=("tensorboard",))


@dataclass
class CsvLoggerConfig:
    """Keys of `logger=csv`."""

    kind: str = key("csv", "tells the options apart", choices=("csv",))


@dataclass
class MlflowLoggerConfig:
    """Keys of `logger=mlflow`."""

    kind: str = key("mlflow", "tells the options apart", choices=("mlflow",))
    tracking_uri: str = key("sqlite:///outputs/mlflow.db", "address of a server, or URL of a database")
    experiment: str = key("breakhis_pl", "MLflow's experiment, made if need be")


@dataclass
class WandbLoggerConfig:
    """Keys of `logger=wandb`."""

    kind: str = key("wandb", "tells the options apart", choices=("wandb",))
    project: str = key("breakhis_pl", "name of the project")
    entity: str | None = key(None, "user or team; null: the account's own")
    mode: str = key("offline", "offline writes into the run folder, for `wandb sync`", choices=("offline", "online"))


LoggerConfig: TypeAlias = TensorBoardLoggerConfig | CsvLoggerConfig | MlflowLoggerConfig | WandbLoggerConfig


@dataclass
class TrainConfig:
    """All keys of train.py."""

    data: Any = key(None, "where images come from and how they are split")
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: Any = key(None, "the optimizer and its numbers")
    scheduler: Any = key(None, "the learning rate over the epochs")
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    task: str = key(
        "binary",
        "binary: benign or malignant; subtype: the eight tumor types, summed to these two",
        choices=tuple(TASKS),
    )
    logger: Any = key(None, "where curves and results are kept beside the run's own files")
    seed: int = key(0, "seed of everything that is drawn during the run", at_least=0)
    gallery: int = key(8, "pictures of each kind that Grad-CAM explains; 0 for none", at_least=0)


@dataclass
class EvaluateDataConfig:
    """Keys of `data` in evaluate.py; null takes what the run was trained with."""

    root: str | None = key(None, "folder of the images, where they have moved")
    cache_dir: str | None = key(None, "folder of the stores of decoded images")
    batch_size: int | None = key(None, "images per step", at_least=1)


@dataclass
class EvaluateTrainerConfig(ProcessesConfig):
    """Keys of `trainer` in evaluate.py."""

    accelerator: str = key("auto", "auto takes the GPU where there is one", choices=ACCELERATORS)
    precision: str = key("auto", "auto: bf16 or fp16 mixed on a GPU, float32 elsewhere", choices=PRECISIONS)


@dataclass
class EvaluateConfig:
    """All keys of evaluate.py."""

    run: str | None = key(None, "run folder to evaluate")
    runs: Any = key(None, "folder of a sweep, or a list of run folders, to compare")
    ensemble: bool = key(False, "average the probabilities of the runs, and compare the result with them")
    out: str | None = key(
        None, "folder of the comparison or ensemble; null: the sweep's own, or outputs/<kind>/<date>/<time>"
    )
    checkpoint: str = key("auto", "auto: best where there is one, else last; best, last, or the path of a checkpoint")
    subset: str = key("test", "images to evaluate on", choices=("test", "val", "train"))
    tta: str = key("none", "average over flips (4 views) or flips and quarter turns (dihedral, 8)", choices=TTA)
    calibrate: bool = key(False, "fit temperature and threshold on the validation images again")
    sensitivity: float | None = key(None, "wanted of the fitted threshold; null: 0.95", above=0, below=1)
    gallery: int = key(8, "pictures of each kind that Grad-CAM explains; 0 for none", at_least=0)
    data: EvaluateDataConfig = field(default_factory=EvaluateDataConfig)
    trainer: EvaluateTrainerConfig = field(default_factory=EvaluateTrainerConfig)


@dataclass
class TuningConfig:
    """Keys of `tuning` in tune.py."""

    n_trials: int = key(20, "trials of the study; pruned and failed ones count", at_least=1)
    timeout_s: float | None = key(None, "seconds after which this process starts no further trial", above=0)
    metric: str = key("val_loss", "what is searched for, of the validation images", choices=MONITORS)
    sampler: str = key("tpe", "tpe draws by what trials before gave, random does not", choices=("tpe", "random"))
    seed: int = key(0, "seed of what is drawn in the space", at_least=0)
    startup_trials: int = key(10, "trials drawn at random before TPE takes over", at_least=1)
    pruner: str = key("median", "which trials end early", choices=("median", "hyperband", "none"))
    warmup_epochs: int = key(2, "epochs of every trial after which it may be pruned at the earliest", at_least=1)
    warmup_trials: int = key(5, "trials that are complete before one is pruned by the median", at_least=1)
    seeds_per_trial: int = key(1, "trainings per trial, from `seed` on; their mean value counts", at_least=1)
    storage: str | None = key(None, "URL of a database; null: study.db in the study's folder")
    keep_checkpoints: bool = key(False, "keep the checkpoints of trials that have ended")


@dataclass
class TuneConfig(TrainConfig):
    """All keys of tune.py: those of train.py, which every trial shares, and what is searched."""

    study: str = key("???", "folder of the study")
    tuning: TuningConfig = field(default_factory=TuningConfig)
    space: Any = key(None, "which values each searched key may have")


@dataclass
class PredictConfig:
    """All keys of predict.py."""

    run: str | None = key(None, "run folder, or a network that breakhis_pl.export_onnx wrote")
    images: Any = key(None, "file, folder, pattern, or a list of these")
    checkpoint: str = key("auto", "auto: best where there is one, else last; best, last, or the path of a checkpoint")
    batch_size: int = key(32, "images per step", at_least=1)
    threads: int | None = key(None, "that decode images; null: one per core", at_least=1, at_most=256)
    gradcam: Any = key(False, "pictures of what speaks for the prediction: true for all images, or how many")
    trainer: EvaluateTrainerConfig = field(default_factory=EvaluateTrainerConfig)


OptimizerConfig: TypeAlias = AdamaxConfig | AdamWConfig | SGDConfig
SchedulerConfig: TypeAlias = ExponentialConfig | CosineConfig | WarmupCosineConfig | ConstantConfig

VARIANTS: Mapping[str, tuple[str, Mapping[str, type]]] = MappingProxyType(
    {
        "data": ("source", {"breakhis": BreakHisDataConfig, "synthetic": SyntheticDataConfig}),
        "optimizer": ("_target_", {v._target_: v for v in (AdamaxConfig, AdamWConfig, SGDConfig)}),
        "scheduler": (
            "_target_",
            {v._target_: v for v in (ExponentialConfig, CosineConfig, WarmupCosineConfig, ConstantConfig)},
        ),
        "logger": (
            "kind",
            {
                "tensorboard": TensorBoardLoggerConfig,
                "csv": CsvLoggerConfig,
                "mlflow": MlflowLoggerConfig,
                "wandb": WandbLoggerConfig,
            },
        ),
    }
)
"""Groups whose options have keys of their own: the key that tells them apart, and the dataclass by its value."""

NAMED_CHECKPOINTS = ("auto", "best", "last")
"""Of a run, by name; anything else is a path."""

ProgramName: TypeAlias = Literal["train", "evaluate", "tune", "predict"]
PROGRAMS: Mapping[str, type] = MappingProxyType(
    {"train": TrainConfig, "evaluate": EvaluateConfig, "tune": TuneConfig, "predict": PredictConfig}
)


def is_exported(run: str | None) -> bool:
    """Whether a value of `run` names an exported network rather than a run folder."""
    return run is not None and run.lower().endswith(".onnx")


def has_fixed_features(config: TrainConfig) -> bool:
    """Whether what the head is given for an image is the same in every epoch: nothing below it learns or is drawn."""
    return config.model.freeze and not draws_anything(config.augmentation)


def draws_anything(augmentation: AugmentationConfig) -> bool:
    """Whether any transform of train images has a probability or a strength above 0."""
    values = (getattr(augmentation, entry.name) for entry in fields(augmentation))
    return any(isinstance(value, int | float) and value > 0 for value in values)


def is_solved(config: TrainConfig) -> bool:
    """Whether the head is solved for instead of trained by steps: a convex problem on fixed features."""
    return has_fixed_features(config) and config.model.head != "report"


def evaluated_magnifications(data: DataConfig) -> tuple[int, ...]:
    """Magnifications of test and validation images."""
    asked = data.magnification if data.test_magnification is None else data.test_magnification
    return tuple(asked)


def all_magnifications(data: DataConfig) -> tuple[int, ...]:
    """Magnifications of which images are needed: those of train, then what test has beyond."""
    return tuple(dict.fromkeys((*data.magnification, *evaluated_magnifications(data))))


def magnifications(value: object) -> tuple[object, ...]:
    """The value of `data.magnification` or `data.test_magnification`, one number or a list of them, as a tuple."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    by_text = {text: number for number in MAGNIFICATIONS for text in (str(number), str(float(number)))}
    return tuple(by_text.get(str(part), part) for part in values)
