"""Record a finished run as a benchmark result: what was trained, on what, how well and how fast.

python -m bench.readme.training RUN_FOLDER --json FILE
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..measure import machine


def record(run: Path) -> dict[str, Any]:
    """Config, summary and every epoch of the run in `run`."""
    config = json.loads((run / "config.json").read_bytes())
    where = ("data_dir", "output_dir", "resume", "progress")
    return {
        "what": f"training {config['model']} x {config['num_students']} on {config['dataset']}",
        "machine": machine(),
        "config": {key: value for key, value in config.items() if key not in where},
        "summary": json.loads((run / "summary.json").read_bytes()),
        "epochs": [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.json.write_text(json.dumps(record(arguments.run), indent=1) + "\n")


if __name__ == "__main__":
    main()
