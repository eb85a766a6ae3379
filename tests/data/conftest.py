import numpy as np
import pytest


@pytest.fixture
def labelled() -> tuple[np.ndarray, np.ndarray]:
    """40 colour images (uint8, N x H x W x C) of 4 classes and their labels, sorted by class as in an image folder."""
    images = np.random.default_rng(0).integers(0, 256, (40, 6, 6, 3), dtype=np.uint8)
    return images, np.repeat(np.arange(4), 10)
