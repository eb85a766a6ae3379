"""A small share of the campaign of executor arguments."""

import pytest

from ..conftest import needs_executor
from ..support.forks import FORKS
from .executor_arguments import run_campaign

pytestmark = [needs_executor, *FORKS]


@pytest.mark.slow
def test_executors_give_the_right_result_or_raise(tmp_path):
    result = run_campaign(300, 1, tmp_path)
    assert result["faults"] == []
    kinds = ("forward", "backward")
    assert all(result["counts"][f"{name}.{kind}"]["right"] for name in ("native", "parallel") for kind in kinds)
    assert result["counts"]["native.construct"]["ValueError"] and result["counts"]["native.order"]["TypeError"]
