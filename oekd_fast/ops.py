"""The public losses: argument checks, choice of the backend, autograd.

Compiled backends register implementations of the ops below with ``torch.library`` for their device (CPU: csrc/;
CUDA: kernels/). The reference needs no op: it is plain PyTorch.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib import import_module

import torch
from torch import Tensor

from oekd_fast import reference
from oekd_fast.options import KDOptions
from oekd_fast.reference import EnsembleKDOutput

BACKENDS = ("auto", "reference", "native", "triton")
COMPILED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Statistics are (loss, ce [S], kd [S], ensemble_ce, correct int64 [S + 1]); gradients look like the logits.
# isa: "auto", or an instruction set of the CPU kernel, so that each can be tested and compared.
_OPTIONS = (
    "Tensor[] logits, Tensor? target, Tensor? ensemble_weights, float temperature, float ce_weight, float kd_weight, "
    "float label_smoothing, int ignore_index, bool mean"
)
_STATISTICS = "Tensor, Tensor, Tensor, Tensor, Tensor"
_library = torch.library.Library("oekd_fast", "DEF")
_library.define(f'ensemble_kd_value({_OPTIONS}, *, str isa="auto") -> ({_STATISTICS})')
_library.define(
    f'ensemble_kd_value_and_grad({_OPTIONS}, *, Tensor? grad_scale=None, str isa="auto") -> ({_STATISTICS}, Tensor[])'
)
_library.define(
    f'ensemble_kd_value_and_grad_out({_OPTIONS}, *, Tensor? grad_scale=None, Tensor(a!)[] out, str isa="auto")'
    f" -> ({_STATISTICS})"
)


def _why_missing(backend: str) -> str | None:
    """Import a compiled backend, which registers its implementations; why that fails, or None."""
    module, how = {
        "native": ("_native", "install with a C++ compiler and without OEKD_FAST_NATIVE=0"),
        "triton": ("kernels.ensemble_kd", "this version has no Triton kernel"),
    }[backend]
    try:
        import_module(f"oekd_fast.{module}")
    except ModuleNotFoundError as error:
        return f"{error}; {how}"
    except ImportError as error:
        # Installed, but built for another torch: going on slowly must not pass unnoticed.
        warnings.warn(
            f"the {backend} backend does not load and will not be used: {error}; build it again", stacklevel=2
        )
        return str(error)
    return None


_MISSING = {backend: _why_missing(backend) for backend in ("native", "triton")}


def _fake_statistics(logits, *args, **kwargs):
    first, students = logits[0], len(logits)

    def new(*shape, dtype=torch.float32):
        return first.new_empty(shape, dtype=dtype)

    return new(), new(students), new(students), new(), new(students + 1, dtype=torch.int64)


def _fake_statistics_and_grads(logits, *args, **kwargs):
    return *_fake_statistics(logits), [torch.empty_like(z) for z in logits]


torch.library.register_fake("oekd_fast::ensemble_kd_value", _fake_statistics, lib=_library)
torch.library.register_fake("oekd_fast::ensemble_kd_value_and_grad", _fake_statistics_and_grads, lib=_library)
torch.library.register_fake("oekd_fast::ensemble_kd_value_and_grad_out", _fake_statistics, lib=_library)


def ensemble_kd_loss(
    logits: Sequence[Tensor] | Tensor,
    target: Tensor | None,
    *,
    temperature: float = 2.0,
    ce_weight: float = 0.7,
    kd_weight: float = 0.15,
    ensemble_weights: Tensor | None = None,
    detach_ensemble: bool = True,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    backend: str = "auto",
) -> EnsembleKDOutput:
    """Loss of S students that learn from the labels and from their own ensemble (ECCV 2020, arXiv 2011.07449)::

        loss = ce_weight * sum_j CE(z_j, y)  +  kd_weight * sum_j T^2 KL(softmax(zE/T) || softmax(z_j/T))
        zE   = sum_j w_j z_j

    Args:
        logits: S tensors [B, C], or one [S, B, C]; fp32, fp16, bf16 (fp64: reference backend only); any strides.
        target: int64 [B], class index in [0, C); rows equal to ``ignore_index`` count for nothing. None only if
            ``ce_weight == 0``: the distillation term alone.
        temperature: T > 0. The distillation term carries T^2.
        ensemble_weights: [S], or None for 1/S each.
        detach_ensemble: True, as in the paper: no gradient flows through the ensemble. False: reference backend.
        label_smoothing: in [0, 1], of the cross-entropy terms, as in ``torch.nn.functional.cross_entropy``.
        reduction: "mean" over the rows that are not ignored, or "sum".
        backend: "auto" takes the compiled kernel of the logits' device where it is there and covers the call, else
            the reference; "reference", "native" (CPU) and "triton" (CUDA) insist.

    Returns:
        EnsembleKDOutput: ``loss`` is differentiable (once), the statistics are detached; nothing leaves the device.
        All rows ignored, or none given: loss 0, gradients 0.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came. Labels out of range are found
            at once on the CPU; on other devices their rows make the loss NaN and are never used as an index.
        RuntimeError: the backend asked for is not there.
    """
    options = KDOptions(temperature, ce_weight, kd_weight, detach_ensemble, label_smoothing, ignore_index, reduction)
    students = _check(logits, target, ensemble_weights, options)
    if _choose(backend, students, options) == "reference":
        _check_labels(target, students[0], options.ignore_index)
        return reference.ensemble_kd(students, target, options, ensemble_weights)
    arguments = _op_arguments(target, ensemble_weights, options)
    if torch.is_grad_enabled() and any(z.requires_grad for z in students):
        stacked = isinstance(logits, Tensor)
        return EnsembleKDOutput(*_EnsembleKD.apply(stacked, arguments, *((logits,) if stacked else students)))
    return EnsembleKDOutput(*torch.ops.oekd_fast.ensemble_kd_value(students, *arguments))


def ensemble_kd_value_and_grad(
    logits: Sequence[Tensor] | Tensor,
    target: Tensor | None,
    *,
    temperature: float = 2.0,
    ce_weight: float = 0.7,
    kd_weight: float = 0.15,
    ensemble_weights: Tensor | None = None,
    detach_ensemble: bool = True,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    grad_scale: Tensor | None = None,
    out: Sequence[Tensor] | Tensor | None = None,
    backend: str = "auto",
) -> tuple[EnsembleKDOutput, tuple[Tensor, ...]]:
    """Loss and its gradients for the logits at once, outside autograd; arguments as :func:`ensemble_kd_loss`.

    Args:
        grad_scale: one-element tensor that multiplies the gradients (not the loss): a loss scale.
        out: S buffers shaped and typed as the logits, or one [S, B, C], to be overwritten with the gradients.

    Returns:
        The statistics, and S gradients in the logits' dtype.
    """
    options = KDOptions(temperature, ce_weight, kd_weight, detach_ensemble, label_smoothing, ignore_index, reduction)
    students = _check(logits, target, ensemble_weights, options)
    if grad_scale is not None:
        _check_tensor("grad_scale", grad_scale, students[0].device)
        if grad_scale.numel() != 1:
            raise ValueError(f"grad_scale: expected a tensor of one element, got shape {list(grad_scale.shape)}")
    buffers = None if out is None else _check_out(out, students)

    if _choose(backend, students, options) == "reference":
        _check_labels(target, students[0], options.ignore_index)
        return _reference_value_and_grad(students, target, options, ensemble_weights, grad_scale, buffers)
    arguments = _op_arguments(target, ensemble_weights, options)
    students = [z.detach() for z in students]
    grad_scale = None if grad_scale is None else grad_scale.detach()
    if buffers is None:
        *statistics, grads = torch.ops.oekd_fast.ensemble_kd_value_and_grad(students, *arguments, grad_scale=grad_scale)
        return EnsembleKDOutput(*statistics), tuple(grads)
    statistics = torch.ops.oekd_fast.ensemble_kd_value_and_grad_out(
        students, *arguments, grad_scale=grad_scale, out=buffers
    )
    return EnsembleKDOutput(*statistics), tuple(buffers)


def feature_kd_loss(
    student_maps: Sequence, teacher_map: Tensor | Sequence[Tensor], weights: Sequence, biases: Sequence
) -> Tensor:
    """Intermediate loss: MSE of each student's adapted map to the pseudo teacher's, summed (paper, section 3.2).

    Args:
        student_maps: of one block, n maps [B, C_j, H, W]; or of all blocks, a sequence of those.
        teacher_map: [B, C_0, H, W], never given a gradient; or one a block.
        weights: adapters, n of [C_0, C_j] or [C_0, C_j, 1, 1]; or a sequence of those, one a block.
        biases: n of [C_0]; or a sequence of those, one a block.

    Returns:
        Scalar: the mean over elements of each map, summed over students and blocks. No student: 0.

    Raises:
        ValueError: lengths or shapes that do not fit, naming block and student.
    """
    if isinstance(teacher_map, Tensor):
        blocks = [(student_maps, teacher_map, weights, biases)]
    else:
        given = {"student_maps": student_maps, "weights": weights, "biases": biases}
        for name, value in given.items():
            if len(value) != len(teacher_map):
                raise ValueError(f"{name}: expected one entry a block ({len(teacher_map)}), got {len(value)}")
        blocks = list(zip(student_maps, teacher_map, weights, biases, strict=True))
        if not blocks:
            raise ValueError("teacher_map: expected at least one block, got none")
    for index, block in enumerate(blocks):
        _check_block(index, *block)
    return torch.stack([reference.feature_kd(*block) for block in blocks]).sum()


class _EnsembleKD(torch.autograd.Function):
    """Loss first, gradients when the upstream one is known: rounded once, whatever the loss is multiplied by.

    On a CPU in eager mode they are made with the loss, in one pass, since the upstream gradient is nearly always 1.
    """

    @staticmethod
    def forward(ctx, stacked, arguments, *tensors):
        ctx.stacked, ctx.arguments, ctx.grads = stacked, arguments, None
        if torch.compiler.is_compiling() or not tensors[0].is_cpu:
            students = tensors[0].unbind(0) if stacked else tensors
            statistics = torch.ops.oekd_fast.ensemble_kd_value(students, *arguments)
        else:
            statistics, ctx.grads = _value_and_grad_like(tensors, stacked, arguments, None)
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(*statistics[1:])
        ctx.set_materialize_grads(False)
        return tuple(statistics)

    @staticmethod
    def backward(ctx, upstream, *unused):
        if upstream is None:
            return None, None, *(None for _ in ctx.saved_tensors)
        if not torch.compiler.is_compiling():
            if torch.is_grad_enabled():
                raise RuntimeError(
                    "ensemble_kd_loss: the compiled backends are differentiable once, got create_graph=True; "
                    "backend='reference' is differentiable twice"
                )
            if ctx.grads is not None and upstream.item() == 1.0:
                # Handed over, not shared, so that autograd keeps them without a copy; a second backward makes new ones.
                grads, ctx.grads = ctx.grads, None
                return None, None, *grads
        tensors = [z.detach() for z in ctx.saved_tensors]
        _, grads = _value_and_grad_like(tensors, ctx.stacked, ctx.arguments, upstream)
        return None, None, *grads


def _value_and_grad_like(tensors, stacked: bool, arguments: tuple, grad_scale: Tensor | None):
    """Statistics, and gradients in the form of `tensors`: S of [B, C], or one [S, B, C]."""
    if stacked:
        grads = torch.empty_like(tensors[0])
        statistics = torch.ops.oekd_fast.ensemble_kd_value_and_grad_out(
            tensors[0].unbind(0), *arguments, grad_scale=grad_scale, out=grads.unbind(0)
        )
        return statistics, (grads,)
    *statistics, grads = torch.ops.oekd_fast.ensemble_kd_value_and_grad(tensors, *arguments, grad_scale=grad_scale)
    return statistics, grads


def _op_arguments(target: Tensor | None, ensemble_weights: Tensor | None, options: KDOptions) -> tuple:
    """What the ops take after the logits."""
    return (
        target,
        None if ensemble_weights is None else ensemble_weights.detach(),
        float(options.temperature),
        float(options.ce_weight),
        float(options.kd_weight),
        float(options.label_smoothing),
        options.ignore_index,
        options.reduction == "mean",
    )


def _reference_value_and_grad(students, target, options, ensemble_weights, grad_scale, buffers):
    # Tensors made in inference mode cannot take part in autograd, their copies can.
    def outside(tensor):
        return tensor.clone() if tensor is not None and tensor.is_inference() else tensor

    with torch.inference_mode(False), torch.enable_grad():
        leaves = [outside(z).detach().requires_grad_() for z in students]
        output = reference.ensemble_kd(leaves, outside(target), options, outside(ensemble_weights))
        upstream = None if grad_scale is None else outside(grad_scale).detach().reshape(()).to(output.loss.dtype)
        grads = torch.autograd.grad(output.loss, leaves, upstream)
    if buffers is not None:
        for buffer, grad in zip(buffers, grads, strict=True):
            buffer.copy_(grad)
        grads = tuple(buffers)
    return output._replace(loss=output.loss.detach()), grads


def _check(logits, target, ensemble_weights, options: KDOptions) -> list[Tensor]:
    if isinstance(logits, Tensor):
        if logits.dim() != 3:
            raise ValueError(
                f"logits: expected S tensors [B, C] or one [S, B, C], got one of shape {list(logits.shape)}"
            )
        students = list(logits.unbind(0))
    elif isinstance(logits, Sequence):
        students = list(logits)
    else:
        raise TypeError(f"logits: expected a sequence of tensors or one tensor, got {type(logits).__name__}")
    if not students:
        raise ValueError("logits: expected at least one student, got none")
    first = students[0]
    for j, z in enumerate(students):
        if not isinstance(z, Tensor):
            raise TypeError(f"logits[{j}]: expected a tensor, got {type(z).__name__}")
        if z.dim() != 2 or z.shape != first.shape:
            expected = f"[B, C] = {list(first.shape)} as logits[0]" if first.dim() == 2 else "[B, C]"
            raise ValueError(f"logits[{j}]: expected shape {expected}, got {list(z.shape)}")
        if z.dtype != first.dtype:
            raise TypeError(f"logits[{j}]: expected dtype {first.dtype} as logits[0], got {z.dtype}")
        if z.device != first.device:
            raise ValueError(f"logits[{j}]: expected device {first.device} as logits[0], got {z.device}")
    if first.dtype not in COMPILED_DTYPES and first.dtype != torch.float64:
        raise TypeError(f"logits: expected float32, float16, bfloat16 or float64, got {first.dtype}")
    rows, classes = first.shape
    if classes == 0:
        raise ValueError("logits: expected at least one class, got C = 0")
    _check_target(target, rows, first.device, options)
    if ensemble_weights is not None:
        _check_tensor("ensemble_weights", ensemble_weights, first.device)
        if ensemble_weights.shape != (len(students),):
            expected, came = [len(students)], list(ensemble_weights.shape)
            raise ValueError(f"ensemble_weights: expected shape {expected}, one a student, got {came}")
        if not ensemble_weights.is_floating_point():
            raise TypeError(f"ensemble_weights: expected a floating dtype, got {ensemble_weights.dtype}")
    return students


def _check_target(target, rows: int, device: torch.device, options: KDOptions) -> None:
    if target is None:
        if options.ce_weight != 0:
            raise ValueError(
                f"target: expected int64 [B] (None only if ce_weight is 0), got None with ce_weight {options.ce_weight}"
            )
        return
    _check_tensor("target", target, device)
    if target.dtype != torch.int64:
        raise TypeError(f"target: expected dtype torch.int64, got {target.dtype}")
    if target.shape != (rows,):
        raise ValueError(f"target: expected shape [{rows}], one label a row of the logits, got {list(target.shape)}")


def _check_tensor(name: str, value: object, device: torch.device, like: str = "the logits") -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.device != device:
        raise ValueError(f"{name}: expected device {device} as {like}, got {value.device}")


def _check_labels(target: Tensor | None, logits: Tensor, ignore_index: int) -> None:
    """For the reference; a compiled backend looks at the labels in its own pass over the rows."""
    # A look from the host would synchronise a GPU and break a compiled graph: there the loss becomes NaN.
    if target is None or not target.is_cpu or torch.compiler.is_compiling():
        return
    classes = logits.shape[1]
    bad = ((target < 0) | (target >= classes)) & (target != ignore_index)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"target: expected labels in [0, {classes}) or ignore_index {ignore_index}, "
            f"got {int(target[row])} at row {row}"
        )


def _check_out(out: Sequence[Tensor] | Tensor, students: list[Tensor]) -> list[Tensor]:
    buffers = list(out.unbind(0)) if isinstance(out, Tensor) else list(out)
    if len(buffers) != len(students):
        raise ValueError(f"out: expected {len(students)} buffers, one a student, got {len(buffers)}")
    for j, (buffer, z) in enumerate(zip(buffers, students, strict=True)):
        _check_tensor(f"out[{j}]", buffer, z.device, like=f"logits[{j}]")
        for what in ("shape", "dtype"):
            expected, came = getattr(z, what), getattr(buffer, what)
            if expected != came:
                kind = TypeError if what == "dtype" else ValueError
                raise kind(f"out[{j}]: expected {what} {expected} as logits[{j}], got {came}")
        if any(stride == 0 and size > 1 for stride, size in zip(buffer.stride(), buffer.shape, strict=True)):
            raise ValueError(
                f"out[{j}]: expected a place of its own for every element, got strides {list(buffer.stride())}"
            )
    return buffers


def _check_block(block: int, maps, teacher: Tensor, weights, biases) -> None:
    if not len(maps) == len(weights) == len(biases):
        raise ValueError(
            f"block {block}: expected as many student maps as weights and biases, "
            f"got {len(maps)}, {len(weights)} and {len(biases)}"
        )
    for j, (student, weight, bias) in enumerate(zip(maps, weights, biases, strict=True)):
        where = f"block {block}, student map {j}"
        if student.shape[0] != teacher.shape[0] or student.shape[2:] != teacher.shape[2:]:
            raise ValueError(
                f"{where}: expected batch and size of the teacher's {list(teacher.shape)}, got {list(student.shape)}"
            )
        if weight.shape[:2] != (teacher.shape[1], student.shape[1]) or weight.numel() != weight.shape[:2].numel():
            raise ValueError(
                f"{where}: expected a weight [{teacher.shape[1]}, {student.shape[1]}(, 1, 1)], got {list(weight.shape)}"
            )
        if bias.shape != (teacher.shape[1],):
            raise ValueError(f"{where}: expected a bias [{teacher.shape[1]}], got {list(bias.shape)}")


def _choose(backend: str, students: list[Tensor], options: KDOptions) -> str:
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {BACKENDS}, got {backend!r}")
    compiled = {"cpu": "native", "cuda": "triton"}.get(students[0].device.type)
    if backend == "auto":
        covered = compiled and not _uncovered(students[0].dtype, options) and not _MISSING[compiled]
        return compiled if covered else "reference"
    if backend == "reference":
        return backend
    if why := _MISSING[backend]:
        raise RuntimeError(f"backend {backend!r} is not there: {why}")
    if backend != compiled:
        raise ValueError(
            f"backend {backend!r}: expected logits on {'the CPU' if backend == 'native' else 'CUDA'}, "
            f"got {students[0].device}"
        )
    if why := _uncovered(students[0].dtype, options):
        raise ValueError(f"backend {backend!r}: {why}; backend='reference' does this")
    return backend


def _uncovered(dtype: torch.dtype, options: KDOptions) -> str | None:
    if dtype not in COMPILED_DTYPES:
        return f"expected float32, bfloat16 or float16 logits, got {dtype}"
    if not options.detach_ensemble:
        return "expected detach_ensemble=True, got False"
    return None
