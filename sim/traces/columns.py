"""From the columns of a file to a trace, with every error named by file, column and row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.cascade import ConfigError
from coe.cascade.types import Array

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
    """

    source: str
    names: Mapping[str, Names]
    numbers: Mapping[str, Numbers] = field(default_factory=dict)
    probabilities: Array | None = None

    def wrong(self, column: str, row: int | None, message: str) -> ConfigError:
        """The error; rows count from 1, the header not among them."""
        where = f"column {column}" if row is None else f"column {column}, row {row + 1}"
        return ConfigError([f"{where}: {message}"], self.source)


def to_trace(columns: Columns, name: str) -> Trace:
    """The trace in a long-form table.

    Raises:
        ConfigError: names the file, the column, the row and how to mend it.
    """
    for column in NEEDED:
        if column not in columns.names and column not in columns.numbers:
            raise columns.wrong(column, None, f"expected this column, got none (a trace has {KNOWN})")
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
        raise columns.wrong("label", row, f"expected one label for {ids.texts[example]}, got {found} (mend the row)")
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
        raise columns.wrong(
            "model", None, f"expected every model on every example, got none of {model} on {example} (record it)"
        )
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
