import pytest

from benchmarks.goals import Goal, goals, judge, plain
from benchmarks.plan import cpu_plan, cuda_plan
from benchmarks.table import figures_table, goals_table, number
from benchmarks.timing import Measurement

HIGH = Goal("cpu", "store", "share", at_least=0.9)
LOW = Goal("cpu", "start", "help", at_most=1.0)


def results(subject: str, name: str, *values: float) -> dict[str, list[Measurement]]:
    return {subject: [Measurement("other", "", (0.0,)), Measurement(name, "", values)]}


@pytest.mark.parametrize(
    ("goal", "values", "outcome"),
    [
        (HIGH, (0.1, 0.9, 0.95), "met"),
        (HIGH, (0.8, 0.89, 2.0), "missed"),
        (LOW, (9.0, 1.0, 0.1), "met"),
        (LOW, (0.1, 1.01, 1.2), "missed"),
    ],
)
def test_the_median_decides(goal: Goal, values: tuple[float, ...], outcome: str) -> None:
    assert judge(goal, "cpu", results(goal.subject, goal.figure, *values)) == outcome


def test_goals_of_another_device_say_that_they_were_not_measured() -> None:
    gpu = Goal("gpu", "store", "share", at_least=0.9)
    assert judge(gpu, "cpu", results("store", "share", 1.0)) == "not measured, needs --plan gpu"
    assert judge(HIGH, "cpu", {}) == "not measured"


def test_tiny_sizes_are_not_judged() -> None:
    assert judge(HIGH, "cpu", results("store", "share", 1.0), is_tiny=True) == "tiny sizes, not judged"


def test_a_judged_goal_has_its_bound_and_its_figure() -> None:
    facts = plain(HIGH, "cpu", results("store", "share", 0.5), is_tiny=False)
    assert (facts["goal"], facts["median"], facts["outcome"]) == (">= 0.9", 0.5, "missed")


def test_every_goal_has_one_bound_and_belongs_to_a_plan() -> None:
    everything = list(goals())
    assert len({(goal.plan, goal.subject, goal.figure) for goal in everything}) == len(everything)
    assert all((goal.at_least is None) != (goal.at_most is None) for goal in everything)
    assert {goal.plan for goal in everything} == {cpu_plan().name, cuda_plan().name}


def test_the_tables_show_spread_and_outcome() -> None:
    found = results("store", "share", 0.5, 0.7, 0.6)
    figures, judged = figures_table(found), goals_table([HIGH], "cpu", found, is_tiny=False)
    assert figures.splitlines()[-1].split() == ["store", "share", "0.600", "[0.500,", "0.700]"]
    assert judged.splitlines()[-1].split() == ["store", "share", ">=", "0.9", "0.600", "missed"]


def test_columns_stand_below_each_other() -> None:
    lines = figures_table(results("store", "share", 1234.0, 5.0, 6.0)).splitlines()
    assert len({line.index("share") for line in lines if "share" in line}) == 1
    assert lines[0].index("median") + len("median") == lines[-1].index(" 6.00") + len(" 6.00")


def test_figures_have_three_digits() -> None:
    assert [number(value) for value in (0.0, -2.5, 99.96, 0.1)] == ["0", "-2.50", "100.0", "0.100"]
