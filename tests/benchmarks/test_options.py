from benchmarks.options import OPTIONS, best_of, table
from breakhis_pl import composition

PLAIN = {"auroc": 0.8, "balanced_accuracy": 0.7, "weighted_f1": 0.75, "log_loss": 0.6}


def better(by: float, **own: float) -> list[dict[str, float]]:
    """Two seeds whose values are on the mean better by so much."""
    values = {name: value - by if name == "log_loss" else value + by for name, value in PLAIN.items()} | own
    return [{name: value + change for name, value in values.items()} for change in (-0.05, 0.05)]


def test_the_best_option_is_better_in_everything_and_has_the_lowest_log_loss() -> None:
    found = {"report": better(0.0), "a": better(0.05), "b": better(0.06), "c": better(0.1, auroc=0.79)}
    assert best_of(found) == "b"
    assert best_of({"report": better(0.0), "c": found["c"]}) == "report"


def test_the_table_gives_means_over_seeds_and_what_changed() -> None:
    lines = table({"report": better(0.0), "a": better(0.05)}).splitlines()
    assert lines[2:] == [
        "| report | 2 | 0.800 | 0.700 | 0.750 | 0.600 |",
        "| a | 2 | 0.850 (+0.050) | 0.750 (+0.050) | 0.800 (+0.050) | 0.550 (-0.050) |",
    ]


def test_every_option_composes() -> None:
    composition.register()
    composed = [composition.compose_checked("train", ["model.weights=file.pth", *each]) for each in OPTIONS.values()]
    kinds = {repr(config) for config in composed}
    assert len(kinds) == len(OPTIONS)


def test_the_experiment_is_the_option_that_was_chosen() -> None:
    composition.register()
    chosen, experiment = (
        composition.compose_checked("train", list(overrides))
        for overrides in (OPTIONS["mixup, ema, strong"], ["experiment=best"])
    )
    assert experiment == chosen
    assert experiment != composition.compose_checked("train", [])
