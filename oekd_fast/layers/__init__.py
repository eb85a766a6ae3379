"""Layers with native CPU ops for training; everywhere else they run as plain PyTorch.

norm_relu: BatchNorm, residual addition and ReLU as one op; direct_conv: 3x3 convolutions with few channels.
"""
