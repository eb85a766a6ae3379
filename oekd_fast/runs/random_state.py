"""The state of every random generator that a training draws from, as a checkpoint holds it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch, the latter on all devices."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def capture_random_state(generators: Mapping[str, torch.Generator]) -> dict[str, Any]:
    """Return the state of every random generator, in types that a checkpoint can hold.

    Covers the global generators of Python's `random`, of numpy, and of torch on the CPU, on all CUDA devices and on
    MPS, and the named `generators`.
    """
    numpy_state = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": {
            "key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "position": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
        "generators": {name: generator.get_state() for name, generator in generators.items()},
    }


def restore_random_state(state: dict[str, Any], generators: Mapping[str, torch.Generator]) -> None:
    """Set every random generator to the state that `capture_random_state` returned.

    CUDA devices are restored in order, as many as exist both now and in `state`.

    Raises:
        ValueError: `generators` has other names than `state`, in which case nothing has been restored, or one of them
            is on another kind of device.
    """
    saved = state["generators"]
    if saved.keys() != generators.keys():
        raise ValueError(f"generators: expected the names {sorted(saved)}, got {sorted(generators)}")
    for name, generator in generators.items():
        try:
            generator.set_state(saved[name].cpu())
        except RuntimeError as error:
            raise ValueError(
                f"generators: {name!r} on {generator.device} cannot take the saved state, which came from "
                f"another kind of device ({error})"
            ) from error

    random.setstate(state["python"])
    numpy_state = state["numpy"]
    key = numpy_state["key"].cpu().numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, numpy_state["position"], numpy_state["has_gauss"], numpy_state["gauss"]))
    torch.set_rng_state(state["torch"].cpu())
    for device, cuda_state in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
        torch.cuda.set_rng_state(cuda_state.cpu(), device)
    mps_state = state.get("mps")  # version 0.1.0 stored none
    if mps_state is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(mps_state.cpu())
