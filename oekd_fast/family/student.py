"""One student as a plain module, and its export.

Annotations are objects here, since torch.fx copies those of `forward` into the code that it generates.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from oekd_fast.layers.scripting import Unscriptable

if TYPE_CHECKING:
    from oekd_fast.family.exporting.export import ExportedFile
    from oekd_fast.family.metadata import Normalisation


class Student(Unscriptable, nn.Module):
    """One student, made of the base and its branch: images [B, C_in, H, W] -> logits [B, C]."""

    def __init__(self, base: nn.Module, branch: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.branch = branch
        # The modules may belong to a family in evaluation mode.
        self.training = base.training

    def forward(self, images: Tensor) -> Tensor:
        logits, _ = self.branch(self.base(images))
        return logits

    def export(
        self,
        path: Path | str,
        *,
        preprocessing: bool = True,
        batch: int | None = None,
        image_shape: tuple[int, int, int] | None = None,
        normalisation: "Normalisation | None" = None,
        classes: Sequence[str] | None = None,
    ) -> "ExportedFile":
        """Write the student in evaluation mode to an ONNX file or a program of torch.export.

        The file computes in float32 and has one input, ``images``, and one output, ``logits`` [B, C]. It is run for
        several batches and compared with the student before it replaces a file at `path`. The logits may differ by 1e-5
        of the largest, or by four times the rounding error of the student itself (its difference from float64) where
        that is larger, up to 1e-3. The student stays as it is, on its device and in its mode.

        Args:
            path: ``<name>.onnx`` or ``<name>.pt2``, in a folder that exists; "~" is expanded.
            preprocessing: whether the file takes uint8 images [B, C_in, H, W] and normalises them itself. Without, it
                takes float32 images that are normalised.
            batch: number of images B of each call; None for any number.
            image_shape: (C_in, H, W) of the images.
            normalisation: statistics for `preprocessing`.
            classes: name of each class, which the file holds as metadata.

        Returns:
            The path of the file, its size and the difference.

        Raises:
            ValueError: `path` has another suffix, `image_shape` is not given, `normalisation` is missing although
                `preprocessing` is True, or a number is out of range.
            ImportError: a package that the format needs is not installed.
            ExportError: the network cannot be exported, or the file computes something else. No file is written.
            OSError: the folder does not exist, or the file cannot be written.
        """
        from oekd_fast.family.exporting.students import export_student

        return export_student(
            self,
            path,
            preprocessing=preprocessing,
            batch=batch,
            image_shape=image_shape,
            normalisation=normalisation,
            classes=classes,
        )
