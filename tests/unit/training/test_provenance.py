import subprocess
from pathlib import Path

import pytest

from breakhis_pl.training import provenance


def commit(folder: Path) -> str:
    """Make a repository with one commit; return it."""
    folder.mkdir(parents=True)
    (folder / "file").write_text("content")
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    for arguments in (("init", "-q"), ("add", "."), (*identity, "commit", "-qm", "first")):
        subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True)  # noqa: S607
    done = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], check=True, capture_output=True, text=True)  # noqa: S607
    return done.stdout.strip()


@pytest.mark.parametrize("is_own", [True, False])
def test_the_commit_is_that_of_the_project_not_of_a_repository_around_it(
    is_own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    head = commit(repository)
    root = repository if is_own else repository / "third_party" / "project"
    (root / "breakhis_pl" / "training").mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(root / "breakhis_pl" / "training" / "provenance.py"))
    assert provenance.source_state()["commit"] == (head if is_own else None)
