"""Section of the config: where and how a run computes, and what it writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from oekd_fast.config.section import Section, at_least, positive, setting


@dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    """Device, precision, run folder and what is written."""

    device: str = "auto"
    """Device: cpu, cuda, cuda:1, mps, ...; auto is cuda if it is available, else cpu."""
    threads: int | None = setting(None, at_least(1), unset="all cores, divided among the processes of a machine")
    """Threads of a process on the CPU."""
    norms: Literal["local", "global"] = "local"
    """Statistics of BatchNorm with several processes: over the images of each process, or over the whole batch."""
    student_ranks: int = setting(1, at_least(1))
    """Processes that share the students of a family; 1 has each process compute all students."""
    rank_timeout: float = setting(600.0, positive())
    """Seconds that a process waits for the others in a step, an evaluation or a checkpoint."""
    join_timeout: float = setting(30.0, positive())
    """Seconds in which the processes must find each other at the start."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = setting(None, unset="bf16 on CUDA, else fp32")
    """Precision of the networks under autocast; the loss is computed in fp32, fp16 uses loss scaling, and auto is
    bf16 on devices with instructions for it, else fp32."""
    executor: Literal["auto", "parallel", "sequential"] = "auto"
    """Run the students in parallel (CPU threads, CUDA streams) or one after the other; auto prefers parallel."""
    capture: bool = True
    """Capture each step in a CUDA graph where possible; no effect on a CPU."""
    compile_blocks: bool = False
    """Compile the blocks of the networks with torch.compile."""
    channels_last: bool = True
    """Keep images and weights in channels-last memory format."""
    pad_channels: Literal["auto", "on", "off"] = "auto"
    """Store numbers of channels as multiples of 8, padded with zeros, where the network allows it; auto is on for
    CUDA with channels_last, else off."""
    deterministic: bool = False
    """Compute the same bits with either executor, by slower algorithms."""
    seed: int = setting(0, at_least(0))
    """Seed of the validation split, initial weights, data order and augmentation."""
    output_dir: Path | None = setting(None, unset="runs/<dataset>-<model>-seed<seed>")
    """Run folder."""
    resume: bool = False
    """Continue the run in the run folder from its newest checkpoint, or start it if there is none."""
    baseline: bool = False
    """Also train each student alone, from labels, under the same schedule."""
    track_test: bool = False
    """Also evaluate the test split whenever the validation images are; it is never used to select an epoch."""
    test_flips: bool = False
    """Also evaluate the test split at the end by the mean logits of each image and its mirror image."""
    latency: Literal["on", "off"] = "on"
    """Measure the latency of the students and of the ensemble at the end, in at most 20 seconds."""
    checkpoint_every: int = setting(1, at_least(1))
    """Epochs between checkpoints; the last epoch always has one."""
    tracker: Literal["none", "tensorboard", "trackio", "wandb", "mlflow"] = "none"
    """Experiment tracker that gets the lines of metrics.jsonl; its package has to be installed."""
    tracker_project: str = "oekd_fast"
    """Project of trackio and wandb, or experiment of mlflow."""
    progress: bool = True
    """Show progress: a bar on a terminal and in a notebook, and lines."""
