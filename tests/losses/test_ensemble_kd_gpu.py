"""The ensemble loss on a GPU: accuracy in every regime, graphs, streams, synchronisation, launches, memory."""

import pytest
import torch

from bench.gpu.profile import kernels_of, peak_extra_bytes, profiler_sees_kernels
from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad

from ..conftest import batch
from ..support import oracle

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DEVICE = "cuda"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# (rows, classes): what each regime of kernels/ensemble_kd/plan.py does with five students.
REGIMES = {"rows": (300, 100), "resident": (257, 1000), "streamed": (64, 32000)}
SIZES = pytest.mark.parametrize("size", REGIMES.values(), ids=REGIMES)
# Every form of the accuracy tests: powers of two or not, rows a multiple of 16 bytes or not.
CLASSES = {2: 70, 10: 70, 100: 37, 1000: 9, 4096: 5, 5000: 5, 32000: 3, 128256: 2}  # classes: rows
MEGABYTE = 1 << 20


def problem(rows, classes, dtype=torch.bfloat16, seed=0, students=5):
    logits, target = batch(students, rows, classes, dtype=dtype, seed=seed)
    return [z.to(DEVICE) for z in logits], target.to(DEVICE)


def value_and_grad(logits, target, **options):
    """Statistics and gradients as one flat list."""
    output, grads = ensemble_kd_value_and_grad(logits, target, backend="triton", **options)
    return [*output, *grads]


def by_autograd(logits, target, upstream=None, loss=ensemble_kd_loss, **options):
    leaves = [z.detach().requires_grad_() for z in logits]
    output = loss(leaves, target, backend="triton", **options)
    return [*(t.detach() for t in output), *torch.autograd.grad(output.loss, leaves, upstream)]


FORMS = pytest.mark.parametrize("form", [value_and_grad, by_autograd])


def same(came, expected):
    assert len(came) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(came, expected, strict=True))


def scalar(value):
    return torch.tensor(value, device=DEVICE)


# -- accuracy: error against fp64 at most that of naive PyTorch on this device + EPSILON


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", CLASSES)
def test_loss_and_gradients(classes, dtype):
    logits, target = problem(CLASSES[classes], classes, dtype)
    target[0] = -100
    expected = oracle.Expected(logits, target)
    out = [torch.full_like(z, float("nan")) for z in logits]
    output, grads = ensemble_kd_value_and_grad(logits, target, out=out, backend="triton")
    assert all(a is b for a, b in zip(grads, out, strict=True))
    expected.check(output, grads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", CLASSES)
def test_backward_with_an_upstream_gradient(classes, dtype):
    logits, target = problem(CLASSES[classes], classes, dtype)
    target[0] = -100
    leaves = [z.requires_grad_() for z in logits]
    output = ensemble_kd_loss(leaves, target, backend="triton")
    (scalar(2.5) * output.loss).backward()
    oracle.Expected([z.detach() for z in leaves], target, upstream=2.5).check(output, [z.grad for z in leaves])


@SIZES
@pytest.mark.parametrize(
    "options", [{"temperature": 2.5, "label_smoothing": 0.1, "reduction": "sum"}, {"ignore_index": 3}], ids=str
)
def test_options(size, options):
    logits, target = problem(min(size[0], 7), size[1], torch.float32)
    weights = torch.tensor([0.5, 0.0, 0.2, 0.2, 0.1], device=DEVICE)
    target[2] = 3
    expected = oracle.Expected(logits, target, ensemble_weights=weights, **options)
    output, grads = ensemble_kd_value_and_grad(
        logits, target, ensemble_weights=weights, grad_scale=scalar(1.0), backend="triton", **options
    )
    expected.check(output, grads)


@SIZES
@FORMS
def test_values_in_tensors_are_the_numbers_they_hold(size, form):
    logits, target = problem(*size)
    numbers = {"temperature": 2.5, "ce_weight": 0.25, "kd_weight": 0.5}  # no power of an exponential, exact in fp32
    expected = form(logits, target, **numbers)
    tensors = {name: scalar(number) for name, number in numbers.items()}
    same(form(logits, target, **tensors), expected)
    same(form(logits, target, **numbers | {"temperature": tensors["temperature"]}), expected)


@SIZES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_small_integer_in_a_tensor_is_as_exact_as_naive_pytorch(size, dtype):
    logits, target = problem(min(size[0], 7), size[1], dtype)
    output, grads = ensemble_kd_value_and_grad(logits, target, temperature=scalar(2.0), backend="triton")
    oracle.Expected(logits, target).check(output, grads)


@SIZES
def test_a_value_that_cannot_be_makes_the_loss_nan_and_is_found_where_asked(size):
    logits, target = problem(*size)
    output, _ = ensemble_kd_value_and_grad(logits, target, temperature=scalar(0.0), backend="triton")
    assert output.loss.isnan() and output.kd.isnan().all() and output.ce.isfinite().all()
    for form in (value_and_grad, by_autograd):
        with pytest.raises(ValueError, match="temperature: expected a finite number > 0, got 0.0"):
            form(logits, target, temperature=scalar(0.0), validate=True)
        with pytest.raises(ValueError, match="kd_weight: expected device cuda:0 as the logits, got cpu"):
            form(logits, target, kd_weight=torch.tensor(1.0))


@SIZES
def test_any_strides(size):
    logits, target = problem(5, size[1], torch.float32)
    expected = oracle.Expected(logits, target)
    columns = [z.t().contiguous().t() for z in logits]
    padded = [torch.cat([z, z[:, :3]], 1)[:, : size[1]] for z in logits]
    for strided in (columns, padded):
        output, grads = ensemble_kd_value_and_grad(strided, target, backend="triton")
        expected.check(output, grads)


@SIZES
@pytest.mark.parametrize("students", [1, 2, 8])
def test_other_numbers_of_students(size, students):
    logits, target = problem(5, size[1], torch.float32, students=students)
    output, grads = ensemble_kd_value_and_grad(logits, target, backend="triton")
    oracle.Expected(logits, target).check(output, grads)


@SIZES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_through_the_ensemble_and_of_its_weights(size, dtype):
    logits, target = problem(min(size[0], 7), size[1], dtype)
    weights = torch.tensor([0.3, 0.1, 0.2, 0.3, 0.1], device=DEVICE)

    def gradients(z, w, y, backend):
        leaves, w = [x.detach().requires_grad_() for x in z], w.detach().requires_grad_()
        output = ensemble_kd_loss(leaves, y, ensemble_weights=w, detach_ensemble=False, backend=backend)
        upstream = torch.tensor(0.5, dtype=output.loss.dtype, device=output.loss.device)
        *grads, of_weights = torch.autograd.grad(output.loss, [*leaves, w], upstream)
        return oracle.stack(grads), oracle.stack([of_weights])

    truth = gradients([z.double().cpu() for z in logits], weights.double().cpu(), target.cpu(), "reference")
    ours = gradients(logits, weights, target, "triton")
    # Sums that nearly cancel, five numbers of them: one order of the classes may round well by luck.
    allowed = [0.0, 0.0]
    for seed in range(8):
        order = torch.randperm(size[1], generator=torch.Generator().manual_seed(seed)).to(DEVICE)
        plain = gradients([z.float()[:, order] for z in logits], weights, order.argsort()[target], "reference")
        found = oracle.error(plain[0], truth[0][:, :, order.cpu().numpy()]), oracle.error(plain[1], truth[1])
        allowed = list(map(max, allowed, found))
    assert oracle.beyond_rounding(ours[0], truth[0], dtype) <= allowed[0] + oracle.EPSILON
    assert oracle.error(ours[1], truth[1]) <= allowed[1] + oracle.EPSILON


@SIZES
def test_labels_out_of_range_make_the_loss_nan_and_are_no_index(size):
    logits, target = problem(*size)
    good = value_and_grad(logits, target)
    bad = target.clone()
    bad[1], bad[3], bad[4] = size[1], -5, 1 << 40
    output, grads = ensemble_kd_value_and_grad(logits, bad, backend="triton")
    assert output.loss.isnan() and output.ce.isnan().all()
    assert torch.equal(output.kd, good[2]) and output.kd.isfinite().all()
    kept = torch.ones_like(target, dtype=torch.bool)
    kept[[1, 3, 4]] = False
    same([grad[kept] for grad in grads], [grad[kept] for grad in good[5:]])
    for form in (value_and_grad, by_autograd):
        with pytest.raises(ValueError, match="target: expected labels in"):
            form(logits, bad, validate=True)


@SIZES
def test_auto_takes_the_kernels(size):
    logits, target = problem(*size)
    same(ensemble_kd_loss(logits, target), ensemble_kd_loss(logits, target, backend="triton"))


# -- the same bits, whatever was in memory before and however programs were scheduled


@SIZES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@FORMS
def test_many_runs_give_the_same_bits(size, dtype, form):
    logits, target = problem(*size, dtype)
    expected = form(logits, target)
    for _ in range(20):
        same(form(logits, target), expected)


@SIZES
@FORMS
def test_nothing_uninitialised_is_read(size, form):
    logits, target = problem(*size)
    expected = form(logits, target)
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert torch.empty(1, device=DEVICE).isnan().all()
        same(form(logits, target), expected)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = before


# -- CUDA graphs


def capture(call):
    """The graph of a call, and what it returned."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    return graph, out


def refill(static, fresh):
    for old, new in zip((*static[0], static[1]), (*fresh[0], fresh[1]), strict=True):
        old.copy_(new)


@SIZES
@FORMS
def test_captured_in_a_graph_and_replayed_on_new_values(size, form):
    static = problem(*size)
    graph, out = capture(lambda: form(*static))
    for seed in (1, 2, 3):
        fresh = problem(*size, seed=seed)
        refill(static, fresh)
        graph.replay()
        same(out, form(*fresh))


@SIZES
@FORMS
@pytest.mark.parametrize("names", [("temperature",), ("temperature", "ce_weight", "kd_weight")], ids="+".join)
def test_values_changed_between_replays(size, form, names):
    logits, target = problem(*size)
    values = {name: scalar(0.5) for name in names}
    graph, out = capture(lambda: form(logits, target, **values))
    for number in (2.5, 2.0, 0.25):
        for value in values.values():
            value.fill_(number)
        graph.replay()
        same(out, form(logits, target, **{name: scalar(number) for name in names}))


@SIZES
def test_several_launches_in_one_graph_between_eager_calls(size):
    problems = [problem(*size, seed=seed) for seed in range(3)]
    expected = [form(*p) for p in problems for form in (value_and_grad, by_autograd)]
    graph, outs = capture(lambda: [form(*p) for p in problems for form in (value_and_grad, by_autograd)])
    for _ in range(5):
        graph.replay()
        eager = value_and_grad(*problems[1])  # right behind the replay
        graph.replay()
        same(eager, expected[2])
        for came, right in zip(outs, expected, strict=True):
            same(came, right)


@SIZES
def test_a_graph_beside_eager_calls_of_another_stream(size):
    static, other = problem(*size), problem(*size, seed=1)
    expected, expected_other = value_and_grad(*static), value_and_grad(*other)
    graph, out = capture(lambda: value_and_grad(*static))
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    eager = []
    for _ in range(10):
        graph.replay()
        with torch.cuda.stream(stream):
            eager.append(value_and_grad(*other))
    torch.cuda.synchronize()
    same(out, expected)
    for came in eager:
        same(came, expected_other)


# -- streams


@SIZES
@FORMS
def test_runs_on_the_current_stream(size, form):
    logits, target = problem(*size)
    expected = form(logits, target)
    late = [torch.zeros_like(z) for z in logits]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # what another stream ran meanwhile would see zeros
        refill((late, target.clone()), (logits, target))
        out = form(late, target)
    stream.synchronize()
    same(out, expected)


@SIZES
def test_two_streams_at_a_time_do_not_share_counters(size):
    problems = [problem(*size, seed=seed) for seed in range(2)]
    expected = [value_and_grad(*p) for p in problems]
    streams = [torch.cuda.Stream() for _ in problems]
    outs = [[], []]
    torch.cuda.synchronize()
    for _ in range(20):
        for p, stream, out in zip(problems, streams, outs, strict=True):
            with torch.cuda.stream(stream):
                out.append(value_and_grad(*p))
    torch.cuda.synchronize()
    for out, right in zip(outs, expected, strict=True):
        for came in out:
            same(came, right)


@SIZES
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second CUDA device")
def test_another_device_than_the_current_one(size):
    logits, target = problem(*size)
    expected = value_and_grad(logits, target) + by_autograd(logits, target)
    there = [z.to("cuda:1") for z in logits], target.to("cuda:1")
    came = value_and_grad(*there) + by_autograd(*there)
    assert all(t.device.index == 1 for t in came)
    same([t.to(DEVICE) for t in came], expected)


# -- the host, the compiler, launches, memory


@SIZES
def test_nothing_waits_for_the_device(size):
    logits, target = problem(*size)
    scale, out = scalar(2.0), [torch.empty_like(z) for z in logits]

    def calls():
        for form in (value_and_grad, by_autograd):
            form(logits, target, temperature=scale, kd_weight=scale)
        value_and_grad(logits, target, grad_scale=scale, out=out)
        value_and_grad(logits, target)
        by_autograd(logits, target, scale)

    calls()
    torch.cuda.set_sync_debug_mode("error")
    try:
        calls()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@SIZES
def test_compiled_in_one_graph(size):
    torch.compiler.reset()
    logits, target = problem(*size)
    compiled = torch.compile(ensemble_kd_loss, fullgraph=True, dynamic=False)
    upstream = scalar(2.5)
    came = by_autograd(logits, target, upstream, loss=compiled)
    same(came, by_autograd(logits, target, upstream))
    came = by_autograd(logits, target, upstream, loss=compiled, temperature=upstream)
    same(came, by_autograd(logits, target, upstream, temperature=upstream))
    torch.compiler.reset()


@SIZES
def test_launches(size):
    if not profiler_sees_kernels():
        pytest.skip("the profiler sees no kernels on this machine")
    logits, target = problem(*size)
    leaves = [z.detach().requires_grad_() for z in logits]
    out, upstream = [torch.empty_like(z) for z in logits], scalar(2.5)

    def forward_and_backward():
        torch.autograd.grad(ensemble_kd_loss(leaves, target, backend="triton").loss, leaves, upstream)

    for call, launches in (
        (lambda: value_and_grad(logits, target), 1),
        (lambda: value_and_grad(logits, target, out=out), 1),
        (lambda: ensemble_kd_loss(logits, target, backend="triton"), 1),
        (forward_and_backward, 2),
    ):
        call()
        names = kernels_of(call)
        assert len(names) == launches, names


@pytest.mark.parametrize("size", [(8192, 100), (2048, 1000), (2048, 32000)], ids=REGIMES)
def test_memory_beside_the_gradients(size):
    from oekd_fast.kernels.ensemble_kd.plan import plan_ensemble_kd, power_of_2

    rows, classes = size
    logits, target = problem(1, classes)
    logits = [z.repeat(rows, 1) for z in logits]
    target = target.repeat(rows)
    plan = plan_ensemble_kd(len(logits), classes, 2)
    chunks = -(-classes // (plan.tiles * plan.block)) if plan.regime == "streamed" else 0
    statistics = rows * (1 + chunks) * 2 * power_of_2(len(logits) + 1) * 4 * 4
    gradients = len(logits) * rows * classes * 2
    out = [torch.empty_like(z) for z in logits]
    for call, allowed in (
        (lambda: value_and_grad(logits, target, out=out), 0),
        (lambda: value_and_grad(logits, target), gradients),
        (lambda: by_autograd(logits, target), gradients),
    ):
        call()
        extra = peak_extra_bytes(call)
        assert extra <= allowed + statistics + 8 * MEGABYTE, (extra, allowed, statistics)
