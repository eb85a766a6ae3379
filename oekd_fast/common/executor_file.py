"""Name of the file of the executor, which says for which torch and Python it was built. setup.py uses it too."""

from __future__ import annotations

import sysconfig

import torch


def executor_file() -> str:
    """Return the name of the executor's file for the running torch and Python.

    Example: ``_executor.torch-2.13.0-cf30153c4c13.cpython-311-x86_64-linux-gnu.so``. C++ code that uses all of torch
    works with the commit of torch that it was compiled with. All builds of a release, for CPU or CUDA, have one commit.
    """
    version = torch.__version__.partition("+")[0]
    commit = (torch.version.git_version or "unknown")[:12]
    return f"_executor.torch-{version}-{commit}.{sysconfig.get_config_var('SOABI')}.so"
