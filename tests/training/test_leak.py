"""The engine keeps nothing of a step, students side by side. In a process of its own: others leave memory behind."""

import subprocess
import sys
import textwrap

import pytest


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the resident set is read from /proc")
def test_five_hundred_steps_take_no_more_memory():
    script = """
    import torch
    from oekd_fast.config.train_config import TrainConfig
    from oekd_fast.data import Augmentation, DeviceBatches, Split
    from oekd_fast.training.distillation import family_options
from oekd_fast.training.engine import Engine
    from oekd_fast.family.ensemble import build_ensemble

    def resident():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024

    torch.set_num_threads(2)
    config = TrainConfig(num_students=2, precision="fp32", ema_decay=0.9, clip_norm=1.0)
    family = build_ensemble("resnet20", 2, 10).to(memory_format=torch.channels_last)
    engine = Engine(
        config, family, family_options(config), device=torch.device("cpu"), normalisation=((0.5,) * 3, (0.25,) * 3),
        augmentation=Augmentation(pad=1, flip=True), steps_per_epoch=50,
    )
    batches = DeviceBatches(Split(torch.zeros(100, 3, 8, 8, dtype=torch.uint8), torch.arange(100) % 10), "cpu")
    for epoch in range(12):
        engine.begin_epoch(batches, torch.arange(100), 2)
        for _ in range(50):
            engine.step()
        if epoch == 1:
            before = resident()
    print(resident() - before)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 8  # MB: 16 kB a step, less than its smallest map
