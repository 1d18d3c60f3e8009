"""What may be said of pairs of runs, in plain sentences."""

from collections.abc import Sequence
from types import MappingProxyType

from breakhis_pl.data.breakhis import CLASS_NAMES
from breakhis_pl.evaluation.paired import MAIN_METRIC, PairedComparison, PublishedComparison

SIGNIFICANCE = 0.05
"""A difference counts as shown where its p-value, after correction, is below this."""

_NAMES = MappingProxyType(
    {
        "auroc": "AUROC",
        "mcc": "MCC",
        "weighted_f1": "weighted F1",
        **{f"f1_{name}": f"F1 {name}" for name in CLASS_NAMES},
    }
)


def metric_name(metric: str) -> str:
    """A metric as it is written in sentences and headings.

    Example:
        >>> metric_name("weighted_f1"), metric_name("patient_recognition_rate")
        ('weighted F1', 'patient recognition rate')
    """
    return _NAMES.get(metric, metric.replace("_", " "))


def p_value_text(p: float) -> str:
    """A p-value in as many digits as mean something.

    Example:
        >>> p_value_text(0.41), p_value_text(0.0312), p_value_text(0.00001)
        ('0.41', '0.031', '< 0.001')
    """
    if p < 0.001:
        return "< 0.001"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def signed(difference: float) -> str:
    """A difference with its sign, which 0 has none of.

    Example:
        >>> signed(0.0204), signed(-0.5), signed(-0.0001)
        ('+0.020', '-0.500', '0.000')
    """
    text = f"{difference:+.3f}"
    return text[1:] if float(text) == 0 else text


def conclusions(comparisons: Sequence[PairedComparison]) -> list[str]:
    """A sentence for each pair, by the main metric.

    Args:
        comparisons: What `paired.compare_runs` returns.

    Example:
        >>> conclusions([PairedComparison("a", "b", "weighted_f1", 0.02, (-0.03, 0.08), 0.41, 0.41, 0.3, 597, 27)])
        ['a and b: no difference in weighted F1 can be shown: +0.020 (-0.030 to +0.080), p = 0.41.']
    """
    of_main = [comparison for comparison in comparisons if comparison.metric == MAIN_METRIC]
    n_tests = sum(comparison.p is not None for comparison in of_main)
    return [_conclusion(comparison, n_tests) for comparison in of_main]


def is_shown(comparison: PairedComparison) -> bool:
    """Whether a difference can be shown, in view of the number of pairs."""
    return comparison.p_holm is not None and comparison.p_holm < SIGNIFICANCE


def published_conclusions(comparisons: Sequence[PublishedComparison]) -> list[str]:
    """A sentence for each run beside the report, by the main metric.

    Args:
        comparisons: What `paired.against_published` returns.

    Example:
        >>> ours = PublishedComparison("a", "ResNet-18", "weighted_f1", 0.91, (0.82, 0.96), 0.873, True, False)
        >>> published_conclusions([ours])
        ["a: weighted F1 0.910 (0.82 to 0.96); the 0.873 of the report's ResNet-18 lies inside the interval."]
    """
    return [_published_conclusion(each) for each in comparisons if each.metric == MAIN_METRIC]


def _conclusion(comparison: PairedComparison, n_tests: int) -> str:
    first, second, name = comparison.first, comparison.second, metric_name(comparison.metric)
    difference, p, p_holm = comparison.difference, comparison.p, comparison.p_holm
    if difference is None:
        return f"{first} and {second} are not compared: {comparison.reason}."
    if comparison.ci95 is None or p is None or p_holm is None:
        return f"{first} and {second}: {name} differs by {signed(difference)}; {comparison.reason}."
    low, high = comparison.ci95
    p_values = _equation(p)
    if n_tests > 1:
        p_values += f", after Holm's correction for {n_tests} pairs {_equation(p_holm)}"
    if not is_shown(comparison):
        interval = f"{signed(difference)} ({signed(low)} to {signed(high)})"
        return f"{first} and {second}: no difference in {name} can be shown: {interval}, {p_values}."
    if difference < 0:
        first, second, difference, low, high = second, first, -difference, -high, -low
    interval = f"{difference:.3f} ({low:.3f} to {high:.3f})"
    return f"{first} is better than {second}: {name} higher by {interval}, {p_values}."


def _equation(p: float) -> str:
    text = p_value_text(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def _published_conclusion(comparison: PublishedComparison) -> str:
    ours = f"{comparison.run}: {metric_name(comparison.metric)} {comparison.ours:.3f}"
    theirs = f"the {comparison.theirs:.3f} of the report's {comparison.network}"
    if comparison.ci95 is None or comparison.is_inside is None:
        return f"{ours}, without an interval; {theirs} cannot be judged by it."
    low, high = comparison.ci95
    side = "inside" if comparison.is_inside else "outside"
    return f"{ours} ({low:.2f} to {high:.2f}); {theirs} lies {side} the interval."
