"""README stays true: its code, its map."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_the_drop_in_example_runs():
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    assert "EnsembleKDLoss" in code
    names = {}
    exec(code, names)
    assert names["loss"].item() > 0
    assert all(head.weight.grad.abs().sum() > 0 for head in names["heads"])


def test_the_map_names_what_is_there():
    tree = README.split("## Map")[1]
    paths = re.findall(r"^ {4}(\S+)", tree, re.MULTILINE)
    assert len(paths) > 15
    assert [path for path in paths if not (ROOT / path).exists()] == []
