"""Load the networks and test images of a finished run, and compute the panels of Grad-CAM."""

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
from oekd_fast.family.ensemble import channels_of_base
from oekd_fast.family.gate import Gate
from oekd_fast.family.saved import GATE_FILE, LoadedStudent, load_gate, load_student
from oekd_fast.models.model_sources import runs_code
from oekd_fast.reporting.cam_figures import CamPanels
from oekd_fast.reporting.finished_runs import Run
from oekd_fast.reporting.grad_cam import grad_cam
from oekd_fast.reporting.run_files import ReportError, check_inside


@dataclass(frozen=True)
class Networks:
    """Networks of a run, on one device and in evaluation mode.

    Args:
        students: students of the family.
        baselines: students trained alone; empty if the run did not save them.
        gate: gate of the family; None if there is none, or if the run did not save it.
    """

    students: tuple[LoadedStudent, ...]
    baselines: tuple[LoadedStudent, ...]
    gate: Gate | None = None


def load_networks(run: Run, device: torch.device, model: str | None = None) -> Networks:
    """Load the weights of `run` on `device`.

    Args:
        model: function that builds the networks if the model of the run is one, such as "nets.py:make"; its code runs.

    Raises:
        ReportError: weights of students are missing.
        ValueError: a file is damaged, the architecture is not registered, or the gate belongs to another family.
    """
    architecture = function_of(run, model)
    students, baselines = ([load_student(path, architecture).to(device) for path in run.saved(kind)] for kind in
                           ("students", "baselines"))  # fmt: skip
    if not students:
        raise ReportError(
            f"{run.path / 'students'}: expected weights of {len(run.summary['students'])} students, got too few"
        )
    return Networks(tuple(students), tuple(baselines), gate_of(run, students))


def function_of(run: Run, model: str | None) -> str | None:
    """Return the function that builds the networks of `run`, for `load_student`; None if they are known by name.

    Args:
        model: the function that the user lets run; None if none was named.

    Raises:
        ReportError: the model of the run is a function, and `model` is None.
    """
    if not runs_code(run.config.model):
        return None
    if model is None:
        raise ReportError(
            f"config.json names the function {run.config.model!r} as the model, which is not run unasked; "
            f"--model {run.config.model} runs it"
        )
    return model


def gate_of(run: Run, students: Sequence[LoadedStudent]) -> Gate | None:
    """Load the gate of `run` on the device of its `students`; None if there is none, or if the run did not save it."""
    file = run.path / "students" / GATE_FILE
    if not (run.config.family_objective.gated and file.is_file()):
        return None
    check_inside(file, run.path)
    first = students[0]
    channels = channels_of_base(first.base, first.metadata.in_channels, (first.metadata.image_size,) * 2)
    return load_gate(file, channels, len(students)).to(first.mean.device)


def data_config(config: TrainConfig, data_dir: Path | None, with_data: bool) -> TrainConfig:
    """Return the config that loads the data set of a report, if the user has agreed to what it opens.

    The config comes from the run folder, which may be a stranger's, and names a folder of this machine or a data set on
    the hub. Without the user's word only the digits are loaded, which are part of scikit-learn.

    Args:
        config: config of the run.
        data_dir: folder of the data set, given by the user: the `data_dir` of a known data set, or else the folder that
            is the data set. It replaces the place that `config` names.
        with_data: whether the user lets the report load what `config` names.

    Raises:
        ReportError: the user has not agreed to load the data set, or `data_dir` is not a folder.
    """
    if data_dir is not None:
        if not data_dir.is_dir():
            raise ReportError(f"data_dir: expected the folder of the data set, got {data_dir}, which is not a folder")
        if config.dataset == "digits" or known_name(config.dataset) is not None:
            return replace(config, data_dir=data_dir)
        return replace(config, dataset=str(data_dir), data_dir=None)
    if config.dataset != "digits" and not with_data:
        place = "" if config.data_dir is None else f" in {config.data_dir}"
        raise ReportError(
            f"config.json names the data set {config.dataset!r}{place}, which is not loaded unasked; "
            "--with-data loads it, --data-dir names its folder"
        )
    return config


def check_same_images(dataset: ImageDataset, run: Run, student: LoadedStudent) -> None:
    """Raise DataError unless `dataset` has the classes and the number of test images of `run`."""
    trained, found = student.metadata.classes, dataset.classes
    if trained != found:
        raise DataError(f"{dataset.name}: expected the classes of {run.path}, {_first(trained)}, got {_first(found)}")
    if len(dataset.test) != run.summary["test_images"]:
        raise DataError(
            f"{dataset.name}: expected the {run.summary['test_images']} test images of {run.path}, "
            f"got {len(dataset.test)}"
        )


def one_of_each_class(labels: Tensor, count: int) -> Tensor:
    """Return the rows of `count` images from as many different classes as possible.

    With fewer images than classes, these are the first images of classes that are evenly spread. Otherwise they are
    the first images of all classes, then the second ones, and so on.

    Args:
        labels: int64 [N].
        count: number of images, >= 0.

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


def grad_cam_panels(
    networks: dict[str, LoadedStudent],
    dataset: ImageDataset,
    rows: Tensor,
    explained: Literal["predicted", "true"],
    device: torch.device,
) -> tuple[Tensor, list[CamPanels]]:
    """Compute the Grad-CAM panels of `networks` for test images.

    Args:
        networks: networks on `device`, by the names of their panels.
        dataset: data set of the images.
        rows: rows of the test split, int64 [B].
        explained: class that the maps explain, each network's prediction or the true class.
        device: device of the networks.

    Returns:
        The images that the networks receive (uint8 [B, C, H, W]), and the panels of each network.
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


def _first(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
