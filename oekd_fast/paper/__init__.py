"""Results of the paper (arXiv 2011.07449), which runs are compared with.

`paper_tables` returns its tables; `expected` selects the results for a data set and model.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any, Literal

Ablation = Literal["alpha", "beta_gamma", "temperature"]  # Tables 7 to 9


def paper_tables() -> dict[str, Any]:
    """Return the contents of `tables.json`; its entry ``source`` names the source of the numbers.

    ``accuracy[data set][model]`` holds the top-1 test accuracies in percent of students 1 to 5, trained alone
    (``baseline``) and as a family (``ensemble``). ``ensemble_error_percent`` holds the error of the mean of their
    logits, one number for each entry of ``columns``, or null where the paper gives none.
    """
    return json.loads(files(__name__).joinpath("tables.json").read_text(encoding="utf-8"))
