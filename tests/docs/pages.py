"""The Markdown pages of the project, and the parts of them that tests look at."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/*.md"))
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_INDENTED = re.compile(r"(?:^    .*\n)+", re.MULTILINE)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def code_blocks(text: str, language: str) -> list[str]:
    return [block for found, block in _FENCE.findall(text) if found == language]


def prose(text: str) -> str:
    """Return `text` without its code blocks."""
    return _INDENTED.sub("", _FENCE.sub("", text))


def commands(text: str) -> list[str]:
    """Return the lines of all code blocks, indented ones included, that run a module or ``oekd-fast``.

    The latter is returned as ``python -m`` of the module of its command.
    """
    blocks = code_blocks(text, "sh") + _INDENTED.findall(_FENCE.sub("", text))
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines = [re.sub(r"^oekd-fast ([a-z]\S*)", _as_module, line) for line in lines]
    return [line.split("#")[0].strip() for line in lines if re.match(r"(\S*/)?python -m ", line)]


def _as_module(command: re.Match) -> str:
    return f"python -m oekd_fast.{command[1].replace('-', '_')}"
