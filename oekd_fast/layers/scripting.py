"""The error of `torch.jit.script` for modules that TorchScript cannot compile."""

from __future__ import annotations

from typing import NoReturn


class Unscriptable:
    """Base class of modules for which `torch.jit.script` raises one line that names the other ways."""

    def __prepare_scriptable__(self) -> NoReturn:
        # torch.jit.script calls this method of every module that it is about to compile.
        raise NotImplementedError(
            f"torch.jit.script: {type(self).__name__} is not supported; for a student in evaluation mode use "
            "torch.jit.script(torch.fx.symbolic_trace(student)), torch.jit.trace(student, images) or "
            "torch.export.export(student, (images,))"
        )
