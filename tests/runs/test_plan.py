"""The phases of a run: their order, what each starts from, and the mean prediction of several networks."""

import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.distributed.world import ALONE
from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.family.flops import family_flops
from oekd_fast.models import get_architecture
from oekd_fast.runs import run as command
from oekd_fast.runs.device_data import DeviceData, dataset_of
from oekd_fast.runs.interrupt import StopRequest
from oekd_fast.runs.phase import Phase
from oekd_fast.runs.plan import phase_names, phase_task, phase_works
from oekd_fast.runs.progress import RunProgress
from oekd_fast.runs.run import combined_accuracy, train
from oekd_fast.runs.run_folder import RunFolder
from oekd_fast.runs.stop_vote import StopVote
from oekd_fast.runs.tasks import PhaseResult

from ..support.small_runs import CPU


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
def test_phase_names(fields, names):
    assert phase_names(TrainConfig(**fields)) == names


def test_the_work_of_a_phase_follows_from_its_students():
    config = TrainConfig(num_students=3, epochs=7, pretrain_epochs=2, baseline=True, train_images=300)
    data = DeviceData.of(dataset_of(config), config, CPU)
    works = phase_works(config, data, get_architecture("resnet20"), 8)
    base, branches = family_flops(build_ensemble("resnet20", 3, 10, 1), 8)
    alone = [base + branch for branch in branches]
    assert [(work.name, work.epochs, work.students, work.flops) for work in works] == [
        ("pretraining", 2, 1, alone[0]),
        ("ensemble", 7, 3, base + sum(branches)),
        *((f"baseline_{j}", 7, 1, flops) for j, flops in enumerate(alone, start=1)),
    ]
    train, validation, test = len(data.train), len(data.validation), len(data.test)
    assert {(work.evaluation, work.closing) for work in works} == {(validation / (3 * train), 2 * test / (3 * train))}
    (single,) = phase_works(replace(config, pretrain_epochs=0, baseline=False, test_flips=True), data, None, 8)
    assert (single.name, single.students, single.closing) == ("ensemble", 3, 4 * test / (3 * train))


RUN = TrainConfig(
    dataset="digits",
    num_students=2,
    epochs=2,
    batch_size=128,
    train_images=256,
    progress=False,
    augment=False,
    latency="off",
)


def run(folder, **fields):
    return train(replace(RUN, output_dir=folder, **fields), Console(quiet=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"objective": "snapshot", "schedule": "cyclic", "snapshots": 2},
        {"objective": "born_again", "generations": 2},
    ],
    ids=["snapshot", "born_again"],
)
def test_objectives_of_one_network_save_one_student(tmp_path, fields):
    summary = run(tmp_path / "run", **fields)
    assert [student["index"] for student in summary["students"]] == [1]
    assert summary["objective"] == fields["objective"]
    assert 0 <= summary["ensemble_accuracy"] <= 100
    assert [path.name for path in sorted((tmp_path / "run/students").iterdir())] == [
        "student_1.json",
        "student_1.safetensors",
    ]
    assert json.loads((tmp_path / "run/summary.json").read_text())["ensemble_accuracy"] == summary["ensemble_accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "networks"),
    [
        ({"objective": "snapshot", "schedule": "cyclic", "snapshots": 2, "track_test": True, "test_flips": True}, 2),
        ({"objective": "born_again", "generations": 3, "epochs": 1, "track_test": True}, 3),
    ],
    ids=["snapshot", "born_again"],
)
def test_the_ensemble_accuracy_is_that_of_the_mean_prediction(tmp_path, monkeypatch, fields, networks):
    seen = []

    def noted(*args, flips=False):
        seen.append(args)
        return combined_accuracy(*args, flips=flips)

    monkeypatch.setattr(command, "combined_accuracy", noted)
    # With this learning rate the predictions of the networks differ clearly from their mean.
    summary = run(tmp_path / "run", batch_size=64, learning_rate=0.1, warmup_epochs=0.0, **fields)
    (_, _, results, data, labels), *with_flips = seen
    states = results["ensemble"].snapshots or [result.ensemble.state_dict() for result in results.values()]
    assert len(states) == networks
    test, (mean, std) = dataset_of(RUN).test, data.normalisation
    images = (test.images / 255 - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    network, plain, flipped = build_ensemble("resnet20", 2, 10, 1, (0,)).eval(), 0, 0
    for state in states:
        network.load_state_dict(state)
        with torch.no_grad():
            logits = network(images).logits[0]
            plain = plain + logits.softmax(dim=1)
            flipped = flipped + ((logits + network(images.flip(3)).logits[0]) / 2).softmax(dim=1)
    expected = {"ensemble_accuracy": plain} | ({"ensemble_accuracy_with_flips": flipped} if with_flips else {})
    for name, total in expected.items():
        right = (total.argmax(dim=1) == labels).sum().item()
        # One image may be tied up to rounding.
        assert summary[name] == pytest.approx(100 * right / len(labels), abs=100.5 / len(labels)), name
    assert (summary["ensemble_accuracy_with_flips"] is None) == (not with_flips)
    # Snapshots do not depend on the epoch; generations are combined at their selected epochs only.
    last = summary["ensemble_accuracy"] if fields["objective"] == "snapshot" else None
    assert summary["last_epoch_ensemble_accuracy"] == last and summary["best_test_ensemble_accuracy"] is None
    assert summary["students"][0]["best_test_accuracy"] is not None


def test_phases_that_learn_from_labels_alone_do_not_ramp_their_weight(tmp_path):
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


def test_student_1_of_the_family_starts_with_the_pretrained_weights(tmp_path):
    config = replace(RUN, pretrain_epochs=1, output_dir=tmp_path / "run")
    data, folder, results = DeviceData.of(dataset_of(config), config, CPU), RunFolder(config), {}

    def phase(name):
        return Phase(phase_task(name, config, data, results, None), config, data, folder, CPU)

    untaught = phase("ensemble").engine.ensemble.student(0).state_dict()
    folder.claim(config)
    results["pretraining"] = phase("pretraining").run(
        StopVote(StopRequest(), ALONE), RunProgress(Console(quiet=True), None)
    )
    family, taught = phase("ensemble").engine.ensemble, results["pretraining"].ensemble.student(0).state_dict()
    for name, tensor in family.student(0).state_dict().items():
        assert torch.equal(tensor, taught[name]), name
    assert not torch.equal(taught["branch.classifier.weight"], untaught["branch.classifier.weight"])


@pytest.mark.slow
def test_a_frozen_base_keeps_its_pretrained_weights(tmp_path):
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
