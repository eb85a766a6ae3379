"""The results at the end of a run: narrow consoles cut nothing, and consoles of any encoding can show them."""

import io

import pytest
from rich.console import Console

from oekd_fast.config.command_line import recipe_table
from oekd_fast.config.recipes import get_recipe, recipe_names
from oekd_fast.runs.summary import print_summary, summary_table

LARGEST = dict(
    parameters=25_557_032,
    relative_size=100.0,
    flops=11e9,
    baseline_accuracy=98.76,
    accuracy=100.0,
    relative_gain=12.34,
    accuracy_with_flips=None,
)
CELLS = {
    "student": "1",
    "parameters": "25,557,032",
    "size %": "100.00",
    "MFLOPs": "11,000.0",
    "baseline %": "98.76",
    "accuracy %": "100.00",
    "gain %": "+12.34",
}


def summary(**changes) -> dict:
    return {
        "model": "efficientnet_b0",
        "dataset": "imagenet_1k",
        "students": [LARGEST | {"index": j} | changes for j in range(1, 6)],
        "ensemble_accuracy": 99.123,
        "ensemble_accuracy_with_flips": None,
        "test_images": 50_000,
        "selected_epoch": 349,
        "epochs": 350,
        "trained_epochs": 350,
    }


def rendered(table, width: int) -> list[str]:
    text = io.StringIO()  # not a terminal, as a file
    Console(file=text, width=width).print(table)
    return text.getvalue().splitlines()


def printed(width: int, encoding: str = "utf-8", **changes) -> list[str]:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding), width=width)
    print_summary(console, summary() | changes)
    console.file.flush()
    return raw.getvalue().decode(encoding).splitlines()


@pytest.mark.parametrize(
    ("width", "headings"),
    [
        (120, list(CELLS)),
        (80, list(CELLS)),
        (60, ["student", "parameters", "size %", "baseline %", "accuracy %", "gain %"]),
        (40, ["student", "parameters", "accuracy %", "gain %"]),
        (30, ["student", "accuracy %"]),
        (19, ["student", "accuracy %"]),
    ],
)
def test_the_table_has_the_columns_that_fit(width, headings):
    lines = rendered(summary_table(summary(), width), width)
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    assert headings in [[part.strip() for part in line.split("  ") if part.strip()] for line in lines]
    (first,) = (line for line in lines if line.split()[:1] == ["1"])
    assert first.split() == [CELLS[heading] for heading in headings]


def test_accuracies_with_flips_have_a_column_and_a_number_of_their_own():
    changed = summary(accuracy_with_flips=97.531) | {"ensemble_accuracy_with_flips": 98.765}
    for width, heading in ((120, True), (40, True), (19, False)):
        text = "".join(rendered(summary_table(changed, width), width))
        assert ("with flips %" in text) == ("97.53" in text) == heading, width
    text = io.StringIO()
    print_summary(Console(file=text, width=120), changed)
    assert "ensemble 99.12 %, 98.77 % with flips, 50,000 test images, epoch 349 of 350" in text.getvalue()
    assert "flips" not in "".join(printed(120))


@pytest.mark.parametrize("width", [10, 18])
def test_a_console_too_narrow_for_the_table_has_a_line_for_each_student(width):
    assert summary_table(summary(), width) is None
    assert printed(width)[1:6] == [f"student {j}: 100.00 %" for j in range(1, 6)]


@pytest.mark.parametrize("width", [10, 40, 80])
def test_title_and_ensemble_are_lines_that_only_the_terminal_wraps(width):
    first, *_, last = printed(width)
    assert first == "efficientnet_b0 x 5 on imagenet_1k, test accuracy"
    assert last == "ensemble 99.12 %, 50,000 test images, epoch 349 of 350 selected on validation images"


def test_an_output_in_ascii_has_the_same_numbers():
    lines = printed(80, "ascii", dataset="caf\xe9[red] \u732b")
    assert lines[0] == "efficientnet_b0 x 5 on caf?[red] ?, test accuracy"
    assert "1 25,557,032 100.00 11,000.0 98.76 100.00 +12.34".split() in [line.split() for line in lines]


def test_a_run_without_baselines_has_dashes():
    (first,) = (
        line
        for line in rendered(summary_table(summary(baseline_accuracy=None, relative_gain=None)), 80)
        if line.split()[:1] == ["1"]
    )
    assert first.split() == ["1", "25,557,032", "100.00", "11,000.0", "-", "100.00", "-"]


def test_the_list_of_recipes_is_whole_at_80_columns():
    lines = rendered(recipe_table(), 80)
    assert max(map(len, lines)) <= 80 and "…" not in "".join(lines)
    text = " ".join(" ".join(lines).split())
    for name in recipe_names():
        assert name in text
        assert all(word in text for word in get_recipe(name).source.split())
