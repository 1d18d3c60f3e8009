"""Sentences of a run's page: what the data were, what came out, what to beware of."""

from collections.abc import Mapping

import numpy as np

from breakhis_pl.data.breakhis import CLASS_NAMES, PUBLISHED_COUNTS, official_patients
from breakhis_pl.data.dataset import Subset
from breakhis_pl.evaluation.figures import count_of_images
from breakhis_pl.evaluation.json_values import count_at, number_at, value_at
from breakhis_pl.evaluation.paired import (
    MAIN_METRIC,
    N_REPORT_TEST_IMAGES,
    against_published,
    has_the_reports_images,
)
from breakhis_pl.evaluation.report_figures import phrase
from breakhis_pl.evaluation.run_files import RunFiles, joined
from breakhis_pl.evaluation.run_summary import estimate_at

FEW_CASES = 10
"""Of a class; below it, an interval rests on little more than chance."""


def data_sentence(files: RunFiles) -> str:
    """What the network was trained and tested on."""
    parts = [
        f"{verb} {_subset_phrase(files, subset)}"
        for subset, verb in (("train", "trained on"), ("val", _use_of_validation(files)), ("test", "tested on"))
        if subset == "test" or subset in files.sizes or value_at(files.record, "data", "n_images", subset)
    ]
    text = joined(parts)
    return f"{text[0].upper()}{text[1:]}."


def _use_of_validation(files: RunFiles) -> str:
    return "calibrated on" if files.summary.best_epoch is None else "chosen and calibrated on"


def history_sentence(files: RunFiles) -> str:
    """What the curves were used for, and which epoch counts."""
    n_epochs, best = len(files.history), files.summary.best_epoch
    if best is None:
        return f"The test curve was used for nothing: the last of {n_epochs} epochs counts, whichever was best."
    return (
        f"Epoch {best} of {n_epochs} counts, the best by {files.summary.monitor or 'a value of validation images'}. "
        "The test curve was used for nothing."
    )


def result_sentence(files: RunFiles) -> str:
    """What the confusion matrix says, in words."""
    matrix = np.array(files.metrics["confusion_matrix"])
    (right_benign, called_malignant), (called_benign, right_malignant) = matrix.tolist()
    n_benign, n_malignant = matrix.sum(1).tolist()
    return (
        f"{right_benign + right_malignant:,} of {count_of_images(len(files.predictions))} are right. "
        f"Of {n_malignant:,} malignant images {called_benign:,} were called benign: sensitivity "
        f"{phrase(files.estimate('sensitivity'))}. Of {n_benign:,} benign images {called_malignant:,} were called "
        f"malignant: specificity {phrase(files.estimate('specificity'))}."
    )


def eight_types_sentence(files: RunFiles) -> str | None:
    """How well the tumor types are told apart; None where the network tells two classes apart."""
    if files.subtypes is None:
        return None
    return (
        "The network was trained on the eight tumor types; everything above rests on the sums of their probabilities "
        f"over benign and malignant ones. Of all images, {phrase(estimate_at(files.subtypes, 'accuracy'))} are given "
        f"their own type; weighted F1 {phrase(estimate_at(files.subtypes, 'weighted_f1'))}. Loss and accuracy over the "
        "epochs are those of the eight types. Most types rest on one to five cases here: a line of this table says "
        "little about other patients."
    )


def warnings_of(files: RunFiles) -> list[tuple[str, str]]:
    """Headings and sentences of what a reader must know before any number."""
    found = [
        _synthetic_warning(files),
        _status_warning(files),
        _completeness_warning(files),
        _sibling_warning(files),
        _cases_warning(files),
        _validation_warning(files),
        _batches_warning(files),
    ]
    return [warning for warning in found if warning is not None]


def published_sentence(files: RunFiles) -> str:
    """Whether the report's result for the same network can be told from this one."""
    sentences = [
        f"The report's weighted F1 of {comparison.theirs:.3f} for {comparison.network} lies "
        f"{'inside' if comparison.is_inside else 'outside'} this run's 95 % interval, "
        f"{comparison.ci95[0]:.2f} to {comparison.ci95[1]:.2f}."
        for comparison in against_published([files.summary])
        if comparison.metric == MAIN_METRIC and comparison.ci95 is not None
    ]
    n_images = len(files.predictions)
    if n_images != N_REPORT_TEST_IMAGES:
        sentences.append(
            f"The test images are {n_images:,}, not the report's {N_REPORT_TEST_IMAGES}: the comparison is indicative "
            "only."
        )
    elif not has_the_reports_images(files.summary):
        sentences.append("Images are missing from train: the comparison is indicative only.")
    return " ".join(sentences)


def calibration_sentence(files: RunFiles) -> str | None:
    """What was fitted on the validation images; None where nothing was."""
    calibrated = files.metrics.get("calibrated")
    calibrated = calibrated if isinstance(calibrated, Mapping) else {}
    kept = files.calibration or {}
    used = ("temperature", "threshold")
    if any(_differ(number_at(calibrated, key), number_at(kept, key)) for key in used):
        kept = {}  # fitted after these metrics were computed
    fitted = {**kept, **calibrated}
    temperature, threshold = (number_at(fitted, key) for key in used)
    if temperature is None or threshold is None:
        return None
    wanted = number_at(kept, "sensitivity") or number_at(fitted, "wanted_sensitivity")
    n_images, n_cases = (number_at(kept, key) or number_at(fitted, "fitted_on", key) for key in ("n_images", "n_cases"))
    rows = f"{n_images:,.0f} validation images" if n_images is not None else "the validation images"
    rows += f" of {n_cases:,.0f} cases" if n_cases is not None else ""
    aim = f" to reach a sensitivity of {wanted:g} there" if wanted is not None else ""
    specificity = number_at(kept, "specificity_reached")
    reached = f" The specificity there is {specificity:.3f}." if specificity is not None else ""
    few = f" {n_cases:,.0f} cases are few to fit on." if n_cases is not None and n_cases < FEW_CASES else ""
    return (
        f"Fitted on {rows}, never on test images: temperature {temperature:.3f}, and malignant from a calibrated "
        f"probability of {threshold:.3f}{aim}.{reached}{few}"
    )


def _differ(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and abs(one - other) > 1e-9  # which a file rounds away


def _subset_phrase(files: RunFiles, subset: str) -> str:
    by_class = value_at(files.record, "data", "n_images", subset)
    counts = {name: count_at(by_class, name) or 0 for name in CLASS_NAMES} if isinstance(by_class, Mapping) else {}
    if subset == "test":
        size = (len(files.predictions), len(set(files.predictions.patient)), len(set(files.predictions.case)))
        counts = {name: int((files.predictions.target == index).sum()) for index, name in enumerate(CLASS_NAMES)}
    elif subset in files.sizes:
        of_subset = files.sizes[subset]
        size = (of_subset.n_images, of_subset.n_patients, of_subset.n_cases)
    else:
        return f"{sum(counts.values()):,} images" if counts else "an unknown number of images"
    classes = f" ({', '.join(f'{count:,} {name}' for name, count in counts.items())})" if counts else ""
    return f"{count_of_images(size[0])} of {_plural(size[1], 'patient')} in {_plural(size[2], 'case')}{classes}"


def _synthetic_warning(files: RunFiles) -> tuple[str, str] | None:
    if not files.summary.is_synthetic:
        return None
    return (
        "Synthetic images, no tissue.",
        "These numbers show that the software runs; they say nothing about pathology.",
    )


def _status_warning(files: RunFiles) -> tuple[str, str] | None:
    if files.summary.status == "finished":
        return None
    reason = f": {files.summary.error}" if files.summary.error else ""
    return (
        "The run is not finished.",
        f"run.json says {files.summary.status}{reason}. What is here may be of an earlier state.",
    )


def _completeness_warning(files: RunFiles) -> tuple[str, str] | None:
    summary = files.summary
    if summary.is_complete is not False or summary.is_synthetic:
        return None
    needed = {*summary.magnification, *summary.test_magnification}
    n_published = sum(n for (magnification, _), n in PUBLISHED_COUNTS.items() if magnification in needed)
    sentence = f"{files.fact('data', 'description') or f'Not all of {n_published:,} published images'}."
    if summary.split == "official":
        n_test = sum(
            patient.n_images.get(magnification, 0)
            for patient in official_patients().values()
            for magnification in summary.test_magnification
            if patient.subsets.get(summary.fold or 0) == Subset.TEST
        )
        sentence += f" Tested on {len(files.predictions):,} of {n_test:,} published test images."
    return "Incomplete archive.", f"{sentence} Results cannot be compared with published ones."


def _sibling_warning(files: RunFiles) -> tuple[str, str] | None:
    if "without_siblings" not in files.metrics:
        return None
    without = files.metrics["without_siblings"]
    n_images = len(files.predictions)
    if not isinstance(without, Mapping):
        return (
            "Siblings across subsets.",
            f"All {n_images:,} test images are of a case with another slide in train or validation.",
        )
    n_siblings = n_images - int(without["n_images"])
    return (
        "Siblings across subsets.",
        f"{n_siblings:,} of {n_images:,} test images come from a case with another slide in train or validation; the "
        "network may have seen the same person. Without them: weighted F1 "
        f"{phrase(estimate_at(without, 'weighted_f1'))}, AUROC {phrase(estimate_at(without, 'auroc'))}.",
    )


def _cases_warning(files: RunFiles) -> tuple[str, str] | None:
    predictions = files.predictions
    counts = {
        name: len({case for case, of in zip(predictions.case, predictions.target, strict=True) if of == index})
        for index, name in enumerate(CLASS_NAMES)
    }
    few = [f"{n or 'no'} {name} case{'' if n == 1 else 's'}" for name, n in counts.items() if n < FEW_CASES]
    if not few:
        return None
    return (
        "Few cases.",
        f"The test images are of {joined(few)}; images of one case resemble each other, so the intervals rest on "
        "little.",
    )


def _validation_warning(files: RunFiles) -> tuple[str, str] | None:
    if "val" in files.sizes or value_at(files.record, "data", "n_images", "val"):
        return None
    return (
        "No validation set.",
        "Nothing was chosen or calibrated: the last epoch counts, the threshold is 0.5, and no test curve decided.",
    )


def _batches_warning(files: RunFiles) -> tuple[str, str] | None:
    limit = files.fact("config", "trainer", "limit_train_batches")
    if limit is None:
        return None
    return "Cut epochs.", f"Only {limit} batches of each epoch were trained on (trainer.limit_train_batches)."


def _plural(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
