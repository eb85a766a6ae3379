"""A small share of the campaign that kills runs."""

import os

import pytest

from .kill import run_campaign

# The warning is about thread pools of the parent, which the forked children do not use.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
]


@pytest.mark.slow
def test_killed_runs_resume_to_the_same_end(tmp_path):
    result = run_campaign(trials=3, seed=7, folder=tmp_path)
    assert result["faults"] == []
    assert sum(result["kills"].values()) >= 2
