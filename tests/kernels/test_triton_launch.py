"""Direct launches pass Triton's launcher what its public interface passes. No GPU is needed: the launcher records."""

import pytest
import triton
from triton import knobs
from triton.backends.nvidia.driver import CudaLauncher
from triton.compiler.compiler import CompiledKernel

from oekd_fast.kernels.common import triton_launch


def compiled(launched, **changes):
    """A compiled kernel whose launches are appended to `launched`."""
    run = CudaLauncher.__new__(CudaLauncher)
    vars(run).update(
        arg_annotations=["annotation"],
        kernel_signature=b"signature",
        num_ctas=1,
        launch=lambda *arguments: launched.append(arguments),
        global_scratch_size=0,
        global_scratch_align=1,
        profile_scratch_size=0,
        profile_scratch_align=1,
        launch_cooperative_grid=False,
        launch_pdl=False,
    )
    kernel = CompiledKernel.__new__(CompiledKernel)
    vars(kernel).update(
        _run=run, module=1, function=7, packed_metadata=(4, 1, 0), name="kernel", src=None, metadata_group={}, hash=""
    )
    vars(run).update(changes)
    return kernel


def without_observers(arguments):
    """The arguments of a launch with None in place of the hooks and what is made for them."""
    return tuple(None if isinstance(x, dict | knobs.HookChain) or hasattr(x, "extras") else x for x in arguments)


def test_a_direct_launch_equals_a_public_one():
    launched = []
    kernel = compiled(launched)
    arguments = (1024, 2048), 3, None, 0.5, "constant"
    triton_launch.launcher(kernel, 6, 99)(*arguments)
    kernel[(6, 1, 1)](*arguments, stream=99)
    direct, public = launched
    assert direct == without_observers(public)
    assert direct != public  # the public launch calls the hooks


def test_hooks_see_every_launch():
    launched, seen = [], []
    launch = triton_launch.launcher(compiled(launched), 1, 0)
    knobs.runtime.launch_enter_hook.add(seen.append)
    try:
        launch(1)
    finally:
        knobs.runtime.launch_enter_hook.remove(seen.append)
    assert any(isinstance(argument, knobs.HookChain) for argument in launched[0])


@pytest.mark.parametrize("case", ["another version", "scratch memory"])
def test_what_is_not_known_is_launched_by_the_public_interface(monkeypatch, case):
    launched = []
    kernel = compiled(launched)
    if case == "another version":
        monkeypatch.setattr(triton, "__version__", "3.8.0")
    else:
        kernel.run.global_scratch_size = 64
        monkeypatch.setattr("triton.runtime._allocation._allocator", _Allocator())
    triton_launch.launcher(kernel, 1, 0)(1)
    assert any(isinstance(argument, knobs.HookChain) for argument in launched[0])


class _Allocator:
    def get(self):
        return lambda size, align, stream: size
