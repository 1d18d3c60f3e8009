"""report.html: the result of a run as one page, from the files of its folder alone."""

from collections.abc import Mapping
from pathlib import Path

from breakhis_pl.evaluation import report_figures as figures
from breakhis_pl.evaluation import report_sentences as sentences
from breakhis_pl.evaluation import report_tables as tables
from breakhis_pl.evaluation.gallery import KINDS
from breakhis_pl.evaluation.pages import render
from breakhis_pl.evaluation.patients import patient_rows
from breakhis_pl.evaluation.run_files import RunFiles, read_run_files
from breakhis_pl.run_folder import REPORT_PAGE, write_text

GALLERY_HEADINGS = dict(zip(KINDS, ("Surest mistakes", "Hardest patients", "Surely right"), strict=True))


def write_report(run_folder: Path) -> Path:
    """Writes the page of a run into its folder; an older one is replaced.

    The same files give the same page, to the byte.

    Args:
        run_folder: Folder of a run with a result.

    Returns:
        Path of report.html.

    Raises:
        RunFolderError: If the folder is no run folder, has no result yet, or a file is damaged.
        PredictionsError: If test/predictions.csv or split.csv is malformed.
        OSError: If the page cannot be written.
    """
    page = run_folder / REPORT_PAGE
    write_text(page, report_html(read_run_files(run_folder)))
    return page


def report_html(files: RunFiles) -> str:
    """The page of a run as text.

    Args:
        files: What the run folder holds.
    """
    frame = figures.frame_of(files)
    patients = patient_rows(files.predictions)
    context = {
        "network": files.network,
        "source": files.source,
        "magnifications": files.magnifications,
        "split": files.split,
        "run_name": files.folder.resolve().name,
        "record": dict.fromkeys(("finished", "command", "commit", "package_version")) | dict(files.record),
        "metrics": dict.fromkeys(("interval_method", "n_draws", "seed", "draws_lacking_a_class")) | dict(files.metrics),
        "data_sentence": sentences.data_sentence(files),
        "result_sentence": sentences.result_sentence(files),
        "warnings": sentences.warnings_of(files),
        "key_numbers": _key_numbers(files),
        "confusion_picture": figures.confusion_picture(files.metrics["confusion_matrix"], frame),
        "classification_table": tables.classification_table(files),
        "metrics_table": tables.metrics_table(files),
        "sibling_table": tables.sibling_table(files),
        "published_table": tables.published_table(files),
        "published_sentence": sentences.published_sentence(files),
        "history_picture": figures.history_picture(files.history, frame, counted=files.summary.best_epoch),
        "history_sentence": sentences.history_sentence(files),
        "history_fault": files.history_fault,
        "roc_picture": figures.roc_picture(files, frame),
        "precision_recall_picture": figures.precision_recall_picture(files, frame),
        "reliability_picture": figures.reliability_picture(files, frame),
        "calibration_sentence": sentences.calibration_sentence(files),
        "calibrated_table": tables.calibrated_table(files),
        "patient_picture": figures.patient_picture(patients, frame),
        "patient_table": tables.patient_table(files, patients),
        "subtype_table": tables.subtype_table(files),
        "eight_types_table": tables.eight_types_table(files),
        "eight_types_sentence": sentences.eight_types_sentence(files),
        "eight_types_picture": figures.eight_types_picture(files, frame),
        "magnification_table": tables.magnification_table(files),
        "gallery": [(GALLERY_HEADINGS.get(kind, kind), pictures) for kind, pictures in figures.gallery_groups(files)],
        "has_heat": any(entry.has_heat for entry in files.gallery),
        "configuration": _configuration_groups(files),
        "repetition": _repetition(files),
    }
    return render("report.html.j2", **context)


def _key_numbers(files: RunFiles) -> list[tuple[str, object, str]]:
    n_patients = len(set(files.predictions.patient))
    return [
        ("Weighted F1", files.estimate("weighted_f1"), "F1 of both classes, weighted by their images"),
        ("Accuracy", files.estimate("accuracy"), f"of {len(files.predictions):,} test images"),
        ("AUROC", files.estimate("auroc"), "malignant ranked above benign"),
        (
            "Patient recognition rate",
            files.estimate("patient_recognition_rate"),
            f"mean share of right images of {n_patients:,} patient{'' if n_patients == 1 else 's'}",
        ),
    ]


def _configuration_groups(files: RunFiles) -> list[tuple[str, list[tuple[str, str]]]]:
    """The resolved configuration by group; what stands outside every group comes last."""
    groups, alone = [], []
    for name, value in files.summary.config.items():
        if isinstance(value, Mapping):
            groups.append((str(name), _flat(value)))
        else:
            alone.append((str(name), _text(value)))
    return groups + ([("the run", alone)] if alone else [])


def _flat(group: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for name, value in group.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", _text(value)))
    return found


def _text(value: object) -> str:
    """A value as YAML writes it."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case list():
            return f"[{', '.join(map(_text, value))}]"
        case _:
            return str(value)


def _repetition(files: RunFiles) -> list[tuple[str, str]]:
    """Facts that it takes to repeat a run; those that run.json does not hold are left out."""
    versions = files.fact("versions")
    seconds = files.summary.seconds_total
    changes = files.fact("uncommitted_changes")
    facts = [
        ("Commit", files.fact("commit")),
        (
            "Uncommitted changes",
            None if changes is None else "yes: the commit does not tell all" if changes else "none",
        ),
        ("Package", files.fact("package_version")),
        ("Versions", ", ".join(f"{name} {version}" for name, version in (versions or {}).items())),
        ("Device", files.fact("device")),
        ("Precision", files.fact("precision")),
        ("Threads", files.fact("torch_threads")),
        ("Seed", files.summary.seed),
        ("Images", files.fact("data", "description")),
        ("Split checksum", files.summary.split_checksum),
        ("Parameters", None if files.summary.n_parameters is None else f"{files.summary.n_parameters:,}"),
        ("Started", files.fact("started")),
        ("Finished", files.fact("finished")),
        ("Duration", None if seconds is None else f"{seconds / 60:,.1f} minutes"),
    ]
    return [(name, str(value)) for name, value in facts if value not in (None, "")]
