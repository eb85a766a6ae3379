"""The plan of a run as lines and tables on a console."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console

from oekd_fast.common.quantities import bytes_text, duration_text
from oekd_fast.common.tables import table_of_columns
from oekd_fast.common.text import plain, print_line
from oekd_fast.config.data import DataConfig
from oekd_fast.runs.run_plan import DataFacts, FamilyFacts, PhasePlan, RunPlan


def print_plan(console: Console, plan: RunPlan) -> None:
    """Print what a run would do and take, in lines of at most 80 characters unless a name is long.

    The tables have the columns that fit into the width of the console.
    """
    for line in plan.notes:
        print_line(console, line)
    for line in _data_lines(plan.data, plan.config):
        print_line(console, line)
    for lines, columns, optional in (
        (_family_lines(plan), _family_columns(plan.family), ("size %", "MFLOPs")),
        (_training_lines(plan), _phase_columns(plan.phases), ("steps left", "a step", "an epoch")),
    ):
        console.print()
        for line in lines:
            print_line(console, line)
        table = table_of_columns(columns, optional, console.width)
        if table is not None:
            console.print(table)
    console.print()
    for line in _cost_lines(plan):
        print_line(console, line)


def _data_lines(data: DataFacts, config: DataConfig) -> Iterator[str]:
    channels, height, width = data.image_shape
    yield f"Data: {plain(data.name)}, {data.classes:,} classes, images of {height} x {width} x {channels}"
    counts = ", ".join(f"{data.images[name]:,} {text}" for name, text in _SPLITS.items())
    yield f"  {counts} images, {bytes_text(data.pixel_bytes)}"
    if "validation" in data.held_out:
        yield f"  the validation images are held out, {config.validation_fraction:g} of the training images"
    if "test" in data.held_out:
        yield "  the test images are held out, a fifth of the training images"


_SPLITS = {"train": "training", "validation": "validation", "test": "test"}


def _family_lines(plan: RunPlan) -> Iterator[str]:
    config, family = plan.config, plan.family
    yield f"Family: {plain(config.model)} x {len(family.students)}, objective {config.objective}"
    others = f", with those of {' and '.join(family.for_training)}" if family.for_training else ""
    yield f"  {family.trained_parameters:,} parameters to train{others}"


def _family_columns(family: FamilyFacts) -> Mapping[str, Sequence[str]]:
    rows = [(f"student {number}", facts) for number, facts in enumerate(family.students, start=1)]
    rows += [] if family.ensemble is None else [("all", family.ensemble)]
    whole = family.students[0].parameters
    return {
        "network": [name for name, _ in rows],
        "parameters": [f"{facts.parameters:,}" for _, facts in rows],
        "size %": [f"{100 * facts.parameters / whole:.1f}" for _, facts in rows],
        "MFLOPs": [f"{facts.flops / 1e6:,.1f}" for _, facts in rows],
    }


def _training_lines(plan: RunPlan) -> Iterator[str]:
    config, processes = plan.config, f"{plan.processes} processes, " if plan.processes > 1 else ""
    count = f"{plan.threads} thread{'s' if plan.threads > 1 else ''}"
    threads = f", {count}" if plan.device == "cpu" else ""
    yield f"Training: {processes}device {plan.device}{threads}, {config.precision}, executor {plan.executor}"
    steps = plan.family_phase.steps_per_epoch
    rate = f"{config.optimizer}, {config.schedule} learning rate from {config.peak_rate:g}"
    yield f"  batches of {plan.batch_size:,} images, {steps:,} steps an epoch; {rate}"
    if config.evaluate_every > 1:
        yield f"  validation images evaluated every {config.evaluate_every:,} epochs and after the last one"


def _phase_columns(phases: Sequence[PhasePlan]) -> Mapping[str, Sequence[str]]:
    return {
        "phase": [phase.name for phase in phases],
        "epochs": [f"{phase.epochs:,}" for phase in phases],
        "steps left": [f"{phase.steps_left:,}" for phase in phases],
        "a step": [duration_text(phase.step.expected) for phase in phases],
        "an epoch": [duration_text(phase.epoch.expected) for phase in phases],
        "in all": [duration_text(phase.total.expected) for phase in phases],
    }


def _cost_lines(plan: RunPlan) -> Iterator[str]:
    low, expected, high = (duration_text(s) for s in (plan.seconds.low, plan.seconds.expected, plan.seconds.high))
    yield f"Time: {expected}, from {low} to {high} by the fastest and the slowest step"
    if plan.config.patience is not None:
        yield f"  less if a phase ends early (--patience {plan.config.patience})"
    if plan.latency_seconds:
        yield f"  and at most {plan.latency_seconds:g} s to measure latency at the end (--latency off skips it)"
    host = "unknown" if plan.host_bytes is None else bytes_text(plan.host_bytes)
    device = "" if plan.device_bytes is None else f", {bytes_text(plan.device_bytes)} on {plan.device}"
    each = " of each process" if plan.processes > 1 else ""
    yield f"Memory{each}: {host}{device}"
    yield f"Disk: {bytes_text(plan.disk_bytes)} in {plain(plan.folder)}"
    yield "Nothing was written."
