"""Which test images the students of a finished run classify correctly, and the error that their choice gives a gain."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.distributed.world import ALONE
from oekd_fast.runs.set_up import RunInputs, open_run

RESAMPLES, _AT_ONCE = 2000, 500


def correct_predictions(config: TrainConfig, phase: str) -> dict[str, Any]:
    """Return which test images each student of a finished phase classifies correctly.

    ``images`` is the number of test images, and ``correct`` has the `packed` predictions of each student. The weights
    are those of the last epoch, or their moving average if `config` has one.

    Args:
        config: config of the run, with ``resume``.
        phase: name of the phase.
    """
    with open_run(config, ALONE) as run:
        inputs = RunInputs.load(run)
        restored = inputs.phase(phase, {})
        predictions = restored.engine.evaluator.probabilities(inputs.data.test).argmax(dim=2)
    labels = inputs.dataset.test.labels.to(predictions.device)
    correct = [packed((of_student == labels).numpy()) for of_student in predictions]
    return {"images": len(labels), "correct": correct}


def packed(correct: np.ndarray) -> str:
    """Return bool [N] as text: eight images a byte, the first in its highest bit, in base64."""
    return base64.b64encode(np.packbits(correct).tobytes()).decode()


def unpacked(text: str, images: int) -> np.ndarray:
    """Return the bool [N] of `packed`, for N `images`."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8), count=images).astype(bool)


def error_over_seeds_and_images(first: Sequence[np.ndarray], second: Sequence[np.ndarray], seed: int = 0) -> float:
    """Return the standard error of a gain in points, over the choice of both the seeds and the test images.

    It is the standard deviation over resamples of the seeds and, independently, of the images, each with replacement
    (Owen 2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1). It tends to be too large, not too small.

    Args:
        first, second: whether each image is classified correctly, bool [N] for each seed, the same seeds in both.
        seed: seed of the resamples.
    """
    differences = np.stack(first).astype(np.float32) - np.stack(second).astype(np.float32)
    seeds, images = differences.shape
    generator = np.random.default_rng(seed)
    of_seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
    means = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        of_images = generator.multinomial(images, np.full(images, 1 / images), size=len(of_seeds[rows]))
        means[rows] = np.einsum("rs,rs->r", of_images.astype(np.float32) @ differences.T / images, of_seeds[rows])
    return float(100 * means.std())
