"""Render the results of a reproduction as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from oekd_fast.common.spread import Spread
from oekd_fast.common.text import markdown_text

TITLES = {
    "selected": "Selected epoch: chosen on held-out training images",
    "last_epoch": "Last epoch",
    "best_test": "Best test epoch: chosen on the test images as in the paper, which overestimates accuracy",
}
COLUMNS = {"baseline": "alone %", "family": "in the family %", "gain_points": "gain, points", "gain_percent": "gain, %"}


def render(results: Mapping[str, Any]) -> str:
    """Return the Markdown document of `results`, as returned by `results.gather`."""
    parts = [f"# {markdown_text(results['recipe'])}\n", _head(results)]
    for measure, title in TITLES.items():
        parts.append(f"## {title}\n")
        accuracy = results["accuracy"][measure]
        if accuracy is None:
            parts.append("Not available: not every run was evaluated on the test images after every epoch.\n")
        else:
            parts.append(_accuracies(results, accuracy))
    if results["timing"]:
        parts.append(_timing(results))
    parts += [_ablation(name, sweep, results) for name, sweep in results["ablations"].items()]
    parts.append(_foot(results))
    return "\n".join(parts)


def number(value: Mapping[str, float | None] | float | None, sign: str = "") -> str:
    """Format a number, or a spread as "mean ± deviation" ("mean" for one seed); None is "-"."""
    if value is None:
        return "-"
    return f"{Spread(**value) if isinstance(value, Mapping) else value:{sign}.2f}"


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table with right-aligned columns."""
    lines = [heading, ["---:"] * len(heading), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _head(results: Mapping[str, Any]) -> str:
    done, asked = len(results["seeds"]), len(results["seeds_asked"])
    seeds = f"{done} of {asked} requested seeds" if done < asked else f"{done} seed{'s' if done > 1 else ''}"
    changed = ", ".join(
        f"{name} {markdown_text(c['recipe'])} -> {markdown_text(c['here'])}" for name, c in results["changed"].items()
    )
    model, dataset = markdown_text(results["model"]), markdown_text(results["dataset"])
    return (
        f"{model} x {len(results['students'])} on {dataset}, {seeds}: mean ± sample standard "
        f"deviation over seeds. Gains compare each seed's family with the same seed's students trained alone. "
        f"Accuracies are on {results['test_images']:,} test images.\n\n"
        f"Source: {results['source']}. Changed from the recipe: {changed or 'nothing'}.\n\n"
        f"Protocol: {results['protocol']}.\n"
    )


def _accuracies(results: Mapping[str, Any], accuracy: Mapping[str, Any]) -> str:
    paper = results["paper"]
    columns = [name for name in COLUMNS if name in accuracy]
    heading = ["student", "parameters", "size %", *(COLUMNS[name] for name in columns)]
    if paper:
        heading += [f"paper: {COLUMNS[name]}" for name in columns]
    rows = []
    for j, student in enumerate(results["students"]):
        row = [str(student["index"]), f"{student['parameters']:,}", f"{student['relative_size']:.2f}"]
        row += [number(accuracy[name][j], _sign(name)) for name in columns]
        if paper:
            row += [number(paper[name][j], _sign(name)) for name in columns]
        rows.append(row)
    paper_ensemble = f"; paper: {number(paper['ensemble'])} %" if paper and paper["ensemble"] is not None else ""
    ensemble = "-" if accuracy["ensemble"] is None else f"{number(accuracy['ensemble'])} %"
    return f"{table(heading, rows)}\nEnsemble {ensemble}{paper_ensemble}.\n"


def _sign(name: str) -> str:
    return "+" if name.startswith("gain") else ""


def _timing(results: Mapping[str, Any]) -> str:
    timing, minutes = results["timing"], (results["paper"] or {}).get("minutes")
    ratio = timing["ratio"]
    rows = [
        ["family", f"{timing['family']:.3g}", str(minutes["ensemble"]) if minutes else "-"],
        [
            "its students, one after the other",
            f"{timing['sequential']:.3g}",
            str(minutes["sequential"]) if minutes else "-",
        ],
        [
            "ratio",
            f"{ratio['median']:.2f} [{ratio['lowest']:.2f}, {ratio['highest']:.2f}]",
            f"{minutes['sequential'] / minutes['ensemble']:.2f}" if minutes else "-",
        ],
    ]
    heading = ["training", "here, seconds per epoch", "paper, total minutes (GTX 1080 Ti)"]
    alone = ", ".join(f"{seconds:.3g}" for seconds in timing["alone"])
    return (
        f"## Time\n\n{table(heading, rows)}\nMedian [lowest, highest] of {timing['rounds']} interleaved rounds of "
        f"{timing['steps']} steps, scaled to an epoch of {timing['steps_per_epoch']} steps without evaluation; "
        f"{markdown_text(timing['device'])}. Each student alone: {alone} s.\n"
    )


def _ablation(name: str, sweep: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    measure = "best_test" if all(value["best_test"] for value in sweep["values"].values()) else "selected"
    students = len(results["students"])
    heading = [name.replace("_", ", "), "source", *(f"student {j + 1} %" for j in range(students)), "ensemble %"]
    rows = []
    for value, accuracy in sweep["values"].items():
        ours = [*accuracy[measure]["family"], accuracy[measure]["ensemble"]]
        rows.append([value, "ours", *map(number, ours)])
        if len(sweep["paper"][value]) == students + 1:
            rows.append([value, "paper", *map(number, sweep["paper"][value])])
    # An ablation may have been measured earlier, with other seeds.
    other_seeds = sweep.get("seeds", results["seeds"]) != results["seeds"]
    seeds = f" Seeds {', '.join(map(str, sweep['seeds']))}." if other_seeds else ""
    return (
        f"## {name.replace('_', ', ')} (Table {sweep['table']} of the paper: ResNet110 on CIFAR-100)\n\n"
        f"{table(heading, rows)}\n{TITLES[measure]}. All other options are as above.{seeds}\n"
    )


def _foot(results: Mapping[str, Any]) -> str:
    where = {name: markdown_text(value) for name, value in results["machine"].items()}
    trained_on = "; ".join(map(markdown_text, results["trained_on"]))
    commit = where["commit"] if results["machine"]["commit"] else "unknown"
    return (
        f"Trained on {trained_on}. Written on {where['processor']}, {where['system']}, Python {where['python']}, torch "
        f"{where['torch']}, oekd_fast {results['versions']['oekd_fast']}, commit {commit}.\n"
    )
