from dataclasses import replace

import pytest

from breakhis_pl.errors import ShapeError
from breakhis_pl.tuning.figures import history_figure, importance_figure, slices_figure
from breakhis_pl.tuning.page import study_html
from breakhis_pl.tuning.space import Dimension, Parameters, Value
from breakhis_pl.tuning.trials import StudySummary, TrialRow, study_csv

SPACE = (
    Dimension("optimizer.lr", "float", low=1e-4, high=1e-1, log=True),
    Dimension("model.dropout", "float", low=0, high=0.5),
    Dimension("optimizer", "choice", choices=("adamax", "<b>sgd</b>", None, True)),
    Dimension("trainer.max_epochs", "int", low=1, high=5),
)


def values(lr: float, dropout: float, optimizer: Value, epochs: int) -> Parameters:
    return {"optimizer.lr": lr, "model.dropout": dropout, "optimizer": optimizer, "trainer.max_epochs": epochs}


TRIALS = (
    TrialRow(0, "complete", 0.7, {1: 0.9, 2: 0.7}, 3.0, values(0.001, 0.1, "adamax", 2)),
    TrialRow(1, "complete", 0.4, {1: 0.4}, 2.0, values(0.01, 0.2, "<b>sgd</b>", 1)),
    TrialRow(2, "pruned", 0.95, {1: 0.95}, 1.0, values(0.1, 0.3, None, 4), "pruned after epoch 1"),
    TrialRow(3, "failed", None, {}, 1.0, values(0.1, 0.4, True, 4), "the loss is nan <i>"),
    TrialRow(4, "running", None, {1: 0.1}, None, {"optimizer.lr": 0.1}),
)
STUDY = StudySummary("first & last", "val_loss", True, 9, SPACE, TRIALS, {"optimizer.lr": 0.75, "model.dropout": 0.25})


def test_the_best_trial_is_the_complete_one_with_the_least_loss_or_the_most_of_everything_else() -> None:
    assert STUDY.best is TRIALS[1]
    assert replace(STUDY, metric="val_auroc", is_minimized=False).best is TRIALS[0]
    assert replace(STUDY, trials=TRIALS[2:]).best is None


def test_the_page_says_what_there_is_and_that_the_best_value_is_optimistic() -> None:
    html = study_html(STUDY, command="python train.py experiment=best_trial", note="synthetic images, no tissue")
    assert "5 of 9 trials: 2 complete, 1 pruned, 1 failed, 1 running." in html
    assert "The best value is optimistic." in html
    assert "Test images were not looked at by any trial" in html
    assert "Synthetic images, no tissue." in html
    assert "<pre>python train.py experiment=best_trial</pre>" in html
    assert "Trial 1: val_loss 0.4000" in html
    assert "pruned after epoch 1" in html
    assert html.count("<img ") == 3
    assert "http" not in html.replace("http-equiv", "")


def test_texts_from_elsewhere_are_escaped() -> None:
    html = study_html(STUDY, command="", note=None)
    assert "<i>" not in html
    assert "<b>sgd" not in html
    assert "&lt;b&gt;sgd" in html
    assert "first &amp; last" in html


def test_a_study_without_a_complete_trial_has_a_page() -> None:
    for trials in ((), TRIALS[3:], TRIALS[2:]):
        html = study_html(replace(STUDY, trials=trials, importances={}), command="x", note=None)
        assert "No trial is complete yet." in html
        assert "optimistic" not in html
        assert "<pre>" not in html
        assert "From 10 complete trials on." in html


def test_study_csv_has_a_row_per_trial_with_all_digits() -> None:
    lines = study_csv(STUDY).splitlines()
    assert lines[0] == (
        "number,state,val_loss,epochs,seconds,reason,optimizer.lr,model.dropout,optimizer,trainer.max_epochs"
    )
    assert lines[1] == "0,complete,0.7,2,3.0,,0.001,0.1,adamax,2"
    assert lines[4] == "3,failed,,0,1.0,the loss is nan <i>,0.1,0.4,true,4"
    assert lines[5] == "4,running,,1,,,0.1,,,"


def test_the_best_so_far_falls_with_the_trials() -> None:
    (axes,) = history_figure(STUDY).axes
    (steps,) = [line for line in axes.lines if line.get_label() == "best so far"]
    assert list(steps.get_xdata()) == [0, 1, 4]
    assert list(steps.get_ydata()) == [0.7, 0.4, 0.4]
    (axes,) = history_figure(replace(STUDY, metric="val_auroc", is_minimized=False)).axes
    (steps,) = [line for line in axes.lines if line.get_label() == "best so far"]
    assert list(steps.get_ydata()) == [0.7, 0.7, 0.7]


def test_each_key_has_a_panel_on_its_own_scale() -> None:
    axes = slices_figure(STUDY).axes
    assert [each.get_xlabel() for each in axes[:4]] == [each.key for each in SPACE]
    assert [each.get_xscale() for each in axes[:4]] == ["log", "linear", "linear", "linear"]
    assert [label.get_text() for label in axes[2].get_xticklabels()] == ["adamax", "<b>sgd</b>", "null", "true"]


def test_figures_of_nothing_are_refused() -> None:
    for figure in (history_figure, slices_figure):
        with pytest.raises(ShapeError, match="has no trial with a value"):
            figure(replace(STUDY, trials=TRIALS[3:]))
    with pytest.raises(ShapeError, match="no importances"):
        importance_figure({})
