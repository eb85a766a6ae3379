from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oekd_fast.models import Width, WidthRule, compression_ratio, scaled_channels

FIVE = (1, 0.8, 0.6, 0.4, 0.2)


def channels_of(channels, shares=FIVE, divisor=1):
    rule = WidthRule(shares, divisor)
    return [Width(j, len(shares), rule)(channels) for j in range(len(shares))]


def test_compression_ratios_of_five_students():
    assert [compression_ratio(j, 5) for j in range(5)] == [1.0, 0.8, 0.6, 0.4, 0.2]


@pytest.mark.parametrize(
    ("channels", "widths"), [(16, [16, 12, 9, 6, 3]), (32, [32, 25, 19, 12, 6]), (64, [64, 51, 38, 25, 12])]
)
def test_widths_of_five_students(channels, widths):
    assert [scaled_channels(channels, j, 5) for j in range(5)] == widths
    assert channels_of(channels) == widths


@given(st.integers(1, 10**20), st.integers(1, 100), st.data())
def test_scaled_channels_truncates_the_exact_quotient(channels, n, data):
    j = data.draw(st.integers(0, n - 1))
    assert scaled_channels(channels, j, n) == max(1, int(channels * Fraction(n - j, n)))


def test_scaled_channels_are_at_least_one():
    assert scaled_channels(3, 9, 10) == 1


@pytest.mark.parametrize(("j", "n", "message"), [(0, 0, "n: .*>= 1, got 0"), (5, 5, "0..4, got 5"), (-1, 5, "got -1")])
def test_a_student_out_of_range_is_rejected(j, n, message):
    with pytest.raises(ValueError, match=message):
        compression_ratio(j, n)
    with pytest.raises(ValueError, match=message):
        scaled_channels(16, j, n)
    with pytest.raises(ValueError, match=message):
        Width(j, n)


def test_channels_below_one_are_rejected():
    with pytest.raises(ValueError, match="channels: expected an integer >= 1, got 0"):
        scaled_channels(0, 0, 5)


def test_shares_are_exact():
    # 0.28 * 25 is 7.000000000000001 and 0.29 * 100 is 28.999999999999996 in floating point.
    assert channels_of(25, (1, 0.28)) == [25, 7]
    assert channels_of(100, (1, 0.29)) == [100, 29]
    assert WidthRule((1, 2 / 3, 1 / 3)).shares == (1, Fraction(2, 3), Fraction(1, 3))
    assert channels_of(48, (1, 2 / 3, 1 / 3)) == [48, 32, 16]
    assert WidthRule((1, 0.123456789)).shares[1] == Fraction(123456789, 10**9)


@given(st.floats(0, 1, exclude_min=True, exclude_max=True, allow_subnormal=False))
def test_a_share_survives_as_a_float(share):
    (_, exact) = WidthRule((1, share)).shares
    assert float(exact) == share
    assert WidthRule((1, float(exact))).shares[1] == exact


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 64])
def test_the_shares_of_the_paper_are_the_default(n):
    rule = WidthRule([(n - j) / n for j in range(n)])
    assert rule.is_default(n)
    assert [rule.share(j, n) for j in range(n)] == [WidthRule().share(j, n) for j in range(n)]
    assert WidthRule().is_default(n)
    assert not WidthRule(divisor=2).is_default(n)
    assert not WidthRule((1, 0.3)).is_default(2)


@pytest.mark.parametrize(
    ("channels", "divisor", "widths"),
    [
        (32, 8, [32, 24, 24, 12, 6]),  # the example of the docstring
        (64, 8, [64, 48, 40, 24, 12]),
        (128, 8, [128, 104, 80, 48, 24]),
        (512, 16, [512, 416, 304, 208, 96]),
        (16, 8, [16, 12, 9, 6, 3]),  # below two multiples
        (16, 4, [16, 12, 12, 6, 3]),
        (20, 8, [20, 16, 12, 8, 4]),
        (60, 16, [60, 48, 48, 24, 12]),  # 32 is more than 10 % below 36
    ],
)
def test_channels_in_multiples_of_a_divisor(channels, divisor, widths):
    assert channels_of(channels, divisor=divisor) == widths


def test_a_multiple_above_the_whole_network_is_not_taken():
    assert channels_of(20, (1, 0.95, 0.9, 0.85), divisor=8) == [20, 19, 18, 16]
    assert channels_of(62, (1, 0.97), divisor=8) == [62, 56]


@pytest.mark.parametrize("divisor", [2, 3, 4, 8, 16, 64])
def test_every_count_obeys_the_rule(divisor):
    percents = (100, 95, 80, 75, 60, 55, 40, 25, 7, 1)
    widths = [Width(j, 10, WidthRule([p / 100 for p in percents], divisor)) for j in range(10)]
    for channels in range(1, 2049):
        larger = channels
        for percent, width in zip(percents, widths, strict=True):
            count, papers = width(channels), max(1, channels * percent // 100)
            assert 1 <= count <= larger  # monotone in the share, never above the whole network
            assert 10 * count >= 9 * papers
            larger = count
            if percent == 100 or papers < 2 * divisor:
                assert count == papers
                continue
            below = papers // divisor * divisor
            allowed = [m for m in (below, below + divisor) if m <= channels and 10 * m >= 9 * papers]
            distances = {m: abs(100 * m - channels * percent) for m in allowed}
            assert count == (min(allowed, key=lambda m: (distances[m], -m)) if allowed else papers)


@given(st.integers(1, 10**6), st.floats(0.001, 1), st.floats(0.001, 1), st.integers(1, 64))
def test_channels_grow_with_the_share(channels, one, other, divisor):
    low, high = sorted((one, other))
    counts = [channels if r == 1 else Width(1, 2, WidthRule((1, r), divisor))(channels) for r in (low, high)]
    assert counts[0] <= counts[1] <= channels


@given(st.integers(1, 10**6), st.integers(1, 64), st.data())
def test_a_divisor_of_one_is_the_rule_of_the_paper(channels, n, data):
    j = data.draw(st.integers(0, n - 1))
    assert Width(j, n, WidthRule(divisor=1))(channels) == scaled_channels(channels, j, n)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ((), "widths: expected at least one share, got none"),
        ((1, 0), r"widths: expected shares in \(0, 1\], got 0"),
        ((1, -0.5), r"expected shares in \(0, 1\], got -0.5"),
        ((1.5, 1), r"expected shares in \(0, 1\], got 1.5"),
        ((1, float("nan")), r"expected shares in \(0, 1\], got nan"),
        ((1, 10**400), r"expected shares in \(0, 1\], got 1000"),
        ((1, Fraction(1, 10**400)), r"expected shares in \(0, 1\], got 1/1000"),
        ((0.75, 0.5), "widths: expected 1 first, because student 1 is the whole network, got 0.75"),
        ((1, 0.5, 0.75), "widths: expected shares in descending order, got 0.75 after 0.5"),
        ((1, 0.5, 0.5), "widths: expected shares in descending order, got 0.5 after 0.5"),
    ],
)
def test_shares_that_make_no_family_are_rejected(shares, message):
    with pytest.raises(ValueError, match=message):
        WidthRule(shares)


@pytest.mark.parametrize("share", ["0.5", None, True, 1j])
def test_a_share_that_is_no_number_is_rejected(share):
    with pytest.raises(TypeError, match=r"widths: expected numbers in \(0, 1\], got"):
        WidthRule((1, share))


def test_shares_that_are_no_sequence_are_rejected():
    for shares in (0.5, "1 .5"):
        with pytest.raises(TypeError, match="widths: expected a sequence of numbers"):
            WidthRule(shares)
    assert WidthRule(share for share in (1, 0.5)) == WidthRule([1, 0.5])


def test_a_divisor_below_one_is_rejected():
    with pytest.raises(ValueError, match="width_divisor: expected an integer >= 1, got 0"):
        WidthRule(divisor=0)
    for divisor in (8.0, "8", True):
        with pytest.raises(TypeError, match="width_divisor: expected an integer >= 1, got"):
            WidthRule(divisor=divisor)


def test_every_student_has_a_share():
    with pytest.raises(ValueError, match="widths: expected one share for each of 5 students, got 2"):
        Width(0, 5, WidthRule((1, 0.5)))
