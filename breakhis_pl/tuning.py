"""Search for a better configuration with Optuna, by validation images alone.

Optuna and torch are imported inside functions: Optuna is an extra, and a wrong command is refused before torch loads.
"""

import json
import logging
import math
import re
import secrets
import shlex
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeAlias

import hydra
import pandas as pd
from filelock import FileLock
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from breakhis_pl.config import TrainConfig, flatten, plain, validate
from breakhis_pl.errors import ConfigurationError, RunFolderError, TrainingError, join_truncated
from breakhis_pl.messages import explain, mask_password
from breakhis_pl.randomness import derived_seed
from breakhis_pl.run_folder import RunFolder, atomic_write, write_text
from breakhis_pl.tuning_config import Choice, Range, TuneConfig

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)

RESUME_KEYS = (
    *("study", "data.root", "data.table", "data.cache_dir", "trainer.progress_bar"),
    *("tuning.n_trials", "tuning.timeout_s", "tuning.keep_checkpoints"),
)
"""Keys that may change when a study is resumed."""
HEARTBEAT_S, GRACE_S, MAX_REPEATS = 20, 60, 2
"""A trial without a heartbeat for `GRACE_S` lost its process, and is repeated at most `MAX_REPEATS` times."""
MIN_FAILURES, MIN_FOR_IMPORTANCES = 3, 10
"""Failed trials that stop a study in which none succeeded; complete trials that importances need."""

Value: TypeAlias = str | int | float | bool | None
SearchSpace: TypeAlias = Mapping[str, Choice | Range]


def tune(config: TuneConfig, overrides: list[str]) -> None:
    """Run trials until the study has `tuning.n_trials`; resume the study that the folder holds, if there is one.

    The overrides of train.py on the command line hold for every trial.

    Raises:
        BreakHisError: If the configuration is not possible, the folder holds another study, the first trials all
            fail, or something fails that does not depend on the values of a trial.
    """
    sys.argv = [mask_password(argument) for argument in sys.argv]  # run.json and loggers record the command
    given = {override.lstrip("+~").partition("=")[0] for override in overrides}
    space = {key: entry for key, entry in config.search_space.items() if key not in given}
    if not space:
        raise ConfigurationError("search_space: the command sets all of its keys; drop one of them")
    shared = select_train_overrides(overrides)
    check_composition(space, shared)
    study = open_study(config, space)
    if count_started(study) < config.tuning.n_trials:
        study.optimize(
            lambda trial: run_trial(trial, config, space, shared),
            timeout=config.tuning.timeout_s,
            catch=TrainingError,
            callbacks=[lambda study, trial: finish_trial(study, trial, config, shared)],
        )
    log_end(study, config)


def select_train_overrides(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that train.py has too.

    Example:
        >>> select_train_overrides(["study=s", "tuning.n_trials=3", "seed=1"])
        ['seed=1']
    """
    own = r"(study|search_space|tuning\..*|hydra[./](?!searchpath).*)"
    return [override for override in overrides if not re.match(rf"[+~]*{own}(=|$)", override)]


def write_overrides(values: Mapping[str, Value]) -> list[str]:
    """Write values as overrides.

    Example:
        >>> write_overrides({"optimizer": "adamw", "optimizer.lr": 1e-5})
        ['optimizer="adamw"', 'optimizer.lr=1e-05']
    """
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]


def compose(overrides: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
    """Compose conf/train.yaml; Hydra has to be initialized, as it is in a program.

    Raises:
        ConfigurationError: If a key or an option does not exist.
    """
    try:
        return hydra.compose("train", overrides=list(overrides), return_hydra_config=with_hydra)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigurationError(explain(error)) from error


def check_composition(space: SearchSpace, shared: Sequence[str]) -> None:
    """Compose every bound and choice once.

    Raises:
        ConfigurationError: If a searched key does not exist, or one of its values is not possible.
    """
    extremes = {
        key: entry.choices if isinstance(entry, Choice) else (entry.low, entry.high) for key, entry in space.items()
    }
    for index in range(max(map(len, extremes.values()))):
        values = write_overrides({key: each[index % len(each)] for key, each in extremes.items()})
        try:
            validate(TrainConfig, compose([*shared, *values]))
        except ConfigurationError as error:
            raise ConfigurationError(f"{error}\nsearch_space: composed with {' '.join(values)}") from error


def suggest(trial: "Trial", key: str, entry: Choice | Range) -> Value:
    """Draw a value for a trial."""
    if isinstance(entry, Choice):
        return trial.suggest_categorical(key, entry.choices)
    if entry.type == "int":
        return trial.suggest_int(key, int(entry.low), int(entry.high), log=entry.log)
    return trial.suggest_float(key, entry.low, entry.high, log=entry.log)


def open_study(config: TuneConfig, space: SearchSpace) -> "Study":
    """Create or load a study in its database.

    Raises:
        RunFolderError: If the folder holds another study.
        ConfigurationError: If the database cannot be used.
    """
    import optuna  # noqa: PLC0415
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415 - comes with optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    tuning, max_epochs = config.tuning, config.trainer.max_epochs
    pruners = {
        "median": optuna.pruners.MedianPruner(tuning.warmup_trials, tuning.warmup_epochs),
        "hyperband": optuna.pruners.HyperbandPruner(min(tuning.warmup_epochs, max_epochs), max_epochs),
        "none": optuna.pruners.NopPruner(),
    }
    config.study.mkdir(parents=True, exist_ok=True)
    path = (config.study / "study.db").absolute()
    url = tuning.storage or f"sqlite:///{path}"
    wait = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}  # s, while another process writes
    with (
        FileLock(config.study / ".lock"),
        warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning),  # heartbeat
    ):
        name, repeat = study_name(config, space), optuna.storages.RetryHeartbeatStaleTrialCallback(MAX_REPEATS)
        try:
            storage = optuna.storages.RDBStorage(
                url,
                wait,
                heartbeat_interval=HEARTBEAT_S,
                grace_period=GRACE_S,
                heartbeat_stale_trial_callback=repeat,
            )
            study = optuna.create_study(
                storage=storage,
                pruner=pruners[tuning.pruner],
                study_name=name,
                direction="minimize" if tuning.metric == "val_loss" else "maximize",
                load_if_exists=True,
            )
            optuna.storages.fail_stale_trials(study)
        except (SQLAlchemyError, optuna.exceptions.OptunaError, ImportError) as error:
            reason = str(error.__cause__ or error).partition("\n")[0]
            where = path if tuning.storage is None else f"tuning.storage={url}"
            raise ConfigurationError(mask_password(f"{where}: the database cannot be used ({reason})")) from None
    return study


def study_name(config: TuneConfig, space: SearchSpace) -> str:
    """Return the name of a study in its database from study.json, which is written for a new study.

    Raises:
        RunFolderError: If the folder holds another study, with the keys that differ.
    """
    values = flatten(plain(config) | {"search_space": {}})
    values |= {
        f"search_space.{key}": entry.model_dump(mode="json", exclude_defaults=True) for key, entry in space.items()
    }
    values["tuning.storage"] = mask_password(config.tuning.storage or "study.db")
    values = {key: value for key, value in values.items() if key not in RESUME_KEYS}
    path = config.study / "study.json"
    if not path.exists():
        content = {"name": f"{config.study.absolute().name}-{secrets.token_hex(4)}", "config": values}
        write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    content = json.loads(path.read_text(encoding="utf-8"))
    stored = content["config"]
    differing = [
        f"{key} ({stored.get(key)} there, {values.get(key)} here)"
        for key in sorted(stored.keys() | values.keys())
        if stored.get(key) != values.get(key)
    ]
    if differing:
        raise RunFolderError(f"{config.study}: holds another study: {join_truncated(differing)}; choose another folder")
    return str(content["name"])


def count_distinct(trials: Sequence["FrozenTrial"]) -> int:
    """Return the number of trials; repetitions of an interrupted trial, to which Optuna gives numbers, count once."""
    return len({trial.user_attrs.get("trial", -1 - trial.number) for trial in trials})


def count_started(study: "Study") -> int:
    """Return the number of trials that were started and do not wait to be repeated."""
    trials = study.get_trials(deepcopy=False)
    return count_distinct(trials) - sum(trial.state.name == "WAITING" for trial in trials)


def run_trial(trial: "Trial", config: TuneConfig, space: SearchSpace, shared: Sequence[str]) -> float:
    """Draw the values of a trial, train with them, and return the metric on validation images.

    A trial that a signal or an error not due to its values interrupts is queued, to be repeated in the same folder.

    Raises:
        TrainingError: If the values of the trial cause an error; the study continues.
    """
    import optuna  # noqa: PLC0415
    import torch  # noqa: PLC0415

    tuning = config.tuning
    earlier = [other for other in trial.study.get_trials(deepcopy=False) if other.number < trial.number]
    index = trial.user_attrs.get("trial", count_distinct(earlier))
    trial.set_user_attr("trial", index)
    seed = derived_seed(tuning.seed, "trial", index) % 2**32  # a resumed study draws the same values
    trial.study.sampler = (
        optuna.samplers.RandomSampler(seed=seed)
        if tuning.sampler == "random"
        else optuna.samplers.TPESampler(seed=seed, n_startup_trials=tuning.startup_trials)
    )
    values = write_overrides({key: suggest(trial, key, entry) for key, entry in space.items()})
    log.info("trial %d of %d: %s", index, tuning.n_trials, " ".join(values))
    try:
        value = train_trial(trial, config, [*shared, *values], config.study / "trials" / str(index))
    except (TrainingError, ConfigurationError, torch.OutOfMemoryError, MemoryError, optuna.TrialPruned) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        trial.set_user_attr("reason", reason)
        log.info("trial %d: %s", index, reason)
        if isinstance(error, optuna.TrialPruned):
            raise
        raise TrainingError(reason) from error
    except BaseException as error:
        trial.study.enqueue_trial(trial.params, user_attrs=trial.user_attrs)
        if not isinstance(error, Exception | KeyboardInterrupt):  # Optuna ends the trial for these
            trial.study.tell(trial, state=optuna.trial.TrialState.FAIL)
        raise
    log.info("trial %d: %s %.4g", index, tuning.metric, value)
    return value


def train_trial(trial: "Trial", config: TuneConfig, overrides: Sequence[str], folder: Path) -> float:
    """Train once per seed and return the mean of the metric; only the first training may be pruned."""
    from breakhis_pl.data.dataset import Subset  # noqa: PLC0415
    from breakhis_pl.train import train  # noqa: PLC0415 - imports torch

    train_config, results = validate(TrainConfig, compose(overrides)), []
    for index in range(config.tuning.seeds_per_trial):
        run = folder if config.tuning.seeds_per_trial == 1 else folder / f"seed{config.seed + index}"
        seeded = train_config.model_copy(update={"seed": config.seed + index})
        callbacks = [report_epochs(trial, config.tuning.metric)] if index == 0 else []
        train(seeded, run, callbacks=callbacks, evaluate_on=(Subset.VAL,))
        results.append(read_result(RunFolder(run), config.tuning.metric))
    return fmean(results)


def report_epochs(trial: "Trial", metric: str) -> "Callback":
    """Build the callback that reports the metric of every epoch to the pruner.

    A trial is pruned when its next epoch starts, so that history and checkpoint hold the last one.
    """
    import optuna  # noqa: PLC0415
    from lightning.pytorch.callbacks import LambdaCallback  # noqa: PLC0415

    def report(trainer: Any, _module: Any) -> None:
        trial.report(float(trainer.callback_metrics[metric]), step=trainer.current_epoch + 1)

    def prune(trainer: Any, _module: Any) -> None:
        if trial.should_prune():
            raise optuna.TrialPruned(f"pruned after epoch {trainer.current_epoch}")

    return LambdaCallback(on_train_epoch_end=report, on_train_epoch_start=prune)


def read_result(run: RunFolder, metric: str) -> float:
    """Return a metric of the selected epoch of a finished run.

    Raises:
        TrainingError: If it is not defined.
    """
    history, selection = pd.read_csv(run.history_csv, index_col="epoch"), run.read().selection
    value = float(history[metric].loc[history.index[-1] if selection is None else selection["best_epoch"]])
    if not math.isfinite(value):
        raise TrainingError(f"tuning.metric={metric}: is not defined in {run.history_csv}; set tuning.metric=val_loss")
    return value


def finish_trial(study: "Study", trial: "FrozenTrial", config: TuneConfig, shared: Sequence[str]) -> None:
    """Remove the checkpoints of a finished trial, write the results, and stop a study that is complete.

    Raises:
        TrainingError: If the first three trials failed.
    """
    if not config.tuning.keep_checkpoints:
        for checkpoints in (config.study / "trials" / str(trial.user_attrs["trial"])).glob("**/checkpoints"):
            shutil.rmtree(checkpoints, ignore_errors=True)
    write_results(study, config, shared)
    trials = study.get_trials(deepcopy=False)
    ended = [each for each in trials if each.state.name == "COMPLETE" or "reason" in each.user_attrs]
    if len(ended) >= min(MIN_FAILURES, config.tuning.n_trials) and all(each.state.name == "FAIL" for each in ended):
        reason = ended[-1].user_attrs["reason"]
        raise TrainingError(f"all {len(ended)} trials failed, the last one with: {reason}")
    if count_started(study) >= config.tuning.n_trials:
        study.stop()


def write_results(study: "Study", config: TuneConfig, shared: Sequence[str]) -> None:
    """Write study.csv, the figures, and the best trial as an experiment file."""
    folder, metric = config.study, config.tuning.metric
    table = study.trials_dataframe(("number", "state", "value", "duration", "params", "user_attrs"))
    table["duration"] = pd.to_timedelta(table["duration"]).dt.total_seconds()
    write_text(folder / "study.csv", table.to_csv(index=False))
    n_complete = sum(trial.state.name == "COMPLETE" for trial in study.get_trials(deepcopy=False))
    if n_complete == 0:
        return
    best = study.best_trial
    header = f"# @package _global_\n# {metric} {best.value:.6g} on validation images: the best of {n_complete} trials\n"
    (folder / "experiment").mkdir(exist_ok=True)
    content = make_experiment([*shared, *write_overrides(best.params)])
    write_text(folder / "experiment" / "best_trial.yaml", header + OmegaConf.to_yaml(content))
    draw_figures(study, folder, metric, with_importances=n_complete >= MIN_FOR_IMPORTANCES)


def make_experiment(overrides: Sequence[str]) -> DictConfig:
    """Return an experiment that composes to the same configuration as the overrides: what differs from the defaults."""
    chosen, default = (compose(each, with_hydra=True).hydra.runtime.choices for each in (overrides, []))
    groups = {
        group: option
        for group, option in chosen.items()
        if option != default.get(group) and group != "experiment" and not group.startswith("hydra")
    }
    start = flatten(OmegaConf.to_container(compose(write_overrides(groups))))  # type: ignore[arg-type]
    content = OmegaConf.create({"defaults": [{f"override /{group}": option} for group, option in groups.items()]})
    for key, value in flatten(OmegaConf.to_container(compose(overrides))).items():  # type: ignore[arg-type]
        if key not in start or start[key] != value:
            OmegaConf.update(content, key, value)
    return content


def draw_figures(study: "Study", folder: Path, metric: str, *, with_importances: bool) -> None:
    """Save history.png, slices.png and importances.png as Optuna draws them."""
    import matplotlib.pyplot as plt  # noqa: PLC0415
    from optuna.importance import PedAnovaImportanceEvaluator  # noqa: PLC0415
    from optuna.visualization import matplotlib as plots  # noqa: PLC0415

    figures: dict[str, Any] = {"history": plots.plot_optimization_history, "slices": plots.plot_slice}
    if with_importances:
        evaluator = PedAnovaImportanceEvaluator(target_quantile=0.2)  # 0.1, the default, is one trial of ten
        figures["importances"] = partial(plots.plot_param_importances, evaluator=evaluator)
    for name, plot in figures.items():
        with warnings.catch_warnings(), plt.rc_context(), atomic_write(folder / f"{name}.png") as temporary:
            warnings.simplefilter("ignore")  # experimental functions, axes of a single value
            plot(study, target_name=metric)  # sets matplotlib's style
            plt.savefig(temporary, format="png", dpi=150, bbox_inches="tight")
            plt.close()


def log_end(study: "Study", config: TuneConfig) -> None:
    """Log the state of a study, and the command that trains its best configuration."""
    states = [trial.state.name.lower() for trial in study.get_trials(deepcopy=False)]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    log.info("%s: %s", config.study, counts or "no trials")
    if "running" in states:
        log.info("a running trial whose process was killed is repeated by the same command after %d s", GRACE_S)
    if "complete" in states:
        values = study.best_trial.user_attrs["trial"], config.tuning.metric, study.best_value, states.count("complete")
        log.info("best: trial %d, %s %.4g on validation images (optimistic: it is the best of %d)", *values)
        log.info("train it and evaluate it on test images with:\n%s", train_command(config.study))


def train_command(study: Path) -> str:
    """Return the command that trains the best configuration of a study, for a shell."""
    url = f"file://{study.absolute()}"
    quoted = url if re.fullmatch(r"[\w/.:+-]+", url) else json.dumps(url, ensure_ascii=False)
    return shlex.join(["uv", "run", "train.py", f"hydra.searchpath=[{quoted}]", "experiment=best_trial"])
