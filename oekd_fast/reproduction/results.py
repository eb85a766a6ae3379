"""Collect the results of a reproduction, and write results.json, results.md and results.png."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oekd_fast import __version__
from oekd_fast.common.files import write_atomically
from oekd_fast.common.machine import machine
from oekd_fast.config.recipes import Recipe
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data.known import may_hold_the_same, same_data_name
from oekd_fast.figures.plotting import write_png
from oekd_fast.figures.reproduction import draw
from oekd_fast.paper.expected import paper_results
from oekd_fast.reproduction.markdown import render
from oekd_fast.reproduction.statistics import MEASURES, accuracies


def gather(
    recipe: Recipe, config: TrainConfig, summaries: Mapping[int, Mapping[str, Any]], seeds: Sequence[int]
) -> dict[str, Any]:
    """Return the contents of results.json.

    Args:
        recipe: recipe that is reproduced.
        config: configuration of the runs, which may differ from the recipe.
        summaries: contents of summary.json for each finished seed.
        seeds: all seeds that were requested.
    """
    runs = list(summaries.values())
    plain = config.training_fields()
    # Fields that the recipe scales with the number of epochs are not listed as changes.
    own = recipe.config(epochs=config.epochs).training_fields() | {"epochs": recipe.fields["epochs"]}
    return {
        "recipe": recipe.name,
        "source": recipe.source,
        "dataset": config.dataset,
        "model": config.model,
        "epochs": config.epochs,
        "protocol": protocol(config),
        "changed": {
            name: {"recipe": own[name], "here": value}
            for name, value in plain.items()
            if value != own[name] and name not in ("seed", "dataset")  # another name of the data set is no change
        },
        "seeds": list(summaries),
        "seeds_asked": list(seeds),
        "students": [
            {name: student[name] for name in ("index", "parameters", "relative_size")}
            for student in runs[0]["students"]
        ],
        "test_images": runs[0]["test_images"],
        "accuracy": {measure: accuracies(runs, measure) for measure in MEASURES},
        "paper": paper_results(config.dataset, config.model, config.num_students, config.objective, config.widths),
        "timing": None,
        "ablations": {},
        "trained_on": sorted({run["device"] for run in runs}),
        "machine": machine(),
        "versions": {"oekd_fast": __version__},
        "config": plain,
    }


def measured_before(folder: Path, config: TrainConfig) -> dict[str, Any]:
    """Return ``timing`` and ``ablations`` of the results.json in `folder`.

    Returns an empty dict if the file is missing, damaged or of another configuration. A field of the configuration
    that the file does not have is taken to have had its default. The data may be in another folder if the run of
    `config.seed` has a checkpoint: resuming this run first compares the data and raises an error if it differs.
    """
    try:
        before = json.loads((folder / "results.json").read_bytes())
        trained = TrainConfig.from_dict(before["config"]).training_fields()
        kept = {"timing": before["timing"], "ablations": dict(before["ablations"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    now = config.training_fields()
    names = trained.pop("dataset"), now.pop("dataset")
    compared = any((folder / f"seed-{config.seed}" / "checkpoints").glob("*/*.pt"))
    if now["precision"] is None:  # stands for any, such as fp32, the default of earlier versions
        trained["precision"] = None
    same_data = same_data_name(*names) or (compared and may_hold_the_same(*names))
    return kept if same_data and trained == now else {}


def protocol(config: TrainConfig) -> str:
    """Describe the training in one line."""
    rates = {
        "multistep": f"times {config.decay:g} at " + ", ".join(f"{100 * share:.3g} %" for share in config.milestones),
        "exponential": f"times {config.decay:g} every {config.decay_epochs:g} epochs",
        "cosine": "cosine to 0",
        "cyclic": f"{config.snapshots} cosine cycles",
    }
    weights = config.loss_weights
    parts = [
        f"{config.epochs} epoch{'s' if config.epochs > 1 else ''}",
        f"batch {config.batch_size}",
        f"{config.optimizer} at {config.peak_rate:g}, {rates[config.schedule]}",
        f"warm-up {config.warmup_epochs:g} epoch{'' if config.warmup_epochs == 1 else 's'}"
        if config.warmup_epochs
        else "no warm-up",
        f"weight decay {config.weight_decay:g}",
        f"T {weights.temperature:g}",
        f"{config.divergence} divergence" if config.divergence != "forward" else "",
        f"beta of it {config.divergence_beta:g}" if config.divergence in ("js", "decoupled") else "",
        "standardised logits" if config.standardise_logits else "",
        f"alpha {weights.ce_weight:g}, beta {weights.feature_weight:g}, gamma {weights.kd_weight:g}",
        f"learns from {config.learn_from.replace('_', ' ')}" if config.learn_from != "objective" else "",
        "from averaged weights" if config.learn_from_average else "",
        "strengths " + " ".join(f"{factor:g}" for factor in config.kd_strengths) if config.kd_strengths else "",
        f"label smoothing {config.label_smoothing:g}" if config.label_smoothing else "",
        f"EMA {config.ema_decay:g}" if config.ema_decay is not None else "",
        f"{config.train_images:,} training images" if config.train_images is not None else "",
        "widths " + " ".join(f"{share:g}" for share in config.widths) if config.widths is not None else "",
        f"channels in multiples of {config.width_divisor}" if config.width_rule.divisor > 1 else "",
        config.precision or "bf16 on CUDA, else fp32",
    ]
    return "; ".join(part for part in parts if part)


def write(folder: Path, results: Mapping[str, Any]) -> str | None:
    """Write the three files to `folder`, each atomically.

    Returns:
        None, or a line that says why results.png could not be drawn.

    Raises:
        OSError: results.json or results.md cannot be written.
    """
    write_atomically(folder / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    write_atomically(folder / "results.md", render(results).encode())
    return write_png(folder / "results.png", lambda: draw(results))
