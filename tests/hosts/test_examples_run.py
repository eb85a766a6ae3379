"""The examples run as scripts, on few images, and are short."""

import runpy

import pytest
import sklearn.datasets

from ..support.host_examples import EXAMPLES, HOSTS


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_has_fewer_than_60_lines_and_a_listed_package(path):
    assert len(path.read_text().splitlines()) < 60
    assert path.stem in HOSTS or path.stem == "own_network"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(HOSTS.keys() - {"compiled_loop"}))  # its compilation takes a minute
def test_an_example_runs_as_a_script(name, example, monkeypatch, tmp_path):
    example(name)  # skips the test if a package is absent
    pixels, labels = sklearn.datasets.load_digits(return_X_y=True)
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda return_X_y: (pixels[:96], labels[:96]))
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert [*tmp_path.rglob("student_3.pt"), *tmp_path.rglob("student_2/model.safetensors")]
