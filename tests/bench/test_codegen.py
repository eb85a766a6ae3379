"""Reading compiled kernels: kernels whose machine code is known, and listings written by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="kernels are compiled by Triton, which is not installed")

from bench.codegen import command  # noqa: E402
from bench.codegen.coalescing import narrowest_segment  # noqa: E402
from bench.codegen.control_flow import natural_loops  # noqa: E402
from bench.codegen.occupancy import Occupancy, occupancy  # noqa: E402
from bench.codegen.sass import count, parse_sass, parse_usage  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> tuple[subprocess.CompletedProcess, dict, list]:
    """Return the finished process, its results by case, and all results, since a case may have several launches.

    In this process kernels may be made for the interpreter, and those cannot be compiled.
    """
    file = tmp_path_factory.mktemp("samples") / "results.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.support.sample_kernels", "--arch", "90", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=900)
    assert file.exists(), done.stderr
    rows = json.loads(file.read_bytes())["results"]
    return done, {row["case"]: row for row in rows}, rows


def resources(samples, case: str) -> dict:
    return samples[1][case]["resources"]


@pytest.mark.slow
def test_aligned_rows_are_copied_by_128_bits(samples):
    copy = resources(samples, "copy")
    assert copy["code"]["loads"] == copy["code"]["stores"] == {"16": 2}
    assert samples[1]["copy"]["violations"] == []


@pytest.mark.slow
def test_odd_rows_are_reported_as_narrow(samples):
    assert resources(samples, "copy of odd rows")["code"]["loads"] == {"4": 8}
    assert samples[1]["copy of odd rows"]["violations"] == [
        "loads: 0 of 4096 bytes in accesses of 128 bit or more",
        "stores: 0 of 4096 bytes in accesses of 128 bit or more",
    ]
    assert resources(samples, "softmax of an odd row")["code"]["loads"] == {"2": 8}


@pytest.mark.slow
def test_one_exponential_an_element(samples):
    softmax = resources(samples, "softmax")
    assert softmax["code"]["exponentials"] * 32 * softmax["num_warps"] == 1024
    assert softmax["code"]["other_mufu"] == {"RCP": 1}
    assert softmax["loops"] == [] and softmax["hot"] == softmax["code"]
    assert samples[1]["softmax"]["violations"] == []
    assert samples[1]["softmax in half the exponentials"]["violations"] == ["exponentials: 1024, 512 needed"]


@pytest.mark.slow
def test_loops_are_counted_apart(samples):
    sums, result = resources(samples, "mean softmax")["loops"]
    assert sums["exponentials"] == result["exponentials"] == 3 * 1024 // 128
    assert sums["loads"] == result["loads"] == {"16": 3}
    assert (sums["stores"], result["stores"]) == ({}, {"16": 1})
    code, hot = resources(samples, "mean softmax")["code"], resources(samples, "mean softmax")["hot"]
    assert hot["instructions"] == sums["instructions"] + result["instructions"] < code["instructions"]
    assert code["shuffles"] > 0 == hot["shuffles"]


@pytest.mark.slow
def test_a_tile_too_large_for_the_registers_is_reported(samples):
    spilling = resources(samples, "softmax in one warp")
    assert spilling["stack"] > 0 and spilling["code"]["local_loads"] > 0 and spilling["code"]["local_stores"] > 0
    (violation,) = samples[1]["softmax in one warp"]["violations"]
    assert violation.startswith(f"local memory: {spilling['stack']} bytes a thread")


@pytest.mark.slow
def test_violations_are_listed_and_the_process_fails(samples):
    done, _, rows = samples
    assert done.returncode == 1
    listed = done.stdout.partition("6 violations\n")[2].splitlines()
    assert listed == [f"{row['case']} sm_90: {what}" for row in rows for what in row["violations"]]
    assert "not measurements" in done.stdout.splitlines()[0]


def test_an_unknown_case_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.codegen", "--only", "neither"])
    with pytest.raises(SystemExit, match="2"):
        command.main(lambda: [])
    assert "no case has 'neither' in its name" in capsys.readouterr().err


LISTING = """
	code for sm_90a
		Function : kernel
	.headerflags	@"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                           /* 0x00000a00ff017b82 */
                                                                                    /* 0x000fe20000000800 */
        /*0010*/              @!P0 LDG.E.U16.CONSTANT R8, desc[UR4][R4.64] ;        /* 0x0000000404087981 */
        /*0020*/                   LDG.E.LTC128B.64 R8, desc[UR4][R4.64] ;          /* 0x0000000404087981 */
        /*0030*/                   LDG.E.ENL2.256 R8, R12, desc[UR4][R4.64+0x20] ;  /* 0x0000000404087981 */
        /*0040*/                   LDGSTS.E.BYPASS.LTC128B.128 [R3], [R4.64], P0 ;  /* 0x0000000404087981 */
        /*0050*/                   MUFU.EX2 R6, R6 ;                                /* 0x0000000404087981 */
        /*0060*/                   MUFU.LG2 R6, R6 ;                                /* 0x0000000404087981 */
        /*0070*/                   HFMA2.MMA R8, -RZ, RZ, 0, 0 ;                    /* 0x0000000404087981 */
        /*0080*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8] ;        /* 0x0000000404087981 */
        /*0090*/               @P1 BRA 0x110 ;                                      /* 0x0000000404087981 */
        /*00a0*/                   FADD R6, R6, R7 ;                                /* 0x0000000404087981 */
        /*00b0*/                   BRA.U !UP0, 0xa0 ;                               /* 0x0000000404087981 */
        /*00c0*/                   STG.E desc[UR4][R2.64], R8 ;                     /* 0x0000000404087981 */
        /*00d0*/               @P2 BRA 0x50 ;                                       /* 0x0000000404087981 */
        /*00e0*/                   STL [R1], R8 ;                                   /* 0x0000000404087981 */
        /*00f0*/                   RED.E.ADD.F32.FTZ.RN.STRONG.GPU [R2.64], R5 ;    /* 0x0000000404087981 */
        /*0100*/                   EXIT ;                                           /* 0x0000000404087981 */
        /*0110*/                   FMUL R6, R6, R6 ;                                /* 0x0000000404087981 */
        /*0120*/                   BRA 0xa0 ;                                       /* 0x0000000404087981 */
        /*0130*/                   BRA 0x130;                                       /* 0xfffffffc00fc7947 */
        /*0140*/                   NOP;                                             /* 0x0000000000007918 */
		..........
"""


def test_instructions_by_class():
    counts = count(parse_sass(LISTING, "kernel"))
    assert counts.instructions == 19  # neither the jump to itself nor the NOP
    assert counts.loads == {32: 1, 16: 1, 8: 1, 2: 1} and counts.stores == {4: 1}
    assert (counts.bytes_loaded(), counts.bytes_loaded(16), counts.bytes_stored(16)) == (58, 48, 0)
    assert (counts.exponentials, counts.other_mufu, counts.matrix, counts.atomics) == (1, {"LG2": 1}, 1, 1)
    assert (counts.local_loads, counts.local_stores) == (0, 1)


def test_a_rare_path_behind_the_end_belongs_to_its_loop_and_forms_none():
    loops = natural_loops(parse_sass(LISTING, "kernel"))
    addresses = [[i.address for i in loop] for loop in loops]
    outer = [*range(0x50, 0xE0, 0x10), 0x110, 0x120]
    assert addresses == [outer, [0xA0, 0xB0]]


def test_an_unknown_kernel_is_named():
    with pytest.raises(ValueError, match=r"expected the code of 'other', found \['kernel'\]"):
        parse_sass(LISTING, "other")
    with pytest.raises(ValueError, match="expected a line for 'other'"):
        parse_usage(" Function kernel:\n  REG:18 STACK:0 SHARED:0 LOCAL:0", "other")


def test_usage_of_one_of_two_kernels():
    text = " Function first:\n  REG:18 STACK:0 SHARED:0 LOCAL:0\n Function second:\n  REG:255 STACK:24 SHARED:1 LOCAL:8"
    assert parse_usage(text, "second") == (255, 24, 8)


@pytest.mark.parametrize(
    "arch, num_warps, registers, shared, expected",
    [
        (90, 4, 32, 0, Occupancy(16, 64, "threads")),
        (90, 4, 255, 0, Occupancy(2, 8, "registers")),  # 64 K registers: 8 warps of 32 x 256
        (90, 8, 96, 0, Occupancy(2, 16, "registers")),  # 5 warps a scheduler
        (90, 1, 16, 0, Occupancy(32, 32, "blocks")),
        (90, 4, 32, 100 * 1024, Occupancy(2, 8, "shared memory")),  # 228 KiB
        (80, 4, 32, 100 * 1024, Occupancy(1, 4, "shared memory")),  # 164 KiB
        (90, 16, 255, 0, Occupancy(0, 0, "registers")),
        (90, 4, 32, 228 * 1024, Occupancy(0, 0, "shared memory")),
    ],
)
def test_occupancy(arch, num_warps, registers, shared, expected):
    assert occupancy(arch, num_warps, registers, shared) == expected


LAYOUTS = """
#blocked = #ttg.blocked<{sizePerThread = [1, 1], threadsPerWarp = [8, 4], warpsPerCTA = [1, 2], order = [0, 1]}>
#blocked1 = #ttg.blocked<{sizePerThread = [1, 4], threadsPerWarp = [1, 32], warpsPerCTA = [1, 2], order = [1, 0]}>
  %1 = tt.load %0, %mask : tensor<8x64x!tt.ptr<f32>, #blocked> loc(#loc1)
  %3 = tt.load %2 : tensor<64x32x!tt.ptr<f32>, #blocked1> loc(#loc2)
"""


@pytest.mark.parametrize(
    "text, unit, bytes_",
    [
        (LAYOUTS, 0, 32),
        (LAYOUTS, 1, 4),  # the threads of a warp take other rows first
        (LAYOUTS.replace("8x64x", "4x64x"), 0, None),  # no access to a tile
        (LAYOUTS.replace("8x64x!tt.ptr<f32>, #blocked>", "8x64x!tt.ptr<bf16>, #blocked1>"), 1, 128),
        (LAYOUTS, -1, None),
    ],
)
def test_neighbouring_bytes_of_a_warp(text, unit, bytes_):
    assert narrowest_segment(text, {"ROWS": 8, "BLOCK": 64, "UNIT": unit}) == bytes_


@pytest.mark.slow
def test_kernels_meet_their_cases(samples):
    """On sm_90, kernels use no local memory, no narrow accesses, and no superfluous exponentials.

    The kernel of long rows, and that of images of labels, are compiled here; `make kernels` compiles all cases, which
    takes minutes.
    """
    of_package = {case: row for case, row in samples[1].items() if "ensemble_kd" in case}
    assert len(of_package) == 2
    assert [row["violations"] for row in samples[2] if row["case"] in of_package and row["violations"]] == []
