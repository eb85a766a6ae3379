"""Triton kernels, installed as ``oekd_fast.kernels``; loaded by ``oekd_fast.dispatch`` at their first launch."""
