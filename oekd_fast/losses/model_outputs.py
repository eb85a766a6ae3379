"""The logits in what networks return: tensors, an object with the attribute ``logits``, or a mapping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def logits_of(outputs: Any) -> Sequence[Tensor] | Tensor:
    """Return the logits of a family's output.

    Args:
        outputs: S tensors, or one stacked tensor, which are returned as they are; an object with the attribute
            ``logits``, such as :class:`oekd_fast.EnsembleOutput` or an output of Hugging Face's models; or a mapping
            with the key "logits".

    Raises:
        ValueError: a mapping has no key "logits".
        TypeError: an object is none of these.
    """
    if isinstance(outputs, Tensor) or type(outputs) in (list, tuple):
        return outputs
    if isinstance(outputs, Mapping):
        if "logits" not in outputs:
            raise ValueError(f"logits: expected a mapping with the key 'logits', got one with {list(outputs)}")
        return outputs["logits"]
    if (logits := getattr(outputs, "logits", None)) is not None:
        return logits
    if isinstance(outputs, Sequence):
        return outputs
    raise TypeError(
        "logits: expected S tensors, one tensor, or an output with the attribute or key 'logits', got "
        f"{type(outputs).__name__}"
    )
