"""The device operations of a training step, counted on the CPU on the code path of CUDA."""

import pytest
import torch

from bench.operations.command import main
from bench.operations.count import DeviceOperations, kind_of, launches
from bench.operations.step import count_step

from ..conftest import INTERPRETED, needs_native

# bf16, five students. More operations than these are a regression; fewer belong here.
STEPS = {
    "resnet20": {
        "convolutions": 210,
        "BatchNorm": 210,
        "pooling": 5,
        "matrices": 15,
        "casts": 14,
        "losses": 4,
        "optimizer": 2,
        "running statistics": 2,
        "sums of maps and gradients": 61,
        "others": 43,
    },
    "resnet110": {
        "convolutions": 1110,
        "BatchNorm": 1110,
        "pooling": 5,
        "matrices": 15,
        "casts": 14,
        "losses": 4,
        "optimizer": 2,
        "running statistics": 2,
        "sums of maps and gradients": 286,
        "others": 43,
    },
}
interpreted = pytest.mark.skipif(not INTERPRETED, reason="the step is counted on the CPU, in Triton's interpreter")


@needs_native
@interpreted
@pytest.mark.parametrize("model", ["resnet20", pytest.param("resnet110", marks=pytest.mark.slow)])
def test_the_operations_of_a_step(model, one_thread):
    counted = count_step(model)
    assert counted.kinds == STEPS[model]
    assert counted.kinds.total() <= {"resnet20": 650, "resnet110": 2600}[model]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_on_a_gpu_has_the_operations_that_are_counted_on_the_cpu():
    assert count_step("resnet20", device="cuda").kinds == STEPS["resnet20"]


def test_views_and_allocations_are_not_counted():
    x = torch.zeros(4, 6)
    with DeviceOperations() as counted:
        y = torch.empty_like(x)
        torch.empty(3).new_empty(2)
        x.view(6, 4).t()[1:, None].expand(5, 3, 2, 6).detach().unbind(0)
        x.reshape(24)
        assert not counted.operators
        y.copy_(x.t().reshape(4, 6))  # a copy in memory, and another one
    assert counted.operators == {"aten::clone": 1, "aten::copy_": 1}
    assert counted.kinds == counted.launches == {"others": 2}


@pytest.mark.parametrize("tensors, lists, expected", [(110, 1, 1), (111, 1, 2), (128, 2, 2), (555, 2, 9), (97, 3, 3)])
def test_operations_on_lists_launch_several_kernels(tensors, lists, expected):
    arguments = tuple([torch.zeros(1)] * tensors for _ in range(lists))
    assert launches("aten::_foreach_copy_", arguments) == expected


def test_the_kernels_of_batchnorm_are_two_launches_each():
    assert launches("oekd_fast::norm_relu", ()) == launches("oekd_fast::norm_relu_backward", ()) == 2


def test_a_stand_in_is_called_in_place_of_an_operator():
    with DeviceOperations({"aten::sin": lambda x: x + 1}) as counted:
        assert torch.sin(torch.zeros(())) == 1
    assert counted.operators["aten::sin"] == 1 and "aten::add" not in counted.operators


def test_kinds_are_told_apart_by_the_arguments():
    counter, share, feature_map = torch.zeros((), dtype=torch.int64), torch.zeros(()), torch.zeros(1, 1, 1, 1)
    assert kind_of("aten::add_", (counter, 1)) == "running statistics"
    assert kind_of("aten::_foreach_add_", ([counter] * 2, 1)) == "running statistics"
    assert kind_of("aten::add_", (share, 1)) == kind_of("aten::_foreach_add_", ([share], 1)) == "others"
    assert kind_of("aten::add", (feature_map, feature_map)) == "sums of maps and gradients"


@interpreted
def test_the_command_writes_a_table_and_a_file(tmp_path, capsys, one_thread):
    main(["--model", "resnet20", "--num-students", "2", "--operators", "--json", str(tmp_path / "x.json")])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("in all") for line in lines)
    assert any(line.startswith("aten::convolution_backward") for line in lines)
    assert (tmp_path / "x.json").exists()
