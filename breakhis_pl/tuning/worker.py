"""Trials, one after the other, until the study has as many as it is to have."""

import logging
import math
import shutil
import time
from pathlib import Path
from statistics import fmean

from optuna.trial import Trial

from breakhis_pl import run
from breakhis_pl.data.breakhis import Subset
from breakhis_pl.errors import ConfigurationError, Pruned, TrainingError
from breakhis_pl.evaluation.figures import INCOMPLETE_NOTE, SYNTHETIC_NOTE
from breakhis_pl.evaluation.metrics import point_values
from breakhis_pl.evaluation.predictions import read_predictions
from breakhis_pl.evaluation.results import PREDICTIONS_CSV
from breakhis_pl.files import write_text
from breakhis_pl.run_json import RUN_JSON, read_run
from breakhis_pl.training.checkpoints import LAST_CHECKPOINT
from breakhis_pl.tuning.best import command_for_best, write_best
from breakhis_pl.tuning.page import STUDY_CSV, STUDY_HTML, study_html
from breakhis_pl.tuning.plan import Plan
from breakhis_pl.tuning.reporting import ReportEpochs
from breakhis_pl.tuning.space import overrides_of
from breakhis_pl.tuning.study import TrialStore
from breakhis_pl.tuning.trials import StudySummary, study_csv

log = logging.getLogger(__name__)

TRIALS = "trials"
"""Folder of the trials' run folders, inside that of the study."""

FEWEST_FAILURES = 3
"""So many trials, all failed, end a study: the next one would fail as well."""

_METRIC_OF_ROWS = {
    "val_loss": "log_loss",
    "val_balanced_accuracy": "balanced_accuracy",
    "val_auroc": "auroc",
    "val_accuracy": "accuracy",
}


def tune(plan: Plan) -> None:
    """Runs trials until there are as many as asked for, or the time is over.

    Args:
        plan: The study, checked.

    Raises:
        TrainingError: If all trials fail.
        BreakHisError: If something is wrong that every trial would meet: data, device, disk. The trial then goes on
            when the command is given again.
        KeyboardInterrupt: If it was interrupted; likewise.
    """
    started = time.monotonic()
    store = TrialStore(plan)
    searched = ", ".join(each.key for each in plan.space)
    log.info("study %s: %d trials by %s, over %s", plan.folder, plan.tuning.n_trials, plan.tuning.metric, searched)
    study = None
    while plan.tuning.timeout_s is None or time.monotonic() - started < plan.tuning.timeout_s:
        with store.taken() as trial:
            if trial is None:
                break
            _run_trial(plan, store, trial)
        study = _write(plan, store)
        _check_some_succeed(study)
    _say_end(plan, _write(plan, store) if study is None else study)


def _run_trial(plan: Plan, store: TrialStore, trial: Trial) -> None:
    """Trains with a trial's values and tells the study what it gave."""
    values = " ".join(overrides_of(trial.params))
    log.info("trial %d of %d: %s", trial.number, plan.tuning.n_trials, values)
    folder = plan.folder / TRIALS / str(trial.number)
    try:
        value = _value(plan, trial, folder)
    except Pruned as end:
        store.end(trial, pruned=True, reason=str(end))
        log.info("trial %d %s", trial.number, end)
    except (TrainingError, ConfigurationError) as error:  # of these values; anything else would meet every trial
        store.end(trial, pruned=False, reason=str(error))
        log.warning("trial %d failed: %s", trial.number, error)
    else:
        store.complete(trial, value)
        log.info("trial %d: %s %.4f", trial.number, plan.tuning.metric, value)
    if not plan.tuning.keep_checkpoints:
        for place in folder.glob(f"**/{LAST_CHECKPOINT.parent}"):
            shutil.rmtree(place, ignore_errors=True)


def _value(plan: Plan, trial: Trial, folder: Path) -> float:
    """Mean value of a trial's trainings; only the first one may be pruned, before the others start."""
    n_seeds, values = plan.tuning.seeds_per_trial, []
    for index in range(n_seeds):
        config = plan.trial_config(trial.params)
        config.seed += index
        place = folder if n_seeds == 1 else folder / f"seed{config.seed}"
        callbacks = [ReportEpochs(trial, plan.tuning.metric)] if index == 0 else []
        status = read_run(place).get("status") if (place / RUN_JSON).exists() else None
        if status == "pruned":  # its process was killed before it could say so
            raise Pruned(str(read_run(place).get("error")))
        if status is None:
            run.train(config, place, callbacks=callbacks, evaluated=(Subset.VAL,))
        elif status != "finished":
            run.resume(config, place, callbacks=callbacks)
        values.append(value_of_run(place, plan.tuning.metric))
    return fmean(values)


def value_of_run(folder: Path, metric: str) -> float:
    """Value of a metric of a run's validation images, from its rows.

    Args:
        folder: Of a run that is finished.
        metric: One of `config.MONITORS`.

    Raises:
        TrainingError: If it is not defined for these images.
    """
    value = point_values(read_predictions(folder / Subset.VAL / PREDICTIONS_CSV))[_METRIC_OF_ROWS[metric]]
    if value is None or not math.isfinite(value):
        raise TrainingError(f"{metric} of {folder} is not defined; take tuning.metric=val_loss")
    return value


def _check_some_succeed(study: StudySummary) -> None:
    """Stops a study of which nothing comes.

    Raises:
        TrainingError: If all trials that have ended have failed.
    """
    n_failed, n_ended = study.count("failed"), len(study.trials) - study.count("running")
    if n_failed == n_ended and n_failed >= min(FEWEST_FAILURES, study.n_trials):
        last = [each.reason for each in study.trials if each.state == "failed"][-1]
        raise TrainingError(
            f"all {n_failed} trials of study {study.name} failed, the last one: {last}\n"
            "mend that, or narrow the space, and start a study in another folder"
        )


def _write(plan: Plan, store: TrialStore) -> StudySummary:
    """Writes study.csv, study.html and the best trial's experiment file."""
    with store.alone():
        study = store.summary()
        write_text(plan.folder / STUDY_CSV, study_csv(study))
        if study.best is not None:
            write_best(plan, study, study.best)
        page = study_html(study, command=command_for_best(plan.folder), note=_note(plan))
        write_text(plan.folder / STUDY_HTML, page)
    return study


def _note(plan: Plan) -> str | None:
    """What every figure must say about the images."""
    for path in sorted((plan.folder / TRIALS).glob(f"**/{RUN_JSON}")):
        facts = read_run(path.parent)["data"]
        if facts.get("synthetic"):
            return SYNTHETIC_NOTE
        return None if facts.get("complete") else INCOMPLETE_NOTE
    return None


def _say_end(plan: Plan, study: StudySummary) -> None:
    """Says what there is, and what to do with it."""
    log.info("study %s: %s of %d trials", plan.folder, study.counts() or "none", plan.tuning.n_trials)
    log.info("page: %s", plan.folder / STUDY_HTML)
    if study.best is not None:
        log.info(
            "best: trial %d, %s %.4f on validation images, which is optimistic; train anew and evaluate on test by\n%s",
            *(study.best.number, study.metric, study.best.value, command_for_best(plan.folder)),
        )
