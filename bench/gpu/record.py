"""The results of a run of bench.gpu on disk: one line of JSON for each event, which survives a crash of any process.

A folder holds `results.jsonl`, which the command and its workers append to, `log.txt` with everything that was printed,
and `report.json`, the results so far. Each line of results.jsonl is one of

    {"run": {...}}                                          the command starts
    {"part": P, "keys": [...]}                              a worker starts; the names of its cases
    {"part": P, "begin": K}                                 a case starts
    {"part": P, "key": K, "result": {...}, "lines": [...]}  its result so far, which replaces an earlier one
    {"part": P, "done": K}                                  the case is complete
    {"part": P, "key": K, "error": "..."}                   the case failed
    {"part": P, "ended": "...", "seconds": S}               the command is done with the part
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class PartState:
    """What is known of a part.

    Attributes:
        keys: Names of the cases; None before a worker has written them.
        results: The last result of each case, also of one that did not complete.
        done: Cases that completed.
        errors: Cases that failed, with the reason in one line, then in full; "start" is a worker that failed before its
            first case.
        current: Case that has begun and has neither completed nor failed.
        ended: How the part ended in the last run that started it.
    """

    keys: list[str] | None = None
    results: dict[str, dict] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    current: str | None = None
    ended: str | None = None

    @property
    def complete(self) -> bool:
        return self.keys is not None and set(self.keys) <= set(self.done)

    def pending(self) -> list[str]:
        """Return the cases that have neither completed nor failed."""
        return [key for key in self.keys or () if key not in self.done and key not in self.errors]

    def take(self, line: Mapping) -> None:
        """Enter a line of this part."""
        if "keys" in line:
            self.keys = line["keys"]
            self.errors.pop("start", None)
        elif "begin" in line:
            self.current = line["begin"]
            self.errors.pop(self.current, None)
        elif "result" in line:
            self.results[line["key"]] = line["result"]
        elif "error" in line:
            self.errors[line["key"]] = line["error"]
            self.current = None
        elif "done" in line:
            self.done.append(line["done"])
            self.current = None
        elif "ended" in line:
            self.ended = line["ended"]


class Record:
    """The lines of a folder, read as they come.

    Attributes:
        runs: What each run of the command has written about itself.
        parts: State of each part that was started.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._path = folder, folder / "results.jsonl"
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._read_until = 0
        self.runs: list[dict] = []
        self.parts: dict[str, PartState] = {}

    def close_last_line(self) -> None:
        """End a line that a killed process left incomplete."""
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")

    def append(self, **line) -> None:
        """Write a line; it is on disk when the call returns."""
        os.write(self._file, (json.dumps(line) + "\n").encode())
        os.fsync(self._file)

    def read(self) -> list[dict]:
        """Enter the complete lines that were written since the last call, and return them."""
        found = []
        data = os.pread(self._file, os.fstat(self._file).st_size - self._read_until, self._read_until)
        complete = data[: data.rfind(b"\n") + 1]
        self._read_until += len(complete)
        for text in complete.splitlines():
            try:
                line = json.loads(text)
            except ValueError:  # a process was killed while it wrote
                continue
            found.append(line)
            if "run" in line:
                self.runs.append(line["run"])
            else:
                self.part(line["part"]).take(line)
        return found

    def part(self, name: str) -> PartState:
        return self.parts.setdefault(name, PartState())

    def results(self) -> dict[str, dict[str, dict]]:
        """Return all results by part and case."""
        return {name: state.results for name, state in self.parts.items() if state.results}

    def errors(self) -> dict[str, dict[str, str]]:
        """Return the errors by part and case."""
        return {name: state.errors for name, state in self.parts.items() if state.errors}

    def environment(self) -> dict:
        """Return what the part "environment" has found; empty before that."""
        return self.part("environment").results.get("machine", {})

    def write_report(self) -> Path:
        """Write `report.json`: environment, results and errors."""
        path = self.folder / "report.json"
        dry = bool(self.runs and self.runs[-1]["dry_run"])
        content = {
            "what": "bench.gpu" + ", dry run: placeholders, nothing was measured" * dry,
            "environment": self.environment(),
            "parts": self.results(),
            "errors": self.errors(),
        }
        path.write_text(json.dumps(content, indent=1) + "\n")
        return path
