"""Checks of what tensors hold: labels, and numbers that are tensors."""

import math
import re

import pytest
import torch

from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad

from ..conftest import batch
from ..support.refusals import LOGITS, TARGET


@pytest.mark.parametrize("label", [4, -1, -99, 2**40, -(2**63), 2**63 - 1])
@pytest.mark.parametrize("rows", [3, 1000])
def test_a_label_outside_the_classes_raises_before_anything_is_written(value_and_grad, label, rows):
    logits, target = batch(students=2, rows=rows, classes=4)
    target[-1] = label
    out = [torch.full_like(z, math.nan) for z in logits]
    message = f"target: expected labels in [0, 4) or ignore_index -100, got {label} at row {rows - 1}"
    for buffers in (None, out):
        with pytest.raises(ValueError, match=re.escape(message)):
            value_and_grad(logits, target, out=buffers)
    assert all(buffer.isnan().all() for buffer in out)


@pytest.mark.parametrize("label", [4, -1])
def test_a_label_outside_the_classes_raises_in_the_differentiable_loss(backend, label):
    logits = [z.clone().requires_grad_() for z in LOGITS]
    message = f"target: expected labels in [0, 4) or ignore_index -100, got {label} at row 1"
    for z in (logits, [x.detach() for x in logits], torch.stack(LOGITS).requires_grad_()):
        with pytest.raises(ValueError, match=re.escape(message)):
            ensemble_kd_loss(z, torch.tensor([0, label, 3]), backend=backend)


def test_minus_one_is_a_valid_ignore_index(value_and_grad):
    target = torch.tensor([0, -1, 3])
    output, grads = value_and_grad(LOGITS, target, ignore_index=-1)
    assert output.loss.isfinite() and not any(grad[1].any() for grad in grads)
    with pytest.raises(ValueError, match=re.escape("or ignore_index -1, got -100 at row 1")):
        value_and_grad(LOGITS, torch.tensor([0, -100, 3]), ignore_index=-1)


def test_validate_checks_labels_in_every_backend(backend):
    for function in (ensemble_kd_loss, ensemble_kd_value_and_grad):
        with pytest.raises(ValueError, match=r"target: expected labels in \[0, 4\) .* got 7 at row 1"):
            function(LOGITS, torch.tensor([0, 7, -100]), backend=backend, validate=True)
        function(LOGITS, torch.tensor([0, 3, -100]), backend=backend, validate=True)


def test_validate_checks_scalars_in_every_backend(backend):
    for function in (ensemble_kd_loss, ensemble_kd_value_and_grad):
        with pytest.raises(ValueError, match="temperature: expected a finite number > 0, got -1.0"):
            function(LOGITS, TARGET, temperature=torch.tensor(-1.0), backend=backend, validate=True)
        function(LOGITS, TARGET, temperature=torch.tensor(1.0), backend=backend, validate=True)
