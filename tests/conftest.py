"""What tests of several parts share."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def real_data() -> Path:
    """Folder of real images and of the authors' lists; tests that need it are skipped where there is none."""
    folder = os.environ.get("BREAKHIS_TEST_DATA")
    if folder is None:
        pytest.skip("BREAKHIS_TEST_DATA is not set")
    return Path(folder)
