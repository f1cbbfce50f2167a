"""What an exported file does: its answers, its time, its arithmetic."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coe.zoo.digits.networks import Network, build

Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # (B, 1, 28, 28) -> (B, 10)


def opened(path: Path, architecture: str) -> Predict:
    """The file as a function from digits to probabilities, run on one thread."""
    if path.suffix == ".onnx":
        return _onnx(path)
    if path.suffix == ".tflite":
        return _tflite(path)
    network = build(architecture).eval()
    network.load_state_dict(torch.load(path, weights_only=True))
    return lambda x: probabilities_of(network, x)


def probabilities_of(network: Network, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The network's own answers, (B, 10)."""
    with torch.no_grad():
        out: NDArray[np.float32] = network(torch.from_numpy(x)).numpy()
        return out


def _onnx(path: Path) -> Predict:
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


def latency_us(predict: Predict, x: NDArray[np.float32], runs: int = 2000) -> float:
    """Median time of one example, in microseconds."""
    one = np.ascontiguousarray(x[:1])
    for _ in range(100):
        predict(one)
    times = []
    for _ in range(runs):
        start = time.perf_counter_ns()
        predict(one)
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1000


def flops(network: Network) -> int:
    """Two for each multiply-add of the convolutions and linear layers, for one example."""
    total = 0

    def count(layer: nn.Module, _: Any, out: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            total += 2 * out.numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Linear):
            total += 2 * out.numel() * layer.in_features

    hooks = [layer.register_forward_hook(count) for layer in network.modules()]
    network.eval()(torch.zeros(1, 1, 28, 28))
    for hook in hooks:
        hook.remove()
    return total
