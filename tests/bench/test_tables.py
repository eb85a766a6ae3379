"""The tables of README.md and docs/ hold the measured rows, and the committed pages are up to date."""

import json

import pytest

from bench.gpu import figures
from bench.readme import accuracy, loss, steps, tables

MACHINE = {"processor": "a CPU", "threads": 2, "cpu_capability": "AVX2", "torch": "t", "commit": "c"}
MS = dict(zip(loss.VARIANTS, (20, 10, 4, 2), strict=True))
TIMINGS = {name: {"median": ms, "lower": 0.9 * ms, "upper": 1.1 * ms} for name, ms in MS.items()}
FASTER = {"differentiable_speedup": {"eager": 5.0, "compiled": 2.5}, "value_and_grad_speedup": {"eager": 10.0}}


def write(folder, name, content):
    (folder / name).write_text(json.dumps(content))


def cells(table, row=0):
    """Return the cells of a row, without the heading."""
    return [cell.strip() for cell in table.splitlines()[2 + row].split("|")[1:-1]]


def loss_result(dtype="float32"):
    return {"rows": 128, "classes": 100, "dtype": dtype, "milliseconds": TIMINGS, **FASTER}


def step_result(batch_size=128, **more):
    problem = {"model": "resnet20", "batch_size": batch_size, "num_students": 5, "image_size": 32}
    ms = {"published": 2000.0, "eager": 1200.0, "eager_nchw": 11.0, "ours_eager": 5.0}
    return {
        "machine": MACHINE,
        "problem": problem,
        "variants": {name: {"ms": value} for name, value in ms.items()} | {"compiled": None},
        "speedups": {"ours_eager": {"published": 4.0, "eager_best": 2.2}},
        "agreement": {"variants": {"ours_eager": {"agrees": True}, "eager": {"agrees": False}}},
        **more,
    }


def gpu_report(**results):
    parts = {name: {f"{name} {i}": r for i, r in enumerate(found)} for name, found in results.items()}
    where = {"gpu": "NVIDIA H200", "torch": "t", "triton": "r", "cuda": "c", "commit": "abc"}
    return {"environment": where, "parts": parts}


# -- pages


@pytest.mark.parametrize("page", tables.PAGES)
def test_committed_pages_are_up_to_date(page):
    text = (tables.ROOT / page).read_text()
    assert tables.render(page, text) == text, "run: python -m bench.readme.tables"


@pytest.mark.parametrize("table", tables.TABLES, ids=lambda table: table.name)
def test_every_table_has_a_place_on_its_page(table):
    assert f"<!-- table:{table.name} -->" in (tables.ROOT / table.page).read_text()


def test_text_outside_the_markers_stays():
    text = "before\n<!-- table:digits -->\nold\n<!-- end -->\nafter\n"
    made = tables.render("README.md", text)
    assert made.startswith("before\n<!-- table:digits -->\n| student |") and made.endswith("<!-- end -->\nafter\n")
    assert "old" not in made and tables.render("README.md", made) == made


def test_a_page_without_markers_stays():
    assert tables.render("README.md", "no table\n") == "no table\n"


def test_an_unknown_marker_is_an_error():
    for name in ("losses", "step"):  # the second one belongs to another page
        with pytest.raises(ValueError, match=f"README.md: expected a table among digits, loss, got '{name}'"):
            tables.render("README.md", f"<!-- table:{name} -->\n<!-- end -->\n")


def test_without_results_every_table_is_empty(tmp_path):
    assert [table.render(tmp_path) for table in tables.TABLES] == [""] * len(tables.TABLES)


# -- the loss


def test_the_loss_on_one_processor(tmp_path):
    results = [loss_result(), loss_result("bfloat16")]
    write(tmp_path, "a.json", {"machine": MACHINE, "results": results})
    table = loss.one_processor(tmp_path, "a.json")
    assert cells(table) == ["128 x 100", "20", "10", "4", "2"]
    assert "bfloat16" not in table and "a CPU, 2 threads, AVX2, torch t, commit c" in table


def test_the_loss_on_all_processors(tmp_path):
    for name, dtype in (("a.json", "float32"), ("b.json", "bfloat16")):
        write(tmp_path, name, {"machine": MACHINE, "results": [loss_result(dtype)]})
    table = loss.all_processors(tmp_path, "*.json")
    assert cells(table)[:4] == ["128 x 100", "float32", "AVX2", "20 [18, 22]"]
    assert cells(table, 1)[1] == "bfloat16" and cells(table)[-2:] == ["5.0 / 2.5", "10.0 / -"]
    assert table.count("commit c") == 1


def test_the_loss_on_a_gpu(tmp_path):
    measured = {"value_and_grad": {"median": 2.0}, "differentiable": {"median": 3.0}, "eager": {"median": 4.0}}
    result = {"rows": 8192, "classes": 1000, "dtype": "float32", "device_ms": measured}
    copy = {"bytes": 4 * 10**9, "gigabytes_per_second": 4000.0}
    result["derived"] = figures.derive(result, 4e12, "NVIDIA H200")
    write(tmp_path, "gpu_x.json", gpu_report(copy=[copy], loss=[result, {**result, "device_ms": {}}]))
    table = loss.on_a_gpu(tmp_path, "gpu_*.json")
    assert cells(table)[:7] == ["8192 x 1000", "float32", "NVIDIA H200", "4", "-", "3", "2"]
    assert cells(table)[-2:] == ["1.3 / -", "2.0 / -"]
    assert "4,000 GB/s" in table and table.count("8192") == 1  # nothing was measured for the second one


# -- the training step


def test_only_measured_steps_have_rows_and_columns(tmp_path):
    write(tmp_path, "step_cpu.json", step_result())
    table = steps.training_steps(tmp_path, "step_*.json", "gpu_*.json")
    heading = [cell.strip() for cell in table.splitlines()[0].split("|")[1:-1]]
    assert heading == ["family", "device", "published form", "eager", "eager, NCHW", "ours, eager", "times faster"]
    assert cells(table)[:3] == ["resnet20 x 5, B = 128", "CPU, AVX2", "2,000"]
    assert cells(table)[3:] == ["1,200 (trains differently)", "11", "5", "4.00 / 2.20 / -"]
    assert len(table.splitlines()) == 5 and "a CPU" in table  # heading, rule, row, empty line, caption


def test_other_sizes_than_the_papers_have_no_row(tmp_path):
    small = step_result()
    small["problem"]["image_size"] = 8
    write(tmp_path, "step_cpu.json", small)
    assert steps.training_steps(tmp_path, "step_*.json", "gpu_*.json") == ""


def test_results_of_one_size_are_merged(tmp_path):
    write(tmp_path, "step_a_cpu.json", step_result())
    compiled = step_result(variants={"compiled": {"ms": 7.0}}, speedups={"ours_eager": {"compiled": 1.4}})
    write(tmp_path, "step_b_cpu.json", compiled)
    table = steps.training_steps(tmp_path, "step_*.json", "gpu_*.json")
    assert cells(table)[5] == "7" and cells(table)[-1] == "4.00 / 2.20 / 1.40"


def test_steps_on_a_gpu(tmp_path):
    captured = step_result(variants={"ours_captured": {"ms": 2.0}}, speedups={"ours_captured": {"published": 9.0}})
    curves = {"allowed": {}, "variants": {"ours_captured": {"agrees": False}}}
    write(tmp_path, "gpu_x.json", gpu_report(step=[captured, curves]))
    table = steps.training_steps(tmp_path, "step_*.json", "gpu_*.json")
    assert cells(table)[1:] == ["NVIDIA H200", "2 (trains differently)", "9.00 / - / -"]
    assert "NVIDIA H200, bf16: torch t, commit abc" in table


# -- trained families


def test_a_single_run(tmp_path):
    student = {"index": 1, "parameters": 1234, "relative_size": 100.0, "accuracy": 90.0}
    alone = {"baseline_accuracy": None, "relative_gain": None}
    summary = {
        "students": [{**student, "baseline_accuracy": 80.0, "relative_gain": 12.5}, {**student, **alone}],
        "phases": {"family": {"seconds": 3.0}},
        "ensemble_accuracy": 91.0,
        "epochs": 1,
        "test_images": 1000,
        "images_per_second": 10.0,
    }
    write(tmp_path, "run.json", {"machine": MACHINE, "config": {"seed": 4}, "summary": summary})
    table = accuracy.single_run(tmp_path, "run.json")
    assert cells(table) == ["1", "1,234", "100.0", "80.00", "90.00", "+12.50"] and cells(table, 1)[3::2] == ["-", "-"]
    assert "1 epoch, seed 4. Test accuracy on 1,000 images" in table


def test_a_reproduction_over_seeds(tmp_path):
    def value(mean):
        return {"mean": mean, "deviation": 0.5}

    epoch = {
        "baseline": [value(80.0)],
        "family": [value(81.0)],
        "gain_points": [{"mean": 1.0, "deviation": None}],
        "ensemble": value(82.0),
    }
    result = {
        "machine": MACHINE,
        "seeds": [0],
        "seeds_asked": [0, 1],
        "students": [{"index": 1, "parameters": 1234}],
        "accuracy": {"selected": epoch, "last_epoch": epoch},
        "protocol": "a protocol",
        "test_images": 10,
    }
    write(tmp_path, "reproduce.json", result)
    table = accuracy.over_seeds(tmp_path, "reproduce.json")
    assert cells(table) == ["1", "1,234", *(2 * ["80.00 ± 0.50", "81.00 ± 0.50", "+1.00"])]
    assert "1 of 2 seeds so far" in table and "Ensemble 82.00 ± 0.50 % (chosen epoch)" in table
