"""Marks of tests that fork."""

import os

import pytest

# The warning is about thread pools of the parent, which the forked children do not use.
FORKS = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
]
