"""Files in place of weights and checkpoints that a stranger could send."""

import io
import os
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


class Entries:
    """An OrderedDict when it is unpickled; unlike in a dict, its keys are not hashed here."""

    def __init__(self, *entries: tuple[object, object], attributes: dict[str, object] | None = None) -> None:
        self.entries, self.attributes = entries, attributes

    def __reduce__(self) -> tuple[object, ...]:
        return OrderedDict, (), self.attributes, None, iter(self.entries)


def saved(content: object, *, legacy: bool = False) -> bytes:
    """What torch.save writes."""
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # of old kinds of storages
        torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def program() -> bytes:
    """A TorchScript archive, as far as its members say."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("data.pkl", "code/__torch__/torch/nn/modules/linear.py", "constants.pkl", "version"):
            archive.writestr(f"program/{name}", pickle.dumps({}, protocol=2))
    return file.getvalue()


def safetensors() -> bytes:
    """A safetensors file of one number."""
    header = b'{"conv1.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    return struct.pack("<Q", len(header)) + header + bytes(4)


def repacked(content: bytes, *, compressed: bool = False, twice: str = "", without: str = "") -> bytes:
    """The same archive, packed by another program."""
    file = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w", method) as new:
        for name in old.namelist():
            if not without or not name.endswith(without):
                new.writestr(name, old.read(name))
            if twice and name.endswith(twice):
                new.writestr(name.upper(), old.read(name))
    return file.getvalue()


@cache
def many_zeros() -> bytes:
    """A compressed archive of 120 MB."""
    return repacked(saved({"a": torch.zeros(30_000_000)}), compressed=True)


def tensor(shape: tuple[int, ...], stride: tuple[int, ...], *, n_stored: int = 4) -> Call:
    """A tensor that says what shape it has, over a storage of another size."""
    with warnings.catch_warnings(action="ignore"):  # typed storages are old
        storage = torch.zeros(n_stored).storage()
    return Call(torch._utils._rebuild_tensor_v2, storage, 0, shape, stride, False, OrderedDict())


def nested(kind: type, *, depth: int = 60) -> object:
    """A value that holds itself twice, again and again: small in a file, and 2 ** 60 when it is written out."""
    value: object = kind([1])
    for _ in range(depth):
        value = kind([value, value])
    return value


def hostile_files(ran: Path) -> dict[str, tuple[bytes, str]]:
    """Content and expected words by kind; a payload that runs makes a folder.

    Args:
        ran: That folder.
    """
    payload = Call(os.mkdir, str(ran))
    called = f"{os.mkdir.__module__}.mkdir"
    return {
        "nothing": (b"", "damaged, or something else"),
        "a text": (b"no tensors", "damaged, or something else"),
        "a pickle that calls": (pickle.dumps(payload, protocol=2), f"asks for '{called}'"),
        "an archive that calls": (saved({"state_dict": payload}), f"asks for '{called}'"),
        "an old file that calls": (saved({"state_dict": payload}, legacy=True), f"asks for '{called}'"),
        "a call of newer pickles": (pickle.dumps({"a": payload}, protocol=4), "pickle protocol 4"),
        "a module": (saved(torch.nn.Linear(2, 2)), "asks for 'torch.nn.modules.linear.Linear'"),
        "a program": (program(), "a TorchScript program"),
        "safetensors": (safetensors(), "a safetensors file"),
        "memory for the asking": (saved({"a": Call(bytearray, 10**11)}), "asks for '__builtin__.bytearray'"),
        "a tensor without memory": (
            saved({"a": torch.empty(10**12, device="meta")}),
            "_rebuild_meta_tensor_no_storage",
        ),
        "a tensor without numbers": (saved({"a": Call(torch.FloatTensor, 10**9)}), "asks for 'torch.FloatTensor'"),
        "less stored than shaped": (saved({"a": tensor((10**9,), (1,))}), "damaged, or something else"),
        "less stored than shaped, old": (saved({"a": tensor((10**9,), (1,))}, legacy=True), "damaged, or something"),
        "compressed": (many_zeros(), "would unpack to 120,0"),
        "a description in two cases": (repacked(saved({"a": 1}), twice="data.pkl"), "an archive of something else"),
        "no description": (repacked(saved({"a": 1}), without="data.pkl"), "an archive of something else"),
        "a key that takes years": (saved(Entries((nested(tuple), 1))), "holds a tuple more than once"),
        "keys that collide": (saved({number * (2**61 - 1): 1 for number in range(2_000)}), "more values than"),
        "a list": (saved([1, 2]), "holds no dict"),
    }
