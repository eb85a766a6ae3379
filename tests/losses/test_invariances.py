"""Properties of the loss on random problems: exactness, permutations of students, shifts of rows."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ..conftest import IMPLEMENTATIONS, batch
from ..support import oracle
from ..support.kd_cases import TEMPERATURES

pytestmark = pytest.mark.usefixtures("one_thread")
examples = settings(deadline=None, derandomize=True, database=None, max_examples=20)


@st.composite
def problems(draw):
    return {
        "students": draw(st.integers(1, 6)),
        "rows": draw(st.integers(1, 5)),
        "classes": draw(st.one_of(st.integers(2, 40), st.sampled_from([1023, 1024, 1025, 2100]))),
        "temperature": draw(st.sampled_from(TEMPERATURES)),
        "scale": draw(st.sampled_from([0.1, 3.0, 100.0])),
        "seed": draw(st.integers(0, 1000)),
    }


def build(problem):
    return batch(*(problem[k] for k in ("students", "rows", "classes")), scale=problem["scale"], seed=problem["seed"])


each_implementation = pytest.mark.parametrize("name", IMPLEMENTATIONS)


@each_implementation
@examples
@example(
    problem={"students": 4, "rows": 4, "classes": 1023, "temperature": 10.0, "scale": 100.0, "seed": 104}, smoothing=0.0
)
@example(
    problem={"students": 6, "rows": 5, "classes": 2, "temperature": 1.0, "scale": 100.0, "seed": 180}, smoothing=0.0
)
@given(problem=problems(), smoothing=st.sampled_from([0.0, 0.1]))
def test_random_problems(name, problem, smoothing):
    logits, target = build(problem)
    options = {"temperature": problem["temperature"], "label_smoothing": smoothing}
    output, grads = IMPLEMENTATIONS[name](logits, target, **options)
    truth = oracle.ensemble_kd(logits, target, **options)
    naive = [oracle.naive(logits, target, order=order, **options) for order in range(4)]
    # A result may be the small difference of larger terms, whose rounding counts. The sum of a softmax is 1.
    rows_of_ones = (0.7 + 0.15 * problem["temperature"]) * len(logits) / len(target) ** 0.5
    # The ensemble's logits are sums over the students, rounded in proportion to the largest logits.
    largest = torch.stack(logits).abs().mean(dim=0).amax(dim=1).mean().item()
    terms = {
        "ce": len(logits),
        "ensemble_ce": 1.0 + largest,
        "kd": truth.kd_terms + len(logits),
        "grads": rows_of_ones,
    }
    for field, size in terms.items():
        right = getattr(truth, field)
        actual = oracle.stack(grads) if field == "grads" else getattr(output, field).double().numpy()
        allowed = max(np.linalg.norm(getattr(plain, field) - right) for plain in naive)
        assert np.linalg.norm(actual - right) <= allowed + oracle.EPSILON * (np.linalg.norm(right) + size), field
    weighted = 0.7 * output.ce.double().sum() + 0.15 * output.kd.double().sum()
    assert oracle.error(output.loss, weighted) <= 2 * oracle.EPSILON
    assert (output.kd >= 0).all() and (output.ce >= 0).all()
    # Rows of a gradient are differences of probabilities, so they sum to 0. Three softmaxes are rounded: the student's
    # at temperature 1, and the student's and the target's at T.
    allowed = max(np.abs(plain.grads.sum(axis=2)).max() for plain in naive)
    allowed += 2 * oracle.EPSILON * (0.7 + 2 * 0.15 * problem["temperature"]) / len(target)
    assert np.abs(oracle.stack(grads).sum(axis=2)).max() <= allowed


@each_implementation
@examples
@given(problem=problems(), data=st.data())
def test_permuting_students_permutes_what_comes_out(name, problem, data):
    logits, target = build(problem)
    order = data.draw(st.permutations(range(len(logits))))
    weights = torch.arange(1.0, len(logits) + 1) / sum(range(len(logits) + 1))
    output, grads = IMPLEMENTATIONS[name](logits, target, ensemble_weights=weights)
    mixed, mixed_grads = IMPLEMENTATIONS[name](
        [logits[j] for j in order], target, ensemble_weights=weights[list(order)]
    )
    # Cross-entropies do not depend on the other students. The ensemble sums in another order, which changes rounding.
    assert torch.equal(mixed.ce, output.ce[list(order)])
    assert torch.equal(mixed.correct[:-1], output.correct[list(order)])
    reach = max(z.abs().max().item() for z in logits)  # zE changes by EPSILON * reach, and so does log t
    assert oracle.error(mixed.loss, output.loss) <= oracle.EPSILON * (10 + reach)
    expected = oracle.stack([grads[j] for j in order])
    assert oracle.error(oracle.stack(mixed_grads), expected) <= oracle.EPSILON * (10 + reach)


@each_implementation
@examples
@given(problem=problems(), power=st.integers(-3, 9))
def test_a_constant_added_to_a_row_changes_nothing(name, problem, power):
    # Multiples of 1/8 below 2^12 and a power of two: every sum, and the mean of 2^k students, is exact.
    problem = problem | {"students": 2 ** (problem["students"] % 3)}
    logits, target = build(problem)
    logits = [(z * 8).round() / 8 for z in logits]
    options = {"temperature": problem["temperature"]}
    output, grads = IMPLEMENTATIONS[name](logits, target, **options)
    if name == "reference":  # log_softmax(z / T) divides first: exact only where T is a power of two
        options["temperature"] = 2.0
        output, grads = IMPLEMENTATIONS[name](logits, target, **options)
    moved, moved_grads = IMPLEMENTATIONS[name]([z + 2.0**power for z in logits], target, **options)
    assert all(torch.equal(a, b) for a, b in zip(moved, output, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(moved_grads, grads, strict=True))
