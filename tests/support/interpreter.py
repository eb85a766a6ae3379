"""Triton's interpreter as the tests need it: it rounds and sums like a GPU, and is three times faster.

As it comes it cuts fp32 off to bf16, adds one after the other what threads add by halves, and patches
``triton.language`` anew in each call of a device function.
"""

from types import SimpleNamespace

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter


def install() -> None:
    """Before the first launch."""
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
