"""A small share of the campaign of hostile students."""

import pytest

from .hostile_students import CHANGES, run_campaign


@pytest.mark.slow
def test_hostile_students_are_refused_or_loaded_as_they_were_saved(tmp_path):
    result = run_campaign(10, 1, tmp_path, every=6)
    assert not result["faults"]
    assert {kind for kind, count in result["counts"].items() if count.get("refused")} >= {*CHANGES, "hostile weights"}
