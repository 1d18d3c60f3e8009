"""The network of a run folder, by torch."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from breakhis_pl.data.augment import to_network_input
from breakhis_pl.errors import ConfigurationError
from breakhis_pl.evaluation.calibration import CALIBRATION_JSON, Calibration, read_calibration
from breakhis_pl.evaluation.gradcam import grad_cam
from breakhis_pl.prediction.facts import Float32Array, NetworkFacts, UInt8Array
from breakhis_pl.run_json import read_run
from breakhis_pl.training.checkpoints import TrainedNetwork, counting_checkpoint, load_checkpoint, named_checkpoint
from breakhis_pl.training.device import device_name, resolve_device
from breakhis_pl.training.speed import CHANNELS_LAST_FROM

log = logging.getLogger(__name__)

_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class RunNetwork:
    """A run's network on its device.

    Args:
        trained: From a checkpoint.
        calibration: What was fitted for it; None if nothing was.
        accelerator: "cpu", "cuda" or "mps".
        precision: One of Lightning's names.
    """

    def __init__(
        self, trained: TrainedNetwork, calibration: Calibration | None, *, accelerator: str, precision: str
    ) -> None:
        self.facts = NetworkFacts(
            backbone=trained.classifier.backbone,
            image_size=trained.image_size,
            mean=trained.mean,
            std=trained.std,
            calibration=calibration,
            domain=trained.domain,
            stain=trained.stain,
        )
        self.title = f"{trained.classifier.backbone} after epoch {trained.epoch}, {precision} on " + device_name(
            accelerator
        )
        self.device = torch.device(accelerator)
        self.dtype = _AUTOCAST.get(precision)
        # as when a run is evaluated (training/speed.py), so that the bits are the same
        is_small = accelerator == "cpu" and trained.image_size < CHANNELS_LAST_FROM
        self.memory_format = torch.contiguous_format if is_small else torch.channels_last
        self.classifier = trained.classifier.to(self.device, memory_format=self.memory_format).eval()
        self.mean = torch.tensor(trained.mean, dtype=torch.float32, device=self.device)
        self.std = torch.tensor(trained.std, dtype=torch.float32, device=self.device)

    def logits(self, pixels: UInt8Array) -> Float32Array:
        """From uint8 (n, size, size, 3), RGB, to float32 (n, 2), columns as in `CLASS_NAMES`."""
        with torch.inference_mode(), self._precision():
            logits: Float32Array = self.classifier(self.normalized(pixels)).cpu().numpy()
        return logits

    def heat(self, pixels: UInt8Array, classes: npt.NDArray[np.int64]) -> Float32Array:
        """What speaks for one class of each image, int64 (n,): float32, (n, size, size), in [0, 1].

        Raises:
            ConfigurationError: If the network is of a kind that Grad-CAM cannot explain.
        """
        try:
            maps = grad_cam(self.classifier.binary_network(), self.normalized(pixels), torch.from_numpy(classes))
        except TypeError as error:
            raise ConfigurationError(f"gradcam is not possible: {error}; set gradcam=false") from error
        heat: Float32Array = maps.cpu().numpy()
        return heat

    def normalized(self, pixels: UInt8Array) -> Tensor:
        """Images as the network takes them; float32, (n, 3, size, size), on its device."""
        batch = torch.from_numpy(pixels).to(self.device)
        return to_network_input(batch, mean=self.mean, std=self.std, memory_format=self.memory_format)

    @contextmanager
    def _precision(self) -> Iterator[None]:
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            yield


def open_run(run: Path, *, checkpoint: str, accelerator: str, precision: str) -> RunNetwork:
    """The network of a run folder, ready to be run.

    Args:
        run: The run folder.
        checkpoint: "auto" (the one that counts), "last", "best", or the path of a checkpoint.
        accelerator: "auto", "cpu", "gpu" or "mps".
        precision: "auto" (as the run was trained, on the same kind of device) or one of Lightning's.

    Raises:
        RunFolderError: If the folder is none of a run, or its calibration is damaged.
        CheckpointError: If there is no usable checkpoint.
        ConfigurationError: If the device is not there.
    """
    facts = read_run(run)
    device, resolved = resolve_device(accelerator, precision)
    trained_in = facts.get("precision")
    if precision == "auto" and str(facts.get("device")).startswith(device) and isinstance(trained_in, str):
        resolved = trained_in
    path = named_checkpoint(run, checkpoint)
    trained = load_checkpoint(path)
    return RunNetwork(trained, calibration_for(run, path), accelerator=device, precision=resolved)


def calibration_for(run: Path, checkpoint: Path) -> Calibration | None:
    """Temperature and threshold of a run, if they were fitted for this checkpoint: the one that counts.

    Raises:
        RunFolderError: If calibration.json is damaged.
    """
    file = run / CALIBRATION_JSON
    if not file.exists():
        return None
    if checkpoint.resolve() != counting_checkpoint(run).resolve():
        log.info(
            "%s was fitted for the checkpoint that counts, not for %s: no calibrated probabilities", file, checkpoint
        )
        return None
    return read_calibration(file)
