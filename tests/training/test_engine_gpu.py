"""The captured step on a GPU: agreement with eager steps, memory, and fall-back to eager steps."""

import pytest
import torch

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import Augmentation, DeviceBatches, HostBatches, Split
from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.training.cuda_recorder import CudaRecorder
from oekd_fast.training.distillation import family_options
from oekd_fast.training.engine import Engine
from oekd_fast.training.prepare import prepare_family

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ROWS, BATCH = 64, 16
CONFIGS = {
    "fp32, sgd": {},
    "bf16, adam, clipped, averaged": {"precision": "bf16", "optimizer": "adam", "clip_norm": 1.0, "ema_decay": 0.9},
    "fp16, one stream": {"precision": "fp16", "executor": "sequential"},
    "fp32, one graph of autograd": {"detach_ensemble": False},
    "fp32, mixup and cutmix, micro-batches": {"mixup": 0.2, "cutmix": 1.0, "micro_batches": 2},
}


def split(rows=ROWS):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (rows, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return Split(images, torch.randint(10, (rows,), generator=generator))


def make(recorder=None, **fields):
    fields = {"num_students": 3, "epochs": 100, "warmup_epochs": 0.0, "learning_rate": 0.01} | fields
    config = TrainConfig(**{"precision": "fp32"} | fields)
    device = torch.device("cuda")
    torch.manual_seed(0)
    ensemble = build_ensemble("resnet20", config.num_students, 10).to(device, memory_format=torch.channels_last)
    return Engine(
        config,
        prepare_family(ensemble, config),
        family_options(config),
        device=device,
        normalisation=((0.5,) * 3, (0.25,) * 3),
        augmentation=Augmentation(pad=2, flip=True),
        steps_per_epoch=ROWS // BATCH,
        recorder=recorder,
    )


def train(engine, batches, steps):
    losses = []
    for step in range(steps):
        if step % (ROWS // BATCH) == 0:
            engine.begin_epoch(batches, torch.arange(ROWS), BATCH)
        engine.metrics.reset()
        engine.step()
        losses.append(engine.metrics.read().loss)
    return losses


@pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("batches", [DeviceBatches, HostBatches])
def test_replayed_steps_train_as_eager_ones(fields, batches):
    eager, captured = make(capture=False, **fields), make(**fields)
    expected = train(eager, batches(split(), "cuda"), 12)
    assert train(captured, batches(split(), "cuda"), 12) == pytest.approx(expected, rel=0.02)
    assert captured.eager_because is None and eager.eager_because == "capture is off"
    for name, generator in eager.generators.items():  # both have drawn as often
        assert torch.equal(generator.get_state(), captured.generators[name].get_state()), name


def test_padded_channels_train_as_those_of_the_network():
    plain, padded = make(pad_channels="off"), make()
    expected = train(plain, DeviceBatches(split(), "cuda"), 12)
    assert train(padded, DeviceBatches(split(), "cuda"), 12) == pytest.approx(expected, rel=0.02)
    shapes, state = ({n: t.shape for n, t in e.state_dict()["model"].items()} for e in (plain, padded))
    assert state == shapes
    tensors = dict(padded.ensemble.named_parameters()) | dict(padded.ensemble.named_buffers())
    assert any(tensor.shape != shapes[name] for name, tensor in tensors.items())
    for name, tensor in tensors.items():
        rest = tensor.detach().clone()
        rest[tuple(map(slice, shapes[name]))] = 0
        assert not rest.any(), name


def test_the_warm_up_leaves_no_trace_in_the_first_replayed_step():
    eager, captured = make(capture=False), make()
    expected = train(eager, DeviceBatches(split(), "cuda"), 1)
    assert train(captured, DeviceBatches(split(), "cuda"), 1) == pytest.approx(expected, rel=1e-4)
    for (name, one), two in zip(
        eager.ensemble.state_dict().items(), captured.ensemble.state_dict().values(), strict=True
    ):
        if name.endswith("num_batches_tracked"):
            assert one == two == 1, name


def test_captured_evaluation_agrees_with_eager_evaluation():
    captured, eager = make(), make(capture=False)
    eager.ensemble.load_state_dict(captured.ensemble.state_dict())
    results = [engine.evaluator.evaluate(DeviceBatches(split(50), "cuda")) for engine in (captured, eager)]
    assert results[0].accuracy == results[1].accuracy and results[0].images == 50
    assert results[0].ce == pytest.approx(results[1].ce, rel=1e-4)
    assert captured.eager_because is None


def test_five_hundred_steps_allocate_no_more_memory():
    engine, batches = make(), DeviceBatches(split(), "cuda")
    train(engine, batches, 20)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    train(engine, batches, 500)
    torch.cuda.synchronize()
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before


def test_steps_are_eager_if_a_graph_does_not_fit_into_memory():
    class Full(CudaRecorder):
        def record(self, call, generators):
            def and_then_some():
                call()
                torch.empty(torch.cuda.get_device_properties(0).total_memory, dtype=torch.uint8, device="cuda")

            return super().record(and_then_some, generators)

    engine = make(recorder=Full(torch.device("cuda")))
    losses = train(engine, DeviceBatches(split(), "cuda"), 4)
    assert engine.eager_because.startswith("out of memory: a captured step keeps about ")
    assert losses == pytest.approx(train(make(capture=False), DeviceBatches(split(), "cuda"), 4), rel=0.02)


def test_a_step_that_synchronises_is_not_captured():
    engine = make()
    forward = engine.ensemble.base.forward

    def waits(x):
        x.sum().item()
        return forward(x)

    engine.ensemble.base.forward = waits
    train(engine, DeviceBatches(split(), "cuda"), 4)
    assert engine.eager_because is not None and "\n" not in engine.eager_because
