"""Time of an epoch: the family compared with its students trained one after the other (Figure 2b of the paper)."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import Any

import torch

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.models.model_sources import Images
from oekd_fast.runs.build import model_of
from oekd_fast.runs.device_data import DeviceData, choose_device, dataset_of
from oekd_fast.runs.external_teacher import load_teacher
from oekd_fast.runs.phase import Phase
from oekd_fast.runs.plan import FAMILY, baseline_names, phase_task
from oekd_fast.runs.run_folder import RunFolder
from oekd_fast.training.engine import Engine

ROUNDS, STEPS, WARMUP_STEPS = 5, 50, 3


def time_epochs(config: TrainConfig, rounds: int = ROUNDS, steps: int = STEPS) -> dict[str, Any]:
    """Measure the time of training epochs without evaluation.

    Family and students are measured alternately, so that a drift of the machine's speed affects all of them.

    Args:
        config: configuration of the run.
        rounds: number of samples of the family and of each student.
        steps: training steps of a sample, at most those of an epoch; its time is scaled to an epoch.

    Returns:
        Medians in seconds per epoch: ``family``, ``alone`` (a list with one entry per student) and ``sequential``
        (their sum). ``ratio``: sequential divided by family, as ``median``, ``lowest`` and ``highest`` over rounds.
        Also ``rounds``, ``steps``, ``steps_per_epoch`` and ``device``.

    Raises:
        DataError, ValueError: see `train`.
    """
    device = choose_device(config.device)
    config = replace(config, resume=False, output_dir=config.run_folder / "timing")  # nothing is written there
    dataset, folder = dataset_of(config), RunFolder(config)
    data = DeviceData.of(dataset, config, device)
    size = min(config.batch_size, len(data.train))
    batches = data.train.num_batches(size, drop_last=True)
    steps = min(steps, batches)
    order = data.train.order(torch.Generator().manual_seed(config.seed))

    def seconds(engine: Engine, count: int) -> float:
        engine.begin_epoch(data.train, order, size, epoch=config.epochs - 1)  # on images of full size
        start = time.perf_counter()
        for _ in range(count):
            engine.step()
        engine.metrics.read()  # waits for the device
        return (time.perf_counter() - start) / count

    architecture = model_of(config, Images(data.in_channels, dataset.image_size, data.num_classes))
    teacher = load_teacher(config, dataset, data, device, architecture=architecture)
    tasks = [phase_task(name, config, data, {}, teacher, architecture) for name in (FAMILY, *baseline_names(config))]
    engines = [Phase(task, config, data, folder, device).engine for task in tasks]
    for engine in engines:
        seconds(engine, min(WARMUP_STEPS, steps))
    samples = [[batches * seconds(engine, steps) for engine in engines] for _ in range(rounds)]
    ratios = [sum(alone) / family for family, *alone in samples]
    family, *alone = (statistics.median(column) for column in zip(*samples, strict=True))
    return {
        "family": family,
        "alone": alone,
        "sequential": statistics.median(sum(row[1:]) for row in samples),
        "ratio": {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)},
        "rounds": rounds,
        "steps": steps,
        "steps_per_epoch": batches,
        "device": str(device),
    }
