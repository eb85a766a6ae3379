"""Plans of the Triton kernels of the ensemble distillation loss."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from oekd_fast.kernels.ensemble_kd.plan import (
    VECTOR_BYTES,
    WARP,
    covers_objectives,
    plan_ensemble_kd,
    plan_gradients,
    power_of_2,
)
from oekd_fast.kernels.ensemble_kd.problem import Layout


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("students", [1, 2, 5, 8, 16, 33, 62])
def test_plans_cover_every_size(students, itemsize):
    regimes = []
    for classes in (1, 2, 3, 10, 100, 128, 129, 1000, 4096, 5000, 32000, 128256, 262144):
        plan = plan_ensemble_kd(students, classes, itemsize)
        regimes.append(plan.regime)
        assert plan.block == power_of_2(plan.block) and plan.rows == power_of_2(plan.rows)
        assert plan.warps == power_of_2(plan.warps) <= 16 and plan.programs_per_sm >= 1
        # Every thread has elements of a tile, and a run of them is at most one vector of 16 bytes.
        assert plan.threads * plan.rows == WARP * plan.warps
        assert plan.rows * plan.block % (WARP * plan.warps) == 0
        assert 1 <= plan.run(VECTOR_BYTES // itemsize) <= VECTOR_BYTES // itemsize
        assert plan.regime == "streamed" or (plan.block >= classes and plan.tiles == 1)
        gradients = plan_gradients(students, classes, itemsize)
        assert gradients.rows * gradients.block >= WARP
    assert regimes == sorted(regimes, key=("rows", "resident", "streamed").index)


def test_the_papers_sizes_have_the_expected_regimes():
    assert plan_ensemble_kd(5, 10, 2).regime == plan_ensemble_kd(5, 100, 4).regime == "rows"
    assert {plan_ensemble_kd(5, c, size).regime for c in (200, 1000, 4096) for size in (2, 4)} == {"resident"}
    assert {plan_ensemble_kd(5, c, size).regime for c in (32000, 128256) for size in (2, 4)} == {"streamed"}


def test_more_teachers_fit_fewer_classes():
    most = {
        teachers: max(c for c in (10, 100, 1000, 4096, 8192) if covers_objectives(5 + 1 + teachers + 1, c, 4))
        for teachers in (1, 5, 20)
    }
    assert most[1] >= most[5] >= most[20] >= 100


def test_rows_may_be_farther_apart_than_2_to_31_elements():
    for stride, vec, passed in [(2**31 - 8, 8, 2**28 - 1), (2**31, 1, 2**31), (2**33, 1, 2**33)]:
        logits = torch.empty_strided((2, 1000), (stride, 1), dtype=torch.bfloat16, device="meta")
        layout = Layout.of([logits], [])
        assert (layout.unit, layout.vec, layout.vectors(logits, layout.vec)) == (1, vec, (passed,))
