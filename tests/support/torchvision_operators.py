"""torchvision beside a PyTorch that its compiled operators do not fit.

Transformers, Lightning and timm import torchvision if it is installed. Its wheel on PyPI is built for CUDA. Beside a
PyTorch for CPUs its import fails, because its operators are not declared, although the examples use none of them.
"""

from importlib.util import find_spec

import torch

# The operators that torchvision's Python code needs when it is imported.
OPERATORS = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared = []


def declare_missing_operators() -> str | None:
    """Make torchvision importable, and return why its operators are missing; None if they are not."""
    if find_spec("torchvision") is None:
        return "torchvision is not installed"
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in OPERATORS:
            library.define(operator + SCHEMA)
        _declared.append(library)  # they exist as long as the library
        return f"torchvision's operators do not load beside torch {torch.__version__}: {error}"
    return None
