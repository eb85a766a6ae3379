"""Numbers as people write them."""

import pytest

from oekd_fast.common.quantities import bytes_text, clock_text, duration_text, parse_bytes, parse_count, three_digits


@pytest.mark.parametrize(
    ("text", "number"),
    [("100000", 100_000), ("100k", 100_000), ("1.5M", 1_500_000), (" 2 G ", 2 * 10**9), ("0.272186M", 272_186)],
)
def test_counts(text, number):
    assert parse_count(text) == parse_bytes(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [("500kB", 500_000), ("1MB", 10**6), ("2MiB", 2 * 2**20), ("1.5Ki", 1536), ("1GiB", 2**30), ("7B", 7)],
)
def test_bytes(text, number):
    assert parse_bytes(text) == number
    with pytest.raises(ValueError, match="^expected a number such as 100000, 100k or 1.5M, got"):
        parse_count(text)


@pytest.mark.parametrize(
    "text",
    ["", "k", "-1", "+5", "1e6", "1,000", "1_000", "0", "0k", "nan", "1.5", "1.0001k", "1 k B", "5m", "5 K", "٣"],
)
def test_other_texts_are_refused(text):
    for parse in (parse_count, parse_bytes):
        with pytest.raises(ValueError, match="^expected .*, got "):
            parse(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (1, "1 B"), (999, "999 B"), (1000, "1.00 kB"), (41_943, "41.9 kB"), (999_499, "999 kB"),
        (1_094_000, "1.09 MB"), (99_960_000, "100 MB"), (25_557_032_000, "25.6 GB"),
    ],
)  # fmt: skip
def test_bytes_as_text(count, text):
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 s"), (0.0123, "0.012 s"), (0.0996, "0.10 s"), (1.0, "1.0 s"), (9.94, "9.9 s"), (9.96, "10 s"),
        (59.4, "59 s"), (59.6, "0:01:00"), (200, "0:03:20"), (86_400 * 3 + 4 * 3600, "3 d 4 h"),
    ],
)  # fmt: skip
def test_durations_as_text(seconds, text):
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (59.6, "0:01:00"), (272.4, "0:04:32"), (3661, "1:01:01"), (86_399.4, "23:59:59"),
     (86_399.6, "1 d 0 h"), (187_000, "2 d 4 h"), (863_000, "10 d 0 h")],
)  # fmt: skip
def test_durations_on_a_clock(seconds, text):
    assert clock_text(seconds) == text


def test_three_digits():
    values = (0.0, 0.07051, 1.2, 99.94, 99.96, 123.4, 12345.0)
    assert [three_digits(value) for value in values] == ["0.00", "0.0705", "1.20", "99.9", "100", "123", "12,345"]
