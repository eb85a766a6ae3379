"""Channels of student j of n (arXiv 2011.07449, section 3); students are counted from 0."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from numbers import Real

# A float is read as the fraction of at most this denominator that rounds to it, if there is one: 2 / 3 as 2/3.
_LARGEST_DENOMINATOR = 1000


def compression_ratio(j: int, n: int) -> float:
    """Return (n - j) / n, the share of channels that student `j` of `n` keeps by default.

    Raises:
        ValueError: `n` is below 1, or `j` is outside 0..n-1.
    """
    _check_student(j, n)
    return (n - j) / n


def scaled_channels(channels: int, j: int, n: int) -> int:
    """Return max(1, int(channels * (n - j) / n)), computed without rounding error.

    Raises:
        ValueError: `channels` or `n` is below 1, or `j` is outside 0..n-1.
    """
    return Width(j, n)(channels)


@dataclass(frozen=True)
class WidthRule:
    """Rule by which the students of a family get their channels: the share that each keeps, and a divisor.

    A student with the share r gets int(c r) of c channels and at least 1, as in the paper. With a divisor d > 1, a
    count int(c r) of at least 2 d becomes the multiple of d that is nearest to c r, the larger one of two equally near
    ones. If that multiple is more than 10 % below int(c r), the next larger multiple is taken. A multiple above c is
    not taken: the next smaller one is, or int(c r) if that would be more than 10 % below. A share of 1 keeps c, and
    counts below 2 d stay as they are, because rounding would change them by up to half. For example, 32 channels with
    d = 8:

    | share | 1 | .8 | .6 | .4 |
    | --- | --- | --- | --- | --- |
    | c r | 32 | 25.6 | 19.2 | 12.8 |
    | int(c r) | 32 | 25 | 19 | 12 |
    | channels | 32 | 24 | 24, as 16 is 16 % below 19 | 12, as that is below 16 |

    Channels never decrease where the share grows.

    Args:
        shares: share of the channels that each student keeps, in (0, 1], from 1 in strictly descending order; None
            stands for the paper's, (n - j) / n. Floats are read as the fraction with a denominator of at most 1000
            that rounds to them (2 / 3 is 2/3), or else as the decimal that they are shown as.
        divisor: d, at least 1.

    The attribute `shares` holds the exact shares as ``fractions.Fraction``, or None.

    Raises:
        TypeError: a share is not a number, or `divisor` is not an integer.
        ValueError: a share is outside (0, 1], the first share is not 1, the shares do not descend, or `divisor` is
            below 1.
    """

    shares: Sequence[Real] | None = None
    divisor: int = 1

    def __post_init__(self) -> None:
        if self.shares is not None:
            object.__setattr__(self, "shares", _checked_shares(self.shares))
        if not isinstance(self.divisor, int) or isinstance(self.divisor, bool):
            raise TypeError(f"width_divisor: expected an integer >= 1, got {self.divisor!r}")
        if self.divisor < 1:
            raise ValueError(f"width_divisor: expected an integer >= 1, got {self.divisor}")

    def share(self, j: int, n: int) -> Fraction:
        """Return the exact share of student `j` of `n`.

        Raises:
            ValueError: `n` is below 1 or another number than that of the shares, or `j` is outside 0..n-1.
        """
        _check_student(j, n)
        if self.shares is None:
            return Fraction(n - j, n)
        if n != len(self.shares):
            raise ValueError(f"widths: expected one share for each of {n} students, got {len(self.shares)}")
        return self.shares[j]

    def is_default(self, n: int) -> bool:
        """Whether `n` students get the channels of the paper: shares (n - j) / n, and a divisor of 1."""
        return self.divisor == 1 and (self.shares is None or self == WidthRule([Fraction(n - j, n) for j in range(n)]))


@dataclass(frozen=True)
class Width:
    """Width of student `j` of `n`: `width(64)` returns its channels where the whole network has 64.

    By default that is `scaled_channels(64, j, n)`.

    Args:
        j: index of the student, from 0.
        n: number of students.
        rule: shares of all students and the divisor of channels.

    Raises:
        ValueError: `n` is below 1 or another number than that of the rule's shares, or `j` is outside 0..n-1.
    """

    j: int
    n: int
    rule: WidthRule = field(default_factory=WidthRule)

    def __post_init__(self) -> None:
        self.rule.share(self.j, self.n)

    def __call__(self, channels: int) -> int:
        if channels < 1:
            raise ValueError(f"channels: expected an integer >= 1, got {channels}")
        return self.rounded(channels * self.ratio, channels)

    @property
    def ratio(self) -> Fraction:
        """The student's exact share of the channels, for networks with their own rule of rounding."""
        return self.rule.share(self.j, self.n)

    def rounded(self, channels: Fraction | int, most: int) -> int:
        """Return `channels` by the rule of rounding, for a layer that has `most` channels in the whole network.

        Networks with their own rule of rounding apply it first and pass the result.
        """
        return _round(channels, self.rule.divisor, most)


def _round(channels: Fraction | int, divisor: int, most: int) -> int:
    exact = max(1, int(channels))
    if divisor == 1 or channels == most or exact < 2 * divisor:
        return exact
    below = exact // divisor * divisor
    # The nearest multiple comes first.
    multiples = (below, below + divisor) if 2 * (channels - below) < divisor else (below + divisor, below)
    return next((each for each in multiples if each <= most and 10 * each >= 9 * exact), exact)


def _checked_shares(shares: Sequence[Real]) -> tuple[Fraction, ...]:
    exact = tuple(_exact(share) for share in shares)
    if not exact:
        raise ValueError("widths: expected at least one share, got none")
    if exact[0] != 1:
        raise ValueError(f"widths: expected 1 first, because student 1 is the whole network, got {shares[0]}")
    for j, (before, share) in enumerate(pairwise(exact)):
        if share >= before:
            raise ValueError(f"widths: expected shares in descending order, got {shares[j + 1]} after {shares[j]}")
    return exact


def _exact(share: Real) -> Fraction:
    """Return a share as the fraction that is meant; the same for `share` and for ``float(share)``."""
    if not isinstance(share, Real) or isinstance(share, bool):
        raise TypeError(f"widths: expected numbers in (0, 1], got {share!r}")
    if not 0 < share <= 1 or float(share) == 0:  # NaN fails the first comparison
        raise ValueError(f"widths: expected shares in (0, 1], got {share}")
    simple = Fraction(float(share)).limit_denominator(_LARGEST_DENOMINATOR)
    return simple if float(simple) == float(share) else Fraction(repr(float(share)))


def _check_student(j: int, n: int) -> None:
    if n < 1:
        raise ValueError(f"n: expected a number of students >= 1, got {n}")
    if not 0 <= j < n:
        raise ValueError(f"j: expected a student index in 0..{n - 1}, got {j}")
