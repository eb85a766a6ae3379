"""Execution of the students of a family side by side: forward and backward passes on host threads or on streams.

Students are numbered from 0 in arguments and attributes, and from 1 in messages.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from math import isfinite
from numbers import Real
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from oekd_fast.native import executor_class
from oekd_fast.parallel.interpreter_exit import finished_before_exit
from oekd_fast.parallel.rng import RandomDrawOrder
from oekd_fast.parallel.threads import Division, StartingOrder, divide_threads, largest_first, one_thread

Kind = Literal["auto", "parallel", "sequential"]
KINDS = ("auto", "parallel", "sequential")
Branch = Callable[[Any], Any]
Faults = list[tuple[int, BaseException]]


class StudentError(RuntimeError):
    """Raised when a student fails, after all other students have run. `__cause__` is the student's own exception.

    Attributes:
        student: index of the student in its family; the lowest index if several failed.
    """

    def __init__(self, student: int, message: str) -> None:
        super().__init__(message)
        self.student = student

    def __reduce__(self) -> tuple:
        return type(self), (self.student, str(self))


class Executor(Protocol):
    """Runs S students, which must not depend on one another.

    An executor remains usable after an error. Exceptions that do not derive from `Exception`, such as
    KeyboardInterrupt, are raised unchanged.

    Calls may overlap: several threads may share an executor, a student may call it, and a student may wait for a thread
    that calls it. On the CPU each of several overlapping calls has worker threads of its own, which are kept for later
    calls. A call that a student makes runs in that student's thread. After a fork, the child starts new threads; a
    child that a student itself forks has to end by `os._exit`. An exit of the interpreter waits for calls in progress
    in daemon threads, and later calls raise `RuntimeError` there. While the interpreter finalizes, students run in the
    calling thread.

    A copy, also one made by pickle, is a new executor with the same options.
    """

    def forward(self, branches: Sequence[Branch], inputs: Sequence[Any]) -> list[Any]:
        """Return `branches[j](inputs[j])` for each student j.

        Every student runs with the caller's grad mode, autocast state and other thread-local modes of torch, inside
        its transforms (torch.func, forward-mode AD), with its context variables (contextvars) and floating-point
        settings (torch.set_flush_denormal). On CPU threads, context variables that a student sets are not changed for
        the caller, and the values of threading.local are those of the worker thread.

        On a device with streams, the caller's stream waits for the results, and the host does not. On the CPU, branches
        should be modules rather than functions that call modules, because the executor learns for each train or eval
        mode which students draw random numbers.

        Raises:
            TypeError: `branches` or `inputs` is not a sequence.
            ValueError: the number of branches or inputs is not S.
            StudentError: a student raised an exception.
        """

    def backward(self, roots: Sequence[Sequence[Tensor]], grads: Sequence[Sequence[Tensor | None]]) -> None:
        """Run the backward pass of each student.

        Args:
            roots: tensors to differentiate, for each student; a student without roots is skipped.
            grads: gradient of each root; None is allowed for a scalar root.

        Raises:
            TypeError: a root is not a tensor, or a gradient is neither a tensor nor None.
            ValueError: the number of sequences is not S, or a student has not one gradient for each root.
            RuntimeError: the call is inside a transform of torch.func; use torch.func.grad or torch.func.vjp instead.
            StudentError: a student's graph raised an exception.
        """


def make_executor(
    kind: Kind,
    num_students: int,
    device: torch.device | str,
    *,
    costs: Sequence[float] | None = None,
    deterministic: bool = False,
    members: Sequence[int] | None = None,
) -> Executor:
    """Return an executor for the students of one family.

    Args:
        kind: "parallel" needs the compiled executor. "auto" is "parallel" if that is available and there is more than
            one student, else "sequential".
        num_students: S.
        device: device of the students.
        costs: relative cost of each student, used to schedule them on the CPU. Default: the number of parameters of
            each branch.
        deterministic: use one intra-op thread for each student on the CPU, so that all kinds give identical bits.
            Otherwise kinds agree within rounding; each kind is reproducible bit for bit in either case.
        members: index of each student in its family, counted from 0, which errors name. Default: 0 to S - 1.

    Raises:
        ValueError: an argument is out of range.
        RuntimeError: `kind` is "parallel", and the compiled executor is unavailable or the device has no streams.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {KINDS}, got {kind!r}")
    if not isinstance(num_students, int) or isinstance(num_students, bool) or num_students < 1:
        raise ValueError(f"num_students: expected an integer >= 1, got {num_students!r}")
    if costs is not None:
        costs = list(costs)
        if len(costs) != num_students or not all(isinstance(c, Real) and isfinite(c) and c >= 0 for c in costs):
            raise ValueError(f"costs: expected {num_students} numbers >= 0, one for each student, got {costs}")
    members = list(range(num_students) if members is None else members)
    if len(members) != num_students:
        raise ValueError(f"members: expected {num_students} indices, one for each student, got {members}")
    device = torch.device(device)
    if kind == "parallel" or (kind == "auto" and num_students > 1):
        try:
            if device.type == "cpu":
                return ThreadExecutor(members, costs, deterministic)
            return StreamExecutor(members, device)
        except RuntimeError as error:
            if kind == "parallel":
                reason = str(error).splitlines()[0]
                raise RuntimeError(f"kind 'parallel' is unavailable on device {str(device)!r}: {reason}") from error
    return SequentialExecutor(members, deterministic and device.type == "cpu")


class SequentialExecutor:
    """Runs the students sequentially in the caller's thread and stream."""

    def __init__(self, members: Sequence[int], deterministic: bool = False) -> None:
        self._members, self._num_students = members, len(members)
        self._threads: Callable[[], AbstractContextManager] = one_thread if deterministic else nullcontext

    @finished_before_exit
    def forward(self, branches: Sequence[Branch], inputs: Sequence[Any]) -> list[Any]:
        branches, inputs = _read_forward(self._num_students, branches, inputs)
        return self._each(lambda j: branches[j](inputs[j]))

    @finished_before_exit
    def backward(self, roots: Sequence[Sequence[Tensor]], grads: Sequence[Sequence[Tensor | None]]) -> None:
        roots, grads = _read_backward(self._num_students, roots, grads)
        self._each(lambda j: torch.autograd.backward(roots[j], grads[j]) if roots[j] else None)

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
            raise _error_of(faults, self._members)
        return results


class StreamExecutor:
    """Runs each student on its own stream, forked from and joined to the caller's stream.

    CUDA graphs can capture its calls.
    """

    def __init__(self, members: Sequence[int], device: torch.device) -> None:
        self._members, self._num_students, self._device = members, len(members), device
        order = range(self._num_students)
        self._native = executor_class()(self._num_students, device, workers=1, threads=1, order=order)

    def __reduce__(self) -> tuple:
        return type(self), (self._members, self._device)

    @finished_before_exit
    def forward(self, branches: Sequence[Branch], inputs: Sequence[Any]) -> list[Any]:
        branches, inputs = _read_forward(self._num_students, branches, inputs)
        results, faults = self._native.forward(branches, inputs, [])
        if faults:
            raise _error_of(faults, self._members)
        return results

    @finished_before_exit
    def backward(self, roots: Sequence[Sequence[Tensor]], grads: Sequence[Sequence[Tensor | None]]) -> None:
        roots, grads = _read_backward(self._num_students, roots, grads)
        if faults := self._native.backward(roots, grads):
            raise _error_of(faults, self._members)


class ThreadExecutor:
    """Runs the students on a pool of host threads, which share the caller's intra-op threads equally.

    The most expensive students start first. After a few calls the order is chosen from measured times, so that the
    last student ends as early as possible.

    The number of intra-op threads is the same for all students and calls, so results do not depend on timing. It is
    recomputed when the caller's number of intra-op threads changes.
    """

    def __init__(self, members: Sequence[int], costs: Sequence[float] | None, deterministic: bool) -> None:
        self._native_class = executor_class()
        self._options = members, costs, deterministic
        self._members, self._num_students = members, len(members)
        self._costs = None if costs is None else list(costs)
        self._deterministic = deterministic
        self._sequential = SequentialExecutor(members)
        self._random_order = RandomDrawOrder()
        # The caller's number of threads, and the native executor for it. Set at once, because calls may overlap.
        self._divided: tuple[int, Any] = 0, None
        self._workers = 1
        self._orders: dict[Hashable, StartingOrder] = {}

    def __reduce__(self) -> tuple:
        return type(self), self._options

    @finished_before_exit
    def forward(self, branches: Sequence[Branch], inputs: Sequence[Any]) -> list[Any]:
        branches, inputs = _read_forward(self._num_students, branches, inputs)
        if self._costs is None:
            self._costs = [_parameters(branch) for branch in branches]
        native = self._native_for_caller()
        if native is None:
            return self._sequential.forward(branches, inputs)
        if native.inside:
            results, faults = native.forward(branches, inputs, [])
        else:
            starting = self._starting(branches, native)

            def forward(branches: Sequence[Branch], inputs: Sequence[Any], serial: Sequence[int]) -> tuple:
                return native.forward(starting.timed(branches), inputs, serial)

            results, faults = self._random_order.run(forward, branches, inputs)
            starting.learn()
        if faults:
            raise _error_of(faults, self._members)
        return results

    @finished_before_exit
    def backward(self, roots: Sequence[Sequence[Tensor]], grads: Sequence[Sequence[Tensor | None]]) -> None:
        roots, grads = _read_backward(self._num_students, roots, grads)
        native = self._native_for_caller()
        if native is None:
            self._sequential.backward(roots, grads)
        elif faults := native.backward(roots, grads):
            raise _error_of(faults, self._members)

    def _starting(self, branches: Sequence[Branch], native: Any) -> StartingOrder:
        """Return the starting order for calls of this kind, and set it in the native executor."""
        kind = type(branches[0]), torch.is_grad_enabled()
        starting = self._orders.get(kind)
        if starting is None:
            starting = self._orders[kind] = StartingOrder(self._costs, self._workers)
        native.order = starting.order
        return starting

    def _native_for_caller(self) -> Any:
        """Return the native executor for the caller's number of intra-op threads.

        Returns None if the best division is one worker with all threads, which needs no pool.
        """
        divided, native = self._divided
        if native is not None and native.inside:
            return native
        available = torch.get_num_threads()
        if available != divided:
            costs = self._costs or [1.0] * self._num_students
            if self._deterministic:
                division = Division(min(self._num_students, available), 1)
            else:
                division = divide_threads(available, costs)
            native = None
            if division != (1, available):
                native = self._native_class(
                    self._num_students,
                    torch.device("cpu"),
                    workers=division.workers,
                    threads=division.threads,
                    order=largest_first(costs),
                )
            self._divided, self._workers = (available, native), division.workers
            self._orders.clear()
        return native


def _parameters(branch: Branch) -> float:
    return float(sum(p.numel() for p in branch.parameters())) if isinstance(branch, nn.Module) else 1.0


def _error_of(faults: Faults, members: Sequence[int]) -> BaseException:
    """Return the exception to raise for `faults`, which is not empty and in ascending order of students.

    It names the students by `members`, their indices in the family.

    `faults` is cleared, because the traceback would otherwise refer to the frame that holds it.
    """
    (first, cause), *others = faults
    student = members[first]
    interrupt = next((error for _, error in faults if not isinstance(error, Exception)), None)
    faults.clear()
    if interrupt is not None:
        return interrupt
    also = "".join(f"; student {members[j] + 1} failed too" for j, _ in others)
    error = StudentError(student, f"student {student + 1}: {type(cause).__name__}: {_message_of(cause)}{also}")
    error.__cause__ = cause
    return error


def _message_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "<no message: str() of the exception failed>"


def _read(name: str, values: Sequence[Any], expected: int) -> list[Any]:
    """Read a sequence once, because it may change while it is read."""
    if not isinstance(values, Sized):
        raise TypeError(f"{name}: expected a sequence, got {type(values).__name__}")
    if len(values) != expected:
        raise ValueError(f"{name}: expected {expected}, one for each student, got {len(values)}")
    taken = list(islice(values, expected + 1))
    if len(taken) != expected:
        raise ValueError(f"{name}: expected {expected}, one for each student, got a sequence that changes its length")
    return taken


def _read_forward(
    num_students: int, branches: Sequence[Branch], inputs: Sequence[Any]
) -> tuple[list[Branch], list[Any]]:
    return _read("branches", branches, num_students), _read("inputs", inputs, num_students)


def _read_backward(
    num_students: int, roots: Sequence[Sequence[Tensor]], grads: Sequence[Sequence[Any]]
) -> tuple[list[list[Tensor]], list[list[Any]]]:
    roots = [list(student) for student in _read("roots", roots, num_students)]
    grads = [list(student) for student in _read("grads", grads, num_students)]
    for j, (student, given) in enumerate(zip(roots, grads, strict=True)):
        if len(student) != len(given):
            raise ValueError(f"grads[{j}]: expected {len(student)}, one for each root, got {len(given)}")
        for k, (root, grad) in enumerate(zip(student, given, strict=True)):
            if not issubclass(type(root), Tensor):  # isinstance also accepts objects that only imitate one
                raise TypeError(f"roots[{j}][{k}]: expected a tensor, got {type(root).__name__}")
            if grad is not None and not issubclass(type(grad), Tensor):
                raise TypeError(f"grads[{j}][{k}]: expected a tensor or None, got {type(grad).__name__}")
    return roots, grads
