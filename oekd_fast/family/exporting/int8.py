"""Int8 models for ONNX Runtime, by its static quantisation."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from oekd_fast.common.packages import require
from oekd_fast.family.exporting.contents import INPUT

# Layers that compute in int8. The other operators, preprocessing among them, stay in float32.
_OPERATORS = ("Add", "AveragePool", "Concat", "Conv", "Gemm", "GlobalAveragePool", "MatMul", "MaxPool", "Relu")


def quantised(content: bytes, batches: Iterable[Tensor]) -> bytes:
    """Return the bytes of a model in int8: weights per channel, activations per tensor.

    Pairs of QuantizeLinear and DequantizeLinear surround the layers, as ONNX Runtime, TensorRT and OpenVINO expect it.

    Args:
        content: bytes of an ONNX model in float32.
        batches: images for calibration, as the model takes them. The ranges of the activations are the smallest and
            largest values for these images.

    Raises:
        ImportError: onnx or onnxruntime is not installed.
    """
    onnx = require("onnx", "int8 files need", "export")
    quantization = require("onnxruntime.quantization", "int8 files need", "export")
    with tempfile.TemporaryDirectory(prefix="oekd_fast_int8_") as folder, _quiet():
        target = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            onnx.load_model_from_string(content),
            target,
            _reader(quantization, batches),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=list(_OPERATORS),
        )
        return target.read_bytes()


def _reader(quantization: object, batches: Iterable[Tensor]) -> object:
    """Return `batches` in the form in which ONNX Runtime takes them for calibration."""

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._rest = iter(batches)

        def get_next(self) -> dict | None:
            images = next(self._rest, None)
            return None if images is None else {INPUT: images.numpy()}

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress what the quantisation logs on the root logger: advice to preprocess the model, which has been done."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
