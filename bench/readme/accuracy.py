"""Tables of trained families: each student in its family and alone."""

from __future__ import annotations

from pathlib import Path

from oekd_fast.common.spread import Spread

from .markdown import EMPTY, load, machine, percent, table

EPOCHS = {"selected": "chosen epoch", "last_epoch": "last epoch"}
COLUMNS = {"baseline": ".2f", "family": ".2f", "gain_points": "+.2f"}  # of "accuracy", with the format of a cell


def single_run(results: Path, file: str) -> str:
    """One training run, recorded by bench.readme.training."""
    result = load(results, file)
    if result is None:
        return ""
    summary = result["summary"]
    rows = [
        (
            s["index"],
            f"{s['parameters']:,}",
            f"{s['relative_size']:.1f}",
            percent(s["baseline_accuracy"]),
            percent(s["accuracy"]),
            EMPTY if s["relative_gain"] is None else f"{s['relative_gain']:+.2f}",
        )
        for s in summary["students"]
    ]
    seconds = sum(phase["seconds"] for phase in summary["phases"].values())
    caption = (
        f"Ensemble {summary['ensemble_accuracy']:.2f} %. {summary['epochs']} epoch"
        f"{'s' if summary['epochs'] > 1 else ''}, seed {result['config'].get('seed', 0)}. Test accuracy on "
        f"{summary['test_images']:,} images, at the epoch chosen on held-out images. {seconds:.0f} s of training, "
        f"the family at {summary['images_per_second']:.0f} images/s. {machine(result['machine'])}."
    )
    heading = ("student", "parameters", "size %", "alone %", "in the family %", "gain %")
    return table(heading, rows, caption)


def over_seeds(results: Path, file: str) -> str:
    """Families against their baselines over several seeds, from a run of oekd_fast.reproduce."""
    result = load(results, file)
    if result is None:
        return ""
    heading = ["student", "parameters"]
    for name in EPOCHS.values():
        heading += [f"alone %, {name}", f"in the family %, {name}", "gain, points"]
    accuracy = result["accuracy"]
    rows = [
        (
            student["index"],
            f"{student['parameters']:,}",
            *(_spread(accuracy[epoch][column][place], form) for epoch in EPOCHS for column, form in COLUMNS.items()),
        )
        for place, student in enumerate(result["students"])
    ]
    ensembles = ", ".join(f"{_spread(accuracy[epoch]['ensemble'], '.2f')} % ({name})" for epoch, name in EPOCHS.items())
    done, planned = len(result["seeds"]), len(result["seeds_asked"])
    seeds = f"{done} of {planned} seeds so far" if done < planned else f"{done} seeds"
    caption = (
        f"{seeds}, mean ± sample standard deviation. The gain of a seed is its family minus the same seed's "
        f"students alone. Ensemble {ensembles}. {result['protocol']}. {result['test_images']:,} test images. "
        f"{machine(result['machine'])}."
    )
    return table(heading, rows, caption)


def _spread(value: dict[str, float | None], form: str) -> str:
    return f"{Spread(**value):{form}}"
