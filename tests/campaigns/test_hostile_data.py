"""A share of the campaign of hostile image files and arrays."""

import pytest

pytest.importorskip("PIL.Image", reason="encoded images need Pillow, of the extra 'train'")

from .hostile_data import KINDS, run_campaign  # noqa: E402


@pytest.mark.slow
def test_hostile_files_are_read_right_or_refused(tmp_path):
    result = run_campaign(trials=60, seed=1, folder=tmp_path)
    assert result["faults"] == []
    outcomes = result["outcomes"]
    assert set(outcomes) == set(KINDS) and sum(sum(counts.values()) for counts in outcomes.values()) == 60
    assert result["peak_memory_mib"] < result["memory_limit_mib"]
