"""What `--help` prints: written here, but for the groups and options, which are read from conf/; needs no package."""

from pathlib import Path

from breakhis_pl.config import ProgramName

CONF_FOLDER = Path(__file__).resolve().parent.parent / "conf"
"""Of Hydra's groups, beside the package."""

_HELP = {
    "train": """\
train.py trains a network to tell benign from malignant breast tumors (BreakHis) and evaluates it.

usage: python train.py [group=option …] [key=value …]
       python train.py -m key=value,value …          one run per combination of values

Examples
  python train.py experiment=demo                    a minute on drawn images, no download
  python train.py model=resnet18 data.root=data      the report's ResNet-18 on the real images
  python train.py -m model=resnet18,wide_resnet50,resnext50        the report's three networks, compared
  python train.py experiment=frozen                  frozen features, linear head: the baseline to beat, in minutes
  python train.py experiment=best                    what paid on validation cases: strong augmentation, mixup, averages
  python train.py model=torchvision model.backbone=convnext_tiny         any network of torchvision or timm
  python train.py model=resnet18 optimizer=sgd optimizer.lr=0.01 trainer.max_epochs=30
  python train.py -m data.split=ratio data.test_fraction=0.2 seed=0,1,2        80/20, three splits
  python train.py 'data.magnification=[40,100,200,400]' data.test_magnification=200

The real images: python -m breakhis_pl.data.download fetches them (4 GB) into data/.

Groups and their options (* is the default)
{groups}

Keys used most
  data.root=data              folder with the images, in any arrangement
  data.fold=2                 the authors' fold, 1 to 5
  data.magnification=200      40, 100, 200, 400 or a list: '[40,200]'
  data.image_size=224         side in pixels;  data.batch_size=32
  data.require_complete=false use an incomplete folder of images
  data.test_magnification=200 test at other magnifications than train;  data.group=patient (split=ratio)
  data.val_fraction=0.2       take whole cases out of train for validation: calibration, threshold
  data.balance=sampler        or downsample, loss: train images of unequal classes;  data.stain=macenko, reinhard
  trainer.monitor=val_loss    the best epoch on validation images counts; trainer.patience=5 stops early
  model.weights=imagenet      none, or a file with a state dict (.pth, for model=timm also .safetensors)
  model.backbone=resnet50     any name of torchvision (model=torchvision) or timm (model=timm)
  model.arguments             how timm builds the network, a dict; examples: docs/networks.md
  model.head=report           linear, or svm: one layer, with hinge loss;  model.dropout=0.4 (report)
  model.freeze=true           train the head alone; with augmentation=none and one layer it is solved for (model.l2)
  trainer.max_epochs=15       seed=0
  task=subtype                tell the eight tumor types apart; evaluated as benign or malignant, and by type
  augmentation.stain=0.2      one transform alone: zoom, shift, stain, hue, blur, …; augmentation=strong has them all
  training.label_smoothing=0  training.mixup=0  training.ema_decay=null (0.99)  scheduler=warmup_cosine
  training.layer_decay=1      training.frozen_epochs=0: learning rates by layer, the head alone at first
  trainer=ddp trainer.devices=8    on 8 GPUs; data.batch_size is that of all together (docs/scaling.md)
  -m hydra/launcher=submitit_slurm seed=0,1    each run of a sweep a job of a cluster; submitit_local: of this machine
  hydra.run.dir=<folder>      where the run goes; else outputs/<date>/<time>_<model>/
  logger=tensorboard          csv, mlflow (logger.tracking_uri=http://…) or wandb: docs/loggers.md
  resume=<run folder>         go on with a run that was cut; a sweep: its command with hydra.sweep.dir=<folder>
  repeat=<run folder>         train anew with the configuration in its run.json; more keys change it

All keys with their values: python train.py --cfg job     Hydra's own options: python train.py --hydra-help
Afterwards: python evaluate.py run=<run folder>           tensorboard --logdir outputs
""",
    "evaluate": """\
evaluate.py evaluates a checkpoint of a run again and writes the results into the run's folder.

usage: python evaluate.py run=<run folder> [key=value …]

Examples
  python evaluate.py run=outputs/2026-01-31/12-00-00_resnet18
  python evaluate.py run=<run folder> data.root=/elsewhere/BreaKHis_v1   the images have moved
  python evaluate.py run=<run folder> subset=train                       on the train images, into <run folder>/train/
  python evaluate.py run=<run folder> checkpoint=some/other.ckpt
  python evaluate.py run=<run folder> calibrate=true sensitivity=0.99    temperature and threshold, where there is a val
  python evaluate.py runs=outputs/sweeps/2026-01-31/12-00-00             compare the runs of a sweep again
  python evaluate.py 'runs=[<run folder>,<run folder>]'                  compare any runs
  python evaluate.py 'runs=[<run folder>,<run folder>]' ensemble=true    average their probabilities, compare with each
  python evaluate.py run=<run folder> tta=dihedral                       average over the eight flips and quarter turns
  python -m breakhis_pl.evaluation <run folder>/test/predictions.csv     the numbers alone, without torch
  python predict.py run=<run folder> images=<file or folder>             pictures that belong to no data set

Keys
  run                  run folder to evaluate; or
  runs                 folder of a sweep, or list of run folders, to compare; out=<folder> says where to
  ensemble=false       average the runs' probabilities for the same test images, into out or outputs/ensembles/
  tta=none             none, flips (4 views) or dihedral (8), into <run folder>/test_<tta>/; ensemble: of these tables
  checkpoint=auto      best where an epoch was chosen (trainer.monitor), else last; best, last, or a path
  subset=test          test, val or train
  calibrate=false      fit temperature and threshold on the run's validation images again, for sensitivity (0.95)
  gallery=8            pictures of each kind that Grad-CAM explains, 0 for none
  data.root            folder of the images, where they have moved
  data.cache_dir       folder of the stores of decoded images; the run's own unless given
  data.batch_size      images per step; the run's own unless given
  trainer.accelerator=auto   auto, cpu, gpu or mps;  trainer.precision=auto;  trainer.devices=1 GPUs share the work
""",
    "tune": """\
tune.py searches for a better configuration by the validation images alone; test images are not looked at.

usage: python tune.py study=<folder> data.val_fraction=<share> [group=option …] [key=value …]

Needs Optuna: uv sync --extra tune

Examples
  python tune.py study=studies/first data.val_fraction=0.2                  20 trials of the report's ResNet-18
  python tune.py study=studies/demo data.val_fraction=0.2 experiment=demo tuning.n_trials=8       on drawn images
  python tune.py study=studies/sgd data.val_fraction=0.2 space=optimizer tuning.metric=val_auroc
  python tune.py study=studies/lr data.val_fraction=0.2 model.dropout=0.4   a key that is set here is not searched

The same command goes on with a study that was cut, also from several processes at once.

Groups and their options (* is the default)
{groups}

Keys
  study                       folder of the study: page, table, database, a run folder for each trial
  space=default               what is searched: a file in conf/space/
  tuning.n_trials=20          trials in all, pruned and failed ones included;  tuning.timeout_s starts none after it
  tuning.metric=val_loss      or val_balanced_accuracy, val_auroc, val_accuracy
  tuning.sampler=tpe          or random;  tuning.startup_trials=10 are random for tpe as well;  tuning.seed=0
  tuning.pruner=median        or hyperband, none;  tuning.warmup_epochs=2, tuning.warmup_trials=5 are left alone
  tuning.seeds_per_trial=1    trainings per trial, whose mean value counts
  tuning.storage              URL of a database instead of study.db in the study's folder
  tuning.keep_checkpoints=false
  and all keys of train.py, for every trial: python train.py --help

Afterwards: study.html in the study's folder says how to train the best configuration and evaluate it on test.
""",
    "predict": """\
predict.py predicts pictures with a trained network: a table with a row for each, in a folder of its own.

usage: python predict.py run=<run folder or exported network> images=<file, folder or pattern> [key=value …]

Examples
  python predict.py run=outputs/2026-01-31/12-00-00_resnet18 images=slides
  python predict.py run=<run folder> images=picture.jpg hydra.run.dir=answer
  python predict.py run=<run folder> 'images=slides/**/*.tif' gradcam=20   and what speaks for the first 20 answers
  python predict.py run=<run folder> 'images=[slides,other/picture.png]'
  python -m breakhis_pl.export_onnx run=<run folder> out=network.onnx      one file, to be run without torch
  python predict.py run=network.onnx images=slides

Keys
  run                  run folder, or a file that breakhis_pl.export_onnx wrote
  images               file, folder (searched to any depth), pattern, or a list of these; PNG, JPEG, TIFF, BMP, WebP, …
  checkpoint=auto      best where an epoch was chosen, else last; best, last, or a path
  batch_size=32        images per step;  threads: that decode images, one per core unless given
  gradcam=false        true, or for how many images to draw what speaks for the answer
  trainer.accelerator=auto   auto, cpu, gpu or mps;  trainer.precision=auto
  hydra.run.dir=<folder>     where the table goes; else outputs/<date>/<time>_predict/

Pictures that cannot be read are listed in unreadable.csv; the exit status is 1 then.
This is research software, not a medical device. What the columns mean: docs/predict.md
""",
}


def help_text(program: ProgramName) -> str:
    """What `--help` prints."""
    text = _HELP[program]
    return text.format(groups=_groups(program)) if "{groups}" in text else text


def _groups(program: ProgramName) -> str:
    """Every group of a program with its options and what they are for, from the first comment of their files."""
    chosen = _defaults(program)
    lines = []
    groups = (path for path in CONF_FOLDER.iterdir() if path.is_dir() and (path.name != "space" or program == "tune"))
    for folder in sorted(groups, key=lambda path: path.name):
        for index, option in enumerate(sorted(folder.glob("*.yaml"))):
            mark = "*" if chosen.get(folder.name) == option.stem else " "
            start = f"{folder.name}=" if index == 0 else ""
            lines.append(f"  {start:<14}{option.stem + mark:<16}{_first_comment(option)}")
    return "\n".join(lines)


def _defaults(program: ProgramName) -> dict[str, str]:
    """Option by group in the defaults list of a program."""
    file = CONF_FOLDER / f"{program}.yaml"
    pairs = (line.strip().removeprefix("- ").partition(": ") for line in _read_lines(file))
    return {group: option for group, separator, option in pairs if separator}


def _first_comment(file: Path) -> str:
    comments = (line[2:] for line in _read_lines(file) if line.startswith("# ") and not line.startswith("# @"))
    return next(comments, "")


def _read_lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()
