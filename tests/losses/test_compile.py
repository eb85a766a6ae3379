"""torch.compile of the loss: one graph, the same numbers, and no recompilation if the values of a batch change."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from oekd_fast import EnsembleKDLoss, ensemble_kd_loss, ensemble_kd_value_and_grad

from ..conftest import BACKENDS, batch, needs_native
from ..support import oracle
from ..support.forkserver import run_code
from ..support.objectives import OBJECTIVES

# Graphs call the ops themselves, and torch 2.15 makes a RuntimeError of what a kernel throws.
GRAPH_ERROR = RuntimeError if torch.__version__ >= (2, 15) else ValueError

pytestmark = pytest.mark.usefixtures("one_thread", "fresh_compiler")


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(params=[name for name in BACKENDS if name != "triton"])
def backend(request) -> str:
    """Backends that are ops on the CPU; test_ensemble_kd_gpu_runtime.py compiles the Triton kernels on a GPU."""
    return request.param


def compiled(function, compiler="aot_eager"):
    """Compile; aot_eager traces and partitions as inductor does, but needs no C++ compilation."""
    return torch.compile(function, fullgraph=True, backend=compiler, dynamic=False)


def requiring_grad(logits):
    return [z.clone().requires_grad_() for z in logits]


def same(actual, expected, backend):
    """Compare: a kernel gives the same bits, while compiled PyTorch operations may round in another order."""
    for a, b in zip(actual, expected, strict=True):
        if backend == "native":
            assert torch.equal(a, b)
        else:
            assert oracle.error(a.detach(), b.detach()) <= 5 * oracle.EPSILON


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend, compiler, scale",
    [
        # The reference is plain PyTorch; its code from inductor would be a test of inductor.
        ("reference", "aot_eager", 2.5),
        # The backward pass of the kernel skips a multiplication by 1.
        *(pytest.param("native", *how, marks=needs_native) for how in (("aot_eager", 1.0), ("aot_eager", 2.5))),
        pytest.param("native", "inductor", 2.5, marks=needs_native),
    ],
)
def test_loss_and_gradients(backend, compiler, scale):
    if compiler == "inductor" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("inductor needs a C++ compiler")

    def function(z, y):
        output = ensemble_kd_loss(z, y, backend=backend)
        return scale * output.loss, output

    logits, target = batch(students=3)
    eager, by_compiler = requiring_grad(logits), requiring_grad(logits)
    loss, expected = function(eager, target)
    loss.backward()
    loss, output = compiled(function, compiler)(by_compiler, target)
    loss.backward()
    same(output, expected, backend)
    same([z.grad for z in by_compiler], [z.grad for z in eager], backend)


@pytest.mark.slow
def test_stacked_logits_and_weights(backend):
    def function(z, y, w):
        return ensemble_kd_loss(z, y, ensemble_weights=w, temperature=3.0, backend=backend)

    logits, target = batch(students=3)
    weights = torch.tensor([0.5, 0.3, 0.2])
    eager, by_compiler = requiring_grad([torch.stack(logits)] * 2)
    expected, output = function(eager, target, weights), compiled(function)(by_compiler, target, weights)
    expected.loss.backward()
    output.loss.backward()
    same(output, expected, backend)
    same([by_compiler.grad], [eager.grad], backend)


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend, name, scale",
    [
        # Each argument of tensors occurs; how the reference combines them is no matter of the compiler.
        *(("reference", name, 2.5) for name in ("mutual", "one", "logits and a teacher mixed, T = 2.0")),
        pytest.param("native", "hinton", 1.0, marks=needs_native),
        *(
            pytest.param("native", name, 2.5, marks=needs_native)
            for name in ("mutual", "one", "gate", "logits and a teacher mixed, T = 2.0")
        ),
    ],
)
def test_objectives(backend, name, scale):
    _, tensors, arguments = OBJECTIVES[name]
    logits, target = batch(students=3)
    tensors = tensors(3, *logits[0].shape)

    def function(z, y, tensors):
        output = ensemble_kd_loss(z, y, backend=backend, **tensors, **arguments)
        return scale * output.loss, output

    results = []
    for call in (function, compiled(function)):
        leaves = requiring_grad(logits)
        given = {name: t.clone().requires_grad_(name == "ensemble_weights") for name, t in tensors.items()}
        loss, output = call(leaves, target, given)
        loss.backward()
        gates = [t.grad for t in given.values() if t.grad is not None]
        results.append([*(t.detach() for t in output), *(z.grad for z in leaves), *gates])
    assert len(results[0]) == 5 + 3 + (name == "one")
    same(results[1], results[0], backend)


def test_value_without_gradients(backend):
    logits, target = batch(students=3)

    def function(z, y):
        return ensemble_kd_loss(z, y, backend=backend)

    same(compiled(function)(logits, target), function(logits, target), backend)


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize("temperature", [2.5, torch.tensor(2.5)], ids=["number", "tensor"])
def test_value_and_grad_with_and_without_buffers(temperature):
    logits, target = batch(students=3)
    options = {"temperature": temperature, "backend": "native"}
    expected, expected_grads = ensemble_kd_value_and_grad(logits, target, **options)

    @compiled
    def function(z, y):
        return ensemble_kd_value_and_grad(z, y, **options)

    @compiled
    def into(z, y, out):
        return ensemble_kd_value_and_grad(z, y, out=out, **options)[0]

    output, grads = function(logits, target)
    same((*output, *grads), (*expected, *expected_grads), "native")
    out = [torch.full_like(z, float("nan")) for z in logits]
    same((*into(logits, target, out), *out), (*expected, *expected_grads), "native")


@pytest.mark.slow
def test_the_first_call_of_a_process_may_be_a_compiled_one():
    # The backend is chosen, and its extension loaded, while the graph is traced.
    code = """
import torch
from oekd_fast import ensemble_kd_loss
z, y = [torch.randn(3, 4) for _ in range(2)], torch.tensor([0, 1, 2])
loss = torch.compile(lambda z, y: ensemble_kd_loss(z, y).loss, fullgraph=True, backend="eager")
assert torch.allclose(loss(z, y), ensemble_kd_loss(z, y, backend="reference").loss)
"""
    done = run_code(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_new_values_do_not_recompile(backend):
    function = compiled(lambda z, y: ensemble_kd_loss(z, y, backend=backend).loss)
    logits, target = batch(students=3, seed=0)
    function(requiring_grad(logits), target).backward()
    with torch.compiler.set_stance("fail_on_recompile"):
        for seed in range(1, 5):
            logits, target = batch(students=3, seed=seed)
            target[seed] = -100
            leaves = requiring_grad(logits)
            function(leaves, target).backward()
            oracle.Expected(logits, target).check_grads([z.grad for z in leaves])


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend, names",
    [
        ("reference", ("temperature", "ce_weight", "kd_weight")),
        pytest.param("native", ("temperature",), marks=needs_native),
        pytest.param("native", ("temperature", "ce_weight", "kd_weight"), marks=needs_native),
    ],
    ids=str,
)
def test_new_values_in_tensors_do_not_recompile(backend, names):
    values = {name: torch.tensor(0.5) for name in names}

    def function(z, y, values):
        output = ensemble_kd_loss(z, y, backend=backend, **values)
        return 1.5 * output.loss, output

    traced = compiled(function)
    logits, target = batch(students=3)
    traced(requiring_grad(logits), target, values)[0].backward()
    with torch.compiler.set_stance("fail_on_recompile"):
        for number in (2.0, 2.5):
            for value in values.values():
                value.fill_(number)
            eager, by_compiler = requiring_grad(logits), requiring_grad(logits)
            for leaves, call in ((eager, function), (by_compiler, traced)):
                call(leaves, target, values)[0].backward()
            same(traced(by_compiler, target, values)[1], function(eager, target, values)[1], backend)
            same([z.grad for z in by_compiler], [z.grad for z in eager], backend)


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend, dynamic",
    [
        ("reference", None),  # test_dynamic_shapes_with_all_defaults compiles it with dynamic=True
        pytest.param("native", None, marks=needs_native),
        pytest.param("native", True, marks=needs_native),
    ],
)
def test_numbers_that_change_compile_twice_at_most(backend, dynamic):
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    def function(z, y, t):
        weights = {"ce_weight": 0.25 * t, "kd_weight": 1.0 / t, "ensemble_ce_weight": t - 0.5}
        return ensemble_kd_loss(z, y, temperature=t, backend=backend, **weights).loss

    traced = torch.compile(function, fullgraph=True, dynamic=dynamic, backend=aot_autograd(fw_compiler=count))
    logits, target = batch(students=2)
    for temperature in (2.0, 3.0, 1.25, 4.5, 0.75, 8.0, 9.0, 10.0, 11.0, 12.0):
        eager, by_compiler = requiring_grad(logits), requiring_grad(logits)
        expected, loss = function(eager, target, temperature), traced(by_compiler, target, temperature)
        expected.backward()
        loss.backward()
        # The graph reads the numbers as float32.
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0.0)
        for z, wanted in zip(by_compiler, eager, strict=True):
            torch.testing.assert_close(z.grad, wanted.grad, rtol=1e-5, atol=1e-8)
    assert len(graphs) <= 4  # the forward and the backward graph, each for one number and for any


@pytest.mark.slow
def test_dynamic_shapes_with_all_defaults(backend):
    traced = torch.compile(
        lambda z, y: ensemble_kd_loss(z, y, backend=backend).loss, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for rows, classes in ((7, 5), (12, 9)):
        logits, target = batch(students=2, rows=rows, classes=classes)
        leaves = requiring_grad(logits)
        traced(leaves, target).backward()
        oracle.Expected(logits, target).check_grads([z.grad for z in leaves])


class Heads(nn.Module):
    def __init__(self, backend, temperature=3.0):
        super().__init__()
        self.base = nn.Linear(6, 8)
        self.heads = nn.ModuleList(nn.Linear(8, 10) for _ in range(3))
        self.loss = EnsembleKDLoss(temperature=temperature, label_smoothing=0.1, backend=backend)

    def forward(self, x, y):
        x = F.relu(self.base(x))
        return self.loss([head(x) for head in self.heads], y)


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend, temperature",
    [
        ("reference", 3.0),
        pytest.param("native", 3.0, marks=needs_native),
        pytest.param("native", torch.tensor(3.0), marks=needs_native),
    ],
)
def test_module_within_a_model(backend, temperature):
    torch.manual_seed(0)
    model, x, y = Heads(backend, temperature), torch.randn(12, 6), torch.randint(10, (12,))
    model(x, y).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    loss = compiled(model)(x, y)
    loss.backward()
    torch.testing.assert_close(loss, model(x, y))
    for p, wanted in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, wanted)


@needs_native
def test_labels_are_checked_in_a_compiled_graph():
    function = compiled(lambda z, y: ensemble_kd_loss(z, y, backend="native").loss)
    logits, target = batch(students=2, classes=4)
    function(requiring_grad(logits), target)
    target[2] = 4
    with pytest.raises(GRAPH_ERROR, match=r"target: expected labels in \[0, 4\) or ignore_index -100, got 4 at row 2"):
        function(requiring_grad(logits), target)


@needs_native
def test_values_in_tensors_are_checked_in_a_compiled_graph():
    function = compiled(lambda z, y, t: ensemble_kd_loss(z, y, temperature=t, backend="native").loss)
    logits, target = batch(students=2, classes=4)
    function(requiring_grad(logits), target, torch.tensor(2.0))
    with pytest.raises(GRAPH_ERROR, match="temperature: expected a finite number > 0, got -2"):
        function(requiring_grad(logits), target, torch.tensor(-2.0))


def test_labels_make_the_loss_nan_in_a_compiled_graph_of_the_reference():
    function = compiled(lambda z, y: ensemble_kd_loss(z, y, backend="reference").loss)
    logits, target = batch(students=2, classes=4)
    assert function(logits, target).isfinite()
    target[2] = -7
    assert function(logits, target).isnan()


def test_a_number_of_items_that_is_a_tensor():
    logits, target = batch(students=2)
    num_items = torch.tensor(3)

    def loss_of(logits, target, num_items):
        return ensemble_kd_loss(logits, target, num_items=num_items).loss

    expected = loss_of(logits, target, num_items)
    torch.testing.assert_close(compiled(loss_of)(logits, target, num_items), expected)
