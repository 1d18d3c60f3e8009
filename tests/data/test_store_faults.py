"""Stores as damage, other programs, full disks and other processes leave them."""

import hashlib
import json
import os
import pickle
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from breakhis_pl.config import SyntheticDataConfig
from breakhis_pl.data import store as store_module
from breakhis_pl.data.drawn import synthetic_folder
from breakhis_pl.data.index import ImageRecord, index_images
from breakhis_pl.data.store import Store, open_store
from breakhis_pl.errors import StorageError
from tests.conftest import REPOSITORY
from tests.data.png_files import noise, png
from tests.programs import TINY, run_program

NAMES = [f"SOB_B_A-14-22549AB-200-{number:03d}.png" for number in range(1, 4)]
OPEN_STORE = (
    "import sys; from pathlib import Path; from breakhis_pl.data import store; "
    "from breakhis_pl.data.index import index_images; from breakhis_pl.errors import StorageError\n"
    "store.SPARE_BYTES = -10**12\n"
    "for cache in sys.argv[2:]:\n"
    "    records = index_images(Path(sys.argv[1]), [200])\n"
    "    try: print(store.open_store(records, image_size=32, cache_dir=Path(cache)).built)\n"
    "    except StorageError as error: print(error)\n"
)


@pytest.fixture
def records(tmp_path: Path) -> tuple[ImageRecord, ...]:
    (tmp_path / "images").mkdir()
    for name in NAMES:
        (tmp_path / "images" / name).write_bytes(png(noise(40, 36)))
    return index_images(tmp_path / "images", [200])


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def reopen(records: tuple[ImageRecord, ...], cache: Path) -> Callable[[], Store]:
    return lambda: open_store(records, image_size=32, cache_dir=cache)


def is_same(first: Store, second: Store) -> bool:
    return (
        np.array_equal(first.pixels, second.pixels)
        and np.array_equal(first.sums, second.sums)
        and first.checksums == second.checksums
    )


@pytest.mark.parametrize("name", ["pixels.npy", "store.json"])
def test_a_flipped_bit_is_noticed_wherever_it_is(reopen: Callable[[], Store], name: str) -> None:
    whole = reopen()
    content = (whole.folder / name).read_bytes()
    chance = random.Random(0)
    places = [*range(0, len(content), max(1, len(content) // 150)), len(content) - 1]
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << chance.randrange(8)
        (whole.folder / name).write_bytes(changed)
        again = reopen()
        assert is_same(again, whole), place
        assert again.built, place
        assert (whole.folder / name).read_bytes() == content


@pytest.mark.parametrize("name", ["pixels.npy", "store.json"])
def test_a_store_of_another_length_is_built_again(reopen: Callable[[], Store], name: str) -> None:
    whole = reopen()
    content = (whole.folder / name).read_bytes()
    for length in [*range(0, len(content), max(1, len(content) // 40)), len(content) - 1]:
        (whole.folder / name).write_bytes(content[:length])
        assert reopen().built, length
    (whole.folder / name).write_bytes(content + b"\0")
    assert reopen().built
    assert not reopen().built


def with_facts(folder: Path, **changed: object) -> None:
    """Changes what store.json says, its checksum included: somebody wanted it to fit."""
    facts = json.loads((folder / "store.json").read_text()) | changed
    facts.pop("checksum")
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    (folder / "store.json").write_text(json.dumps(facts | {"checksum": digest}))


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"null",
        b"{}",
        b'{"checksum": 1}',
        b"\xff",
        b"[" * 100_000,
        b'{"checksum": ' + b"9" * 10_000,
        b" " * 10**7,
    ],
    ids=["list", "null", "nothing", "no facts", "no text", "deep", "large number", "long"],
)
def test_a_description_of_something_else_is_built_again(reopen: Callable[[], Store], content: bytes) -> None:
    whole = reopen()
    (whole.folder / "store.json").write_bytes(content)
    assert is_same(reopen(), whole)
    assert not reopen().built


@pytest.mark.parametrize(
    "changed",
    [
        {"version": 2},
        {"image_size": 48},
        {"names": NAMES[::-1]},
        {"checksums": ["0" * 64] * 3},
        {"checksums": 7},
        {"sums": [[[0, 0, 0]]]},
        {"sums": [[[10**40] * 3] * 2] * 3},
        {"sums": "none"},
    ],
    ids=str,
)
def test_another_stores_description_is_noticed_even_where_its_checksum_fits(
    reopen: Callable[[], Store], changed: dict[str, object]
) -> None:
    whole = reopen()
    with_facts(whole.folder, **changed)
    again = reopen()
    assert again.built
    assert is_same(again, whole)


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "kind", ["pickled", "other type", "other order", "other shape", "a pickle", "a pipe", "a folder"]
)
def test_another_array_is_not_read_and_nothing_in_it_runs(
    reopen: Callable[[], Store], tmp_path: Path, kind: str
) -> None:
    whole = reopen()
    path = whole.folder / "pixels.npy"
    path.unlink()
    match kind:
        case "pickled":
            np.save(path, np.array([Payload(tmp_path / "ran")], dtype=object), allow_pickle=True)
        case "other type":
            np.save(path, whole.pixels.astype(np.int16))
        case "other order":
            np.save(path, np.asfortranarray(whole.pixels))
        case "other shape":
            np.save(path, whole.pixels.reshape(1, -1))
        case "a pickle":
            path.write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
        case "a pipe":
            os.mkfifo(path)
        case _:
            path.mkdir()
    again = reopen()
    assert again.built
    assert is_same(again, whole)
    assert not (tmp_path / "ran").exists()


def test_a_store_behind_a_link_is_used_and_never_deleted(
    reopen: Callable[[], Store], cache: Path, tmp_path: Path
) -> None:
    whole = reopen()
    elsewhere = tmp_path / "elsewhere"
    whole.folder.rename(elsewhere)
    whole.folder.symlink_to(elsewhere)
    assert not reopen().built
    (elsewhere / "store.json").write_text("{}")
    assert is_same(reopen(), whole)
    assert not whole.folder.is_symlink()
    assert sorted(path.name for path in elsewhere.iterdir()) == ["pixels.npy", "store.json"]
    shutil.rmtree(whole.folder)
    whole.folder.symlink_to(tmp_path / "nowhere")
    assert is_same(reopen(), whole)
    assert [path.name for path in cache.iterdir()] == [whole.folder.name]


def test_a_folder_that_vanishes_while_it_is_filled_is_one_error(
    reopen: Callable[[], Store], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = store_module.decode

    def decode_and_delete(*arguments: object) -> object:
        shutil.rmtree(cache, ignore_errors=True)
        return decode(*arguments)

    monkeypatch.setattr(store_module, "decode", decode_and_delete)
    with pytest.raises(StorageError, match=r"cache cannot take the store of decoded images \(.*set data\.cache_dir"):
        reopen()
    assert not cache.exists()


def test_a_cache_below_a_file_is_one_line(records: tuple[ImageRecord, ...], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/cache cannot take .*Not a directory.*set data\.cache_dir"):
        open_store(records, image_size=32, cache_dir=tmp_path / "file" / "cache")
    outcome = run_program("train", *TINY, f"data.cache_dir={tmp_path / 'file' / 'cache'}", cwd=tmp_path)
    assert outcome.status == 1
    assert "file/cache cannot take the drawn images" in outcome.err
    assert "set data.cache_dir to a folder elsewhere" in outcome.err
    assert outcome.err.count("\n") == 1


def test_what_is_not_writable_is_one_error_unless_a_whole_store_lies_there(
    reopen: Callable[[], Store], records: tuple[ImageRecord, ...], cache: Path, tmp_path: Path
) -> None:
    rights = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    if rights and shutil.which("setpriv") is None:
        pytest.skip("root may write everywhere, and there is no setpriv to do without that")
    reopen()
    folders = {cache: 0o500, tmp_path / "readable": 0o500, tmp_path / "closed": 0o000}
    for folder, mode in folders.items():
        folder.mkdir(exist_ok=True)
        folder.chmod(mode)
    try:
        command = [*rights, sys.executable, "-c", OPEN_STORE, str(records[0].path.parent), *map(str, folders)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    finally:
        for folder in folders:
            folder.chmod(0o700)
    assert done.returncode == 0, done.stderr
    whole, *refused = done.stdout.splitlines()
    assert whole == "False"
    for line, folder in zip(refused, list(folders)[1:], strict=True):
        assert line.startswith(f"{folder} cannot take the store of decoded images ([Errno 13] Permission denied")
        assert list(folder.iterdir()) == []


def test_a_disk_that_fills_up_is_one_error_and_left_clean(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "disk").mkdir()
    for number in range(1, 401):  # 1.2 MB of decoded pixels
        (tmp_path / "images" / f"SOB_B_A-14-22549AB-200-{number:03d}.png").write_bytes(png())
    mount = f"mount -t tmpfs -o size=1m tmpfs {shlex.quote(str(tmp_path / 'disk'))}"
    space = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*space, mount], capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody mount a disk in a namespace")
    command = shlex.join([sys.executable, "-c", OPEN_STORE, str(tmp_path / "images"), str(tmp_path / "disk")])
    done = subprocess.run(
        [*space, f"{mount}\n{command}\nls -A {shlex.quote(str(tmp_path / 'disk'))}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
    )
    (line,) = done.stdout.splitlines()  # and nothing is listed
    assert line.startswith(f"{tmp_path / 'disk'} cannot take the store of decoded images ([Errno 28] No space left")
    assert line.endswith("set data.cache_dir to a folder elsewhere")


def test_a_file_size_limit_stops_training_with_one_error_and_no_half_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthetic_folder(
        SyntheticDataConfig(images_per_patient=1, width=64, magnification=[200], cache_dir=str(tmp_path / "cache"))
    )
    arguments = (*TINY, f"data.cache_dir={tmp_path / 'cache'}", "trainer.max_epochs=1", "trainer=cpu")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # Python 3.11 keeps bytecode that was cut short
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))  # the store has 250,000 bytes
    try:
        outcome = run_program("train", *arguments, cwd=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert outcome.status == 1
    assert "cache cannot take the store of decoded images ([Errno 27] File too large" in outcome.err
    assert outcome.err.count("\n") == 1
    (drawn,) = (tmp_path / "cache").iterdir()
    assert drawn.name.startswith("synthetic-")


@pytest.mark.parametrize("damage", ["deleted", "cut short", "one more", "no note", "a note of nonsense"])
def test_drawn_images_that_are_not_all_there_are_drawn_again(tmp_path: Path, damage: str) -> None:
    config = SyntheticDataConfig(images_per_patient=1, width=32, magnification=[200], cache_dir=str(tmp_path))
    folder = synthetic_folder(config)
    whole = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.png")}
    first = folder / min(whole)
    match damage:
        case "deleted":
            first.unlink()
        case "cut short":
            first.write_bytes(first.read_bytes()[:-10])
        case "one more":
            shutil.copy(first, folder / "more.png")
        case "no note":
            (folder / ".drawn.json").unlink()
        case _:
            (folder / ".drawn.json").write_text("[" * 100_000)
    assert synthetic_folder(config) == folder
    assert {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.png")} == whole
    assert list(tmp_path.iterdir()) == [folder]
    inode = folder.stat().st_ino
    synthetic_folder(config)
    assert folder.stat().st_ino == inode


def test_what_a_killed_process_was_building_goes_with_the_next_run(reopen: Callable[[], Store], cache: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from breakhis_pl.files import folder_aside\n"
        "with folder_aside(Path(sys.argv[1])) as aside:\n"
        "    (aside / 'pixels.npy').touch(); print(flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(cache / "32px-0123456789abcdef")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY) as process:
        process.stdout.readline()
        (aside,) = cache.iterdir()
        store = reopen()
        assert aside.exists()  # its process lives
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not reopen().built
    assert list(cache.iterdir()) == [store.folder]
