"""Recipes: protocols, scaled schedules, errors, and recipes on the command line."""

import io
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from oekd_fast.config.command_line import RecipeOptions, parse_recipe_options, recipe_table
from oekd_fast.config.objectives import OBJECTIVES, LossWeights
from oekd_fast.config.recipes import RecipeError, get_recipe, recipe_config, recipe_names
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data.known import KNOWN
from oekd_fast.models import architecture_names
from oekd_fast.paper import paper_tables
from oekd_fast.training.schedule import rate_factors

NAMES_IN_THE_PAPER = {"imagenet": "imagenet_1k"}


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_has_the_data_set_and_model_of_its_name(name):
    group, dataset, model = name.split("/")
    config, recipe = recipe_config(name), get_recipe(name)
    assert (config.dataset, config.model) == (dataset, model) and model in architecture_names()
    assert dataset in (*KNOWN, "digits") and recipe.name == name and recipe.source
    assert all(getattr(config, field) == value for field, value in recipe.fields.items())
    if group == "paper":
        assert config.epochs == KNOWN[dataset].epochs


def test_every_row_of_the_tables_of_the_paper_has_a_recipe():
    rows = {
        f"paper/{NAMES_IN_THE_PAPER.get(dataset, dataset)}/{model}"
        for dataset, models in paper_tables()["accuracy"].items()
        for model in models
    }
    assert len(rows) == 33 and rows == {name for name in recipe_names() if name.startswith("paper/")}


def test_the_protocol_of_the_paper():
    config = recipe_config("paper/cifar100/resnet110")
    assert (config.optimizer, config.momentum, config.epochs, config.batch_size) == ("sgd", 0.9, 450, 128)
    assert config.loss_weights == LossWeights(temperature=2.0, ce_weight=0.7, kd_weight=0.15, feature_weight=0.15)
    rates = 0.1 * rate_factors(config, 2)
    assert [rates[2 * epoch].item() for epoch in (0, 224, 225, 337)] == pytest.approx([0.1, 0.1, 0.01, 0.01])
    assert rates[-1].item() == pytest.approx(0.001)
    assert recipe_config("paper/imagenet_1k/resnet50").batch_size == 256
    assert config.num_students == 5 and config.width_rule.is_default(5)


def test_the_efficientnets_of_the_paper():
    config = recipe_config("paper/svhn/efficientnet_b0")
    assert (config.optimizer, config.peak_rate, config.schedule) == ("rmsprop", 0.256, "exponential")
    rates = rate_factors(config, 2)
    assert rates[[0, 5, 6, 12]].tolist() == pytest.approx([1, 1, 0.97, 0.97**2])


@pytest.mark.parametrize(("model", "divisor"), [("resnet32", 8), ("resnet110", 8), ("densenet_bc_12", None)])
def test_modern_resnets_have_channels_in_multiples(model, divisor):
    assert recipe_config(f"modern/cifar100/{model}").width_divisor == divisor
    assert recipe_config(f"paper/cifar100/{model}").width_divisor is None


def test_the_configurations_of_the_released_code():
    config = recipe_config("published/cifar100/resnet56")
    assert (config.optimizer, config.peak_rate, config.weight_decay, config.epochs) == ("adam", 1e-3, 1e-5, 350)
    rates = rate_factors(config, 3)
    assert rates[[0, 599, 600, 899, 900]].tolist() == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert recipe_config("published/cifar10/resnet110").temperature == 3.0


@pytest.mark.parametrize("name", ["paper/cifar10/resnet20", "paper/cifar10/efficientnet_b0", "modern/cifar10/resnet20"])
def test_other_epochs_scale_the_schedule(name):
    """The learning rate is the same at the same share of the training, except for the warm-up, which is not scaled."""
    long, short = recipe_config(name), recipe_config(name, epochs=get_recipe(name).fields["epochs"] // 10)
    assert short.epochs * 10 == long.epochs
    rates = [rate_factors(config, steps) for config, steps in ((long, 5), (short, 50))]
    torch.testing.assert_close(rates[0][100:], rates[1][100:])


def test_explicit_values_are_not_scaled():
    config = recipe_config("paper/cifar100/efficientnet_b0", epochs=45, decay_epochs=7.0)
    assert (config.decay_epochs, config.ramp_epochs) == (7.0, 8.0)


def test_other_shares_set_the_number_of_students_of_a_recipe():
    name = "paper/cifar100/resnet110"
    assert recipe_config(name, widths=(1, 0.5, 0.25)).num_students == 3
    assert parse("--recipe", name, "--widths", "1", ".5", ".25") == recipe_config(name, widths=(1, 0.5, 0.25))


def test_another_objective_uses_its_own_weights():
    config = recipe_config("paper/cifar100/resnet32", objective="dml", kd_weight=0.5)
    assert config.loss_weights == replace(OBJECTIVES["dml"].weights, kd_weight=0.5)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("paper/cifar100/resnet100", {}, "recipe: 'paper/cifar100/resnet100' is unknown; did you mean paper/cifar"),
        ("xyz", {}, "recipe: 'xyz' is unknown; no name is similar; --list-recipes shows all"),
        ("paper/cifar100/resnet110", {"epoch": 3}, "epoch: no such field of TrainConfig; did you mean epochs"),
        ("paper/cifar100/resnet110", {"objective": "dlm"}, "objective: did you mean dml"),
        (
            "paper/cifar100/resnet110",
            {"dataset": "cifar10"},
            "dataset: expected cifar100, which recipe paper/cifar100/resnet110 is for, got 'cifar10'",
        ),
    ],
)
def test_errors_name_the_field_and_the_nearest_name(name, overrides, message):
    with pytest.raises(ValueError, match=message) as raised:
        recipe_config(name, **overrides)
    assert isinstance(raised.value, RecipeError) or "objective" in overrides


def parse(*arguments: str) -> TrainConfig:
    return parse_recipe_options(RecipeOptions, "train", arguments).config


@pytest.mark.slow
def test_a_recipe_sets_the_defaults_of_the_command_line():
    name = "paper/cifar100/efficientnet_b0"
    assert parse("--recipe", name) == recipe_config(name)
    given = parse("--recipe", name, "--epochs", "90", "--weight-decay", "0", "--baseline")
    assert given == recipe_config(name, epochs=90, weight_decay=0.0, baseline=True)
    assert given.decay_epochs == pytest.approx(0.6)
    assert parse(f"--recipe={name}", "--objective", "one") == recipe_config(name, objective="one")
    assert parse("--epochs", "3") == TrainConfig(epochs=3)


def test_another_data_set_is_an_error_on_the_command_line():
    with pytest.raises(RecipeError, match="expected cifar100, .* got 'digits'"):
        parse("--recipe", "paper/cifar100/resnet110", "--dataset", "digits")
    assert parse("--recipe", "evidence/fashion_mnist/resnet20", "--dataset", "fashion-mnist").train_images == 12000


def test_the_data_set_of_a_recipe_may_have_its_name_on_the_hub():
    name, dataset = "paper/cifar100/resnet110", "uoft-cs/cifar100"
    assert recipe_config(name, dataset=dataset) == recipe_config(name)
    assert parse("--recipe", name, "--dataset", dataset, "--epochs", "45").learning_rate == 0.1
    with pytest.raises(RecipeError, match="expected cifar100, .* got 'uoft-cs/cifar10'"):
        parse("--recipe", name, "--dataset", "uoft-cs/cifar10")


@pytest.mark.parametrize("arguments", [("--objective", "okd"), ("--objective=okd", "--epochs", "3")])
def test_the_error_for_an_unknown_objective_suggests_the_nearest(arguments, capsys):
    with pytest.raises(ValueError, match=r"^objective: did you mean oekd or kd\? expected one of oekd, .* got 'okd'$"):
        parse(*arguments)
    assert capsys.readouterr() == ("", "")
    assert parse("--objective", "dml").objective == "dml"


def test_the_list_names_every_recipe():
    lines = io.StringIO()
    Console(file=lines, width=200).print(recipe_table())
    assert all(name in lines.getvalue() for name in recipe_names())
    assert "450  paper, Table 3; own weight decay" in lines.getvalue()


def test_list_recipes_prints_the_list_and_trains_nothing(tmp_path):
    command = [sys.executable, "-m", "oekd_fast.train", "--list-recipes"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"})
    assert done.returncode == 0 and "modern/cifar100/resnet110" in done.stdout, done.stderr
    assert not list(tmp_path.iterdir())
