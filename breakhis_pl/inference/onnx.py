"""Export a trained network as an ONNX file that is compared with ONNX Runtime.

uv run python -m breakhis_pl.inference.onnx run=<run folder> [out=<file>.onnx] [checkpoint=auto|best|last|<path>]
"""

import copy
import hashlib
import json
import logging
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from breakhis_pl.config import DeviceConfig, TrainConfig, validate
from breakhis_pl.data.dataset import open_dataset
from breakhis_pl.data.images import UInt8Array
from breakhis_pl.errors import BreakHisError, CheckpointError, ConfigurationError, DataError
from breakhis_pl.inference.model_card import model_card
from breakhis_pl.inference.predictor import NOTICE, Picture, Predictor, open_predictor
from breakhis_pl.run_folder import RunFolder, RunRecord, atomic_write, write_text

TOLERANCE = 1e-4
"""Largest difference of a logit between torch and ONNX Runtime, relative if the logit is above 1."""

LICENSE = "BreakHis (Spanhol et al. 2016): CC BY 4.0; pretrained weights have their own license"

N_COMPARED = 8
"""Number of random images, and of images of the run, that torch and ONNX Runtime are compared on."""


class ExportedNetwork(nn.Module):
    """A network and its normalization: from pixels, uint8 (n, size, size, 3), to logits, float32 (n, n_classes)."""

    scale: Tensor
    shift: Tensor

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        # in channels_last, the exporter of torch 2.15 writes mean pooling with sizes that ONNX Runtime does not know
        self.classifier = copy.deepcopy(predictor.classifier).to(memory_format=torch.contiguous_format)
        self.register_buffer("scale", 1 / (255 * predictor.std))
        self.register_buffer("shift", -predictor.mean / predictor.std)

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute the logits of the final classes."""
        logits: Tensor = self.classifier((pixels.float() * self.scale + self.shift).permute(0, 3, 1, 2).contiguous())
        return logits


def export(run_folder: Path, out: Path, *, checkpoint: str = "auto") -> float:
    """Write a network as an ONNX file, with a model card beside it, if ONNX Runtime computes the logits of torch.

    Returns:
        The largest difference of a logit.

    Raises:
        BreakHisError: If run folder, checkpoint or packages cannot be used.
        CheckpointError: If the network cannot be exported, or its logits differ; no file is left.
    """
    run = RunFolder(run_folder)
    record, device = run.read(), DeviceConfig(accelerator="cpu", precision="32-true")
    predictor = open_predictor(run_folder, checkpoint=checkpoint, trainer=device)
    pixels = images_to_compare(validate(TrainConfig, record.config), predictor)
    metadata = make_metadata(record, predictor, run.checkpoint(checkpoint))
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as temporary:
        try:
            write_onnx(ExportedNetwork(predictor).eval(), temporary, pixels[:2], metadata)
            difference = compare(ExportedNetwork(predictor).eval(), temporary, pixels)
        except ModuleNotFoundError as error:
            raise ConfigurationError(f"{error.name}: is not installed; run `uv sync --extra all`") from error
        except Exception as error:  # exporter and runtime raise many kinds
            difference, reason = np.nan, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        else:
            reason = (
                f"ONNX Runtime computes other logits: difference {difference:.2g}, at most {TOLERANCE:g} is allowed"
            )
        if not difference <= TOLERANCE:  # also if it is not a number
            name = predictor.classifier.config.backbone
            raise CheckpointError(f"{name}: cannot be exported by torch {torch.__version__} ({reason})")
    write_text(out.with_suffix(".md"), model_card(run_folder, metadata))
    return difference


def write_onnx(network: ExportedNetwork, path: Path, example: UInt8Array, metadata: dict[str, Any]) -> None:
    """Write an ONNX file for any number of images."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # advice to developers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (torch.from_numpy(example),),
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # noqa: S101 - it is only without dynamo
    program.model.metadata_props["breakhis_pl"] = json.dumps(metadata, ensure_ascii=False)
    program.save(path, external_data=False)


def compare(network: ExportedNetwork, path: Path, pixels: UInt8Array) -> float:
    """Return the largest difference of a logit between torch and ONNX Runtime, in batches of 1 and of the rest."""
    import onnxruntime  # noqa: PLC0415 - a package of an extra

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    differences = []
    for batch in (pixels[:1], pixels[1:]):
        with torch.inference_mode():
            expected = network(torch.from_numpy(batch)).numpy()
        (logits,) = session.run(["logits"], {"pixels": batch})
        differences.append(np.abs(logits - expected) / np.maximum(1, np.abs(expected)))
    return float(np.concatenate(differences).max())


def images_to_compare(config: TrainConfig, predictor: Predictor) -> UInt8Array:
    """Return random images and, if they are found, images of the run; uint8, (n, size, size, 3)."""
    size = predictor.classifier.image_size
    images = np.random.default_rng(0).integers(0, 256, (N_COMPARED, size, size, 3), dtype=np.uint8)
    try:
        records = open_dataset(config.data, task=config.task, progress_bar=False).records
    except DataError:
        records = ()
    chosen = [predictor.decode(record.path) for record in records[:: len(records) // N_COMPARED + 1]]
    return np.stack([*images, *(picture.pixels for picture in chosen if isinstance(picture, Picture))])


def make_metadata(record: RunRecord, predictor: Predictor, checkpoint: Path) -> dict[str, Any]:
    """Return what a user of the file needs, and where the network comes from, as JSON-compatible values."""
    with checkpoint.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "classes": list(predictor.classifier.parent_classes),
        "image_size": predictor.classifier.image_size,
        "resized": "to a square, bilinearly with antialiasing",
        "mean": predictor.mean.tolist(),
        "std": predictor.std.tolist(),
        "stain": None if predictor.stain is None else predictor.stain.to_plain(),
        "calibration": None if predictor.calibration is None else asdict(predictor.calibration),
        "backbone": predictor.classifier.config.backbone,
        "checkpoint_sha256": checksum,
        "commit": record.commit,
        "data": record.data.get("description"),
        "is_synthetic": record.data.get("synthetic"),
        **({"license": LICENSE} if record.config["data"].get("source") == "breakhis" else {}),
        "notice": NOTICE,
    }


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    values = dict(argument.partition("=")[::2] for argument in arguments)
    try:
        if "run" not in values or values.keys() - {"run", "out", "checkpoint"}:
            raise ConfigurationError(f"{' '.join(arguments)}: unknown or missing keys\n\n{__doc__}")
        out = Path(values.get("out", f"{values['run']}/network.onnx"))
        difference = export(Path(values["run"]), out, checkpoint=values.get("checkpoint", "auto"))
    except BreakHisError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{out}: largest difference of a logit from torch: {difference:.1e}\n{NOTICE}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
