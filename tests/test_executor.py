"""Students side by side on host threads give what they give one after the other, and their faults come back whole."""

import copy
import functools
import itertools
import os
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import weakref
from _thread import interrupt_main
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from oekd_fast.ensemble import build_ensemble
from oekd_fast.executor import SequentialExecutor, StudentError, ThreadExecutor, make_executor
from oekd_fast.intra_op import StartingOrder, best_order, divide_threads, largest_first, makespan

from .conftest import ISAS

native = pytest.mark.skipif(not ISAS, reason="the native extension was not built")
SECONDS = 60  # no test needs them: what takes longer hangs


@pytest.fixture(autouse=True)
def two_threads(threads):
    """Two intra-op threads, on a machine with one core too: enough for a pool of two."""
    threads(2)


@pytest.fixture(params=["sequential", pytest.param("parallel", marks=native)])
def kind(request):
    return request.param


def parallel(num_students=2, deterministic=True):
    """A pool of two workers (deterministic: in any case); nothing is left to learn about functions."""
    executor = make_executor("parallel", num_students, "cpu", deterministic=deterministic)
    executor.forward([lambda _: None] * num_students, [None] * num_students)
    return executor


def finishes(*calls):
    """Run each call in a Python thread of its own, and wait for all; what they raise or return."""
    came = [None] * len(calls)

    def run(i):
        try:
            came[i] = calls[i]()
        except BaseException as error:
            came[i] = error

    started = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(calls))]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join(SECONDS)
        assert not thread.is_alive(), "hangs"
    return came


def raised_by(call):
    with pytest.raises(BaseException) as caught:  # noqa: B017, PT011 - the test looks at it
        call()
    return caught.value


class Meet(torch.autograd.Function):
    """The identity; backward waits until as many others are there as the barrier counts."""

    @staticmethod
    def forward(ctx, x, barrier):
        ctx.barrier = barrier
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        ctx.barrier.wait()
        return grad, None


class Fail(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise LookupError("no gradient today")


# -- the same numbers


def step(executor, branches, shared, context, train):
    """Everything that a forward and a backward pass leave behind."""
    inputs = [shared.detach().requires_grad_(train) for _ in branches]
    with context():
        outputs = executor.forward(branches, inputs)
    left = [tensor for logits, maps in outputs for tensor in (logits, *maps)]
    if train:
        roots = [[logits, *maps] for logits, maps in outputs]
        executor.backward(roots, [[torch.full_like(t, 0.1) for t in student] for student in roots])
        left += [x.grad for x in inputs] + [p.grad for p in branches.parameters()]
    return left + list(branches.buffers())


CONTEXTS = {
    "plain": (nullcontext, True),
    "bf16": (lambda: torch.autocast("cpu", torch.bfloat16), True),
    "no_grad": (torch.no_grad, False),
    "inference": (torch.inference_mode, False),
}


@native
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", CONTEXTS)
def test_real_branches_agree_bit_for_bit(name, training):
    context, train = CONTEXTS[name]
    torch.manual_seed(0)
    family = build_ensemble("resnet20", 3, 10).to(memory_format=torch.channels_last).train(training)
    shared = torch.randn(8, 16, 16, 16).to(memory_format=torch.channels_last)
    left = {}
    for kind in ("sequential", "parallel"):
        branches = copy.deepcopy(family.branches)
        executor = make_executor(kind, 3, "cpu", deterministic=True)
        left[kind] = [t for _ in range(2) for t in step(executor, branches, shared, context, train)]
    assert len(left["parallel"]) == len(left["sequential"]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*left.values(), strict=True))


@native
def test_without_deterministic_mode_a_run_repeats_itself(threads):
    threads(4)
    torch.manual_seed(0)
    family, shared = build_ensemble("resnet20", 3, 10), torch.randn(8, 16, 8, 8)

    def run():
        executor, branches = make_executor("parallel", 3, "cpu"), copy.deepcopy(family.branches)
        return [t for _ in range(3) for t in step(executor, branches, shared, nullcontext, True)]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@pytest.mark.parametrize("num_students", [1, 2, 40])
def test_results_come_in_the_students_order(kind, num_students):
    executor = make_executor(kind, num_students, "cpu", deterministic=True)
    weights = [torch.tensor(float(j), requires_grad=True) for j in range(num_students)]
    for _ in range(2):
        results = executor.forward([lambda x, w=w: w * x for w in weights], [10] * num_students)
        assert results == [10.0 * j for j in range(num_students)]
    executor.backward([[r] for r in results], [[torch.tensor(2.0)]] * num_students)
    assert [w.grad.item() for w in weights] == [20.0] * num_students


def test_a_scalar_needs_no_gradient_and_a_student_may_have_no_roots(kind):
    executor, x = make_executor(kind, 2, "cpu", deterministic=True), torch.ones(3, requires_grad=True)
    executor.backward([[(3 * x).sum()], []], [[None], []])
    assert x.grad.tolist() == [3, 3, 3]


# -- really side by side


@native
def test_two_students_run_at_the_same_time():
    barrier = threading.Barrier(2, timeout=SECONDS)
    inputs = [torch.ones(2, requires_grad=True) for _ in range(2)]

    def branch(x):
        barrier.wait()
        return Meet.apply(x, barrier), threading.get_ident()

    executor = parallel()
    (first, one), (second, two) = executor.forward([branch] * 2, inputs)
    assert len({one, two, threading.get_ident()}) == 3
    executor.backward([[first], [second]], [[torch.ones(2)]] * 2)
    assert all(x.grad.tolist() == [1, 1] for x in inputs)


@native
def test_the_largest_student_starts_first(threads):
    threads(1)
    from oekd_fast._native import StudentExecutor

    started = []
    executor = StudentExecutor(3, torch.device("cpu"), workers=1, threads=1, order=[2, 0, 1])
    executor.forward([started.append] * 3, [0, 1, 2], [])
    executor.forward([started.append] * 3, [0, 1, 2], [0, 1])
    assert started == [2, 0, 1, 0, 1, 2]
    assert largest_first([1.0, 5.0, 1.0, 9.0]) == [3, 1, 0, 2]


@native
def test_more_workers_than_students():
    from oekd_fast._native import StudentExecutor

    executor = StudentExecutor(2, torch.device("cpu"), workers=6, threads=1, order=[0, 1])
    for _ in range(20):
        assert executor.forward([abs] * 2, [-1, -2], []) == ([1, 2], [])


# -- intra-op threads

RESNET = [1.0, 0.64, 0.36, 0.16, 0.04]  # cost falls with the square of the width


@pytest.mark.parametrize(
    "available, costs, expected",
    [
        (1, RESNET, (1, 1)),
        (2, RESNET, (2, 1)),
        (2, [1.0] * 5, (2, 1)),
        (2, [1.0, 0.01], (1, 2)),
        (3, [1.0] * 3, (3, 1)),
        (8, RESNET, (2, 4)),
        (16, RESNET, (2, 8)),
        (64, RESNET, (3, 21)),
        (8, [1.0], (1, 8)),
        (64, [1.0] * 5, (5, 12)),
        (2, [0.0, 0.0], (1, 2)),
    ],
)
def test_division_of_threads(available, costs, expected):
    assert divide_threads(available, costs) == expected


@native
def test_thread_counts_inside_and_outside(threads):
    for available, deterministic, inside in [(2, False, 1), (4, False, 2), (4, True, 1), (2, True, 1)]:
        threads(available)
        executor = make_executor("parallel", 2, "cpu", deterministic=deterministic)
        for _ in range(2):
            assert executor.forward([lambda _: torch.get_num_threads()] * 2, [0, 0]) == [inside] * 2
        assert torch.get_num_threads() == available
        assert finishes(torch.get_num_threads) == [available]  # and of threads that torch has not seen yet


@native
def test_the_setting_of_other_threads_survives_a_new_pool(threads):
    def set_and_read():
        torch.set_num_threads(3)
        parallel()
        return torch.get_num_threads()

    assert finishes(set_and_read) == [3]
    assert torch.get_num_threads() == 2 and finishes(torch.get_num_threads) == [3]


@native
def test_a_changed_number_of_threads_is_divided_anew(threads):
    executor = parallel(deterministic=False)
    for available, inside in [(2, 1), (4, 2), (1, 1), (4, 2)]:
        threads(available)
        assert executor.forward([lambda _: torch.get_num_threads()] * 2, [0, 0]) == [inside] * 2


def test_sequential_and_deterministic_has_one_thread_as_well():
    executor = make_executor("sequential", 2, "cpu", deterministic=True)
    assert executor.forward([lambda _: torch.get_num_threads()] * 2, [0, 0]) == [1, 1]
    assert torch.get_num_threads() == 2


# -- the caller's modes


def modes(_=None):
    torch.autocast_increment_nesting()
    return (
        torch.autocast_decrement_nesting(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_cache_enabled(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    )


@native
@pytest.mark.parametrize(
    "context",
    [
        nullcontext,
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.float16),
        lambda: torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
    ],
)
def test_every_student_has_the_callers_modes(context):
    executor = parallel()
    with context():
        expected = modes()
        for _ in range(2):
            assert executor.forward([modes] * 2, [0, 0]) == [expected] * 2
    assert executor.forward([modes] * 2, [0, 0]) == [modes()] * 2


@native
def test_dispatch_modes_and_hooks_see_the_students_too():
    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    executor, names, packed = parallel(), [], []
    inputs = [torch.ones(2, requires_grad=True) for _ in range(2)]
    with Names(), torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        executor.forward([lambda x: x.exp()] * 2, inputs)
    assert names.count("aten.exp.default") == 2 and len(packed) == 2


@native
def test_a_students_own_autocast_leaves_the_cache_of_casts():
    weight, casts = nn.Parameter(torch.ones(4, 4)), []

    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            casts.append(func.overloadpacket is torch.ops.aten._to_copy and args[0].shape == (4, 4))
            return func(*args, **(kwargs or {}))

    def branch(x):
        with torch.autocast("cpu", torch.bfloat16):
            pass
        return x @ weight

    executor = parallel()
    with torch.autocast("cpu", torch.bfloat16), Casts():
        executor.forward([branch] * 2, [torch.ones(1, 4)] * 2)
        executor.forward([branch] * 2, [torch.ones(1, 4)] * 2)
    assert sum(casts) == 1


# -- random numbers


def dropouts():
    torch.manual_seed(0)
    noisy = [nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 6)) for _ in range(2)]
    plain = [nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(2)]
    return nn.ModuleList([plain[0], noisy[0], plain[1], noisy[1]])


@native
def test_draws_are_those_of_one_student_after_the_other():
    results = {}
    for kind in ("sequential", "parallel"):
        branches, executor = dropouts(), make_executor(kind, 4, "cpu", deterministic=True)
        torch.manual_seed(1)
        results[kind] = []
        for training in (True, True, False, True, False, True):
            results[kind] += executor.forward(branches.train(training), [torch.ones(3, 6)] * 4)
            results[kind].append(torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(*results.values(), strict=True))


@native
def test_only_those_that_draw_run_in_turn():
    barrier = threading.Barrier(2, timeout=SECONDS)

    def thread(module, args, output):
        if meeting and isinstance(module[1], nn.ReLU):
            barrier.wait()
        return threading.get_ident()

    branches, executor, meeting = dropouts(), make_executor("parallel", 4, "cpu", deterministic=True), False
    for branch in branches:
        branch.register_forward_hook(thread)
    assert len(set(executor.forward(branches, [torch.ones(3, 6)] * 4))) == 1
    executor.forward(branches.eval(), [torch.ones(3, 6)] * 4)
    meeting = True  # of the two that do not draw, in two threads
    first, second, third, fourth = executor.forward(branches.train(), [torch.ones(3, 6)] * 4)
    assert second == fourth and first != third


@native
def test_a_student_that_begins_to_draw_is_noticed_and_learnt():
    executor = parallel()
    draws = [lambda x: torch.rand(x), lambda x: torch.rand(x)]
    with pytest.warns(UserWarning, match="other than the students that drew from it before") as caught:
        executor.forward(draws, [2, 3])
        state = torch.get_rng_state()
        learning, known = executor.forward(draws, [2, 3]), executor.forward(draws, [2, 3])
        executor.forward([lambda x: x, lambda x: torch.rand(x)], [2, 3])
    assert len(caught) == 1 and caught[0].filename == __file__
    torch.set_rng_state(state)
    expected = [torch.rand(n) for n in (2, 3, 2, 3)]
    assert all(torch.equal(a, b) for a, b in zip([*learning, *known], expected, strict=True))

    with pytest.warns(UserWarning) as caught:  # once for each executor
        executor = parallel()
        for _ in range(2):
            executor.forward([lambda x: x] * 2, [2, 3])
            executor.forward(draws, [2, 3])
    assert len(caught) == 1


# -- faults


def fine(x):
    return x


def failing(x):
    raise ValueError(f"cannot take {x}")


@pytest.mark.parametrize(
    "branches, student, message",
    [
        ([failing, fine, fine], 0, "student 1: ValueError: cannot take a"),
        ([fine, fine, failing], 2, "student 3: ValueError: cannot take c"),
        ([fine, failing, failing], 1, "student 2: ValueError: cannot take b; student 3 failed too"),
        ([failing] * 3, 0, "student 1: ValueError: cannot take a; student 2 failed too; student 3 failed too"),
    ],
)
def test_a_fault_names_the_student_and_keeps_its_traceback(kind, branches, student, message):
    executor, ran = make_executor(kind, 3, "cpu", deterministic=True), []
    (error,) = finishes(
        lambda: executor.forward([lambda x, b=b: ran.append(x) or b(x) for b in branches], ["a", "b", "c"])
    )
    assert type(error) is StudentError and isinstance(error, RuntimeError)
    assert str(error) == message and error.student == student
    assert type(error.__cause__) is ValueError
    assert traceback.extract_tb(error.__cause__.__traceback__)[-1].name == "failing"
    assert sorted(ran) == ["a", "b", "c"]
    assert executor.forward([fine] * 3, [1, 2, 3]) == [1, 2, 3]


def test_a_fault_in_backward(kind):
    executor, x = (
        make_executor(kind, 3, "cpu", deterministic=True),
        [torch.ones(2, requires_grad=True) for _ in range(3)],
    )
    results = executor.forward([fine, Fail.apply, torch.exp], x)
    for given in x:
        given.grad = None
    (error,) = finishes(lambda: executor.backward([[r.sum()] for r in results], [[None]] * 3))
    assert type(error) is StudentError and str(error) == "student 2: LookupError: no gradient today"
    assert type(error.__cause__) is LookupError and error.student == 1
    last = traceback.extract_tb(error.__cause__.__traceback__)[-1]
    assert last.name == "backward" and last.line == 'raise LookupError("no gradient today")'
    assert x[0].grad is not None and x[2].grad is not None  # the others have finished
    results = executor.forward([torch.exp] * 3, x)
    executor.backward([[r.sum()] for r in results], [[None]] * 3)


@pytest.mark.parametrize(
    "grad, twice, text",
    [
        (None, False, "student 1: RuntimeError: grad can be implicitly created only for scalar outputs"),
        (torch.ones(5), False, "student 1: RuntimeError: "),
        (torch.ones(2), True, "student 1: RuntimeError: Trying to backward through the graph a second time"),
    ],
)
def test_what_torch_itself_says_of_a_bad_graph(kind, grad, twice, text):
    executor, x = make_executor(kind, 2, "cpu", deterministic=True), torch.ones(2, requires_grad=True)
    root = x.exp()
    if twice:
        executor.backward([[root], []], [[grad], []])
    error = raised_by(lambda: executor.backward([[root], []], [[grad], []]))
    assert str(error).startswith(text) and type(error.__cause__) is RuntimeError
    assert "Exception raised from" not in str(error)  # no C++ stack


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_passed_on_as_it_is(kind, interrupt):
    def interrupted(_):
        raise interrupt("now")

    executor = make_executor(kind, 3, "cpu", deterministic=True)
    error = raised_by(lambda: executor.forward([fine, interrupted, fine], [0] * 3))
    assert type(error) is interrupt and error.args == ("now",)
    assert executor.forward([fine] * 3, [1, 2, 3]) == [1, 2, 3]


@native
def test_ctrl_c_waits_for_the_students():
    def interrupt(_):
        interrupt_main()

    def slow(_):
        barrier.wait()
        finished.append(True)

    executor, finished = parallel(3), []
    barrier = threading.Barrier(2, timeout=SECONDS)
    with pytest.raises(KeyboardInterrupt):
        executor.forward([interrupt, slow, slow], [0] * 3)
    assert finished == [True, True]
    assert executor.forward([fine] * 3, [1, 2, 3]) == [1, 2, 3]


@native
def test_nothing_is_kept_after_a_call():
    class Value:
        pass

    executor = parallel(3)
    inputs = [Value() for _ in range(3)]
    results = executor.forward([lambda _: Value()] * 3, inputs)
    kept = [weakref.ref(value) for value in (*inputs, *results)]
    del inputs, results
    assert [ref() for ref in kept] == [None] * 6

    kept = []

    def branch(fails):
        value = Value()
        kept.append(weakref.ref(value))
        if fails:
            raise ValueError("with the value in its frame")
        return value

    with pytest.raises(StudentError):
        executor.forward([branch] * 3, [False, True, True])
    assert [ref() for ref in kept] == [None] * 3


# -- threads of the caller's


@native
def test_python_threads_share_an_executor():
    executor = parallel(4)

    def calls(offset):
        for i in range(50):
            inputs = [torch.full((3,), float(offset + i), requires_grad=True) for _ in range(4)]
            results = executor.forward([torch.exp] * 4, inputs)
            executor.backward([[r.sum()] for r in results], [[None]] * 4)
            assert all(torch.equal(x.grad, x.exp()) for x in inputs)
        return "done"

    assert finishes(*(lambda i=i: calls(i / 100) for i in range(3))) == ["done"] * 3


@native
def test_students_may_call_executors_themselves():
    outer, other = parallel(), parallel()

    def add(x):
        return x + 1

    def nested(x):
        return outer.forward([add] * 2, [x, x])

    def through_another(x):
        return other.forward([nested] * 2, [x, x])

    (came,) = finishes(lambda: outer.forward([nested, through_another], [1, 2]))
    assert came == [[2, 2], [[3, 3], [3, 3]]]
    (error,) = finishes(lambda: outer.forward([fine, lambda x: outer.forward([fine, failing], [x, x])], [1, 2]))
    assert str(error) == "student 2: StudentError: student 2: ValueError: cannot take 2"


@native
def test_a_backward_pass_inside_a_students_backward():
    executor = parallel()

    class Reentrant(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            x = torch.ones(2, requires_grad=True)
            with torch.enable_grad():
                executor.backward([[(3 * x).sum()], []], [[None], []])
            return grad * x.grad

    inputs = [torch.ones(2, requires_grad=True) for _ in range(2)]
    finishes(lambda: executor.backward([[Reentrant.apply(x).sum()] for x in inputs], [[None]] * 2))
    assert all(x.grad.tolist() == [3, 3] for x in inputs)


@native
@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_the_pool_ends_with_its_executor():
    def count():
        return len(os.listdir("/proc/self/task"))

    before = count()
    executor = parallel()
    assert count() == before + 2
    del executor
    deadline = time.monotonic() + 5  # a thread that was joined may still be listed for a moment
    while count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert count() == before


@native
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fork_and_exit_with_a_living_executor():
    code = """
    import os, sys, warnings
    import torch
    from oekd_fast.executor import make_executor

    warnings.simplefilter("ignore")  # newer Pythons warn of a fork beside threads
    torch.set_num_threads(2)
    used, dropped = (make_executor("parallel", 2, "cpu") for _ in range(2))

    def check(executor):
        x = [torch.full((2,), 2.0, requires_grad=True) for _ in range(2)]
        for _ in range(2):
            results = executor.forward([torch.square] * 2, x)
        executor.backward([[r.sum()] for r in results], [[None]] * 2)
        assert all(t.grad.tolist() == [4, 4] for t in x)

    check(used), check(dropped)
    child = os.fork()
    if child == 0:
        del dropped
        check(used)
        print("child", flush=True)
        sys.exit(7)
    _, status = os.waitpid(child, 0)
    check(used)
    print("parent", os.waitstatus_to_exitcode(status))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, done.stdout, done.stderr) == (0, "child\nparent 7\n", "")


# -- which one, and bad arguments


def test_the_kinds(monkeypatch):
    if ISAS:
        assert isinstance(make_executor("auto", 2, "cpu"), ThreadExecutor)
        assert isinstance(make_executor("auto", 1, "cpu"), SequentialExecutor)
    assert isinstance(make_executor("sequential", 2, torch.device("cpu")), SequentialExecutor)
    assert isinstance(make_executor("auto", 2, "meta"), SequentialExecutor)  # no streams there
    monkeypatch.setitem(sys.modules, "oekd_fast._native", None)  # how the import system spells "not there"
    assert isinstance(make_executor("auto", 2, "cpu"), SequentialExecutor)
    with pytest.raises(RuntimeError, match="^kind 'parallel' is not there on device 'cpu': .*oekd_fast._native"):
        make_executor("parallel", 2, "cpu")


@native
def test_a_device_without_streams():
    text = "^kind 'parallel' is not there on device 'meta': Backend doesn't support acquiring a stream from pool.$"
    with pytest.raises(RuntimeError, match=text):
        make_executor("parallel", 2, "meta")


@pytest.mark.parametrize(
    "arguments, options, text",
    [
        (("both", 2), {}, r"kind: expected one of \('auto', 'parallel', 'sequential'\), got 'both'"),
        (("auto", 0), {}, "num_students: expected an integer >= 1, got 0"),
        (("auto", 2.0), {}, "num_students: expected an integer >= 1, got 2.0"),
        (("auto", 2), {"costs": [1.0]}, r"costs: expected 2 numbers >= 0, one a student, got \[1.0\]"),
        (("auto", 2), {"costs": [1.0, -1.0]}, r"costs: expected 2 numbers >= 0, one a student, got \[1.0, -1.0\]"),
    ],
)
def test_bad_options(arguments, options, text):
    with pytest.raises(ValueError, match=f"^{text}$"):
        make_executor(*arguments, "cpu", **options)


def test_bad_arguments(kind):
    executor, x = make_executor(kind, 2, "cpu", deterministic=True), torch.ones(())
    for error, text, call in [
        (ValueError, "branches: expected 2, one a student, got 1", lambda: executor.forward([fine], [1, 2])),
        (ValueError, "inputs: expected 2, one a student, got 3", lambda: executor.forward([fine] * 2, [1, 2, 3])),
        (ValueError, "roots: expected 2, one a student, got 1", lambda: executor.backward([[x]], [[x], [x]])),
        (ValueError, "grads: expected 2, one a student, got 0", lambda: executor.backward([[x], [x]], [])),
        (ValueError, r"grads\[1\]: expected 1, one a root, got 0", lambda: executor.backward([[x], [x]], [[x], []])),
        (TypeError, r"roots\[1\]\[0\]: expected a tensor, got int", lambda: executor.backward([[x], [3]], [[x], [x]])),
        (
            TypeError,
            r"grads\[0\]\[0\]: expected a tensor or None, got float",
            lambda: executor.backward([[x], [x]], [[1.0], [x]]),
        ),
    ]:
        with pytest.raises(error, match=f"^{text}$"):
            call()


def test_the_best_order_is_done_first():
    costs = [0.53, 0.45, 0.36, 0.27, 0.17]
    order = best_order(costs, 2)
    assert makespan([costs[j] for j in order], 2) == pytest.approx(0.89)  # the largest first: 0.97
    every = [makespan([costs[j] for j in tried], 2) for tried in itertools.permutations(range(5))]
    assert makespan([costs[j] for j in order], 2) == min(every)
    assert best_order([1.0] * 3, 2) == [0, 1, 2]
    assert best_order(range(40), 4) == list(range(40))[::-1]


def test_who_starts_first_is_learnt_from_a_few_calls():
    starting = StartingOrder([3.0, 2.0, 1.0], workers=2)
    naps = [0.0, 0.0, 0.03]
    branches = [functools.partial(lambda nap, value: time.sleep(nap) or value, nap) for nap in naps]
    for call in range(4):  # the first is not counted
        assert starting.order == [0, 1, 2]
        assert [timed(call) for timed in starting.timed(branches)] == [call] * 3
        starting.learn()
    assert starting.order[0] == 2
    assert starting.timed(branches) is branches


def test_the_native_order_names_every_student_once():
    StudentExecutor = pytest.importorskip(
        "oekd_fast._native", reason="the native extension was not built"
    ).StudentExecutor
    executor = StudentExecutor(3, torch.device("cpu"), workers=1, threads=1, order=[2, 0, 1])
    executor.order = [1, 2, 0]
    assert executor.order == [1, 2, 0]
    for wrong in ([0, 1], [0, 1, 1], [0, 1, 3]):
        with pytest.raises(ValueError, match="order: expected each of the 3 students once"):
            executor.order = wrong
    assert executor.order == [1, 2, 0]
