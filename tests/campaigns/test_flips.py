"""A small share of the campaign that damages files and lets writes fail."""

import pytest

from ..support.forks import FORKS
from .flips import KINDS, run_failing_writes, run_flips

pytestmark = [*FORKS, pytest.mark.usefixtures("smallest_model")]


@pytest.mark.slow
def test_damaged_files_are_refused_or_give_the_same_result(tmp_path):
    result = run_flips(flips=36, seed=7, folder=tmp_path)
    assert result["faults"] == [] and result["outcomes"].keys() == set(KINDS)
    assert result["outcomes"]["checkpoint"]["skipped with a warning"] > 0


@pytest.mark.slow
def test_a_write_that_fails_loses_nothing(tmp_path):
    result = run_failing_writes(every=60, seed=7, folder=tmp_path, first=13)
    assert result["faults"] == [] and result["calls_that_failed"] >= 3
