"""The table at the end of a run: nothing is cut at 80 and 40 columns."""

import io

import pytest
from rich.console import Console

from oekd_fast.config.command_line import recipe_table
from oekd_fast.config.recipes import get_recipe, recipe_names
from oekd_fast.runs.summary import summary_table

LARGEST = dict(
    parameters=25_557_032, relative_size=100.0, flops=11e9, baseline_accuracy=98.76, accuracy=100.0, relative_gain=12.34
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
        "test_images": 50_000,
        "selected_epoch": 349,
        "epochs": 350,
    }


def rendered(table, width: int) -> list[str]:
    text = io.StringIO()  # not a terminal, as a file
    Console(file=text, width=width).print(table)
    return text.getvalue().splitlines()


@pytest.mark.parametrize(
    ("width", "headings"),
    [
        (120, list(CELLS)),
        (80, list(CELLS)),
        (60, ["student", "parameters", "size %", "baseline %", "accuracy %", "gain %"]),
        (40, ["student", "parameters", "accuracy %", "gain %"]),
    ],
)
def test_the_table_has_the_columns_that_fit(width, headings):
    lines = rendered(summary_table(summary(), width), width)
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    assert headings in [[part.strip() for part in line.split("  ") if part.strip()] for line in lines]
    (first,) = (line for line in lines if line.split()[:1] == ["1"])
    assert first.split() == [CELLS[heading] for heading in headings]


def test_caption_and_title_are_whole_at_40_columns():
    text = " ".join(" ".join(rendered(summary_table(summary(), 40), 40)).split())
    assert text.startswith("efficientnet_b0 x 5 on imagenet_1k, test accuracy")
    assert text.endswith("ensemble 99.12 %, 50,000 test images, epoch 349 of 350 selected on validation images")


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
