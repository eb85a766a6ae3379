"""Record a finished run as a result file: its config, its accuracies, its speed and the machine.

python -m bench.readme.training RUN_FOLDER --json FILE
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from oekd_fast.common.machine import machine

from .. import result_file


def record(run: Path) -> dict[str, Any]:
    """Return config, summary and epochs of the run in the folder `run`."""
    config = json.loads((run / "config.json").read_bytes())
    local = ("data_dir", "output_dir", "resume", "progress")  # these describe the invocation, not the training
    return {
        "what": f"training {config['model']} x {config['num_students']} on {config['dataset']}",
        "machine": machine(),
        "config": {key: value for key, value in config.items() if key not in local},
        "summary": json.loads((run / "summary.json").read_bytes()),
        "epochs": [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER", help="output folder of oekd_fast.train")
    parser.add_argument("--json", type=Path, required=True, help="write the result to this file")
    arguments = parser.parse_args()
    result_file.write(arguments.json, record(arguments.run))


if __name__ == "__main__":
    main()
