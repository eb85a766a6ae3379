"""Load students and weights from a stranger: ``python -m tests.campaigns.hostile_students --flips 1000``.

Saved students with random bits flipped, with random fields of the JSON file replaced and with random headers of the
weights are loaded, and files of weights that would run code, take memory or leave their folder. Every load has to raise
one line that names the file, or to return the network that was saved. No file may be written, and hostile files are
loaded in a process of limited memory.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import resource
import sys
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from oekd_fast import FunctionalArchitecture, build_ensemble, load_standard_weights, load_student
from oekd_fast.common.machine import machine
from oekd_fast.family.saved import Normalisation, StudentMetadata, save_student

from ..support.campaign_command import run_command

RESULT = Path(__file__).parent / "results" / "hostile_students.json"
MEMORY = 2**30  # bytes that loading one file may take
CANARY = "executed"
TINY = FunctionalArchitecture(
    "tiny",
    lambda channels: nn.Conv2d(channels, 4, 3),
    lambda width: [nn.Sequential(nn.Conv2d(4, width(8), 3), nn.BatchNorm2d(width(8)), nn.ReLU())],
    nn.Linear,
)


@dataclass(frozen=True)
class Fault:
    """A file that was loaded as something else, or an error that is not one line that names the file."""

    kind: str
    number: int
    found: str


class Saved:
    """A saved student and the network that loading has to return."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        family = build_ensemble(TINY, 2, 3)
        statistics = Normalisation((0.5, 0.25, 0.4), (0.2, 0.5, 0.25))
        self.metadata = StudentMetadata.of(
            family, 1, image_size=8, classes=("cat", "dog", "../../bird"), normalisation=statistics, accuracy=50.0
        )
        self.state = {name: tensor.clone() for name, tensor in family.student(1).state_dict().items()}
        self.weights = save_student(family.student(1), folder / "student_2", self.metadata, TINY)
        self.json = self.weights.with_suffix(".json")
        self._content = {path: path.read_bytes() for path in (self.weights, self.json)}

    def restore(self) -> None:
        for path, content in self._content.items():
            path.write_bytes(content)

    def content(self, path: Path) -> bytearray:
        return bytearray(self._content[path])

    def problem(self) -> str | None:
        """Load the student; return what is wrong with the result, "" for the saved network, or None if refused."""
        try:
            student = load_student(self.weights, architecture=TINY)
        except ValueError as error:
            return _problem_of(error, self.weights.stem)
        except Exception as error:
            return f"raised {type(error).__name__}: {error}"
        state = student.state_dict()
        if student.metadata != self.metadata:
            return f"loaded other metadata: {student.metadata}"
        same = state.keys() == self.state.keys() and all(torch.equal(state[name], self.state[name]) for name in state)
        return "" if same else "loaded other weights"


def _problem_of(error: Exception, name: str) -> str | None:
    text = str(error)
    if not text.isprintable() or len(text) > 1000:
        return f"raised a message that is not one short line: {text[:200]!r}"
    return None if name in text else f"raised a message that does not name the file: {text}"


def flipped(saved: Saved, draw: random.Random) -> None:
    """Flip one to three bits of one of the two files, or cut it."""
    path = draw.choice((saved.weights, saved.json))
    content = saved.content(path)
    if draw.random() < 0.1:
        content = content[: draw.randrange(len(content))]
    else:
        for _ in range(draw.randint(1, 3)):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


VALUES = (
    None, True, 0, 1, -1, 2, 3.5, 10**9, 10**30, 1e308, "", "a", "../../x", "\x1b[2J", [], [1], [[]], {}, {"a": 1},
    ["a"] * 3, [10**9] * 3, [0.0] * 3, [1e-320] * 3, {"mean": [0.5] * 3, "std": [0] * 3}, "9" * 5000, "resnet20",
)  # fmt: skip


def edited(saved: Saved, draw: random.Random) -> None:
    """Replace, drop or add fields of the JSON file; a stranger computes checksums that fit."""
    document = json.loads(saved.content(saved.json))
    for _ in range(draw.randint(1, 3)):
        name = draw.choice([*document, "extra", "../../extra"])
        if draw.random() < 0.15:
            document.pop(name, None)
        else:
            document[name] = draw.choice(VALUES)
    saved.json.write_text(json.dumps(document))


def reheadered(saved: Saved, draw: random.Random) -> None:
    """Change the header of the file of weights, with the checksum that belongs to it."""
    content = bytes(saved.content(saved.weights))
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    entry = header[draw.choice([name for name in header if name != "__metadata__"])]
    change = draw.randrange(5)
    if change == 0:
        entry["data_offsets"] = [draw.choice((0, 4, 10**15, -4)), draw.choice((0, 8, 10**15))]
    elif change == 1:
        entry["shape"] = [draw.choice((0, 1, 2**40, -1)) for _ in range(draw.randint(0, 5))]
    elif change == 2:
        entry["dtype"] = draw.choice(("F64", "I64", "BOOL", "F8_E4M3", "F4", "C64", "", "X"))
    elif change == 3:
        header[draw.choice(("../../x", "\n\x1b[2J", "a" * 10_000))] = dict(entry)
    text = json.dumps(header).encode()
    length = draw.choice((0, 1, 2**40, 2**63, len(text) + 1)) if change == 4 else len(text)
    content = length.to_bytes(8, "little") + text + data
    saved.weights.write_bytes(content)
    document = json.loads(saved.content(saved.json))
    document["weights_sha256"] = hashlib.sha256(content).hexdigest()
    saved.json.write_text(json.dumps(document))


class _Call:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple:
        return self._call


def payloads(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Return files of weights by what they would do."""
    canary = folder / CANARY
    weights = {"layer1.0.conv1.weight": torch.ones(1)}
    calls = {
        "system": _Call(os.system, f"touch {canary}"),
        "open": _Call(open, str(canary), "w"),
        "touch": _Call(Path.touch, canary),
        "eval": _Call(eval, f"open({str(canary)!r}, 'w')"),
        "exec": _Call(exec, f"open({str(canary)!r}, 'w')"),
        "torch.save": _Call(torch.save, weights, str(canary)),
        "bytearray": _Call(bytearray, 2**40),
    }
    for name, call in calls.items():
        for zipped in (True, False):
            file = io.BytesIO()
            torch.save({"state_dict": weights, "more": call}, file, _use_new_zipfile_serialization=zipped)
            yield f"{name}, {'zip' if zipped else 'legacy'}", file.getvalue()
        yield f"{name}, plain pickle", pickle.dumps(call, protocol=2)
    file = io.BytesIO()
    torch.save(weights, file)
    yield "compressed zeros", _with_entry(file.getvalue(), "data.pkl", bytes(2**24), zipfile.ZIP_DEFLATED)
    yield "entry outside", _with_entry(file.getvalue(), f"../../{CANARY}", b"", zipfile.ZIP_STORED)
    file = io.BytesIO()
    torch.save({"layer1.0.conv1.weight": torch.zeros(3)}, file, _use_new_zipfile_serialization=False)
    huge = b"\x8a\x06" + (2**40).to_bytes(6, "little")  # the opcode of a long integer
    yield "legacy storage of 2^40 numbers", file.getvalue().replace(b"K\x03", huge)
    yield "nested lists", b"\x80\x02" + b"]" * 10**6 + b"a" * (10**6 - 1) + b"."
    yield "expanded tensor", _saved({"layer1.0.conv1.weight": torch.zeros(1).expand(2**20, 2**20)})
    yield "header of gigabytes", (2**40).to_bytes(8, "little") + b"{}"


def _saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _with_entry(archive: bytes, name: str, content: bytes, compression: int) -> bytes:
    file = io.BytesIO(archive)
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(file, "a") as target:  # a name occurs twice
        target.writestr(f"archive/{name}", content, compression)
    return file.getvalue()


def load_payload(path: Path) -> str | None:
    """Load a file of weights; return what is wrong, or None if it was refused in one line."""
    try:
        load_standard_weights(nn.Linear(1, 1), path)
    except (TypeError, ValueError) as error:
        text = str(error)
        return None if text.isprintable() and len(text) < 1000 else f"raised {text[:200]!r}"
    except Exception as error:
        return f"raised {type(error).__name__}: {error}"
    return "was loaded"


def in_limited_memory(act: Callable[[], str | None]) -> str | None:
    """Return what `act` returns in a forked process that may take `MEMORY` more bytes, or how the process ended."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY,) * 2)
        os.write(write, json.dumps(act()).encode()[:60_000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return json.loads(answer) if status == 0 and answer else f"the process ended with status {status}"


def sparse(path: Path, start: bytes = b"") -> None:
    """Write a file of 16 GiB that takes no space."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(2**34)


CHANGES = {"bit flips": flipped, "fields of the JSON": edited, "headers of the weights": reheadered}


def run_campaign(flips: int, seed: int, folder: Path, every: int = 1) -> dict[str, Any]:
    """Load `flips` files of each random change and every `every`-th hostile file; return the JSON file's content."""
    start, faults = time.perf_counter(), []
    counts: dict[str, Counter] = {}
    inner = folder / "a" / "b" / "students"
    inner.mkdir(parents=True)
    saved = Saved(inner)

    def note(kind: str, number: int, problem: str | None) -> None:
        counts.setdefault(kind, Counter())["refused" if problem is None else "same" if problem == "" else "fault"] += 1
        if problem:
            faults.append(Fault(kind, number, problem))
            print(f"{kind} {number}: {problem}", flush=True)

    for kind, change in CHANGES.items():
        for number in range(flips):
            change(saved, random.Random(f"{seed} {kind} {number}"))
            note(kind, number, saved.problem())
            saved.restore()
    for number, (what, content) in list(enumerate(payloads(folder)))[::every]:
        path = inner / ("weights.safetensors" if "header" in what else "weights.pth")
        path.write_bytes(content)
        problem = in_limited_memory(lambda path=path: load_payload(path))
        if (folder / CANARY).exists():
            problem = "ran code of the file"
            (folder / CANARY).unlink()
        note("hostile weights", number, problem and f"{what}: {problem}")
        path.unlink()
    for number, path in enumerate((saved.json, saved.weights)):
        sparse(path, saved.content(path))
        note("files of 16 GiB", number, in_limited_memory(saved.problem))
        saved.restore()
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    if names != ["a/b/students/student_2.json", "a/b/students/student_2.safetensors"]:
        faults.append(Fault("files", 0, f"files were left: {names}"))
    return {
        "flips": flips,
        "seed": seed,
        "counts": {kind: dict(count) for kind, count in counts.items()},
        "faults": [asdict(fault) for fault in faults],
        "seconds": round(time.perf_counter() - start, 1),
        "machine": machine(),
        "complete": True,
    }


def main() -> int:
    """Run the command line; the exit status is 1 if a fault was found."""
    result = run_command(__doc__, run_campaign, count=("--flips", 1000, "random changes of each kind"), result=RESULT)
    print(f"{result['counts']}, {len(result['faults'])} faults, {result['seconds']} s")
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
