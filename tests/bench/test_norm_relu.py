"""The benchmark of BatchNorm and ReLU: variants compute the same, and the command writes what it prints."""

import json
import sys

import pytest
import torch

from bench.ops import norm_relu


@pytest.mark.parametrize("dtype, rtol, atol", [(torch.float32, 1e-4, 1e-5), (torch.bfloat16, 0.02, 0.03)])
@pytest.mark.parametrize("residual", [False, True])
def test_variants_make_the_same_gradients(residual, dtype, rtol, atol):
    variants = norm_relu.variants(4, 9, 5, residual, dtype)
    for eager, fused in zip(variants["eager"](), variants["fused"](), strict=True):
        torch.testing.assert_close(fused, eager, rtol=rtol, atol=atol)


@pytest.mark.slow
def test_the_command_writes_its_table_and_file(tmp_path, monkeypatch, capsys, threads):
    file = tmp_path / "out.json"
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)  # which takes ten seconds
    monkeypatch.setattr(
        sys, "argv", ["norm_relu", "--sizes", "2x3x4", "--dtype", "bfloat16", "--seconds", "0", "--json", str(file)]
    )
    norm_relu.main()
    results = json.loads(file.read_text())["results"]
    assert [r["residual"] for r in results] == [False, True]
    assert all(r["dtype"] == "bfloat16" for r in results)
    assert all(r["milliseconds"].keys() == set(norm_relu.VARIANTS) for r in results)
    assert capsys.readouterr().out.count("2x3x4x4") == 2
