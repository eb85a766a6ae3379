"""The headline: key figures, the sentence on gains, and the table of budgets; the students' table; settings."""

import re
import shutil
from pathlib import Path

import pytest

from oekd_fast.choice.pick import pick_student
from oekd_fast.common.checked_json import load_checked
from oekd_fast.reporting.finished_runs import group_runs, read_run
from oekd_fast.reporting.gains import gains_of
from oekd_fast.reporting.headline import headline
from oekd_fast.reporting.overview import overview
from oekd_fast.reporting.settings_chapter import settings_chapter
from oekd_fast.reporting.students_chapter import students_chapter

from ..support.latencies import EAGER_1, ONNX_1, entry, with_latencies
from ..support.older_runs import RUNS
from ..support.reports import change, change_lines


@pytest.fixture
def folder(tmp_path) -> Path:
    """A run of two students, of which the smaller one has the higher validation accuracy, with latency."""
    run = shutil.copytree(RUNS / "finished", tmp_path / "run")
    summary = load_checked((run / "summary.json").read_text())
    latencies = [[entry(EAGER_1, 1.5), entry(ONNX_1, 0.75)], [entry(EAGER_1, 1.25), entry(ONNX_1, 0.25)]]
    change(run / "summary.json", **with_latencies(summary, latencies, [entry(EAGER_1, 3.25)]))

    def accuracies(line):
        if line["phase"] == "ensemble":
            line["validation"] |= {"accuracy": [80.0, 85.0], "ensemble_accuracy": 90.0}

    change_lines(run / "metrics.jsonl", accuracies)
    return run


def text(*folders: Path) -> str:
    runs = [read_run(path) for path in folders]
    return "\n".join(headline(runs, gains_of(runs, None), None, lambda name, draw, description: name))


def cells(html: str) -> dict[str, list[str]]:
    """Return the cells of each row of the first table by the name of the network."""
    rows = re.findall(r"<tr><td>(.*?)</tr>", html)
    split = [[re.sub("<.*?>", "", cell) for cell in row.split("<td>")] for row in rows]
    return {name: rest for name, *rest in split}


def test_the_table_says_for_which_budget_each_network_is_the_one_to_use(folder):
    html = text(folder)
    assert re.findall("<th>(.*?)</th>", html) == [
        "network", "parameters", "MFLOPs", "ms", "least accuracy %", "validation %", "test %"]  # fmt: skip
    assert "Milliseconds are the median of a call (onnx, 2 threads, batch 1)." in html
    ensemble = read_run(folder).summary["ensemble"]
    assert cells(html) == {
        "student 1": ["never", "never", "never", "never", "80.00", "14.21"],
        "student 2": [
            f"494 to {ensemble['parameters']:,}", "0.0111 to 10.0", "from 0.250",
            "up to 85.00", "85.00", "12.53",
        ],
        "ensemble": [
            f"from {ensemble['parameters']:,}", "from 10.0", "never", "up to 90.00",
            "90.00", "14.76",
        ],
    }  # fmt: skip
    assert "With 359 test images, an accuracy has a standard error of up to 1.87 points" in html  # that of 14.76 %
    assert pick_student(folder, max_parameters=1366).chosen.index == 2
    assert pick_student(folder, max_parameters=ensemble["parameters"]).chosen.index is None


def test_the_sentence_and_the_key_figures(folder):
    html = text(folder)
    assert "<dd>14.76 %</dd><dd>all 2 students together, test images</dd>" in html
    assert "<dd>494 parameters, 36.2 % of student 1</dd>" in html
    # 51 and 36 of 359 images are no significant difference; 45 and 83 are.
    sentence = "In this run, student 2 is significantly less accurate in the family than alone (-10.59 ± 2.83 points)"
    assert f"{sentence}; the gain of student 1 is not significant (+4.18 ± 2.43 points)." in html
    assert "<dd>-3.20 points</dd><dd>over training alone, on average; significantly 1 worse</dd>" in html
    assert "Fisher&#x27;s exact test" in html and "Significant means p &lt; 0.05." in html
    change_baselines(folder, 14.0, 12.0)
    assert "on average; none is significant</dd>" in text(folder)


def change_baselines(folder: Path, *values: float | None) -> None:
    students = load_checked((folder / "summary.json").read_text())["students"]
    change(
        folder / "summary.json",
        students=[
            student | {"baseline_accuracy": value, "relative_gain": None}
            for student, value in zip(students, values, strict=True)
        ],
    )


def test_without_baselines_the_gain_is_unknown(folder):
    change_baselines(folder, None, None)
    html = text(folder)
    assert "The gain of the family is unknown, as not every run has students trained alone (--baseline)." in html
    assert "Gain of the family" not in html and "exact test" not in html
    runs = [read_run(folder)]
    table = "\n".join(students_chapter(runs, None, None))
    assert "Students trained alone are not shown" in table and "alone %" not in table and "gain" not in table


def test_an_old_run_has_neither_latency_nor_the_size_of_the_ensemble():
    html = text(RUNS / "finished")
    assert list(cells(html)) == ["student 1", "student 2"] and "<th>ms</th>" not in html


def test_several_seeds_are_averaged(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    change(other / "config.json", seed=7)

    def accuracies(line):
        if line["phase"] == "ensemble":
            line["validation"]["accuracy"] = [91.0, 60.0]

    change_lines(other / "metrics.jsonl", accuracies)
    html = text(folder, other)
    assert [row[-2] for row in cells(html).values()] == ["85.50", "72.50", "90.00"]
    assert "mean of 2 seeds" in html and "the mean over seeds of the epoch that was selected" in html
    # Both runs have the same test accuracies, so that there is no spread to test with.
    assert "The gains of training in the family, " in html and "are not tested." in html


def test_the_table_of_students_has_gains_in_points_and_percent(folder):
    runs = [read_run(folder)]
    first = cells("\n".join(students_chapter(runs, gains_of(runs, None), None)))["student 1"]
    assert first == [
        "1,366",
        "100.00",
        "0.0210",
        "10.03",
        "14.21",
        "+4.18 ± 2.43",
        "not significant, p = 0.11",
        "41.67",
    ]


def test_settings_that_differ_from_their_defaults_are_first(folder):
    html = "".join(settings_chapter([read_run(folder)]))
    first, rest = html.split("<details>")
    assert "<td>num_students</td><td>2</td>" in first and "<td>version of torch</td>" in first
    assert "<td>temperature</td>" not in first and "<td>temperature</td><td>2.0</td>" in rest
    assert "<details><summary>Seed 0: " in "".join(settings_chapter([read_run(folder)] * 2))


def test_the_overview_links_the_families(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    change(other / "config.json", temperature=3.0)
    html = overview(group_runs([read_run(folder), read_run(other)]))
    assert '<a href="#1-group">' in html and '<a href="#2-group">' in html
    assert "<td>temperature 3.0 (not 2.0)</td>" in html and html.count("<td>14.76</td>") == 2


def test_a_selected_epoch_that_was_not_trained_is_refused(folder):
    change(folder / "config.json", patience=1)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:2] + lines[3:]))
    with pytest.raises(ValueError, match="summary.json: selected_epoch: expected an epoch of 1 to 2, got 3"):
        read_run(folder)
