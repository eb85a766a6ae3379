"""Building the family that a phase trains, with the weights that it starts from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import torch

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.family.ensemble import StudentEnsemble, build_ensemble
from oekd_fast.models import Architecture, load_standard_weights, width_rule_of, with_widths
from oekd_fast.models.any_network.module_architecture import ModuleArchitecture
from oekd_fast.models.model_sources import Images, find_architecture
from oekd_fast.models.published_weights import find_standard_weights
from oekd_fast.runs.tasks import PhaseTask
from oekd_fast.training.channel_padding import padding_note


def build_family(task: PhaseTask, config: TrainConfig, num_classes: int, in_channels: int) -> StudentEnsemble:
    """Build the members of `task` on the CPU.

    Raises:
        ValueError: the published weights do not fit the model.
        FileNotFoundError: the file of the published weights is missing.
    """
    teacher = task.teacher
    ensemble = build_ensemble(
        task.architecture or config.model,
        config.num_students,
        num_classes,
        in_channels,
        task.members,
        gated=config.family_objective.gated and not task.from_labels,
        hint_channels=teacher.channels if teacher is not None and config.family_objective.hints else None,
        helpers="none" if task.from_labels else config.family_objective.helpers,
        widths=config.widths,
        width_divisor=config.width_divisor,
    )
    if config.initial_weights is not None and not isinstance(ensemble.architecture, ModuleArchitecture):
        _load_published(ensemble, config.initial_weights)
    if task.start is not None:
        ensemble.base.load_state_dict(task.start.base.state_dict())
        for j in task.start.members:
            ensemble.student(j).branch.load_state_dict(task.start.student(j).branch.state_dict())
    return ensemble


def model_of(config: TrainConfig, images: Images) -> Architecture:
    """Return the network that `config` names, with the widths of its students.

    Args:
        images: images and classes of the data.

    Raises:
        ValueError, TypeError, FileNotFoundError, ImportError: the network cannot be built, scaled or cut.
    """
    architecture = find_architecture(config.model, images, config.initial_weights)
    return with_widths(architecture, config.widths, config.width_divisor)


def cut_notes(architecture: Architecture, num_students: int) -> list[str]:
    """Return lines that show where a network of timm or of the user is cut; none for a network of the package."""
    if not isinstance(architecture, ModuleArchitecture):
        return []
    return [*architecture.describe(num_students).splitlines(), *width_notes(architecture, num_students)]


def family_notes(config: TrainConfig, architecture: Architecture, ensemble: StudentEnsemble) -> list[str]:
    """Return lines about the family that a phase trains: where its network is cut, and how its channels are stored."""
    stored = padding_note(config, ensemble)
    return cut_notes(architecture, len(ensemble.members)) + ([] if stored is None else [stored])


def initial_weights_note(path: Path) -> str | None:
    """Return in one line which of the weights in the file `path` are used; None if it holds nothing else.

    Raises:
        ValueError, FileNotFoundError: as `build_family` does for a file without usable weights.
    """
    with _naming_option(path):
        taken = find_standard_weights(path).taken
    return f"Initial weights of {path}: {taken}" if taken else None


def width_notes(architecture: Architecture, num_students: int) -> list[str]:
    """Return a line for each pair of neighbouring students that rounding has given the same channels."""
    divisor = width_rule_of(architecture).divisor
    channels = [architecture.map_channels(j, num_students) for j in range(num_students)] if divisor > 1 else []
    return [
        f"Students {j} and {j + 1} have the same channels with width_divisor {divisor}"
        for j, (larger, smaller) in enumerate(pairwise(channels), 1)
        if larger == smaller
    ]


@contextmanager
def _naming_option(path: Path) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"initial_weights: {error}") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"initial_weights: {path} is missing") from error


def _load_published(ensemble: StudentEnsemble, path: Path) -> None:
    """Load published weights into the base and student 1.

    A student that trains alone gets the published base too. Its family starts with that base, and the gain of the
    family would otherwise be partly that of the published weights.
    """
    holder = ensemble
    if 0 not in ensemble.members:
        with torch.random.fork_rng(devices=[]):  # building student 1 must not change what is drawn later
            holder = build_ensemble(
                ensemble.architecture, ensemble.num_students, ensemble.num_classes, ensemble.in_channels, (0,)
            )
    with _naming_option(path):
        load_standard_weights(holder.student(0), path, classifier="auto")
    if holder is not ensemble:
        ensemble.base.load_state_dict(holder.base.state_dict())
