"""The compiled CPU kernel: threads and instruction sets."""

import math

import pytest
import torch

from oekd_fast import ensemble_kd_loss
from oekd_fast.losses import native_ops

from ..conftest import IMPLEMENTATIONS, ISAS, batch, needs_native, op_kwargs
from ..support.objectives import OBJECTIVES

pytestmark = needs_native
ops = torch.ops.oekd_fast
OPS = (ops.ensemble_kd_value, ops.ensemble_kd_value_and_grad, ops.ensemble_kd_value_and_grad_out)
COMPILED = [name for name in IMPLEMENTATIONS if name.startswith("native")]
SHAPES = [(5, 128, 10), (3, 64, 1271), (5, 7, 5000), (2, 3, 40000), (1, 1, 2)]


def run(name, logits, target, **options):
    output, grads = IMPLEMENTATIONS[name](logits, target, **options)
    return [*output, *grads]


def same_bits(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", COMPILED)
def test_bits_do_not_depend_on_threads_or_runs(name, shape, dtype, threads):
    logits, target = batch(*shape, dtype=dtype)
    threads(1)
    alone = run(name, logits, target)
    assert same_bits(run(name, logits, target), alone)
    threads(2)
    assert all(same_bits(run(name, logits, target), alone) for _ in range(3))


@pytest.mark.parametrize("options", [{}, {"temperature": 2.5}, {"label_smoothing": 0.1}, {"reduction": "sum"}])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_value_alone_is_the_value_with_gradients(shape, isa, options):
    logits, target = batch(*shape)
    target[0] = -100
    value = ops.ensemble_kd_value(logits, target, **op_kwargs(**options), isa=isa)
    assert same_bits(value, run(f"native-{isa}", logits, target, **options)[:5])


@pytest.mark.parametrize("shape", SHAPES)
def test_public_forms_give_the_same_value(shape):
    logits, target = batch(*shape)
    expected = run("native", logits, target)[:5]
    assert same_bits(ensemble_kd_loss(logits, target, backend="native"), expected)
    leaves = [z.requires_grad_() for z in logits]
    assert same_bits(ensemble_kd_loss(leaves, target, backend="native"), expected)


@pytest.mark.parametrize("classes", [3, 511, 1024, 2500])
@pytest.mark.parametrize("name", COMPILED)
def test_a_shift_of_all_logits_changes_no_bit(name, classes):
    logits, target = batch(2, 4, classes)
    logits = [(256 * z).round() / 256 for z in logits]  # so that the shift is exact
    for smoothing in (0.0, 0.1, 1.0):
        expected = run(name, logits, target, label_smoothing=smoothing)
        assert same_bits(run(name, [z + 2048 for z in logits], target, label_smoothing=smoothing), expected)


@pytest.mark.parametrize("classes", [3, 511, 1024, 2500])
@pytest.mark.parametrize("name", COMPILED)
def test_equal_logits_have_a_uniform_softmax_exactly(name, classes):
    logits = [torch.full((1, classes), size) for size in (0.7, 873.3, -1e6)]
    for smoothing in (0.0, 0.3, 1.0):
        ce = run(name, logits, torch.tensor([1]), label_smoothing=smoothing)[1]
        assert ce.tolist() == [torch.tensor(math.log(classes)).item()] * 3


def test_auto_is_the_widest_instruction_set():
    assert ISAS[-1] == "baseline"
    logits, target = batch(classes=3000)
    assert same_bits(run("native", logits, target), run(f"native-{ISAS[0]}", logits, target))


@pytest.mark.parametrize("isa", ["avx1024", "", "AUTO", "avx512 "])
@pytest.mark.parametrize("rows", [0, 3])
def test_an_unavailable_instruction_set_raises(isa, rows):
    logits, target = batch(rows=rows)
    with pytest.raises(ValueError, match=rf"isa: expected one of auto, .*baseline on this processor, got {isa}"):
        native_ops.ensemble_kd_value(logits, target, **op_kwargs(), isa=isa)


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_only_instruction_sets_of_this_processor_are_offered(isa):
    capability = torch.backends.cpu.get_cpu_capability()  # the capability that torch's own kernels use
    known = {"DEFAULT": set(), "AVX2": {"avx2"}, "AVX512": {"avx2", "avx512"}}
    if capability not in known:
        pytest.skip(f"torch reports {capability}: not an x86 processor")
    logits, target = batch()
    if isa in ISAS:
        run(f"native-{isa}", logits, target)  # an illegal instruction would end the process
    else:
        with pytest.raises(ValueError, match="on this processor"):
            native_ops.ensemble_kd_value(logits, target, **op_kwargs(), isa=isa)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_subnormal_numbers_still_work_afterwards(num_threads, threads):
    threads(num_threads)
    logits, target = batch(rows=256, classes=1000)
    run("native", logits, target)
    tiny = torch.full((1 << 20,), 1e-40)
    assert torch.equal(tiny * 0.5, torch.full_like(tiny, 5e-41)) and (tiny * 0.5 > 0).all()


def test_calls_from_several_threads_do_not_disturb_each_other():
    from concurrent.futures import ThreadPoolExecutor

    problems = [batch(classes=c, rows=32) for c in (10, 100, 2000, 5000)]
    expected = [run("native", *problem) for problem in problems]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            actual = list(pool.map(lambda problem: run("native", *problem), problems))
            assert all(same_bits(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if "T = 2.5" not in name])
@pytest.mark.parametrize("isa", ISAS)
def test_objectives_do_not_depend_on_threads_or_gradients(isa, name, threads):
    _, tensors, arguments = OBJECTIVES[name]
    logits, target = batch(4, 64, 1271)
    target[::5] = -100
    options = {**tensors(4, 64, 1271), **arguments}
    threads(1)
    alone = run(f"native-{isa}", logits, target, **options)
    threads(2)
    assert same_bits(run(f"native-{isa}", logits, target, **options), alone)
    assert same_bits(ops.ensemble_kd_value(logits, target, **op_kwargs(**options), isa=isa), alone[:5])
