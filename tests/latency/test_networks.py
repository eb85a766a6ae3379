"""The networks that are measured, in PyTorch and as ONNX models that are cut from one export of the family."""

from importlib.metadata import version as installed

import numpy as np
import pytest
import torch

from oekd_fast.family.exporting import onnx_format
from oekd_fast.family.exporting.networks import family_outputs
from oekd_fast.latency import measure, onnx
from oekd_fast.latency.measure import measure_students
from oekd_fast.latency.networks import networks_of, size_of
from oekd_fast.latency.onnx import Onnx, TooSlowError, export_in_time, version
from oekd_fast.latency.timing import Timing

CPU, FLOPS = torch.device("cpu"), [2000, 1000]
IMAGES = torch.randint(256, (3, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_the_networks_are_the_students_and_their_ensemble(saved_family):
    family, students = saved_family
    scaled = (IMAGES.float() / 255 - 0.5) / 0.25
    expected = family(scaled).logits
    _, gate = family.forward_gated(scaled)
    weighted = (gate.T[:, :, None] * torch.stack(expected)).sum(0)
    for own_gate, combined in ((None, sum(expected) / 2), (family.gate, weighted)):
        *of_students, ensemble = networks_of(students, FLOPS, own_gate)
        assert [network.cost for network in (*of_students, ensemble)] == [2000, 1000, 3000]
        for network, logits in zip(of_students, expected, strict=True):
            torch.testing.assert_close(network.module(IMAGES), logits)
        torch.testing.assert_close(ensemble.module(IMAGES)["ensemble"], combined)
    assert len(networks_of(students[:1], FLOPS[:1])) == 1


def test_the_base_counts_once_in_the_size_of_the_ensemble(saved_family):
    family, students = saved_family
    size = size_of(family_outputs(students, family.gate))
    assert size["parameters"] == sum(p.numel() for p in family.network_parameters())
    base = sum(p.numel() for p in family.base.parameters())
    without_gate = size_of(family_outputs(students))["parameters"]
    assert without_gate == sum(student.metadata.parameters for student in students) - base
    assert size["file_bytes"] > 4 * size["parameters"]  # statistics of norms


@pytest.mark.slow
def test_the_models_compute_what_the_networks_do(saved_family, one_thread):
    """Each model is run with one and several images."""
    family, students = saved_family
    networks = networks_of(students, FLOPS, family.gate)
    models = export_in_time(networks, 1e6, lambda: False)
    session = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed").InferenceSession
    for network, model in zip(networks, models, strict=True):
        with torch.no_grad():
            for images in (IMAGES, IMAGES[:1]):
                expected = network.module(images)
                expected = list(expected.values()) if isinstance(expected, dict) else [expected]
                found = session(model).run(None, {"images": images.numpy()})
                for one, other in zip(found, expected, strict=True):
                    np.testing.assert_allclose(one, other.numpy(), rtol=1e-4, atol=1e-5)
    with Onnx(models).calls(1, IMAGES) as calls:
        assert len(calls) == 3 and all(call() > 0 for call in calls)
    assert version() == installed("onnxruntime")


def test_rows_of_onnx_follow_those_of_pytorch(students, one_thread, monkeypatch):
    """The ensemble may be missing in a runtime; the students may not."""

    class Fake(measure.Eager):
        name = "onnx"

        def __init__(self, models):
            assert models == [b"1", b"2", b"3"]
            super().__init__(networks_of(students, FLOPS), CPU)

    monkeypatch.setattr(measure, "export_in_time", lambda *_: [b"1", b"2", b"3"])
    monkeypatch.setattr(measure, "Onnx", Fake)
    monkeypatch.setattr(measure, "time_in_turns", lambda calls, *_, **__: [Timing(((1.0,),) * 5) for _ in calls])
    report = measure_students(students, FLOPS, device=CPU, seconds=1e6)
    expected = [f"{runtime}, 1 thread, batch {batch}" for runtime in ("eager", "onnx") for batch in (1, 64)]
    assert [str(row.setting) for row in report.ensemble] == expected
    assert report.notes == () and report.machine["onnxruntime"] == installed("onnxruntime")


@pytest.mark.parametrize(("seconds", "stopped"), [(0.0, False), (1e6, True)])
def test_without_time_nothing_is_exported(students, monkeypatch, seconds, stopped):
    monkeypatch.setattr(onnx, "trace", lambda *_, **__: pytest.fail("traced"))
    with pytest.raises(TooSlowError, match="^exporting takes too long$"):
        export_in_time(networks_of(students, FLOPS), seconds, lambda: stopped)


@pytest.mark.parametrize(("of_smallest", "of_family", "begun"), [(40.0, 1.0, 1), (1.0, 30.0, 2), (1.0, 5.0, 3)])
def test_no_step_is_begun_that_is_expected_to_take_too_long(students, monkeypatch, of_smallest, of_family, begun):
    """The traces of the smallest student and of the family take these times, and the encoding takes 25 of 100 s."""
    durations, steps = iter([of_smallest, of_family]), []

    def timed(network, example):
        steps.append(network)
        return "program", next(durations)

    def encode(*arguments):
        steps.append("encoded")
        return b"model"

    monkeypatch.setattr(onnx, "_timed_trace", timed)
    monkeypatch.setattr(onnx, "encode", encode)
    monkeypatch.setattr(onnx, "_cut", lambda model, output: output.encode())
    networks = networks_of(students, FLOPS)
    if begun < 3:
        with pytest.raises(TooSlowError):
            export_in_time(networks, 100.0, lambda: False)
    else:
        assert export_in_time(networks, 100.0, lambda: False) == [b"logits_1", b"logits_2", b"model"]
    assert steps == [networks[1], networks[2], "encoded"][:begun]


def test_one_network_is_one_model(students, monkeypatch):
    monkeypatch.setattr(onnx, "_timed_trace", lambda *_: ("program", 1.0))
    monkeypatch.setattr(onnx, "encode", lambda *_: b"model")
    assert export_in_time(networks_of(students[:1], FLOPS[:1]), 100.0, lambda: False) == [b"model"]


def test_a_missing_package_is_a_note(students, one_thread, monkeypatch):
    def missing(name, purpose, extra):
        raise ImportError(f"{purpose} the package {name}: pip install 'oekd_fast[{extra}]'")

    monkeypatch.setattr(onnx_format, "require", missing)
    monkeypatch.setattr(measure, "time_in_turns", lambda calls, *_, **__: [Timing(((1.0,),) * 5) for _ in calls])
    report = measure_students(students, FLOPS, device=CPU, seconds=1e6)
    note = "onnx: not measured (ImportError: ONNX files need the package onnx: pip install 'oekd_fast[export]')"
    assert report.notes == (note,) and "onnxruntime" not in report.machine
    assert len(report.students[0]) == 2


def test_a_family_that_is_too_large_for_a_file_is_refused(students, monkeypatch):
    monkeypatch.setattr(onnx, "LARGEST", 100)
    with pytest.raises(ValueError, match="^the family is too large for one ONNX file$"):
        export_in_time(networks_of(students, FLOPS), 1e6, lambda: False)
