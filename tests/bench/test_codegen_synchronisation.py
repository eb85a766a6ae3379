"""The synchronisation of a kernel, read from PTX that was written by hand."""

import pytest

pytest.importorskip("triton", reason="kernels are compiled by Triton, which is not installed")

from bench.codegen.command import Row
from bench.codegen.kernel_cases import Demand
from bench.codegen.occupancy import Occupancy
from bench.codegen.sass import Resources, count
from bench.codegen.synchronisation import Synchronisation, parse_ptx, synchronisation

# A ticket's data are stored, the last program to arrive announces them, and each program waits for the announcement.
KERNEL = """
.visible .entry kernel(
	.param .u64 .ptr .global .align 1 kernel_param_0
)
{
	.reg .pred 	%p<4>;
$L__func_begin0:
$L__BB0_1:                              // the loop of the tickets
	.loc	1 250 25
	st.global.b32 [ %rd1 + 0 ], { %r1 };
	bar.sync 	0;
	@%p1 atom.global.gpu.acq_rel.add.u32 %r2, [ %rd2 + 0 ], %r3;
	st.shared.b32 [ %r9 + 0 ], %r2;
	bar.sync 	0;
	@%p2 bra 	$L__BB0_3;
	st.global.b32 [ %rd3 + 0 ], { %r1 };
	bar.sync 	0;
	@%p1 atom.global.gpu.release.add.u32 %r4, [ %rd2 + 0 ], %r3;
$L__BB0_3:
	ld.global.gpu.acquire.b32 %r5, [ %rd2 + 0 ];
	@%p3 bra 	$L__BB0_3;
	bar.sync 	0;
	ld.global.L1::evict_first.b32 { %r6 }, [ %rd1 + 0 ];
	@%p3 bra 	$L__BB0_1;
	ret;
}
"""


def without(line: str, occurrence: int = 0) -> str:
    """The kernel without one of the lines that hold a text."""
    lines = KERNEL.splitlines()
    del lines[[number for number, text in enumerate(lines) if line in text][occurrence]]
    return "\n".join(lines)


def test_a_kernel_with_all_orders_has_no_faults():
    assert synchronisation(KERNEL) == Synchronisation(polls=1, arrivals=1, releases=1, faults=())


@pytest.mark.parametrize(
    "barrier, fault",
    [
        (0, "st.global.b32 precedes atom.global.gpu.acq_rel.add.u32 without a barrier"),
        (1, "st.global.b32 follows atom.global.gpu.acq_rel.add.u32 without a barrier"),
        (2, "st.global.b32 precedes atom.global.gpu.release.add.u32 without a barrier"),
        (3, "ld.global.L1::evict_first.b32 follows ld.global.gpu.acquire.b32 without a barrier"),
    ],
)
def test_a_missing_barrier_is_a_fault(barrier, fault):
    assert synchronisation(without("bar.sync", barrier)).faults == (fault,)


def test_a_barrier_of_one_warp_is_none():
    faults = synchronisation(KERNEL.replace("bar.sync 	0", "bar.warp.sync 	-1")).faults
    assert len(faults) == 4


def test_a_poll_outside_its_loop_is_a_fault():
    once = synchronisation(without("@%p3 bra 	$L__BB0_3"))
    assert (once.polls, once.faults) == (0, ("ld.global.gpu.acquire.b32 is not repeated",))
    # The loop reads the value that was acquired before it.
    hoisted = KERNEL.replace("$L__BB0_3:\n", "").replace(
        "b32 %r5, [ %rd2 + 0 ];\n", "b32 %r5, [ %rd2 + 0 ];\n$L__BB0_3:\n"
    )
    assert synchronisation(hoisted).polls == 0


@pytest.mark.parametrize(
    "order, left",
    [("gpu.acquire.b32", (0, 1, 1)), ("gpu.acq_rel", (1, 0, 1)), ("gpu.release", (1, 1, 0))],
)
def test_a_relaxed_access_does_not_count(order, left):
    width = order.partition("acquire")[2]
    found = synchronisation(KERNEL.replace(order, f"gpu.relaxed{width}"))
    assert (found.polls, found.arrivals, found.releases) == left


def test_jumps_and_labels():
    code = parse_ptx(KERNEL)
    jumps = [(i.address, i.target, i.predicate) for i in code if i.target is not None]
    assert jumps == [(5, 9, "@%p2"), (10, 9, "@%p3"), (13, 0, "@%p3")]
    assert not code[-1].falls_through and code[-1].name == "RET"


def test_labels_belong_to_their_block_of_inline_assembly():
    """Triton waits for a tensor core of sm_100 in a block of its own, with the same labels each time."""
    wait = """{
	@!%p2 bra.uni skipWait;
	.reg .pred complete;
	waitLoop: mbarrier.try_wait.parity.shared::cta.b64 complete, [%r9], %r2;
	@!complete bra.uni waitLoop; skipWait:
	}
"""
    code = parse_ptx(KERNEL.replace("	ret;\n", f"{wait}{wait}	ret;\n"))
    jumps = [(i.address, i.target, i.predicate) for i in code if i.target is not None][3:]
    assert jumps == [(14, 17, "@!%p2"), (16, 15, "@!complete"), (17, 20, "@!%p2"), (19, 18, "@!complete")]
    assert code[20].name == "RET"


def test_a_jump_without_its_label_is_an_error():
    with pytest.raises(ValueError, match=r"ptx: expected a label \$L__BB0_3, got none"):
        parse_ptx(without("$L__BB0_3:"))


def test_another_number_of_kernels_is_an_error():
    for text, number in [("", 0), (KERNEL + KERNEL, 2)]:
        with pytest.raises(ValueError, match=f"ptx: expected one kernel, got {number}"):
            synchronisation(text)


def test_a_kernel_with_too_few_synchronising_accesses_violates_its_case():
    none = count([])
    resources = Resources(
        "kernel", 90, 1, 32, 0, 0, 0, none, (), none, Occupancy(32, 32, "blocks"), None, synchronisation(KERNEL)
    )
    demand = Demand(vector=16, loaded=0, stored=0, exponentials=0, polls=2, arrivals=1, releases=1)
    assert list(Row("case", 1, 1, resources, demand, 0).violations()) == [
        "synchronisation: 1 of 2 polls",
        "synchronisation: 0 of 2 fences",
    ]
