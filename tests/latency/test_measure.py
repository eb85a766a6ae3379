"""What is measured, in which settings, and what stays as it was."""

import json
from contextlib import contextmanager

import pytest
import torch

from oekd_fast.latency import measure
from oekd_fast.latency.measure import measure_students
from oekd_fast.latency.result import Latency, Setting
from oekd_fast.latency.timing import Timing

pytestmark = pytest.mark.usefixtures("without_onnx")

CPU, FLOPS = torch.device("cpu"), [2000, 1000]
NO_ONNX = "onnx: not measured (TooSlowError: exporting takes too long)"


@pytest.fixture
def instant(monkeypatch):
    """Replace the timing of calls: each of them is called once and takes as long as its cost says."""
    asked = []

    def timed(calls, costs, limit, target, **options):
        asked.append((torch.get_num_threads(), limit))
        for call in calls:
            assert call() > 0
        return [Timing(((cost / 1e6,),) * 5) for cost in costs]

    monkeypatch.setattr(measure, "time_in_turns", timed)
    return asked


def settings(rows) -> list[str]:
    return [str(row.setting) for row in rows]


def test_every_network_is_called_with_one_image_and_many_on_one_thread_and_all(students, threads, instant):
    threads(2)
    report = measure_students(students, FLOPS, device=CPU, seconds=1e6)
    expected = [f"eager, {count}, batch {batch}" for batch in (1, 64) for count in ("2 threads", "1 thread")]
    for rows in (*report.students, report.ensemble):
        assert settings(rows) == expected
    assert [count for count, _ in instant] == [2, 1, 2, 1] and torch.get_num_threads() == 2
    assert report.notes == (NO_ONNX,) and report.image_shape == (3, 8, 8) and report.machine["threads"] == 2
    assert [row.median_ms for row in report.students[0]] == [2.0] * 4
    assert all(row.not_faster_than == () for rows in report.students for row in rows)


def test_with_one_thread_there_is_no_second_number_of_threads(students, one_thread, instant):
    report = measure_students(students, FLOPS, device=CPU, seconds=1e6)
    assert settings(report.ensemble) == ["eager, 1 thread, batch 1", "eager, 1 thread, batch 64"]


def test_the_students_stay_as_they_were(students, one_thread, monkeypatch):
    monkeypatch.setattr(measure, "_TARGET", 0.0)  # as few turns as possible
    before = [{name: tensor.clone() for name, tensor in student.state_dict().items()} for student in students]
    state = torch.get_rng_state()
    report = measure_students(students, FLOPS, device=CPU, seconds=60.0)
    assert torch.equal(torch.get_rng_state(), state)
    for student, tensors in zip(students, before, strict=True):
        assert not student.training
        for name, tensor in student.state_dict().items():
            assert torch.equal(tensor, tensors[name]) and tensor.device == CPU
    for row in (*report.students[0], *report.ensemble):
        assert 0 < row.median_ms <= row.p95_ms and row.calls >= 3


def test_without_time_nothing_is_measured_and_all_is_noted(students, one_thread):
    report = measure_students(students, FLOPS, device=CPU, seconds=0.0)
    assert report.students == ((), ()) and report.ensemble == ()
    assert report.notes == (
        NO_ONNX,
        "eager, 1 thread, batch 1: not measured, since it takes more than 0 s",
        "eager, 1 thread, batch 8: not measured, since it takes more than 0 s",
    )


def test_a_request_to_stop_is_noted(students, one_thread):
    report = measure_students(students, FLOPS, device=CPU, stopping=lambda: True)
    assert report.students == ((), ())
    assert report.notes[1] == "eager, 1 thread, batch 1: not measured, since the run was asked to stop"


def test_what_was_left_out_is_tried_again_and_rows_keep_their_order(students, one_thread, monkeypatch):
    tries = []

    def timed(calls, costs, limit, target, **options):
        tries.append(limit)
        return None if len(tries) == 1 else [Timing(((1.0,),) * 5) for _ in costs]

    monkeypatch.setattr(measure, "time_in_turns", timed)
    report = measure_students(students, FLOPS, device=CPU, seconds=1e6)
    assert settings(report.students[0]) == ["eager, 1 thread, batch 1", "eager, 1 thread, batch 64"]
    assert report.notes == (NO_ONNX,) and len(tries) == 3 and tries[2] > tries[0]


@pytest.mark.parametrize(("seconds", "batch"), [(0.001, 64), (0.1, 32), (0.5, 8), (50.0, 8)])
def test_the_large_batch_is_the_largest_that_there_is_time_for(students, one_thread, monkeypatch, seconds, batch):
    """A call of the ensemble with 8 images takes `seconds`, one of each network twice that; five of these fit 4.5 s."""

    class Slow(measure.Eager):
        @contextmanager
        def calls(self, threads, images):
            yield [lambda: seconds * 2 / 3, lambda: seconds / 3, lambda: seconds]

    monkeypatch.setattr(measure, "Eager", Slow)
    monkeypatch.setattr(measure, "time_in_turns", lambda calls, costs, *_, **__: [Timing(((1.0,),)) for _ in costs])
    report = measure_students(students, FLOPS, device=CPU, seconds=20.0)
    assert report.students[0][1].setting.batch == batch


def test_a_smaller_student_that_is_not_faster_is_marked(students, one_thread, monkeypatch):
    slow, fast = Timing(((2.0,),) * 5), Timing(((1.0,),) * 5)
    found = iter([[fast, slow, slow], [slow, fast, slow]])
    monkeypatch.setattr(measure, "time_in_turns", lambda *_, **__: next(found))
    report = measure_students(students, FLOPS, device=CPU, seconds=1e6)
    assert [row.not_faster_than for row in report.students[0]] == [(), ()]
    assert [row.not_faster_than for row in report.students[1]] == [(1,), ()]
    assert [row.not_faster_than for row in report.ensemble] == [(), ()]


def test_a_latency_survives_json():
    latency = Latency(Setting("onnx", "cpu", 2, 64), 1.5, 2.25, 30, (1, 2))
    assert Latency.from_dict(json.loads(json.dumps(latency.as_dict()))) == latency
    assert str(latency.setting) == "onnx, 2 threads, batch 64"
    assert str(Setting("eager", "cuda", None, 1)) == "eager, cuda, batch 1"
