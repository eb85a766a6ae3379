"""Students after the conversions of torchao: weights in int8, and quantisation of an exported graph (PT2E)."""

import copy
import warnings

import pytest
import torch
from torch import nn

from .test_conversions import SMALL, images, narrow_student

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(params=SMALL)
def student(request):
    return narrow_student(request.param).float()


def error_of(converted, student, x):
    """Return the mean squared error relative to the variance; without its ReLUs a network has one above 1."""
    with torch.no_grad():
        expected = student(x)
        return float((converted(x) - expected).square().mean() / expected.var())


def test_weights_in_int8_change_a_student_by_rounding_alone(student):
    converted = copy.deepcopy(student)
    quantize_(converted, Int8WeightOnlyConfig())
    heads = [m for m in converted.modules() if isinstance(m, nn.Linear)]
    assert heads and all(type(head.weight) is not nn.Parameter for head in heads)
    assert 0 < error_of(converted, student, images(8).float()) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("student", ["resnet20", "resnet18", "efficientnet"], indirect=True)
def test_an_exported_graph_in_int8_keeps_the_meaning_of_norms_and_relus(student):
    x = images(8).float()
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    with torch.no_grad():
        prepared = prepare_pt2e(torch.export.export(student, (x,)).module(), quantizer)
        prepared(x)
        converted = convert_pt2e(prepared)
    assert "batch_norm" not in str(converted.graph)  # folded into the convolutions
    assert 0 < error_of(converted, student, x) < 0.1
