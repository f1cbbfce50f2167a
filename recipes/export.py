"""Trained networks as ONNX and TFLite files, also in 8 bits, and what an exported file computes and costs.

Needs the packages of `pip install 'coe-cascade[recipes]'`. The shape S is that of one example as the network takes it.
"""

from __future__ import annotations

import copy
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coe_zoo.networks import Network
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from coe.models.onnx import NO_REPORTS

OPSET = 17  # every onnxruntime we support reads it
HALVED_FROM = 1000  # numbers; shorter weights (biases) stay in 32 bits


def folded(network: Network) -> Network:
    """A copy with each normalisation folded into the convolution before it: same answers, fewer operators."""
    network = copy.deepcopy(network).eval()
    for parent in list(network.modules()):
        if not isinstance(parent, nn.Sequential):
            continue
        for place in range(len(parent) - 1):
            layer, norm = parent[place], parent[place + 1]
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                parent[place], parent[place + 1] = fuse_conv_bn_eval(layer, norm), nn.Identity()
    return network


def to_onnx(network: Network, path: Path, shape: Sequence[int], producer: str, *, half: bool = False) -> None:
    """Writes `path`: input "x" (batch, *S), output "probabilities" (batch, L), any batch.

    Args:
        producer: the recipe, as the file names it.
        half: store the large weights in 16 bits, cast to 32 as the file is loaded: the arithmetic is that of any
            float model, the file half as large.
    """
    import onnx

    with warnings.catch_warnings():
        # The older exporter is said to be on its way out; it still writes the smaller and plainer graph.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            folded(network),
            (torch.zeros(1, *shape),),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=["x"],
            output_names=["probabilities"],
            dynamic_axes={"x": {0: "batch"}, "probabilities": {0: "batch"}},
        )
    model = onnx.load(str(path))
    if half:
        _store_in_16_bits(model)
    write_onnx(model, path, producer)


def write_onnx(model: Any, path: Path, producer: str) -> None:
    """Writes the model without what differs from run to run."""
    import onnx

    model.producer_name, model.producer_version, model.doc_string = producer, "", ""
    model.graph.name = path.stem
    for node in model.graph.node:
        node.doc_string = ""
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def to_tflite(network: Network, path: Path, shape: Sequence[int], *, int8: bool = False) -> None:
    """Writes `path` for a batch of one, laid out as in torch; `int8` stores the weights in 8 bits."""
    import litert_torch
    from ai_edge_quantizer import quantizer, recipe

    with warnings.catch_warnings(), redirect_stdout(StringIO()):  # a page of progress lines for each file
        warnings.simplefilter("ignore")  # the converter's own deprecations
        model = litert_torch.convert(folded(network), (torch.zeros(1, *shape),))
        model.export(str(path))
        if int8:
            job = quantizer.Quantizer(str(path), recipe.dynamic_wi8_afp32())
            path.write_bytes(bytes(job.quantize().quantized_model))


def _store_in_16_bits(model: Any) -> None:
    """Replaces each large weight by its 16-bit form and a cast back, which a runtime does once, as it loads."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for place, weight in enumerate(list(model.graph.initializer)):
        values = numpy_helper.to_array(weight)
        if weight.data_type != TensorProto.FLOAT or values.size < HALVED_FROM:
            continue
        stored = f"{weight.name}.half"
        casts.append(helper.make_node("Cast", [stored], [weight.name], f"{weight.name}.cast", to=TensorProto.FLOAT))
        model.graph.initializer[place].CopyFrom(numpy_helper.from_array(values.astype(np.float16), stored))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # (B, *S) -> (B, L)


def opened(path: Path) -> Predict:
    """An ONNX or TFLite file of recipes.export as a function from inputs to probabilities, run on one thread."""
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


def to_int8_onnx(source: Path, path: Path, examples: NDArray[np.float32], producer: str) -> None:
    """Writes `path` from the 32-bit file `source`: weights and activations in 8 bits (static, per channel).

    Args:
        examples: (B, 3, 32, 32) train pictures, on which the ranges of the activations are read.
        producer: the recipe, as the file names it.
    """
    import onnx
    from onnxruntime import quantization as q
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
