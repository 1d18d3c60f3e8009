"""What tests of several parts share."""

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one test process per core, one thread each; read when torch is imported

REPOSITORY = Path(__file__).resolve().parent.parent

if sys.dont_write_bytecode:  # each process that tests start would compile torch and Lightning anew, for ten seconds
    sys.dont_write_bytecode = False
    sys.pycache_prefix = sys.pycache_prefix or str(REPOSITORY / ".pytest_cache" / "bytecode")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix

LONGEST_FILES = (
    "test_resume.py",
    "test_readme.py",
    "test_full_disks.py",
    "test_protocols.py",
    "test_training_goes_wrong.py",
    "data/test_download_processes.py",
    "test_real_images.py",
    "test_run.py",
    "test_sweep.py",
    "test_shared_runs.py",
    "tuning/test_study.py",
    "test_tune.py",
    "training/test_training_state.py",
    "test_command_line.py",
    "test_same_results.py",
    "evaluation/test_pages_in_browser.py",
    "evaluation/test_report.py",
    "prediction/test_predict_program.py",
    "data/test_store_faults.py",
    "prediction/test_stained_prediction.py",
    "test_frozen.py",
    "training/test_untrusted_checkpoints.py",
    "training/test_loggers.py",
    "models/test_networks.py",
    "tuning/test_plan.py",
)
"""These first, so that no core waits at the end for another one's last file; they are three quarters of the time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first; pytest-xdist deals whole files in the order they come."""
    ranks = {REPOSITORY / "tests" / name: rank for rank, name in enumerate(LONGEST_FILES)}
    assert all(path.is_file() for path in ranks)
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test of an extra where a package that it needs is not installed."""
    for marker in item.iter_markers("extra"):
        for package in marker.args:
            if find_spec(package) is None:
                pytest.skip(f"{package} is not installed")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real images and of the authors' lists; tests that need it are skipped where there is none."""
    folder = os.environ.get("BREAKHIS_TEST_DATA")
    if folder is None:
        pytest.skip("BREAKHIS_TEST_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def drawn_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that tests of one process share, so that images are drawn once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def undrawn() -> Iterator[None]:
    """For a test of what stands around figures: they are not drawn, which takes most of the time of a page."""
    from tests.programs import blank_figures

    with blank_figures():
        yield


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, drawn_cache: Path) -> Path:
    """Folder of a finished run of two epochs on tiny drawn images."""
    from tests.programs import TINY, run_program

    folder = tmp_path_factory.mktemp("work")
    arguments = (*TINY, f"data.cache_dir={drawn_cache}", "trainer.max_epochs=2", "hydra.run.dir=run", "trainer=cpu")
    outcome = run_program("train", *arguments, cwd=folder)
    assert outcome.status == 0, outcome.err
    return folder / "run"
