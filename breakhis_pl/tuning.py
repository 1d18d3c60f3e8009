"""Search for a better configuration with Optuna, by validation images alone.

Optuna and torch are imported inside functions: Optuna is an extra, and a wrong command is refused before torch loads.
"""

import csv
import json
import logging
import re
import shlex
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import hydra
from filelock import FileLock
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from breakhis_pl.config import TrainConfig, flatten, plain, validate
from breakhis_pl.errors import ConfigurationError, DataError, RunFolderError, TrainingError, join_truncated
from breakhis_pl.job import key_of
from breakhis_pl.messages import explain, mask_password
from breakhis_pl.randomness import derived_seed
from breakhis_pl.run_folder import RunFolder, atomic_write, differences, write_text
from breakhis_pl.tuning_config import Choice, SearchedKey, TuneConfig, Value

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)

STUDY_RESUME_KEYS = (
    *("study", "data.root", "data.table", "data.cache_dir", "trainer.progress_bar"),
    *("tuning.n_trials", "tuning.timeout_s", "tuning.storage", "tuning.keep_checkpoints"),
)
"""Keys that may change when a study is resumed."""
HEARTBEAT_S, GRACE_S, MAX_REPEATS = 20, 60, 2
"""A trial without a heartbeat for `GRACE_S` lost its process, and is repeated at most `MAX_REPEATS` times."""
FAILURES = (TrainingError, ConfigurationError, HydraException, OmegaConfBaseException, MemoryError)
"""Errors that the values of a trial can cause, besides `torch.OutOfMemoryError`."""
MIN_FAILURES, MIN_FOR_IMPORTANCES = 3, 10
"""Failed trials that stop a study in which none succeeded; complete trials that importances need."""


def tune(config: TuneConfig, overrides: list[str]) -> None:
    """Run trials until the study has `tuning.n_trials`; resume the study that the folder holds, if there is one.

    The overrides of train.py on the command line hold for every trial.

    Raises:
        BreakHisError: If the configuration is not possible, the folder holds another study, the first trials all
            fail, or something fails that does not depend on the values of a trial.
    """
    sys.argv = [mask_password(argument) for argument in sys.argv]  # run.json and loggers record the command
    given = set(map(key_of, overrides))
    space = {key: entry for key, entry in config.search_space.items() if key not in given}
    if not space:
        raise ConfigurationError("search_space: the command sets all of its keys; drop one of them")
    config, shared = config.model_copy(update={"search_space": space}), select_train_overrides(overrides)
    check_composition(config, shared)
    study = open_study(config)
    if count_started(study) < config.tuning.n_trials:
        study.optimize(
            partial(run_trial, config=config, shared=shared),
            timeout=config.tuning.timeout_s,
            catch=TrainingError,
            callbacks=[partial(finish_trial, config=config, shared=shared)],
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


def check_composition(config: TuneConfig, shared: Sequence[str]) -> None:
    """Compose every bound and choice once.

    Raises:
        ConfigurationError: If a searched key does not exist, or one of its values is not possible.
    """
    space = config.search_space.items()
    tried = {key: entry.choices if isinstance(entry, Choice) else (entry.low, entry.high) for key, entry in space}
    for index in range(max(map(len, tried.values()))):
        values = write_overrides({key: each[index % len(each)] for key, each in tried.items()})
        try:
            validate(TrainConfig, hydra.compose("train", [*shared, *values]))
        except FAILURES as error:
            raise ConfigurationError(f"{explain(error)}\nsearch_space: composed with {' '.join(values)}") from error


def open_study(config: TuneConfig) -> "Study":
    """Create or load a study in its database; queue the trials of killed processes.

    Raises:
        RunFolderError: If the folder holds another study.
        ConfigurationError: If the database cannot be used.
    """
    import optuna  # noqa: PLC0415
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415 - comes with optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # heartbeat
    tuning = config.tuning
    config.study.mkdir(parents=True, exist_ok=True)
    url = tuning.storage or f"sqlite:///{config.study.absolute() / 'study.db'}"
    with FileLock(config.study / ".lock"):
        try:
            study = optuna.create_study(
                storage=optuna.storages.RDBStorage(
                    url,
                    {"connect_args": {"timeout": 60}} if tuning.storage is None else None,  # s, while another writes
                    heartbeat_interval=HEARTBEAT_S,
                    grace_period=GRACE_S,
                    heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(MAX_REPEATS),
                ),
                pruner=optuna.pruners.MedianPruner(tuning.warmup_trials, tuning.warmup_epochs),
                study_name="study" if tuning.storage is None else config.study.absolute().name,
                direction="minimize" if tuning.metric == "val_loss" else "maximize",
                load_if_exists=True,
            )
        except (SQLAlchemyError, ImportError) as error:
            reason = f"the database cannot be used ({error.__cause__ or error})"
            raise ConfigurationError(mask_password(f"tuning.storage={url}: {reason}")) from error
        check_same_study(study, config)
    optuna.storages.fail_stale_trials(study)
    return study


def check_same_study(study: "Study", config: TuneConfig) -> None:
    """Record the configuration of a new study; compare that of a study that exists.

    Raises:
        RunFolderError: If another configuration is recorded, with the keys that differ.
    """
    here = {key: value for key, value in flatten(plain(config)).items() if key not in STUDY_RESUME_KEYS}
    there = study.user_attrs.get("config")
    if there is None:
        study.set_user_attr("config", here)
    elif there != here:
        differing = join_truncated(differences(there, here))
        raise RunFolderError(f"{config.study}: holds another study: {differing}; choose another folder")


def count_states(study: "Study") -> Counter[str]:
    """Count the trials in each of Optuna's states, such as "COMPLETE"."""
    return Counter(trial.state.name for trial in study.get_trials(deepcopy=False))


def count_started(study: "Study") -> int:
    """Count the trials that have started and do not wait to be repeated; repetitions of a trial count once."""
    numbers = {trial.user_attrs.get("trial", trial.number) for trial in study.get_trials(deepcopy=False)}
    return len(numbers) - count_states(study)["WAITING"]


def count_failed(study: "Study") -> int:
    """Count the trials whose values caused an error; others were interrupted."""
    failed = [trial.user_attrs for trial in study.get_trials(deepcopy=False) if trial.state.name == "FAIL"]
    return len({attributes["trial"] for attributes in failed if "reason" in attributes})


def run_trial(trial: "Trial", config: TuneConfig, shared: Sequence[str]) -> float:
    """Draw the values of a trial, train with them, and return the metric on validation images.

    A trial that a signal or an error not due to its values interrupts is queued, to be repeated in the same folder.

    Raises:
        TrainingError: If the values of the trial cause an error; the study continues.
    """
    import optuna  # noqa: PLC0415
    import torch  # noqa: PLC0415

    number = trial.user_attrs.get("trial", trial.number)  # that of the first attempt
    trial.set_user_attr("trial", number)
    seed = derived_seed(config.tuning.seed, "trial", number) % 2**32  # a resumed study draws the same values
    trial.study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=config.tuning.startup_trials)
    values = write_overrides({key: suggest(trial, key, entry) for key, entry in config.search_space.items()})
    log.info("trial %d: %s", number, " ".join(values))
    try:
        value = train_trial(trial, config, [*shared, *values], config.study / "trials" / str(number))
    except (*FAILURES, torch.OutOfMemoryError, optuna.TrialPruned) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        trial.set_user_attr("reason", reason)
        log.info("trial %d: %s", number, reason)
        raise error if isinstance(error, optuna.TrialPruned) else TrainingError(reason) from error
    except BaseException as error:
        trial.study.enqueue_trial(trial.params, user_attrs=trial.user_attrs)
        if not isinstance(error, Exception | KeyboardInterrupt):  # Optuna ends the trial for these
            trial.study.tell(trial, state=optuna.trial.TrialState.FAIL)
        raise
    log.info("trial %d: %s %.4g", number, config.tuning.metric, value)
    return value


def suggest(trial: "Trial", key: str, entry: SearchedKey) -> Value:
    """Draw a value for a trial."""
    if isinstance(entry, Choice):
        return trial.suggest_categorical(key, entry.choices)
    if entry.type == "int":
        return trial.suggest_int(key, int(entry.low), int(entry.high), log=entry.log)
    return trial.suggest_float(key, entry.low, entry.high, log=entry.log)


def train_trial(trial: "Trial", config: TuneConfig, overrides: Sequence[str], folder: Path) -> float:
    """Train once per seed and return the mean of the metric; only the first training may be pruned."""
    from breakhis_pl.data.dataset import Subset  # noqa: PLC0415
    from breakhis_pl.train import train  # noqa: PLC0415 - imports torch

    train_config, results = validate(TrainConfig, hydra.compose("train", list(overrides))), []
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

    Raises:
        DataError: In the first epoch, if there are no validation images.
    """
    import optuna  # noqa: PLC0415
    from lightning.pytorch.callbacks import LambdaCallback  # noqa: PLC0415

    def report(trainer: Any, _module: Any) -> None:
        trial.report(float(trainer.callback_metrics[metric]), step=trainer.current_epoch + 1)

    def prune(trainer: Any, _module: Any) -> None:
        if not trainer.datamodule.evaluated_subsets:
            raise DataError(f"tuning.metric={metric}: needs validation images; set data.val_fraction=0.2")
        if trial.should_prune():
            raise optuna.TrialPruned(f"pruned after epoch {trainer.current_epoch}")

    return LambdaCallback(on_train_epoch_end=report, on_train_epoch_start=prune)


def read_result(run: RunFolder, metric: str) -> float:
    """Return a metric of the selected epoch of a finished run."""
    with run.history_csv.open(encoding="utf-8", newline="") as file:
        values = [float(row[metric] or "nan") for row in csv.DictReader(file)]
    selection = run.read().selection
    return values[-1 if selection is None else selection["best_epoch"] - 1]


def finish_trial(study: "Study", trial: "FrozenTrial", config: TuneConfig, shared: Sequence[str]) -> None:
    """Remove the checkpoints of a finished trial, write the results, and stop a study that is complete.

    Raises:
        TrainingError: If the first three trials failed.
    """
    if not config.tuning.keep_checkpoints:
        for checkpoints in (config.study / "trials" / str(trial.user_attrs["trial"])).glob("**/checkpoints"):
            shutil.rmtree(checkpoints, ignore_errors=True)
    table = study.trials_dataframe(("number", "state", "value", "duration", "params", "user_attrs"))
    table["duration"] = table["duration"].dt.total_seconds()
    write_text(config.study / "study.csv", table.to_csv(index=False))
    states = count_states(study)
    if states["COMPLETE"] > 0:
        write_best(study, config, shared)
        draw_figures(study, config.study, config.tuning.metric)
    elif states["PRUNED"] == 0 and count_failed(study) >= min(MIN_FAILURES, config.tuning.n_trials):
        raise TrainingError(f"all trials failed, the last one with: {trial.user_attrs.get('reason')}")
    if count_started(study) >= config.tuning.n_trials:
        study.stop()


def write_best(study: "Study", config: TuneConfig, shared: Sequence[str]) -> None:
    """Write the best trial as an experiment file: what differs from the defaults."""
    overrides = [*shared, *write_overrides(study.best_params)]
    default, chosen = (hydra.compose("train", each, return_hydra_config=True) for each in ([], overrides))
    options = chosen.hydra.runtime.choices.items() - default.hydra.runtime.choices.items()
    groups = {group: option for group, option in sorted(options) if group != "experiment"}
    start = flatten(OmegaConf.to_container(hydra.compose("train", write_overrides(groups))))  # type: ignore[arg-type]
    content = OmegaConf.create({"defaults": [{f"override /{group}": option} for group, option in groups.items()]})
    for key, value in flatten(OmegaConf.to_container(hydra.compose("train", overrides))).items():  # type: ignore[arg-type]
        if key not in start or start[key] != value:
            OmegaConf.update(content, key, value)
    header = f"# @package _global_\n# {config.tuning.metric} {study.best_value:.6g} on validation images\n"
    path = config.study / "experiment" / "best_trial.yaml"
    path.parent.mkdir(exist_ok=True)
    write_text(path, header + OmegaConf.to_yaml(content))


def draw_figures(study: "Study", folder: Path, metric: str) -> None:
    """Save history.png, slices.png and importances.png as Optuna draws them."""
    import matplotlib.pyplot as plt  # noqa: PLC0415
    from optuna.importance import PedAnovaImportanceEvaluator  # noqa: PLC0415
    from optuna.visualization import matplotlib as plots  # noqa: PLC0415

    figures: dict[str, Any] = {"history": plots.plot_optimization_history, "slices": plots.plot_slice}
    if count_states(study)["COMPLETE"] >= MIN_FOR_IMPORTANCES:
        evaluator = PedAnovaImportanceEvaluator(target_quantile=0.2)  # 0.1, the default, is one trial of ten
        figures["importances"] = partial(plots.plot_param_importances, evaluator=evaluator)
    for name, plot in figures.items():
        # experimental functions and axes of a single value warn; Optuna sets matplotlib's style
        with warnings.catch_warnings(action="ignore"), plt.rc_context(), atomic_write(folder / f"{name}.png") as path:
            plot(study, target_name=metric)
            plt.savefig(path, format="png", dpi=150, bbox_inches="tight")
            plt.close()


def log_end(study: "Study", config: TuneConfig) -> None:
    """Log the state of a study, and the command that trains its best configuration."""
    states = count_states(study)
    counts = ", ".join(f"{n} {state.lower()}" for state, n in states.items())
    log.info("%s: %s", config.study, counts or "no trials")
    if states["RUNNING"] > 0:
        log.info("a running trial whose process was killed is repeated by the same command after %d s", GRACE_S)
    if states["COMPLETE"] > 0:
        values = study.best_trial.user_attrs["trial"], config.tuning.metric, study.best_value, states["COMPLETE"]
        log.info("best: trial %d, %s %.4g on validation images (optimistic: it is the best of %d)", *values)
        path = json.dumps(f"file://{config.study.absolute()}", ensure_ascii=False)
        command = shlex.join(["uv", "run", "train.py", f"hydra.searchpath=[{path}]", "experiment=best_trial"])
        log.info("train it and evaluate it on test images with:\n%s", command)
