"""The networks of a group of runs on the test images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import ImageDataset
from oekd_fast.reporting.evidence import Networks, check_same_images, data_config, load_networks
from oekd_fast.reporting.finished_runs import Group, Run
from oekd_fast.reporting.predictions import Predictions, predict

# In points. Training may have used another precision or other kernels; larger differences have another cause.
ACCURACY_TOLERANCE = 0.5


@dataclass(frozen=True)
class Source:
    """Sources of the networks and test images of runs, and what the user allows the report to load.

    Args:
        load: function that loads the data set of a config.
        data_dir: folder of the data set, given by the user; None if the user gave none.
        with_data: whether the user lets the report load the data set that config.json names.
        device: device on which networks run.
        model: function that builds the networks of runs whose model is one, given by the user; None if there is none.
    """

    load: Callable[[TrainConfig], ImageDataset]
    data_dir: Path | None
    with_data: bool
    device: torch.device
    model: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """Predictions of the networks of runs that differ in the seed only.

    Args:
        dataset: the data set, whose test images were predicted.
        networks: networks of each run.
        predictions: predictions of each run; all have the same networks in the same order.
        notes: sentences on what is missing or differs.
        same_accuracy: whether the accuracies are those of summary.json, up to rounding.
    """

    dataset: ImageDataset
    networks: tuple[Networks, ...]
    predictions: tuple[Predictions, ...]
    notes: tuple[str, ...]
    same_accuracy: bool

    @property
    def family(self) -> tuple[str, ...]:
        """Names of the students of the family and, as the last one, of the ensemble."""
        return self.predictions[0].names[: len(self.networks[0].students) + 1]


def evaluate(group: Group, source: Source) -> Evaluation:
    """Load the networks of `group` and predict the test images.

    Raises:
        ReportError, DataError: the data set may not be loaded or is another one, or weights are missing.
        ImportError, OSError, ValueError, RuntimeError: a file is damaged, a package is missing, or memory is too small.
    """
    runs = group.runs
    config = data_config(runs[0].config, source.data_dir, source.with_data)
    networks = tuple(load_networks(run, source.device, source.model) for run in runs)
    dataset = source.load(config)
    for run, loaded in zip(runs, networks, strict=True):
        check_same_images(dataset, run, loaded.students[0])
    with_baselines = all(loaded.baselines for loaded in networks)
    with_gates = all(loaded.gate is not None for loaded in networks)
    predictions = tuple(
        predict(
            loaded.students,
            loaded.baselines if with_baselines else (),
            dataset.test,
            dataset.augmentation,
            source.device,
            loaded.gate if with_gates else None,
        )
        for loaded in networks
    )
    difference = _largest_difference(runs, predictions)
    return Evaluation(
        dataset,
        networks,
        predictions,
        tuple(_notes(runs, with_baselines, with_gates, difference)),
        difference <= ACCURACY_TOLERANCE,
    )


def _largest_difference(runs: tuple[Run, ...], predictions: tuple[Predictions, ...]) -> float:
    """Return the largest difference between accuracies computed here and those of summary.json, in points."""
    largest = 0.0
    for run, predicted in zip(runs, predictions, strict=True):
        found, students = predicted.accuracy(), run.summary["students"]
        pairs = [(student["accuracy"], value) for student, value in zip(students, found, strict=False)]
        # After the students and the ensemble; empty without weights of baselines.
        alone = found[len(students) + 1 :]
        pairs += [(student["baseline_accuracy"], value) for student, value in zip(students, alone, strict=False)]
        largest = max(largest, *(abs(value - expected) for expected, value in pairs if expected is not None))
    return largest


def _notes(runs: tuple[Run, ...], with_baselines: bool, with_gates: bool, difference: float) -> Iterator[str]:
    if not with_baselines and all(run.has_baselines for run in runs):
        yield (
            "Predictions of students trained alone are missing, since a run has no weights of baselines (older "
            "versions did not write the folder baselines/)."
        )
    if difference > ACCURACY_TOLERANCE:
        yield (
            f"Accuracies computed here differ from summary.json by up to {difference:.2f} points: the images "
            "or weights are not those of the run."
        )
    objective = runs[0].config.family_objective
    if objective.alone or (objective.gated and not with_gates):
        other = "also includes earlier networks"
        if objective.gated:
            other = "uses the gate, which is missing (older versions did not write students/gate.safetensors)"
        yield (
            "Where predictions are shown, the ensemble is the mean of the saved students' logits. The ensemble of the "
            f"headline and of the table of students {other}."
        )
