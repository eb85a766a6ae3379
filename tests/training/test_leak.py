"""Memory in use over many steps, counted by the C library in a process of its own: other tests leave memory behind."""

import ctypes
import os
import subprocess
import sys

import pytest

STEPS = 20
LIMIT = 40_000  # bytes over all steps: 2 kB a step, and the smallest map of a student takes 4 kB
SCRIPT = """
import ctypes, gc, sys
import torch
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import Augmentation, DeviceBatches, Split
from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.training.distillation import family_options
from oekd_fast.training.engine import Engine
from oekd_fast.training.prepare import prepare_family

SIZES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"

class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in SIZES.split()]

def bytes_in_use():
    gc.collect()
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = Mallinfo
    sizes = mallinfo()
    return sizes.uordblks + sizes.hblkhd  # in arenas and in mappings of their own

threads, leak, steps = int(sys.argv[1]), sys.argv[2] == "leak", int(sys.argv[3])
torch.set_num_threads(threads)
config = TrainConfig(num_students=2, ema_decay=0.9, clip_norm=1.0)
family = build_ensemble("resnet20", 2, 10).to(memory_format=torch.channels_last)
engine = Engine(
    config, prepare_family(family, config), family_options(config), device=torch.device("cpu"),
    normalisation=((0.5,) * 3, (0.25,) * 3), augmentation=Augmentation(pad=1, flip=True), steps_per_epoch=10,
)
batches = DeviceBatches(Split(torch.zeros(80, 3, 8, 8, dtype=torch.uint8), torch.arange(80) % 10), "cpu")
kept, branch = [], engine.ensemble.branches[1]

def keep_smallest_map(module, inputs, outputs):
    kept.append(outputs[1][-1].detach().clone())

def epochs(count):
    for _ in range(count):
        engine.begin_epoch(batches, torch.arange(80), 8)
        for _ in range(10):
            engine.step()

def growth():
    before = bytes_in_use()
    epochs(steps // 10)
    return bytes_in_use() - before

epochs(2)  # buffers of the optimizer, caches of kernels
print(growth())
if leak:
    branch.register_forward_hook(keep_smallest_map)
    print(growth())
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "mallinfo2"),
        reason="the C library does not count the bytes in use (mallinfo2 of glibc >= 2.33)",
    ),
]


def growths(threads: int, variant: str) -> list[int]:
    """Bytes that are in use after STEPS steps and were not before; for "leak" also those of steps that keep a map."""
    # Passive: threads that spin while they wait are slow beside other work.
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-c", SCRIPT, str(threads), variant, str(STEPS)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


def test_steps_of_students_side_by_side_leave_no_memory_in_use():
    (growth,) = growths(2, "engine")
    assert growth < LIMIT


def test_steps_leave_no_memory_in_use_and_one_kept_map_a_step_exceeds_the_limit():
    growth, with_leak = growths(1, "leak")
    assert growth < LIMIT < with_leak
