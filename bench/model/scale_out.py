"""Bytes and time of a training step of a family on many devices, computed on paper.

    python -m bench.model.scale_out --model resnet110 --batch-size 128 --devices 2 8 64 512 --link-gb-s 25
    python -m bench.model.scale_out --model resnet50 --classes 1000 --image-size 224 --json result.json

Nothing is run. The batch is that of a step over all devices. Two arrangements of W devices are compared:

- Data parallel: each device trains the whole family on B / W images, and the gradients and running statistics of all
  students and of the base are summed over all devices.
- Student parallel, as with `--student-ranks P`: the devices form P student ranks times D = W / P data ranks. Students
  are placed on the student ranks, those with most operations first, each on the rank with the least work so far. Every
  device computes the base and its own students on B / D images. The logits [S, B / D, C] are summed over the P student
  ranks, the maps of student 1 are sent from its rank to the others, the gradients and running statistics of a student
  are summed over its D data ranks, and those of the base over all devices. Deterministic mode, which exchanges other
  gradients of the base, is left out.

Assumptions:

- In a sum over n devices, each device sends 2 (n - 1) / n of the bytes, as in a ring and in recursive halving and
  doubling, with the 2 log2(n) messages of the latter (Thakur, Rabenseifner, Gropp 2005). Each student is a sum of its
  own. A device sends and receives at the same time, so the bytes of one direction count. Maps pass through the student
  ranks in a chain: each of them sends or receives them once.
- Gradients and running statistics are float32. Maps and logits have the precision of the networks.
- Time of computation is operations / speed, with twice as many backward as forward. What does not shrink with the
  images of a device, such as the launches of kernels, is left out, and so are the adapters.
- A step is between two times. Overlapped: gradients of students and maps are sent while the device computes, and the
  exchange of logits and the sum of the base are not. Not overlapped: nothing is sent while the device computes.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from oekd_fast.distributed.grid import place_students
from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.family.flops import family_flops
from oekd_fast.training.data_parallel import shared_modules, student_modules

from .. import result_file

FP32 = 4  # bytes
MAP_BYTES = {"fp32": 4, "bf16": 2}
PASSES = 3  # operations of forward and backward, as multiples of those of forward
FEWEST_IMAGES = 2  # a device, in training
ARRANGEMENTS = {"data_parallel": "data parallel", "student_parallel": "student parallel"}


@dataclass(frozen=True)
class Part:
    """The base, or a student without it.

    Attributes:
        bytes: Gradients of its parameters, those of its adapters included, and its running statistics.
        flops: Operations of the forward pass for one image.
    """

    bytes: int
    flops: int


@dataclass(frozen=True)
class Family:
    """A family; `map_elements` are those of all maps of student 1 for one image."""

    base: Part
    students: tuple[Part, ...]
    map_elements: int
    classes: int

    @classmethod
    def of(cls, model: str, num_students: int = 5, classes: int = 100, image_size: int = 32) -> Family:
        """Build the family on the meta device and count."""
        with torch.device("meta"), torch.no_grad():
            ensemble = build_ensemble(model, num_students, classes).eval()
            maps = ensemble.branches[0](ensemble.base(torch.empty(1, 3, image_size, image_size)))[1]
        flops = family_flops(ensemble, image_size)
        students = zip(student_modules(ensemble), flops.branches, strict=True)
        return cls(
            Part(_summed_bytes(shared_modules(ensemble)), flops.base),
            tuple(Part(_summed_bytes(modules), forward) for modules, forward in students),
            sum(m.numel() for m in maps),
            classes,
        )

    @property
    def flops(self) -> int:
        """Operations of the forward pass of the whole family for one image."""
        return self.base.flops + sum(student.flops for student in self.students)


@dataclass(frozen=True)
class Cluster:
    """Equal devices.

    Attributes:
        link: Bytes/s of a device in one direction.
        latency: Seconds of a message.
        speed: FLOP/s that a device reaches in these networks, not its peak.
    """

    devices: int
    link: float
    latency: float
    speed: float


@dataclass(frozen=True)
class Transfer:
    """What one device sends for one purpose in a step; `hidden` transfers can run while it computes."""

    what: str
    bytes: float
    seconds: float
    hidden: bool


@dataclass(frozen=True)
class RankStep:
    """A step on the devices of one student rank; `compute` is in seconds."""

    compute: float
    transfers: tuple[Transfer, ...]

    @property
    def bytes(self) -> float:
        return sum(transfer.bytes for transfer in self.transfers)

    def seconds(self, *, overlapped: bool) -> float:
        hidden = sum(t.seconds for t in self.transfers if t.hidden)
        exposed = sum(t.seconds for t in self.transfers if not t.hidden)
        return (max(self.compute, hidden) if overlapped else self.compute + hidden) + exposed


@dataclass(frozen=True)
class Step:
    """A step on all student ranks; one waits for the others."""

    ranks: tuple[RankStep, ...]

    @property
    def bytes(self) -> float:
        """Bytes of the device that sends most."""
        return max(rank.bytes for rank in self.ranks)

    def seconds(self, *, overlapped: bool) -> float:
        return max(rank.seconds(overlapped=overlapped) for rank in self.ranks)


def placement(family: Family, student_ranks: int) -> tuple[tuple[int, ...], ...]:
    """Return the students of each student rank, as the trainer places them."""
    placed = place_students([student.flops for student in family.students], student_ranks)
    return tuple(tuple(j for j, rank in enumerate(placed) if rank == own) for own in range(student_ranks))


def balance(family: Family, of_ranks: Sequence[Sequence[int]]) -> float:
    """Return how many times as fast as one device the student ranks compute a batch; at most their number."""
    return family.flops / max(_rank_flops(family, students) for students in of_ranks)


def plan_step(family: Family, cluster: Cluster, batch: int, student_ranks: int = 1, precision: str = "fp32") -> Step:
    """Return the step of `batch` images over all devices; one student rank is data parallel.

    Raises:
        ValueError: the student ranks do not divide the devices, there are more of them than students, or a device has
            fewer than two images.
    """
    if cluster.devices < 1 or cluster.devices % student_ranks:
        raise ValueError(f"devices: expected a multiple of {student_ranks} student ranks, got {cluster.devices}")
    if student_ranks > len(family.students):
        raise ValueError(f"student_ranks: expected at most {len(family.students)} students, got {student_ranks}")
    data_ranks = cluster.devices // student_ranks
    if batch < FEWEST_IMAGES * data_ranks:
        raise ValueError(f"batch: expected at least {FEWEST_IMAGES * data_ranks} images on these devices, got {batch}")
    images = batch / data_ranks
    exchanged = _exchanges(family, cluster, images * MAP_BYTES[precision], student_ranks)
    base = _sum("base", family.base.bytes, cluster, cluster.devices, hidden=False)
    ranks = []
    for students in placement(family, student_ranks):
        sums = (_sum(f"student {j + 1}", family.students[j].bytes, cluster, data_ranks, hidden=True) for j in students)
        compute = PASSES * images * _rank_flops(family, students) / cluster.speed
        ranks.append(RankStep(compute, (*exchanged, *sums, base)))
    return Step(tuple(ranks))


def _exchanges(family: Family, cluster: Cluster, image_bytes: float, student_ranks: int) -> tuple[Transfer, ...]:
    """Return the exchanges between the student ranks; `image_bytes` is the size of one element for all images."""
    if student_ranks == 1:
        return ()
    logits = len(family.students) * family.classes * image_bytes
    maps = family.map_elements * image_bytes
    seconds = maps / cluster.link + (student_ranks - 1) * cluster.latency
    return (
        _sum("logits", logits, cluster, student_ranks, hidden=False),
        Transfer("maps", maps, seconds, hidden=True),
    )


def _sum(what: str, size: float, cluster: Cluster, devices: int, *, hidden: bool) -> Transfer:
    """Return the sum of `size` bytes over a number of devices."""
    moved = 2 * (devices - 1) / devices * size
    return Transfer(what, moved, moved / cluster.link + 2 * math.ceil(math.log2(devices)) * cluster.latency, hidden)


def _rank_flops(family: Family, students: Sequence[int]) -> int:
    return family.base.flops + sum(family.students[j].flops for j in students)


def _summed_bytes(modules: Iterable[nn.Module]) -> int:
    """Return the bytes of gradients and running statistics; the counts of batches are equal on all devices."""
    tensors = (tensor for module in modules for tensor in module.state_dict().values())
    return FP32 * sum(tensor.numel() for tensor in tensors if tensor.is_floating_point())


# -- the command


@dataclass(frozen=True)
class Problem:
    """What the command computes, in the units of its options."""

    model: str
    students: int
    classes: int
    image_size: int
    batch_size: int
    student_ranks: int
    precision: str
    link_gb_s: float
    latency_us: float
    device_tflops: float


def compute(problem: Problem, devices: Sequence[int]) -> dict:
    """Return the content of a result file: both arrangements on each number of devices, None where one is not possible.

    Bytes are in MB, times in ms.
    """
    family = Family.of(problem.model, problem.students, problem.classes, problem.image_size)
    ranks = {"data_parallel": 1, "student_parallel": problem.student_ranks}
    results = []
    for count in devices:
        cluster = Cluster(count, problem.link_gb_s * 1e9, problem.latency_us * 1e-6, problem.device_tflops * 1e12)
        results.append({"devices": count} | {name: _figures(family, cluster, problem, p) for name, p in ranks.items()})
    return {
        "what": "a family's training step on many devices, computed by bench.model.scale_out; nothing was measured",
        "problem": asdict(problem),
        "balance": balance(family, placement(family, problem.student_ranks)),
        "results": results,
    }


def _figures(family: Family, cluster: Cluster, problem: Problem, student_ranks: int) -> dict[str, float] | None:
    try:
        step = plan_step(family, cluster, problem.batch_size, student_ranks, problem.precision)
    except ValueError:
        return None
    overlapped, not_overlapped = (1e3 * step.seconds(overlapped=overlapped) for overlapped in (True, False))
    return {"megabytes": step.bytes / 1e6, "overlapped": overlapped, "not_overlapped": not_overlapped}


def moves_less(result: dict) -> str:
    """Return the name of the arrangement that moves fewer bytes, "-" if one of them is not possible."""
    return _smaller(result, "megabytes") or "equal"


def faster(result: dict) -> str:
    """Return the name of the arrangement that is faster whether or not transfers overlap, else "depends"."""
    names = {_smaller(result, name) for name in ("overlapped", "not_overlapped")}
    return (names.pop() or "equal") if len(names) == 1 else "depends"


def _smaller(result: dict, figure: str) -> str:
    """Return the arrangement with the smaller figure, "" if both have the same."""
    if None in (result[name] for name in ARRANGEMENTS):
        return "-"
    data, student = (result[name][figure] for name in ARRANGEMENTS)
    return "" if data == student else ARRANGEMENTS["data_parallel" if data < student else "student_parallel"]


def lines(content: dict) -> Iterator[str]:
    """Yield the figures of `compute` as lines of text."""
    problem = Problem(**content["problem"])
    yield "Computed by a model, not measured. MB that a device sends in a step, and ms of the step: overlapped - not."
    yield (
        f"{problem.model} x {problem.students}, B = {problem.batch_size}, {problem.image_size} x {problem.image_size}, "
        f"{problem.classes} classes, {problem.precision}; {problem.link_gb_s:g} GB/s, {problem.latency_us:g} us a "
        f"message, {problem.device_tflops:g} TFLOP/s a device, all assumed."
    )
    yield f"{problem.student_ranks} student ranks compute {content['balance']:.2f} times as fast as one device."
    yield f"{'devices':>7}  {'data parallel':<26}  {'student parallel':<26}  {'moves less':<16}  faster"
    for result in content["results"]:
        cells = "  ".join(f"{_cell(result[name]):<26}" for name in ARRANGEMENTS)
        yield f"{result['devices']:>7}  {cells}  {moves_less(result):<16}  {faster(result)}"


def _cell(figures: dict | None) -> str:
    if figures is None:
        return "not possible"
    return f"{figures['megabytes']:,.1f} MB  {figures['overlapped']:,.1f} - {figures['not_overlapped']:,.1f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet110")
    parser.add_argument("--students", type=int, default=5)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--image-size", type=int, default=32, help="height and width in pixels")
    parser.add_argument("--batch-size", type=int, default=128, help="images of a step over all devices")
    parser.add_argument("--student-ranks", type=int, default=2, help="ranks that the students are placed on")
    parser.add_argument("--precision", choices=MAP_BYTES, default="fp32", help="of maps and logits")
    parser.add_argument("--link-gb-s", type=float, default=25.0, help="GB/s of a device in one direction")
    parser.add_argument("--latency-us", type=float, default=10.0, help="microseconds of a message")
    parser.add_argument("--device-tflops", type=float, default=20.0, help="TFLOP/s that a device reaches")
    parser.add_argument("--devices", type=int, nargs="+", default=[2, 8, 32, 128, 512])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file, too")
    options = vars(parser.parse_args())
    devices, file = options.pop("devices"), options.pop("json")
    content = compute(Problem(**options), devices)
    print("\n".join(lines(content)))
    if file:
        result_file.write(file, content)


if __name__ == "__main__":
    main()
