"""Recipes: named training protocols, as values of the fields of `TrainConfig`.

Three differences from the sources cannot be expressed as fields, so they hold for all recipes. The paper trains on all
training images and selects epochs on the test images; here a tenth of the training images is held out to select epochs.
The released code does not normalise its inputs, and its momentum is not Nesterov's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache
from types import MappingProxyType
from typing import Any

from oekd_fast.config.objectives import OBJECTIVE_DEFAULTS
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.paper import paper_tables

# Fields in epochs that are scaled with the length of the training.
_SPANS = ("decay_epochs", "ramp_epochs")


class RecipeError(ValueError):
    """A recipe or a field is unknown, or the recipe is for another data set."""


@dataclass(frozen=True)
class Recipe:
    """A training protocol.

    Args:
        name: group/dataset/model.
        source: where the protocol is from, and what differs from there.
        fields: values of fields of `TrainConfig`; other fields have the config's defaults, 5 students among them.
    """

    name: str
    source: str
    fields: Mapping[str, Any]

    def config(self, **overrides: Any) -> TrainConfig:
        """Return the recipe's config with `overrides`, adapted to them as `values` describes.

        Raises:
            RecipeError: a field is unknown, or ``dataset`` is not the recipe's.
            ValueError, TypeError: a value is invalid, see `TrainConfig`.
        """
        known = [field.name for field in fields(TrainConfig)]
        for name in overrides:
            if name not in known:
                raise RecipeError(f"{name}: no such field of TrainConfig; {_nearest(name, known)}")
        relevant = {name: overrides[name] for name in ("dataset", "epochs", "objective") if name in overrides}
        return TrainConfig(**{**self.values(**relevant), **_without(overrides, "dataset")})

    def values(
        self, *, dataset: str | None = None, epochs: int | None = None, objective: str | None = None
    ) -> dict[str, Any]:
        """Return the recipe's fields, adapted to another training.

        Args:
            dataset: must be the recipe's data set, by its name here or on the hub.
            epochs: number of epochs; everything in the recipe's schedule that is measured in epochs is scaled to it,
                except for the warm-up, whose length suits the first steps.
            objective: if it is not the recipe's, temperature and weights of the loss are those of the objective.

        Raises:
            RecipeError: ``dataset`` is not the recipe's.
        """
        own = dict(self.fields)
        if dataset not in (None, own["dataset"]) and _canonical(dataset) != own["dataset"]:
            raise RecipeError(
                f"dataset: expected {own['dataset']}, which recipe {self.name} is for, got {dataset!r}; "
                "data_dir says where its files are"
            )
        if objective is not None and objective != own.get("objective", TrainConfig.objective):
            own = {**_without(own, *OBJECTIVE_DEFAULTS), "objective": objective}
        if epochs is not None:
            spans = {name: own.get(name, getattr(TrainConfig, name)) * epochs / own["epochs"] for name in _SPANS}
            own |= {**spans, "epochs": epochs}
        return own


def recipe_names() -> tuple[str, ...]:
    """Return the names of all recipes, grouped by source."""
    return tuple(_recipes())


def get_recipe(name: str) -> Recipe:
    """Return the recipe called `name`.

    Raises:
        RecipeError: the name is unknown; the message suggests the nearest names.
    """
    if name not in _recipes():
        raise RecipeError(f"recipe: {name!r} is unknown; {_nearest(name, recipe_names())}; --list-recipes shows all")
    return _recipes()[name]


def recipe_config(name: str, **overrides: Any) -> TrainConfig:
    """Return the config of the recipe called `name` with `overrides`; see `Recipe.config`."""
    return get_recipe(name).config(**overrides)


def _canonical(dataset: str) -> str:
    """Return the known name of a data set that is given by its name on the hub, and any other name unchanged."""
    from oekd_fast.data.known import known_name  # imports torch, which most uses of recipes do not need

    return known_name(dataset) or dataset


def _without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _nearest(name: str, names: list[str] | tuple[str, ...]) -> str:
    near = get_close_matches(name, names, n=3, cutoff=0.4)
    return f"did you mean {' or '.join(near)}?" if near else "no name is similar"


@cache
def _recipes() -> Mapping[str, Recipe]:
    found = (*_paper(), *_published(), *_modern(), *_evidence())
    table = {recipe.name: recipe for recipe in found}
    assert len(table) == len(found)
    return MappingProxyType(table)


def _recipe(group: str, source: str, dataset: str, model: str, **values: Any) -> Recipe:
    values = {"dataset": dataset, "model": model, **values}
    return Recipe(f"{group}/{dataset}/{model}", source, MappingProxyType(values))


# -- the paper: Walawalkar, Shen, Savvides, ECCV 2020, section 4

_STEPS = dict(optimizer="sgd", learning_rate=0.1, momentum=0.9, schedule="multistep", milestones=(0.5, 0.75), decay=0.1)
_EFFICIENTNET = dict(
    optimizer="rmsprop", learning_rate=0.256, momentum=0.9, schedule="exponential", decay=0.97, decay_epochs=3.0
)
_LOSS = dict(temperature=2.0, ce_weight=0.7, feature_weight=0.15, kd_weight=0.15)


@dataclass(frozen=True)
class _PaperTable:
    """A table of the paper; `own` names the settings that the paper does not state."""

    number: int
    dataset: str
    epochs: int
    batch_size: int = 128
    own: str = "weight decay"


_PAPER = {
    "cifar10": _PaperTable(2, "cifar10", 350),
    "cifar100": _PaperTable(3, "cifar100", 450),
    "svhn": _PaperTable(5, "svhn", 50),
    "imagenet": _PaperTable(6, "imagenet_1k", 100, batch_size=256, own="weight decay and batch size"),
}


def _paper() -> Iterator[Recipe]:
    for name, rows in paper_tables()["accuracy"].items():
        table = _PAPER[name]
        for model in rows:
            yield _recipe(
                "paper",
                f"paper, Table {table.number}; own {table.own}",
                table.dataset,
                model,
                epochs=table.epochs,
                batch_size=table.batch_size,
                weight_decay=1e-4,
                warmup_epochs=0.0,
                **_LOSS,
                **(_EFFICIENTNET if model.startswith("efficientnet") else _STEPS),
            )


# -- configurations of the code that the authors released

_RELEASED = dict(batch_size=128, schedule="multistep", warmup_epochs=0.0, adapter_rate=0.5)


def _published() -> Iterator[Recipe]:
    for model in ("resnet32", "resnet44", "resnet56", "resnet110"):
        yield _recipe(
            "published", "released code; inputs normalised", "cifar100", model, **_RELEASED, optimizer="adam",
            learning_rate=1e-3, weight_decay=1e-5, epochs=350, milestones=_shares(350, 200, 300), decay=0.1,
            temperature=2.0, ce_weight=0.7, feature_weight=0.15, kd_weight=0.15,
        )  # fmt: skip
    # Model, learning rate, epochs, milestones, weights of cross-entropy, features and distillation.
    for model, rate, epochs, milestones, weights in (
        ("resnet20", 0.01, 400, (100, 180, 250, 350), (0.4, 0.2, 0.4)),
        ("resnet32", 0.1, 400, (50, 130, 220, 270), (0.4, 0.3, 0.3)),
        ("resnet110", 0.001, 250, (100, 150), (1.0, 1.0, 1.0)),
    ):
        yield _recipe(
            "published", "released code; inputs normalised, Nesterov momentum", "cifar10", model, **_RELEASED,
            optimizer="sgd", learning_rate=rate, momentum=0.9, weight_decay=1e-4, epochs=epochs,
            milestones=_shares(epochs, *milestones), decay=0.1, temperature=3.0,
            **dict(zip(("ce_weight", "feature_weight", "kd_weight"), weights, strict=True)),
        )  # fmt: skip
    yield _recipe(
        "published", "released code; loss weights of the paper", "imagenet_1k",
        "efficientnet_b0", **_RELEASED, optimizer="adam", learning_rate=1e-3, weight_decay=1e-4, epochs=100,
        milestones=_shares(100, 50, 70, 90), decay=0.5, temperature=3.0, ce_weight=0.7, feature_weight=0.15,
        kd_weight=0.15,
    )  # fmt: skip


def _shares(epochs: int, *milestones: int) -> tuple[float, ...]:
    return tuple(milestone / epochs for milestone in milestones)


# -- the recipe that gained most in our comparison (docs/evidence.md), with the epochs of the published ones

_MODERN_EPOCHS = 300
_MODERN = dict(
    optimizer="sgd", learning_rate=0.1, momentum=0.9, schedule="cosine", warmup_epochs=1.0, weight_decay=5e-4,
    batch_size=128, epochs=_MODERN_EPOCHS, objective="one", kd_schedule="sigmoid", ramp_epochs=0.2 * _MODERN_EPOCHS,
)  # fmt: skip


def _modern() -> Iterator[Recipe]:
    for dataset in ("cifar10", "cifar100"):
        for model in ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "densenet_bc_12"):
            # Measured: docs/benchmarks.md, "Students in ONNX Runtime". A growth rate of 12 is never rounded.
            rounded, widths = (", multiples of 8", {"width_divisor": 8}) if model.startswith("resnet") else ("", {})
            yield _recipe("modern", f"own; ONE, cosine{rounded}", dataset, model, **_MODERN, **widths)


# -- protocols that are small enough to run on any machine


def _evidence() -> Iterator[Recipe]:
    yield _recipe(
        "evidence", "own; run by make train", "digits", "resnet20", epochs=26, schedule="cosine", learning_rate=0.2
    )
    yield _recipe(
        "evidence", "own; 12,000 training images", "fashion_mnist", "resnet20", epochs=5,
        schedule="cosine", learning_rate=0.1, train_images=12000,
    )  # fmt: skip
