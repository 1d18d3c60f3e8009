"""What tests of several parts share."""

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one test process per core, one thread each; read when torch is imported

REPOSITORY = Path(__file__).resolve().parent.parent

if sys.dont_write_bytecode:  # each process that tests start would compile torch and Lightning anew, for ten seconds
    sys.dont_write_bytecode = False
    sys.pycache_prefix = sys.pycache_prefix or str(REPOSITORY / ".pytest_cache" / "bytecode")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix


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


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, drawn_cache: Path) -> Path:
    """Folder of a finished run of two epochs on tiny drawn images."""
    from tests.programs import TINY, run_program

    folder = tmp_path_factory.mktemp("work")
    arguments = (*TINY, f"data.cache_dir={drawn_cache}", "trainer.max_epochs=2", "hydra.run.dir=run", "trainer=cpu")
    outcome = run_program("train", *arguments, cwd=folder)
    assert outcome.status == 0, outcome.err
    return folder / "run"
