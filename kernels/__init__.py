"""Triton kernels, installed as ``oekd_fast.kernels``: one op a file, loaded by ``oekd_fast.ops`` where it is there."""
