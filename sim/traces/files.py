"""Reading and writing traces as Parquet, TSV or CSV, the bundled ones included.

`test.parquet` in a task's folder holds what every member of its tiers answers on the test split,
`calibration.parquet` on the split on which choices are made; both have the columns of a trace, with
probabilities, latencies and payload bytes, and name their models as the manifest beside them does, so that FLOPs are
known too. Commands call them `zoo:TASK/test.parquet` and `zoo:TASK/calibration.parquet`; TASK alone is the first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe import zoo
from coe.cascade import ConfigError
from coe.cascade.types import Array
from coe.config.manifest import read_manifest
from coe.models.loading import import_runtime
from coe.models.tables import SUFFIXES, find_column, read_table

from .costs import Costs, costs_in
from .trace import Answers, Trace

NEEDED = ("example_id", "label", "model", "prediction")
KNOWN = "example_id, label, model, prediction, score, and where known probabilities, latency_s, payload_bytes"
LARGEST_LABEL = 1_000_000
LARGEST_SCORE = 1e6

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Names:
    """A column of texts: `texts[codes[row]]`, in the order of their first appearance."""

    codes: NDArray[np.intp]
    texts: tuple[str, ...]

    @classmethod
    def of(cls, values: Sequence[Any]) -> Names:
        places: dict[Any, int] = {}
        codes = np.array([places.setdefault(value, len(places)) for value in values], dtype=np.intp)
        return cls(codes, tuple(map(str, places)))


@dataclass(frozen=True, slots=True)
class Columns:
    """A table as a reader hands it over.

    Args:
        source: the file, for errors.
        names: the text columns.
        numbers: (R,) float64 each, NaN where nothing is recorded.
        probabilities: (R, L) float, NaN in a row without.
        others: names of the columns that are passed over.
    """

    source: str
    names: Mapping[str, Names]
    numbers: Mapping[str, Numbers] = field(default_factory=dict)
    probabilities: Array | None = None
    others: Sequence[str] = ()

    def wrong(self, column: str, row: int | None, message: str) -> ConfigError:
        """The error; rows count from 1, the header not among them."""
        where = f"column {column}" if row is None else f"column {column}, row {row + 1}"
        return ConfigError([f"{where}: {message}"], self.source)


def to_trace(columns: Columns, name: str) -> Trace:
    """The trace in a long-form table.

    Raises:
        ConfigError: names the file, the column, the row and what to correct.
    """
    for column in NEEDED:
        if column not in columns.names and column not in columns.numbers:
            raise columns.wrong(column, None, f"expected this column, got none (a trace has {KNOWN})")
    likely = find_column(columns.others, SCORES)
    if likely is not None and "score" not in columns.numbers and columns.probabilities is None:
        fix = f"rename {likely} to score if it is the probability of the prediction, or drop it"
        raise columns.wrong("score", None, f'expected this column beside "{likely}", got none ({fix})')
    ids, models = columns.names["example_id"], columns.names["model"]
    if not ids.texts:
        raise ConfigError(["expected at least one row, got an empty table"], columns.source)
    cells = _cells(columns, ids, models)  # (M, B) rows of the table
    labels = labels_in(columns, "label")[cells]
    differs = (labels != labels[0]).any(axis=0)
    if differs.any():
        example = int(differs.argmax())
        found = sorted(set(labels[:, example].tolist()))
        row = int(cells[:, example].max())
        raise columns.wrong("label", row, f"expected one label for {ids.texts[example]}, got {found} (correct the row)")
    predictions = labels_in(columns, "prediction")[cells]
    scores = _optional(columns, "score", cells, models, -LARGEST_SCORE)
    latencies = _optional(columns, "latency_s", cells, models, 0.0)
    answers = {
        model: Answers(predictions[place], scores[place], _probabilities(columns, cells[place]), latencies[place])
        for place, model in enumerate(models.texts)
    }
    return Trace(name, ids.texts, labels[0], answers, _payload(columns, cells[0]))


def _cells(columns: Columns, ids: Names, models: Names) -> NDArray[np.intp]:
    """(M, B) the row of each model and example: exactly one."""
    shape = (len(models.texts), len(ids.texts))
    place = models.codes * shape[1] + ids.codes
    counts = np.bincount(place, minlength=shape[0] * shape[1])
    if (counts > 1).any():
        first = int(np.flatnonzero(counts > 1)[0])
        row = int(np.flatnonzero(place == first)[1])
        model, example = models.texts[first // shape[1]], ids.texts[first % shape[1]]
        raise columns.wrong("example_id", row, f"expected {example} once for model {model}, got it again (drop one)")
    if (counts == 0).any():
        first = int(np.flatnonzero(counts == 0)[0])
        model, example = models.texts[first // shape[1]], ids.texts[first % shape[1]]
        message = f"expected every model on every example, got none of {model} on {example} (record it)"
        raise columns.wrong("model", None, message)
    rows = np.empty(shape[0] * shape[1], dtype=np.intp)
    rows[place] = np.arange(len(place))
    return rows.reshape(shape)


def labels_in(columns: Columns, name: str) -> NDArray[np.int32]:
    values = columns.numbers[name]
    good = (values >= 0) & (values <= LARGEST_LABEL) & (values == np.floor(values))
    if not good.all():
        row = int((~good).argmax())
        got = "nothing" if np.isnan(values[row]) else f"{values[row]:g}"
        raise columns.wrong(name, row, f"expected a label 0, 1, 2 .., got {got} (number the labels from 0)")
    return values.astype(np.int32)


def _optional(
    columns: Columns, name: str, cells: NDArray[np.intp], models: Names, low: float
) -> list[NDArray[np.float32] | None]:
    """Per model (B,), or None where it has no value at all."""
    values = columns.numbers.get(name)
    if values is None:
        return [None] * len(models.texts)
    found: list[NDArray[np.float32] | None] = []
    for model, rows in zip(models.texts, cells, strict=True):
        own = values[rows]
        missing = np.isnan(own)
        if missing.all():
            found.append(None)
            continue
        wrong = missing | (own < low) | (own > LARGEST_SCORE)
        if wrong.any():
            at = int(wrong.argmax())
            got = "nothing" if missing[at] else f"{own[at]:g}"
            message = f"expected a number for every example of {model} or for none, got {got} (fill it, or empty all)"
            raise columns.wrong(name, int(rows[at]), message)
        found.append(own.astype(np.float32))
    return found


def _probabilities(columns: Columns, rows: NDArray[np.intp]) -> Array | None:
    if columns.probabilities is None:
        return None
    own: Array = columns.probabilities[rows]
    good = np.isfinite(own).all(axis=1)
    if not good.any():
        return None
    if not good.all():
        row = int(rows[int((~good).argmax())])
        raise columns.wrong("probabilities", row, "expected one number per label, got none or no number (record it)")
    return own


def _payload(columns: Columns, rows: NDArray[np.intp]) -> NDArray[np.int32] | None:
    values = columns.numbers.get("payload_bytes")
    if values is None or np.isnan(values[rows]).any():
        return None
    return values[rows].astype(np.int32)


TEXTS = ("example_id", "model")
SCORES = ("confidence", "conf", "probability", "prob", "max_prob", "max_probability")  # what others call it
NUMBERS = ("label", "prediction", "score", "latency_s", "payload_bytes")


def _by_known_names(names: Sequence[str]) -> list[str]:
    """The columns' names, those that a trace has as it spells them: "Example ID" is example_id."""
    spelled = {
        find_column(names, (known,)): known for known in (*TEXTS, *NUMBERS, "probabilities") if known not in names
    }
    return [spelled.get(name, name) for name in names]


def numbers_of(path: Path, name: str, cells: Sequence[str]) -> Numbers:
    """(R,) float64, NaN where a cell is empty.

    Raises:
        ConfigError: names the row that is no number.
    """
    values = np.full(len(cells), np.nan)
    for row, cell in enumerate(cells):
        if cell.strip():
            try:
                values[row] = float(cell)
            except ValueError:
                message = f'column {name}, row {row + 1}: expected a number, got "{cell}" (correct the cell)'
                raise ConfigError([message], str(path)) from None
    return values


def read_text(path: Path) -> Columns:
    """The columns of a trace in a TSV or CSV file."""
    table = read_table(path)
    table = dict(zip(_by_known_names(list(table)), table.values(), strict=True))
    names = {name: Names.of([cell.strip() for cell in table[name]]) for name in TEXTS if name in table}
    numbers = {name: numbers_of(path, name, table[name]) for name in NUMBERS if name in table}
    if "model" not in table and "prediction" not in table:  # wide: one column per model
        extra = [name for name in table if name not in (*TEXTS, *NUMBERS)]
        numbers |= {name: numbers_of(path, name, table[name]) for name in extra}
    others = [name for name in table if name not in names and name not in numbers]
    columns = Columns(str(path), names, numbers, others=others)
    if "probabilities" not in table:
        return columns
    lists = [numbers_of(path, "probabilities", cell.split()) for cell in table["probabilities"]]
    width = max(map(len, lists), default=0)
    probabilities = np.full((len(lists), width), np.nan, dtype=np.float32)
    for row, values in enumerate(lists):
        if len(values) not in (0, width):
            raise columns.wrong("probabilities", row, f"expected {width} numbers, got {len(values)} (one per label)")
        probabilities[row, : len(values)] = values
    return Columns(str(path), names, numbers, probabilities, others)


PANDAS_INDEX = re.compile(r"__index_level_\d+__|level_\d+|index$")
INSTALL_HINT = "pip install 'coe-cascade[sim]' (or give the trace as .tsv or .csv)"


def read_parquet(path: Path) -> Columns:
    """The columns of a trace in a Parquet file; others are passed over.

    Raises:
        ConfigError: no such file, not Parquet, or a column of another type.
        RuntimeMissing: pyarrow is not installed.
    """
    arrow = import_runtime("pyarrow", "Parquet", INSTALL_HINT)
    parquet = import_runtime("pyarrow.parquet", "Parquet", INSTALL_HINT)
    try:
        table = parquet.read_table(path)
    except OSError as error:
        reason = error.strerror or f"expected a Parquet file: {error}"
        raise ConfigError([f"cannot be read: {reason}"], str(path)) from None
    except arrow.ArrowInvalid as error:
        raise ConfigError([f"expected a Parquet file: {error}"], str(path)) from None
    table = table.rename_columns(_by_known_names(table.column_names))
    is_wide = not {"model", "prediction"} & set(table.column_names)
    names: dict[str, Names] = {}
    numbers: dict[str, Numbers] = {}
    probabilities: Array | None = None
    others: list[str] = []
    for name in table.column_names:
        column = table[name].combine_chunks()
        if name in TEXTS:
            names[name] = _text_column(column, name, path)
        elif name == "probabilities":
            probabilities = _list_column(column, path)
        elif name in NUMBERS or (is_wide and arrow.types.is_integer(column.type) and not PANDAS_INDEX.match(name)):
            numbers[name] = _number_column(column, name, path)
        else:
            others.append(name)
    return Columns(str(path), names, numbers, probabilities, others)


def _text_column(column: Any, name: str, path: Path) -> Names:
    """The texts in the order of their first appearance, whatever order a dictionary has."""
    if column.null_count:
        row = int(column.is_null().to_numpy(zero_copy_only=False).argmax())
        message = f"column {name}, row {row + 1}: expected a name, got nothing (fill it, or drop the row)"
        raise ConfigError([message], str(path))
    try:
        encoded = column.dictionary_encode() if not hasattr(column, "indices") else column
    except NotImplementedError:  # of lists, for example
        raise ConfigError([f"column {name}: expected names, got {column.type} (convert it)"], str(path)) from None
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    found, first, codes = np.unique(codes, return_index=True, return_inverse=True)
    order = first.argsort()
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    texts = encoded.dictionary.to_pylist()
    return Names(rank[codes].astype(np.intp), tuple(str(texts[int(found[place])]) for place in order))


def _number_column(column: Any, name: str, path: Path) -> Numbers:
    try:
        values: Numbers = np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)
    except (ValueError, TypeError):
        raise ConfigError([f"column {name}: expected numbers, got {column.type} (convert it)"], str(path)) from None
    return values


def _list_column(column: Any, path: Path) -> Array | None:
    """(R, L) from lists of one size, NaN in a row without."""
    if column.null_count == len(column):
        return None
    there = column.is_valid().to_numpy(zero_copy_only=False)
    try:
        flat = np.asarray(column.flatten().to_numpy(zero_copy_only=False))  # of the rows that are there
    except AttributeError:  # no list
        flat = np.array("")
    if flat.dtype.kind not in "fiu":
        fix = "a list of numbers a row"
        raise ConfigError([f"column probabilities: expected {fix}, got {column.type} (convert it)"], str(path))
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
    arrow = import_runtime("pyarrow", "Parquet", INSTALL_HINT)
    parquet = import_runtime("pyarrow.parquet", "Parquet", INSTALL_HINT)
    n_models, n_examples = len(trace.models), len(trace)
    rows = np.tile(np.arange(n_examples, dtype=np.int32), n_models)
    of_model = np.repeat(np.arange(n_models, dtype=np.int32), n_examples)
    predictions = np.concatenate([one.predictions for one in trace.models.values()])
    small = np.int16 if max(trace.labels.max(), predictions.max()) <= np.iinfo(np.int16).max else np.int32
    columns = {
        "example_id": arrow.DictionaryArray.from_arrays(rows, arrow.array(trace.ids)),
        "label": arrow.array(np.tile(trace.labels.astype(small), n_models)),
        "model": arrow.DictionaryArray.from_arrays(of_model, arrow.array(list(trace.models))),
        "prediction": arrow.array(predictions.astype(small)),
    }
    if (scores := _float_column(arrow, [one.scores for one in trace.models.values()], n_examples)) is not None:
        columns["score"] = scores
    if trace.has_probabilities:
        stacked = np.concatenate([np.asarray(one.probabilities, np.float16) for one in trace.models.values()])
        flat = arrow.array(stacked.reshape(-1))
        columns["probabilities"] = arrow.FixedSizeListArray.from_arrays(flat, stacked.shape[1])
    if (seconds := _float_column(arrow, [one.latency_s for one in trace.models.values()], n_examples)) is not None:
        columns["latency_s"] = seconds
    if trace.payload_bytes is not None:
        columns["payload_bytes"] = arrow.array(np.tile(trace.payload_bytes, n_models))
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.table(columns), path, compression="zstd", compression_level=19)


def _float_column(arrow: Any, parts: Sequence[Array | None], n: int) -> Any:
    """The parts one after another, n nulls where a model has none; None where no model has any."""
    if all(part is None for part in parts):
        return None
    nothing = arrow.nulls(n, arrow.float32())
    return arrow.concat_arrays([nothing if part is None else arrow.array(part) for part in parts])


PREFIX = "zoo:"
TEST, CALIBRATION = "test.parquet", "calibration.parquet"


def tasks() -> list[str]:
    """The bundled tasks that have traces."""
    return [task for task, folder in zoo.installed().items() if (folder / TEST).exists()]


def task_of(reference: str) -> str | None:
    """The bundled task that a reference names; None: it is a path of the user's."""
    if reference.startswith(PREFIX):
        return reference.removeprefix(PREFIX).split("/")[0]
    return reference if reference in zoo.TASKS and not Path(reference).exists() else None


def find_trace(reference: str) -> tuple[Path, str]:
    """The file of a bundled trace, and its name for titles: "cifar10-test".

    Raises:
        ConfigError: no such task, or no such trace in its folder.
    """
    named = reference.removeprefix(PREFIX)
    task, _, file = named.partition("/")
    path = zoo.find(f"{task}/{file or TEST}")
    if path.name not in (TEST, CALIBRATION) or not path.exists():
        known = ", ".join(f"{PREFIX}{task}/{name}" for task in tasks() for name in (TEST, CALIBRATION))
        raise ConfigError([f'expected a bundled trace ({known}), got "{reference}" (or write the path of a file)'])
    return path, f"{task}-{path.stem}"


def flops_of(task: str, trace: Trace, folder: Path | None = None) -> Costs | None:
    """What the task's manifest counts for the models of a trace; None where it does not know them all.

    Args:
        folder: with the manifest; None: the installed task's.
    """
    models = read_manifest(folder or zoo.find(task)).models
    known = {name: models[name].flops for name in trace.models if name in models}
    found = {name: flops for name, flops in known.items() if flops is not None}
    if len(found) < len(trace.models):
        return None
    return Costs("flops", found, f"two for each multiply-add of one example (the manifest of zoo:{task})")


def read_trace(reference: Path) -> Trace:
    """The trace in a Parquet, TSV or CSV file, in long form or wide (one column per model or exit).

    Args:
        reference: a file, or a bundled trace: zoo:cifar10/test.parquet, or cifar10.
    Raises:
        ConfigError: it is none; names the file, the column, the row and what to correct.
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
            f"or name a bundled one: {', '.join(tasks()) or 'pip install ./zoo'})"
        )
        raise ConfigError([message], str(path))
    columns = read_text(path) if path.suffix in SUFFIXES else read_parquet(path)
    return to_trace(to_long_form(columns) if is_wide(columns) else columns, path.stem)


def read_costs(reference: str | None, trace: Trace) -> list[Costs]:
    """Every kind of cost that is known of all models in the trace; the file's first, in its order.

    Args:
        reference: a YAML file, the name of a bundled one, or a table of prices (TSV or CSV: `task`, `model` and
            `price_usd_per_10k_calls`); None: what comes with the trace (FLOPs of the bundled tasks, latencies where
            they were recorded).
    Raises:
        ConfigError: a model of the trace is missing in the file, or a number is none.
    """
    if reference is not None and Path(reference).suffix in SUFFIXES:
        found = [_prices(Path(reference), trace)]
    else:
        found = [] if reference is None else costs_in(reference, list(trace.models))
    if trace.task is not None and not any(costs.kind == "flops" for costs in found):
        flops = flops_of(trace.task, trace)
        found += [] if flops is None else [flops]
    seconds = {name: trace.latency_s(name) for name in trace.models}
    known = {name: value for name, value in seconds.items() if value is not None}
    if len(known) == len(seconds) and not any(costs.kind == "latency_s" for costs in found):
        found.append(Costs("latency_s", known, "medians of the trace, one example at a time"))
    return found


PRICE = "price_usd_per_10k_calls"


def _prices(path: Path, trace: Trace) -> Costs:
    """The prices of the task that the trace is named after."""
    table = read_table(path)
    for column in ("task", "model", PRICE):
        if column not in table:
            raise ConfigError([f"expected a column {column}, got none (or write a YAML file of costs)"], str(path))
    prices = numbers_of(path, PRICE, table[PRICE])
    rows = [row for row, task in enumerate(table["task"]) if task.lower() in trace.name.lower().split("_")]
    found = {table["model"][row]: float(prices[row]) for row in rows if prices[row] >= 0}
    missing = [name for name in trace.models if name not in found]
    if missing:
        message = f'expected a price of "{missing[0]}" for the task of {trace.name}, got none (add a line)'
        raise ConfigError([message], str(path))
    return Costs("usd_per_10k_calls", {name: found[name] for name in trace.models}, f"prices in {path.name}")


def is_wide(columns: Columns) -> bool:
    """One row per example, and a column of predictions for each model, as multi-exit networks are recorded."""
    return "model" not in columns.names and "prediction" not in columns.numbers and "label" in columns.numbers


def to_long_form(columns: Columns) -> Columns:
    """A wide table in long form: no scores are known."""
    models = [name for name in columns.numbers if name not in ("label", "score", "latency_s", "payload_bytes")]
    ids = columns.names.get("example_id")
    if ids is None or not models:
        raise columns.wrong("model", None, "expected example_id, label and a column of predictions per model, got none")
    of_model = Names(np.repeat(np.arange(len(models)), len(ids.codes)), tuple(models))
    labels = np.tile(columns.numbers["label"], len(models))
    predictions = np.concatenate([labels_in(columns, name) for name in models]).astype(np.float64)
    names = {"example_id": Names(np.tile(ids.codes, len(models)), ids.texts), "model": of_model}
    return Columns(columns.source, names, {"label": labels, "prediction": predictions})
