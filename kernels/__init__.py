"""Triton kernels, installed as ``oekd_fast.kernels``; loaded by ``oekd_fast.losses.backends`` at their first launch."""
