"""A trained network with what its run folder says about input and output."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from breakhis_pl.config import DeviceConfig, TrainConfig, validate
from breakhis_pl.data.augmentation import normalize
from breakhis_pl.data.images import UInt8Array, read_picture, resize
from breakhis_pl.data.stain import StainTarget
from breakhis_pl.errors import CheckpointError, ConfigurationError, DataError
from breakhis_pl.evaluate import load_classifier
from breakhis_pl.explain.gradcam import grad_cam
from breakhis_pl.inference.ood import Float32Array, FloatArray, OODDetector, record_features
from breakhis_pl.metrics.calibration import Calibration, read_calibration
from breakhis_pl.models.classifier import Classifier
from breakhis_pl.run_folder import RunFolder
from breakhis_pl.training.performance import autocast, choose_memory_format, resolve_device

NOTICE = "Research software, not a medical device: it must not be used to diagnose anybody."


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A decoded picture.

    Attributes:
        path: Path as found.
        width: Width of the file's picture in pixels.
        height: Height of the file's picture in pixels.
        pixels: uint8, (size, size, 3), resized and stain-normalized.
    """

    path: Path
    width: int
    height: int
    pixels: UInt8Array


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A picture that cannot be predicted, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Predictor:
    """A trained network and what its run folder says about input and output.

    Attributes:
        classifier: In evaluation mode, on its device.
        mean: float32, (3,), of values in [0, 1].
        std: float32, (3,), of values in [0, 1].
        stain: Target of stain normalization.
        calibration: Temperature and threshold; None if they were not fitted for this checkpoint.
        detector: Out-of-distribution detector; None if it was not fitted for this checkpoint.
        device: "cuda", "mps" or "cpu".
        precision: Lightning's name.
        memory_format: Memory format of images and weights.
    """

    classifier: Classifier
    mean: Tensor
    std: Tensor
    stain: StainTarget | None
    calibration: Calibration | None
    detector: OODDetector | None
    device: str
    precision: str
    memory_format: torch.memory_format

    def decode(self, path: Path) -> Picture | Unreadable:
        """Decode a picture to the pixels that the network is shown."""
        try:
            image = read_picture(path)
        except DataError as error:
            return Unreadable(path, str(error))
        pixels = resize(image, self.classifier.image_size)
        pixels = pixels if self.stain is None else self.stain.normalize(pixels)
        return Picture(path, image.shape[1], image.shape[0], pixels)

    def normalize(self, pixels: UInt8Array) -> Tensor:
        """Convert pixels, uint8 (n, size, size, 3), to images, float32 (n, 3, size, size), on the device."""
        batch = torch.from_numpy(pixels).to(self.device)
        return normalize(batch, mean=self.mean, std=self.std, parameters=None, memory_format=self.memory_format)

    @torch.inference_mode()
    def predict(self, pixels: UInt8Array) -> tuple[FloatArray, FloatArray | None]:
        """Predict pictures.

        Args:
            pixels: uint8, (n, size, size, 3).

        Returns:
            Probabilities, float64 (n, n_classes), and distances from the train images in units of the limit,
            float64 (n,); None without a detector.

        Raises:
            CheckpointError: If a probability is not finite.
        """
        with autocast(self.device, self.precision), record_features(self.classifier.network.backbone) as features:
            logits = self.classifier(self.normalize(pixels))
        probabilities: FloatArray = torch.softmax(logits.double(), dim=1).cpu().numpy()
        if not np.isfinite(probabilities).all():
            raise CheckpointError(f"{self.classifier.config.backbone}: has outputs that are not finite; train again")
        distances = None if self.detector is None else self.detector.distances(torch.cat(features, dim=1).cpu())
        return probabilities, distances

    def explain(self, pixels: UInt8Array, classes: npt.NDArray[np.int64]) -> Float32Array:
        """Compute the Grad-CAM maps of classes, int64 (n,); float32, (n, size, size), in [0, 1].

        Raises:
            ConfigurationError: If the network has no feature map that Grad-CAM can weight.
        """
        maps = grad_cam(self.classifier, self.normalize(pixels), torch.from_numpy(classes))
        if maps is None:
            backbone = self.classifier.config.backbone
            raise ConfigurationError(f"gradcam=true: {backbone} has no feature map to explain; set gradcam=false")
        return maps.cpu().numpy()


def open_predictor(run_folder: Path, *, checkpoint: str, trainer: DeviceConfig) -> Predictor:
    """Load a network from a run folder.

    Args:
        run_folder: The run folder.
        checkpoint: "auto", "best", "last", or a path.
        trainer: Device and precision; "auto" is that of the training if it was on the same type of device.

    Raises:
        BreakHisError: If run folder, checkpoint or device cannot be used.
    """
    run = RunFolder(run_folder)
    record = run.read()
    trained = validate(TrainConfig, record.config)
    device, precision = resolve_device(trainer, trained=record)
    memory_format = choose_memory_format(
        trained.trainer.memory_format, device=device, image_size=trained.data.image_size
    )
    path = run.checkpoint(checkpoint)
    classifier, statistics = load_classifier(path, memory_format=memory_format)
    is_selected = path.resolve() == run.selected_checkpoint().resolve()
    return Predictor(
        classifier=classifier.to(device),
        mean=torch.tensor(statistics["mean"], device=device),
        std=torch.tensor(statistics["std"], device=device),
        stain=None if statistics["stain"] is None else StainTarget.from_plain(statistics["stain"]),  # type: ignore[arg-type]
        calibration=read_calibration(run.calibration_json) if is_selected and run.calibration_json.exists() else None,
        detector=OODDetector.load(run.ood_npz) if is_selected and run.ood_npz.exists() else None,
        device=device,
        precision=precision,
        memory_format=memory_format,
    )
