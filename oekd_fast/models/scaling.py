"""Scaling of the channels of student j of n (arXiv 2011.07449, section 3); students are counted from 0."""

from dataclasses import dataclass
from fractions import Fraction


def compression_ratio(j: int, n: int) -> float:
    """Return (n - j) / n, the share of channels that student `j` of `n` keeps.

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
    _check_student(j, n)
    if channels < 1:
        raise ValueError(f"channels: expected an integer >= 1, got {channels}")
    return max(1, channels * (n - j) // n)


@dataclass(frozen=True)
class Width:
    """Width of student `j` of `n`: `width(64)` returns `scaled_channels(64, j, n)`.

    Raises:
        ValueError: `n` is below 1, or `j` is outside 0..n-1.
    """

    j: int
    n: int

    def __post_init__(self) -> None:
        _check_student(self.j, self.n)

    def __call__(self, channels: int) -> int:
        return scaled_channels(channels, self.j, self.n)

    @property
    def ratio(self) -> Fraction:
        """The exact ratio (n - j) / n, for networks with their own rule of rounding."""
        return Fraction(self.n - self.j, self.n)


def _check_student(j: int, n: int) -> None:
    if n < 1:
        raise ValueError(f"n: expected a number of students >= 1, got {n}")
    if not 0 <= j < n:
        raise ValueError(f"j: expected a student index in 0..{n - 1}, got {j}")
