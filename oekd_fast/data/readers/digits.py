"""Reader of scikit-learn's digits: 1,797 scans of 8x8 pixels, which need no download."""

import numpy as np
import torch

from oekd_fast.data.assemble import SourceSplits
from oekd_fast.data.dataset import Split
from oekd_fast.data.memory import check_fits
from oekd_fast.data.readers.decode import resize_planes
from oekd_fast.data.readers.reading import ReadOptions, require


def read_digits(options: ReadOptions) -> SourceSplits:
    """Return all scans as one grey training split in memory, with values 0..16 scaled to 0..255."""
    digits = require("sklearn.datasets").load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    if options.size is not None:
        check_fits("digits", len(images), (1, options.size, options.size))
        images = resize_planes(images, options.size)
    split = Split(torch.from_numpy(images), torch.from_numpy(digits.target.astype(np.int64)))
    return SourceSplits({"train": split}, tuple(str(name) for name in digits.target_names))
