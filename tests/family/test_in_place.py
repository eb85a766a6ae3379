"""Blocks that change their input in place are refused by name, because students and returned maps share memory."""

import re

import pytest
import torch
from torch import nn

from oekd_fast import FunctionalArchitecture, build_ensemble
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.distributed.world import ALONE
from oekd_fast.models.in_place import InPlaceError
from oekd_fast.parallel.executor import StudentError, make_executor
from oekd_fast.training import backward
from oekd_fast.training.compile_blocks import compile_blocks
from oekd_fast.training.data_parallel import family_buckets
from oekd_fast.training.distillation import family_options

from ..conftest import needs_native


class AddsInPlace(nn.Module):
    def forward(self, x):
        x += 1
        return x * 2


class MultipliesInPlace(nn.Module):
    def forward(self, x):
        return x.mul_(2).tanh()


class ChangesAView(nn.Module):
    def forward(self, x):
        x[:, :1].relu_()
        return x.tanh()


IN_PLACE = {"relu": lambda: nn.ReLU(inplace=True), "add": AddsInPlace, "mul": MultipliesInPlace, "view": ChangesAView}
PLACES = ["blocks[0]", "blocks[1]", "head"]


def family_with(first, place, **options):
    """Build a family whose blocks are correct, except that the module `first` begins the block or head at `place`."""

    def begin(where):
        return [first()] if where == place else []

    def blocks(width):
        convs = nn.Conv2d(4, width(8), 3, padding=1), nn.Conv2d(width(8), width(12), 3, padding=1)
        # The second operation of a block may work in place, on what the first has returned.
        return [nn.Sequential(*begin(f"blocks[{b}]"), conv, nn.ReLU(inplace=True)) for b, conv in enumerate(convs)]

    def head(channels, num_classes):
        return nn.Sequential(*begin("head"), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))

    torch.manual_seed(0)
    architecture = FunctionalArchitecture("own", lambda c: nn.Conv2d(c, 4, 3), blocks, head)
    return build_ensemble(architecture, 3, 5, **options)


def images():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("mode", ["training", "evaluation", "no_grad", "inference_mode"])
@pytest.mark.parametrize("first", IN_PLACE)
def test_forward_names_student_and_block(first, mode, place):
    family = family_with(IN_PLACE[first], place).train(mode == "training")
    context = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(mode, torch.enable_grad)
    with context(), pytest.raises(InPlaceError, match=rf"^student 1: {re.escape(place)}: expected modules that do not"):
        family(images())


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_block_that_works_in_place_on_its_own_maps_is_right(mode):
    family = family_with(nn.Identity, "blocks[0]").eval()
    with mode():
        output = family(images())
        for j, (logits, maps) in enumerate(zip(*output, strict=True)):
            assert torch.equal(family.student(j)(images()), logits)
            x = family.base(images())
            for stage, returned in zip(family.branches[j].stages, maps, strict=True):
                x = stage(x)
                assert torch.equal(x, returned)


def in_turn(family, x):
    """Return logits and maps of a family whose modules each receive a copy of their input."""
    shared, logits, features = family.base(x), [], []
    for branch in family.branches:
        maps = [shared]
        for stage in branch.stages:
            maps.append(stage(maps[-1].clone()))
        logits.append(branch.classifier(branch.pool(maps[-1].clone())))
        features.append(maps[1:])
    return logits, features


@pytest.mark.slow
@pytest.mark.parametrize(("first", "place"), [*(("add", place) for place in PLACES), ("view", "blocks[0]")])
def test_a_compiled_family_is_right_whatever_its_blocks_change(first, place):
    family = family_with(IN_PLACE[first], place)
    torch.compiler.reset()
    outputs = torch.compile(family, backend="aot_eager", fullgraph=True)(images()), in_turn(family, images())
    gradients = []
    for logits, features in outputs:
        loss = sum(z.square().sum() for z in logits) + sum(m.square().sum() for maps in features for m in maps)
        gradients.append(torch.autograd.grad(loss, [*family.base.parameters(), *family.branches.parameters()]))
    for (logits, maps), (expected_logits, expected_maps) in [outputs]:
        torch.testing.assert_close(list(logits), expected_logits)
        torch.testing.assert_close([list(of_student) for of_student in maps], expected_maps)
    torch.testing.assert_close(*gradients)


@pytest.fixture
def generated_code(monkeypatch):
    """Return a function that returns the code which inductor generates while a function runs.

    The C++ in it is not compiled, which takes seconds a kernel: its kernels do nothing.
    """
    from torch._inductor import async_compile, config
    from torch._inductor.utils import run_and_get_code

    monkeypatch.setattr(async_compile.AsyncCompile, "cpp_pybinding", lambda *_: lambda *_: None)
    with config.patch({"cpp.vec_isa_ok": True, "force_disable_caches": True}):
        yield lambda function: run_and_get_code(function)[1]


@pytest.mark.slow
def test_the_copies_of_a_compiled_family_are_removed(monkeypatch, generated_code):
    def code_of(copies):
        torch.compiler.reset()
        with monkeypatch.context() as patch:
            if not copies:
                patch.setattr("oekd_fast.models.functional.call_on_shared", lambda module, x, where: module(x))
                patch.setattr("oekd_fast.family.ensemble.call_on_shared", lambda module, x, where: module(x))

            def run():
                output = torch.compile(family_with(nn.Identity, "head"), fullgraph=True)(images())
                sum(z.sum() for z in output.logits).backward()

            code = generated_code(run)
        return [(text.count("empty_strided_cpu("), text.count("cpp_fused_"), "clone" in text) for text in code]

    forward_and_backward = code_of(copies=True)
    assert len(forward_and_backward) == 2 and forward_and_backward == code_of(copies=False)


def test_compiled_blocks_that_change_their_input_are_refused():
    family = family_with(IN_PLACE["add"], "blocks[1]")
    torch.compiler.reset()
    compile_blocks(family, nn.Sequential, backend="aot_eager")
    with pytest.raises(InPlaceError, match=r"^student 1: blocks\[1\]: expected modules"):
        family(images())


class OwnBranch(nn.Module):
    """A branch that is not the package's own."""

    def __init__(self, branch, first):
        super().__init__()
        self.first, self.branch = first, branch

    def forward(self, x):
        return self.branch(self.first(x))


def test_a_branch_of_another_class_is_named_by_its_student():
    family = family_with(nn.Identity, "head")
    family.branches[1] = OwnBranch(family.branches[1], AddsInPlace())
    with pytest.raises(InPlaceError, match=r"^student 2: branch: expected modules"):
        family(images())


def step(family, kind, function=backward.backward_side_by_side, base_learns=True):
    terms = backward.StepTerms(vars(family_options(TrainConfig())), base_learns_from_all=base_learns)
    executor = make_executor(kind, len(family.branches), "cpu")
    buckets = family_buckets(family, ALONE, torch.device("cpu"), None, exact=True)
    return function(family, images(), torch.tensor([0, 3]), terms, executor, torch.enable_grad(), buckets)


@needs_native
@pytest.mark.parametrize("kind", ["parallel", "sequential"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("training", ["all", "first", "frozen base", "one graph", "evaluation"])
def test_training_and_evaluation_side_by_side_name_student_and_block(training, place, kind, threads):
    threads(2)
    family = family_with(IN_PLACE["relu"], place)
    family.base.requires_grad_(training != "frozen base")
    message = rf"^student \d: InPlaceError: {re.escape(place)}: expected modules that do not"
    with pytest.raises(StudentError, match=message):
        if training == "evaluation":
            with torch.no_grad():
                backward.forward_side_by_side(family.eval(), images(), make_executor(kind, 3, "cpu"))
        else:
            function = backward.backward_as_one if training == "one graph" else backward.backward_side_by_side
            step(family, kind, function, base_learns=training != "first")


@needs_native
@pytest.mark.parametrize("training", ["frozen base", "one graph", "evaluation"])
def test_own_branches_side_by_side_are_named_by_their_student(training, threads):
    threads(2)
    family = family_with(nn.Identity, "head")
    family.branches[2] = OwnBranch(family.branches[2], AddsInPlace())
    family.base.requires_grad_(training != "frozen base")
    with pytest.raises(InPlaceError, match=r"^student 3: branch: expected modules"):
        if training == "evaluation":
            with torch.no_grad():
                backward.forward_side_by_side(family, images(), make_executor("parallel", 3, "cpu"))
        else:
            step(family, "parallel", getattr(backward, f"backward_{'as_one' if 'one' in training else 'side_by_side'}"))


def test_a_leaf_as_the_output_of_the_base_is_refused_by_name_too():
    branch = family_with(IN_PLACE["mul"], "blocks[0]").branches[0]
    with pytest.raises(InPlaceError, match=r"blocks\[0\]"):
        branch(torch.randn(2, 4, 6, 6, requires_grad=True))


def test_other_errors_of_a_block_are_raised_unchanged():
    branch = family_with(nn.Identity, "head").branches[0]
    with pytest.raises(RuntimeError, match="expected input.* to have 4 channels") as error:
        branch(torch.randn(2, 5, 6, 6, requires_grad=True))
    assert not isinstance(error.value, InPlaceError)
