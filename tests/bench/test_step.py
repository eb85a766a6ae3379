"""The benchmark of the training step: every variant trains alike, and a variant that does not is detected."""

import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch

from bench.measure import Timing
from bench.step import agreement as step_agreement
from bench.step import command as step
from bench.step import eager as step_eager
from bench.step import ours as step_ours
from bench.step import probe as step_probe
from bench.step import published as step_published
from bench.step import variants as step_variants
from bench.step.problem import StepProblem
from oekd_fast.data.augmentation.transforms import crop
from oekd_fast.training.channel_padding import unpadded_shapes

TINY = replace(step_agreement.small(StepProblem(num_students=2)), batch_size=8, image_size=8)
FAMILY = ("published", "eager", "eager_nchw", "ours_eager")
pytestmark = pytest.mark.usefixtures("one_thread")


def reference():
    return step_published.PublishedStep(TINY, torch.float64)


# -- the same training


@pytest.fixture(scope="module")
def checked():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield step_agreement.agreement(["ours_eager"], TINY, steps=4)
    torch.set_num_threads(before)


@pytest.mark.slow
def test_all_variants_agree_with_the_published_form_in_fp64(checked):
    assert checked["variants"].keys() == set(FAMILY)
    for name, v in checked["variants"].items():
        assert v["agrees"], (name, v)
        assert v["step_error"] < 2e-5 and v["loss_error"] < 2e-6, (name, v)
        assert len(v["losses"]) == len(checked["reference_losses"]) == 4
    assert checked["allowed"].keys() == {"step_error", "loss_error"}
    json.dumps(checked)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, value",
    [("WEIGHT_DECAY", 0.0), ("ADAPTER_RATE", 0.51), ("MOMENTUM", 0.901), ("FEATURE_WEIGHT", 0.151), ("KD_WEIGHT", 0.0)],
)
def test_a_variant_that_trains_differently_is_detected(checked, monkeypatch, name, value):
    monkeypatch.setattr(step_ours, name, value)
    run = step_agreement.watched_run(step_variants.VARIANTS["ours_eager"](TINY), reference(), 3)
    errors = {"step_error": sorted(run.step_errors)[1], "loss_error": max(run.loss_errors)}
    assert any(errors[measure] > 2 * allowed for measure, allowed in checked["allowed"].items()), errors


def test_a_broken_plain_variant_does_not_widen_what_is_allowed(monkeypatch):
    monkeypatch.setattr(step_eager, "TEMPERATURE", 4.0)
    checked = step_agreement.agreement([], TINY, steps=2)
    assert not checked["variants"]["eager"]["agrees"] and checked["variants"]["published"]["agrees"]
    assert checked["allowed"]["step_error"] == step_agreement.LIMITS["fp32"]["step_error"]


def test_padded_channels_are_compared_without_their_padding():
    problem = replace(TINY, num_students=3)
    padded = step_ours.OurStep(problem, pad_channels="on")
    assert unpadded_shapes(padded.family)
    run = step_agreement.watched_run(padded, step_published.PublishedStep(problem, torch.float64), 2)
    assert max(run.step_errors) < 2e-5 and max(run.loss_errors) < 2e-6


def test_curves_are_compared_by_means_of_windows():
    flat = [2.0] * 40
    assert step_agreement.curve_error([1.9, 2.1] * 20, flat) == pytest.approx(0.0, abs=1e-12)
    assert step_agreement.curve_error(flat[:20] + [2.2] * 20, flat) == pytest.approx(0.1)


@pytest.mark.parametrize("model", ["resnet20", "densenet_bc_12"])
def test_the_plain_family_is_the_same_family(model):
    problem = replace(TINY, model=model)
    ours, plain = problem.family().eval(), problem.plain_family().eval()
    for parameters in ("parameters", "network_parameters", "adapter_parameters"):
        pairs = zip(getattr(ours, parameters)(), getattr(plain, parameters)(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(plain(images), ours(images))


def test_a_shifted_run_differs_by_rounding_alone():
    weights = [step_agreement.weights(s) for s in (step_eager.EagerStep(TINY), step_agreement.shifted(TINY, 0))]
    relative = (weights[1] - weights[0]).norm() / weights[0].norm()
    assert 1e-8 < relative < 1e-6


def test_the_published_form_reads_every_loss(monkeypatch):
    reads = []
    item = torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "item", lambda self: reads.append(self) or item(self))
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: None)  # it reads values too
    problem = replace(TINY, num_students=5)
    step_published.PublishedStep(problem).step()
    assert len([t for t in reads if t.is_floating_point()]) == 16


def test_eager_steps_read_nothing_back(monkeypatch):
    variant = step_eager.EagerStep(replace(TINY, augment=True))
    variant.step()

    def refuse(self, *arguments):
        raise AssertionError("a value was read in the step")

    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    variant.step()


def test_distant_logits_do_not_break_the_published_divergence():
    logits = torch.tensor([[300.0, -300.0, 0.0]], requires_grad=True)
    loss = step_published.divergence(torch.tensor([[-300.0, 300.0, 0.0]]), logits)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


def test_all_variants_crop_images_alike():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (12, 3, 6, 6), generator=generator, dtype=torch.uint8)
    top, left = (torch.randint(5, (12,), generator=generator) for _ in range(2))
    mirror = torch.arange(12) % 2 == 0
    ours = crop(images, 2, top, left, mirror)
    assert torch.equal(step_eager.windows(images, 2, top, left, mirror), ours)
    one_by_one = [
        step_published.crop_and_mirror(image, 2, *place)
        for image, *place in zip(images, top.tolist(), left.tolist(), mirror.tolist(), strict=True)
    ]
    assert torch.equal(torch.stack(one_by_one), ours)


def test_augmented_steps_run():
    for name in FAMILY:
        variant = step_variants.build(name, replace(TINY, augment=True))
        variant.step()
        assert 0 < variant.take_loss() < 100


# -- results


def fake_probe(name, problem, seconds):
    if name == "compiled":
        raise RuntimeError("the first steps took longer than 1 s")
    return {"peak_memory_mb": 10.0, "first_step_seconds": 0.5}


@pytest.fixture
def result(monkeypatch):
    monkeypatch.setattr(step, "probe", fake_probe)
    monkeypatch.setattr(step, "build", lambda name, problem: type("Variant", (), {"step": lambda self: None})())
    ms = {"published": 20.0, "eager": 12.0, "eager_nchw": 11.0, "ours_eager": 5.0, "largest_alone": 2, "sequential": 9}
    monkeypatch.setattr(
        step,
        "interleave",
        lambda calls, *a, **k: {name: Timing(ms[name], 0.9 * ms[name], ms[name], 10) for name in calls},
    )
    problem = StepProblem(classes=10)
    names = list(step_variants.VARIANTS)
    return step.measure(problem, names, seconds=0.0, probe_seconds=1.0, curve_steps=0)


def test_content_of_the_file(result):
    result = json.loads(json.dumps(result))
    names = {"published", "eager", "eager_nchw", "compiled", "ours_eager", "ours_captured", "ours_one_stream"}
    names |= {"ours_unpadded", "ours_blocks"}
    assert result["variants"].keys() == names | {"largest_alone", "sequential"}
    ours = result["variants"]["ours_eager"]
    assert ours["ms"] == 5.0 and ours["ms_spread"] == [4.5, 5.0] and ours["peak_memory_mb"] == 10.0
    assert ours["images_per_second"] == 128 / 5e-3
    assert result["reasons"] == {
        "compiled": "the first steps took longer than 1 s",
        **dict.fromkeys(step_variants.CAPTURED, step_variants.NO_GRAPHS),
    }
    missing = {name for name, v in result["variants"].items() if v is None}
    assert missing == {"compiled", *step_variants.CAPTURED}
    factors = result["speedups"]["ours_eager"]
    assert factors["published"] == 4.0 and factors["eager_best"] == 2.2 and factors["sequential"] == 1.8
    assert "ours_captured" not in result["speedups"]


def test_the_table_marks_variants_that_disagree(result):
    errors = {"step_error": 1e-6, "loss_error": 1e-7, "curve_error": 1e-3}
    trained = {"published": {"agrees": True, **errors}, "ours_eager": {"agrees": False, **errors}}
    lines = list(step.table({**result, "agreement": {"steps": 20, "allowed": errors, "variants": trained}}))
    by_name = {line.split()[0]: line for line in reversed(lines) if line.strip()}
    assert "DISAGREES" in by_name["ours_eager"] and by_name["published"].endswith("yes")
    assert by_name["ours_captured"].endswith(step_variants.NO_GRAPHS) and by_name["sequential"].endswith("-")
    assert any("published 4.00x" in line for line in lines)


def test_a_short_check_does_not_compile_again(monkeypatch):
    monkeypatch.setattr(step, "agreement", lambda names, problem, steps, begin: {"names": list(names), "steps": steps})
    names = ["published", "compiled", "sequential"]
    short = step.agreed(TINY, names, 20)
    assert short["names"] == ["published"] and short["reasons"].keys() == {"compiled", "sequential"}
    assert step.agreed(TINY, names, step_agreement.STEPS)["names"] == ["published", "compiled"]


def test_a_step_that_is_not_captured_gives_a_reason(monkeypatch):
    monkeypatch.setattr(step_variants, "absent", lambda name, problem: None)
    with pytest.raises(RuntimeError, match="not captured: cpu has no CUDA graphs"):
        step_variants.build("ours_captured", TINY)


# -- processes


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_the_command_writes_its_table_and_file(tmp_path, monkeypatch, capsys):
    file = tmp_path / "out.json"
    command = ["bench.step", "--batch-size", "4", "--image-size", "8", "--num-students", "1", "--device", "cpu"]
    command += ["--seconds", "0", "--variants", "ours_eager", "ours_captured", "--no-agreement", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(step, "keep_freed_memory", lambda: None)  # it would hold for all later tests
    step.main()
    printed = capsys.readouterr().out
    written = json.loads(file.read_text())
    ours = written["variants"]["ours_eager"]
    assert ours["ms"] > 0 and ours["samples"] >= 10 and 0 < ours["peak_memory_mb"] < 2000
    assert written["variants"]["ours_captured"] is None and written["machine"]["torch"] == torch.__version__
    assert "ours_captured" in printed and written["problem"]["precision"] == "fp32"


@pytest.mark.slow
def test_a_probe_that_fails_or_hangs_gives_a_reason(monkeypatch):
    with pytest.raises(RuntimeError, match="ended with 1: .*nobody"):
        step_probe.probe("eager", replace(TINY, model="nobody"), 60)

    def hang(command, timeout, **options):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(step_probe.subprocess, "run", hang)
    with pytest.raises(RuntimeError, match="longer than 7 s"):
        step_probe.probe("eager", TINY, 7.0)


def test_problems_can_be_sent_as_json():
    assert StepProblem(**json.loads(json.dumps(asdict(TINY)))) == TINY
