import sys
from pathlib import Path

import pytest

from tests.killed_runs import N_TRIALS, trials


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_runs_killed_at_random_moments_end_as_if_they_never_were(tmp_path: Path) -> None:
    found = trials(tmp_path)
    assert len(found) == N_TRIALS
    assert [trial for trial in found if trial.differences] == []
    assert any("checkpoint" in trial.moment for trial in found)
    assert len({trial.n_epochs for trial in found}) >= 3
