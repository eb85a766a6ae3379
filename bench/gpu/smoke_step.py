"""Whether steps of ResNet-20 train alike: eager, captured, and captured on one stream."""

from __future__ import annotations

from collections.abc import Iterator

from .context import Context
from .step import parse

VARIANTS = ("ours_eager", "ours_captured", "ours_one_stream")
STEPS = 6
# Relative difference of the mean loss in bf16: the order of sums in cuDNN's gradients may differ between runs, and
# later steps amplify it.
ALLOWED = 0.02


def keys(argument: str, tiny: bool) -> list[str]:
    return ["step resnet20 128"]


def measure(key: str, context: Context) -> Iterator[dict]:
    """Yield the losses of the first steps of each variant, from the same weights and the same random numbers."""
    _, problem = parse(key, context.device)
    losses: dict[str, list[float]] = {}
    for name in VARIANTS:
        variant, _ = context.device.step(name, problem)
        variant.take_loss()  # of the steps in which it was built
        losses[name] = [_loss_of_a_step(variant) for _ in range(STEPS)]
        del variant
        context.device.free()
    first = losses[VARIANTS[0]]
    error = max(abs(a / b - 1) for of_variant in losses.values() for a, b in zip(of_variant, first, strict=True))
    same = all(of_variant == first for of_variant in losses.values())
    yield {"losses": losses, "error": error, "allowed": ALLOWED, "same_bits": same, "right": error <= ALLOWED}


def _loss_of_a_step(variant) -> float:
    variant.step()
    return variant.take_loss()


def lines(key: str, result: dict) -> Iterator[str]:
    verdict = "right" if result["right"] else "WRONG"
    bits = "the same losses to the bit" if result["same_bits"] else f"losses differ by {result['error']:.1e}"
    yield f"{', '.join(result['losses'])}"
    yield f"  {verdict}: {bits} (<= {result['allowed']:.0e}) in {STEPS} steps"
