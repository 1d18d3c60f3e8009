"""Files of tensors from anyone: plain values and dense tensors, no larger than their file, or refused.

`torch.load(weights_only=True)` runs nothing of a stranger's. But a file of a kilobyte may have it fill any amount of
memory (bytearray, compressed members) or compute for years (a tuple that holds itself twice, sixty times over, as a
key), and it compares no checksum. So a file is looked at before it is loaded.
"""

import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch

from breakhis_pl.evaluation.texts import quoted
from breakhis_pl.files import open_file

MOST_OPERATIONS = 1_000_000
"""Of the pickle in a file; a checkpoint of the largest network has 40,000."""

MOST_LARGE_INTEGERS = 1_000
"""Of more than 32 bits; a hundred thousand of them can be chosen so that a dict of them takes hours."""

_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_KNOWN = frozenset(
    {
        "collections OrderedDict",
        "torch._utils _rebuild_tensor",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        "torch.nn.parameter Parameter",
        *(f"torch {name}Storage" for name in _STORAGES),
    }
)
"""What state dicts and checkpoints are made of."""

_TUPLES = frozenset({"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"})
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_N_LEGACY_PICKLES = 5  # before torch 1.6: magic number, protocol, system, content, names of storages


class TensorFileError(ValueError):
    """A file is no file of tensors and plain values; the text says what it is, without its name."""


def read_tensor_file(path: Path) -> dict[Any, Any]:
    """The dict in a file that torch.save wrote, on the CPU; nothing in the file is run.

    Args:
        path: The file; in torch's format of today (checksums are compared) or that from before torch 1.6.

    Returns:
        Its values are whatever the file says; `plain_dict` makes inner ones safe to ask.

    Raises:
        TensorFileError: If it is something else, damaged, or would take more memory than it has bytes.
    """
    try:
        if zipfile.is_zipfile(path):
            _check_archive(path)
        else:
            _check_legacy(path)
        content = plain_dict(torch.load(path, map_location="cpu", weights_only=True))
    except TensorFileError:
        raise
    except OSError as error:
        raise TensorFileError(f"it cannot be read ({error.strerror or error})") from error
    except Exception as error:  # torch and zipfile raise whatever their parsers do, torch with advice to load unsafely
        raise TensorFileError(f"it is damaged, or something else ({type(error).__name__} while reading)") from error
    if content is None:
        raise TensorFileError("it holds no dict")
    return content


def plain_dict(value: object) -> dict[Any, Any] | None:
    """A dict with the same entries; None of anything else.

    An OrderedDict in a file may have attributes in place of its methods, so that `value.items()` is not what it seems.
    """
    return dict(dict.items(value)) if isinstance(value, dict) else None


def _check_archive(path: Path) -> None:
    """Looks at a file in the format since torch 1.6, which is a ZIP archive without compression.

    Raises:
        TensorFileError: If it is none, or damaged.
    """
    with open_file(path) as file, zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = {member.filename.lower() for member in members}  # torch asks for names in either case
        if any(name.endswith("/constants.pkl") for name in names):
            raise TensorFileError("it is a TorchScript program")
        described = [member for member in members if member.filename.lower().endswith("/data.pkl")]
        if len(described) != 1 or len(names) != len(members):
            raise TensorFileError("it is an archive of something else")
        n_bytes = sum(member.file_size for member in members)
        if n_bytes > path.stat().st_size or any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise TensorFileError(f"it would unpack to {n_bytes:,} bytes; torch.save does not compress")
        damaged = archive.testzip()
        if damaged is not None:
            raise TensorFileError(f"it is damaged: the checksum of {quoted(damaged)} differs")
        _check_pickle(archive.read(described[0]))


def _check_legacy(path: Path) -> None:
    """Looks at a file in the format from before torch 1.6: pickles one after the other, then numbers.

    Raises:
        TensorFileError: If it is none.
    """
    with open_file(path) as file:
        start = file.read(9)
        if start[8:] == b"{":
            raise TensorFileError("it is a safetensors file")
        file.seek(0)
        for _ in range(_N_LEGACY_PICKLES):
            _check_pickle(file)


def _check_pickle(content: Any) -> None:
    """Looks at a pickle without loading it.

    Args:
        content: Bytes, or a file at the start of the pickle; then at its end afterwards.

    Raises:
        TensorFileError: If it makes anything but plain values and tensors, or too much of them.
        Exception: Whatever the parser raises.
    """
    tuples: set[Any] = set()
    is_tuple, n_large = False, 0
    for number, (operation, argument, _) in enumerate(pickletools.genops(content)):
        name = operation.name
        if name == "GLOBAL" and argument not in _KNOWN:
            raise TensorFileError(
                f"it asks for {quoted(str(argument).replace(' ', '.'))}, which is no part of tensors or plain values"
            )
        if name == "PROTO" and argument != 2:
            raise TensorFileError(f"it is written with pickle protocol {argument}, torch.save uses 2")
        if name in _PUTS:
            (tuples.add if is_tuple else tuples.discard)(argument)
            continue
        if name in _GETS and argument in tuples:
            raise TensorFileError("it holds a tuple more than once")
        is_tuple = name in _TUPLES
        n_large += name in {"LONG1", "LONG4"}
        if number > MOST_OPERATIONS or n_large > MOST_LARGE_INTEGERS:
            raise TensorFileError("it holds more values than a network has")
