"""Channels of student j of n (arXiv 2011.07449, section 3); students are counted from 0."""

from dataclasses import dataclass, field
from fractions import Fraction

from oekd_fast.common.width_rule import WidthRule, check_student


def compression_ratio(j: int, n: int) -> float:
    """Return (n - j) / n, the share of channels that student `j` of `n` keeps by default.

    Raises:
        ValueError: `n` is below 1, or `j` is outside 0..n-1.
    """
    check_student(j, n)
    return (n - j) / n


def scaled_channels(channels: int, j: int, n: int) -> int:
    """Return max(1, int(channels * (n - j) / n)), computed without rounding error.

    Raises:
        ValueError: `channels` or `n` is below 1, or `j` is outside 0..n-1.
    """
    return Width(j, n)(channels)


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
        return self.rule.rounded(channels, most)
