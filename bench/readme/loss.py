"""Tables of the ensemble distillation loss with its gradients against PyTorch and torch.compile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..gpu import figures, goals
from .markdown import EMPTY, load, load_all, machine, machines, milliseconds, table

OURS = {"differentiable": "ours, `.backward()`", "value_and_grad": "ours, value and grad"}
THEIRS = {"eager": "eager", "compiled": "torch.compile"}
VARIANTS = THEIRS | OURS
FASTER = [f"{name}, times faster" for name in OURS.values()]


def one_processor(results: Path, file: str) -> str:
    """The float32 sizes of one processor: medians only."""
    result = load(results, file)
    if result is None:
        return ""
    rows = [
        (f"{r['rows']} x {r['classes']}", *(milliseconds(r["milliseconds"][name]["median"]) for name in VARIANTS))
        for r in result["results"]
        if r["dtype"] == "float32"
    ]
    caption = f"Milliseconds, median, float32, 5 students. {machine(result['machine'])}."
    return table(("B x C", *VARIANTS.values()), rows, caption)


def all_processors(results: Path, pattern: str) -> str:
    """Every size and dtype of every processor, with quartiles."""
    found = load_all(results, pattern)
    rows = [
        (
            f"{r['rows']} x {r['classes']}",
            r["dtype"],
            result["machine"]["cpu_capability"],
            *(_with_quartiles(r["milliseconds"][name]) for name in VARIANTS),
            *(_times_faster(r[f"{ours}_speedup"]) for ours in OURS),
        )
        for result in found
        for r in result["results"]
    ]
    caption = (
        f"Milliseconds, median [quartiles], 5 students. Times faster: than eager / than torch.compile. "
        f"{machines(found)}."
    )
    return table(("B x C", "dtype", "CPU", *VARIANTS.values(), *FASTER), rows, caption)


def of_feature_maps(results: Path, file: str) -> str:
    """The intermediate loss of each block on a CPU."""
    result = load(results, file)
    if result is None:
        return ""
    variants = THEIRS | {"rows": "reference", "differentiable": "ours, `.backward()`", "value_and_grad": "ours"}
    rows = [
        (
            r["block"].replace("@", " @ "),
            "channels_last" if r["channels_last"] else "contiguous",
            *(_with_quartiles(r["milliseconds"][name]) for name in variants),
            " / ".join(f"{r['speedup'][name]:.1f}" for name in ("eager", "compiled", "rows")),
        )
        for r in result["results"]
    ]
    caption = (
        "Milliseconds, median [quartiles], B = 128, float32. Blocks: channels of the pseudo teacher and the students, "
        "and the side of the maps. Times faster: ours than eager / than torch.compile / than the reference. "
        f"{machine(result['machine'])}."
    )
    return table(("block", "layout", *variants.values(), "times faster"), rows, caption)


def of_shapes(results: Path, file: str) -> str:
    """Images of labels, sequences and soft labels on one processor: medians only."""
    result = load(results, file)
    if result is None:
        return ""
    rows = [
        (
            f"{r['case']}: {' x '.join(map(str, r['shape']))}",
            r["students"],
            *(milliseconds(r["milliseconds"][name]["median"]) for name in VARIANTS),
            *(_times_faster(r[f"{ours}_speedup"]) for ours in OURS),
        )
        for r in result["results"]
    ]
    caption = (
        f"Milliseconds, median, float32. Times faster: than eager / than torch.compile. {machine(result['machine'])}."
    )
    return table(("logits of a student", "students", *VARIANTS.values(), *FASTER), rows, caption)


def of_classifiers(results: Path, file: str) -> str:
    """The loss of classifiers in chunks of rows, with the memory of each form."""
    result = load(results, file)
    if result is None:
        return ""
    (r,) = result["results"]
    rows = [
        (name, milliseconds(timing["median"]), f"{r['peak_growth_megabytes'][name]:,.0f}")
        for name, timing in r["milliseconds"].items()
    ]
    caption = (
        f"{r['students']} students, {r['rows']:,} rows, {r['classes']:,} classes, hidden [{r['size']}], float32. "
        "Milliseconds, median; MB by which one call raises the peak memory of its process, of which the gradients "
        f"are {r['gradients_megabytes']:,.0f}. {machine(result['machine'])}."
    )
    return table(("form", "ms", "peak, MB"), rows, caption)


def on_a_gpu(results: Path, pattern: str) -> str:
    """The sizes that bench.gpu measured, one report a card."""
    reports = load_all(results, pattern)
    rows = [row for report in reports for row in _gpu_rows(report)]
    heading = ("B x C", "dtype", "GPU", *VARIANTS.values(), "value and grad, GB/s", "of a copy's", *FASTER)
    captions = []
    for report in reports:
        where, bandwidth = report["environment"], figures.copy_bandwidth(report["parts"])
        versions = [f"{name} {where.get(name)}" for name in ("torch", "triton", "cuda", "commit")]
        copy = [f"a device copy in the same run: {bandwidth / 1e9:,.0f} GB/s"] if bandwidth else []
        captions.append(", ".join([str(where.get("gpu")), *versions, *copy]))
    caption = (
        f"Milliseconds of device time, median, 5 students. Times faster: than eager / than torch.compile. "
        f"{'; '.join(captions)}."
    )
    return table(heading, rows, caption)


def _gpu_rows(report: dict) -> Iterator[tuple[str, ...]]:
    card = report["environment"].get("gpu", "")
    for _, r in goals.losses(report["parts"]):
        if not r["device_ms"]:
            continue
        derived = r["derived"]
        ours = derived.get("value_and_grad", {})
        speed, share = ours.get("gigabytes_per_second"), ours.get("share_of_copy")
        yield (
            f"{r['rows']} x {r['classes']}",
            r["dtype"],
            card,
            *(milliseconds(r["device_ms"][n]["median"]) if n in r["device_ms"] else EMPTY for n in VARIANTS),
            EMPTY if speed is None else f"{speed:,.0f}",
            EMPTY if share is None else f"{100 * share:.0f} %",
            *(_times_faster(derived.get(name, {}).get("faster_than", {})) for name in OURS),
        )


def _with_quartiles(timing: dict[str, float]) -> str:
    return f"{timing['median']:.3g} [{timing['lower']:.3g}, {timing['upper']:.3g}]"


def _times_faster(factors: dict[str, float]) -> str:
    return " / ".join(f"{factors[name]:.1f}" if name in factors else EMPTY for name in THEIRS)
