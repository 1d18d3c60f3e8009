"""What is known of a network besides its weights, whoever runs it (no torch)."""

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from breakhis_pl.data.domain import Domain
from breakhis_pl.data.stain import StainTarget
from breakhis_pl.evaluation.calibration import Calibration

UInt8Array: TypeAlias = npt.NDArray[np.uint8]
Float32Array: TypeAlias = npt.NDArray[np.float32]

NOTICE = "Research software, not a medical device: it must not be used to diagnose anybody."


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """What predictions of a network rest on.

    Attributes:
        backbone: Name of the network.
        image_size: Side in pixels of the images it takes.
        mean: Of the train images, per channel, values in [0, 1].
        std: Likewise the standard deviation.
        calibration: Temperature and threshold; None where none were fitted.
        domain: What the train images looked like; None where that is not known.
        stain: What the stains of images are brought to, after resizing; None where they stay as they are.
    """

    backbone: str
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    calibration: Calibration | None
    domain: Domain | None
    stain: StainTarget | None = None


class Network(Protocol):
    """A network that can be run, by torch or by ONNX Runtime."""

    @property
    def facts(self) -> NetworkFacts:
        """What is known of it."""

    @property
    def title(self) -> str:
        """What it is and where it runs, in a few words."""

    def logits(self, pixels: UInt8Array) -> Float32Array:
        """From uint8 (n, size, size, 3), RGB, to float32 (n, 2), columns as in `CLASS_NAMES`."""

    def heat(self, pixels: UInt8Array, classes: npt.NDArray[np.int64]) -> Float32Array:
        """What speaks for one class of each image, int64 (n,): float32, (n, size, size), in [0, 1]."""
