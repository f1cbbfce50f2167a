"""Writing trained networks as ONNX and TFLite files that come out the same byte for byte each time."""

import copy
import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from coe.zoo.digits.networks import Network

OPSET = 17  # every onnxruntime we support reads it


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


def to_onnx(network: Network, path: Path) -> None:
    """Writes `path`: input "x" (batch, 1, 28, 28), output "probabilities" (batch, 10), any batch."""
    import onnx

    with warnings.catch_warnings():
        # The older exporter is said to be on its way out; it still writes the smaller and plainer graph.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            folded(network),
            (torch.zeros(1, 1, 28, 28),),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=["x"],
            output_names=["probabilities"],
            dynamic_axes={"x": {0: "batch"}, "probabilities": {0: "batch"}},
        )
    model = onnx.load(str(path))
    model.producer_name, model.producer_version, model.doc_string = "coe.zoo.digits", "", ""
    model.graph.name = path.stem
    for node in model.graph.node:
        node.doc_string = ""
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def to_tflite(network: Network, path: Path, *, int8: bool = False) -> None:
    """Writes `path` for a batch of one, NCHW as in torch; `int8` stores the weights in 8 bits."""
    import litert_torch
    from ai_edge_quantizer import quantizer, recipe

    with warnings.catch_warnings(), redirect_stdout(StringIO()):  # a page of progress lines for each file
        warnings.simplefilter("ignore")  # the converter's own deprecations
        model = litert_torch.convert(folded(network), (torch.zeros(1, 1, 28, 28),))
        model.export(str(path))
        if int8:
            job = quantizer.Quantizer(str(path), recipe.dynamic_wi8_afp32())
            path.write_bytes(bytes(job.quantize().quantized_model))
