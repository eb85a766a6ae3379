"""Whole runs on small arrays: comparing run folders, acting at a step, command lines."""

import json
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.runs.checkpoint import load_latest_checkpoint
from oekd_fast.training.engine import Engine

from .image_files import write_arrays

CPU, QUIET = torch.device("cpu"), Console(quiet=True)
TIMES = ("seconds", "evaluation_seconds", "images_per_second", "checksum")  # differ from run to run


def write_colours(folder: Path, train: int, test: int) -> Path:
    """Write arrays of images of 8x8 pixels in three classes, which differ in their brightest channel."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("test", test)):
        labels = np.arange(count) % 3
        images = generator.integers(0, 160, (count, 8, 8, 3), dtype=np.uint8)
        images[np.arange(count), :, :, labels] += 90
        write_arrays(folder, images, labels, split)
    return folder


def metrics_without_times(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def results_without_times(folder: Path) -> dict:
    summary = json.loads((folder / "summary.json").read_text())
    summary["phases"] = {name: phase["selected_epoch"] for name, phase in summary["phases"].items()}
    return {key: value for key, value in summary.items() if key not in TIMES}


def assert_same_run(one: Path, other: Path) -> None:
    """Compare weights, optimizer, random state, metrics and results of two run folders bit for bit."""
    assert metrics_without_times(one) == metrics_without_times(other)
    assert results_without_times(one) == results_without_times(other)
    for phase in sorted(p.name for p in (one / "checkpoints").iterdir()):
        states = [load_latest_checkpoint(folder / "checkpoints" / phase).state for folder in (one, other)]
        assert_equal_except_times(*states, where=phase)
    for file in sorted((one / "students").iterdir()):
        assert file.read_bytes() == (other / "students" / file.name).read_bytes(), file.name


def assert_equal_except_times(one, other, where):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            if key not in (*TIMES, "epoch_seconds"):
                assert_equal_except_times(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_equal_except_times(*pair, where=f"{where}[{i}]")
    else:
        assert one == other, where


def at_step(monkeypatch, step, action):
    """Call `action` right before training step `step`, counted from 1 over all phases."""
    original, done = Engine.step, [0]

    def patched(self):
        done[0] += 1
        if done[0] == step:
            action()
        return original(self)

    monkeypatch.setattr(Engine, "step", patched)


def command_line(config: TrainConfig) -> list[str]:
    arguments = []
    for name, value in config.as_dict().items():
        if value == TrainConfig().as_dict()[name]:
            continue
        flag = f"--{name.replace('_', '-')}"
        arguments += [
            f"--no-{flag[2:]}" if value is False else flag,
            *([] if isinstance(value, bool) else [str(value)]),
        ]
    return arguments
