"""Settings of the caller's thread and of the process apply inside students, and students leave them unchanged."""

import contextvars
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

from ..conftest import needs_executor
from .calls import fine, finishes, parallel

pytestmark = needs_executor
SETTING = contextvars.ContextVar("SETTING", default="default")


def test_students_see_the_context_variables_of_the_caller():
    executor = parallel()

    def branch(value):
        before = SETTING.get()
        SETTING.set(value)
        return before, SETTING.get()

    def call():
        SETTING.set("caller's")
        results = [executor.forward([branch] * 2, ["first", "second"]) for _ in range(2)]
        return results, SETTING.get()

    expected = [("caller's", "first"), ("caller's", "second")]
    results, after = contextvars.copy_context().run(call)
    assert results == [expected, expected]
    assert after == "caller's" and SETTING.get() == "default"
    assert executor.forward([lambda _: SETTING.get()] * 2, [0, 0]) == ["default"] * 2


def test_a_nested_call_sees_the_context_variables_of_its_student():
    executor = parallel()

    def inner(_):
        return SETTING.get()

    def outer(value):
        SETTING.set(value)
        return executor.forward([inner] * 2, [0, 0])

    assert executor.forward([outer] * 2, ["a", "b"]) == [["a", "a"], ["b", "b"]]


def denormal(_=None):
    return (torch.full((4,), 1e-38) * 1e-3).count_nonzero().item()


@pytest.fixture
def flush_denormal():
    if not torch.set_flush_denormal(True):
        pytest.skip("the processor does not support the setting")
    torch.set_flush_denormal(False)
    yield torch.set_flush_denormal
    torch.set_flush_denormal(False)


def test_students_flush_denormal_numbers_if_the_caller_does(flush_denormal):
    executor = parallel()
    for flush in (False, True, False, True):
        flush_denormal(flush)
        assert executor.forward([denormal] * 2, [0, 0]) == [0 if flush else 4] * 2
        assert denormal() == (0 if flush else 4)


def test_the_backward_pass_flushes_denormal_numbers_if_the_caller_does(flush_denormal):
    executor = parallel()
    for flush in (True, False):
        flush_denormal(flush)
        x = [torch.full((4,), 1e-38, requires_grad=True) for _ in range(2)]
        executor.backward([[t * 1e-3] for t in x], [[torch.full((4,), 1e-38)]] * 2)
        assert [t.grad.count_nonzero().item() for t in x] == [0 if flush else 4] * 2


def test_a_student_that_changes_the_setting_does_not_change_it_for_others(flush_denormal):
    executor = parallel()

    def branch(flush):
        torch.set_flush_denormal(flush)
        return denormal()

    assert executor.forward([branch] * 2, [True, True]) == [0, 0]
    assert executor.forward([denormal] * 2, [0, 0]) == [4, 4] and denormal() == 4


class Names(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_function_modes_apply_inside_students_and_see_nothing_else():
    executor, mode = parallel(), Names()
    with mode:
        executor.forward([torch.exp] * 2, [torch.ones(2)] * 2)
    assert mode.names == ["ones", "exp", "exp"]


def test_fake_tensor_mode_applies_inside_students():
    executor = parallel()
    with FakeTensorMode():
        results = executor.forward([torch.ones] * 2, [2, 3])
    assert [type(r) for r in results] == [FakeTensor] * 2 and [r.shape for r in results] == [(2,), (3,)]


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    yield
    torch.set_default_device(None)


@contextmanager
def deterministic_algorithms():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "context",
    [
        nullcontext,
        lambda: default_dtype(torch.float64),
        lambda: default_device("meta"),
        lambda: torch.device("meta"),
        deterministic_algorithms,
        lambda: torch.autograd.set_multithreading_enabled(False),
        lambda: torch.autograd.detect_anomaly(check_nan=False),
        torch.autograd.graph.save_on_cpu,
    ],
)
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_defaults_and_flags_apply_inside_students(context):
    def settings(_=None):
        made = torch.ones(2)
        return (
            made.dtype,
            made.device,
            torch.are_deterministic_algorithms_enabled(),
            torch.is_anomaly_enabled(),
            torch.autograd.is_multithreading_enabled()
            if hasattr(torch.autograd, "is_multithreading_enabled")
            else torch._C._is_multithreading_enabled(),
        )

    executor = parallel()
    plain = settings()
    with context():
        expected = settings()
        assert executor.forward([settings] * 2, [0, 0]) == [expected] * 2
    assert executor.forward([settings] * 2, [0, 0]) == [plain] * 2


def test_threads_that_share_an_executor_keep_their_own_settings():
    executor = parallel()

    def settings(_):
        return SETTING.get(), torch.is_grad_enabled()

    def in_thread(value, grad):
        SETTING.set(value)
        with torch.set_grad_enabled(grad):
            came = [executor.forward([settings] * 2, [0, 0]) for _ in range(20)]
        return all(result == [(value, grad)] * 2 for result in came)

    assert finishes(lambda: in_thread("a", True), lambda: in_thread("b", False)) == [True, True]
    assert executor.forward([fine] * 2, [1, 2]) == [1, 2]
