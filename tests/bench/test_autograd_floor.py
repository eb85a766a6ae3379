"""The measurement of what autograd adds to the loss."""

import pytest

from bench.measure import Timing
from bench.ops.autograd_floor import SOURCE, VARIANTS, shares, variants


def test_every_variant_can_be_called_repeatedly():
    calls = variants(4, 10, lambda logits: sum(z.sum() for z in logits))
    assert tuple(calls) == VARIANTS
    for call in calls.values():
        call()
        call()


def test_shares_are_those_of_the_medians():
    medians = dict(zip(VARIANTS, (0.2, 0.32, 0.1, 0.25), strict=True))
    timings = {name: Timing(median, median, median, 10) for name, median in medians.items()}
    assert shares(timings) == {"differentiable": pytest.approx(0.625), "floor": pytest.approx(0.8)}


def test_the_empty_node_is_a_source_file_beside_the_command():
    assert "TORCH_LIBRARY(oekd_fast_bench" in SOURCE.read_text()
