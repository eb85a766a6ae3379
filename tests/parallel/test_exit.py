"""The interpreter exits while executors run, and a process is forked and ended inside them."""

import json
import signal
import subprocess
import sys
import textwrap

import pytest

from ..conftest import needs_executor
from ..support.forks import FORKS
from .calls import TIMEOUT

pytestmark = [needs_executor, *FORKS]

# Runs each scenario in forked children, because importing torch takes longer than a scenario. A child goes on to the
# end of the program, so that the interpreter exits there. The parent prints the exit statuses.
PROGRAM = """
import atexit, gc, json, os, random, sys, threading, time, warnings
import torch
from torch import nn
from oekd_fast.data.batches.prefetch import HostBatches
from oekd_fast.data.dataset import Split
from oekd_fast.parallel.executor import StudentError, make_executor

warnings.simplefilter("ignore")  # newer Python versions warn about fork in a process with threads
threading.excepthook = lambda arguments: sys.stderr.write(f"{arguments.exc_type.__name__} {arguments.exc_value}\\n")
torch.set_num_threads(2)

def make(kind="parallel", students=2):
    return make_executor(kind, students, "cpu", deterministic=True)

class Student(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return self.layer(x).tanh().sum()

# What a daemon thread frees while the interpreter exits may take the GIL inside torch, which aborts the process whether
# an executor is used or not. Therefore nothing is freed there.
KEPT = []

def daemon(executor, *, branches=None, persistent=False):
    "Start a thread that calls the executor forever, and wait for its first call."
    branches = branches or [Student(), Student()]
    inputs, called = [torch.ones(4, 8)] * 2, threading.Event()
    KEPT.extend((executor, branches, inputs))

    def loop():
        while True:
            try:
                results = executor.forward(branches, inputs)
                KEPT.append(results)
                executor.backward([[loss] for loss in results], [[None]] * 2)
            except RuntimeError:
                if not persistent:
                    raise
            called.set()

    threading.Thread(target=loop, daemon=True).start()
    called.wait()

def parallel():
    daemon(make())

def sequential():
    daemon(make("sequential"))

def shared_by_threads():
    executor = make()
    for _ in range(3):
        daemon(executor)

def errors_are_caught():
    daemon(make(), persistent=True)

def nested():
    inner = make()
    class Outer(Student):
        def forward(self, x):
            return sum(inner.forward([super().forward] * 2, [x, x]))
    daemon(make(), branches=[Outer(), Outer()])

def used_at_exit():
    executor = make()
    daemon(executor)

    def late():
        inner = make("sequential")
        for _ in range(2):  # nested calls of worker threads are calls of the main thread
            results = executor.forward([lambda x: inner.forward([torch.exp] * 2, [x, x])] * 2, [torch.zeros(1)] * 2)
            assert results == [[1, 1]] * 2
        sys.stderr.write("late\\n")
    atexit.register(late)

def used_by_a_finalizer():
    class Last:
        def __init__(self):
            self.call = make().forward
        def __del__(self):
            assert self.call([abs] * 2, [-1, -2]) == [1, 2]
            sys.stderr.write("last\\n")
    gc.disable()  # the interpreter collects the cycle while it finalizes
    last = Last()
    last.self = last

def prefetch():
    batches = HostBatches(SPLIT, "cpu")
    batches.begin(torch.arange(len(SPLIT)), 4)
    batches.ready()
    daemon(make())
    kept.append(batches)

def forked_during_a_call():
    executor = make()
    daemon(executor)
    pid = os.fork()
    if pid == 0:
        assert executor.forward([abs] * 2, [-1, -2]) == [1, 2]
        daemon(executor)
        sys.exit(50)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 50

def exit_in_a_student():
    def leave(_):
        sys.exit(60)
    make().forward([leave, abs], [-1, -2])

def exit_in_a_student_of_a_thread():
    thread = threading.Thread(target=lambda: make().forward([lambda _: sys.exit(61), abs], [-1, -2]), daemon=True)
    thread.start()
    thread.join()

def hard_exit_in_a_student():
    make().forward([lambda _: os._exit(70), abs], [-1, -2])

def fork_in_a_student():
    def forks(leave):
        pid = os.fork()
        if pid == 0:
            return leave()
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    executor = make()
    for _ in range(2):  # the first call runs both students in one thread
        results = executor.forward([forks, forks], [lambda: os._exit(71), lambda: None])
        assert results == [71, 1], results

SPLIT = Split(torch.zeros(4000, 1, 4, 4, dtype=torch.uint8), torch.zeros(4000, dtype=torch.int64))
statuses, kept = {}, []
for name, repeats in json.loads(sys.argv[1]).items():
    statuses[name] = []
    for status in range(repeats):
        pid = os.fork()
        if pid == 0:
            globals()[name]()
            time.sleep(random.Random(status).random() * 0.01)
            sys.exit(status)
        statuses[name].append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
print(json.dumps(statuses))
"""
# An exit takes a third of a second, and without a wait for the threads every second one ends by SIGABRT.
REPEATS = {
    "parallel": 2,
    "sequential": 1,
    "shared_by_threads": 1,
    "errors_are_caught": 1,
    "nested": 1,
    "used_at_exit": 1,
    "used_by_a_finalizer": 1,
    "prefetch": 1,
    "forked_during_a_call": 1,
    "exit_in_a_student_of_a_thread": 1,
    "exit_in_a_student": 1,
    "hard_exit_in_a_student": 1,
    "fork_in_a_student": 1,
}
CHOSEN = {"exit_in_a_student": [60], "hard_exit_in_a_student": [70]}
REFUSED = "RuntimeError executor: expected a call before the interpreter exits, got one while it exits"
FORKED = "oekd_fast: a student forked this process and returned in it: expected os._exit"


@pytest.mark.slow
def test_the_exit_status_is_that_of_the_main_thread():
    command = [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(PROGRAM), json.dumps(REPEATS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    expected = {name: list(range(repeats)) for name, repeats in REPEATS.items()} | CHOSEN
    assert json.loads(done.stdout) == expected, done.stderr
    lines = done.stderr.splitlines()
    assert set(lines) == {REFUSED, FORKED, "late", "last", "SystemExit 61"}
    assert (lines.count("late"), lines.count(FORKED)) == (1, 2)


@pytest.mark.slow
def test_an_interrupt_ends_the_wait_for_a_student_that_never_returns():
    code = """
    import threading
    from oekd_fast.parallel.executor import make_executor

    started = threading.Event()
    def stuck(_):
        started.set()
        threading.Event().wait()
    executor = make_executor("parallel", 2, "cpu", deterministic=True)
    threading.Thread(target=lambda: executor.forward([stuck, abs], [1, 2]), daemon=True).start()
    started.wait()
    print("started", flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "started\n"
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0 and "KeyboardInterrupt" in errors
