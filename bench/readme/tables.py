"""README's tables, made from the files in bench/results.

python -m bench.readme.tables          # rewrite README.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from oekd_fast.common.spread import Spread

from ..gpu import report as gpu_report
from ..model.roofline import ITEMSIZES, SIZES
from ..step.variants import CAPTURED

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parents[1] / "results"


def render(text: str) -> str:
    """`text` with what stands between each pair of table markers made anew."""
    for name, table in TABLES.items():
        pattern = re.compile(rf"(<!-- table:{name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"README.md: expected the markers of table {name!r}, found none")
        text = pattern.sub(lambda m, table=table: m[1] + table() + m[2], text)
    return text


def family(file: str) -> Callable[[], str]:
    """A training run: each student against its baseline."""

    def table() -> str:
        result = _load(file)
        summary = result["summary"]
        rows = [
            (
                s["index"],
                f"{s['parameters']:,}",
                f"{s['relative_size']:.1f}",
                _percent(s["baseline_accuracy"]),
                _percent(s["accuracy"]),
                "-" if s["relative_gain"] is None else f"{s['relative_gain']:+.2f}",
            )
            for s in summary["students"]
        ]
        seconds = sum(phase["seconds"] for phase in summary["phases"].values())
        caption = (
            f"Ensemble {summary['ensemble_accuracy']:.2f} %. {summary['epochs']} epoch"
            f"{'s' if summary['epochs'] > 1 else ''}, seed {result['config'].get('seed', 0)}, test accuracy on "
            f"{summary['test_images']:,} images at the epoch chosen on held-out ones. "
            f"{seconds:.0f} s of training, the family at {summary['images_per_second']:.0f} images/s; "
            f"{_where(result['machine'])}."
        )
        heading = ("student", "parameters", "size %", "alone %", "in the family %", "gain %")
        return _markdown(heading, rows) + f"\n{caption}\n"

    return table


def reproduced(file: str) -> Callable[[], str]:
    """Families against their baselines over seeds, from a run of oekd_fast.reproduce."""

    def table() -> str:
        result = _load(file)
        heading = ["student", "parameters"]
        parts = [("selected", "chosen epoch"), ("last_epoch", "last epoch")]
        for _, name in parts:
            heading += [f"alone %, {name}", f"in the family %, {name}", "gain, points"]
        rows = [
            (
                student["index"],
                f"{student['parameters']:,}",
                *(
                    _over_seeds(result["accuracy"][part][column][place], form)
                    for part, _ in parts
                    for column, form in (("baseline", ".2f"), ("family", ".2f"), ("gain_points", "+.2f"))
                ),
            )
            for place, student in enumerate(result["students"])
        ]
        ensembles = ", ".join(
            f"{_over_seeds(result['accuracy'][part]['ensemble'], '.2f')} % ({name})" for part, name in parts
        )
        done, asked = len(result["seeds"]), len(result["seeds_asked"])
        seeds = f"{done} of {asked} seeds so far" if done < asked else f"{done} seeds"
        caption = (
            f"{seeds}, mean ± sample standard deviation; gains are a seed's family over the same "
            f"seed's students alone. Ensemble {ensembles}. {result['protocol']}. {result['test_images']:,} test "
            f"images; {_where(result['machine'])}."
        )
        return _markdown(heading, rows) + f"\n{caption}\n"

    return table


def _over_seeds(value: dict[str, float | None], form: str) -> str:
    return f"{Spread(**value):{form}}"


def losses(pattern: str) -> Callable[[], str]:
    """The loss and its gradients against PyTorch, a file a processor."""

    def table() -> str:
        results = _load_all(pattern)
        rows = []
        for result in results:
            for r in result["results"]:
                ms = {
                    name: f"{t['median']:.3g} [{t['lower']:.3g}, {t['upper']:.3g}]"
                    for name, t in r["milliseconds"].items()
                }
                rows.append(
                    (
                        f"{r['rows']} x {r['classes']}",
                        r["dtype"],
                        result["machine"]["cpu_capability"],
                        ms["eager"],
                        ms["compiled"],
                        ms["value_and_grad"],
                        ms["differentiable"],
                        _speedup(r["value_and_grad_speedup"]),
                        _speedup(r["differentiable_speedup"]),
                    )
                )
        heading = (
            "B x C",
            "dtype",
            "on",
            "eager",
            "torch.compile",
            "value and grad",
            "with .backward()",
            "value and grad faster",
            "with .backward() faster",
        )
        return _markdown(heading, rows) + f"\nMilliseconds, median [quartiles]; {_processors(results)}.\n"

    return table


NOT_YET = "not yet measured"


def losses_on_a_gpu(pattern: str) -> Callable[[], str]:
    """The loss and its gradients on a GPU, from a run of bench.gpu, if there is one."""

    def table() -> str:
        files = sorted(RESULTS.glob(pattern))
        report = json.loads(files[0].read_bytes()) if files else {}
        measured = {
            (r["rows"], r["classes"], r["dtype"]): r
            for r in report.get("sections", {}).get("loss", {}).get("results", {}).values()
        }
        rows = [
            (f"{b} x {c}", dtype, *_gpu_cells(measured.get((b, c, dtype)), report))
            for dtype in ITEMSIZES
            for b, c in SIZES
        ]
        heading = ("B x C", "dtype", *GPU_COLUMNS)
        caption = "None of this has been measured on a GPU yet."
        if report:
            where, bandwidth = report["environment"], gpu_report.copy_bandwidth(report)
            copied = f"{bandwidth / 1e9:,.0f} GB/s" if bandwidth else NOT_YET
            versions = ", ".join(f"{name} {where.get(name)}" for name in ("gpu", "torch", "triton", "cuda", "commit"))
            caption = f"Milliseconds of device time, median; {versions}. A device copy in the same run: {copied}."
        return _markdown(heading, rows) + f"\n{caption}\n"

    return table


GPU_COLUMNS = (
    "eager",
    "torch.compile",
    "value and grad",
    "with .backward()",
    "value and grad, GB/s",
    "of a copy's",
    "value and grad faster",
    "with .backward() faster",
)


def _gpu_cells(result: dict | None, report: dict) -> list[str]:
    if result is None:
        return [NOT_YET] * len(GPU_COLUMNS)
    derived = gpu_report.derive(result, gpu_report.copy_bandwidth(report), report["environment"].get("gpu", ""))

    def milliseconds(name: str) -> str:
        return f"{result['device_ms'][name]['median']:.3g}" if name in result["device_ms"] else NOT_YET

    def faster(name: str) -> str:
        factors = derived.get(name, {}).get("faster_than", {})
        return " / ".join(f"{factors[t]:.1f}x" if t in factors else "-" for t in ("eager", "compiled"))

    ours = derived.get("value_and_grad", {})
    speed, share = ours.get("gigabytes_per_second"), ours.get("share_of_copy")
    return [
        *map(milliseconds, ("eager", "compiled", "value_and_grad", "differentiable")),
        NOT_YET if speed is None else f"{speed:,.0f}",
        NOT_YET if share is None else f"{100 * share:.0f} %",
        faster("value_and_grad"),
        faster("differentiable"),
    ]


STEP_SIZES = (("resnet20", 128), ("resnet20", 512), ("resnet110", 128), ("resnet110", 512))
STEP_COLUMNS = {
    "published": "published form",
    "eager": "eager",
    "eager_nchw": "eager, NCHW",
    "compiled": "torch.compile",
    "ours_eager": "ours, eager",
    "ours_captured": "ours, captured",
    "ours_one_stream": "captured, one stream",
    "largest_alone": "largest alone",
    "sequential": "each alone in turn",
}


def training_steps(cpu_pattern: str, gpu_pattern: str) -> Callable[[], str]:
    """A training step of the family, from runs of bench.step and of bench.gpu, if there are any."""

    def table() -> str:
        on_cpu = _load_all(cpu_pattern)
        processors = dict.fromkeys(result["machine"]["cpu_capability"] for result in on_cpu)
        files = sorted(RESULTS.glob(gpu_pattern))
        suite = json.loads(files[0].read_bytes()) if files else {}
        on_gpu = list(suite.get("sections", {}).get("step", {}).get("results", {}).values())
        measured = {
            f"CPU, {name}": [r for r in on_cpu if r["machine"]["cpu_capability"] == name] for name in processors
        }
        rows = []
        for where, results in ((measured or {"CPU": []}) | {"GPU": on_gpu}).items():
            for model, batch in STEP_SIZES:
                of_size = [*_of_size(results, model, batch)]
                # The suite looks at one size's training, for all.
                apart = _apart(results if where == "GPU" else of_size)
                rows.append((f"{model} x 5, B = {batch}", where, *_step_cells(of_size, where, apart)))
        captions = [f"CPU: {_processors(on_cpu) or NOT_YET}."]
        if on_gpu:
            where = suite["environment"]
            captions.append(f"GPU, bf16: {where.get('gpu')}, torch {where.get('torch')}, commit {where.get('commit')}.")
        else:
            captions.append("GPU: not yet measured.")
        heading = ("family", "on", *STEP_COLUMNS.values(), "faster than published / best eager / compiled")
        return _markdown(heading, rows) + f"\nMilliseconds a step, median. {' '.join(captions)}\n"

    return table


def _of_size(results: Iterable[dict], model: str, batch: int) -> Iterable[dict]:
    """Those that timed this size of the paper's family."""
    size = {"model": model, "batch_size": batch, "num_students": 5, "image_size": 32}
    return (r for r in results if "variants" in r and "speedups" in r and size.items() <= r["problem"].items())


def _apart(results: list[dict]) -> set[str]:
    """Variants that were seen to train differently: in a run of bench.step, or in the curves of the suite."""
    checks = [r if "allowed" in r else r.get("agreement", {"variants": {}}) for r in results]
    return {name for check in checks for name, v in check["variants"].items() if not v["agrees"]}


def _step_cells(results: list[dict], where: str, apart: set[str]) -> list[str]:
    """A variant may be in several results; factors are of those timed side by side."""

    def cell(name: str) -> str:
        measured = [r["variants"][name] for r in results if r["variants"].get(name)]
        if measured:
            ms = measured[0]["ms"]
            return f"{ms:{',.0f' if ms >= 1000 else '.4g'}}" + " (trains differently)" * (name in apart)
        return "-" if where.startswith("CPU") and name in CAPTURED else NOT_YET

    factors: dict[str, float] = {}
    for result in reversed(results):
        factors |= result["speedups"].get("ours_captured" if where == "GPU" else "ours_eager", {})
    faster = " / ".join(
        f"{factors[name]:.2f}x" if name in factors else "-" for name in ("published", "eager_best", "compiled")
    )
    return [*map(cell, STEP_COLUMNS), faster if factors else NOT_YET]


TABLES = {
    "reproduced_digits": reproduced("reproduce_digits_resnet20.json"),
    "reproduced_fashion_mnist": reproduced("reproduce_fashion_mnist_resnet20.json"),
    "digits": family("digits_resnet20_cpu.json"),
    "cifar100": family("cifar100_resnet20_cpu.json"),
    "loss": losses("ensemble_kd*_cpu.json"),
    "gpu_loss": losses_on_a_gpu("gpu_suite_*.json"),
    "step": training_steps("step_*_cpu.json", "gpu_suite_*.json"),
}


def _load(file: str) -> dict:
    return json.loads((RESULTS / file).read_bytes())


def _load_all(pattern: str) -> list[dict]:
    return [_load(file.name) for file in sorted(RESULTS.glob(pattern))]


def _processors(results: Iterable[dict]) -> str:
    """Each machine and commit, in the order that they come."""
    return "; ".join(dict.fromkeys(_where(result["machine"]) for result in results))


def _speedup(factors: dict[str, float]) -> str:
    return f"{factors['eager']:.1f}x / {factors['compiled']:.1f}x"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _where(machine: dict) -> str:
    return (
        f"{machine['processor']}, {machine['threads']} threads, {machine['cpu_capability']}, torch {machine['torch']}, "
        f"commit {machine['commit']}"
    )


def _markdown(heading: Iterable[str], rows: Iterable[Iterable]) -> str:
    lines = [heading, ["---:"] * len(tuple(heading)), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def main() -> None:
    readme = ROOT / "README.md"
    readme.write_text(render(readme.read_text()))


if __name__ == "__main__":
    main()
