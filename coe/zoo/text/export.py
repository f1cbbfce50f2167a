"""Writing trained networks of texts as ONNX: weights of the small ones stored in 8 bits, MiniLM computed in 8 bits."""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from coe.zoo.export import OPSET, write_onnx
from coe.zoo.text.train import n_inputs

INPUTS = ("input_ids", "attention_mask", "token_type_ids")  # as exporters of transformers name them
STORED_FROM = 1000  # numbers; shorter weights (biases, normalisations) stay in 32 bits
LEAST_ROW = 8  # numbers; below it a row's scale costs more than its 8 bits save


class _Answering(nn.Module):
    """A network with the softmax inside."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = self.network(*inputs)
        return logits.softmax(dim=1)


def to_onnx(network: nn.Module, path: Path, producer: str, *, bits: int = 32) -> None:
    """Writes `path`: inputs as INPUTS, (batch, tokens) int64; output "probabilities" (batch, L).

    Args:
        bits: 8 stores each large weight as int8 with one scale a row, which a runtime turns back as it loads: the
            arithmetic is that of any float model, the file a quarter as large.
    """
    import onnx

    _export(network, path)
    model = onnx.load(str(path))
    if bits == 8:
        _store_in_8_bits(model)
    write_onnx(model, path, producer)


def to_int8_onnx(network: nn.Module, path: Path, producer: str) -> None:
    """Writes `path` with the same inputs, its matrix products computed in 8 bits: weights once, activations as they
    come (dynamic). Embeddings are stored in 8 bits as `to_onnx` does: one scale for all rows would cost accuracy.
    """
    import onnx
    from onnxruntime import quantization as q  # type: ignore[import-untyped]

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "float.onnx"
        _export(network, source)
        level = logging.root.level
        logging.root.setLevel(logging.ERROR)  # advice about a step that brings nothing here
        try:
            q.quantize_dynamic(
                str(source),
                str(path),
                weight_type=q.QuantType.QInt8,
                per_channel=True,
                op_types_to_quantize=["MatMul", "Gemm"],
            )
        finally:
            logging.root.setLevel(level)
    model = onnx.load(str(path))
    _store_in_8_bits(model)
    write_onnx(model, path, producer)


def _export(network: nn.Module, path: Path) -> None:
    names = INPUTS[: n_inputs(network)]
    free = {name: {0: "batch", 1: "tokens"} for name in names}
    examples = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in names)
    with warnings.catch_warnings():
        # The older exporter is said to be on its way out; it still writes the smaller and plainer graph.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)  # sizes that the trace reads once are never negative
        torch.onnx.export(
            _Answering(copy.deepcopy(network)).eval(),
            examples,
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(names),
            output_names=["probabilities"],
            dynamic_axes={**free, "probabilities": {0: "batch"}},
        )


def _store_in_8_bits(model: Any) -> None:
    """Replaces each large weight by int8 rows and their scales, and the two steps back."""
    from onnx import TensorProto, helper, numpy_helper

    steps, stored = [], []
    for weight in list(model.graph.initializer):
        values = numpy_helper.to_array(weight)
        if weight.data_type != TensorProto.FLOAT or values.size < max(STORED_FROM, LEAST_ROW * len(values)):
            continue
        rows = values.reshape(len(values), -1)
        scales = np.maximum(np.abs(rows).max(axis=1), 1e-12) / 127  # (R,)
        scales = scales.reshape(-1, *[1] * (values.ndim - 1)).astype(np.float32)
        whole = np.rint(values / scales).astype(np.int8)
        small, scale, wide = f"{weight.name}.int8", f"{weight.name}.scale", f"{weight.name}.wide"
        stored += [numpy_helper.from_array(whole, small), numpy_helper.from_array(scales, scale)]
        steps.append(helper.make_node("Cast", [small], [wide], f"{weight.name}.cast", to=TensorProto.FLOAT))
        steps.append(helper.make_node("Mul", [wide, scale], [weight.name], f"{weight.name}.mul"))
        model.graph.initializer.remove(weight)
    model.graph.initializer.extend(stored)
    nodes = [*steps, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
