"""From a model file to a member: its bytes verified, its runtime found, and tried once before it counts.

A runtime is one module with one function, `load(data, spec, options) -> LoadedMember`. To add one: write that
module, name it in `RUNTIMES`, and add it to the contract tests.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from coe.cascade.errors import ModelError
from coe.cascade.tier import Member

from .base import LoadedMember, ModelSpec, RunOptions
from .files import read_file

RUNTIMES = {  # format -> module, imported only when a model needs it
    "onnx": "coe.models.onnx",
    "tflite": "coe.models.tflite",
    "torch": "coe.models.torch",
    "torch-export": "coe.models.torch",
    "torchscript": "coe.models.torch",
}
OF_TEXTS = {"onnx": "coe.models.onnx_text"}  # the same for models that take a text's tokens

Loader = Callable[[bytes, ModelSpec, RunOptions], LoadedMember]


def load(spec: ModelSpec, options: RunOptions | None = None) -> LoadedMember:
    """The member in a model file: its checksum verified, loaded, tried once on zeros.

    Raises:
        ModelError: missing, changed, not loadable, or not of the declared input or number of labels.
        RuntimeMissing: the package that runs this format is not installed.
    """
    data = read_verified(spec)
    own = OF_TEXTS if spec.contract.kind == "text" else {}
    module = importlib.import_module(own.get(spec.format, RUNTIMES[spec.format]))
    loader: Loader = module.load
    member = loader(data, spec, options or RunOptions())
    try:
        try_out(member, spec)
    except BaseException:
        member.close()
        raise
    return member


def read_verified(spec: ModelSpec) -> bytes:
    """The bytes of a model file.

    Raises:
        ModelError: missing, unreadable, or another checksum than declared.
    """
    return read_file(spec.path, spec.sha256, "the model file", spec.made_by)


def try_out(member: Member, spec: ModelSpec) -> None:
    """Two blank examples: the shapes fit, the numbers are probabilities, and the model is warm."""
    x = spec.contract.trial(2)
    try:
        output = member.predict(x)
        member.predict(x[:1])  # a runtime plans each batch size anew; one example at a time is what devices do
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001 - each runtime raises its own kinds
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{spec.path}: the model does not take {spec.contract.dtype} {list(x.shape)} as declared: {reason}"
        ) from None
    if output.shape != (2, len(spec.labels)):
        raise ModelError(
            f"{spec.path}: expected an output of [2, {len(spec.labels)}] for two examples (one probability per label), "
            f"got {list(output.shape)}"
        )
    total = float(output[0].sum())
    if not abs(total - 1.0) < 0.02 or float(output.min()) < -1e-3:
        raise ModelError(
            f"{spec.path}: expected probabilities that sum to 1, got a sum of {total:.4g} "
            f"(declare `output: logits` if it ends before the softmax)"
        )
