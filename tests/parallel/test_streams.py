"""Fork, join and memory of the students' streams, checked with a fake device that logs the calls it receives.

A device cannot be unregistered, so one subprocess runs all scenarios and the tests check its output.
"""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from torch.utils.cpp_extension import get_cxx_compiler, include_paths, library_paths

from ..conftest import needs_executor

pytestmark = needs_executor
SOURCE = Path(__file__).with_name("fake_device.cpp")
SCENARIOS = """
import ctypes, json, sys
from collections import namedtuple
import torch
from oekd_fast.parallel.executor import StudentError, StreamExecutor, make_executor

device = ctypes.CDLL(sys.argv[1])
device.read_log.restype = ctypes.c_char_p
came = {}

def log():
    return device.read_log().decode().splitlines()

def note(text):
    device.note(text.encode())

def branch(name):
    note(f"forward {name}")
    return name

class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, name):
        ctx.name = name
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        note(f"backward {ctx.name}")
        if ctx.name == "bad":
            raise ValueError("no gradient")
        return grad, None

def failing(name):
    raise ValueError(name)

def fault(call):
    try:
        call()
    except Exception as error:
        return type(error).__name__, str(error).splitlines()[0]

def tensor():
    return torch._C._acc.create_empty_tensor((2,), torch.float32)

def graphs(*names):
    return [[Backward.apply(torch.ones((), requires_grad=True), name)] for name in names]

auto = make_executor("auto", 2, "privateuseone")
came["kind"] = type(auto).__name__
came["made"] = log()
device.set_stream(9)
came["results"] = auto.forward([branch] * 2, ["a", "b"])
note("caller")
came["forward"] = log()

auto.backward(graphs("a", "b"), [[None]] * 2)
came["backward"] = log()

many = make_executor("parallel", 6, "privateuseone:0")
many.forward([branch] * 6, list("abcdef"))
came["more students than streams"] = [line for line in log() if line.startswith("forward")]

came["error"] = fault(lambda: auto.forward([failing, branch], ["a", "b"]))
came["joined after a fault"] = log()
came["backward error"] = fault(lambda: auto.backward(graphs("bad", "b"), [[None]] * 2))
came["joined after a fault in backward"] = log()

Pair = namedtuple("Pair", "logits maps")
def nested(x):
    return {"pair": Pair(tensor(), [tensor(), (tensor(), "text")]), "host": torch.ones(2)}
auto.forward([nested, lambda x: None], [tensor(), (tensor(), 3)])
came["memory"] = [line for line in log() if "memory" in line]
device.set_capturing(True)
auto.forward([nested, lambda x: None], [tensor(), (tensor(), 3)])
came["memory in a capture"] = [line for line in log() if "memory" in line]
auto.forward([branch] * 2, ["a", "b"])
came["order in a capture"] = log()
device.set_capturing(False)

def breaking(name):
    device.set_broken(True)
    raise ValueError("broke it")
came["a student breaks the device"] = fault(lambda: auto.forward([breaking, branch], ["a", "b"]))
came["a broken device"] = fault(lambda: auto.forward([branch] * 2, ["a", "b"]))
device.set_broken(False)
log()
auto.forward([branch] * 2, ["a", "b"])
came["mended"] = log()
came["nested"] = auto.forward([lambda x: auto.forward([branch] * 2, [x, x])] * 2, ["a", "b"])
came["events left"] = device.count_living_events()
print(json.dumps(came))
"""


@pytest.fixture(scope="module")
def came(tmp_path_factory):
    library = tmp_path_factory.mktemp("fake") / "fake_device.so"
    (torch_library,) = library_paths()
    flags = ["-std=c++20", "-O0", "-shared", "-fPIC", *(f"-I{path}" for path in include_paths())]
    linked = [f"-L{torch_library}", f"-Wl,-rpath,{torch_library}", "-lc10", "-o", str(library)]
    subprocess.run([get_cxx_compiler(), *flags, str(SOURCE), *linked], check=True, timeout=600)
    command = [sys.executable, "-c", textwrap.dedent(SCENARIOS), str(library)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def forked_and_joined(*on_stream):
    """Return the log of a call from stream 9 whose students run on stream 11, of high priority, and on 1, 2, ..."""
    lines = ["event 1 on stream 9"]
    for event, body in enumerate(on_stream, start=2):
        stream = 11 if event == 2 else event - 2
        lines += [f"stream {stream} waits for event 1", *(f"{what} on stream {stream}" for what in body)]
        lines += [f"event {event} on stream {stream}", f"stream 9 waits for event {event}"]
    return lines


@pytest.mark.slow
def test_auto_uses_streams_if_the_device_has_them(came):
    assert came["kind"] == "StreamExecutor" and came["made"] == []


def test_forward_forks_from_the_current_stream_and_joins_it(came):
    assert came["results"] == ["a", "b"]
    assert came["forward"] == [*forked_and_joined(["forward a"], ["forward b"]), "caller on stream 9"]


def test_backward_uses_the_streams_of_forward(came):
    assert came["backward"] == forked_and_joined(["backward a"], ["backward b"])


def test_the_first_student_has_high_priority_and_streams_are_reused_if_there_are_fewer(came):
    streams = [12, 2, 3, 4, 1, 2]  # the first executor has 11, of high priority as 12, and 1
    expected = [f"forward {name} on stream {s}" for name, s in zip("abcdef", streams, strict=True)]
    assert came["more students than streams"] == expected


def test_streams_are_joined_after_an_error(came):
    assert came["error"] == ["StudentError", "student 1: ValueError: a"]
    assert came["joined after a fault"] == forked_and_joined([], ["forward b"])
    assert came["backward error"] == ["StudentError", "student 1: ValueError: no gradient"]
    assert came["joined after a fault in backward"] == forked_and_joined(["backward bad"], ["backward b"])


def test_memory_is_recorded_on_the_streams_that_use_it(came):
    inputs_and_outputs = ["memory used by stream 11", *["memory used by stream 9"] * 3, "memory used by stream 1"]
    assert came["memory"] == inputs_and_outputs


def test_a_capture_forks_and_joins_alike_and_records_no_memory(came):
    assert came["memory in a capture"] == []
    assert came["order in a capture"] == forked_and_joined(["forward a"], ["forward b"])


def test_an_error_of_the_device_does_not_hide_the_students_error(came):
    assert came["a student breaks the device"] == ["StudentError", "student 1: ValueError: broke it"]
    assert came["a broken device"] == ["RuntimeError", "the device is broken"]
    assert came["mended"] == forked_and_joined(["forward a"], ["forward b"])


def test_students_may_call_the_executor_themselves(came):
    assert came["nested"] == [["a", "a"], ["b", "b"]]


def test_no_synchronisation_and_no_leaked_event(came):
    assert "synchronised" not in json.dumps(came)
    assert came["events left"] == 0
