"""The notebook examples/quickstart.ipynb runs in a kernel, and what it shows."""

import json

import pytest

from .pages import ROOT

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
SECONDS = 600  # of a cell, for a machine that hangs


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook after it was executed in an empty folder, and the folder."""
    pytest.importorskip("ipykernel", reason="ipykernel is not installed; pip install 'oekd_fast[test]'")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed; pip install 'oekd_fast[test]'")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed; pip install 'oekd_fast[test]'")
    folder = tmp_path_factory.mktemp("quickstart")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    return client.execute(), folder


def outputs_of(notebook, source: str) -> list[dict]:
    """Return the outputs of the cell whose code contains `source`."""
    (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code" and source in cell.source)
    return cell.outputs


def text_of(notebook, source: str) -> str:
    return "".join(output.text for output in outputs_of(notebook, source) if output.output_type == "stream")


def test_it_is_stored_without_outputs():
    """Accuracies and times differ between machines, and the table and picture would be stored with them."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)
    assert NOTEBOOK.stat().st_size < 8_000


@pytest.mark.slow
def test_training_is_one_bar_and_a_line_an_epoch(executed):
    notebook, _ = executed
    bars = [output for output in outputs_of(notebook, "train(config)") if output.output_type == "display_data"]
    assert len(bars) == 1
    assert bars[0].data["text/plain"].startswith("trained after 0:")
    assert "trained after" in bars[0].data["text/html"]
    lines = text_of(notebook, "train(config)").splitlines()
    assert [line.split()[:2] for line in lines] == [["ensemble", f"{epoch}/6"] for epoch in range(1, 7)]
    assert all(len(line) <= 80 and "val" in line for line in lines)


@pytest.mark.slow
def test_the_result_is_a_table_and_a_picture(executed):
    notebook, _ = executed
    (output,) = next(cell.outputs for cell in notebook.cells if cell.source == "result")
    assert "resnet20 x 3 on digits" in output.data["text/plain"]
    assert "<table>" in output.data["text/html"] and "data:image/png;base64," in output.data["text/html"]
    assert len(output.data["text/html"]) < 100_000


@pytest.mark.slow
def test_a_student_is_chosen_used_and_exported(executed):
    notebook, folder = executed
    assert text_of(notebook, "result.pick").startswith("student ")
    predicted = text_of(notebook, "student.preprocess").splitlines()[0].removeprefix("predicted ")
    assert text_of(notebook, "torch.export.load").strip() == predicted.strip()
    assert (folder / "runs" / "quickstart" / "student.pt2").is_file()
