"""The GPU, the driver, the clocks and the versions that a report was made with."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import torch

from oekd_fast.common.machine import machine
from oekd_fast.native import why_no_executor

from .context import Context

QUERY = "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"


def keys(argument: str, tiny: bool) -> list[str]:
    return ["machine"]


def measure(key: str, context: Context) -> Iterator[dict]:
    """Yield the environment.

    Raises:
        RuntimeError: torch finds no CUDA device.
    """
    if not (context.device.tiny or torch.cuda.is_available()):
        raise RuntimeError(f"device: expected a CUDA device, torch {torch.__version__} finds none")
    yield environment() | ({"gpu": context.device.card} if context.device.tiny else {})


def lines(key: str, result: dict) -> Iterator[str]:
    yield f"{result['gpu']}, {result.get('multiprocessors', '?')} multiprocessors"
    yield ", ".join(f"{name} {result[name]}" for name in ("torch", "cuda", "triton", "python", "commit"))
    yield f"compiled executor: {result['no_executor'] or 'loaded'}"


def environment() -> dict:
    """Return machine, versions and commit, and the properties of the GPU if there is one."""
    try:
        from triton import __version__ as triton
    except ImportError:
        triton = None
    where = machine() | {"triton": triton, "cuda": torch.version.cuda, "no_executor": why_no_executor()}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        where |= {
            "gpu": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "cache_bytes": getattr(properties, "L2_cache_size", None),
            "capability": f"{properties.major}.{properties.minor}",
        }
    return where | query_card()


def query_card() -> dict:
    """Return what nvidia-smi reports about the first GPU, or why it reports nothing."""
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        return {"nvidia_smi": f"{type(error).__name__}: {error}"[:200]}
    values = [value.strip() for value in done.stdout.splitlines()[0].split(",")]
    return {"nvidia_smi": dict(zip(QUERY.split(","), values, strict=False))}
