"""Random calls of executors with arguments that no caller should pass, each of which a seed makes again."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import nn

from oekd_fast.native import executor_class
from oekd_fast.parallel.executor import make_executor

INTEGERS = (-(2**70), -(2**63), -1, 0, 1, 2, 3, 5, 2**31 - 1, 2**31, 2**63, 2**64, 2**70)
OTHERS = (
    None,
    True,
    1.5,
    float("nan"),
    "",
    "01",
    b"x",
    {},
    {0: 1},
    {1, 2},
    object(),
    torch.ones(2),
    NotImplemented,
    ...,
)
RAISED = (ValueError, KeyError, StopIteration, GeneratorExit, MemoryError, RecursionError, KeyboardInterrupt)


class Unreliable:
    """A sequence that claims one length, has another, changes while it is read, or raises."""

    def __init__(self, items: list, draw: random.Random) -> None:
        self._items, self._draw, self._fault = items, draw, draw.choice(("len", "getitem", "iter", "shrinks", "grows"))

    def _read(self, method: str) -> None:
        if method == self._fault and self._draw.random() < 0.5:
            raise self._draw.choice(RAISED)("of a sequence")
        if self._fault == "shrinks" and self._items and self._draw.random() < 0.3:
            self._items.pop()
        if self._fault == "grows" and self._draw.random() < 0.3:
            self._items.append(self._draw.choice(OTHERS))

    def __len__(self) -> int:
        self._read("len")
        return self._draw.choice((len(self._items),) * 8 + (0, 2**40, 2**62))

    def __getitem__(self, index: int) -> Any:
        self._read("getitem")
        return self._items[index]

    def __iter__(self) -> Iterator[Any]:
        self._read("iter")
        for index in range(10_000):  # much more than it claims
            yield self[index % max(1, len(self._items))]


def sequence_of(items: list, draw: random.Random) -> Any:
    """Return something that holds `items`, mostly a list."""
    form = draw.choice(("list",) * 8 + ("tuple", "generator", "unreliable", "itself", "short", "long", "other", "dict"))
    if form == "itself":
        items.append(items)
        del items[0]
    return {
        "list": lambda: items,
        "itself": lambda: items,
        "tuple": lambda: tuple(items),
        "generator": lambda: iter(items),
        "unreliable": lambda: Unreliable(items, draw),
        "short": lambda: items[1:],
        "long": lambda: items * 2,
        "other": lambda: draw.choice(OTHERS),
        "dict": lambda: dict(enumerate(items)),
    }[form]()


@dataclass
class Call:
    """One random call and what it must return if it returns.

    Attributes:
        kind: the executor and its method, such as "parallel.forward".
        run: makes the call and returns its result.
        valid: whether all arguments are valid, so that the call may not raise.
        check: says what is wrong with a result; "" if nothing is.
        usable: raises if the executor can no longer be used; None if the call makes one.
    """

    kind: str
    run: Callable[[], Any]
    valid: bool = False
    check: Callable[[Any], str] = field(default=lambda result: "")
    usable: Callable[[], None] | None = None


class _Maker:
    def __init__(self, draw: random.Random) -> None:
        self.draw, self.pure = draw, True

    def integer(self, *usual: int) -> Any:
        if self.draw.random() < 0.8:
            return self.draw.choice(usual)
        self.pure = False
        return self.draw.choice((*INTEGERS, *OTHERS))

    def sequence(self, items: list) -> Any:
        if self.draw.random() < 0.6:
            return items
        self.pure = False
        return sequence_of(items, self.draw)

    def executor(self, kind: str, students: int) -> Any:
        if kind == "native":
            order = list(range(students))
            self.draw.shuffle(order)
            return executor_class()(
                students, torch.device("cpu"), workers=self.draw.randint(1, 3), threads=1, order=order
            )
        return make_executor(kind, students, "cpu", deterministic=self.draw.random() < 0.5)

    def branch(self, executor: Any, students: int) -> Any:
        choice = self.draw.random()
        if choice < 0.6:
            return self.draw.choice((torch.exp, torch.neg, lambda x: x, nn.Identity(), nn.ReLU()))
        self.pure = False
        broken = nn.Linear(2, 2)
        del broken.weight
        emptied = nn.Sequential(nn.ReLU())
        emptied._modules[0] = None
        raised = self.draw.choice(RAISED)

        def nested(x: Any) -> Any:
            if isinstance(x, int):
                return x
            if isinstance(executor, executor_class()):
                return executor.forward([abs] * students, [x] * students, [])
            return executor.forward([abs] * students, [x] * students)

        def raises(x: Any) -> Any:
            raise raised("of a student")

        def backward(x: Any) -> Any:
            (x * x).sum().backward()

        return self.draw.choice(
            (broken, emptied, raises, nested, backward, nn.Module(), mock.MagicMock(spec=nn.Module), *OTHERS)
        )

    def input(self) -> Any:
        choice = self.draw.random()
        if choice < 0.7:
            return torch.full((2,), self.draw.random(), requires_grad=self.draw.random() < 0.5)
        self.pure = False
        items: list = [torch.ones(2)]
        items.append(items)
        return self.draw.choice((torch.ones(2, device="meta"), items, torch.ones(2).to_sparse(), *OTHERS))

    def root(self) -> tuple[Any, Any]:
        leaf = torch.full((2,), 2.0, requires_grad=True)
        choice = self.draw.random()
        if choice < 0.6:
            return (leaf * leaf).sum(), self.draw.choice((None, torch.tensor(1.0)))
        self.pure = False
        freed = (leaf * leaf).sum()
        freed.backward()
        meta = torch.ones((), device="meta", requires_grad=True)
        roots = (leaf * 1, torch.ones(()), freed, meta * 1, leaf.sum().to("meta"), mock.MagicMock(spec=torch.Tensor))
        grads = (torch.ones(3), torch.ones((), device="meta"), torch.ones((), dtype=torch.int64), *OTHERS)
        return self.draw.choice((*roots, *OTHERS)), self.draw.choice((None, *grads))


def random_call(seed: str) -> Call:
    """Return the call of a seed."""
    draw = random.Random(seed)
    maker = _Maker(draw)
    method = draw.choice(
        ("construct", "make", "forward", "forward", "forward", "backward", "backward", "order", "inside")
    )
    if method == "construct":
        return _construct(maker)
    if method == "make":
        return _make(maker)
    kind = "native" if method in ("order", "inside") else draw.choice(("native", "parallel", "sequential"))
    students = draw.randint(1, 4)
    executor = maker.executor(kind, students)
    call = {"forward": _forward, "backward": _backward, "order": _order, "inside": _inside}[method](
        maker, executor, kind == "native", students
    )
    call.kind, call.valid = f"{kind}.{method}", maker.pure
    call.usable = lambda: _use(executor, kind == "native", students)
    if method in ("forward", "backward") and draw.random() < 0.1:
        return _at_once(call)
    return call


def _use(executor: Any, native: bool, students: int) -> None:
    numbers = list(range(students))
    came = executor.forward([abs] * students, [-n for n in numbers], *([[]] if native else []))
    if came != ((numbers, []) if native else numbers):
        raise AssertionError(f"afterwards it returned {came}")


def _construct(maker: _Maker) -> Call:
    students = maker.integer(1, 2, 3)
    order = maker.sequence(list(range(students)) if isinstance(students, int) and 0 <= students < 10 else [0])
    device = torch.device("cpu") if maker.draw.random() < 0.95 else maker.draw.choice(("cpu", torch.device("meta"), 0))
    options = {
        "workers": maker.integer(1, 2, 6, 10**5, 2**31 - 1),
        "threads": maker.integer(1),
        "order": order,
    }

    def run() -> Any:
        executor = executor_class()(students, device, **options)
        return executor.forward([abs] * len(executor.order), [-1] * len(executor.order), [])

    return Call("native.construct", run, check=lambda came: "" if came == ([1] * len(came[0]), []) else f"{came}")


def _make(maker: _Maker) -> Call:
    students = maker.integer(1, 2, 3)
    costs = maker.sequence([maker.draw.choice((0, 1.0, 2**70, -1, float("inf"), None, "1")) for _ in range(3)])
    if maker.draw.random() < 0.5:
        costs = None
    kind = maker.draw.choice(("auto", "parallel", "sequential") * 4 + (None, 3, []))
    device = maker.draw.choice(("cpu",) * 8 + ("meta", "nowhere", None, 10**9))

    def run() -> Any:
        executor = make_executor(kind, students, device, costs=costs, deterministic=maker.draw.choice((True, "x")))
        return executor.forward([abs] * students, [-1] * students)

    return Call("make_executor", run, check=lambda came: "" if came == [1] * students else f"returned {came}")


def _forward(maker: _Maker, executor: Any, native: bool, students: int) -> Call:
    branches = [maker.branch(executor, students) for _ in range(students)]
    inputs = [maker.input() for _ in range(students)]
    pairs = list(zip(branches, inputs, strict=True))
    arguments = [maker.sequence(branches), maker.sequence(inputs)]
    if native:
        arguments.append(maker.sequence(maker.draw.sample(range(students), maker.draw.randint(0, students))))

    def check(came: Any) -> str:
        results, faults = came if native else (came, [])
        if len(results) != students:
            return f"returned {len(results)} results for {students} students"
        if maker.pure:
            expected = [branch(value) for branch, value in pairs]
            if faults or not all(torch.equal(a, b) for a, b in zip(results, expected, strict=True)):
                return f"returned {came}, expected {expected}"
        return ""

    return Call("", lambda: executor.forward(*arguments), check=check)


def _backward(maker: _Maker, executor: Any, native: bool, students: int) -> Call:
    of_students = [[maker.root() for _ in range(maker.draw.randint(0, 2))] for _ in range(students)]
    roots = maker.sequence([maker.sequence([root for root, _ in pairs]) for pairs in of_students])
    grads = maker.sequence([maker.sequence([grad for _, grad in pairs]) for pairs in of_students])

    def check(came: Any) -> str:
        if maker.pure and came not in ([], None):
            return f"returned {came}"
        return ""

    return Call("", lambda: executor.backward(roots, grads), check=check)


def _order(maker: _Maker, executor: Any, native: bool, students: int) -> Call:
    order = maker.draw.sample(range(students), students)
    given = maker.sequence([maker.integer(n) for n in order])

    def run() -> Any:
        executor.order = given
        return executor.order

    return Call("", run, check=lambda came: "" if sorted(came) == list(range(students)) else f"took {came}")


def _inside(maker: _Maker, executor: Any, native: bool, students: int) -> Call:
    def run() -> Any:
        return executor.inside, executor.forward([lambda _: executor.inside] * students, [0] * students, [])[0]

    return Call("", run, check=lambda came: "" if came == (False, [True] * students) else f"returned {came}")


def _at_once(call: Call) -> Call:
    """Make a call from three threads at once."""
    one = call.run

    def run() -> Any:
        came: list[Any] = [None] * 3

        def in_thread(i: int) -> None:
            try:
                came[i] = one()
            except BaseException as error:
                came[i] = error

        threads = [threading.Thread(target=in_thread, args=(i,), daemon=True) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        raised = next((result for result in came if isinstance(result, BaseException)), None)
        if raised is not None:
            raise raised
        return came[0]

    # Three backward passes through one graph: all but the first fail.
    valid = call.valid and not call.kind.endswith("backward")
    return Call(f"{call.kind} from three threads", run, valid, call.check, call.usable)
