"""Seeds of independent random generators that follow from the one seed of a run."""

from __future__ import annotations

import hashlib


def derived_seed(seed: int, purpose: str) -> int:
    """Return a seed in [0, 2^63) for a generator of its own, which is the same for equal arguments."""
    digest = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
