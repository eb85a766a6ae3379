"""A training step of the family on a GPU at best: bytes, arithmetic and launches, read off the architecture.

Nothing is run: one step goes through autograd on meta tensors, and every operation and convolution is noted. Three
counts of bytes, each with the optimizer (of each fp32 parameter: gradient, momentum and value read, momentum and value
written, and the gradient written before), the batch (uint8 read, normalised written) and the loss of the logits:

- "kept": each convolution's output written once in forward and read once in backward. What even a cache that held all
  that is used again soon cannot save, since a whole pass lies between.
- "fused": nothing but convolutions touches memory, BatchNorm, ReLU and sums ride along, no cache. A convolution reads
  its input and writes its output; backward reads the output and its gradient, reads the input and writes its gradient:
  3 (input + output). A sum with a shortcut reads a map more, forward and backward. The intermediate loss reads the
  pseudo teacher's maps and the students' once and writes gradients of these.
- "unfused": every operation of eager PyTorch reads its inputs and writes its outputs, and BatchNorm reads its map
  twice, for the statistics and to normalise, forward and backward.

Arithmetic: two for each multiply-add of convolutions and matrices, forward and backward. Launches: an operation each,
or in "fused" one a convolution forward and two backward. Students run side by side, so what cannot be hidden is the
longest chain of launches: the largest student's. The floor is the largest of the three times, not their sum: one
student's work fills another's gaps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from oekd_fast.family.ensemble import build_ensemble

from ..ops.ensemble_kd import naive_loss
from ..step.network import PlainFamily, feature_loss
from ..step.problem import DTYPES, FEATURE_WEIGHT, StepProblem

MODELS = ("kept", "fused", "unfused")
FP32 = 4  # bytes
OPTIMIZER_PASSES = 6


@dataclass(frozen=True)
class StepCost:
    bytes: int
    flops: int
    launches: int
    chain: int  # launches one after the other at least


@dataclass(frozen=True)
class Convolution:
    """Elements; `first`: its input needs no gradient."""

    inputs: int
    outputs: int
    weights: int
    first: bool


@dataclass(frozen=True)
class Walk:
    """What one step consists of, by modules and by operations."""

    convolutions: list[Convolution]
    sums: int  # elements of all sums of two maps, forward
    maps: int  # elements: of the intermediate loss, the pseudo teacher's maps and twice the other students'
    operations: int
    operation_bytes: int
    flops: int
    parameters: int


def step_costs(problem: StepProblem) -> dict[str, StepCost]:
    """By MODELS, in the precision of the problem."""
    family, alone = walk(problem), walk(problem, members=(0,))
    size = DTYPES[problem.precision].itemsize
    logits = 2 * problem.num_students * problem.batch_size * problem.classes * size
    images = problem.batch_size * 3 * problem.image_size**2
    shared = OPTIMIZER_PASSES * FP32 * family.parameters + (1 + size) * images + logits
    fused_launches, fused_chain = (_fused_launches(w) for w in (family, alone))
    return {
        "kept": StepCost(
            shared + 2 * size * sum(c.outputs for c in family.convolutions),
            family.flops, fused_launches, fused_chain,
        ),
        "fused": StepCost(
            shared + size * (sum(map(_fused_passes, family.convolutions)) + 2 * family.sums + family.maps),
            family.flops, fused_launches, fused_chain,
        ),
        "unfused": StepCost(shared + family.operation_bytes, family.flops, family.operations, alone.operations),
    }  # fmt: skip


def walk(problem: StepProblem, members: tuple[int, ...] | None = None) -> Walk:
    """Trace one step of the family, or of `members` alone, on meta tensors."""
    dtype = DTYPES[problem.precision]
    with torch.device("meta"):
        family = PlainFamily(build_ensemble(problem.model, problem.num_students, problem.classes, members=members))
        family = family.to(dtype).train()
        images = torch.empty(problem.batch_size, 3, problem.image_size, problem.image_size, dtype=dtype)
        labels = torch.empty(problem.batch_size, dtype=torch.int64)
    convolutions: list[Convolution] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        (x,) = inputs
        weights = sum(p.numel() for p in module.parameters())
        convolutions.append(Convolution(x.numel(), output.numel(), weights, first=x is images))

    for part in (family.base, family.branches):
        for module in part.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(note)
    with Operations() as operations:
        output = family(images)
        sums = operations.sums
        loss = naive_loss(output.logits, labels) + FEATURE_WEIGHT * feature_loss(family, output.features)
        loss.backward()
    maps = sum(m.numel() for m in output.features[0]) if family.adapters else 0
    maps += 2 * sum(m.numel() for features in output.features[1:] for m in features) if family.adapters else 0
    parameters = sum(p.numel() for p in family.parameters())
    return Walk(convolutions, sums, maps, operations.count, operations.bytes, operations.flops, parameters)


class Operations(TorchDispatchMode):
    """Counts the operations that are kernels, the bytes of their tensors, and their arithmetic."""

    NORMS = ("native_batch_norm", "native_batch_norm_backward")

    def __init__(self) -> None:
        super().__init__()
        self.count = self.bytes = self.flops = self.sums = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        name = function._schema.name.removeprefix("aten::")
        if function.is_view or name in ("detach", "empty", "empty_like", "new_empty", "_to_copy"):
            return result
        ins = [t for t in tree_leaves((arguments, options)) if isinstance(t, Tensor)]
        outs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        if function.overloadpacket in flop_registry:
            self.flops += flop_registry[function.overloadpacket](*arguments, **(options or {}), out_val=result)
        self.count += 1
        self.bytes += sum(t.numel() * t.element_size() for t in (*ins, *outs))
        if name in self.NORMS:
            self.bytes += sum(t.numel() * t.element_size() for t in ins if t.dim() == 4)
        if name in ("add", "add_") and all(t.dim() == 4 for t in ins):
            self.sums += outs[0].numel()
        return result


def _fused_passes(c: Convolution) -> int:
    """Elements that it moves forward and backward."""
    return 3 * (c.inputs + c.outputs) - c.inputs * c.first + 3 * c.weights


def _fused_launches(walked: Walk) -> int:
    """Of the optimizer, the loss and the batch one each."""
    return sum(2 if c.first else 3 for c in walked.convolutions) + 3
