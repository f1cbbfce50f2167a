"""Traces as Parquet, through pyarrow: imported here alone, and only when such a file is read or written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from coe.cascade import ConfigError
from coe.cascade.types import Array
from coe.models.base import import_runtime

from .columns import Columns, Names, Numbers
from .text import NUMBERS, TEXTS
from .trace import Trace

MEND = "pip install 'coe-cascade[sim]' (or give the trace as .tsv or .csv)"


def read_parquet(path: Path) -> Columns:
    """The columns of a trace in a Parquet file; others are passed over.

    Raises:
        ConfigError: no such file, not Parquet, or a column of another type.
        RuntimeMissing: pyarrow is not installed.
    """
    arrow = import_runtime("pyarrow", "Parquet", MEND)
    parquet = import_runtime("pyarrow.parquet", "Parquet", MEND)
    try:
        table = parquet.read_table(path)
    except OSError as error:
        reason = error.strerror or f"expected a Parquet file: {error}"
        raise ConfigError([f"cannot be read: {reason}"], str(path)) from None
    except arrow.ArrowInvalid as error:
        raise ConfigError([f"expected a Parquet file: {error}"], str(path)) from None
    is_wide = not {"model", "prediction"} & set(table.column_names)
    names: dict[str, Names] = {}
    numbers: dict[str, Numbers] = {}
    probabilities: Array | None = None
    for name in table.column_names:
        column = table[name].combine_chunks()
        if name in TEXTS:
            names[name] = _names(column)
        elif name == "probabilities":
            probabilities = _lists(column, path)
        elif name in NUMBERS or (is_wide and arrow.types.is_integer(column.type)):
            numbers[name] = _numbers(column, name, path)
    return Columns(str(path), names, numbers, probabilities)


def _names(column: Any) -> Names:
    """The texts in the order of their first appearance, whatever order a dictionary has."""
    encoded = column.dictionary_encode() if not hasattr(column, "indices") else column
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    found, first, codes = np.unique(codes, return_index=True, return_inverse=True)
    order = first.argsort()
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    texts = encoded.dictionary.to_pylist()
    return Names(rank[codes].astype(np.intp), tuple(str(texts[int(found[place])]) for place in order))


def _numbers(column: Any, name: str, path: Path) -> Numbers:
    try:
        values: Numbers = np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)
    except (ValueError, TypeError):
        raise ConfigError([f"column {name}: expected numbers, got {column.type} (convert it)"], str(path)) from None
    return values


def _lists(column: Any, path: Path) -> Array | None:
    """(R, L) from lists of one size, NaN in a row without."""
    if column.null_count == len(column):
        return None
    there = column.is_valid().to_numpy(zero_copy_only=False)
    flat = np.asarray(column.flatten().to_numpy(zero_copy_only=False))  # of the rows that are there
    width = len(flat) // max(int(there.sum()), 1)
    lengths = np.asarray(column.drop_null().value_lengths().to_numpy(zero_copy_only=False)).astype(int)
    if (lengths != width).any():
        row = int(np.flatnonzero(there)[int((lengths != width).argmax())])
        message = f"column probabilities, row {row + 1}: expected {width} numbers as in other rows (one per label)"
        raise ConfigError([message], str(path))
    if there.all():
        rows: Array = flat.reshape(-1, width)
        return rows
    filled: Array = np.full((len(column), width), np.nan, dtype=flat.dtype)
    filled[there] = flat.reshape(-1, width)
    return filled


def write_parquet(trace: Trace, path: Path) -> None:
    """The trace as a Parquet file in long form, models one after another.

    Raises:
        RuntimeMissing: pyarrow is not installed.
    """
    arrow = import_runtime("pyarrow", "Parquet", MEND)
    parquet = import_runtime("pyarrow.parquet", "Parquet", MEND)
    n_models, n_examples = len(trace.models), len(trace)
    rows = np.tile(np.arange(n_examples, dtype=np.int32), n_models)
    of_model = np.repeat(np.arange(n_models, dtype=np.int32), n_examples)
    columns = {
        "example_id": arrow.DictionaryArray.from_arrays(rows, arrow.array(trace.ids)),
        "label": arrow.array(np.tile(trace.labels, n_models)),
        "model": arrow.DictionaryArray.from_arrays(of_model, arrow.array(list(trace.models))),
    }
    for name, field in (("prediction", "predictions"), ("score", "scores"), ("latency_s", "latency_s")):
        parts = [getattr(answers, field) for answers in trace.models.values()]
        if any(part is not None for part in parts):
            columns[name] = arrow.concat_arrays([_column(arrow, part, n_examples) for part in parts])
    if trace.has_probabilities:
        stacked = np.concatenate([np.asarray(one.probabilities, np.float16) for one in trace.models.values()])
        flat = arrow.array(stacked.reshape(-1))
        columns["probabilities"] = arrow.FixedSizeListArray.from_arrays(flat, stacked.shape[1])
    if trace.payload_bytes is not None:
        columns["payload_bytes"] = arrow.array(np.tile(trace.payload_bytes, n_models))
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.table(columns), path, compression="zstd", compression_level=19)


def _column(arrow: Any, values: Array | None, n: int) -> Any:
    return arrow.nulls(n, arrow.float32()) if values is None else arrow.array(values)
