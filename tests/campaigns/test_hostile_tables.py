"""A small share of the campaign of hostile tables."""

import pytest

from .hostile_table_cases import CRAFTED
from .hostile_tables import run_campaign

# These take seconds, to write large tables or to read them.
SLOW = ("204 million rows in few bytes", "a cell of 20 MB in 300 rows of few bytes", "a label of 50 MB in 150 rows")


@pytest.mark.slow
def test_damaged_and_crafted_tables_end_in_one_line_or_are_read(tmp_path):
    cases = tuple(name for name in CRAFTED if name not in SLOW)
    result = run_campaign(80, 1, tmp_path, cases)
    assert result["faults"] == []
    assert sum(result["results"].values()) == 80 and result["results"]["refused"] > 40
    assert result["crafted"].keys() == set(cases)
