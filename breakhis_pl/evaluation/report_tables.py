"""Tables of a run's page, as values; the template says where they stand."""

from collections.abc import Mapping, Sequence
from typing import Any

from breakhis_pl.data.breakhis import CLASS_NAMES, SUBTYPES
from breakhis_pl.evaluation.figures import count_of_images
from breakhis_pl.evaluation.json_values import value_at
from breakhis_pl.evaluation.pages import Column, Table
from breakhis_pl.evaluation.paired import N_REPORT_TEST_IMAGES, is_on_the_reports_split, published_values
from breakhis_pl.evaluation.patients import PatientRow
from breakhis_pl.evaluation.published import LITERATURE_RESULTS, REPORT_RESULTS
from breakhis_pl.evaluation.run_files import RunFiles
from breakhis_pl.evaluation.run_summary import Estimate, estimate_at

OTHER_METRICS = (
    ("accuracy", "Accuracy", "share of images that are right"),
    ("balanced_accuracy", "Balanced accuracy", "mean of sensitivity and specificity"),
    ("mcc", "Matthews correlation", "of truth and prediction, from minus 1 to 1"),
    ("auroc", "AUROC", "chance that a malignant image gets a higher probability than a benign one"),
    ("average_precision", "Average precision", "area under precision over recall, malignant positive"),
    ("patient_recognition_rate", "Patient recognition rate", "mean over patients of their share of right images"),
    ("case_accuracy", "Case accuracy", "share of cases right by the mean probability of their images"),
    ("brier", "Brier score", "mean squared error of the probability; less is better"),
    ("log_loss", "Log loss", "mean negative logarithm of the true class's probability; less is better"),
    ("ece", "Expected calibration error", "mean distance of probability and observed share, 10 bins; less is better"),
)
SIBLING_METRICS = (
    ("weighted_f1", "Weighted F1"),
    ("accuracy", "Accuracy"),
    ("auroc", "AUROC"),
    ("sensitivity", "Sensitivity"),
    ("specificity", "Specificity"),
    ("patient_recognition_rate", "Patient recognition rate"),
)
CALIBRATED_METRICS = (
    ("log_loss", "Log loss"),
    ("brier", "Brier score"),
    ("ece", "Expected calibration error"),
    ("accuracy", "Accuracy"),
    ("weighted_f1", "Weighted F1"),
    ("sensitivity", "Sensitivity"),
    ("specificity", "Specificity"),
)


def classification_table(files: RunFiles) -> Table:
    """Precision, recall and F1 by class and weighted, with intervals."""
    names = {"benign": "benign (recall = specificity)", "malignant": "malignant (recall = sensitivity)"}
    rows: list[list[str | Estimate | None]] = [
        [
            names[name],
            *(files.estimate("per_class", name, metric) for metric in ("precision", "recall", "f1")),
            _count(value_at(files.metrics, "per_class", name, "support")),
        ]
        for name in CLASS_NAMES
    ]
    rows += [
        [
            heading,
            *(files.estimate(f"{kind}_{metric}") for metric in ("precision", "recall", "f1")),
            _count(len(files.predictions)),
        ]
        for kind, heading in (("weighted", "weighted by support"), ("macro", "mean of the classes"))
    ]
    return Table(
        "By class, with 95 % intervals over cases",
        _columns("Class", "Precision", "Recall", "F1", "Images"),
        rows,
        emphasized=(2,),
    )


def metrics_table(files: RunFiles) -> Table:
    """Every other metric, with what it means."""
    rows = [[heading, files.estimate(key), meaning] for key, heading, meaning in OTHER_METRICS]
    columns = (Column("Metric"), Column("Value", is_number=True), Column("Meaning"))
    return Table("Other metrics, with 95 % intervals over cases", columns, rows)


def sibling_table(files: RunFiles) -> Table | None:
    """All test images beside those without a sibling in train or validation; None where there is no sibling."""
    without = files.metrics.get("without_siblings")
    if not isinstance(without, Mapping):
        return None
    rows = [[heading, files.estimate(key), estimate_at(without, key)] for key, heading in SIBLING_METRICS]
    columns = _columns(
        "Metric",
        f"all {count_of_images(len(files.predictions))}",
        f"{count_of_images(int(without['n_images']))} without siblings",
    )
    return Table("Without test images whose case has another slide in train or validation", columns, rows)


def published_table(files: RunFiles) -> Table | None:
    """This run beside what was published on the same test images; None where the split is another one."""
    if not is_on_the_reports_split(files.summary):
        return None
    rows: list[list[str | Estimate | None]] = [
        [
            "this run",
            files.estimate("accuracy"),
            files.estimate("weighted_f1"),
            *(files.estimate("per_class", name, "f1") for name in CLASS_NAMES),
            files.estimate("auroc"),
            files.estimate("patient_recognition_rate"),
        ]
    ]
    report = REPORT_RESULTS.get(files.summary.model or "")
    if report is not None:
        shares = [Estimate(share) for share in published_values(report).values()]
        rows.append([f"the report's {report.network}", *shares, None, None])
    rows += [
        [
            f"{result.method} ({result.source})" if result.source else result.method,
            Estimate(result.accuracy),
            _published(result.weighted_f1),
            None,
            None,
            _published(result.auroc),
            _published(result.patient_recognition_rate),
        ]
        for result in LITERATURE_RESULTS
    ]
    columns = _columns(
        "Result", "Accuracy", "Weighted F1", "F1 benign", "F1 malignant", "AUROC", "Patient recognition rate"
    )
    return Table(f"Beside results on the {N_REPORT_TEST_IMAGES} test images", columns, rows, emphasized=(0,))


def patient_table(files: RunFiles, rows: Sequence[PatientRow]) -> Table:
    """Patients, the lowest share of right images first."""
    with_sibling = {
        patient
        for patient, image in zip(files.predictions.patient, files.predictions.image, strict=True)
        if image in files.siblings
    }
    cells = [
        [
            row.patient,
            SUBTYPES[row.subtype].name if row.subtype is not None else None,
            CLASS_NAMES[row.target],
            _count(row.n_images),
            _count(row.n_correct),
            f"{row.share:.1%}",
            f"{row.mean_prob_malignant:.3f}",
            "yes" if row.patient in with_sibling else "no",
        ]
        for row in rows
    ]
    columns = (
        *(Column(heading) for heading in ("Patient", "Tumor type", "Class")),
        *(Column(heading, is_number=True) for heading in ("Images", "Right", "Share", "Mean p(malignant)")),
        Column("Sibling in train or validation"),
    )
    return Table("Patients by share of right images, lowest first", columns, cells)


def subtype_table(files: RunFiles) -> Table | None:
    """Tumor types; None where the images name none."""
    table = files.metrics.get("per_subtype")
    if not table:
        return None
    rows = [
        [
            f"{of['name']} ({code})",
            str(of["class_name"]),
            *(_count(of[key]) for key in ("n_cases", "n_patients", "n_images")),
            f"{of['recall']:.1%}",
        ]
        for code, of in table.items()
    ]
    columns = (
        Column("Tumor type"),
        Column("Class"),
        *(Column(heading, is_number=True) for heading in ("Cases", "Patients", "Images", "Right")),
    )
    return Table(
        "Share of right images by tumor type",
        columns,
        rows,
        note="Most types have one to three patients here: these shares describe them, they do not estimate the type.",
    )


def magnification_table(files: RunFiles) -> Table | None:
    """Magnifications; None where there is one alone."""
    table = files.metrics.get("per_magnification")
    if not isinstance(table, Mapping) or len(table) < 2:
        return None
    rows = [
        [
            f"{magnification}X",
            _count(of["n_images"]),
            *(_published(of[key]) for key in ("accuracy", "weighted_f1")),
            *(_published(of["recall"][name]) for name in reversed(CLASS_NAMES)),
        ]
        for magnification, of in table.items()
    ]
    columns = _columns("Magnification", "Images", "Accuracy", "Weighted F1", "Sensitivity", "Specificity")
    return Table("By magnification", columns, rows)


def calibrated_table(files: RunFiles) -> Table | None:
    """Probabilities and decisions before and after calibration; None where metrics.json has none."""
    calibrated = files.metrics.get("calibrated")
    if not isinstance(calibrated, Mapping):
        return None
    rows = [[heading, files.estimate(key), estimate_at(calibrated, key)] for key, heading in CALIBRATED_METRICS]
    columns = _columns("Metric", "as trained, threshold 0.5", "calibrated, chosen threshold")
    return Table("On the test images, with 95 % intervals over cases", columns, rows)


def _columns(first: str, *numbers: str) -> tuple[Column, ...]:
    return Column(first), *(Column(heading, is_number=True) for heading in numbers)


def _count(value: Any) -> str | None:
    return f"{value:,}" if isinstance(value, int) else None


def _published(value: float | None) -> Estimate | None:
    return None if value is None else Estimate(value)


def eight_types_table(files: RunFiles) -> Table | None:
    """Precision, recall and F1 of the types that a network tells apart; None where it tells two classes apart."""
    if files.subtypes is None:
        return None
    rows = [
        [
            f"{of['name']} ({code})",
            *(_published(of[metric]) for metric in ("precision", "recall", "f1")),
            _count(of["support"]),
            _count(of["n_cases"]),
        ]
        for code, of in files.subtypes["per_class"].items()
    ]
    return Table("By tumor type", _columns("Type", "Precision", "Recall", "F1", "Images", "Cases"), rows)
