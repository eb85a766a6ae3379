"""What a report looks at: the test images of a run, its saved networks, and where those look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import DataError, ImageDataset, centre
from oekd_fast.data.known import known_name
from oekd_fast.family.gate import Gate
from oekd_fast.family.saved import GATE_FILE, LoadedStudent, load_gate, load_student
from oekd_fast.reporting.cam_figures import CamPanels
from oekd_fast.reporting.finished_runs import ReportError, Run
from oekd_fast.reporting.grad_cam import grad_cam


@dataclass(frozen=True)
class Networks:
    """A run's family on a device, its gate, and each student trained alone: the latter two if the run kept them."""

    students: tuple[LoadedStudent, ...]
    baselines: tuple[LoadedStudent, ...]
    gate: Gate | None = None


def load_networks(run: Run, device: torch.device) -> Networks:
    """Read the weights of `run`.

    Raises:
        ReportError: its students are not there.
        ValueError: a file is damaged, or the architecture is not registered, or the gate is of another family.
    """
    students, baselines = ([load_student(path).to(device) for path in run.saved(kind)] for kind in
                           ("students", "baselines"))  # fmt: skip
    if not students:
        raise ReportError(f"{run.path / 'students'} lacks weights of {len(run.summary['students'])} students")
    return Networks(tuple(students), tuple(baselines), _gate_of(run, students))


def _gate_of(run: Run, students: Sequence[LoadedStudent]) -> Gate | None:
    file = run.path / "students" / GATE_FILE
    if not (run.config.family_objective.gated and file.is_file()):
        return None
    first = students[0]
    image = torch.zeros(1, first.metadata.in_channels, first.metadata.image_size, first.metadata.image_size)
    with torch.no_grad():
        shared = first.base(image.to(first.mean.device))
    return load_gate(file, shared.shape[1], len(students)).to(shared.device)


def moved(config: TrainConfig, data_dir: Path | None) -> TrainConfig:
    """`config` with its data in `data_dir`, if given: the folder that was trained on, or a known data set's files."""
    if data_dir is None:
        return config
    if config.dataset == "digits" or known_name(config.dataset) is not None:
        return replace(config, data_dir=data_dir)
    return replace(config, dataset=str(data_dir), data_dir=None)


def check_same_images(dataset: ImageDataset, run: Run, student: LoadedStudent) -> None:
    """Raise DataError unless `dataset` has the classes and as many test images as `run` saw."""
    trained, found = student.metadata.classes, dataset.classes
    if trained != found:
        raise DataError(
            f"{dataset.name}: expected the classes of {run.path}, {_few(trained)}, got {_few(found)}: other data"
        )
    if len(dataset.test) != run.summary["test_images"]:
        raise DataError(
            f"{dataset.name}: expected the {run.summary['test_images']} test images of {run.path}, "
            f"got {len(dataset.test)}: other data"
        )


def one_of_each_class(labels: Tensor, count: int) -> Tensor:
    """Rows of `count` images: the first of each of so many classes, spread over all; then the second, and so on.

    Args:
        labels: int64 [N].
        count: at least 0; no more than N are returned.

    Returns:
        int64 [min(count, N)].
    """
    order = torch.argsort(labels, stable=True)
    sizes = torch.bincount(labels)
    rank = torch.empty_like(labels)
    rank[order] = torch.cat([torch.arange(size) for size in sizes.tolist()])
    by_rank = torch.argsort(rank * len(sizes) + labels)
    present = int((sizes > 0).sum())
    if count < present:
        return by_rank[torch.arange(count) * present // max(count, 1)]
    return by_rank[:count]


def look(
    networks: dict[str, LoadedStudent],
    dataset: ImageDataset,
    rows: Tensor,
    explained: Literal["predicted", "true"],
    device: torch.device,
) -> tuple[Tensor, list[CamPanels]]:
    """Show test images to `networks` and find what speaks for the class.

    Args:
        networks: by the names that the panels shall have, on `device`.
        rows: int64 [B], of the test split.
        explained: which class the maps are of, that of each network's prediction or the true one.

    Returns:
        The images as the networks see them (uint8 [B, C, H, W]), and the panels of each network.
    """
    images = centre(dataset.test.gather(rows), dataset.augmentation)
    labels = dataset.test.labels[rows].to(device)
    panels = []
    for name, network in networks.items():
        scaled = network.preprocess(images.to(device))
        with torch.no_grad():
            best = network(scaled).softmax(dim=1).max(dim=1)
        maps = grad_cam(network, scaled, labels if explained == "true" else best.indices)
        panels.append(CamPanels(name, maps.cpu(), best.indices.cpu(), best.values.cpu()))
    return images.cpu(), panels


def _few(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
