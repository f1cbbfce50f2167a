"""Reading a trace, whatever file it is in."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from coe.cascade import ConfigError

from .columns import Columns, Names, labels_in, to_trace
from .parquet import read_parquet
from .text import DELIMITERS, read_text
from .trace import Trace


def read_trace(path: Path) -> Trace:
    """The trace in a Parquet, TSV or CSV file, in long form or wide (one column per model or exit).

    Raises:
        ConfigError: it is none; names the file, the column, the row and the mend.
        RuntimeMissing: it is Parquet and pyarrow is not installed.
    """
    if not path.exists():
        raise ConfigError(
            ["no such file (a trace is a .parquet, .tsv or .csv table; make one: coe-sim record)"], str(path)
        )
    columns = read_text(path) if path.suffix in DELIMITERS else read_parquet(path)
    return to_trace(lengthened(columns) if is_wide(columns) else columns, path.stem)


def is_wide(columns: Columns) -> bool:
    """One row per example, and a column of predictions for each model, as multi-exit networks are recorded."""
    return "model" not in columns.names and "prediction" not in columns.numbers and "label" in columns.numbers


def lengthened(columns: Columns) -> Columns:
    """A wide table in long form: no scores are known."""
    models = [name for name in columns.numbers if name not in ("label", "score", "latency_s", "payload_bytes")]
    ids = columns.names.get("example_id")
    if ids is None or not models:
        raise columns.wrong("model", None, "expected example_id, label and a column of predictions per model, got none")
    n = len(ids.codes)
    return Columns(
        columns.source,
        {
            "example_id": Names(np.tile(ids.codes, len(models)), ids.texts),
            "model": Names(np.repeat(np.arange(len(models)), n), tuple(models)),
        },
        {
            "label": np.tile(columns.numbers["label"], len(models)),
            "prediction": np.concatenate([labels_in(columns, name) for name in models]).astype(np.float64),
        },
    )
