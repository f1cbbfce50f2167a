"""Writing trained networks as ONNX and TFLite files that come out the same byte for byte each time.

Needs the packages of `pip install 'coe-cascade[zoo]'`. The shape S is that of one example as the network takes it.
"""

import copy
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from coe.zoo.network import Network

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
