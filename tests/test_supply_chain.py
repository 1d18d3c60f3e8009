import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
LIST = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8")

PYTHONS = [
    f"3.{minor}" for minor in range(30) if SpecifierSet(PROJECT["project"]["requires-python"]).contains(f"3.{minor}.9")
]
PLATFORMS = [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"), ("win32", "AMD64")]
DIRECT = [
    Requirement(text)
    for text in sorted(
        {
            *PROJECT["project"]["dependencies"],
            *(text for group in PROJECT["dependency-groups"].values() for text in group),
            *PROJECT["build-system"]["requires"],
        }
    )
]
REFUSED = [
    ("lightning", "2.6.2", "advisory GHSA-w37p-236h-pfx3: steals credentials when it is imported"),
    ("lightning", "2.6.3", "as 2.6.2"),
    ("pytorch-lightning", "2.6.2", "named by some reports of the same attack"),
    ("pytorch-lightning", "2.6.3", "as 2.6.2"),
    *(("hydra-core", version, "instantiates untrusted targets") for version in ("1.1.2", "1.2.0", "1.3.0", "1.3.2")),
]

ENTRY = re.compile(
    r"[a-z0-9-]+==[0-9][0-9a-z.]*(?: ; [a-z0-9_ .'<>=!()]+)?(?: --hash=sha256:[0-9a-f]{64})+", re.IGNORECASE
)
HOST = re.compile(r"[/@]|\b[a-z][\w-]*(\.[\w-]+)*\.(org|com|net|io|dev|ai|edu|de|local|internal)\b", re.IGNORECASE)

SOMEWHERE = ".".join(("files", "example", "org"))
"""A host that is none, put together here so that no line of this file looks like the address of an index."""

IGNORED_SECURITY = re.compile(r"""^\s*"S\d+",|# noqa:[A-Z0-9, ]*\bS\d{3}\b(?:, *[A-Z]+\d+)*""")


@dataclass(frozen=True, slots=True)
class Entry:
    """A version in the list, where it applies, and the files that may be installed for it."""

    requirement: Requirement
    hashes: tuple[str, ...]

    @property
    def name(self) -> str:
        return canonicalize_name(self.requirement.name)

    @property
    def version(self) -> str:
        return str(self.requirement.specifier).removeprefix("==")

    def applies(self, python: str, platform: str, machine: str) -> bool:
        environment = {
            "python_version": python,
            "python_full_version": f"{python}.9",
            "sys_platform": platform,
            "platform_machine": machine,
            "platform_python_implementation": "CPython",
        }
        return self.requirement.marker is None or self.requirement.marker.evaluate(environment)


def lines_of(text: str) -> list[str]:
    """Entries, each on one line."""
    joined = re.sub(r" \\\n\s+", " ", text)
    return [line for line in joined.splitlines() if line and not line.startswith("#")]


@cache
def entries() -> list[Entry]:
    """The list; what is no entry has a test of its own."""
    parts = [line.split(" --hash=sha256:") for line in lines_of(LIST) if ENTRY.fullmatch(line)]
    return [Entry(Requirement(requirement), tuple(hashes)) for requirement, *hashes in parts]


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda requirement: requirement.name)
def test_every_direct_dependency_is_listed_once_within_its_bounds_everywhere(requirement: Requirement) -> None:
    for python, (platform, machine) in product(PYTHONS, PLATFORMS):
        found = [
            entry.version
            for entry in entries()
            if entry.name == canonicalize_name(requirement.name) and entry.applies(python, platform, machine)
        ]
        assert len(found) == 1, (python, platform, machine, found)
        assert requirement.specifier.contains(found[0]), (python, platform, machine, found)


def test_no_environment_gets_two_versions_of_a_package() -> None:
    assert PYTHONS == ["3.11", "3.12", "3.13"]
    for python, (platform, machine) in product(PYTHONS, PLATFORMS):
        names = [entry.name for entry in entries() if entry.applies(python, platform, machine)]
        assert len(names) > 100
        assert len(names) == len(set(names)), (python, platform, machine)


def test_every_entry_is_one_version_with_hashes_and_nothing_else() -> None:
    assert [line for line in lines_of(LIST) if not ENTRY.fullmatch(line)] == []
    hashes = [text for entry in entries() for text in entry.hashes]
    assert len(hashes) == len(set(hashes)), "two packages cannot have a file in common"


def test_the_list_names_no_host() -> None:
    assert [line for line in LIST.splitlines() if HOST.search(line)] == []


@pytest.mark.parametrize(
    "line",
    [
        "--find-links wheels",
        f"torch @ https://{SOMEWHERE}/torch-2.15.0.whl --hash=sha256:" + 64 * "0",
        "torch>=2.15 --hash=sha256:" + 64 * "0",
        "torch==2.15.0",
        "torch==2.15.0 --hash=md5:" + 32 * "0",
        "torch==2.15.0+cpu --hash=sha256:" + 64 * "0",
        f"torch==2.15.0 # via {SOMEWHERE} --hash=sha256:" + 64 * "0",
    ],
)
def test_what_is_looked_for_in_the_list_would_be_found(line: str) -> None:
    assert not ENTRY.fullmatch(line)
    assert HOST.search(line) or SOMEWHERE not in line


@pytest.mark.parametrize(("name", "version", "reason"), REFUSED, ids=[" ".join(bad[:2]) for bad in REFUSED])
def test_known_bad_versions_are_neither_allowed_nor_listed(name: str, version: str, reason: str) -> None:
    allowed = [
        str(requirement) for requirement in DIRECT if requirement.name == name and version in requirement.specifier
    ]
    assert allowed == [], reason
    assert version not in {entry.version for entry in entries() if entry.name == name}, reason


def test_the_page_says_how_the_list_was_made() -> None:
    command = LIST.splitlines()[1].removeprefix("#").strip()
    assert command.startswith("uv export --all-groups ")
    assert f"\n{command}\n" in (REPOSITORY / "docs" / "supply_chain.md").read_text(encoding="utf-8")


def test_uv_lock_is_not_committed() -> None:
    assert "uv.lock" in (REPOSITORY / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_every_ignored_security_rule_has_its_reason() -> None:
    assert "S" in PROJECT["tool"]["ruff"]["lint"]["select"]
    files = [REPOSITORY / "pyproject.toml", *REPOSITORY.glob("*.py"), *(REPOSITORY / ".ci").glob("*.py")]
    for folder in ("breakhis_pl", "tests", "benchmarks"):
        files += (REPOSITORY / folder).rglob("*.py")
    ignored = [
        line
        for path in files
        for line in path.read_text(encoding="utf-8").splitlines()
        if IGNORED_SECURITY.search(line)
    ]
    assert len(ignored) >= 5
    assert [line for line in ignored if not re.search(r"[#-] {1,2}\w.*\w+ \w+", IGNORED_SECURITY.split(line)[-1])] == []


def audited(folder: Path, *, out: str = "", err: str = "", status: int = 0) -> subprocess.CompletedProcess[str]:
    """What the audit says when pip-audit behaves like this."""
    fake = f"import sys; sys.stdout.write({out!r}); sys.stderr.write({err!r}); sys.exit({status})"
    (folder / "pip_audit.py").write_text(fake, encoding="utf-8")
    return subprocess.run(
        [sys.executable, REPOSITORY / ".ci" / "audit.py", "requirements.lock"],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def findings(*packages: Mapping[str, object]) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


FINE = {"name": "numpy", "version": "2.5.5", "vulns": []}
SKIPPED = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.15.0)"}
VULNERABLE = {
    "name": "pillow",
    "version": "9.0.0",
    "vulns": [{"id": "PYSEC-2022-168", "fix_versions": ["9.0.1"]}, {"id": "PYSEC-0-0", "fix_versions": []}],
}


def test_a_known_vulnerability_fails_the_audit_by_name(tmp_path: Path) -> None:
    done = audited(tmp_path, out=findings(FINE, SKIPPED, VULNERABLE), status=1)
    assert done.returncode == 1
    assert "known vulnerabilities in 1 of 3 packages" in done.stdout
    assert "pillow 9.0.0: PYSEC-2022-168 (mended in 9.0.1), PYSEC-0-0 (mended in no version yet)" in done.stdout


def test_the_audit_says_what_was_not_looked_up(tmp_path: Path) -> None:
    done = audited(tmp_path, out=findings(FINE, SKIPPED))
    assert (done.returncode, "no known vulnerability in 1 of 2 packages; NOT AUDITED: torch" in done.stdout) == (
        0,
        True,
    )
    done = audited(tmp_path, out=findings(FINE))
    assert (done.returncode, "NOT AUDITED" in done.stdout) == (0, False)


def test_an_index_without_advisories_is_not_taken_for_a_clean_list(tmp_path: Path) -> None:
    done = audited(tmp_path, out=findings(SKIPPED, SKIPPED), err="No known vulnerabilities found")
    assert done.returncode == 0
    assert "NOT AUDITED, the package index has advisories for none of its 2 packages" in done.stdout
    assert "no known" not in done.stdout.lower()


def test_the_audit_says_that_no_index_could_be_reached(tmp_path: Path) -> None:
    last = "requests.exceptions.ConnectionError: name or service not known"
    done = audited(tmp_path, err=f"Traceback (most recent call last):\n  ...\n{last}\n", status=1)
    assert done.returncode == 0
    assert f"NOT AUDITED, no database of vulnerabilities could be reached ({last})" in done.stdout


@pytest.mark.parametrize(
    ("out", "err", "said"),
    [
        ("", "ERROR: requirements.lock: no such file", "ERROR: requirements.lock: no such file"),
        ("", "No module named pip_audit", "pip-audit failed with exit status 2"),
        (findings(), "", "pip-audit found no package in it"),
    ],
)
def test_an_audit_that_looked_at_nothing_fails(tmp_path: Path, out: str, err: str, said: str) -> None:
    done = audited(tmp_path, out=out, err=err, status=2)
    assert done.returncode == 1
    assert said in done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="CI's scripts are written for bash")
@pytest.mark.parametrize(
    ("listed", "said"), [("pillow==13.0.0", "< pillow==13.0.0"), ("pillow==12.0.0", "no venv here")]
)
def test_ci_refuses_a_list_that_uv_sync_does_not_install(tmp_path: Path, listed: str, said: str) -> None:
    head = LIST.splitlines()[:2]
    (tmp_path / ".ci").mkdir()
    shutil.copy(REPOSITORY / ".ci" / "install_pinned", tmp_path / ".ci")
    (tmp_path / "requirements.lock").write_text("\n".join([*head, f"{listed} \\", f"    --hash=sha256:{64 * 'a'}", ""]))
    (tmp_path / "uv").write_text(
        """#!/usr/bin/env bash
        case $1 in
          export) printf 'pillow==12.0.0 \\\n    --hash=sha256:bbb\n' ;;
          cache) mkdir -p "$PWD/cache" && echo "$PWD/cache" ;;
          *) echo "no $1 here" >&2; exit 3 ;;
        esac
        """
    )
    (tmp_path / "uv").chmod(0o755)
    done = subprocess.run(
        [tmp_path / ".ci" / "install_pinned"],
        env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert said in done.stderr
    assert not list(tmp_path.glob("cache/*")), "its environment is removed, however it ends"
