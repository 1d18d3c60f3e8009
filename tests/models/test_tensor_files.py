import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from breakhis_pl.models import tensor_files
from breakhis_pl.models.tensor_files import TensorFileError, plain_dict, read_tensor_file
from tests.conftest import REPOSITORY
from tests.models.hostile_files import Entries, hostile_files, nested, saved

KINDS = list(hostile_files(Path("ran")))


@pytest.mark.parametrize("kind", KINDS)
def test_a_strangers_file_is_refused_and_nothing_in_it_runs(kind: str, tmp_path: Path) -> None:
    content, expected = hostile_files(tmp_path / "ran")[kind]
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(TensorFileError, match=expected) as caught:
        read_tensor_file(tmp_path / "a.pt")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_the_payload_would_have_run(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(hostile_files(tmp_path / "ran")["an archive that calls"][0])
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert (tmp_path / "ran").is_dir()


@pytest.mark.parametrize("legacy", [False, True])
def test_what_training_and_torchvision_write_is_read(tmp_path: Path, legacy: bool) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    state = network.state_dict()
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.zeros(2, 1, 3, 3)).sum().backward()
    optimizer.step()
    content = {
        "state_dict": state,
        "parameters": dict(network.named_parameters()),
        "optimizer": optimizer.state_dict(),
        "halves": [state["0.weight"].half(), state["0.weight"].bfloat16(), state["0.weight"].double()],
        "plain": {"a": [1, 2.5, None, True, "ä"], 3: 2**40},
    }
    (tmp_path / "a.pt").write_bytes(saved(content, legacy=legacy))
    found = read_tensor_file(tmp_path / "a.pt")
    assert list(found) == list(content)
    assert found["plain"] == content["plain"]
    assert all(torch.equal(found["state_dict"][name], value) for name, value in state.items())
    assert [each.dtype for each in found["halves"]] == [torch.float16, torch.bfloat16, torch.float64]


def test_a_flipped_bit_in_numbers_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": torch.arange(1000)}, path)
    with zipfile.ZipFile(path) as archive:
        start = next(member.header_offset for member in archive.infolist() if member.filename.endswith("/data/0"))
    content = bytearray(path.read_bytes())
    content[start + 4000] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path)["a"], torch.arange(1000))  # torch alone notices nothing
    with pytest.raises(TensorFileError, match=r"damaged: the checksum of '.*/data/0' differs"):
        read_tensor_file(path)


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(TensorFileError, match="cannot be read"):
        read_tensor_file(tmp_path)


def test_more_operations_than_a_network_needs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": list(range(1000))}, tmp_path / "a.pt")
    assert len(read_tensor_file(tmp_path / "a.pt")["a"]) == 1000
    monkeypatch.setattr(tensor_files, "MOST_OPERATIONS", 900)
    with pytest.raises(TensorFileError, match="more values than a network has"):
        read_tensor_file(tmp_path / "a.pt")


def test_methods_that_a_file_replaces_are_not_called(tmp_path: Path) -> None:
    disguised = Entries(("a", 1), attributes={"items": 1, "keys": 2, "get": 3})
    torch.save({"facts": disguised}, tmp_path / "a.pt")
    facts = read_tensor_file(tmp_path / "a.pt")["facts"]
    assert facts.items == 1
    assert plain_dict(facts) == {"a": 1}
    assert plain_dict([1]) is None


def test_no_file_takes_more_memory_than_it_has_bytes(tmp_path: Path) -> None:
    for number, (content, _) in enumerate(hostile_files(tmp_path / "ran").values()):
        (tmp_path / f"{number}.pt").write_bytes(content)
    (tmp_path / "lists.pt").write_bytes(saved({"a": nested(list)}))
    code = (
        "import resource, sys; from pathlib import Path; from breakhis_pl.models import tensor_files\n"
        "import torch; torch.save({'a': torch.zeros(3)}, sys.argv[1] + '/plain'); "
        "tensor_files.read_tensor_file(Path(sys.argv[1]) / 'plain')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for path in Path(sys.argv[1]).glob('*.pt'):\n"
        "    try: tensor_files.read_tensor_file(path)\n"
        "    except tensor_files.TensorFileError: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert int(done.stdout) < 50_000  # kilobytes
