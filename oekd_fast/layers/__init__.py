"""Faster forms of layers of PyTorch for training on CPUs and GPUs; everywhere else the layers run as they are.

Networks hold plain layers of `torch.nn`, which libraries can replace, fuse, prune or quantise. Functions run them.

- `norm_relu`: BatchNorm, residual addition and ReLU as one op, for the CPU and CUDA.
- `running_statistics`: updates of BatchNorm's statistics, those of all layers together.
- `direct_conv`: 3x3 convolutions with few channels, for the CPU.
- `winograd`: 3x3 convolutions with fewer multiplications, for the CPU.
- `plain_conv`: whether an op for the CPU may take the place of a convolution.
- `fast_module`: base classes of modules that use these forms.
- `unmodified`: whether a layer still is what it was built as; the condition of all forms.
- `derivatives`: the error of a second derivative, which no form has.
- `scripting`: the error of `torch.jit.script`.
"""
