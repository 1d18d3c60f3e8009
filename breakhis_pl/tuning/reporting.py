"""A trial's validation value after every epoch, and whether it is worth going on."""

from typing import Any

import lightning.pytorch as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from optuna.trial import Trial
from torch import Tensor

from breakhis_pl.data.breakhis import Subset
from breakhis_pl.data.datamodule import BreakHisDataModule
from breakhis_pl.errors import ConfigurationError, Pruned, TrainingError
from breakhis_pl.evaluation.confusion import balanced_accuracy, confusion_matrix
from breakhis_pl.evaluation.scores import roc_auc
from breakhis_pl.models.classifier import Classifier


class ReportEpochs(Callback):
    """Tells a trial the validation value of each epoch; ends the training where the pruner says so.

    The training ends when the next epoch would begin, so that history and checkpoint hold the last one.

    Args:
        trial: Of the study; epochs that it knows already, of a run that was cut, are not told again.
        metric: One of `config.MONITORS`.
    """

    def __init__(self, trial: Trial, metric: str) -> None:
        self.trial = trial
        self.metric = metric
        self._known = set(trial.study._storage.get_trial(trial._trial_id).intermediate_values)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tells the value of the epoch that ends.

        Raises:
            TrainingError: If it is not defined.
        """
        epoch = trainer.current_epoch + 1
        value = epoch_value(pl_module, trainer.datamodule, self.metric)  # type: ignore[attr-defined]  # Lightning sets it
        if epoch not in self._known:
            self.trial.report(value, epoch)
            self._known.add(epoch)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ends the training where the trial is to be pruned.

        Raises:
            Pruned: If it is.
        """
        if trainer.current_epoch in self._known and self.trial.should_prune():
            raise Pruned(f"pruned after epoch {trainer.current_epoch}")


def epoch_value(classifier: Any, data: Any, metric: str) -> float:
    """Value of a metric of the validation images, of the evaluation that was last.

    Args:
        classifier: After an evaluation of val.
        data: What the rows of the store are.
        metric: One of `config.MONITORS`.

    Raises:
        TrainingError: If it is not defined for these images.
        ConfigurationError: If there is no such metric.
    """
    if not isinstance(classifier, Classifier) or not isinstance(data, BreakHisDataModule):
        raise TypeError(f"expected a Classifier and its data, got {type(classifier).__name__}")
    loss, accuracy = classifier.loss_and_accuracy(Subset.VAL)
    match metric:
        case "val_loss":
            return loss
        case "val_accuracy":
            return accuracy
        case "val_balanced_accuracy" | "val_auroc":
            target, probability = _target_and_probability(data, *classifier.evaluated_logits(Subset.VAL))
            if len(set(target.tolist())) < 2:
                raise TrainingError(
                    f"{metric} is not defined: the validation images are all of one class; "
                    "change data.val_fraction or seed, or take tuning.metric=val_loss"
                )
            if metric == "val_auroc":
                return float(roc_auc(target, probability) or 0.0)
            return float(balanced_accuracy(confusion_matrix(target, (probability > 0.5).astype(np.int64))))
        case _:
            raise ConfigurationError(f"tuning.metric={metric} is not possible")


def _target_and_probability(data: BreakHisDataModule, rows: Tensor, logits: Tensor) -> tuple[Any, Any]:
    target = np.array([data.records[row].name.target for row in rows.tolist()], dtype=np.int64)
    return target, logits.double().softmax(dim=1)[:, 1].numpy()
