"""The numbers of compiled kernels that are committed, and their table."""

import json

from bench.codegen.summary import summary
from bench.readme.machine_code import of_versions


def row(case, kernel, registers, blocks, stack=0, polls=2, violations=()):
    resources = {
        "kernel": kernel,
        "arch": 90,
        "registers": registers,
        "stack": stack,
        "local": 0,
        "code": {"local_loads": 0, "fences": 3},
        "occupancy": {"blocks": blocks},
        "synchronisation": {"polls": polls, "arrivals": 2, "releases": 1},
    }
    return {"case": case, "resources": resources, "resident": 3, "violations": list(violations)}


ROWS = [
    row("ensemble_kd long", "streamed", 168, 3),
    row("feature_kd", "tiled", 90, 5),
    row("ensemble_kd longer", "streamed", 255, 2, stack=8, polls=1, violations=["spills"]),
]


def test_launches_of_a_kernel_are_summed_up():
    streamed, tiled = summary(ROWS)
    assert streamed == {
        "kernel": "ensemble_kd streamed",
        "arch": 90,
        "launches": 2,
        "registers": {"least": 168, "most": 255},
        "with_local_memory": 1,
        "below_plan": 1,
        "polls": 1,
        "arrivals": 2,
        "releases": 1,
        "fences": 3,
        "violations": ["ensemble_kd longer: spills"],
    }
    assert (tiled["kernel"], tiled["launches"], tiled["below_plan"]) == ("feature_kd tiled", 1, 0)


def test_the_table_has_a_row_for_each_version_and_kernel(tmp_path):
    for version in ("3.6.0", "3.7.1"):
        content = {"triton": version, "commit": "abc", "results": summary(ROWS)}
        (tmp_path / f"codegen_{version}.json").write_text(json.dumps(content))
    lines = of_versions(tmp_path, "codegen_*.json").splitlines()
    assert lines[2] == "| 3.6.0 | ensemble_kd streamed | sm_90 | 2 | 168 - 255 | 1 | 1 | 1 | 2 | 1 | 3 | 1 |"
    assert [line.split(" | ")[1] for line in lines[2:6]] == ["ensemble_kd streamed", "feature_kd tiled"] * 2
    assert lines[-1].endswith("Triton 3.6.0: commit abc; Triton 3.7.1: commit abc.")
