"""What a network says about each patient."""

from dataclasses import dataclass

import numpy as np

from breakhis_pl.evaluation.predictions import Predictions, index_of, subtype_of_patient


@dataclass(frozen=True, slots=True)
class PatientRow:
    """What a network says about one patient.

    Attributes:
        patient: Name of the patient.
        case: Name of the case.
        subtype: Code of the tumor type; None where the patient is no BreakHis patient.
        target: Index of the class in `CLASS_NAMES`.
        n_images: Number of images.
        n_correct: Number of images that are classified correctly.
        mean_prob_malignant: Mean over the images, 0..1.
    """

    patient: str
    case: str
    subtype: str | None
    target: int
    n_images: int
    n_correct: int
    mean_prob_malignant: float

    @property
    def share(self) -> float:
        """Share of the patient's images that are classified correctly, 0..1."""
        return self.n_correct / self.n_images


def patient_rows(predictions: Predictions) -> list[PatientRow]:
    """One row per patient, the lowest share of right images first; a patient of both classes has a row for each.

    Args:
        predictions: One row per image.
    """
    unit = 2 * index_of(predictions.patient) + predictions.target
    by_unit = np.argsort(unit, kind="stable")
    rows = []
    for mine in np.split(by_unit, np.flatnonzero(np.diff(unit[by_unit])) + 1):
        first = int(mine[0])
        rows.append(
            PatientRow(
                patient=predictions.patient[first],
                case=predictions.case[first],
                subtype=subtype_of_patient(predictions.patient[first]),
                target=int(predictions.target[first]),
                n_images=mine.size,
                n_correct=int(predictions.correct[mine].sum()),
                mean_prob_malignant=float(predictions.prob_malignant[mine].mean()),
            )
        )
    return sorted(rows, key=lambda row: (row.share, row.patient, row.target))
