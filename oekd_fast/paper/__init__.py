"""The paper's tables as numbers: what runs are compared with, and what its protocol is."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any, Literal

Ablation = Literal["alpha", "beta_gamma", "temperature"]  # Tables 7 to 9


def paper_tables() -> dict[str, Any]:
    """Return `tables.json` as it is; ``source`` in it says where its numbers come from.

    ``accuracy[data set][model]`` holds top-1 test accuracies in percent of students 1 to 5, each trained alone
    (``baseline``) and as a family (``ensemble``); ``ensemble_error_percent`` has the error of the mean of their
    logits, a number for each ``columns`` (null: not given).
    """
    return json.loads(files(__name__).joinpath("tables.json").read_text(encoding="utf-8"))
