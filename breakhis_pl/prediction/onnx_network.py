"""A network that breakhis_pl.export_onnx wrote, run by ONNX Runtime (no torch).

A file of anyone is looked at before the runtime sees it: the runtime would read other files that it names, and fill any
amount of memory that it asks for.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from breakhis_pl.errors import CheckpointError, ConfigurationError, listed
from breakhis_pl.evaluation.texts import quoted, visible
from breakhis_pl.files import open_file
from breakhis_pl.prediction.exported_facts import INPUT, OUTPUT, from_metadata
from breakhis_pl.prediction.facts import Float32Array, NetworkFacts, UInt8Array

LARGEST_FILE = 2**31 - 1
"""Bytes of a file; no protocol buffer is larger."""

MOST_NODES = 50_000
"""Of a graph; the largest network here has 400."""

LARGEST_VALUE = 2**28
"""Numbers in one value of the graph, for one image; a residual network's first at 4,096 pixels has as many."""

MOST_PER_PIXEL = 10_000
"""Numbers in all values of the graph, for one image, by pixel of the image; Wide-ResNet-50-2 has a thousand."""

MOST_NUMBERS = 2**32
"""The same, whatever the image."""

_KEPT_NUMBERS = 1_000
"""Of a constant that may say what shape something has; larger ones are weights."""


class ExportedNetwork:
    """An exported network in ONNX Runtime, on the CPU.

    Args:
        session: The runtime's.
        facts: From the file's metadata.
    """

    def __init__(self, session: Any, facts: NetworkFacts) -> None:
        self.session = session
        self.facts = facts
        self.title = f"{facts.backbone}, exported, 32-true on cpu (ONNX Runtime)"

    def logits(self, pixels: UInt8Array) -> Float32Array:
        """From uint8 (n, size, size, 3), RGB, to float32 (n, 2), columns as in `CLASS_NAMES`.

        Raises:
            CheckpointError: If the network cannot be run.
        """
        try:
            (logits,) = self.session.run([OUTPUT], {INPUT: np.ascontiguousarray(pixels)})
        except Exception as error:  # the runtime raises whatever its operators do
            raise CheckpointError(f"the exported network cannot be run: {_one_line(error)}; export it again") from error
        if logits.shape != (len(pixels), 2) or logits.dtype != np.float32:
            raise CheckpointError(
                f"the exported network gave {logits.dtype} {logits.shape} for {len(pixels)} images, expected float32 "
                f"({len(pixels)}, 2); export it again"
            )
        return np.asarray(logits, dtype=np.float32)

    def heat(self, pixels: UInt8Array, classes: npt.NDArray[np.int64]) -> Float32Array:
        """Not possible: there are no gradients.

        Raises:
            ConfigurationError: Always; the configuration is refused before.
        """
        raise ConfigurationError(
            f"gradcam of {len(pixels)} images, classes {listed(set(classes.tolist()))}: an exported network has no "
            "gradients; set run=<run folder>"
        )


def open_exported(path: Path) -> ExportedNetwork:
    """The network in a file.

    Args:
        path: Written by `breakhis_pl.export_onnx`.

    Raises:
        CheckpointError: If it is missing, damaged, something else, or asks for more than a network needs.
        ConfigurationError: If packages are missing.
    """
    onnx, runtime = packages()
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist; expected a network that `python -m breakhis_pl.export_onnx run=<run folder>` wrote"
        )
    try:
        with open_file(path) as file:
            content = file.read(LARGEST_FILE + 1)
        facts = _checked(onnx, content)
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors, which are raised as well
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"{path} is no exported network of breakhis_pl: {error}; expected what "
            "`python -m breakhis_pl.export_onnx run=<run folder>` wrote"
        ) from error
    except Exception as error:  # the runtime raises whatever its parsers do
        raise CheckpointError(f"{path} cannot be run by ONNX Runtime: {_one_line(error)}") from error
    return ExportedNetwork(session, facts)


def packages() -> tuple[ModuleType, ModuleType]:
    """The packages onnx and onnxruntime.

    Raises:
        ConfigurationError: If they are not there.
    """
    try:
        import onnx  # noqa: PLC0415 - an optional package
        import onnxruntime  # noqa: PLC0415
    except ImportError as error:
        raise ConfigurationError(
            f"exported networks need packages that are not there ({error}); install them with: uv sync --extra onnx"
        ) from error
    return onnx, onnxruntime


def _checked(onnx: ModuleType, content: bytes) -> NetworkFacts:
    """The facts of a network whose graph may be run.

    Raises:
        ValueError: If it may not; the text says why.
    """
    if not 0 < len(content) <= LARGEST_FILE:
        raise ValueError(f"it has {'no' if not content else 'too many'} bytes")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as error:  # of protobuf, by another name in each of its versions
        raise ValueError("it is no ONNX file, or damaged") from error
    facts = from_metadata({entry.key: entry.value for entry in model.metadata_props})
    _check_parts(onnx, model, n_bytes=len(content))
    _check_ends(onnx, model.graph, facts)
    _check_sizes(onnx, model, facts)
    return facts


def _check_parts(onnx: ModuleType, model: Any, *, n_bytes: int) -> None:
    """Refuses what our exporter does not write and a runtime might act upon.

    Raises:
        ValueError: Naming it.
    """
    graph = model.graph
    if model.functions or model.training_info or graph.sparse_initializer:
        raise ValueError("it holds functions, training or sparse weights")
    if len(graph.node) > MOST_NODES:
        raise ValueError(f"it has {len(graph.node):,} nodes, expected at most {MOST_NODES:,}")
    kinds = onnx.AttributeProto
    for node in graph.node:
        if node.domain not in {"", "ai.onnx"}:
            raise ValueError(f"it has a node of another domain, {quoted(node.domain)}")
        if any(
            attribute.type
            not in {kinds.INT, kinds.FLOAT, kinds.STRING, kinds.TENSOR, kinds.INTS, kinds.FLOATS, kinds.STRINGS}
            for attribute in node.attribute
        ):
            raise ValueError(f"its node {quoted(node.name)} holds graphs or other parts")
    for tensor in _tensors(onnx, graph):
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            place = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
            raise ValueError(f"its weights {quoted(tensor.name)} lie in another file, {quoted(place)}")
        if any(side < 0 for side in tensor.dims) or math.prod(tensor.dims) > 8 * n_bytes:
            raise ValueError(f"its weights {quoted(tensor.name)} are larger than the file, {list(tensor.dims)}")


def _tensors(onnx: ModuleType, graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        yield from (attribute.t for attribute in node.attribute if attribute.type == onnx.AttributeProto.TENSOR)


def _check_ends(onnx: ModuleType, graph: Any, facts: NetworkFacts) -> None:
    """Makes sure that there is one input and one output, of the kinds that metadata promise.

    Raises:
        ValueError: If not.
    """
    kinds = onnx.TensorProto
    inputs = [(one.name, one.type.tensor_type.elem_type, _sides(one)[1:]) for one in graph.input]
    outputs = [(one.name, one.type.tensor_type.elem_type, _sides(one)[1:]) for one in graph.output]
    size = facts.image_size
    for what, found, expected in (
        ("input", inputs, [(INPUT, kinds.UINT8, [size, size, 3])]),
        ("output", outputs, [(OUTPUT, kinds.FLOAT, [2])]),
    ):
        if found != expected:
            name, kind, sides = expected[0]
            wanted = f"{name}, {kinds.DataType.Name(kind).lower()} (batch, {', '.join(map(str, sides))})"
            raise ValueError(f"its {what} is not {wanted}")


def _check_sizes(onnx: ModuleType, model: Any, facts: NetworkFacts) -> None:
    """Makes sure that what the graph computes for an image has known and sensible sizes.

    Args:
        onnx: The package.
        model: Parsed; changed by this.
        facts: Of the network.

    Raises:
        ValueError: If not.
    """
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) > _KEPT_NUMBERS:  # not needed for shapes
            tensor.raw_data = b""
            for field in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
                tensor.ClearField(field)
    for one in model.graph.input:
        one.type.tensor_type.shape.dim[0].dim_value = 1
    for one in model.graph.output:
        one.type.tensor_type.shape.dim[0].ClearField("dim_param")
    del model.graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    except Exception as error:  # of its own kinds
        raise ValueError(f"its graph does not fit together: {_one_line(error)}") from error
    sides = {one.name: _sides(one) for one in (*inferred.value_info, *inferred.output)}
    total = 0
    for name in (name for node in inferred.node for name in node.output if name):
        shape = sides.get(name)
        if shape is None or any(side is None for side in shape):
            raise ValueError(f"the size of its value {quoted(name)} is not known beforehand")
        n_numbers = math.prod(side for side in shape if side is not None)
        total += n_numbers
        if n_numbers > LARGEST_VALUE:
            raise ValueError(f"its value {quoted(name)} has {n_numbers:,} numbers, expected at most {LARGEST_VALUE:,}")
    most = min(MOST_PER_PIXEL * facts.image_size**2, MOST_NUMBERS)
    if total > most:
        raise ValueError(f"it computes {total:,} numbers for an image, expected at most {most:,}")


def _sides(value: Any) -> list[int | None]:
    """Sides of a value; None where one is not known."""
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.WhichOneof("value") == "dim_value" else None for dim in dims]


def _one_line(error: Exception) -> str:
    return " ".join(visible(str(error)).split())[:300]
