"""The benchmark of the direct convolutions: all variants compute the same, and the command writes what it prints."""

import json
import sys

import pytest
import torch

from bench.ops import direct_conv
from bench.step import direct_convs
from bench.step.problem import StepProblem
from oekd_fast import native
from oekd_fast.layers.fast_module import FastModule

pytestmark = pytest.mark.skipif(native.why_missing() is not None, reason="needs the native extension")


def test_variants_compute_the_same_results():
    calls = direct_conv.variants(direct_conv.Shape(9, 9, 8, 1), 2)
    nchw, *others = (calls[name]() for name in direct_conv.VARIANTS)
    for results in others:
        for ours, theirs in zip(results, nchw, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_convolutions_of_a_family_of_five():
    counts = direct_conv.shapes()
    assert counts[direct_conv.Shape(16, 16, 32, 1)] == 6  # the first stage of the largest student
    assert sum(counts.values()) == 1 + 5 * 18  # the stem is shared
    assert direct_conv.Shape(2, 3, 8, 2).operations(1) == 3 * 2 * 9 * 2 * 3 * 16


def test_the_command_writes_its_table_and_file(tmp_path, monkeypatch, capsys, threads):
    file = tmp_path / "out.json"
    monkeypatch.setattr(direct_conv, "shapes", lambda model, image_size: {direct_conv.Shape(4, 4, 4, 1): 2})
    monkeypatch.setattr(sys, "argv", ["direct_conv", "--batch-size", "2", "--seconds", "0", "--json", str(file)])
    direct_conv.main()
    (result,) = json.loads(file.read_text())["results"]
    assert result["milliseconds"].keys() == {"nchw", "channels_last", "direct"} and result["in_a_family"] == 2
    assert result["used"] in direct_conv.VARIANTS + ("pytorch",)
    assert all(0 < error < 1e-5 for errors in result["errors"].values() for error in errors.values())
    assert "4->4, 4x4, stride 1" in capsys.readouterr().out


def test_the_compared_steps_differ_in_their_convolutions_only(one_thread):
    steps = direct_convs.variants(StepProblem(num_students=2, batch_size=4, image_size=8, batches=2))
    uses = {
        name: {(part.winograd, part.direct) for part in step.family.modules() if isinstance(part, FastModule)}
        for name, step in steps.items()
    }
    assert uses == {"winograd": {(True, True)}, "direct": {(False, True)}, "pytorch": {(False, False)}}
    for step in steps.values():
        step.step()
    losses = [step.take_loss() for step in steps.values()]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
