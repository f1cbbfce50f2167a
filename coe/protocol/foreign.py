"""A server of the Open Inference Protocol that is not coe-cloud: what it takes, and the single vote in its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coe.cascade.tier import Prepare
from coe.cascade.types import Array, Batch, Labels, Vote

from . import inference_pb2 as pb
from .codec import DATATYPES, WireError
from .service import INPUT, PLATFORM


@dataclass(frozen=True, slots=True)
class RemoteInput:
    """A model's one input: its name, datatype, and the shape of one row, -1 where free."""

    name: str
    datatype: str
    row: tuple[int, ...] = ()

    def tensor(self, batch: Batch, prepare: Prepare | None) -> Array:
        """The batch as this input takes it.

        Args:
            prepare: makes the model's floats from a batch's x, by the task's contract.
        Raises:
            WireError: the batch has no such form.
        """
        if self.datatype == "BYTES":
            if batch.captured is None:
                raise self._misfit("examples as captured (BYTES)", "pixels or tensors")
            return batch.captured
        x = batch.x
        if self.datatype.startswith("FP") and prepare is not None:
            x = prepare(x).astype(DATATYPES[self.datatype], copy=False)
        if x.dtype != DATATYPES[self.datatype]:
            raise self._misfit(self.datatype, str(x.dtype))
        if len(x.shape) != 1 + len(self.row) or any(
            want not in (-1, have) for want, have in zip(self.row, x.shape[1:], strict=True)
        ):
            raise self._misfit(f"rows of {list(self.row)}", str(list(x.shape[1:])))
        return x

    def _misfit(self, expected: str, got: str) -> WireError:
        fix = "the task's `input:` must be what the server takes"
        return WireError(f"input {self.name!r}", expected, got, fix)


OUR_INPUT = RemoteInput(INPUT, "BYTES")  # or a tensor: it takes either


def read_remote_input(told: pb.ModelMetadataResponse) -> RemoteInput:
    """The input a server asks for.

    Raises:
        WireError: it takes several inputs, or a datatype no example of ours has.
    """
    if told.platform == PLATFORM:
        return OUR_INPUT
    inputs = [(entry.name, entry.datatype, tuple(entry.shape)) for entry in told.inputs]
    if not inputs:
        add = '"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, ...]}]'
        fix = f"add {add} to the model's model-settings.json (MLServer), or `input` to its config.pbtxt (Triton)"
        raise WireError("its inputs", "one", "none", fix)
    if len(inputs) != 1:
        names = ", ".join(name for name, _, _ in inputs)
        raise WireError("its inputs", "one", names, "serve a model with one input")
    name, datatype, shape = inputs[0]
    if datatype not in ("BYTES", "UINT8", "FP16", "FP32", "FP64"):
        raise WireError(f"its input {name!r}", "BYTES, UINT8 or floats", datatype, "serve a model that takes these")
    return RemoteInput(name, datatype, shape[1:])


CLASSES = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "BYTES")


def choose_output(told: pb.ModelMetadataResponse, n_labels: int) -> str:
    """The one output, by the server's metadata, that holds a task's answer: probabilities, else classes.

    "" where none or several may be: then all are asked for, and the answer is read by what is in it.
    """
    if told.platform == PLATFORM:
        return ""
    shapes = {output.name: (output.datatype, [dim for dim in output.shape[1:] if dim != 1]) for output in told.outputs}
    scores = [name for name, (kind, row) in shapes.items() if kind[:2] in ("FP", "BF") and row in ([n_labels], [-1])]
    exact = [name for name in scores if shapes[name][1] == [n_labels]]
    classes = [name for name, (kind, row) in shapes.items() if kind in CLASSES and not row]
    found = exact or scores or classes
    return found[0] if len(found) == 1 else ""


def read_single_model(
    outputs: Mapping[str, Array], n_rows: int, n_labels: int, names: Sequence[str] = (), output: str = ""
) -> Vote:
    """The vote of an ensemble of one: from probabilities (B, L), the one of two labels (B,), or classes (B,), whose
    score is not known.

    Args:
        names: of the labels, where classes are names.
        output: the one that counts; "": the one that fits.
    Raises:
        ValueError: there is no such output, or several.
    """
    if output:
        if output not in outputs:
            raise ValueError(f'expected an output "{output}", got {", ".join(map(repr, outputs))[:200] or "none"}')
        outputs = {output: outputs[output]}
    arrays = {name: array.reshape(_without_ones(array.shape)) for name, array in outputs.items()}
    floats = [array for array in arrays.values() if array.dtype.kind == "f"]
    fitting = [array for array in floats if array.shape == (n_rows, n_labels)]
    if n_labels == 2 and not fitting:
        fitting = [np.stack([1 - one, one], axis=1) for one in floats if one.shape == (n_rows,) and _are_shares(one)]
    if fitting:
        array = next(filter(_are_probabilities, fitting), fitting[0])  # where it gives its logits as well
        labels = array.argmax(axis=1)
        score = array[np.arange(n_rows), labels].astype(np.float32)  # argmax points at a NaN if there is one
        if not np.isfinite(score).all():
            raise ValueError("expected probabilities, got NaN or infinity")
        return _vote_of(labels, score)
    classes = {name: array for name, array in arrays.items() if array.shape == (n_rows,) and array.dtype.kind in "iufO"}
    if len(classes) == 1:
        ((name, array),) = classes.items()
        return _vote_of(_numbers(name, array, n_labels, names), np.full(n_rows, np.nan, dtype=np.float32))
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in outputs.items())[:200] or "none"
    fix = " (name one: `output:`)" if len(classes) > 1 else ""
    raise ValueError(
        f'expected an output "label", one of classes [{n_rows}], or probabilities [{n_rows}, {n_labels}], '
        f"got {shapes}{fix}"
    )


def _vote_of(labels: Array, score: Array) -> Vote:
    ones = np.ones(len(labels), dtype=np.int64)
    return Vote(labels.astype(np.int64), ones, ones, 1, score)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:1], *(dim for dim in shape[1:] if dim != 1))


def _are_shares(one: Array) -> bool:
    return bool(((one >= 0) & (one <= 1)).all())


def _are_probabilities(array: Array) -> bool:
    """Whether each row of (B, L) adds up to 1, as closely as half floats do."""
    if not (array >= 0).all():
        return False
    with np.errstate(over="ignore"):
        return bool((np.abs(array.sum(axis=1, dtype=np.float64) - 1) < 0.01).all())


def _numbers(output: str, classes: Array, n_labels: int, names: Sequence[str]) -> Labels:
    """(B,) labels from classes: names of labels, or their numbers. Where the names are numbers, classes are names."""
    by_name = {name: number for number, name in enumerate(names)}
    are_names = classes.dtype.kind == "O" or all(name.lstrip("-").isdigit() for name in names)
    if are_names and names:
        said = [one.decode("utf-8", "replace") if isinstance(one, bytes) else f"{one:g}" for one in classes.tolist()]
        unknown = next((one for one in said if one not in by_name), None)
        if unknown is not None:
            raise ValueError(f"output {output}: expected names of labels, got {unknown[:40]!r}")
        return np.array([by_name[one] for one in said], dtype=np.int64)
    if classes.dtype.kind == "O":
        raise ValueError(f"output {output}: expected numbers of labels, got names")
    if not ((classes >= 0) & (classes < n_labels) & (classes == np.floor(classes))).all():
        raise ValueError(
            f"output {output}: expected labels 0 to {n_labels - 1}, got {classes.min()} to {classes.max()}"
        )
    return classes.astype(np.int64)
