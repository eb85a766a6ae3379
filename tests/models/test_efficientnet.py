import pytest
import torch
from torch import nn

from oekd_fast import build_ensemble
from oekd_fast.models import get_architecture
from oekd_fast.parallel.executor import make_executor

from ..conftest import needs_native


@pytest.fixture(scope="module")
def branch():
    torch.manual_seed(0)
    return get_architecture("efficientnet_b0").build_branch(0, 5, num_classes=10)


def drop_connects(branch):
    return [m for m in branch.modules() if hasattr(m, "p") and not isinstance(m, nn.Dropout)]


def test_drop_connect_grows_with_depth(branch):
    assert [drop.p for drop in drop_connects(branch)] == pytest.approx([0.2 * i / 16 for i in range(16)])


def test_drop_connect_drops_whole_images_and_keeps_the_mean(branch):
    drop = drop_connects(branch)[-1]
    torch.manual_seed(0)
    y = drop.train()(torch.ones(4000, 3, 2, 2))
    scale = 1 / (1 - drop.p)
    per_image = y.flatten(1)
    assert ((per_image == 0).all(1) | torch.isclose(per_image, torch.tensor(scale)).all(1)).all()
    assert y.mean().item() == pytest.approx(1, abs=0.03)


def test_drop_connect_is_the_identity_in_evaluation_mode(branch):
    x = torch.randn(2, 3, 2, 2)
    assert torch.equal(drop_connects(branch)[-1].eval()(x), x)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sequential", pytest.param("parallel", marks=needs_native)])
def test_students_draw_random_numbers_in_order_with_every_executor(kind, threads):
    threads(2)
    torch.manual_seed(0)
    family = build_ensemble("efficientnet_b0", 5, members=(3, 4))
    shared = family.base(torch.randn(4, 3, 32, 32)).detach()
    executor = make_executor(kind, 2, "cpu", deterministic=True)
    for _ in range(2):  # the first pass learns which students draw random numbers
        torch.manual_seed(7)
        expected = [branch(shared)[0] for branch in family.branches]
        torch.manual_seed(7)
        results = executor.forward(list(family.branches), [shared] * 2)
        for (logits, _), wanted in zip(results, expected, strict=True):
            torch.testing.assert_close(logits, wanted, rtol=1e-3, atol=1e-4)


def test_large_networks_have_another_batchnorm_eps_and_momentum():
    norms = {
        name: {(m.eps, m.momentum) for m in build.modules() if isinstance(m, nn.BatchNorm2d)}
        for name in ("efficientnet_b4", "efficientnet_b5")
        for build in [get_architecture(name).build_base(3)]
    }
    assert norms == {"efficientnet_b4": {(1e-5, 0.1)}, "efficientnet_b5": {(1e-3, 0.01)}}
