"""Read damaged and hostile tables: ``python -m tests.campaigns.hostile_tables --trials 5000``.

Each trial damages the file of a small data set (parquet or Arrow) by flipped bits or by bytes that are cut, zeroed,
repeated or inserted, and loads it. Each crafted case is a table that was made to leave its folder or to take memory.
All of them are loaded in forked processes whose address space is limited. A load has to end in a DataError of one
printable line, or in a data set. Anything else is a fault: another exception, a crash, or a load that takes longer than
the time limit. A crafted case also says which of the two it expects.

The formats have no checksum over all their bytes, so a flipped bit may lead to other labels or other names of classes
that are valid; the result counts these as "other values".
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from oekd_fast.common.machine import machine
from oekd_fast.data import DataError, ImageDataset, load_dataset

from ..support.campaign_command import run_command
from ..support.tables import LABELS, PNGS, class_names, save_to_disk, structs, table
from .hostile_table_cases import CRAFTED

RESULT = Path(__file__).with_name("results") / "hostile_tables.json"
MEMORY = 3 << 30  # bytes that a load may add to the address space of its process
SECONDS = 30  # for one load
TRIALS_PER_PROCESS = 100
SHOWN = 200  # characters of an error in the result
DAMAGES = ("flip", "cut", "zero", "repeat", "insert", "flip the end")


@dataclass(frozen=True)
class Base:
    """A data set whose file is damaged.

    Args:
        folder: the data set.
        file: the file.
        stream: whether its images are read when they are gathered.
        digest: hash of the classes, labels and images.
    """

    folder: Path
    file: Path
    stream: bool
    digest: str


def write_bases(root: Path) -> dict[str, Base]:
    """Write the undamaged data sets, without those that need `datasets` to stream."""
    hub = table({"image": {"_type": "Image"}, "label": class_names("cat", "dog")}, image=structs(PNGS), label=LABELS)
    names = table(image=PNGS, label=pa.array(["dog" if label else "cat" for label in LABELS]).dictionary_encode())
    options = {
        "parquet": (hub, {"row_group_size": 5}),
        "parquet, not compressed": (hub, {"compression": "none", "use_dictionary": False}),
        "parquet with checksums": (hub, {"compression": "zstd", "write_page_checksum": True}),
        "parquet with names": (names, {"compression": "gzip", "data_page_version": "2.0"}),
    }
    bases = {}
    for name, (arrow, write_options) in options.items():
        folder = root / name
        folder.mkdir()
        pq.write_table(arrow, folder / "train.parquet", **write_options)
        bases[name] = folder / "train.parquet", False
    for name, arrow, stream in (
        ("arrow", hub, False),
        ("arrow, streamed", hub, True),
        ("arrow with names", names, False),
    ):
        save_to_disk(root / name, arrow)
        bases[name] = root / name / "data-00000-of-00001.arrow", stream
    return {
        name: Base(file.parent, file, stream, digest(load_dataset(str(file.parent), stream=stream)))
        for name, (file, stream) in bases.items()
    }


def digest(data: ImageDataset) -> str:
    """Return a hash of everything that was read; streamed images are read here."""
    content = blake2b(repr(data.classes).encode(), digest_size=16)
    for split in (data.train, data.validation, data.test):
        content.update(split.labels.numpy())
        for images in split.chunks():
            content.update(images.contiguous().numpy())
    return content.hexdigest()


def damaged(content: bytes, generator: random.Random) -> bytes:
    """Return a file's content after one kind of damage."""
    kind, data = generator.choice(DAMAGES), bytearray(content)
    start = generator.randrange(len(data))
    length = generator.randint(1, 64)
    if kind.startswith("flip"):
        first = max(0, len(data) - 1500) if kind == "flip the end" else 0  # the metadata of parquet
        for _ in range(generator.choice((1, 1, 1, 2, 8, 64))):
            data[generator.randrange(first, len(data))] ^= 1 << generator.randrange(8)
    elif kind == "cut":
        del data[start:]
    elif kind == "zero":
        data[start : start + length] = bytes(len(data[start : start + length]))
    elif kind == "repeat":
        data[start:start] = data[start : start + length]
    else:
        data[start:start] = generator.randbytes(length)
    return bytes(data)


def outcome(load: Callable[[], str]) -> str:
    """Return "refused: ..." or what `load` returns; "fault: ..." for an error that is not a DataError of one line."""
    try:
        return load()
    except DataError as error:
        text = str(error)
        return f"refused: {text}" if text.isprintable() else f"fault: an error that is not one line: {text!r}"
    except BaseException as error:  # whatever ends the load is the result
        return f"fault: {type(error).__name__}: {error!r}"


def run_forked(jobs: list[Callable[[], str]]) -> Iterator[str]:
    """Run jobs one after the other in forked processes and yield their results.

    A job whose process crashes or exceeds the time limit is a fault, and the next ones run in another process.
    """
    position = 0
    while position < len(jobs):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            _limit_memory()
            for job in jobs[position : position + TRIALS_PER_PROCESS]:
                signal.alarm(SECONDS)  # ends the process
                os.write(writing, (json.dumps(outcome(job)[:2000]) + "\n").encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            results = [json.loads(line) for line in pipe]
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        yield from results
        position += len(results)
        if code != 0:
            yield f"fault: the process ended with {signal.Signals(-code).name if code < 0 else code}"
            position += 1


def _limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def trial(number: int, seed: int, bases: dict[str, Base], scratch: Path) -> Callable[[], str]:
    """Return the job of a trial, which depends on `seed` and `number` only."""

    def load() -> str:
        generator = random.Random(f"{seed} {number}")
        base = bases[generator.choice(sorted(bases))]
        folder = scratch / str(os.getpid())
        shutil.copytree(base.folder, folder, dirs_exist_ok=True)
        try:
            (folder / base.file.name).write_bytes(damaged(base.file.read_bytes(), generator))
            read = digest(load_dataset(str(folder), stream=base.stream))
        finally:
            shutil.rmtree(folder)
        return "same values" if read == base.digest else "other values"

    return load


def crafted(make: Callable[[Path], dict[str, Any]], folder: Path) -> Callable[[], str]:
    """Return the job that writes and loads a crafted case; `make` returns arguments of `load_dataset`."""

    def load() -> str:
        folder.mkdir()
        try:
            arguments = make(folder)
            digest(load_dataset(str(folder), **arguments))
        finally:
            shutil.rmtree(folder)
        return "read"

    return load


def run_campaign(trials: int, seed: int, root: Path, cases: tuple[str, ...] = tuple(CRAFTED)) -> dict[str, Any]:
    """Run the crafted cases and the trials in `root` and return the result, as the JSON file holds it."""
    start = time.perf_counter()
    bases = write_bases(root)
    faults, crafted_results = [], {}
    jobs = [crafted(CRAFTED[name][0], root / f"crafted {number}") for number, name in enumerate(cases)]
    for name, result in zip(cases, run_forked(jobs), strict=True):
        crafted_results[name] = result.replace(str(root), "")[:SHOWN]
        expected = CRAFTED[name][1]
        if result.startswith("fault") or (result != expected and expected not in result.partition("refused: ")[2]):
            faults.append({"case": name, "expected": expected, "found": result})
    counts: Counter[str] = Counter()
    for number, result in enumerate(run_forked([trial(number, seed, bases, root) for number in range(trials)])):
        counts[result.partition(":")[0]] += 1
        if result.startswith("fault"):
            faults.append({"trial": number, "found": result})
    return {
        "trials": trials,
        "seed": seed,
        "results": dict(counts),
        "crafted": crafted_results,
        "faults": faults,
        "bytes_of_memory_allowed": MEMORY,
        "seconds_allowed": SECONDS,
        "seconds": round(time.perf_counter() - start, 1),
        "machine": machine(),
        "versions": {"pyarrow": pa.__version__},
        "complete": True,
    }


def main() -> int:
    """Run the command line; the exit status is 1 if a fault was found."""
    result = run_command(__doc__, run_campaign, count=("--trials", 5000, "damaged files"), result=RESULT)
    print(f"{result['trials']} trials, {result['results']}, {len(result['faults'])} faults, {result['seconds']} s")
    for fault in result["faults"]:
        print(fault)
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
