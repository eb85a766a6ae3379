"""A small share of the campaign that damages files and lets writes fail."""

import os

import pytest

from ..support.forked_runs import smallest_runs
from .flips import KINDS, run_failing_writes, run_flips

# The warning is about thread pools of the parent, which the forked children do not use.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
]


@pytest.fixture(scope="module", autouse=True)
def smallest_model():
    with smallest_runs():
        yield


@pytest.mark.slow
def test_damaged_files_are_refused_or_give_the_same_result(tmp_path):
    result = run_flips(flips=36, seed=7, folder=tmp_path)
    assert result["faults"] == [] and result["outcomes"].keys() == set(KINDS)
    assert result["outcomes"]["checkpoint"]["skipped with a warning"] > 0


@pytest.mark.slow
def test_a_write_that_fails_loses_nothing(tmp_path):
    result = run_failing_writes(every=60, seed=7, folder=tmp_path, first=13)
    assert result["faults"] == [] and result["calls_that_failed"] >= 3
