"""Tables of the comparison of recipes by bench.evidence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oekd_fast.common.spread import spread
from oekd_fast.reporting.gains import p_text
from oekd_fast.reporting.significance import Difference

from ..evidence import shorter
from ..evidence.arms import ARMS, Arm
from ..evidence.gains import GainOnTest, best_alone, gain, gain_on_test, students_alone
from .markdown import EMPTY, load, machines, table

STUDENTS = range(5)


def recipes(results: Path, file: str) -> str:
    """Each arm with its options and what it is expected to do, also those without a result in `file`."""
    if load(results, file) is None:
        return ""
    rows = [(f"`{name}`", _options(arm), arm.hypothesis) for name, arm in ARMS.items()]
    return table(("recipe", "options", "expected"), rows, "Options that differ from those that all recipes share.")


def outcomes(results: Path, file: str) -> str:
    """Accuracies by recipe, with the students alone where they were trained."""
    report = load(results, file)
    if report is None:
        return ""
    families: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    alone: dict[tuple[int, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for entry in report["results"]:
        group = entry["epochs"], entry["arm"]
        if entry["student"] is None:
            families[group].append(entry)
        else:
            alone[group][entry["student"]] += entry["accuracy"]
    rows = []
    groups = {*families, *alone}
    for group in sorted(groups, key=lambda group: (group[0], list(ARMS).index(group[1]))):
        (epochs, name), entries, of_student = group, families[group], alone[group]
        if entries:
            students = [[entry["accuracy"][j] for entry in entries] for j in STUDENTS]
            ensemble = str(spread([entry["ensemble"] for entry in entries]))
            rows.append((f"`{name}`", epochs, len(entries), *_cells(students), ensemble))
        if of_student:
            seeds = max(map(len, of_student.values()))
            cells = _cells([of_student[j + 1] for j in STUDENTS])
            rows.append((f"`{name}`, each alone", epochs, seeds, *cells, EMPTY))
    what = report["what"][0].upper() + report["what"][1:]
    caption = f"{what}. Mean ± sample standard deviation over seeds. {machines(report['results'])}."
    return table(("recipe", "epochs", "seeds", *(f"student {j + 1}" for j in STUDENTS), "ensemble"), rows, caption)


def gains(results: Path, file: str) -> str:
    """Gains of each recipe over the students alone, for the students that were trained alone with a common seed."""
    report = load(results, file)
    if report is None:
        return ""
    entries, rows = report["results"], []
    for epochs in sorted({entry["epochs"] for entry in entries}):
        for name in ARMS:
            found = [gain(entries, name, epochs, j + 1) for j in STUDENTS]
            if any(found):
                seeds = max(count for _, count in filter(None, found))
                cells = [EMPTY if of_student is None else _gain(of_student[0]) for of_student in found]
                rows.append((f"`{name}`", epochs, seeds, *cells))
        best = [best_alone(entries, epochs, j + 1) for j in STUDENTS]
        if any(best):
            names = [EMPTY if alone is None else f"`{alone[0]}`" for alone in best]
            rows.append(("the best recipe alone", epochs, EMPTY, *names))
    caption = (
        "Points of accuracy on validation images in the family minus alone, with the same seeds and the best recipe of "
        "each student alone: mean ± standard error over seeds, and the p-value of a paired t test."
    )
    return table(("recipe", "epochs", "seeds", *(f"student {j + 1}" for j in STUDENTS)), rows, caption)


def on_test(results: Path, file: str) -> str:
    """Accuracies on the test images of the recipes that have them, and gains over the students alone."""
    report = load(results, file)
    entries = [entry for entry in (report or {"results": []})["results"] if "test" in entry]
    rows = []
    for epochs in sorted({entry["epochs"] for entry in entries}):
        for name in ARMS:
            keys = name, epochs, None
            families = [e["test"]["accuracy"] for e in entries if (e["arm"], e["epochs"], e["student"]) == keys]
            if families:
                cells = _cells([[accuracy[j] for accuracy in families] for j in STUDENTS])
                rows.append((f"`{name}`", epochs, len(families), *cells))
            found = [gain_on_test(report["results"], name, epochs, j + 1) for j in STUDENTS]
            if any(found):
                cells = [EMPTY if of_student is None else _gain_on_test(of_student) for of_student in found]
                rows.append((f"`{name}`, gain", epochs, max(g.seeds for g in found if g is not None), *cells))
    if not rows:
        return ""
    caption = (
        "Accuracy on test images after the last epoch, percent, mean ± sample standard deviation over seeds. Gains "
        "over the best recipe of each student alone, which validation images choose, in points: mean ± standard error "
        "over seeds (over seeds and images), and the p-value of a paired t test."
    )
    return table(("recipe", "epochs", "seeds", *(f"student {j + 1}" for j in STUDENTS)), rows, caption)


def shorter_schedules(results: Path, file: str) -> str:
    """Recipes that shorten a schedule: operations, accuracies, and the epochs of the plain recipe with the same."""
    report = load(results, file)
    entries, rows = (report or {"results": []})["results"], []
    for epochs in sorted({entry["epochs"] for entry in entries if entry["arm"] in shorter.names()}):
        for name in (shorter.PLAIN, *shorter.names()):
            families = [e["accuracy"] for e in entries if (e["arm"], e["epochs"], e["student"]) == (name, epochs, None)]
            if families:
                operations = f"{100 * shorter.operations(name, epochs):.0f} %"
                equal = shorter.epochs_of_plain(entries, shorter.mean_accuracy(entries, name, epochs))
                cells = _cells([[accuracy[j] for accuracy in families] for j in STUDENTS])
                rows.append((f"`{name}`", epochs, operations, *cells, EMPTY if equal is None else f"{equal:.1f}"))
            recipe = "independent" if name == shorter.PLAIN else name
            alone = [students_alone(entries, epochs, j + 1).get(recipe, {}) for j in STUDENTS]
            if any(alone):
                cells = _cells([list(of_student.values()) for of_student in alone])
                rows.append((f"`{name}`, each alone", epochs, EMPTY, *cells, EMPTY))
    if not rows:
        return ""
    students = (f"student {j + 1}" for j in STUDENTS)
    caption = (
        "Accuracy on validation images after the last epoch, percent. Operations: those of the steps of the family, as "
        f"a share of those of `{shorter.PLAIN}`. The last column has the epochs after which `{shorter.PLAIN}` has the "
        "same mean accuracy of the students, interpolated between its schedules. Alone, the recipe is that of "
        "`independent` with the same change."
    )
    return table(("recipe", "epochs", "operations", *students, f"epochs of `{shorter.PLAIN}`"), rows, caption)


def _gain_on_test(gain: GainOnTest) -> str:
    difference = gain.over_seeds
    p = "" if difference.p is None else f", {p_text(difference.p)}"
    return f"{difference} ({gain.error:.2f}){p}"


def _gain(difference: Difference) -> str:
    return str(difference) if difference.p is None else f"{difference}, {p_text(difference.p)}"


def _cells(values: Sequence[Sequence[float]]) -> list[str]:
    return [str(spread(of_student)) if of_student else EMPTY for of_student in values]


def _options(arm: Arm) -> str:
    fields: Mapping[str, Any] = {**arm.fields, **({"kd_schedule": "sigmoid"} if arm.ramped else {})}
    options = [f"`{name}` {_value(value)}" for name, value in fields.items()]
    return ", ".join([*options, *(["student 1 alone is the teacher"] if arm.taught else [])])


def _value(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
