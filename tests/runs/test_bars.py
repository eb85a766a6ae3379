"""The bar of a notebook: one output that is replaced, without packages beside IPython."""

import io
import re
import sys
from types import ModuleType

import pytest
from rich.console import Console

from oekd_fast.runs import console as consoles
from oekd_fast.runs.bars import Figures, NotebookBar, TerminalBar, bar_for
from oekd_fast.runs.console import RunConsole
from oekd_fast.runs.progress import RunProgress
from oekd_fast.runs.time_left import PhaseWork, TimeLeft

from ..support.clock import Clock


class Notebook:
    """Stands for the front end of a notebook: its outputs, and how often they were replaced."""

    def __init__(self) -> None:
        self.outputs, self.updates = [], 0

    def display(self, content: dict, *, raw: bool, display_id: bool) -> "Output":
        assert raw and display_id
        self.outputs.append(content)
        return Output(self, len(self.outputs) - 1)


class Output:
    def __init__(self, notebook: Notebook, number: int) -> None:
        self._notebook, self._number = notebook, number

    def update(self, content: dict, *, raw: bool) -> None:
        assert raw
        self._notebook.outputs[self._number] = content
        self._notebook.updates += 1


class KernelConsole(Console):
    """A console as rich makes it in the kernel of a notebook."""

    def __init__(self, **options) -> None:
        super().__init__(**{"force_jupyter": True, **options})


@pytest.fixture
def notebook(monkeypatch) -> Notebook:
    shown, module = Notebook(), ModuleType("IPython.display")
    module.display = shown.display
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(consoles, "Console", KernelConsole)
    return shown


def trained(console: Console, seconds: float = 1.0, stops: bool = False) -> None:
    """Show a phase of two epochs of ten steps."""
    clock = Clock()
    with RunProgress(console, TimeLeft([PhaseWork("a<b>", 2, 1, 1.0)], clock=clock), clock) as run:
        with run.phase("a<b>", 2, 10, 0) as progress:
            for epoch in (1, 2):
                for _ in range(10):
                    clock.wait(seconds)
                    progress.step(64, 0.1, lambda: None)
                    if stops:
                        raise InterruptedError
                progress.epoch({"phase": "a<b>", "epoch": epoch, "train": {"loss": 1.5}, "images_per_second": 64.0,
                                "validation": {"accuracy": [50.0, 25.0]}})  # fmt: skip


def test_the_bar_of_a_run_is_one_output_of_the_cell(notebook, capsys):
    trained(RunConsole())
    assert len(notebook.outputs) == 1 and notebook.updates == 22
    assert notebook.outputs[0]["text/plain"] == "trained after 0:00:20"
    assert capsys.readouterr().out.splitlines() == [
        "a<b> 1/2  loss 1.500  val 50.0 25.0 %  64 img/s  0:00:10 left",
        "a<b> 2/2  loss 1.500  val 50.0 25.0 %  64 img/s  0:00:00 left",
    ]


def test_it_is_replaced_twice_a_second_at_most(notebook, capsys):
    trained(RunConsole(), seconds=0.01)
    assert notebook.updates == 2  # at the end of the first epoch and of the run


def test_it_says_that_a_run_was_stopped(notebook, capsys):
    with pytest.raises(InterruptedError):
        trained(RunConsole(), stops=True)
    assert notebook.outputs[0]["text/plain"] == "stopped after 0:00:01"


def test_its_content_is_text_and_a_progress_element(notebook):
    NotebookBar().show(Figures("a<b>", 2, 8, 0.25, 1.5, 0.1, 640.4, 61.0))
    (output,) = notebook.outputs
    assert output["text/plain"] == " 25%  a<b>  2/8  loss 1.500  lr 0.1  640 img/s  0:01:01 left"
    assert '<progress value="0.250" max="1"' in output["text/html"]
    assert "a&lt;b&gt;  2/8  loss 1.500" in output["text/html"]
    assert not re.search(r"color|background", output["text/html"])


def test_a_console_of_a_run_prints_text_in_a_notebook(notebook, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    console = RunConsole()
    assert console.in_notebook and not console.is_jupyter and not console.is_terminal and console.width == 80
    console.print("a line")
    assert capsys.readouterr().out == "a line\n" and notebook.outputs == []


def test_each_kind_of_console_has_its_bar(notebook, monkeypatch):
    file = io.StringIO()
    assert isinstance(bar_for(RunConsole()), NotebookBar)
    assert isinstance(bar_for(Console(force_jupyter=True)), NotebookBar)
    assert isinstance(bar_for(Console(file=file, force_terminal=True, _environ={})), TerminalBar)
    assert bar_for(Console(file=file, force_terminal=True, _environ={"TERM": "dumb"})) is None
    assert bar_for(Console(file=file)) is None
    assert bar_for(Console(force_jupyter=True, quiet=True)) is None
    monkeypatch.setattr(consoles, "Console", Console)
    assert bar_for(RunConsole()) is None
