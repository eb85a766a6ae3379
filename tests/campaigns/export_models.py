"""Export every registered network: its smallest student as ONNX and as a program, whose differences are recorded.

    python -m tests.campaigns.export_models [--models resnet20 densenet121 ...]

A network whose files differ from it by more than rounding ends the campaign with status 1. Results of other networks in
the file of the result are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from oekd_fast import StudentEnsemble, build_ensemble
from oekd_fast.family.exporting.export import ExportError
from oekd_fast.models import Architecture, architecture_names

RESULT = Path(__file__).parent / "results" / "export_models.json"
SUFFIXES = (".onnx", ".pt2")
SHAPE = (3, 64, 64)


def student_with_statistics(model: str | Architecture, num_students: int, j: int, size: int = 32) -> StudentEnsemble:
    """Return a family of student `j` alone in evaluation mode, whose norms have statistics of its own maps."""
    torch.manual_seed(0)
    family = build_ensemble(model, num_students, 10, members=(j,))
    for module in family.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.uniform_(module.bias, -0.5, 0.5)
    with torch.no_grad():
        family(torch.randn(8, 3, size, size))
    return family.eval()


def export_model(model: str, folder: Path) -> dict[str, Any]:
    """Export student 5 of 5 of a registered network, and return differences, tolerances, sizes and seconds."""
    student = student_with_statistics(model, 5, 4, SHAPE[-1]).student(4)
    found = {}
    for suffix in SUFFIXES:
        start = time.perf_counter()
        try:
            file = student.export(folder / f"{model}{suffix}", preprocessing=False, image_shape=SHAPE)
            found[suffix[1:]] = {"difference": file.difference, "tolerance": file.tolerance, "bytes": file.size}
        except ExportError as error:
            found[suffix[1:]] = {"error": str(error)}
        found[suffix[1:]]["seconds"] = round(time.perf_counter() - start, 1)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=architecture_names(), help="networks (default: all)")
    parser.add_argument("--output", type=Path, default=RESULT, help="file of the result (default: %(default)s)")
    options = parser.parse_args()
    results = json.loads(options.output.read_text())["models"] if options.output.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            results[model] = export_model(model, Path(folder))
            print(model, json.dumps(results[model]), flush=True)
    document = {"torch": torch.__version__, "student": "5 of 5", "image_shape": SHAPE, "models": results}
    options.output.write_text(json.dumps(document, indent=1) + "\n")
    return int(any("error" in form for found in results.values() for form in found.values()))


if __name__ == "__main__":
    sys.exit(main())
