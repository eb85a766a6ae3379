"""Training steps that several ranks do together, as functions that a rank of `support.ranks` can run."""

import hashlib

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import Augmentation
from oekd_fast.distributed.grid import StudentGrid
from oekd_fast.distributed.world import World
from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.family.flops import family_flops
from oekd_fast.family.teacher import Teacher
from oekd_fast.losses.ensemble_kd import ensemble_kd_loss
from oekd_fast.training.distillation import family_options
from oekd_fast.training.engine import Engine
from oekd_fast.training.prepare import prepare_family
from oekd_fast.training.preprocessing import Preprocessing

from .engines import CPU, NORMALISATION, make_batch, make_teacher, network_input
from .smooth_network import PLAIN, SMOOTH


class WidePreprocessing(Preprocessing):
    """Preprocessing whose images are float64."""

    def normalised(self, pixels):
        return network_input(pixels.double())


class WideTeacher(Teacher):
    """Teacher that computes in float64."""

    def forward(self, images, memory_format):
        return self.network.branch(self.network.base(network_input(images.double())))


def class_weights(config):
    """Return weights of ten classes if `config` asks for weights."""
    return torch.linspace(0.2, 1.8, 10, dtype=torch.float64) if config.class_weights == "balanced" else None


def engine_of(world, fields, *, network=SMOOTH, wide=True, student_ranks=1):
    """Build an engine for `network`; `wide` computes in float64."""
    config = TrainConfig(**{"num_students": 3, "warmup_epochs": 0, "executor": "sequential"} | fields)
    teacher = None if config.teacher is None else make_teacher()
    torch.manual_seed(0)
    hints = (16, 32, 64) if config.family_objective.hints and teacher is not None else None
    family = build_ensemble(
        network, config.num_students, 10, 3, gated=config.family_objective.gated, hint_channels=hints,
        helpers=config.family_objective.helpers,
    )  # fmt: skip
    if config.channels_last:
        family = family.to(memory_format=torch.channels_last)
    if wide:
        family = family.double()
        if teacher is not None:
            teacher = teacher.double()
            teacher.__class__ = WideTeacher
    grid = None
    if student_ranks > 1:
        grid = StudentGrid.of(world, family_flops(family, 8).branches, student_ranks, "cpu")
    engine = Engine(
        config, prepare_family(family, config, world), family_options(config, class_weights(config)), device=CPU,
        normalisation=NORMALISATION, augmentation=Augmentation(pad=1, flip=True), steps_per_epoch=10,
        teacher=teacher, world=world, grid=grid,
    )  # fmt: skip
    if wide:
        engine._preprocessing.__class__ = WidePreprocessing
    return engine


def state_of(engine):
    """Return copies of the weights, of the moving average if there is one, and the metrics over all ranks."""
    state = {name: tensor.clone() for name, tensor in engine.ensemble.state_dict().items()}
    if engine.average is not None:
        state |= {f"average.{name}": tensor.clone() for name, tensor in engine.average.state_dict().items()}
    return state, engine.metrics.read().as_dict()


def train(world, fields, steps, rows, network="smooth", wide=True, student_ranks=1):
    """Return the state after `steps` steps on a batch of `rows` images."""
    engine = engine_of(
        world, fields, network=PLAIN if network == "plain" else SMOOTH, wide=wide, student_ranks=student_ranks
    )
    images, labels = make_batch(rows)
    for _ in range(steps):
        engine.train_step(images, labels)
    engine.collect()
    return state_of(engine)


def digests(world, fields, steps, rows):
    """Return a digest of the weights and of the optimizer's state after each step, in float32."""
    engine = engine_of(world, fields, wide=False)
    images, labels = make_batch(rows)
    found = []
    for _ in range(steps):
        engine.train_step(images, labels)
        digest = hashlib.sha256()
        for name, tensor in engine.tensors().items():
            if name == "metrics.sums":  # of the rank's own images
                continue
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
        found.append(digest.hexdigest())
    sent = engine.buckets.elements
    return found, sent


def parts_in_one_process(world, fields, steps, rows, size):
    """Return the weights of one process that computes the parts of all ranks in turn, with statistics of each part.

    Gradients and running statistics are added up in the order of ranks.
    """
    engine, (images, labels) = engine_of(world, fields, wide=False), make_batch(rows)
    family, real_step = engine.ensemble, engine.scaler.step
    engine.scaler.step = lambda optimizer: None
    statistics = [b for name, b in family.named_buffers() if "running" in name]
    for _ in range(steps):
        random = engine.generators["augmentation"].get_state()
        before = [b.clone() for b in statistics]
        counts = {n: b.clone() for n, b in family.named_buffers() if "num_batches" in n}
        grads, means = None, None
        for rank in range(size):
            part = World(rank, size).part(rows)
            engine.generators["augmentation"].set_state(random)
            for own, old in zip(statistics, before, strict=True):
                own.copy_(old)
            for name, count in counts.items():
                family.get_buffer(name).copy_(count)
            engine._train_on(*engine._source.augmented(images[part.rows], labels[part.rows], part), part)
            own_grads = [p.grad.clone() for p in family.parameters()]
            own_means = [b * part.share for b in statistics]
            grads = own_grads if grads is None else [a + b for a, b in zip(grads, own_grads, strict=True)]
            means = own_means if means is None else [a + b for a, b in zip(means, own_means, strict=True)]
        for parameter, grad in zip(family.parameters(), grads, strict=True):
            parameter.grad.copy_(grad)
        for own, mean in zip(statistics, means, strict=True):
            own.copy_(mean)
        real_step(engine.optimizer)
        engine.schedule.count()
    return {name: tensor.clone() for name, tensor in family.state_dict().items()}


class WithAdapters(nn.Module):
    """A branch and the adapters of its student in one module, as DistributedDataParallel needs it."""

    def __init__(self, branch, adapters):
        super().__init__()
        self.branch, self.adapters = branch, nn.ModuleList(adapters)

    def forward(self, shared):
        logits, maps = self.branch(shared)
        return logits, maps, [adapter(m) for adapter, m in zip(self.adapters, maps, strict=False)]


def train_with_ddp(world, fields, steps, rows):
    """Return the weights after the steps of a trainer with one DistributedDataParallel a student, in float64."""
    engine = engine_of(world, fields, network=PLAIN)
    family, (images, labels) = engine.ensemble, make_batch(rows)
    base = DistributedDataParallel(family.base)
    students = [
        DistributedDataParallel(WithAdapters(branch, [of_block[j - 1] for of_block in family.adapters] if j else []))
        for j, branch in enumerate(family.branches)
    ]
    part = world.part(rows)
    for _ in range(steps):
        engine.optimizer.zero_grad()
        engine.schedule.load()
        pixels = engine._preprocessing.augmented(images[part.rows], engine.generators["augmentation"], part)
        shared = base(engine._preprocessing.normalised(pixels))
        logits, maps, adapted = zip(*(student(shared) for student in students), strict=True)
        loss = ensemble_kd_loss(
            logits, labels[part.rows], temperature=engine.schedule.temperature, ce_weight=engine.schedule.ce_weight,
            kd_weight=engine.schedule.kd_weight,
        ).loss  # fmt: skip
        for j in range(1, len(students)):
            for target, own in zip(maps[0], adapted[j], strict=True):
                loss = loss + engine.schedule.feature_weight * (own - target.detach()).square().mean()
        loss.backward()
        engine.optimizer.step()
        engine.schedule.count()
    return {name: tensor.clone() for name, tensor in family.state_dict().items()}
