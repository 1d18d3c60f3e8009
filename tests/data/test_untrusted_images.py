"""A folder of images from other hands, as those who train meet it; and mutated images by the thousand."""

import os
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from breakhis_pl.data.index import index_images
from breakhis_pl.data.store import decode, open_store
from breakhis_pl.errors import ImageError
from tests.conftest import REPOSITORY
from tests.data.conftest import FAKE_PATIENTS
from tests.data.png_files import chunk, mutated_png, noise, of_kind, png
from tests.programs import Outcome, run_program

N_SHORT, N_LONG = 200, 10_000
LONGEST_S = 5
MOST_MEBIBYTES = 400
NAMES = [f"{patient}-200-{number:03}.png" for patient in FAKE_PATIENTS for number in (1, 2)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two whole images of each of ten patients."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(png(noise(40, 36)))
    return folder


def arguments(root: Path) -> list[str]:
    keys = ("data.require_complete=false", "data.image_size=32", "model.weights=none", "trainer.max_epochs=1")
    return [*keys, f"data.root={root}", f"data.cache_dir={root.parent / 'cache'}", "hydra.run.dir=run", "trainer=cpu"]


def train(root: Path) -> Outcome:
    return run_program("train", *arguments(root), cwd=root.parent)


def test_all_images_that_cannot_be_right_are_named_at_once_and_no_store_is_left(root: Path) -> None:
    whole = png(noise(40, 36))
    bad = {
        "truncated after": whole[:100],
        "empty file": b"",
        "16-bit RGB": of_kind(noise().astype(">u2"), depth=16, color=2),
        "one color is transparent": png(before=chunk(b"tRNS", bytes(6))),
        "Exif orientation": png(
            before=chunk(b"eXIf", b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0")
        ),
        "no PNG but JPEG": b"\xff\xd8\xff" + bytes(50),
        "the checksum of its part": whole[:60] + bytes([whole[60] ^ 1]) + whole[61:],
    }
    for name, content in zip(NAMES, bad.values(), strict=False):
        (root / name).write_bytes(content)
    outcome = train(root)
    assert outcome.status == 1
    assert "Traceback" not in outcome.err
    assert f"7 of {len(NAMES)} files are no usable images" in outcome.err
    lines = {line.strip().partition(": ")[0]: line for line in outcome.err.splitlines()}
    for name, reason in zip(NAMES, bad, strict=False):
        assert reason in lines[name]
    assert f"mend or replace them in {root}" in outcome.err
    assert list((root.parent / "cache").iterdir()) == []
    assert not (root.parent / "run" / "run.json").exists()


def test_ten_bad_images_are_spelt_out_and_the_others_counted(root: Path) -> None:
    for name in NAMES[:14]:
        (root / name).write_bytes(b"")
    outcome = train(root)
    assert outcome.status == 1
    assert sum("empty file" in line for line in outcome.err.splitlines()) == 10
    assert "and 4 more" in outcome.err


def test_folders_pipes_and_dangling_links_under_names_of_images_are_refused_together(root: Path) -> None:
    for name in NAMES[:3]:
        (root / name).unlink()
    (root / NAMES[0]).mkdir()
    os.mkfifo(root / NAMES[1])
    (root / NAMES[2]).symlink_to(root / "nowhere")
    outcome = train(root)
    assert outcome.status == 1
    assert "Traceback" not in outcome.err
    for name, reason in zip(NAMES, ("a folder", "no regular file", "leads nowhere"), strict=False):
        assert f"{name} ({reason})" in outcome.err


def test_names_that_are_no_text_are_ignored_or_refused_on_one_line(root: Path) -> None:
    for odd in (b"notes \xff\n.txt", b"\xff\xfe folder\r\n"):
        path = Path(os.fsdecode(os.fsencode(root) + b"/" + odd))
        path.mkdir() if b"folder" in odd else path.touch()
    assert train(root).status == 0
    shutil.rmtree(root.parent / "run")
    Path(os.fsdecode(os.fsencode(root) + b"/a\xff\n\x1b[31m,<b>.png")).touch()
    outcome = train(root)
    assert outcome.status == 1
    assert r"a\udcff\n\x1b[31m,<b>.png" in outcome.err
    assert outcome.err.count("\n") == 1


def test_an_image_that_vanishes_after_it_was_indexed_is_named(root: Path) -> None:
    records = index_images(root, [200])
    (root / NAMES[3]).unlink()
    with pytest.raises(ImageError, match=rf"1 of 20 files are no usable images: \n  {NAMES[3]}: No such file"):
        open_store(records, image_size=32, cache_dir=root.parent / "cache")
    assert list((root.parent / "cache").iterdir()) == []


def test_an_image_that_must_not_be_read_is_named(root: Path) -> None:
    (root / NAMES[0]).chmod(0)
    (root / NAMES[5]).chmod(0)
    rights = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    if rights and shutil.which("setpriv") is None:
        pytest.skip("root may read everything, and there is no setpriv to do without that")
    code = (
        "import sys; from pathlib import Path; from breakhis_pl.data.index import index_images; "
        "from breakhis_pl.data.store import open_store\n"
        "try: open_store(index_images(Path(sys.argv[1]), [200]), image_size=32, cache_dir=Path(sys.argv[2]))\n"
        "except ValueError as error: print(error)"
    )
    command = [*rights, sys.executable, "-c", code, str(root), str(root.parent / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert "2 of 20 files are no usable images" in done.stdout
    assert f"{NAMES[0]}: Permission denied" in done.stdout
    assert f"{NAMES[5]}: Permission denied" in done.stdout


def decode_mutated(folder: Path, numbers: range) -> tuple[int, int]:
    """How many mutated files were refused and how many were read."""
    whole = [png(), png(n_parts=4, before=chunk(b"tEXt", b"Comment\0x"), after=chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0"))]
    path = folder / "a.png"
    messages: list[str] = []
    for number in numbers:
        chance = random.Random(number)
        path.write_bytes(mutated_png(chance.choice(whole), chance))
        began = time.monotonic()
        try:
            image = decode(path, 32)
        except ImageError as error:
            messages.append(str(error))
        else:
            assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8), number
        assert time.monotonic() - began < LONGEST_S, number
    assert all(message.startswith("a.png: ") for message in messages)
    assert max(map(len, messages)) < 300
    return len(messages), len(numbers) - len(messages)


def test_a_mutated_image_is_refused_by_name_or_read(tmp_path: Path) -> None:
    n_refused, n_read = decode_mutated(tmp_path, range(N_SHORT))
    assert n_refused > N_SHORT / 2
    assert n_read > 0


@pytest.mark.slow
def test_ten_thousand_mutated_images_are_refused_by_name_or_read(tmp_path: Path) -> None:
    decode_mutated(tmp_path, range(N_SHORT))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    n_refused, n_read = decode_mutated(tmp_path, range(N_SHORT, N_SHORT + N_LONG))
    assert n_refused > N_LONG / 2
    assert n_read > N_LONG / 100
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MEBIBYTES * 1024
