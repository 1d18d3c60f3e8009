"""`python -m breakhis_pl.export_onnx run=<run folder>`: a trained network as one ONNX file that needs no torch."""

import contextlib
import copy
import hashlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from breakhis_pl.data.breakhis import IMAGE_SIZE, official_patients
from breakhis_pl.data.resampling import resized
from breakhis_pl.data.synthetic import draw_tissue
from breakhis_pl.errors import BreakHisError, CheckpointError, ConfigurationError, DataFolderError, StorageError
from breakhis_pl.evaluation.json_values import value_at
from breakhis_pl.evaluation.texts import visible
from breakhis_pl.files import written_aside
from breakhis_pl.prediction.exported_facts import INPUT, OUTPUT, to_metadata
from breakhis_pl.prediction.facts import NOTICE, UInt8Array
from breakhis_pl.prediction.inputs import find_inputs
from breakhis_pl.prediction.onnx_network import open_exported, packages
from breakhis_pl.prediction.run_network import RunNetwork, open_run
from breakhis_pl.prediction.stream import Decoded, decode
from breakhis_pl.run_json import read_run
from breakhis_pl.training.checkpoints import named_checkpoint

TOLERANCE = 1e-4
"""Of a logit, relative where it is above 1: how far ONNX Runtime may lie from torch."""

N_CHECKED = 32
"""Images that both are run on."""

USAGE = """\
usage: python -m breakhis_pl.export_onnx run=<run folder> [key=value …]

Writes the network of a run as one ONNX file, with what belongs to it in its metadata, and checks on images that
ONNX Runtime gives the same. Needs the packages of `uv sync --extra onnx`.

Keys
  run                the run folder
  out                the file to write, its name ends in .onnx; <run folder>/network.onnx unless given
  checkpoint=auto    best where an epoch was chosen, else last; best, last, or a path
  images             file, folder or pattern of the images to check on; the run's own, or drawn ones, unless given

Afterwards: python predict.py run=<file> images=<file, folder or pattern>
"""

_KEYS = ("run", "out", "checkpoint", "images")


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        path: The file.
        n_checked: Images that torch and ONNX Runtime were compared on.
        checked_on: What these are.
        logit_difference: The largest, absolute.
    """

    path: Path
    n_checked: int
    checked_on: str
    logit_difference: float


class _WholeNetwork(nn.Module):
    """A network with its normalization: from uint8 (batch, size, size, 3), RGB, to logits (batch, 2)."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: RunNetwork) -> None:
        super().__init__()
        # of a network in channels_last, torch 2.15's exporter writes the mean over places as a gather by strides, whose
        # size nobody knows beforehand
        self.network = copy.deepcopy(network.classifier.binary_network()).to(memory_format=torch.contiguous_format)
        self.register_buffer("scale", (1 / (255 * network.std)).view(3, 1, 1))
        self.register_buffer("shift", (-network.mean / network.std).view(3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits; float32, (batch, 2)."""
        images = pixels.permute(0, 3, 1, 2).contiguous().float()  # (batch, 3, size, size)
        logits: Tensor = self.network(images * self.scale + self.shift)
        return logits.float()


def export_onnx(run: Path, *, out: Path | None = None, checkpoint: str = "auto", images: str | None = None) -> Exported:
    """Writes a run's network as an ONNX file, if ONNX Runtime then gives what torch gives.

    Args:
        run: The run folder.
        out: The file; None takes `network.onnx` in the run folder.
        checkpoint: "auto" (the one that counts), "last", "best", or the path of a checkpoint.
        images: File, folder or pattern of images to compare on; None takes the run's own, or drawn ones.

    Raises:
        BreakHisError: If run, checkpoint, images or packages are not usable.
        CheckpointError: If ONNX Runtime gives something else; no file is left then.
        StorageError: If the file cannot be written.
    """
    packages()
    out = run / "network.onnx" if out is None else out
    if out.suffix.lower() != ".onnx":
        raise ConfigurationError(f"out={out} is not possible; expected a name that ends in .onnx, by which it is known")
    network = open_run(run, checkpoint=checkpoint, accelerator="cpu", precision="32-true")
    pixels, checked_on = _images_to_check(run, network.facts.image_size, images)
    program = _exported(network)
    program.model.metadata_props.update(
        to_metadata(network.facts, origin=_origin(run, named_checkpoint(run, checkpoint)))
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(out) as aside:
            program.save(aside, external_data=False)
            difference = _check(aside, network, pixels)
    except BreakHisError:
        raise
    except OSError as error:
        raise StorageError(f"{out} cannot be written ({error.strerror or error}); set out to another file") from error
    return Exported(out, len(pixels), checked_on, difference)


def _exported(network: RunNetwork) -> torch.onnx.ONNXProgram:
    """The network as torch's exporter sees it, any number of images at once.

    Raises:
        CheckpointError: If it cannot be exported.
    """
    size = network.facts.image_size
    example = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    try:
        with _quiet():
            program = torch.onnx.export(
                _WholeNetwork(network).eval(),
                (example,),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises whatever its parts do
        raise CheckpointError(
            f"torch {torch.__version__} cannot export {network.facts.backbone}: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    if program is None:  # pragma: no cover - only without dynamo
        raise CheckpointError(f"torch {torch.__version__} gave nothing for {network.facts.backbone}")
    return program


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's advice to developers from the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _check(path: Path, network: RunNetwork, pixels: UInt8Array) -> float:
    """Runs a file as predict.py would, in batches of several sizes; the largest difference of a logit.

    Raises:
        CheckpointError: If it is not what torch gives, or predict.py would refuse the file.
    """
    exported = open_exported(path)
    if exported.facts != network.facts:
        raise CheckpointError("the facts in the file's metadata are not those of the run; this is a defect, report it")
    largest = 0.0
    for batch in (pixels[:1], pixels[1:4], pixels[4:]):
        if len(batch) == 0:
            continue
        ours, theirs = network.logits(batch), exported.logits(batch)
        difference = np.abs(ours - theirs)
        if not (difference <= TOLERANCE * np.maximum(1, np.abs(ours))).all():  # also where one is not a number
            raise CheckpointError(
                f"ONNX Runtime gives other logits than torch, by {difference.max():.2g} (expected at most "
                f"{TOLERANCE:g}); no file is left; try other versions of onnx, onnxscript and onnxruntime"
            )
        largest = max(largest, float(difference.max()))
    return largest


def _images_to_check(run: Path, size: int, images: str | None) -> tuple[UInt8Array, str]:
    """Pixels to compare on, and what they are; uint8, (n, size, size, 3).

    Raises:
        DataFolderError: If images were named and none of them can be read.
    """
    root = value_at(read_run(run), "config", "data", "root")
    wanted = images or (root if isinstance(root, str) else "")
    if wanted:
        try:
            paths = find_inputs(wanted).paths
        except DataFolderError:
            if images is not None:
                raise
            paths = ()
        chosen = paths[:: max(1, len(paths) // N_CHECKED)][:N_CHECKED]
        found = [each.pixels for path in chosen if isinstance(each := decode(path, size), Decoded)]
        if found:
            return np.stack(found), f"images from {wanted}"
        if images is not None:
            raise DataFolderError(f"none of the {len(chosen)} images of images={images} can be read; name others")
    patients = list(official_patients())[:: len(official_patients()) // N_CHECKED][:N_CHECKED]
    small = (IMAGE_SIZE[0] // 4, IMAGE_SIZE[1] // 4)
    return np.stack([resized(draw_tissue(patient, 1, size=small), size) for patient in patients]), "drawn images"


def _origin(run: Path, checkpoint: Path) -> dict[str, Any]:
    """Where the network comes from, for the file's metadata."""
    facts = read_run(run)
    with checkpoint.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "checkpoint_sha256": checksum,
        "commit": facts.get("commit"),
        "uncommitted_changes": facts.get("uncommitted_changes"),
        "trained": facts.get("finished"),
        "data": facts["data"].get("description"),
        "drawn_images": facts["data"].get("synthetic"),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status.

    Args:
        arguments: What follows the program's name; by default `sys.argv`.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or {"-h", "--help"} & set(given):
        sys.stdout.write(USAGE)
        return 0 if given else 2
    try:
        values = _values(given)
        done = export_onnx(
            Path(values["run"]),
            out=Path(values["out"]) if "out" in values else None,
            checkpoint=values.get("checkpoint", "auto"),
            images=values.get("images"),
        )
    except BreakHisError as error:
        sys.stderr.write(f"{visible(str(error))}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; no file is left\n")
        return 130
    sys.stdout.write(
        f"{visible(str(done.path))}: {done.path.stat().st_size / 1e6:.1f} MB; ONNX Runtime and torch differ by "
        f"{done.logit_difference:.1e} at most in a logit ({done.n_checked} {visible(done.checked_on)})\n{NOTICE}\n"
    )
    return 0


def _values(given: Sequence[str]) -> dict[str, str]:
    """The keys of the command line.

    Raises:
        ConfigurationError: If something else is there, or `run` is not.
    """
    values: dict[str, str] = {}
    for argument in given:
        name, separator, value = argument.partition("=")
        if name not in _KEYS or not separator or not value or name in values:
            raise ConfigurationError(
                f"{argument} is not possible; expected {', '.join(f'{key}=<value>' for key in _KEYS)}, each once"
            )
        values[name] = value
    if "run" not in values:
        raise ConfigurationError("nothing to export: set run=<run folder>")
    return values


if __name__ == "__main__":
    sys.exit(main())
