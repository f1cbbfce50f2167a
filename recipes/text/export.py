"""Exporting and measuring the members of a text task, and their manifest."""

from __future__ import annotations

import copy
import hashlib
import logging
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coe.config.manifest import read_manifest
from coe.models import LoadedMember, load
from coe.models.text import MASK
from recipes import bundle
from recipes.export import OPSET, write_onnx

from .data import Split, Task
from .training import FILES, SMALL, TEACHER, TIERS, Probabilities, Trained, n_inputs, tokenizer_file

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


WARM_UP = 50
REPEATS = 3  # of each timing; the best counts


def one_by_one(
    member: LoadedMember, texts: Sequence[str], repeats: int = REPEATS
) -> tuple[Probabilities, NDArray[np.float32]]:
    """(B, L) probabilities and (B,) seconds: each text alone, its tokenizer included."""
    x = np.empty(len(texts), dtype=object)
    x[:] = texts
    for place in range(WARM_UP):
        row = place % len(x)
        member.predict(member.prepare(x[row : row + 1]))
    outputs: list[Any] = [None] * len(x)
    seconds = np.empty((repeats, len(x)), dtype=np.float32)
    for repeat in range(repeats):
        for row in range(len(x)):
            started = time.perf_counter()
            outputs[row] = member.predict(member.prepare(x[row : row + 1]))
            seconds[repeat, row] = time.perf_counter() - started
    best: NDArray[np.float32] = seconds.min(axis=0)
    return np.concatenate(outputs).astype(np.float32), best


def mean_length(member: LoadedMember, texts: Sequence[str]) -> int:
    """Tokens that the member sees of a text, on average."""
    x = np.empty(len(texts), dtype=object)
    x[:] = texts
    return round(float(member.prepare(x)[:, MASK].sum(axis=1).mean()))


def flops(network: nn.Module, n_tokens: int) -> int:
    """Two for each multiply-add of matrix products and convolutions, for one text of so many tokens."""
    from torch.utils.flop_counter import FlopCounterMode

    one = torch.ones(1, n_tokens, dtype=torch.int64)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(*[one] * n_inputs(network))
    return int(counter.get_total_flops())


@dataclass(frozen=True, slots=True)
class ModelEntry(bundle.ModelEntry):
    """One model file's line in the manifest.

    Args:
        tokenizer: the file beside it.
        max_length: tokens it sees of a text, at most.
    """

    tokenizer: str = ""
    max_length: int = 0

    def as_yaml(self, folder: Path) -> dict[str, Any]:
        # Not `bundle.ModelEntry.as_yaml` through super(), which a dataclass with slots does not know in its methods.
        digest = hashlib.sha256((folder / self.tokenizer).read_bytes()).hexdigest()
        own = {
            "kind": "text",
            "tokenizer": self.tokenizer,
            "tokenizer_sha256": digest,
            "max_length": self.max_length,
        }
        return {**bundle.ModelEntry.as_yaml(self, folder), "input": own}


def exported(one: Trained, task: Task, calibration: Split, folder: Path) -> ModelEntry:
    """Writes the network's file and tokenizer, and its line in the manifest; measures the file on calibration."""
    file, producer = FILES[one.name], f"coe.zoo.{task.name}"
    (folder / tokenizer_file(one.name)).write_bytes(one.tokenizer)
    if one.name == TEACHER:
        to_int8_onnx(one.network, folder / file, producer)
    else:
        to_onnx(one.network, folder / file, producer, bits=8)
    entry = _entry(one, task, 0.0, 1)
    write_manifest(task, folder, [entry])  # a member is opened by it
    with_tokens = opened(folder, file)
    try:
        accuracy = float((_answers(with_tokens, calibration) == calibration.labels).mean())
        length = mean_length(with_tokens, calibration.texts)
    finally:
        with_tokens.close()
    entry = _entry(one, task, accuracy, length)
    write_manifest(task, folder, [entry])
    return entry


def _entry(one: Trained, task: Task, accuracy: float, n_tokens: int) -> ModelEntry:
    return ModelEntry(
        file=FILES[one.name],
        architecture=one.name,
        tier=TIERS[one.name],
        flops=flops(one.network, n_tokens),
        parameters=sum(weights.numel() for weights in one.network.parameters()),
        calibration_accuracy=accuracy,
        tokenizer=tokenizer_file(one.name),
        max_length=task.max_length,
        made_by=f"python -m coe.zoo.{task.name} --data DIR" if one.name == TEACHER else None,
    )


def opened(folder: Path, file: str) -> LoadedMember:
    """The member as a config would open it: verified by the manifest, on one thread."""
    return load(read_manifest(folder).models[file])


def _answers(member: LoadedMember, split: Split) -> Any:
    """(B,) labels, each text alone: an 8-bit model's answer may hang on what is computed beside it."""
    outputs, _ = one_by_one(member, split.texts, repeats=1)
    return outputs.argmax(axis=1)


def write_manifest(task: Task, folder: Path, entries: list[ModelEntry]) -> None:
    """Writes manifest.yaml."""
    header = f"""\
# The models of the {task.title} task, written by `python -m coe.zoo.{task.name}`; do not edit.
# All learned from the same train texts; {", ".join(SMALL)} also, to a part, from {TEACHER}'s answers to them and to
# parts of them (distillation). calibration_accuracy is that of the file itself on the calibration texts, FLOPs are
# those for a text of average length there. {FILES[TEACHER]} and its tokenizer are not bundled: the recipe makes them.
"""
    contract = {"task": task.name, "labels": list(task.labels), "input": {"kind": "text"}}
    bundle.write_manifest(folder, header, contract, entries)
