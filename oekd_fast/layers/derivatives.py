"""The error of a second derivative through an op that is differentiable once."""

from __future__ import annotations

import torch


def raise_for_second_derivative(op: str, form: str, switch: str) -> None:
    """Raise RuntimeError in a backward that is recorded for a second derivative.

    Args:
        op: name of the op.
        form: its form of the layer.
        switch: function that turns this form on and off.
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            f"{op}: the {form} form is differentiable once, got create_graph=True; "
            f"call {switch}(module, False) for a second derivative"
        )
