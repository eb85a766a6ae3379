"""A share of the campaign of random calls of the loss, and checks that the campaign finds faults."""

import json
from dataclasses import replace

import pytest
import torch

from oekd_fast import ensemble_kd_loss

from ..conftest import IMPLEMENTATIONS, ISAS, batch, needs_native
from ..support.exact_calls import ExactCall, softmax_changes
from ..support.random_calls import RandomCall, random_call
from . import fuzz_loss
from .fuzz_loss import Result, errors_of, faults_of, fuzz

pytestmark = [needs_native, pytest.mark.usefixtures("one_thread")]


@pytest.mark.slow
def test_random_calls_are_as_exact_as_pytorch():
    assert fuzz(seed=1, calls=range(300)) == []


def test_a_call_is_made_again_from_its_seed():
    def contents(seed):
        call = random_call(seed, 17)
        tensors = [*call.logits, *call.options.get("teacher_logits", [])]
        return str(call), [t.tolist() for t in tensors]

    assert contents(3) == contents(3)
    assert contents(3) != contents(4)


def test_the_truth_is_the_reference_in_float64():
    for index in range(60):
        call = random_call(2, index)
        errors = errors_of(Result.of(call.exact(), IMPLEMENTATIONS["reference"]), ExactCall(call))
        assert max(errors.values()) < 1e-12, (index, errors)


def test_the_change_of_a_softmax_is_a_bound_that_is_reached():
    generator = torch.Generator().manual_seed(0)
    for scale in (0.1, 3.0, 30.0):
        logits = scale * torch.randn(200, 6, generator=generator, dtype=torch.float64)
        sizes = 10.0 * torch.rand(200, 6, generator=generator, dtype=torch.float64)
        p, step = logits.softmax(dim=1), 1e-7
        bound = step * softmax_changes(p, sizes)
        # The largest change of a class comes from its own exponent in one direction and all others in the other.
        signs = 2.0 * torch.eye(6, dtype=torch.float64) - 1.0
        for k in range(6):
            change = ((logits + step * sizes * signs[k]).softmax(dim=1) - p)[:, k].abs()
            torch.testing.assert_close(change, bound[:, k], rtol=1e-4, atol=1e-15)


def rounded(**options):
    """Two students of 3 rows whose logits are a few integers, so that sums add equal numbers."""
    logits, target = batch(2, 3, 1023, scale=1.0)
    given = {"temperature": 2.0, "ce_weight": 0.7, "kd_weight": 0.15, "ensemble_ce_weight": 0.0, "reduction": "mean"}
    given |= {"label_smoothing": 0.0, "ignore_index": -100, **options}
    return RandomCall([z.round() for z in logits], target, given, None)


CALLS = {
    "sums of a few numbers": rounded(temperature=27.8),
    "sums of a few numbers, as a power": rounded(temperature=4.0),
    "equal logits": replace(rounded(label_smoothing=1.0), logits=[torch.full((3, 1024), 873.3) for _ in range(2)]),
    "logits far from zero": replace(rounded(label_smoothing=0.1), logits=[z + 3000 for z in rounded().logits]),
    "gradient of equal weights": rounded(
        label_smoothing=0.3, ensemble_ce_weight=1.0, ensemble_weights=torch.tensor([0.4, 0.6])
    ),
    "gradient of weights whose ensemble is far from the students' largest logits": replace(
        rounded(ensemble_ce_weight=1.0, ensemble_weights=torch.tensor([-0.1, 0.02])),
        logits=[torch.tensor([[200.0] + 1000 * [0.0]] * 3), torch.tensor([[0.1] + 1000 * [0.2]] * 3)],
        target=torch.tensor([0, 1, 2]),
    ),
    "probabilities below the smallest normal number": replace(
        rounded(ensemble_weights=torch.tensor([0.9])),
        logits=[torch.tensor([[0.0, 1.5, 200.0], [0.5, 0.0, 200.0], [0.0, 0.0, 200.0]])],
        target=torch.tensor([0, 2, 2]),
    ),
    "a mixture undecided between two large logits": replace(
        rounded(ensemble_weights=torch.tensor([0.3, 0.7]), temperature=10.0),
        logits=[torch.tensor([[3001.7, -2999.1, 0.0]] * 3), torch.tensor([[-1286.44, 1285.33, 0.0]] * 3)],
        target=torch.tensor([0, 1, 2]),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_with_large_rounding_errors(name):
    assert faults_of(CALLS[name]) == []


@pytest.fixture
def few_orders(monkeypatch):
    """Let PyTorch sum in few orders, since each of them takes time if an error is too large in all."""
    monkeypatch.setattr(fuzz_loss, "ORDERS", 4)


def plant(monkeypatch, change):
    """Let `change` spoil the results of the baseline kernel."""
    name = f"native-{ISAS[-1]}"
    kernel = IMPLEMENTATIONS[name]

    def value_and_grad(*args, **options):
        return change(*kernel(*args, **options), options["weights_grad"])

    monkeypatch.setitem(IMPLEMENTATIONS, name, value_and_grad)


def is_found(text, calls=range(40)):
    """Whether the campaign finds a fault with this text in one of the calls."""
    return any(text in fault for index in calls for fault in faults_of(random_call(0, index)))


@pytest.mark.parametrize("name", fuzz_loss.STATISTICS)
def test_a_statistic_that_is_wrong_by_three_millionths_is_found(name, monkeypatch, few_orders):
    def change(output, grads, _):
        return output._replace(**{name: (1 + 3e-6) * getattr(output, name)}), grads

    plant(monkeypatch, change)
    assert is_found(f"{ISAS[-1]}: {name}: error")


@pytest.mark.parametrize("name", ["grads", "weights_grad"])
def test_gradients_that_are_wrong_by_three_millionths_are_found(name, monkeypatch, few_orders):
    def change(output, grads, weights_grad):
        for grad in grads if name == "grads" else [weights_grad]:
            if grad is not None:
                grad *= 1 + 3e-6
        return output, grads

    plant(monkeypatch, change)
    assert is_found(f"{ISAS[-1]}: {name}: error")


def test_a_single_wrong_gradient_or_nan_is_found(monkeypatch, few_orders):
    def change(output, grads, _):
        grads[-1][-1:, -1:] += 1e-4
        return output, grads

    plant(monkeypatch, change)
    assert is_found(f"{ISAS[-1]}: grads: error")
    plant(monkeypatch, lambda output, grads, _: (output._replace(loss=output.loss * torch.nan), grads))
    assert is_found(f"{ISAS[-1]}: loss: error nan", range(1))


@pytest.mark.parametrize("student", [0, -1])
def test_a_wrong_count_is_found(student, monkeypatch):
    def change(output, grads, _):
        output.correct[student] += 1
        return output, grads

    plant(monkeypatch, change)
    assert is_found(f"{ISAS[-1]}: correct: ")


def test_other_bits_of_the_value_and_of_backward_are_found(monkeypatch):
    def other_value(logits, *args, **options):
        output = ensemble_kd_loss(logits, *args, **options)
        return output if logits[0].requires_grad else output._replace(loss=1.0000002 * output.loss)

    def other_backward(logits, *args, **options):
        for z in logits:
            if z.requires_grad:
                z.register_hook(lambda grad: 1.0000002 * grad)
        return ensemble_kd_loss(logits, *args, **options)

    for wrong, text in (
        (other_value, "the value without gradients has other bits"),
        (other_backward, ".backward() has other bits"),
    ):
        monkeypatch.setattr(fuzz_loss, "ensemble_kd_loss", wrong)
        assert any(faults_of(random_call(0, index)) == [text] for index in range(8))


def test_an_exception_is_a_fault_with_its_call(monkeypatch, capsys):
    def fails(*args, **options):
        raise RuntimeError("out of order")

    monkeypatch.setitem(IMPLEMENTATIONS, f"native-{ISAS[0]}", fails)
    (fault,) = fuzz(seed=5, calls=[7])
    assert fault["faults"] == ["RuntimeError: out of order"] and (fault["seed"], fault["call"]) == (5, 7)
    assert "--seed 5 --call 7: RuntimeError: out of order" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_the_command_writes_its_result(tmp_path):
    output = tmp_path / "result.json"
    assert fuzz_loss.main(["--calls", "3", "--seed", "6", "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert result["complete"] and result["calls"] == 3 and result["faults"] == []
