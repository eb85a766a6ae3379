"""``python -m oekd_fast.pick``: what it prints and how it ends."""

import sys

import pytest

from oekd_fast.pick import main


@pytest.fixture
def command(monkeypatch, capsys):
    """Return a function that runs the command, with a width, and returns its status, output and errors."""

    def run(*arguments, width=80):
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr(sys, "argv", ["pick", *map(str, arguments)])
        return main(), *capsys.readouterr()

    return run


def test_the_table_the_choice_and_the_reason(run, command):
    status, output, errors = command(run, "--max-ms", 3.6, "--runtime", "eager")
    assert (status, errors) == (0, "")
    assert output.splitlines() == [
        "resnet20 x 4 on digits",
        "  network  parameters     file     ms  p95 ms  val %  test %    fits",
        "--------------------------------------------------------------------",
        "student 1       1,000  1.10 MB   4.00    8.00  98.50   97.00  no: ms",
        "student 2         500   490 kB   3.00    6.00  97.25   98.00     yes",
        "student 3         333   130 kB  *3.50    7.00  97.25   96.50     yes",
        "student 4         250  40.0 kB   1.00    2.00  94.00   95.00     yes",
        " ensemble     400,000  1.60 MB   9.00    18.0  99.00   98.50  no: ms",
        "ms: median latency of a call, eager, 2 threads, batch 1",
        "* Student 3 is not measurably faster than student 2",
        "Choice: student 3, the highest validation accuracy (97.25 %) of the 3 that fit, and the fewest parameters of "
        "the 2 that have it",
        "Its accuracy is 97.25 % on validation images, by which the choice was made, and 96.50 % on test images",
    ]


@pytest.mark.parametrize("width", [80, 60, 50, 36, 20])
def test_no_number_is_cut_on_a_narrow_terminal(run, command, width):
    _, output, _ = command(run, "--max-parameters", "100k", "--max-bytes", "1M", width=width)
    table = [line for line in output.splitlines() if line.lstrip().startswith(("student ", "ensemble"))]
    assert len(table) == 5 and "…" not in output
    assert all("no: parameters, bytes" in line for line in table if "ensemble" in line)
    if width > 36:
        assert max(map(len, table)) <= width


def test_nothing_fits(run, command):
    status, output, errors = command(run, "--max-ms", 0.1)
    assert status == 1 and "no: ms" in output and "yes" not in output
    assert errors == "error: budget: nothing fits; the closest is student 4 (0.500 ms of at most 0.1)\n"


def test_a_test_accuracy_below_the_minimum_is_said(run, command):
    assert "Its test accuracy is below the minimum of 97 %" in command(run, "--min-accuracy", 97)[1]
    assert "below the minimum" not in command(run, "--min-accuracy", 94)[1]


def test_an_old_run_has_no_column_of_milliseconds(old_run, command):
    status, output, errors = command(old_run, "--max-parameters", "400")
    assert (status, errors) == (0, "") and " ms" not in output and "Choice: student 3, " in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "error: budget: expected at least one of max_ms, max_parameters, max_bytes, min_accuracy, got none"),
        (("--max-bytes", "5x"), "error: max_bytes: expected bytes such as 500000, 500kB, 1.5M or 2MiB, got '5x'"),
        (("--max-ms", "1", "--batch", "0"), "error: batch: expected an integer >= 1, got 0"),
        (
            ("--max-ms", "1", "--runtime", "onx"),
            "error: runtime: did you mean onnx? expected one of auto, eager, onnx",
        ),
        (("--max-ms", "1", "--threads", "9"), "error: threads: expected one of those that were measured, 2, 1, got 9"),
        (("--max-ms", "1", "--measure"), "students: expected weights of 4 students, got too few"),
        (("--max-ms", "1", "--measure", "--device", "no"), "error: device: 'no' cannot be used here ("),
    ],
    ids=str,
)
def test_errors_are_one_line(run, command, arguments, message):
    status, _, errors = command(run, *arguments)
    assert status == 1 and message in errors and errors.count("\n") == 1


def test_another_folder_is_one_line(command, tmp_path):
    status, output, errors = command(tmp_path, "--max-ms", 1)
    assert (status, output) == (1, "")
    assert errors == f"error: run: expected run folders, got {tmp_path}, which has no config.json\n"
