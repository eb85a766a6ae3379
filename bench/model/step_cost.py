"""Lower bounds on the work of a training step on a GPU: bytes, arithmetic and launches.

One step runs through autograd on meta tensors, which compute nothing, and every operation and convolution is counted.
There are three models of the bytes. Each includes the optimizer (it writes the gradient of each fp32 parameter, reads
gradient, momentum and value, and writes momentum and value), the batch (uint8 read, normalised images written) and the
loss of the logits:

- "kept": the output of each convolution is written once in forward and read once in backward. No cache can avoid that,
  since a whole pass lies between.
- "fused": only convolutions access memory, without a cache; BatchNorm, ReLU and sums are fused into them. Forward reads
  the input and writes the output; backward reads the output and its gradient, reads the input and writes its gradient:
  3 (input + output). A sum with a shortcut reads one more map, forward and backward. The intermediate loss reads all
  maps once and writes the gradients of the students' maps.
- "unfused": every operation of eager PyTorch reads its inputs and writes its outputs. BatchNorm reads its map twice,
  for the statistics and to normalise, forward and backward.

Arithmetic is two operations for each multiply-add of convolutions and matrices, forward and backward. Launches are one
for each operation, or in "fused" one for each convolution forward and two backward. Students run concurrently, so the
time of launches is that of the longest chain, the largest student's. The lower bound is the largest of the three times,
not their sum, since the work of one student fills the gaps of another.
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
    """Work of a step; `chain` is the number of launches which cannot run concurrently."""

    bytes: int
    flops: int
    launches: int
    chain: int


@dataclass(frozen=True)
class Convolution:
    """Numbers of elements of a convolution or a linear layer; the input of the `first` one needs no gradient."""

    inputs: int
    outputs: int
    weights: int
    first: bool


@dataclass(frozen=True)
class Walk:
    """The parts of one step.

    Attributes:
        sums: Elements of all sums of two maps in forward.
        maps: Elements that the intermediate loss accesses: the pseudo teacher's maps once, the students' maps twice.
        operations: Operations of eager PyTorch; `operation_bytes` are the bytes of their inputs and outputs.
    """

    convolutions: list[Convolution]
    sums: int
    maps: int
    operations: int
    operation_bytes: int
    flops: int
    parameters: int


def step_costs(problem: StepProblem) -> dict[str, StepCost]:
    """Return the cost of a step under each of `MODELS`, in the precision of the problem."""
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
    """Counts the operations that launch kernels, the bytes of their tensors, and their arithmetic."""

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
    """Elements that a convolution moves, forward and backward."""
    return 3 * (c.inputs + c.outputs) - c.inputs * c.first + 3 * c.weights


def _fused_launches(walked: Walk) -> int:
    """Launches of all convolutions, and one each for the optimizer, the loss and the batch."""
    return sum(2 if c.first else 3 for c in walked.convolutions) + 3
