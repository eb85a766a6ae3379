"""Shares of the channels and the divisor, in a config and on the command line."""

import json
from dataclasses import replace
from fractions import Fraction

import pytest

from oekd_fast.common.width_rule import WidthRule
from oekd_fast.config.command_line import RecipeOptions, parse_recipe_options
from oekd_fast.config.model import ModelConfig
from oekd_fast.config.train_config import TrainConfig


def parse(*arguments: str) -> TrainConfig:
    return parse_recipe_options(RecipeOptions, "train", arguments).config


def test_shares_and_divisor_on_the_command_line():
    config = parse("--widths", "1", ".75", ".5", ".25", "--width-divisor", "8")
    assert config == TrainConfig(widths=(1, 0.75, 0.5, 0.25), width_divisor=8)
    assert config.num_students == 4
    assert config.width_rule == WidthRule((1, Fraction(3, 4), Fraction(1, 2), Fraction(1, 4)), 8)


def test_without_widths_there_are_five_students_with_the_channels_of_the_paper():
    config = TrainConfig()
    assert (config.num_students, config.widths, config.width_divisor) == (5, None, None)
    assert config.width_rule.is_default(5)
    assert TrainConfig(num_students=3).num_students == 3


def test_the_number_of_students_may_be_given_too():
    assert parse("--widths", "1", ".5", "--num-students", "2").num_students == 2
    with pytest.raises(ValueError, match="^num_students: expected 2, one student for each share of widths, got 5$"):
        parse("--widths", "1", ".5", "--num-students", "5")
    with pytest.raises(ValueError, match="^num_students: expected 3, one student for each share of widths, got 5$"):
        replace(TrainConfig(), widths=(1, 0.5, 0.25))


def test_the_json_form_loads_again():
    config = TrainConfig(widths=[1, Fraction(1, 2), 0.25], width_divisor=4)
    assert config.widths == (1.0, 0.5, 0.25)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.as_dict()))).as_dict() == config.as_dict()
    assert TrainConfig.from_dict({"num_students": 2}) == TrainConfig(num_students=2)


@pytest.mark.parametrize("other", [{"widths": (1, 0.8, 0.6, 0.4, 0.3)}, {"width_divisor": 8}])
def test_other_widths_are_another_training(other):
    assert TrainConfig(**other).training_fields() != TrainConfig().training_fields()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widths": ()}, "widths: expected at least one share, got none"),
        ({"widths": (1, 0)}, r"widths: expected shares in \(0, 1\], got 0"),
        ({"widths": (1, 1.5)}, r"widths: expected shares in \(0, 1\], got 1.5"),
        ({"widths": (0.75, 0.5)}, "widths: expected 1 first, because student 1 is the whole network, got 0.75"),
        ({"widths": (1, 0.25, 0.5)}, "widths: expected shares in descending order, got 0.5 after 0.25"),
        ({"width_divisor": 0}, "width_divisor: expected an integer >= 1, got 0"),
        ({"widths": (1,), "objective": "dml"}, "num_students: expected at least 2 with objective='dml'"),
    ],
)
def test_widths_that_make_no_family_are_rejected(fields, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        TrainConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widths": 0.5}, r"widths: expected a sequence of numbers in \(0, 1\], got 0.5"),
        ({"widths": ("1", ".5")}, r"widths: expected numbers in \(0, 1\], got '1'"),
        ({"width_divisor": 8.0}, "width_divisor: expected an integer >= 1, got 8.0"),
    ],
)
def test_widths_of_a_wrong_type_are_named(fields, message):
    with pytest.raises(TypeError, match=f"^{message}"):
        ModelConfig(**fields)
