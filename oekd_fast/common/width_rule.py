"""Shares of the channels that the students of a family keep, and the rule that rounds numbers of channels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from numbers import Real

DEFAULT_STUDENTS = 5

# A float is read as the fraction of at most this denominator that rounds to it, if there is one: 2 / 3 as 2/3.
_LARGEST_DENOMINATOR = 1000


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
        check_student(j, n)
        if self.shares is None:
            return Fraction(n - j, n)
        if n != len(self.shares):
            raise ValueError(f"widths: expected one share for each of {n} students, got {len(self.shares)}")
        return self.shares[j]

    def rounded(self, channels: Fraction | int, most: int) -> int:
        """Return `channels`, a student's exact share of `most` channels, as a number of channels."""
        papers, divisor = max(1, int(channels)), self.divisor
        if divisor == 1 or channels == most or papers < 2 * divisor:
            return papers
        below = papers // divisor * divisor
        nearest_first = (below, below + divisor) if 2 * (channels - below) < divisor else (below + divisor, below)
        return next((count for count in nearest_first if count <= most and 10 * count >= 9 * papers), papers)

    def is_default(self, n: int) -> bool:
        """Whether `n` students get the channels of the paper: shares (n - j) / n, and a divisor of 1."""
        return self.divisor == 1 and (self.shares is None or self == WidthRule([Fraction(n - j, n) for j in range(n)]))


def check_student(j: int, n: int) -> None:
    """Raise ValueError unless `j` is the index of one of `n` students."""
    if n < 1:
        raise ValueError(f"n: expected a number of students >= 1, got {n}")
    if not 0 <= j < n:
        raise ValueError(f"j: expected a student index in 0..{n - 1}, got {j}")


def _checked_shares(shares: Sequence[Real]) -> tuple[Fraction, ...]:
    if isinstance(shares, str) or not isinstance(shares, Iterable):
        raise TypeError(f"widths: expected a sequence of numbers in (0, 1], got {shares!r}")
    shares = tuple(shares)
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
