"""Writing 8-bit ONNX files, weights and activations."""

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.zoo.export import write_onnx


def to_int8_onnx(source: Path, path: Path, examples: NDArray[np.float32], producer: str) -> None:
    """Writes `path` from the 32-bit file `source`: weights and activations in 8 bits (static, per channel).

    Args:
        examples: (B, 3, 32, 32) train pictures, on which the ranges of the activations are read.
        producer: the recipe, as the file names it.
    """
    import onnx
    from onnxruntime import quantization as q  # type: ignore[import-untyped]
    from onnxruntime.quantization.shape_inference import quant_pre_process  # type: ignore[import-untyped]

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(np.array_split(examples, max(1, len(examples) // 64)))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"x": batch}

    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        level = logging.root.level
        logging.root.setLevel(logging.ERROR)  # advice about steps that are taken here
        try:
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            q.quantize_static(
                str(prepared),
                str(path),
                Reader(),
                quant_format=q.QuantFormat.QDQ,
                per_channel=True,
                activation_type=q.QuantType.QUInt8,
                weight_type=q.QuantType.QInt8,
                op_types_to_quantize=["Conv", "Gemm", "MatMul", "Add", "MaxPool", "Relu", "GlobalAveragePool"],
            )
        finally:
            logging.root.setLevel(level)
    write_onnx(onnx.load(str(path)), path, producer)
