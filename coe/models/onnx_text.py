"""ONNX members that read texts: their inputs are told apart by name, as exporters of transformers write them."""

from __future__ import annotations

from typing import Any

import numpy as np

from coe.cascade.errors import ModelError
from coe.cascade.types import Array

from .base import ModelSpec, RunOptions
from .onnx import OnnxMember
from .text import IDS, MASK, TYPES, TextContract

NAMES = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": TYPES}
DTYPES = {"tensor(int64)": "int64", "tensor(int32)": "int32"}


class OnnxTextMember(OnnxMember):
    """One session with token ids in, and where it asks for them their mask and segments; one (B, L) output."""

    def _take_inputs(self, spec: ModelSpec) -> int | None:
        """Which row of a prepared text (3, T) feeds which input; the number of rows where that is fixed."""
        inputs = self._session.get_inputs()
        if len(inputs) == 1:  # whatever its name
            self._feeds = [(inputs[0].name, IDS, _dtype(inputs[0], spec))]
        else:
            self._feeds = [(entry.name, _row_for(entry, spec), _dtype(entry, spec)) for entry in inputs]
        n_rows = {_check_shape(entry, spec) for entry in inputs}
        if len(n_rows) > 1 or not n_rows <= {None, 1}:
            shapes = ", ".join(f"{entry.name} {entry.shape}" for entry in inputs)
            raise ModelError(f"{spec.path}: expected a batch dimension that is free or 1, got {shapes}")
        return n_rows.pop()

    def _run(self, x: Array) -> Array:
        feeds = {name: np.ascontiguousarray(x[..., row, :], dtype=dtype) for name, row, dtype in self._feeds}
        output: Array = self._session.run([self._output], feeds)[0]
        return output


def load(data: bytes, spec: ModelSpec, options: RunOptions) -> OnnxTextMember:
    return OnnxTextMember(data, spec, options)


def _row_for(entry: Any, spec: ModelSpec) -> int:
    if entry.name not in NAMES:
        known = ", ".join(NAMES)
        raise ModelError(f"{spec.path}: expected inputs of the names {known}, got {entry.name} (rename it)")
    return NAMES[entry.name]


def _dtype(entry: Any, spec: ModelSpec) -> str:
    if entry.type not in DTYPES:
        raise ModelError(f"{spec.path}: expected whole numbers (int64, int32) as {entry.name}, got {entry.type}")
    return DTYPES[entry.type]


def _check_shape(entry: Any, spec: ModelSpec) -> int | None:
    """Its number of rows where that is fixed."""
    contract = spec.contract
    assert isinstance(contract, TextContract)
    between = contract.model_shape[:-2]  # endings, of multiple choice
    if len(entry.shape) != 2 + len(between) or any(
        isinstance(size, int) and size != n for size, n in zip(entry.shape[1:-1], between, strict=True)
    ):
        wanted = ", ".join(["batch", *map(str, between), "tokens"])
        raise ModelError(f"{spec.path}: expected {entry.name} as [{wanted}], got {entry.shape}")
    n_rows, n_tokens = entry.shape[0], entry.shape[-1]
    if isinstance(n_tokens, int) and (contract.padding, contract.max_length) != ("max_length", n_tokens):
        raise ModelError(
            f"{spec.path}: its input {entry.name} takes {n_tokens} tokens each time "
            f"(write `max_length: {n_tokens}` and `padding: max_length` in `input:`)"
        )
    return n_rows if isinstance(n_rows, int) else None
