"""A small share of the campaign that kills runs."""

import pytest

from ..support.forks import FORKS
from .kill import run_campaign

pytestmark = FORKS


@pytest.mark.slow
def test_killed_runs_resume_to_the_same_end(tmp_path):
    result = run_campaign(trials=3, seed=7, folder=tmp_path)
    assert result["faults"] == []
    assert sum(result["kills"].values()) >= 2
