"""study.html: a study in one file, to open offline while it runs and afterwards; without torch and Optuna."""

from collections.abc import Iterator

from breakhis_pl.evaluation.pages import Column, Table, picture_of, render
from breakhis_pl.evaluation.sections import Section, Warnings
from breakhis_pl.tuning.figures import history_figure, importance_figure, slices_figure
from breakhis_pl.tuning.space import Value
from breakhis_pl.tuning.trials import FEWEST_FOR_IMPORTANCES, StudySummary, TrialRow

STUDY_CSV = "study.csv"
STUDY_HTML = "study.html"

TEMPLATE = "study.html.j2"


def study_html(study: StudySummary, *, command: str, note: str | None) -> str:
    """The page as HTML; every text in it is escaped.

    Args:
        study: So far.
        command: What trains the best configuration.
        note: What every figure must say about the images.
    """
    sections = [*_result(study), *_pictures(study, note), _trials(study)]
    return render(
        TEMPLATE,
        title=study.name,
        lead=_lead(study),
        warnings=_warnings(study, note),
        sections=sections,
        command=command if study.best is not None else None,
        toc=[(section.key, section.heading) for section in sections],
    )


def _lead(study: StudySummary) -> str:
    better = "less is better" if study.is_minimized else "more is better"
    counts = study.counts() or "none yet"
    return f"{len(study.trials)} of {study.n_trials} trials: {counts}. Searched by {study.metric}: {better}."


def _warnings(study: StudySummary, note: str | None) -> Warnings:
    found = []
    if note is not None:
        found.append((f"{note[:1].upper()}{note[1:]}.", "No figure here says anything about BreakHis as published."))
    if study.best is not None:
        n_complete = len(study.complete)
        found.append(
            (
                "The best value is optimistic.",
                f"It is the best of {n_complete} on the same validation images, chosen because it is (the winner's "
                "curse); the same configuration is likely to do worse on other images. Test images were not looked at "
                "by any trial: evaluate the configuration that is chosen on them once, at the end.",
            )
        )
    return found


def _result(study: StudySummary) -> Iterator[Section]:
    best = study.best
    if best is None:
        yield Section("best", "Best trial", points=["No trial is complete yet."])
        return
    rows = [[each.key, shown(best.parameters.get(each.key))] for each in study.space]
    table = Table("Its values", [Column("key"), Column("value", is_number=True)], rows)
    point = f"Trial {best.number}: {study.metric} {best.value:.4f} on the validation images."
    yield Section("best", "Best trial", points=[point], tables=[table])


def _pictures(study: StudySummary, note: str | None) -> Iterator[Section]:
    if any(each.value is not None for each in study.trials):
        best = "" if study.best is None else f", best {study.best.value:.4f} in trial {study.best.number}"
        alt = f"{study.metric} of {len(study.trials)} trials{best}"
        yield Section(
            "history",
            "History",
            picture=picture_of(history_figure(study, note=note), alt=alt),
            caption="A pruned trial stands at the value of its last epoch.",
        )
    if study.importances:
        shares = sorted(study.importances.items(), key=lambda pair: -pair[1])
        alt = "Importance: " + ", ".join(f"{key} {share:.0%}" for key, share in shares)
        yield Section(
            "importances",
            "Importances",
            picture=picture_of(importance_figure(study.importances, note=note), alt=alt),
            caption=(
                "How much the values of the best fifth of the complete trials differ from those of all of them "
                f"(PED-ANOVA, Watanabe et al. 2023). Of {len(study.complete)} trials this is a hint, no measurement."
            ),
        )
    else:
        yield Section("importances", "Importances", points=[f"From {FEWEST_FOR_IMPORTANCES} complete trials on."])
    if any(each.value is not None for each in study.trials):
        yield Section(
            "slices",
            "Value along each key",
            picture=picture_of(
                slices_figure(study, note=note), alt=f"{study.metric} along each of {len(study.space)} keys"
            ),
            caption="All other keys differ as well from point to point.",
        )


def _trials(study: StudySummary) -> Section:
    keys = [each.key for each in study.space]
    columns = [
        *(Column("trial"), Column("state")),
        *(Column(name, is_number=True) for name in (study.metric, "epochs", "seconds", *keys)),
        Column("reason"),
    ]
    rows = [_row(each, keys) for each in study.trials]
    best = None if study.best is None else study.best.number
    emphasized = [place for place, each in enumerate(study.trials) if each.number == best]
    note = f"All digits are in {STUDY_CSV}; the run folder of a trial is trials/<number>."
    return Section(
        "trials", "Trials", tables=[Table("All trials; the best one in bold", columns, rows, note, emphasized)]
    )


def _row(trial: TrialRow, keys: list[str]) -> list[str | None]:
    return [
        *(str(trial.number), trial.state),
        None if trial.value is None else f"{trial.value:.4f}",
        str(len(trial.epochs)),
        None if trial.seconds is None else f"{trial.seconds:.0f}",
        *(shown(trial.parameters[key]) if key in trial.parameters else None for key in keys),
        trial.reason or None,
    ]


def shown(value: Value) -> str:
    """A value as a command line takes it, floats with four digits.

    Example:
        >>> shown(0.00123456), shown(None), shown(True)
        ('0.001235', 'null', 'true')
    """
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.4g}"
        case _:
            return str(value)
