import os
from pathlib import Path

import pytest

from breakhis_pl.errors import DataFolderError
from breakhis_pl.prediction.inputs import find_inputs


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures and strays, as the current folder."""
    for name in ("s/b.png", "s/a.TIF", "s/in/c.jpg", "s/in/.hidden.png", "s/__MACOSX/d.png", "s/notes.txt", "s/x.svs"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_gives_its_pictures_as_given_and_sorted(tree: Path) -> None:
    found = find_inputs("s")
    assert found.paths == ("s/a.TIF", "s/b.png", "s/in/c.jpg")
    assert find_inputs(str(tree / "s")).paths[0] == str(tree / "s" / "a.TIF")
    assert dict(found.n_others) == {".txt": 1, ".svs": 1}
    assert found.unreadable == ()


@pytest.mark.usefixtures("tree")
def test_a_file_is_taken_whatever_its_suffix() -> None:
    assert find_inputs("s/notes.txt").paths == ("s/notes.txt",)


def test_patterns_reach_any_depth_and_leave_folders_out(tree: Path) -> None:
    assert find_inputs("s/*").paths == ("s/a.TIF", "s/b.png", "s/notes.txt", "s/x.svs")
    assert find_inputs("s/**/*.jpg").paths == ("s/in/c.jpg",)
    assert find_inputs(str(tree / "s/[ab].*")).paths == (str(tree / "s/a.TIF"), str(tree / "s/b.png"))


def test_a_name_that_looks_like_a_pattern_comes_first(tree: Path) -> None:
    (tree / "s[1].png").write_bytes(b"x")
    assert find_inputs("s[1].png").paths == ("s[1].png",)


@pytest.mark.usefixtures("tree")
def test_every_picture_of_a_list_comes_once() -> None:
    assert find_inputs(["s/b.png", "s", "s/*.png"]).paths == ("s/b.png", "s/a.TIF", "s/in/c.jpg")


def test_links_that_lead_round_are_followed_once(tree: Path) -> None:
    (tree / "s" / "in" / "up").symlink_to(tree / "s")
    assert len(find_inputs("s").paths) == 3


def test_a_link_to_itself_is_listed_and_stops_nothing(tree: Path) -> None:
    (tree / "s" / "again").symlink_to(tree / "s" / "again")
    found = find_inputs("s")
    assert len(found.paths) == 3
    assert found.unreadable == (("s/again", "a link that cannot be followed (Too many levels of symbolic links)"),)


def test_a_link_that_leads_nowhere_is_left_for_the_reader_to_name(tree: Path) -> None:
    (tree / "gone.png").symlink_to(tree / "nothing")
    assert find_inputs("gone.png").paths == ("gone.png",)


@pytest.mark.usefixtures("tree")
def test_a_folder_that_vanishes_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def vanished(folder: str) -> object:
        if folder.endswith("in"):
            raise FileNotFoundError(2, "No such file or directory")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", vanished)
    found = find_inputs("s")
    assert found.unreadable == (("s/in", "a folder that cannot be read (No such file or directory)"),)
    assert found.paths == ("s/a.TIF", "s/b.png")


def test_whatever_leads_to_nothing_is_named_with_its_reason(tree: Path) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(DataFolderError) as caught:
        find_inputs(["s", "none.png", "s/*.bmp", "empty", "x" * 300])
    text = str(caught.value)
    assert "none.png (does not exist)" in text
    assert "s/*.bmp (nothing fits this pattern)" in text
    assert "empty (a folder without pictures)" in text
    assert "s (" not in text.partition("expected")[0].replace("empty (", "")


@pytest.mark.usefixtures("tree")
def test_names_that_are_no_text_stay_what_they_are() -> None:
    name = os.fsdecode(b's/\xff\n,".png')
    Path(name).write_bytes(b"x")
    assert name in find_inputs("s").paths
