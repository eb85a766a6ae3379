"""scikit-learn's digits: 1,797 real 8x8 scans, at hand without a download."""

import numpy as np
import torch

from oekd_fast.data.assemble import RawSplits
from oekd_fast.data.dataset import Split
from oekd_fast.data.readers.optional import require
from oekd_fast.data.readers.reading import Reading
from oekd_fast.data.readers.resize import resize_planes


def read_digits(reading: Reading) -> RawSplits:
    """All scans as one grey training split in memory; values 0 to 16 become 0 to 255."""
    digits = require("sklearn.datasets").load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    if reading.size is not None:
        images = resize_planes(images, reading.size)
    split = Split(torch.from_numpy(images), torch.from_numpy(digits.target.astype(np.int64)))
    return RawSplits({"train": split}, tuple(str(name) for name in digits.target_names))
