"""Triton kernels, installed as ``oekd_fast.kernels``. ``oekd_fast.losses`` loads them when it first launches one."""
