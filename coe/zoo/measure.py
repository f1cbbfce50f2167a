"""What a trained network and its exported files do: their answers, their arithmetic."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coe.models.onnx import NO_REPORTS
from coe.zoo.export import folded
from coe.zoo.network import Network

Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # (B, *S) -> (B, L)


def opened(path: Path) -> Predict:
    """An ONNX or TFLite file of coe.zoo.export as a function from inputs to probabilities, run on one thread."""
    return _onnx(path) if path.suffix == ".onnx" else _tflite(path)


def _onnx(path: Path) -> Predict:
    os.environ.setdefault(NO_REPORTS, "1")
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(["probabilities"], {"x": x})[0]


def _tflite(path: Path) -> Predict:
    from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-untyped]

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    x_index = interpreter.get_input_details()[0]["index"]
    out_index = interpreter.get_output_details()[0]["index"]

    def predict(x: NDArray[np.float32]) -> NDArray[np.float32]:
        rows = []
        for place in range(len(x)):  # the file holds a batch of one
            interpreter.set_tensor(x_index, x[place : place + 1])
            interpreter.invoke()
            rows.append(interpreter.get_tensor(out_index))
        return np.concatenate(rows)

    return predict


def parameters(network: Network) -> int:
    """Numbers that are stored, once each normalisation is folded away."""
    return sum(weights.numel() for weights in folded(network).parameters())


def flops(network: nn.Module, shape: Sequence[int]) -> int:
    """Two for each multiply-add of the convolutions and linear layers, for one example of shape S."""
    total = 0

    def count(layer: nn.Module, _: Any, out: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            total += 2 * out.numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Linear):
            total += 2 * out.numel() * layer.in_features

    hooks = [layer.register_forward_hook(count) for layer in network.modules()]
    with torch.no_grad():
        network.eval()(torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    return total
