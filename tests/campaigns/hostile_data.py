"""Load hostile image files and arrays: ``python -m tests.campaigns.hostile_data --trials 3000``.

Each trial writes a small data set, adds files that are damaged, crafted or not files at all, and loads it in a forked
process whose memory is limited. It checks that the data set is read, with every image that is not hostile unchanged, or
refused by a `DataError` of one line; and that the process ends in time, writes nothing, starts no program, opens no
connection and loads no pickle.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from oekd_fast.common.machine import machine
from oekd_fast.data import DataError, ImageDataset, load_dataset

from ..support.campaign_command import run_command
from .hostile_files import (
    SUFFIXES,
    bomb,
    huge_header,
    mutated,
    npy_bytes,
    odd_name,
    special_file,
    valid_image,
)

RESULT = Path(__file__).parent / "results" / "hostile_data.json"
TRIALS_PER_PROCESS = 50
SECONDS = 120
# Address space that a process may take beyond what it has at its start.
MEMORY = 2 * 2**30
KINDS = ("mutated image", "valid image", "huge header", "bomb", "special file", "odd name", "layout", "array")
# How often each kind is drawn; bombs take seconds.
WEIGHTS = (12, 2, 4, 0.3, 3, 2, 3, 6)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Names of audit events, or their beginnings. Imports of Python modules are allowed; they use marshal.
FORBIDDEN_EVENTS = (
    "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.mkdir", "os.rename", "os.remove",
    "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "shutil.", "pickle.", "socket.",
    "urllib.", "webbrowser.", "ctypes.dlopen",
)  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """A trial that ended in something other than a right reading or a refusal."""

    trial: int
    kind: str
    found: str


class Watch:
    """Records what this process does between `start` and `stop` that reading a data set must not do."""

    def __init__(self) -> None:
        self._active = False
        self._found: list[str] = []
        sys.addaudithook(self._hear)

    def start(self) -> None:
        self._found, self._active = [], True

    def stop(self) -> list[str]:
        self._active = False
        return self._found

    def _hear(self, event: str, arguments: tuple) -> None:
        if not self._active:
            return
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        if writes or event.startswith(FORBIDDEN_EVENTS):
            self._found.append(f"{event}{arguments!r}"[:300])


def plain_images(draw: random.Random, root: Path, classes: tuple[str, ...] = ("cat", "dog")) -> set[bytes]:
    """Write five images of each class and return their pixels, in the order C x H x W."""
    written = set()
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(5):
            pixels = np.random.default_rng(draw.getrandbits(32)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
            written.add(pixels.transpose(2, 0, 1).tobytes())
    return written


def write_trial(draw: random.Random, kind: str, root: Path) -> set[bytes]:
    """Write the data set of a trial and return the images that have to be read unchanged if it is read."""
    if kind == "array":
        for split in draw.choice((("train",), ("Training", "dev"), ("train", "val", "test"))):
            images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
            labels = np.arange(12) % draw.choice((2, 3)) + draw.choice((0, 0, 0, -(2**62)))
            for name, array in (("images", images), ("labels", labels)):
                path = root / f"{split}.{name}.npy"
                if draw.random() < 0.1:
                    special_file(draw, path)
                elif draw.random() < 0.4:
                    path.write_bytes(npy_bytes(draw, array))
                else:
                    np.save(path, array)
        return set()
    if kind == "layout":
        names = ("train", "Test", "val", "dev", "cat", "dog", "__MACOSX", ".x", "up", odd_name(draw))
        for _ in range(draw.randrange(1, 9)):
            folder = root.joinpath(*(draw.choice(names) for _ in range(draw.randrange(1, 4))))
            if folder.is_symlink() or not folder.resolve().is_relative_to(root.resolve()):
                continue
            with contextlib.suppress(FileExistsError):  # a link on the way that leads nowhere
                plain_images(draw, folder.parent, (folder.name,))
            if draw.random() < 0.3 and folder.is_dir() and not os.path.lexists(folder / "up"):
                (folder / "up").symlink_to(draw.choice(("..", ".", "../..", str(root), "../cat")))
        return set()
    plain = plain_images(draw, root)
    for number in range(draw.choice((1, 1, 3))):
        path = root / "cat" / f"x{number}{draw.choice(SUFFIXES)}"
        if kind == "special file":
            special_file(draw, path)
        elif kind == "odd name":
            folder = root / odd_name(draw)
            folder.mkdir(exist_ok=True)
            (folder / f"{odd_name(draw)[:100]}.png").write_bytes((root / "cat" / "0.png").read_bytes())
        elif kind == "mutated image":
            path.write_bytes(mutated(draw, valid_image(draw)))
        else:
            path.write_bytes({"valid image": valid_image, "huge header": huge_header, "bomb": bomb}[kind](draw))
    return plain


def check_read(data: ImageDataset, plain: set[bytes], same_size: bool) -> None:
    """Assert that all images can be gathered and that `plain` are among them, if sizes were kept."""
    read = set()
    for split in (data.train, data.validation, data.test):
        assert 0 <= int(split.labels.min()) <= int(split.labels.max()) < data.num_classes
        for images in split.chunks():
            assert images.dtype == torch.uint8 and tuple(images.shape[1:]) == split.image_shape
            read |= {image.numpy().tobytes() for image in images} if same_size else set()
    assert not same_size or plain <= read, "an image that is not hostile was changed"
    for text in (*data.notes, *data.classes):
        check_line(text)


def check_line(text: str) -> None:
    assert len(text.splitlines()) <= 1 and text.encode() and text.isprintable(), f"not one line: {text!r}"


def load(draw: random.Random, root: Path, plain: set[bytes]) -> str:
    """Load a data set; return "read" or "refused", or what went wrong."""
    size = draw.choice((None, None, 8, 64))
    try:
        data = load_dataset(str(root), stream=draw.random() < 0.5, skip_corrupt=draw.random() < 0.5, image_size=size)
        check_read(data, plain, size is None)
    except DataError as error:
        try:
            check_line(str(error))
        except (AssertionError, UnicodeEncodeError) as wrong:
            return str(wrong)
        return "refused"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:500]
    return "read"


def run_trials(numbers: range, seed: int, folder: Path, report: Any) -> None:
    """Run trials and write a line of JSON for each to `report`: its kind when it begins, and its outcome."""
    watch = Watch()
    for number in numbers:
        draw = random.Random(f"{seed}/{number}")
        (kind,) = draw.choices(KINDS, WEIGHTS)
        root = folder / str(number) / "data"
        root.mkdir(parents=True)
        plain = write_trial(draw, kind, root)
        print(json.dumps({"trial": number, "kind": kind}), file=report, flush=True)
        signal.alarm(SECONDS)  # ends the process, whatever it waits for
        watch.start()
        outcome = load(draw, root, plain)
        done = watch.stop()
        signal.alarm(0)
        outcome = f"forbidden: {done[0]}" if done else outcome
        shutil.rmtree(root.parent)
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"trial": number, "outcome": outcome, "peak": peak}), file=report, flush=True)


def fork_trials(numbers: range, seed: int, folder: Path) -> tuple[int, Any]:
    """Run trials in a forked process with limited memory; return its id and a file of its lines."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, os.fdopen(reading)
    os.close(reading)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    os.chdir(folder)
    torch.set_num_threads(1)  # threads of the parent do not exist here
    try:
        with os.fdopen(writing, "w") as report:
            run_trials(numbers, seed, folder, report)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


class Campaign:
    """Trials in forked processes, and what they found.

    Args:
        trials: number of trials.
        seed: seed of all trials.
        folder: empty folder for their data sets.
    """

    def __init__(self, trials: int, seed: int, folder: Path) -> None:
        self.outcomes = {kind: Counter() for kind in KINDS}
        self.faults: list[Fault] = []
        self.peak = 0
        self._next, self._kind, self._finished = 0, "none", True
        while self._next < trials:
            self._run(range(self._next, min(self._next + TRIALS_PER_PROCESS, trials)), seed, folder)

    def _run(self, numbers: range, seed: int, folder: Path) -> None:
        child, lines = fork_trials(numbers, seed, folder)
        with lines:
            for line in lines:
                self._hear(**json.loads(line))
        status = os.waitpid(child, 0)[1]
        if not self._finished:
            self._fault(f"the process ended with status {status}")  # a signal: 14 if it took too long
        elif self._next != numbers.stop:
            raise RuntimeError(f"trial {self._next}: the process ended before the trial, status {status}")

    def _hear(self, trial: int, kind: str | None = None, outcome: str = "", peak: int = 0) -> None:
        self._next = trial + 1
        if kind is not None:
            self._kind, self._finished = kind, False
            return
        self._finished, self.peak = True, max(self.peak, peak)
        if outcome in ("read", "refused"):
            self.outcomes[self._kind][outcome] += 1
        else:
            self._fault(outcome)

    def _fault(self, found: str) -> None:
        self._finished = True
        self.faults.append(Fault(self._next - 1, self._kind, found))
        print(f"trial {self._next - 1}: {self._kind}: {found}", flush=True)


def run_campaign(trials: int, seed: int, folder: Path) -> dict[str, Any]:
    """Run the trials below `folder` and return the result, as the JSON file holds it."""
    start = time.perf_counter()
    Image.init()  # here, so that each fork has the readers loaded
    base = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    campaign = Campaign(trials, seed, folder)
    return {
        "trials": trials,
        "seed": seed,
        "outcomes": campaign.outcomes,
        "faults": [asdict(fault) for fault in campaign.faults],
        "memory_limit_mib": MEMORY // 2**20,
        "peak_memory_mib": max(0, campaign.peak - base) // 2**20,
        "seconds": round(time.perf_counter() - start, 1),
        "machine": machine(),
        "pillow": Image.__version__,
        "numpy": np.__version__,
        "complete": True,
    }


def main() -> int:
    """Run the command line; the exit status is 1 if a fault was found."""
    result = run_command(__doc__, run_campaign, count=("--trials", 3000, "data sets to load"), result=RESULT)
    counts = Counter()
    for outcomes in result["outcomes"].values():
        counts += outcomes
    print(f"{result['trials']} trials, {dict(counts)}, {len(result['faults'])} faults, {result['seconds']} s")
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
