"""Students side by side: forward and backward of all branches of a family, on host threads or on streams.

Students count from 0 in arguments and attributes, and from 1 in messages.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from oekd_fast.native import executor_class
from oekd_fast.parallel.rng import Draws
from oekd_fast.parallel.threads import Division, StartingOrder, divide_threads, largest_first, one_thread

Kind = Literal["auto", "parallel", "sequential"]
KINDS = ("auto", "parallel", "sequential")
Branch = Callable[[Any], Any]
Faults = list[tuple[int, BaseException]]


class StudentError(RuntimeError):
    """A student raised; `__cause__` is what it raised, with its traceback. All other students have run.

    Attributes:
        student: its index; the first one, where several raised.
    """

    def __init__(self, student: int, message: str) -> None:
        super().__init__(message)
        self.student = student


class Executor(Protocol):
    """Runs S students, whose work must not depend on one another.

    An executor stays usable after an error. What is no `Exception`, such as KeyboardInterrupt, is passed on as it is.
    """

    def forward(self, branches: Sequence[Branch], inputs: Sequence[Any]) -> list[Any]:
        """Return `branches[j](inputs[j])` of each student.

        The caller's grad mode, autocast and other modes hold in every student. On a device with streams the results
        are ready for the caller's stream; none is waited for. On the CPU, branches should be modules themselves, not
        functions around them: their train or eval mode tells who draws random numbers.

        Raises:
            ValueError: not S branches or inputs.
            StudentError: a student raised.
        """

    def backward(self, roots: Sequence[Sequence[Tensor]], grads: Sequence[Sequence[Tensor | None]]) -> None:
        """Run the backward pass of each student, from its roots with their gradients; None only for a scalar's.

        Raises:
            TypeError, ValueError: not S sequences, or not a tensor for each root.
            StudentError: a student's graph raised.
        """


def make_executor(
    kind: Kind,
    num_students: int,
    device: torch.device | str,
    *,
    costs: Sequence[float] | None = None,
    deterministic: bool = False,
) -> Executor:
    """Return an executor for the students of one family.

    Args:
        kind: "parallel" needs the native extension; "auto" takes it where it is there and of use.
        num_students: S.
        device: where the students are.
        costs: of each student relative to the others, for the CPU; None: the parameters of its branch.
        deterministic: one intra-op thread for each student on the CPU, so that all kinds agree bit for bit. Without
            it they agree within rounding, and each repeats itself bit for bit.

    Raises:
        ValueError: an argument is out of range.
        RuntimeError: "parallel", but the extension is not there or the device has no streams.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {KINDS}, got {kind!r}")
    if not isinstance(num_students, int) or num_students < 1:
        raise ValueError(f"num_students: expected an integer >= 1, got {num_students!r}")
    if costs is not None and (len(costs) != num_students or min(costs) < 0):
        raise ValueError(f"costs: expected {num_students} numbers >= 0, one a student, got {list(costs)}")
    device = torch.device(device)
    if kind == "parallel" or (kind == "auto" and num_students > 1):
        try:
            if device.type == "cpu":
                return ThreadExecutor(num_students, costs, deterministic)
            return StreamExecutor(num_students, device)
        except RuntimeError as error:
            if kind == "parallel":
                reason = str(error).splitlines()[0]
                raise RuntimeError(f"kind 'parallel' is not there on device {str(device)!r}: {reason}") from error
    return SequentialExecutor(num_students, deterministic and device.type == "cpu")


class SequentialExecutor:
    """One student after the other, in the caller's thread and stream."""

    def __init__(self, num_students: int, deterministic: bool = False) -> None:
        self._num_students = num_students
        self._threads: Callable[[], AbstractContextManager] = one_thread if deterministic else nullcontext

    def forward(self, branches: Sequence[Branch], inputs: Sequence[Any]) -> list[Any]:
        _check_forward(self._num_students, branches, inputs)
        return self._each(lambda j: branches[j](inputs[j]))

    def backward(self, roots: Sequence[Sequence[Tensor]], grads: Sequence[Sequence[Tensor | None]]) -> None:
        _check_backward(self._num_students, roots, grads)
        self._each(lambda j: torch.autograd.backward(list(roots[j]), list(grads[j])) if roots[j] else None)

    def _each(self, run: Callable[[int], Any]) -> list[Any]:
        results: list[Any] = []
        faults: Faults = []
        with self._threads():
            for j in range(self._num_students):
                try:
                    results.append(run(j))
                except Exception as error:
                    faults.append((j, error))
        if faults:
            raise _error_of(faults)
        return results


class StreamExecutor:
    """Each student on a stream of its own, forked from and joined to the caller's stream; graphs can capture it."""

    def __init__(self, num_students: int, device: torch.device) -> None:
        self._num_students = num_students
        self._native = executor_class()(num_students, device, workers=1, threads=1, order=range(num_students))

    def forward(self, branches: Sequence[Branch], inputs: Sequence[Any]) -> list[Any]:
        _check_forward(self._num_students, branches, inputs)
        results, faults = self._native.forward(list(branches), list(inputs), [])
        if faults:
            raise _error_of(faults)
        return results

    def backward(self, roots: Sequence[Sequence[Tensor]], grads: Sequence[Sequence[Tensor | None]]) -> None:
        _check_backward(self._num_students, roots, grads)
        if faults := self._native.backward(roots, grads):
            raise _error_of(faults)


class ThreadExecutor:
    """Students on a pool of host threads; the caller's intra-op threads are divided among them.

    The largest start first, until calls have shown how long each takes: then in the order that is done first.

    The same division holds for all students and calls, so results do not depend on timing. It is made anew where the
    caller's number of intra-op threads has changed.
    """

    def __init__(self, num_students: int, costs: Sequence[float] | None, deterministic: bool) -> None:
        self._native_class = executor_class()
        self._num_students = num_students
        self._costs = None if costs is None else list(costs)
        self._deterministic = deterministic
        self._sequential = SequentialExecutor(num_students)
        self._draws = Draws()
        self._divided = 0
        self._native: Any = None
        self._workers = 1
        self._orders: dict[Hashable, StartingOrder] = {}

    def forward(self, branches: Sequence[Branch], inputs: Sequence[Any]) -> list[Any]:
        _check_forward(self._num_students, branches, inputs)
        if self._costs is None:
            self._costs = [_parameters(branch) for branch in branches]
        native = self._native_for_caller()
        if native is None:
            return self._sequential.forward(branches, inputs)
        if native.inside:
            results, faults = native.forward(list(branches), list(inputs), [])
        else:
            starting = self._starting(branches, native)

            def forward(branches: Sequence[Branch], inputs: Sequence[Any], serial: Sequence[int]) -> tuple:
                return native.forward(starting.timed(branches), inputs, serial)

            results, faults = self._draws.run(forward, list(branches), list(inputs))
            starting.learn()
        if faults:
            raise _error_of(faults)
        return results

    def backward(self, roots: Sequence[Sequence[Tensor]], grads: Sequence[Sequence[Tensor | None]]) -> None:
        _check_backward(self._num_students, roots, grads)
        native = self._native_for_caller()
        if native is None:
            self._sequential.backward(roots, grads)
        elif faults := native.backward(roots, grads):
            raise _error_of(faults)

    def _starting(self, branches: Sequence[Branch], native: Any) -> StartingOrder:
        """The order for calls like this one, which the native executor is told."""
        kind = type(branches[0]), torch.is_grad_enabled()
        if kind not in self._orders:
            self._orders[kind] = StartingOrder(self._costs, self._workers)
        native.order = self._orders[kind].order
        return self._orders[kind]

    def _native_for_caller(self) -> Any:
        """The native executor for the caller's number of intra-op threads; None where one student alone uses all."""
        if self._native is not None and self._native.inside:
            return self._native
        available = torch.get_num_threads()
        if available != self._divided:
            costs = self._costs or [1.0] * self._num_students
            if self._deterministic:
                division = Division(min(self._num_students, available), 1)
            else:
                division = divide_threads(available, costs)
            self._native = None
            self._orders.clear()
            self._workers = division.workers
            if division != (1, available):
                self._native = self._native_class(
                    self._num_students,
                    torch.device("cpu"),
                    workers=division.workers,
                    threads=division.threads,
                    order=largest_first(costs),
                )
            self._divided = available
        return self._native


def _parameters(branch: Branch) -> float:
    return float(sum(p.numel() for p in branch.parameters())) if isinstance(branch, nn.Module) else 1.0


def _error_of(faults: Faults) -> BaseException:
    """What to raise; `faults`, ascending and not empty, is emptied, so that tracebacks and frames make no cycle."""
    (student, cause), *others = faults
    interrupt = next((error for _, error in faults if not isinstance(error, Exception)), None)
    faults.clear()
    if interrupt is not None:
        return interrupt
    also = "".join(f"; student {j + 1} failed too" for j, _ in others)
    error = StudentError(student, f"student {student + 1}: {type(cause).__name__}: {cause}{also}")
    error.__cause__ = cause
    return error


def _check_count(name: str, values: Sequence[Any], expected: int) -> None:
    if len(values) != expected:
        raise ValueError(f"{name}: expected {expected}, one a student, got {len(values)}")


def _check_forward(num_students: int, branches: Sequence[Branch], inputs: Sequence[Any]) -> None:
    _check_count("branches", branches, num_students)
    _check_count("inputs", inputs, num_students)


def _check_backward(num_students: int, roots: Sequence[Sequence[Tensor]], grads: Sequence[Sequence[Any]]) -> None:
    _check_count("roots", roots, num_students)
    _check_count("grads", grads, num_students)
    for j, (student, given) in enumerate(zip(roots, grads, strict=True)):
        if len(student) != len(given):
            raise ValueError(f"grads[{j}]: expected {len(student)}, one a root, got {len(given)}")
        for k, (root, grad) in enumerate(zip(student, given, strict=True)):
            if not isinstance(root, Tensor):
                raise TypeError(f"roots[{j}][{k}]: expected a tensor, got {type(root).__name__}")
            if not isinstance(grad, Tensor | None):
                raise TypeError(f"grads[{j}][{k}]: expected a tensor or None, got {type(grad).__name__}")
