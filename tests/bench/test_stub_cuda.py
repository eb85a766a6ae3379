"""The stand-in for a CUDA device: what can be tested without compiling it."""

import re
from pathlib import Path

import pytest
from triton.backends.nvidia import driver as triton_driver

from bench.stub_cuda import install


def test_the_stub_has_every_function_of_the_driver_that_triton_links_with():
    source = Path(triton_driver.__file__).with_name("driver.c").read_text()
    called = {name for name in re.findall(r"\b(cu[A-Z]\w*)\(", source) if not name.endswith("Handle")}
    # Triton looks these up when it first uses them: clusters, tensor maps and the launch.
    called -= set(re.findall(r"defineGetFunctionHandle\(\w+,\s*(\w+)\)", source))
    stub = Path(install.__file__).with_name("driver.c").read_text()
    defined = set(re.findall(r"^int (cu[A-Z]\w*)\(", stub, re.MULTILINE))
    assert called <= defined
    assert "cuLaunchKernelEx" in defined


def test_a_process_that_has_imported_torch_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="expected a process that has not imported torch"):
        install.install(tmp_path)
