"""Published results beside those of runs on the same split."""

from collections.abc import Sequence

from breakhis_pl.errors import join_truncated
from breakhis_pl.metrics.evaluation import format_estimate
from breakhis_pl.metrics.registry import MAIN_METRIC, METRICS
from breakhis_pl.reporting.pages import Cell, Table, three_digits
from breakhis_pl.reporting.reference_results import N_TEST_IMAGES, OTTO2022, PUBLISHED
from breakhis_pl.reporting.runs import Run


def published_table(runs: Sequence[Run]) -> Table:
    """Set runs on the split of Otto et al. 2022 beside the results for the same networks, and those of others."""
    columns = ("accuracy", "weighted_f1", "f1_benign", "f1_malignant", "auroc", "patient_recognition_rate")
    rows: list[list[Cell]] = [[run.name, *(run.estimate(name) for name in columns)] for run in runs]
    for model, otto in OTTO2022.items():
        if model in {run.model for run in runs}:
            rows.append(
                [f"{otto.network} (Otto et al. 2022)", *(three_digits(otto.values().get(name)) for name in columns)]
            )
    for result in PUBLISHED:
        name = f"{result.method} ({result.source})" if result.source else result.method
        rows.append([name, *(three_digits(result.values.get(name)) for name in columns)])
    titles = (METRICS[name].title if name in METRICS else name.replace("f1_", "F1 ") for name in columns)
    headings = ["Result", *titles]
    caption = f"Published results on the {N_TEST_IMAGES} test images of fold 2, beside these runs"
    return Table(caption, headings, rows, emphasized=set(range(len(runs))))


def published_sentences(runs: Sequence[Run]) -> list[str]:
    """Say whether the weighted F1 of Otto et al. 2022 lies inside the interval of each run of the same network."""
    sentences = []
    for run in runs:
        otto, ours = OTTO2022.get(run.model or ""), run.estimate(MAIN_METRIC)
        is_comparable = run.has_otto2022_images and run.one_class is None
        if is_comparable and otto is not None and ours is not None and ours["ci95"] is not None:
            theirs, (low, high) = otto.values()[MAIN_METRIC], ours["ci95"]
            side = "inside" if low <= theirs <= high else "outside"
            sentences.append(
                f"{run.name}: weighted F1 {format_estimate(ours)}; the {theirs:.3f} of {otto.network} in Otto et al. "
                f"2022 lies {side} the interval."
            )
    indicative = [run.name for run in runs if not run.has_otto2022_images]
    if indicative:
        sentences.append(
            f"{join_truncated(indicative)}: not tested on the {N_TEST_IMAGES} images of Otto et al. 2022; the "
            "published numbers are shown for orientation only."
        )
    return sentences
