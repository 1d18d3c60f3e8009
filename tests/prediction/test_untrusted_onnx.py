"""Exported networks from other hands: what is not one of ours is refused before ONNX Runtime sees it."""

import builtins
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from breakhis_pl.errors import CheckpointError, ConfigurationError
from breakhis_pl.prediction import onnx_network
from breakhis_pl.prediction.exported_facts import PREFIX, to_metadata
from breakhis_pl.prediction.facts import NetworkFacts
from breakhis_pl.prediction.onnx_network import open_exported
from tests.evaluation.mutations import mutated_bytes

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
helper = onnx.helper
FACTS = NetworkFacts("resnet18", 32, (0.5,) * 3, (0.1,) * 3, None, None)
N_MUTATED = 150


def model(*more: Any, weights: list[Any] | None = None, size: int = 32, **entries: Any) -> Any:
    """The smallest network of the form that is exported: the mean of an image, times two weights."""
    nodes = [
        *more,
        helper.make_node("Cast", ["pixels"], ["float"], to=onnx.TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "last"], ["column"]),
        helper.make_node("MatMul", ["column", "weight"], ["logits"]),
    ]
    constants = [
        helper.make_tensor("axes", onnx.TensorProto.INT64, [3], [1, 2, 3]),
        helper.make_tensor("last", onnx.TensorProto.INT64, [1], [1]),
        helper.make_tensor("weight", onnx.TensorProto.FLOAT, [1, 2], [0.0, 0.01]),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("pixels", onnx.TensorProto.UINT8, ["batch", size, size, 3])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 2])],
        [*constants, *(weights or [])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    texts = to_metadata(FACTS, origin={})
    for name, value in entries.items():
        texts[f"{PREFIX}{name}"] = value if isinstance(value, str) else json.dumps(value)
    helper.set_model_props(made, texts)
    return made


def saved(folder: Path, made: Any) -> Path:
    path = folder / "network.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def test_a_network_of_the_right_form_is_run(tmp_path: Path) -> None:
    network = open_exported(saved(tmp_path, model()))
    assert network.facts == FACTS
    pixels = np.full((3, 32, 32, 3), 100, dtype=np.uint8)
    assert network.logits(pixels) == pytest.approx(np.array([[0, 1]] * 3), abs=1e-5)
    with pytest.raises(ConfigurationError, match="no gradients"):
        network.heat(pixels, np.zeros(3, dtype=np.int64))


def external(made: Any, place: str) -> Any:
    tensor = made.graph.initializer[2]
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    return made


def with_batch_norm_of_a_stranger(made: Any) -> Any:
    made.graph.node[0].domain = "com.microsoft"
    return made


def with_graph_inside(_: Any) -> Any:
    inner = helper.make_graph([], "inner", [], [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])])
    node = helper.make_node("If", ["condition"], ["y"], then_branch=inner, else_branch=inner)
    condition = helper.make_tensor("condition", onnx.TensorProto.BOOL, [], [True])
    return model(node, weights=[condition])


def filling_memory(_: Any) -> Any:
    shape = helper.make_tensor("shape", onnx.TensorProto.INT64, [2], [2**20, 2**20])
    return model(helper.make_node("ConstantOfShape", ["shape"], ["much"]), weights=[shape])


def filling_memory_bit_by_bit(_: Any) -> Any:
    shape = helper.make_tensor("shape", onnx.TensorProto.INT64, [1], [2**22])
    nodes = [helper.make_node("ConstantOfShape", ["shape"], [f"much{number}"]) for number in range(3)]
    return model(*nodes, weights=[shape])


def of_unknown_size(_: Any) -> Any:
    return model(helper.make_node("NonZero", ["pixels"], ["where"]))


def with_weights_larger_than_the_file(made: Any) -> Any:
    made.graph.initializer[2].dims[:] = [2**31, 2**31]
    return made


def with_a_function(made: Any) -> Any:
    node = helper.make_node("Identity", ["a"], ["b"])
    made.functions.append(helper.make_function("mine", "f", ["a"], ["b"], [node], [helper.make_opsetid("", 18)]))
    return made


def not_fitting(made: Any) -> Any:
    made.graph.initializer[2].dims[:] = [2, 1]
    return made


def with_two_inputs(made: Any) -> Any:
    made.graph.input.append(helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, [1]))
    return made


def with_another_output(made: Any) -> Any:
    made.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 8
    return made


def with_an_input_of_no_size(made: Any) -> Any:
    made.graph.input[0].type.tensor_type.ClearField("shape")
    return made


HOSTILE: list[tuple[Callable[[Any], Any], str]] = [
    (lambda made: external(made, "../../etc/passwd"), r"lie in another file, '\.\./\.\./etc/passwd'"),
    (lambda made: external(made, "network.data"), "lie in another file, 'network.data'"),
    (with_batch_norm_of_a_stranger, "a node of another domain, 'com.microsoft'"),
    (with_graph_inside, "holds graphs or other parts"),
    (filling_memory, r"'much' has 1,099,511,627,776 numbers, expected at most 268,435,456"),
    (filling_memory_bit_by_bit, "it computes 12,5.* numbers for an image, expected at most 10,240,000"),
    (of_unknown_size, "the size of its value 'where' is not known beforehand"),
    (with_weights_larger_than_the_file, "'weight' are larger than the file"),
    (with_a_function, "it holds functions, training or sparse weights"),
    (not_fitting, "its graph does not fit together"),
    (with_two_inputs, r"its input is not pixels, uint8 \(batch, 32, 32, 3\)"),
    (with_an_input_of_no_size, r"its input is not pixels, uint8 \(batch, 32, 32, 3\)"),
    (with_another_output, r"its output is not logits, float \(batch, 2\)"),
]


@pytest.mark.parametrize(("change", "match"), HOSTILE)
def test_what_a_network_has_no_need_of_is_refused(
    change: Callable[[Any], Any], match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, change(model()))
    monkeypatch.setattr(runtime, "InferenceSession", None)  # it is not reached
    with pytest.raises(CheckpointError, match=match):
        open_exported(path)


ENTRIES: list[tuple[dict[str, Any], str]] = [
    ({"format": 2}, "format is 2, not 1: another version wrote it"),
    ({"class_names": ["a", "b"]}, "class_names is"),
    ({"backbone": 5}, "backbone is 5, not a name"),
    ({"backbone": '"a\\nb"'}, "backbone is 'a\\\\nb', not a name"),
    ({"image_size": 10**9}, "image_size is 1000000000, not a whole number from 32 to 4,096"),
    ({"image_size": True}, "image_size is True"),
    ({"mean": [1, 2]}, r"mean is \[1, 2\], not three numbers up to 1"),
    ({"std": [0, 1, 1]}, "std is"),
    ({"calibration": {"temperature": 1}}, "calibration: expected an object with temperature"),
    ({"domain": 5}, "not those of this version"),
    ({"mean": "{"}, "mean is no JSON: '{'"),
    ({"mean": "[" * 50_000}, "mean is no JSON"),
    ({"mean": "1" * 200_000}, "mean has 200,000 characters"),
]


@pytest.mark.parametrize(("entries", "match"), ENTRIES)
def test_metadata_that_cannot_be_is_refused(entries: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=match):
        open_exported(saved(tmp_path, model(**entries)))


@pytest.mark.parametrize("name", ["format", "class_names", "image_size", "std", "domain"])
def test_missing_metadata_is_named(name: str, tmp_path: Path) -> None:
    made = model()
    kept = {entry.key: entry.value for entry in made.metadata_props if entry.key != f"{PREFIX}{name}"}
    del made.metadata_props[:]
    helper.set_model_props(made, kept)
    with pytest.raises(CheckpointError, match=f"its metadata has no breakhis_pl.{name}"):
        open_exported(saved(tmp_path, made))


def test_what_is_no_onnx_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    with pytest.raises(CheckpointError, match=r"a\.onnx does not exist"):
        open_exported(path)
    for content, match in ((b"", "it has no bytes"), (b"hello", "no ONNX file, or damaged"), (b"PK\3\4", "damaged")):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=match):
            open_exported(path)


def test_too_large_files_and_graphs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, model())
    monkeypatch.setattr(onnx_network, "MOST_NODES", 3)
    with pytest.raises(CheckpointError, match="it has 4 nodes, expected at most 3"):
        open_exported(path)
    monkeypatch.setattr(onnx_network, "LARGEST_FILE", 10)
    with pytest.raises(CheckpointError, match="it has too many bytes"):
        open_exported(path)


def test_mutated_files_give_a_network_or_one_of_our_errors(tmp_path: Path) -> None:
    whole = model().SerializeToString()
    rng = random.Random(0)
    n_refused = 0
    for number in range(N_MUTATED):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(mutated_bytes(whole, rng))
        try:
            network = open_exported(path)
            network.logits(np.zeros((1, 32, 32, 3), dtype=np.uint8))
        except CheckpointError:
            n_refused += 1
    assert n_refused > N_MUTATED / 2


def test_a_network_that_answers_something_else_is_refused(tmp_path: Path) -> None:
    network = open_exported(saved(tmp_path, model()))

    class Session:
        def __init__(self, answer: np.ndarray | None) -> None:
            self.answer = answer

        def run(self, *_: object) -> list[np.ndarray]:
            if self.answer is None:
                raise RuntimeError("no memory")
            return [self.answer]

    pixels = np.zeros((1, 32, 32, 3), dtype=np.uint8)
    network.session = Session(np.zeros((1, 3), np.float32))
    with pytest.raises(CheckpointError, match=r"gave float32 \(1, 3\) for 1 images"):
        network.logits(pixels)
    network.session = Session(None)
    with pytest.raises(CheckpointError, match="cannot be run: no memory"):
        network.logits(pixels)


def test_what_the_runtime_refuses_is_one_of_our_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise RuntimeError("not\nimplemented")

    monkeypatch.setattr(runtime, "InferenceSession", refused)
    with pytest.raises(CheckpointError, match="cannot be run by ONNX Runtime: not implemented"):
        open_exported(saved(tmp_path, model()))


def test_missing_packages_say_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_ = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "onnxruntime":
            raise ImportError("No module named 'onnxruntime'")
        return import_(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigurationError, match="uv sync --extra onnx"):
        open_exported(saved(tmp_path, model()))
