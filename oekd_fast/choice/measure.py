"""Measure a finished run on this machine, for runs without latency and for other machines than that of the training."""

from __future__ import annotations

from typing import Any

import torch

from oekd_fast.family.exporting.networks import family_outputs
from oekd_fast.latency.measure import measure_students
from oekd_fast.latency.networks import size_of
from oekd_fast.latency.result import LatencyReport
from oekd_fast.reporting.evidence import load_networks
from oekd_fast.reporting.finished_runs import Run
from oekd_fast.runs.device_data import choose_device

SECONDS = 120.0  # at most; twenty are enough for small networks unless they have to be exported


def measure_run(
    run: Run, device: str | None = None, model: str | None = None
) -> tuple[LatencyReport, dict[str, Any] | None]:
    """Measure the saved students of `run` for at most `SECONDS`, roughly. The run folder stays as it is.

    Args:
        device: measured beside the CPU; None measures the CPU alone.
        model: function that builds the networks, if the model of the run is one; its code runs.

    Returns:
        The latencies; and ``parameters`` and ``file_bytes`` of the ensemble, or None if the students have none that
        could be used, since the objective trains one network or the gate is missing.

    Raises:
        ReportError: weights of students are missing.
        ValueError: a file is damaged, the architecture is not registered, or the device is unavailable.
        RuntimeError: the memory of the device is too small.
    """
    place = choose_device(device or "cpu")
    networks = load_networks(run, torch.device("cpu"), model)
    flops = [student["flops"] for student in run.summary["students"]]
    report = measure_students(networks.students, flops, networks.gate, device=place, seconds=SECONDS)
    objective = run.config.family_objective
    if objective.alone or (objective.gated and networks.gate is None):
        return report, None
    return report, size_of(family_outputs(networks.students, networks.gate))
