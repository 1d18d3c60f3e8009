"""A study in its database: several processes take trials from it, and what a killed one left is taken over."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import optuna
from optuna.exceptions import OptunaError
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from breakhis_pl.errors import ConfigurationError, StorageError
from breakhis_pl.files import clear_leftovers
from breakhis_pl.locks import locked
from breakhis_pl.randomness import derived_seed
from breakhis_pl.tuning.plan import Plan, name_of_study
from breakhis_pl.tuning.space import Dimension
from breakhis_pl.tuning.trials import FEWEST_FOR_IMPORTANCES, State, StudySummary, TrialRow

log = logging.getLogger(__name__)

STUDY_DB = "study.db"
"""Inside the folder of a study, unless tuning.storage names another database."""

MOST_STARTS = 3
"""How often a trial may be started before it counts as one that kills its process."""

_TARGET_QUANTILE = 0.2
_WAIT_FOR_DATABASE_S = 60.0
_WAIT_FOR_OTHERS_S = 300.0
_STATES: Mapping[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "running",
}


class TrialStore:
    """The trials of a study.

    One process at a time takes a trial or ends one; whoever has taken one holds a lock on it that the system frees when
    the process ends, however it ends. So a trial that runs in no process is noticed at once, and taken over.

    Args:
        plan: The study.

    Raises:
        BreakHisError: If the folder holds another study, or folder or database cannot be used.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._has_locks = True
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        plan.folder.mkdir(parents=True, exist_ok=True)
        with self.alone():
            clear_leftovers(plan.folder, of="*")
            name = name_of_study(plan)
            with _database_explained(plan):
                self._study = optuna.create_study(
                    storage=_storage(plan),
                    study_name=name,
                    direction=StudyDirection.MINIMIZE if plan.is_minimized else StudyDirection.MAXIMIZE,
                    pruner=_pruner(plan),
                    sampler=_sampler(plan, 0),
                    load_if_exists=True,
                )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps the study's other processes waiting until the block ends.

        Raises:
            StorageError: If they do not come to an end.
        """
        give_up = time.monotonic() + _WAIT_FOR_OTHERS_S
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(locked(self.plan.folder / ".study.lock", say=self._note_lack_of_locks))
                    break
                except BlockingIOError:
                    if time.monotonic() > give_up:
                        raise StorageError(
                            f"another process has kept {self.plan.folder} for {_WAIT_FOR_OTHERS_S:.0f} s; end it"
                        ) from None
                    time.sleep(0.1)
            yield

    @contextmanager
    def taken(self) -> Iterator[Trial | None]:
        """A trial for this process alone: one that a killed process left, else a new one; None where none is left."""
        with ExitStack() as stack:
            with self.alone(), _database_explained(self.plan):
                trial = self._left_behind(stack) or self._new(stack)
                if trial is not None:
                    trial.set_user_attr("starts", trial.user_attrs.get("starts", 0) + 1)
            yield trial

    def complete(self, trial: Trial, value: float) -> None:
        """Says that a trial has come to its end."""
        self._tell(trial, TrialState.COMPLETE, value)

    def end(self, trial: Trial, *, pruned: bool, reason: str) -> None:
        """Says that a trial was pruned or has failed, and why."""
        trial.set_user_attr("reason", reason[:2000])
        self._tell(trial, TrialState.PRUNED if pruned else TrialState.FAIL, None)

    def _tell(self, trial: Trial, state: TrialState, value: float | None) -> None:
        with self.alone(), _database_explained(self.plan):
            self._study.tell(trial, value, state)

    def _left_behind(self, stack: ExitStack) -> Trial | None:
        """A trial that runs in no process, now this one's; those that keep killing their process are given up."""
        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not self._takes(stack, frozen.number):
                continue
            if not self._has_locks:
                log.warning("trial %d may be running elsewhere or cut: without locks nobody can tell", frozen.number)
                continue
            if frozen.user_attrs.get("starts", 0) < MOST_STARTS:
                log.info("trial %d was cut, and goes on here", frozen.number)
                return self._with_parameters(Trial(self._study, frozen._trial_id))
            trial = Trial(self._study, frozen._trial_id)
            trial.set_user_attr("reason", f"its process ended {MOST_STARTS} times without a word")
            self._study.tell(trial, state=TrialState.FAIL)
        return None

    def _new(self, stack: ExitStack) -> Trial | None:
        if len(self._study.get_trials(deepcopy=False)) >= self.plan.tuning.n_trials:
            return None
        trial = self._study.ask()
        self._takes(stack, trial.number)
        return self._with_parameters(trial)

    def _with_parameters(self, trial: Trial) -> Trial:
        """A trial with its values, which follow the seed, its number and the trials before it."""
        self._study.sampler = _sampler(self.plan, trial.number)
        for each in self.plan.space:
            _suggest(trial, each)
        return trial

    def _takes(self, stack: ExitStack, number: int) -> bool:
        """Whether a trial is this process's own from now on, until the stack is unwound."""
        path = self.plan.folder / f".trial-{number}.lock"
        try:
            stack.enter_context(locked(path, say=self._note_lack_of_locks))
        except BlockingIOError:
            return False
        return True

    def _note_lack_of_locks(self, sentence: str) -> None:
        if self._has_locks:
            log.warning("%s", sentence)
        self._has_locks = False

    def summary(self) -> StudySummary:
        """The study so far."""
        trials = self._study.get_trials(deepcopy=False)
        return StudySummary(
            name=self.plan.folder.absolute().name,
            metric=self.plan.tuning.metric,
            is_minimized=self.plan.is_minimized,
            n_trials=self.plan.tuning.n_trials,
            space=self.plan.space,
            trials=[_row(each) for each in trials],
            importances=self._importances(trials),
        )

    def _importances(self, trials: list[FrozenTrial]) -> dict[str, float]:
        complete = [each for each in trials if each.state == TrialState.COMPLETE]
        if len(complete) < FEWEST_FOR_IMPORTANCES or len({each.value for each in complete}) == 1:
            return {}
        evaluator = PedAnovaImportanceEvaluator(target_quantile=_TARGET_QUANTILE)
        return {
            str(key): float(share) for key, share in get_param_importances(self._study, evaluator=evaluator).items()
        }


def _row(trial: FrozenTrial) -> TrialRow:
    seconds = None if trial.duration is None else trial.duration.total_seconds()
    return TrialRow(
        number=trial.number,
        state=_STATES[trial.state],
        value=trial.value,
        epochs=dict(trial.intermediate_values),
        seconds=seconds,
        parameters=dict(trial.params),
        reason=str(trial.user_attrs.get("reason", "")),
    )


def _storage(plan: Plan) -> RDBStorage:
    url = plan.tuning.storage
    if url is None:
        return RDBStorage(
            f"sqlite:///{(plan.folder / STUDY_DB).absolute()}",
            engine_kwargs={"connect_args": {"timeout": _WAIT_FOR_DATABASE_S}},
        )
    return RDBStorage(url)


@contextmanager
def _database_explained(plan: Plan) -> Iterator[None]:
    """Says what to do where the database cannot be used.

    Raises:
        StorageError: In place of the database's own error.
        ConfigurationError: If a URL is none.
    """
    where = plan.tuning.storage or str(plan.folder / STUDY_DB)
    try:
        yield
    except (SQLAlchemyError, OptunaError) as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        if plan.tuning.storage is None:
            raise StorageError(f"the study's database {where} cannot be used: {cause}") from error
        raise StorageError(f"tuning.storage={where} cannot be used: {cause}") from error
    except ImportError as error:
        raise ConfigurationError(f"tuning.storage={where} needs a driver that is not installed: {error}") from error


def _suggest(trial: Trial, each: Dimension) -> None:
    """Draws a trial's value of a key, if it has none yet."""
    match each.kind:
        case "float":
            trial.suggest_float(each.key, each.low, each.high, log=each.log)
        case "int":
            trial.suggest_int(each.key, int(each.low), int(each.high), log=each.log)
        case "choice":
            trial.suggest_categorical(each.key, each.choices)
        case _:
            raise ConfigurationError(f"a dimension of kind {each.kind}; expected float, int or choice")


def _sampler(plan: Plan, number: int) -> BaseSampler:
    """The sampler of one trial: a study that was cut draws as if it never was, and two processes draw differently."""
    seed = derived_seed(plan.tuning.seed, "trial", number) % 2**32
    match plan.tuning.sampler:
        case "tpe":
            return TPESampler(seed=seed, n_startup_trials=plan.tuning.startup_trials)
        case "random":
            return RandomSampler(seed=seed)
        case other:
            raise ConfigurationError(f"tuning.sampler={other} is not possible; expected tpe or random")


def _pruner(plan: Plan) -> BasePruner:
    tuning = plan.tuning
    match tuning.pruner:
        case "median":
            return MedianPruner(n_startup_trials=tuning.warmup_trials, n_warmup_steps=tuning.warmup_epochs)
        case "hyperband":
            return HyperbandPruner(min_resource=tuning.warmup_epochs, max_resource=plan.config.trainer.max_epochs)
        case "none":
            return NopPruner()
        case other:
            raise ConfigurationError(f"tuning.pruner={other} is not possible; expected median, hyperband or none")
