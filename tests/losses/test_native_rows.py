"""The CPU kernels with rows anywhere in memory, on each instruction set: images of labels, whose rows are adjacent, and
others, which are copied to scratch memory in blocks."""

import math

import pytest
import torch
import torch.nn.functional as F

from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad
from oekd_fast.losses import native_ops

from ..conftest import IMPLEMENTATIONS, ISAS, needs_native, op_kwargs
from ..support.plain_loss import Expected

pytestmark = [needs_native, pytest.mark.usefixtures("one_thread")]
OUTER, C, INNER = 2, 19, 70  # rows [OUTER, INNER]: neither blocks nor vectors divide INNER


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(students=3, shape=(OUTER, C, INNER), dtype=torch.float32, scale=3.0):
    return [(scale * torch.randn(shape, generator=generator(j))).to(dtype) for j in range(students)]


def labels(shape=(OUTER, C, INNER), ignored=True):
    target = torch.randint(shape[1], (shape[0], shape[2]), generator=generator(99))
    if ignored:
        target[:, ::7] = -100
        target[0, 16:32] = -100  # whole vectors
    return target


def soft_labels(shape=(OUTER, C, INNER)):
    soft = F.softmax(2 * torch.randn(shape, generator=generator(98)), dim=1)
    soft[:, :, ::5] = F.one_hot(labels(shape, ignored=False)[:, ::5], shape[1]).movedim(-1, 1).float()
    return soft


WEIGHT = torch.rand(C, generator=generator(97)) + 0.1
# name: (probabilities as labels, options)
OPTIONS = {
    "plain": (False, {}),
    "T = 1": (False, {"temperature": 1.0}),
    "T = 3": (False, {"temperature": 3.0}),
    "T = 4": (False, {"temperature": 4.0}),
    "T = 2.5": (False, {"temperature": 2.5}),
    "smoothing": (False, {"label_smoothing": 0.1}),
    "class weights": (False, {"weight": WEIGHT}),
    "class weights, smoothing": (False, {"weight": WEIGHT, "label_smoothing": 0.2, "temperature": 2.5}),
    "probabilities": (True, {}),
    "probabilities, class weights, smoothing": (True, {"weight": WEIGHT, "label_smoothing": 0.2}),
    "a teacher": (False, {"teacher_logits": 4 * torch.randn(OUTER, C, INNER, generator=generator(50))}),
    "a row": (False, {"reduction": "none", "weight": WEIGHT}),
    "a row, probabilities, a teacher": (
        True,
        {"reduction": "none", "teacher_logits": torch.randn(OUTER, C, INNER, generator=generator(50)).bfloat16()},
    ),
    "sum": (False, {"reduction": "sum"}),
    "num_items": (False, {"num_items": 77, "weight": WEIGHT}),
    "the ensemble learns": (True, {"ensemble_ce_weight": 0.5, "weight": WEIGHT, "label_smoothing": 0.1}),
    "reverse": (False, {"divergence_kind": "reverse", "kd_weight": 1.0}),
    "js": (False, {"divergence_kind": "js", "beta": 0.3, "kd_weight": 1.0}),
    "standardised": (False, {"standardise_logits": True, "kd_weight": 1.0, "weight": WEIGHT, "label_smoothing": 0.1}),
    "standardised, a teacher, a row": (
        True,
        {
            "standardise_logits": True,
            "reduction": "none",
            "temperature": 2.5,
            "teacher_logits": 4 * torch.randn(OUTER, C, INNER, generator=generator(50)) + 30,
        },
    ),
}
# Rows adjacent in memory; then rows for which blocks are copied.
LAYOUTS = {
    "adjacent rows": lambda z: z.contiguous(),
    "every second row": lambda z: torch.stack([z, z], dim=3)[..., 1],
    "classes last": lambda z: z.movedim(1, -1).contiguous().movedim(-1, 1),
    "rows of several images": lambda z: z.movedim(0, -1).contiguous().movedim(-1, 0),
}


def run(isa, logits, target, **options):
    """Call the op with the arguments of the loss."""
    options = dict(options)
    if "divergence_kind" in options:
        options["divergence"] = options.pop("divergence_kind")
    if "teacher_logits" in options:
        options["teacher_logits"] = [options["teacher_logits"]]
    return IMPLEMENTATIONS[f"native-{isa}"](logits, target, **options)


def same_bits(a, b):
    return all(torch.equal(x, y) for x, y in zip((*a[0], *a[1]), (*b[0], *b[1]), strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPTIONS)
def test_options_in_every_layout(name, layout):
    soft, options = OPTIONS[name]
    logits, target = images(), soft_labels() if soft else labels()
    upstream = None
    if options.get("reduction") == "none":
        upstream = torch.rand(OUTER * INNER, generator=generator(5))
    expected = Expected(logits, target, upstream=upstream, **options)
    laid_out = [LAYOUTS[layout](z) for z in logits]
    if "teacher_logits" in options:
        options = options | {"teacher_logits": LAYOUTS[layout](options["teacher_logits"])}
    for isa in ISAS:
        expected.check(*run(isa, laid_out, LAYOUTS[layout](target) if soft else target, grad_scale=upstream, **options))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
def test_half_precision(dtype, soft):
    logits, target = images(dtype=dtype), soft_labels().to(dtype) if soft else labels()
    expected = Expected(logits, target, weight=WEIGHT)
    for isa in ISAS:
        for layout in ("adjacent rows", "every second row"):
            expected.check(*run(isa, [LAYOUTS[layout](z) for z in logits], target, weight=WEIGHT))


@pytest.mark.parametrize("shape", [(1, 2, 16), (3, 1, 40), (1, 300, 33), (2, 21, 600), (40, 5, 17)], ids=str)
def test_sizes_of_images(shape):
    logits, target = images(shape=shape), labels(shape)
    expected = Expected(logits, target)
    for isa in ISAS:
        output, grads = run(isa, logits, target)
        if shape[1] > 1:
            expected.check(output, grads)
        else:
            assert output.loss == 0 and not any(grad.any() for grad in grads)


def test_the_kernels_of_both_layouts_agree_on_extreme_logits():
    logits, target = images(), labels()
    for z in logits:
        z[:, 3::4] = -math.inf
    logits[1][:, 2] = -math.inf
    logits[0] += 500.0
    logits[2][:, :, 5] *= 1e4
    target = torch.where(target % 4 > 1, 0, target)
    for z in logits:
        z.movedim(1, -1)[target == -100] = math.nan
    weights = torch.tensor([0.5, 0.0, 0.5])  # excludes a student
    for isa in ISAS:
        right = run(isa, [LAYOUTS["classes last"](z) for z in logits], target, ensemble_weights=weights)
        output, grads = run(isa, logits, target, ensemble_weights=weights)
        for actual, expected in zip((*output, *grads), (*right[0], *right[1]), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)
        assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("classes", [3, 19, 511])
def test_equal_logits_have_a_uniform_softmax_exactly(classes):
    logits = [torch.full((1, classes, 24), size) for size in (0.7, 873.3, -1e6)]
    for isa in ISAS:
        for smoothing in (0.0, 0.3, 1.0):
            ce = run(isa, logits, torch.zeros(1, 24, dtype=torch.int64), label_smoothing=smoothing)[0].ce
            assert ce.tolist() == [torch.tensor(math.log(classes)).item()] * 3


@pytest.mark.parametrize("name", ["plain", "class weights, smoothing", "probabilities", "js", "a row"])
def test_bits_do_not_depend_on_threads_or_gradients(name, threads):
    soft, options = OPTIONS[name]
    shape = (3, C, 4000)  # many pieces of work
    logits, target = images(shape=shape), soft_labels(shape) if soft else labels(shape)
    threads(1)
    alone = run(ISAS[0], logits, target, **options)
    threads(2)
    assert same_bits(run(ISAS[0], logits, target, **options), alone)
    public = {"divergence" if key == "divergence_kind" else key: value for key, value in options.items()}
    value = ensemble_kd_loss(logits, target, backend="native", **public)
    assert torch.equal(value.loss.flatten(), alone[0].loss.flatten()) and torch.equal(value.correct, alone[0].correct)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_hot_probabilities_equal_indices(layout, smoothing, weighted):
    logits = [LAYOUTS[layout](z) for z in images()]
    target = labels(ignored=False)
    soft = LAYOUTS[layout](F.one_hot(target, C).movedim(-1, 1).float())
    options = {"label_smoothing": smoothing, "reduction": "sum"} | ({"weight": WEIGHT} if weighted else {})
    for isa in ISAS:
        assert same_bits(run(isa, logits, soft, **options), run(isa, logits, target, **options))


@pytest.mark.parametrize("layout", [*LAYOUTS, "cropped"])
def test_out_is_fully_written_and_nothing_around_it(layout):
    logits, target = images(students=2), labels()
    _, right = run(ISAS[0], logits, target)
    for isa in ISAS:
        for laid_out in (logits, [LAYOUTS["classes last"](z) for z in logits]):
            areas = [torch.full((OUTER + 2, C + 2, INNER + 2, 3), math.nan) for _ in logits]
            out = []
            for area in areas:
                inner = area[1:-1, 1:-1, 1:-1, 1] if layout == "cropped" else area.view(-1)[64 : 64 + OUTER * C * INNER]
                if layout == "every second row":
                    inner = area.view(-1)[64 : 64 + 2 * OUTER * C * INNER].view(OUTER, C, INNER, 2)[..., 0]
                elif layout == "classes last":
                    inner = inner.view(OUTER, INNER, C).movedim(-1, 1)
                elif layout == "rows of several images":
                    inner = inner.view(C, INNER, OUTER).movedim(-1, 0)
                out.append(inner.view(OUTER, C, INNER) if layout == "adjacent rows" else inner)
            _, grads = run(isa, laid_out, target, out=out)
            for grad, expected, area in zip(grads, right, areas, strict=True):
                torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-9)
                assert area.numel() - area.isnan().sum() == expected.numel()


def test_large_gradients_of_images_are_fully_written_and_nothing_around_them():
    # At 17 MB a kernel writes around the caches. Rows start anywhere in a cache line.
    shape = (2, 21, 50_001)
    logits, target = images(students=2, shape=shape), labels(shape)
    areas = [torch.full((2 * 21 * 50_001 + 64,), math.nan) for _ in logits]
    out = [area[33:-31].view(shape) for area in areas]
    run(ISAS[0], logits, target, out=out, reduction="sum")
    right = [torch.empty(z.movedim(1, -1).shape).movedim(-1, 1) for z in logits]  # by the other kernel
    run(ISAS[0], logits, target, out=right, reduction="sum")
    for area, grad, expected in zip(areas, out, right, strict=True):
        assert area[:33].isnan().all() and area[-31:].isnan().all()
        torch.testing.assert_close(grad, expected, rtol=1e-6, atol=3e-7)


def test_out_may_be_the_logits_of_images():
    for layout in LAYOUTS:
        logits, target = [LAYOUTS[layout](z) for z in images()], labels()
        _, expected = run(ISAS[0], logits, target)
        run(ISAS[0], logits, target, out=logits)
        assert all(torch.equal(z, grad) for z, grad in zip(logits, expected, strict=True))


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("shape, class_dim", [((6, 5), 1), ((2, 5, 3, 4), 1), ((2, 3, 5), -1)], ids=str)
def test_several_upstream_gradients_at_once_without_a_reduction(shape, class_dim, stacked):
    logits = torch.stack(images(shape=shape))
    leaves = logits.requires_grad_() if stacked else [z.detach().requires_grad_() for z in logits]
    rows = [*shape]
    del rows[class_dim]
    target = torch.randint(5, rows, generator=generator(3))
    loss = ensemble_kd_loss(leaves, target, class_dim=class_dim, reduction="none", backend="native").loss
    upstream = torch.rand(3, *rows, generator=generator(4))
    batched = torch.autograd.grad(loss, leaves, upstream, is_grads_batched=True, retain_graph=True)
    for i in range(3):
        one = torch.autograd.grad(loss, leaves, upstream[i], retain_graph=True)
        for many, single in zip(batched, one, strict=True):
            torch.testing.assert_close(many[i], single, rtol=1e-5, atol=1e-8)


def test_several_upstream_gradients_of_rows_do_not_reach_ensemble_weights():
    logits, target = [z.requires_grad_() for z in images(shape=(6, 5))], torch.arange(6) % 5
    weights = torch.full((3,), 1 / 3, requires_grad=True)
    options = {"ensemble_weights": weights, "ensemble_ce_weight": 1.0, "reduction": "none", "backend": "native"}
    loss = ensemble_kd_loss(logits, target, **options).loss
    with pytest.raises(RuntimeError, match="is_grads_batched=True with reduction='none' and ensemble_weights"):
        torch.autograd.grad(loss, [*logits, weights], torch.ones(2, 6), is_grads_batched=True)


def test_the_op_without_a_reduction_takes_a_grad_scale_a_row():
    logits, target = images(shape=(6, 5)), torch.arange(6) % 5
    scale = torch.tensor([1.0, 0.0, -2.0, 0.5, 3.0, 1.0])
    _, ones = ensemble_kd_value_and_grad(logits, target, reduction="none", backend="native")
    _, grads = ensemble_kd_value_and_grad(logits, target, reduction="none", grad_scale=scale, backend="native")
    for grad, one in zip(grads, ones, strict=True):
        torch.testing.assert_close(grad, one * scale[:, None], rtol=1e-5, atol=1e-8)
    with pytest.raises(ValueError, match=r"^grad_scale: expected one element or \[6\] on the CPU, got \[5\]"):
        native_ops.ensemble_kd_value_and_grad(logits, target, **op_kwargs(reduction="none"), grad_scale=torch.ones(5))
