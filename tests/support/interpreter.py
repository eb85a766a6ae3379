"""Triton's interpreter as the tests need it: it rounds and sums like a GPU, and is five times faster.

Without these patches it truncates fp32 to bf16 and adds in sequence what threads add by halves. It also patches
``triton.language`` anew in each call of a device function, checks each addition of integers for overflow in ten
operations of its own, and makes the types and shapes of each result anew.
"""

import math
from types import SimpleNamespace

import numpy as np
import torch
import triton.language as tl
from triton.language import core
from triton.runtime import interpreter


def install() -> None:
    """Patch the interpreter. Must be called before the first launch."""
    _round_and_sum_like_a_gpu()
    _remember_types()
    object.__setattr__(interpreter.interpreter_builder.options, "sanitize_overflow", False)


def _remember_types() -> None:
    """Look up types and shapes that were made before, in place of making them in each operation."""
    dtypes, blocks, shapes = {}, {}, {}
    make_dtype, make_block = interpreter._get_np_dtype, core.block_type.__init__

    def key(dtype):
        return type(dtype), dtype.name  # pointer types cannot be hashed

    def np_dtype(dtype):
        scalar = dtype.scalar
        if key(scalar) not in dtypes:
            dtypes[key(scalar)] = make_dtype(scalar)
        return dtypes[key(scalar)]

    def init_block(self, element_ty, shape):
        known = key(element_ty), tuple(core._unwrap_if_constexpr(s) for s in shape)
        if known not in blocks:
            make_block(self, element_ty, shape)
            blocks[known] = dict(self.__dict__)
        self.__dict__.update(blocks[known])

    def init_tensor(self, handle, type):
        shape = tuple(type.shape) if type.is_block() else ()
        if shape not in shapes:
            shapes[shape] = core.constexpr(math.prod(shape)), core.tuple([core.constexpr(s) for s in shape])
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.numel, self.shape = shapes[shape]

    interpreter._get_np_dtype = np_dtype
    core.block_type.__init__ = init_block
    core.tensor.__init__ = init_tensor


def _round_and_sum_like_a_gpu() -> None:
    patch, cast = interpreter._patch_lang, interpreter.InterpreterBuilder.cast_impl

    def patch_all(fn):
        return patch(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))

    def call(self, *args, **kwargs):
        return self.rewrite()(*args, **kwargs)

    def rounded_cast(self, src, dst_type):
        if src.dtype.scalar != tl.float32 or dst_type.scalar != tl.bfloat16:
            return cast(self, src, dst_type)
        rounded = torch.from_numpy(src.data.copy()).to(torch.bfloat16).view(torch.uint16).numpy()
        return interpreter.TensorHandle(rounded, tl.bfloat16)

    def sum_by_halves(self, input):
        values = np.moveaxis(input.handle.data, self.axis, 0) if self.axis is not None else input.handle.data.ravel()
        while len(values) > 1:
            values = values[: len(values) // 2] + values[len(values) // 2 :]
        total = values[0]
        if self.keep_dims:
            total = np.expand_dims(total, self.axis) if self.axis is not None else total.reshape([1] * len(input.shape))
        return self.to_tensor(total, input.dtype)

    interpreter._patch_lang = patch_all
    interpreter.ReduceOps.sum = sum_by_halves
    interpreter.InterpretedFunction.__call__ = call
    interpreter.InterpreterBuilder.cast_impl = rounded_cast
