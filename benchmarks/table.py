"""What was measured, and what became of the goals, as plain text."""

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.goals import Goal, judge, measured
from benchmarks.timing import Measurement


def figures_table(results: Mapping[str, Sequence[Measurement]]) -> str:
    """A line per figure: subject, name, median, spread, unit."""
    rows = [("subject", "figure", "median", "[min, max]", "unit")]
    for subject, measurements in results.items():
        for measurement in measurements:
            low, high = number(min(measurement.values)), number(max(measurement.values))
            spread = f"[{low}, {high}]" if len(measurement.values) > 1 else ""
            rows.append((subject, measurement.name, number(measurement.median), spread, measurement.unit))
    return aligned(rows, right=(2, 3))


def goals_table(
    goals: Iterable[Goal], plan: str, results: Mapping[str, Sequence[Measurement]], *, is_tiny: bool
) -> str:
    """A line per goal: subject, figure, goal, median, outcome."""
    rows = [("subject", "figure", "goal", "median", "outcome")]
    for goal in goals:
        found = measured(goal, plan, results)
        median = "" if found is None else number(found.median)
        rows.append((goal.subject, goal.figure, goal.bound, median, judge(goal, plan, results, is_tiny=is_tiny)))
    return aligned(rows, right=(2, 3))


def number(value: float) -> str:
    """A figure for reading, with three digits that count.

    Example:
        >>> number(1234.5), number(12.345), number(0.98765), number(0.001234)
        ('1,234', '12.3', '0.988', '0.00123')
    """
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if size >= 1:
        return f"{value:.2f}"
    return f"{value:.3f}" if size >= 0.1 else f"{value:.3g}"


def aligned(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Rows as lines, columns below each other.

    Args:
        rows: All of one length; the first is the head.
        right: Columns whose cells are put to the right.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]]) + "\n"
