"""The command line that the campaigns share: a number of trials, a seed and the file of the result."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any


def run_command(
    description: str,
    run: Callable[[int, int, Path], dict[str, Any]],
    *,
    count: tuple[str, int, str],
    result: Path,
    reuses_folder: bool = False,
) -> dict[str, Any]:
    """Parse the command line, run a campaign in a temporary folder, and write its result as JSON.

    Args:
        description: docstring of the campaign, whose first line is shown by ``--help``.
        run: called with the number of trials, the seed and the folder; returns the result.
        count: option for the number of trials, such as "--trials", its default, and what is counted.
        result: default of ``--output``.
        reuses_folder: whether the campaign can use what an earlier one left in its folder. ``--folder`` then names one.
    """
    flag, default, help_text = count
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument(flag, dest="count", type=int, default=default, help=f"{help_text} (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the campaign (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=result, help="file of the result (default: %(default)s)")
    if reuses_folder:
        parser.add_argument("--folder", type=Path, help="working folder, which is kept (default: a temporary one)")
    options = parser.parse_args()
    kept = getattr(options, "folder", None)
    with nullcontext(kept) if kept else tempfile.TemporaryDirectory() as folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        content = run(options.count, options.seed, Path(folder).resolve())
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(content, indent=1) + "\n")
    return content
