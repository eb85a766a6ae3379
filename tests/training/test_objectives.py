"""What each objective trains with: the engine's gradients against the formulas written out, and phases of a run."""

import copy
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from oekd_fast.config.command_line import RecipeOptions, parse_recipe_options
from oekd_fast.config.objectives import OBJECTIVES
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import DeviceBatches, Split
from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.runs import run as command
from oekd_fast.runs.device_data import DeviceData, dataset_of
from oekd_fast.runs.interrupt import StopRequest
from oekd_fast.runs.phase import Phase
from oekd_fast.runs.plan import phase_names, phase_task
from oekd_fast.runs.run import combined_accuracy, train
from oekd_fast.runs.run_folder import RunFolder
from oekd_fast.runs.tasks import PhaseResult
from oekd_fast.training.distillation import family_options, label_options
from oekd_fast.training.schedule import Schedule, copy_shares, ramp, rate_factors

from ..support.smooth_network import SMOOTH
from .test_engine import CPU, NORMALISATION, make_batch, make_engine, make_teacher

S = 3


def settings(objective, **fields):
    if OBJECTIVES[objective].teacher == "required":
        fields["teacher"] = "given"
    return TrainConfig(num_students=S, objective=objective, warmup_epochs=0, **fields)


def scale(images):
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in NORMALISATION)
    return (images.double() / 255 - mean) / std


def ce(z, y):
    return F.cross_entropy(z, y)


def kl(teacher, student, t):
    return (
        t
        * t
        * F.kl_div(F.log_softmax(student / t, dim=1), F.softmax(teacher.detach() / t, dim=1), reduction="batchmean")
    )


def mse(adapters, maps, targets):
    return sum(F.mse_loss(a(x), f.detach()) for a, x, f in zip(adapters, maps, targets, strict=True))


def written_out(objective, family, twin_teacher, pixels, y):
    """Each paper's loss on the whole family, by autograd, in fp64."""
    shared = family.base(scale(pixels))
    logits, maps = zip(*(branch(shared) for branch in family.branches), strict=True)
    if objective == "independent":
        return sum(ce(z, y) for z in logits)
    if objective in ("dml", "codistillation"):
        pairs = [(i, j) for i in range(S) for j in range(S) if i != j]
        return sum(ce(z, y) for z in logits) + sum(kl(logits[i], logits[j], 1.0) for i, j in pairs) / (S - 1)
    if objective == "one":
        scores = family.gate.norm(family.gate.linear(shared.mean(dim=(2, 3))))
        gate = torch.softmax(torch.relu(scores), dim=1)
        gated = sum(gate[:, j : j + 1] * z for j, z in enumerate(logits))
        return sum(ce(z, y) + kl(gated, z, 3.0) for z in logits) + ce(gated, y)
    if objective == "kd":
        with torch.no_grad():
            theirs, _ = twin_teacher.branch(twin_teacher.base(scale(pixels)))
        return sum(0.1 * ce(z, y) + 0.9 * kl(theirs, z, 4.0) for z in logits)
    assert objective == "fitnets"
    adapters = list(zip(*family.adapters, strict=True))
    if twin_teacher is None:
        hints, taught = maps[0], maps[1:]
    else:
        with torch.no_grad():
            _, hints = twin_teacher.branch(twin_teacher.base(scale(pixels)))
        taught = maps
    return sum(ce(z, y) for z in logits) + sum(mse(a, x, hints) for a, x in zip(adapters, taught, strict=True))


CASES = [
    *((name, False) for name in ("independent", "dml", "codistillation", "one", "fitnets")),
    ("kd", True),
    ("fitnets", True),
]


@pytest.mark.parametrize("executor", ["sequential", "parallel"])
@pytest.mark.parametrize(("objective", "external"), CASES)
def test_gradients_are_those_of_the_published_loss(objective, external, executor):
    teacher = make_teacher() if external else None
    fields = {"teacher": "given"} if external else {}
    engine, (pixels, labels) = (
        make_engine(settings(objective, executor=executor, **fields), teacher=teacher, architecture=SMOOTH),
        make_batch(16),
    )
    twin = copy.deepcopy(engine.ensemble).double().train()
    twin_teacher = None if teacher is None else copy.deepcopy(teacher.network).double().eval()
    loss = written_out(objective, twin, twin_teacher, pixels, labels)
    loss.backward()
    engine.train_step(pixels, labels)
    assert engine.metrics.read().loss == pytest.approx(loss.item(), rel=1e-5)
    for (name, ours), theirs in zip(engine.ensemble.named_parameters(), twin.parameters(), strict=True):
        if theirs.grad is None:
            assert ours.grad is None or not ours.grad.any(), name
        else:
            # A bias before BatchNorm has no gradient but rounding.
            distance = (ours.grad.double() - theirs.grad).norm()
            assert distance <= 1e-4 * theirs.grad.norm() + 1e-6, name


def test_a_gradient_through_the_gate_and_the_target_as_one_graph():
    split, whole = (make_engine(settings("one", detach_ensemble=detach)) for detach in (True, False))
    pixels, labels = make_batch(16)
    for engine in (split, whole):
        engine.train_step(pixels, labels)
    assert split.metrics.read().loss == pytest.approx(whole.metrics.read().loss, rel=1e-5)
    grads = [engine.ensemble.gate.linear.weight.grad for engine in (split, whole)]
    assert all(grad.isfinite().all() and grad.any() for grad in grads)
    assert not torch.allclose(*grads)


def test_an_evaluation_with_a_gate_weighs_the_students():
    engine, (pixels, labels) = make_engine(settings("one")), make_batch(16)
    read = engine.evaluator.evaluate(DeviceBatches(Split(pixels, labels), CPU))
    family = engine.ensemble.eval()
    with torch.no_grad():
        images = scale(pixels).float()
        shared, output = family.base(images), family(images)
        mixed = sum(w[:, None] * z for w, z in zip(family.gate(shared).unbind(1), output.logits, strict=True))
    assert read.ensemble_ce == pytest.approx(F.cross_entropy(mixed, labels).item(), rel=1e-5)


def test_probabilities_are_those_of_evaluation():
    engine, (pixels, labels) = make_engine(settings("independent")), make_batch(13)
    found = engine.evaluator.probabilities(DeviceBatches(Split(pixels, labels), CPU))
    with torch.no_grad():
        output = engine.ensemble.eval()(scale(pixels).float())
    expected = torch.stack([z.softmax(dim=1) for z in output.logits])
    assert found.shape == (S, 13, 10)
    torch.testing.assert_close(found, expected)


def test_copies_are_as_old_as_the_delay_says():
    config = settings("codistillation", codistillation_delay=3, learning_rate=0.05)
    engine, (pixels, labels) = make_engine(config, architecture=SMOOTH), make_batch(16)
    seen = []
    for _ in range(5):
        before = {name: tensor.clone() for name, tensor in engine.ensemble.named_parameters()}
        engine.train_step(pixels, labels)
        copies = dict(engine._copies.ensemble.named_parameters())
        seen.append(all(torch.allclose(copies[name], tensor, atol=1e-6) for name, tensor in before.items()))
    assert seen == [True, False, False, True, False]


def test_students_learn_from_the_copies_and_not_from_each_other():
    """A step from copies that are exact differs from one without delay by the statistics of BatchNorm alone."""
    config = settings("codistillation", codistillation_delay=1)
    engine, (pixels, labels) = make_engine(config, architecture=SMOOTH), make_batch(16)
    twin = copy.deepcopy(engine.ensemble).double()
    shared = twin.train().base(scale(pixels))
    logits = [branch(shared)[0] for branch in twin.branches]
    still = copy.deepcopy(engine.ensemble).double().eval()
    with torch.no_grad():
        copies = still(scale(pixels)).logits
    loss = sum(ce(z, labels) for z in logits)
    for j, z in enumerate(logits):
        loss = loss + sum(kl(copies[i], z, 1.0) for i in range(S) if i != j) / (S - 1)
    loss.backward()
    engine.train_step(pixels, labels)
    read = engine.metrics.read()
    assert read.loss == pytest.approx(loss.item(), rel=1e-5)
    assert len(read.kd) == S and len(read.accuracy) == S
    for (name, ours), theirs in zip(engine.ensemble.named_parameters(), twin.parameters(), strict=True):
        if theirs.grad is not None:
            assert (ours.grad.double() - theirs.grad).norm() <= 1e-4 * theirs.grad.norm() + 1e-6, name


def test_a_base_that_learns_from_the_pseudo_teacher_alone():
    pixels, labels = make_batch(16)
    engine = make_engine(
        TrainConfig(num_students=S, warmup_epochs=0, base_gradients="pseudo_teacher"), architecture=SMOOTH
    )
    twin = copy.deepcopy(engine.ensemble).double().train()
    logits = twin(scale(pixels)).logits
    mean = torch.stack(logits).mean(0)
    (0.7 * ce(logits[0], labels) + 0.15 * kl(mean, logits[0], 2.0)).backward()
    engine.train_step(pixels, labels)
    for ours, theirs in zip(engine.ensemble.base.parameters(), twin.base.parameters(), strict=True):
        assert (ours.grad.double() - theirs.grad).norm() <= 1e-4 * theirs.grad.norm()
    assert all(p.grad.any() for p in engine.ensemble.branches[2].stages[2].parameters())


@pytest.mark.parametrize("detach", [True, False])
def test_a_frozen_base_keeps_weights_and_statistics(detach):
    pixels, labels = make_batch(16)
    engine = make_engine(
        TrainConfig(num_students=S, warmup_epochs=0, freeze_base=True, detach_ensemble=detach), architecture=SMOOTH
    )
    before = copy.deepcopy(engine.ensemble.state_dict())
    for _ in range(2):
        engine.train_step(pixels, labels)
    for name, tensor in engine.ensemble.state_dict().items():
        if name.startswith("base."):
            assert torch.equal(tensor, before[name]), name
    assert not torch.equal(engine.ensemble.branches[1].classifier.weight, before["branches.1.classifier.weight"])


def test_copies_and_gate_are_part_of_what_is_saved():
    pixels, labels = make_batch(16)
    for config in (settings("codistillation", codistillation_delay=2), settings("one")):
        first = make_engine(config)
        first.train_step(pixels, labels)
        saved = copy.deepcopy(first.state_dict())
        second = make_engine(config)
        second.load_state_dict(saved)
        for engine in (first, second):
            engine.train_step(pixels, labels)
        for name, tensor in first.ensemble.state_dict().items():
            assert torch.equal(tensor, second.ensemble.state_dict()[name]), name


# -- schedules


def test_ramps():
    t = torch.tensor([0, 1, 2, 3, 4, 4, 4], dtype=torch.float64) / 4
    assert torch.equal(ramp("constant", 7, 4), torch.ones(7, dtype=torch.float64))
    torch.testing.assert_close(ramp("linear", 7, 4), t)
    torch.testing.assert_close(ramp("cosine", 7, 4), 0.5 - 0.5 * torch.cos(torch.pi * t))
    torch.testing.assert_close(ramp("sigmoid", 7, 4), torch.exp(-5 * (1 - t) ** 2))
    assert torch.equal(ramp("linear", 3, 0), torch.ones(3, dtype=torch.float64))


def test_copies_every_so_many_steps():
    assert copy_shares(3, 7).tolist() == [1, 0, 0, 1, 0, 0, 1]
    assert copy_shares(0, 3).tolist() == [0, 0, 0]


def test_a_scheduled_temperature_and_weight_are_what_a_step_reads():
    config = TrainConfig(
        epochs=2, temperature_schedule="linear", temperature_start=1.0, temperature=3.0, kd_schedule="linear",
        feature_schedule="cosine", ramp_epochs=1.0, warmup_epochs=0,
    )  # fmt: skip
    schedule = Schedule(config, family_options(config), 4, CPU)
    read = []
    for _ in range(6):
        schedule.load()
        read.append([schedule.temperature.item(), schedule.kd_weight.item(), schedule.feature_weight.item()])
    expected = [1.0, 1.5, 2.0, 2.5, 3.0, 3.0]
    assert [row[0] for row in read] == pytest.approx(expected)
    assert [row[1] for row in read] == pytest.approx([0.15 * (t - 1) / 2 for t in expected])
    assert read[0][2] == 0 and read[2][2] == pytest.approx(0.075) and read[5][2] == pytest.approx(0.15)


def test_a_cyclic_rate_starts_again_for_each_snapshot():
    config = TrainConfig(objective="snapshot", schedule="cyclic", snapshots=2, epochs=5, warmup_epochs=0)
    factors = rate_factors(config, 4)
    starts = [i for i in range(20) if factors[i] == 1.0]
    assert starts == [0, 12]  # cycles of 3 and 2 epochs: their lengths differ by one epoch at most
    for start, length in ((0, 12), (12, 8)):
        steps = torch.arange(length, dtype=torch.float64)
        torch.testing.assert_close(factors[start : start + length], 0.5 + 0.5 * torch.cos(torch.pi * steps / length))


def test_an_exponential_rate():
    config = TrainConfig(schedule="exponential", decay=0.97, decay_epochs=3, epochs=7, warmup_epochs=0)
    assert rate_factors(config, 2).tolist() == pytest.approx([1.0] * 6 + [0.97] * 6 + [0.97**2] * 2)


# -- phases


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({}, ["ensemble"]),
        ({"baseline": True, "num_students": 2}, ["ensemble", "baseline_1", "baseline_2"]),
        ({"pretrain_epochs": 2}, ["pretraining", "ensemble"]),
        ({"objective": "born_again", "generations": 3, "baseline": True},
         ["generation_1", "generation_2", "ensemble", "baseline_1"]),
        ({"objective": "snapshot", "schedule": "cyclic", "baseline": True}, ["ensemble", "baseline_1"]),
    ],
)  # fmt: skip
def test_phases_of_a_run(fields, names):
    assert phase_names(TrainConfig(**fields)) == names


RUN = TrainConfig(
    dataset="digits", num_students=2, epochs=2, batch_size=128, train_images=256, progress=False, augment=False
)


def run(folder, **fields):
    return train(replace(RUN, output_dir=folder, **fields), Console(quiet=True))


@pytest.mark.parametrize(
    "fields",
    [
        {"objective": "snapshot", "schedule": "cyclic", "snapshots": 2},
        {"objective": "born_again", "generations": 2},
    ],
    ids=["snapshot", "born_again"],
)
def test_one_network_and_the_mean_of_what_it_was(tmp_path, fields):
    summary = run(tmp_path / "run", **fields)
    assert [student["index"] for student in summary["students"]] == [1]
    assert summary["objective"] == fields["objective"]
    assert 0 <= summary["ensemble_accuracy"] <= 100
    assert [path.name for path in sorted((tmp_path / "run/students").iterdir())] == [
        "student_1.json",
        "student_1.safetensors",
    ]
    assert json.loads((tmp_path / "run/summary.json").read_text())["ensemble_accuracy"] == summary["ensemble_accuracy"]


@pytest.mark.parametrize(
    ("fields", "networks"),
    [
        ({"objective": "snapshot", "schedule": "cyclic", "snapshots": 2, "track_test": True}, 2),
        ({"objective": "born_again", "generations": 3, "epochs": 1, "track_test": True}, 3),
    ],
    ids=["snapshot", "born_again"],
)
def test_the_ensemble_is_the_mean_prediction_of_what_the_network_was(tmp_path, monkeypatch, fields, networks):
    seen = []
    monkeypatch.setattr(command, "combined_accuracy", lambda *args: seen.append(args) or combined_accuracy(*args))
    # At this rate each network alone is far from the mean of all.
    summary = run(tmp_path / "run", batch_size=64, learning_rate=0.1, warmup_epochs=0.0, **fields)
    ((_, _, results, data, labels),) = seen
    states = results["ensemble"].snapshots or [result.ensemble.state_dict() for result in results.values()]
    assert len(states) == networks
    test, (mean, std) = dataset_of(RUN).test, data.normalisation
    images = (test.images / 255 - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    network, total = build_ensemble("resnet20", 2, 10, 1, (0,)).eval(), 0
    for state in states:
        network.load_state_dict(state)
        with torch.no_grad():
            total = total + network(images).logits[0].softmax(dim=1)
    right = (total.argmax(dim=1) == labels).sum().item()
    # An image may be at a tie up to rounding.
    assert summary["ensemble_accuracy"] == pytest.approx(100 * right / len(labels), abs=100.5 / len(labels))
    # At the last epoch there are the same snapshots, but no generations that go with it.
    last = summary["ensemble_accuracy"] if fields["objective"] == "snapshot" else None
    assert summary["last_epoch_ensemble_accuracy"] == last and summary["best_test_ensemble_accuracy"] is None
    assert summary["students"][0]["best_test_accuracy"] is not None


def test_labels_alone_have_their_weight_at_once(tmp_path):
    config = replace(RUN, ce_schedule="linear", baseline=True, pretrain_epochs=1, output_dir=tmp_path / "run")
    born_again = replace(config, objective="born_again", generations=2, pretrain_epochs=0)
    weights = {}
    for chosen in (config, born_again):
        data, results = DeviceData.of(dataset_of(chosen), chosen, CPU), {}
        for name in phase_names(chosen):
            phase = Phase(phase_task(name, chosen, data, results, None), chosen, data, RunFolder(chosen), CPU)
            phase.engine.schedule.load()
            weights[chosen.objective, name] = phase.engine.schedule.ce_weight.item()
            results[name] = PhaseResult(phase.engine.ensemble, 1, [], None, None, 1.0, 1.0)
    taught = [("oekd", "ensemble"), ("born_again", "ensemble")]
    assert len(weights) == 7 and weights == {key: 0.0 if key in taught else 1.0 for key in weights}


def test_the_family_starts_as_the_pretrained_student(tmp_path):
    config = replace(RUN, pretrain_epochs=1, output_dir=tmp_path / "run")
    data, folder, results = DeviceData.of(dataset_of(config), config, CPU), RunFolder(config), {}

    def phase(name):
        return Phase(phase_task(name, config, data, results, None), config, data, folder, CPU)

    untaught = phase("ensemble").engine.ensemble.student(0).state_dict()
    folder.claim(config)
    results["pretraining"] = phase("pretraining").run(StopRequest(), Console(quiet=True))
    family, taught = phase("ensemble").engine.ensemble, results["pretraining"].ensemble.student(0).state_dict()
    for name, tensor in family.student(0).state_dict().items():
        assert torch.equal(tensor, taught[name]), name
    assert not torch.equal(taught["branch.classifier.weight"], untaught["branch.classifier.weight"])


def test_pretraining_is_where_the_family_starts(tmp_path):
    run(tmp_path / "run", pretrain_epochs=1, freeze_base=True)
    saved = {
        name: torch.load(max((tmp_path / "run/checkpoints" / name).glob("*.pt")), weights_only=False)
        for name in ("pretraining", "ensemble")
    }
    states = [state.get("state", state) for state in saved.values()]
    models = [state["engine"]["model"] for state in states]
    for name in models[0]:
        if name.startswith("base.") and "num_batches" not in name:
            assert torch.equal(models[0][name], models[1][name]), name


def test_a_teacher_from_a_run_teaches_another(tmp_path):
    run(tmp_path / "first", epochs=1)
    teacher = tmp_path / "first/students/student_1"
    summary = run(tmp_path / "second", objective="kd", teacher=teacher, epochs=1)
    assert len(summary["students"]) == 2
    config = json.loads((tmp_path / "second/config.json").read_text())
    assert config["teacher"] == str(teacher) and config["temperature"] == 4.0


def test_a_teacher_of_other_classes_is_refused():
    teacher = make_teacher()
    with pytest.raises(ValueError, match="teacher: expected 100 classes, as the data set has, got 10 in a/b"):
        teacher.check_fits(100, 3, "a/b")
    with pytest.raises(ValueError, match="teacher: expected 1 channels of images, as the data set has, got 3"):
        teacher.check_fits(10, 1, "a/b")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective": "oked"}, "objective: did you mean oekd or kd\\? expected one of oekd, kd, .* got 'oked'"),
        ({"objective": "kd"}, "teacher: expected the path of a saved student with objective='kd', got None"),
        ({"teacher": "x"}, "teacher: expected none but with objective kd or fitnets, got x with 'oekd'"),
        ({"objective": "one", "num_students": 1}, "num_students: expected at least 2 with objective='one', got 1"),
        ({"objective": "dml", "num_students": 1}, "num_students: expected at least 2 with objective='dml', got 1"),
        ({"objective": "fitnets", "num_students": 1},
         "num_students: expected at least 2 with objective='fitnets' and no teacher, got 1"),
        ({"objective": "dml", "detach_ensemble": False}, "detach_ensemble: expected True with objective='dml'"),
        ({"codistillation_delay": 2}, "codistillation_delay: expected 0 but with objective='codistillation', got 2"),
        ({"schedule": "cyclic"}, "schedule: expected cyclic with objective='snapshot' alone, got it with 'oekd'"),
        ({"objective": "snapshot"}, "snapshots: expected schedule='cyclic' .* got schedule='multistep'"),
        ({"objective": "snapshot", "schedule": "cyclic", "epochs": 4}, "'cyclic', 5 snapshots in 4 epochs"),
        ({"objective": "born_again", "pretrain_epochs": 1}, "pretrain_epochs: expected none with objective"),
        ({"generations": 0}, "generations: expected an integer >= 1, got 0"),
        ({"pretrain_epochs": -1}, "pretrain_epochs: expected an integer >= 0, got -1"),
        ({"ramp_epochs": -1.0}, "ramp_epochs: expected a finite number >= 0, got -1.0"),
        ({"temperature_start": 0.0}, "temperature_start: expected a finite number > 0, got 0.0"),
    ],
)  # fmt: skip
def test_bad_configurations(fields, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**fields)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--objective", "one"], (3.0, 1.0, 1.0)),
        (["--objective", "dml", "--kd-weight", "0.5"], (1.0, 1.0, 0.5)),
        (["--objective", "kd", "--teacher", "x/student_1"], (4.0, 0.1, 0.9)),
        (["--recipe", "paper/cifar100/resnet32", "--objective", "one"], (3.0, 1.0, 1.0)),
        (["--recipe", "published/cifar10/resnet20"], (3.0, 0.4, 0.4)),
    ],
)
def test_the_command_line_takes_the_objectives_own_values(arguments, expected):
    weights = parse_recipe_options(RecipeOptions, "test", arguments).config.loss_weights
    assert (weights.temperature, weights.ce_weight, weights.kd_weight) == expected


def test_a_network_alone_learns_from_plain_cross_entropy():
    options = label_options(TrainConfig(label_smoothing=0.1))
    assert (options.ce_weight, options.kd_weight, options.label_smoothing) == (1.0, 0.0, 0.1)
