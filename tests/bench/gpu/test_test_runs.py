"""The tests that need a GPU are found, and the output of pytest is read even if it was killed."""

import pytest

from bench.gpu import tests as gpu_tests


def test_files_with_gpu_tests():
    files = gpu_tests.files()
    assert tuple(files[: len(gpu_tests.FIRST)]) == gpu_tests.FIRST and "tests/losses/test_feature_kd_gpu.py" in files
    assert not [name for name in files if name.startswith("tests/bench/")]
    assert len(set(files)) == len(files)


@pytest.mark.slow
def test_the_output_of_pytest_is_read(tmp_path, monkeypatch):
    code = "import pytest\n@pytest.mark.gpu\ndef test_{}(): assert {}\n"
    (tmp_path / "test_a.py").write_text(code.format("good", 1) + code.format("bad", 0) + code.format("better", 2))
    monkeypatch.setattr(gpu_tests, "ROOT", tmp_path)
    result = gpu_tests.run_file("test_a.py", 600, shards=2)
    assert result["counts"] == {"passed": 2, "failed": 1} and result["failures"] == ["test_a.py::test_bad"]
    assert result["ended"] == "exit status 0, exit status 1" and "assert 0" in result["messages"][0]
    killed = "collecting ...\ntests/a.py::test_x PASSED [ 50%]\ntests/a.py::test_y[1-b c] "
    read = gpu_tests.parse(killed)
    assert read["counts"] == {"passed": 1} and read["unfinished"] == ["tests/a.py::test_y[1-b c]"]
    assert gpu_tests.parse("")["counts"] == {}
