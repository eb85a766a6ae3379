"""A family inside DistributedDataParallel, in a training loop that is not the package's own."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from oekd_fast import (
    EnsembleKDLoss,
    EnsembleWithLoss,
    FeatureKDLoss,
    build_ensemble,
    ensemble_kd_loss,
)
from oekd_fast.config.objectives import OBJECTIVES

from ..support.smooth_network import PLAIN, SMOOTH

BATCH, STEPS, STUDENTS, CLASSES = 12, 3, 3, 5


@dataclass(frozen=True)
class Case:
    """What a loop trains.

    Args:
        norms: whether the network has BatchNorm.
        in_the_loop: the family alone is inside DistributedDataParallel, and the loop computes the losses.
        feature_weight: weight of the loss on feature maps; 0 trains a family without adapters.
        one: the family has a gate and learns by the objective `one`.
        bf16: autocast to bfloat16, with weights in float32.
        dtype: of weights and images.
        parts: each rank accumulates the gradients of this many parts of its batch in a step.
    """

    norms: bool = False
    in_the_loop: bool = False
    feature_weight: float = 0.0
    one: bool = False
    bf16: bool = False
    dtype: torch.dtype = torch.float64
    parts: int = 1


def family_with_loss(case):
    torch.manual_seed(0)
    family = build_ensemble(
        SMOOTH if case.norms else PLAIN, STUDENTS, CLASSES, gated=case.one, adapters=case.feature_weight > 0
    )
    if case.one and not case.norms:
        family.gate.norm = nn.Identity()
    if case.in_the_loop:
        return family.to(case.dtype)
    weights = OBJECTIVES["one" if case.one else "oekd"].weights
    loss = EnsembleKDLoss(
        temperature=weights.temperature,
        ce_weight=weights.ce_weight,
        kd_weight=weights.kd_weight,
        ensemble_ce_weight=weights.ensemble_ce_weight,
    )
    return EnsembleWithLoss(family, loss, feature_weight=case.feature_weight).to(case.dtype)


def loss_of(case, module, images, labels):
    with torch.autocast("cpu", torch.bfloat16, enabled=case.bf16):
        if not case.in_the_loop:
            return module(images, labels).loss
        output = module(images)
        loss = ensemble_kd_loss(output.logits, labels).loss
        if case.feature_weight:
            adapters = getattr(module, "module", module).adapters
            loss = loss + case.feature_weight * FeatureKDLoss()(output.features, adapters)
        return loss


def train(world, case, ranks=1):
    """Train on the rows of this rank, or in a world of one on those of `ranks` ranks in turn; return the weights."""
    module = inner = family_with_loss(case)
    if world.size > 1:
        module = DistributedDataParallel(inner)
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        images = torch.randn(BATCH, 3, 8, 8, generator=generator, dtype=torch.float64).to(case.dtype)
        labels = torch.randint(CLASSES, (BATCH,), generator=generator)
        rows = torch.arange(BATCH).chunk(world.size)[world.rank].chunk(ranks * case.parts)
        optimizer.zero_grad()
        for part in rows[:-1]:
            with module.no_sync() if world.size > 1 else torch.enable_grad():
                (loss_of(case, module, images[part], labels[part]) / case.parts).backward()
        (loss_of(case, module, images[rows[-1]], labels[rows[-1]]) / case.parts).backward()
        for p in inner.parameters():
            p.grad /= ranks
        optimizer.step()
    return weights_of(inner)


def weights_of(module):
    return {name: parameter.detach().numpy() for name, parameter in module.named_parameters()}


def differing(first, second):
    return [name for name in first if not np.array_equal(first[name], second[name])]


EXACT = {
    "logits in the loop": Case(in_the_loop=True),
    "features in the loop": Case(in_the_loop=True, feature_weight=0.15),
    "logits": Case(),
    "features": Case(feature_weight=0.15),
    "one": Case(one=True),
    "one with features": Case(one=True, feature_weight=0.15),
    "features, accumulated": Case(feature_weight=0.15, parts=3),
    "logits in the loop, accumulated": Case(in_the_loop=True, parts=2),
}


@pytest.mark.parametrize("case", EXACT.values(), ids=EXACT)
def test_two_ranks_equal_one_process_with_the_whole_batch(ranks, case):
    first, second = ranks.run(2, train, case)
    [alone] = ranks.run(1, train, replace(case, parts=1))
    assert differing(first, second) == []
    for name in alone:
        np.testing.assert_allclose(first[name], alone[name], rtol=0, atol=1e-13, err_msg=name)


LOCAL_NORMS = {
    "logits in the loop": Case(norms=True, in_the_loop=True, dtype=torch.float32),
    "features": Case(norms=True, feature_weight=0.15, dtype=torch.float32),
    "one": Case(norms=True, one=True, dtype=torch.float32),
    "features, bf16": Case(norms=True, feature_weight=0.15, bf16=True, dtype=torch.float32),
    "one with features, bf16": Case(norms=True, one=True, feature_weight=0.15, bf16=True, dtype=torch.float32),
}


@pytest.mark.parametrize("case", LOCAL_NORMS.values(), ids=LOCAL_NORMS)
def test_with_batch_norm_both_ranks_have_the_bits_of_one_process_that_does_both_halves(ranks, case):
    first, second = ranks.run(2, train, case)
    [alone] = ranks.run(1, train, case, 2)
    assert differing(first, second) == []
    assert differing(first, alone) == []


def test_every_weight_moves(ranks):
    case = EXACT["one with features"]
    before = weights_of(family_with_loss(case))
    [after] = ranks.run(1, train, case)
    assert differing(before, after) == list(before)


def evaluate(world):
    """Return the logits of a module and of its wrapper, in evaluation mode."""
    module = DistributedDataParallel(family_with_loss(Case(norms=True, in_the_loop=True))).eval()
    images = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        return [torch.stack(family(images).logits).numpy() for family in (module, module.module)]


def test_the_wrapped_family_evaluates_like_the_family(ranks):
    for wrapped, plain in ranks.run(2, evaluate):
        assert np.array_equal(wrapped, plain)
