"""Write the tables of README.md and docs/ from the files in bench/results.

    python -m bench.readme.tables          # rewrites the pages in place

A page holds a table between `<!-- table:NAME -->` and `<!-- end -->`. A table has only measured rows; without any, the
text between its markers is empty. The table `scale_out` is computed by a model and says so.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import accuracy, evidence, loss, machine_code, scale_out, steps, students

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parents[1] / "results"
README, BENCHMARKS, REPRODUCING = "README.md", "docs/benchmarks.md", "docs/reproducing.md"
DISTRIBUTED, EVIDENCE = "docs/distributed.md", "docs/evidence.md"
MARKERS = re.compile(r"(<!-- table:(\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Table:
    """A generated table.

    Attributes:
        name: Name in the marker.
        page: Page that the table belongs to, relative to the root of the repository.
        text: Makes the Markdown from the folder of results.
        files: Result files that `text` reads, as arguments of it: names or patterns.
    """

    name: str
    page: str
    text: Callable[..., str]
    files: tuple[str, ...]

    def render(self, results: Path = RESULTS) -> str:
        return self.text(results, *self.files)


GPU = "gpu_*.json"
TABLES = (
    Table("codegen", BENCHMARKS, machine_code.of_versions, ("codegen_*.json",)),
    Table("digits", README, accuracy.single_run, ("digits_resnet20_cpu.json",)),
    Table("loss", README, loss.one_processor, ("ensemble_kd_avx512_cpu.json",)),
    Table("loss_all", BENCHMARKS, loss.all_processors, ("ensemble_kd*_cpu.json",)),
    Table("loss_shapes", BENCHMARKS, loss.of_shapes, ("shapes_ensemble_kd_cpu.json",)),
    Table("loss_features", BENCHMARKS, loss.of_feature_maps, ("feature_kd_cpu.json",)),
    Table("loss_classifiers", BENCHMARKS, loss.of_classifiers, ("linear_ensemble_kd_cpu.json",)),
    Table("gpu_loss", BENCHMARKS, loss.on_a_gpu, (GPU,)),
    Table("step", BENCHMARKS, steps.training_steps, ("step_*_cpu.json", GPU)),
    Table("precision", BENCHMARKS, steps.precisions, ("precision_step_*_cpu.json",)),
    Table("ranks", DISTRIBUTED, steps.on_ranks, ("ranks_*_cpu.json",)),
    Table("students", BENCHMARKS, students.latencies, ("widths_*_cpu.json",)),
    Table("scale_out", BENCHMARKS, scale_out.on_many_devices, ("scale_out_*.json",)),
    Table("evidence_gains", EVIDENCE, evidence.gains, ("evidence_cifar100.json",)),
    Table("evidence_recipes", EVIDENCE, evidence.recipes, ("evidence_cifar100.json",)),
    Table("evidence_shorter", EVIDENCE, evidence.shorter_schedules, ("evidence_cifar100.json",)),
    Table("evidence_test", EVIDENCE, evidence.on_test, ("evidence_cifar100.json",)),
    Table("evidence", EVIDENCE, evidence.outcomes, ("evidence_cifar100.json",)),
    Table("cifar100", BENCHMARKS, accuracy.single_run, ("cifar100_resnet20_cpu.json",)),
    Table("reproduced_digits", REPRODUCING, accuracy.over_seeds, ("reproduce_digits_resnet20.json",)),
    Table("reproduced_fashion_mnist", REPRODUCING, accuracy.over_seeds, ("reproduce_fashion_mnist_resnet20.json",)),
)
PAGES = tuple(dict.fromkeys(table.page for table in TABLES))


def render(page: str, text: str, results: Path = RESULTS) -> str:
    """Return the text of `page` with its tables made anew.

    Raises:
        ValueError: a marker names a table that does not belong to the page.
    """
    tables = {table.name: table for table in TABLES if table.page == page}

    def replace(match: re.Match) -> str:
        begin, name, _, end = match.groups()
        if name not in tables:
            raise ValueError(f"{page}: expected a table among {', '.join(tables)}, got {name!r}")
        return begin + tables[name].render(results) + end

    return MARKERS.sub(replace, text)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for page in PAGES:
        path = ROOT / page
        if path.exists():
            path.write_text(render(page, path.read_text()))


if __name__ == "__main__":
    main()
