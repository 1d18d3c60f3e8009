"""Fixtures that tests of several parts share."""

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one test process per core, one thread each; read when torch is imported

REPOSITORY = Path(__file__).resolve().parent.parent

if sys.dont_write_bytecode:  # else each process that tests start compiles torch and Lightning for ten seconds
    sys.dont_write_bytecode = False
    sys.pycache_prefix = sys.pycache_prefix or str(REPOSITORY / ".pytest_cache" / "bytecode")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run integration tests first: pytest-xdist distributes whole files in this order, and they are the longest."""
    items.sort(key=lambda item: "integration" not in item.path.parts)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test of an extra if a package that it needs is not installed."""
    for marker in item.iter_markers("extra"):
        for package in marker.args:
            if find_spec(package) is None:
                pytest.skip(f"{package} is not installed")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real images and of the authors' lists; tests that need it are skipped without."""
    folder = os.environ.get("BREAKHIS_TEST_DATA")
    if folder is None:
        pytest.skip("BREAKHIS_TEST_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def synthetic_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that the tests of one process share, so that images are generated once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def undrawn() -> Iterator[None]:
    """Save blank files in place of figures, which take most of the time of a page."""
    from tests.programs import blank_figures

    with blank_figures():
        yield


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, synthetic_cache: Path) -> Path:
    """Folder of a finished run of two epochs on tiny synthetic images."""
    from tests.programs import TINY, run_program

    folder = tmp_path_factory.mktemp("work")
    arguments = (*TINY, f"data.cache_dir={synthetic_cache}", "trainer.max_epochs=2", "hydra.run.dir=run")
    outcome = run_program("train", *arguments, cwd=folder)
    assert outcome.status == 0, outcome.err
    return folder / "run"
