"""Reading a trace, whatever file it is in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from coe.cascade import ConfigError

from .bundled import find_trace, flops_of, task_of, tasks
from .columns import Columns, Names, labels_in, to_trace
from .costs import Costs, costs_in
from .parquet import read_parquet
from .text import DELIMITERS, read_text
from .trace import Trace


def read_trace(reference: Path) -> Trace:
    """The trace in a Parquet, TSV or CSV file, in long form or wide (one column per model or exit).

    Args:
        reference: a file, or a bundled trace: zoo:cifar10/test.parquet, or cifar10.
    Raises:
        ConfigError: it is none; names the file, the column, the row and the mend.
        RuntimeMissing: it is Parquet and pyarrow is not installed.
    """
    task = task_of(str(reference))
    if task is not None:
        path, name = find_trace(str(reference))
        return replace(to_trace(read_parquet(path), name), task=task)
    path = reference
    if not path.exists():
        message = (
            "no such file (a trace is a .parquet, .tsv or .csv table; make one: coe-sim record; "
            f"or name a bundled one: {', '.join(tasks())})"
        )
        raise ConfigError([message], str(path))
    columns = read_text(path) if path.suffix in DELIMITERS else read_parquet(path)
    return to_trace(lengthened(columns) if is_wide(columns) else columns, path.stem)


def read_costs(reference: str | None, trace: Trace) -> list[Costs]:
    """Every kind of cost that is known of all models in the trace; the file's first, in its order.

    Args:
        reference: a YAML file, or the name of a bundled one; None: what comes with the trace (FLOPs of the bundled
            tasks, latencies where they were recorded).
    Raises:
        ConfigError: a model of the trace is missing in the file, or a number is none.
    """
    found = [] if reference is None else costs_in(reference, list(trace.models))
    if trace.task is not None and not any(costs.kind == "flops" for costs in found):
        flops = flops_of(trace.task, trace)
        found += [] if flops is None else [flops]
    seconds = {name: trace.latency_s(name) for name in trace.models}
    known = {name: value for name, value in seconds.items() if value is not None}
    if len(known) == len(seconds) and not any(costs.kind == "latency_s" for costs in found):
        found.append(Costs("latency_s", known, "medians of the trace, one example at a time"))
    return found


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
