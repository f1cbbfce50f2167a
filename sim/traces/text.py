"""Traces as TSV or CSV: the same columns, probabilities as numbers with spaces between."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from coe.cascade import ConfigError

from .columns import Columns, Names, Numbers

DELIMITERS = {".tsv": "\t", ".csv": ","}
TEXTS = ("example_id", "model")
NUMBERS = ("label", "prediction", "score", "latency_s", "payload_bytes")


def read_table(path: Path) -> dict[str, list[str]]:
    """The columns of a TSV or CSV file with a header line, as texts.

    Raises:
        ConfigError: it cannot be read, or a row has another number of cells than the header.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, delimiter=DELIMITERS[path.suffix], strict=True))
    except OSError as error:
        raise ConfigError([f"cannot be read: {error.strerror}"], str(path)) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError([f"expected a table in UTF-8 text: {error}"], str(path)) from None
    if not rows:
        raise ConfigError(["expected a header line, got an empty file"], str(path))
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != len(rows[0]):
            message = f"row {number}: expected {len(rows[0])} cells as in the header, got {len(row)} (mend the line)"
            raise ConfigError([message], str(path))
    return {name: [row[place] for row in rows[1:]] for place, name in enumerate(rows[0])}


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
                message = f'column {name}, row {row + 1}: expected a number, got "{cell}" (mend the cell)'
                raise ConfigError([message], str(path)) from None
    return values


def read_text(path: Path) -> Columns:
    """The columns of a trace in a TSV or CSV file."""
    table = read_table(path)
    names = {name: Names.of(table[name]) for name in TEXTS if name in table}
    numbers = {name: numbers_of(path, name, table[name]) for name in NUMBERS if name in table}
    if "model" not in table and "prediction" not in table:  # wide: one column per model
        extra = [name for name in table if name not in (*TEXTS, *NUMBERS)]
        numbers |= {name: numbers_of(path, name, table[name]) for name in extra}
    columns = Columns(str(path), names, numbers)
    if "probabilities" not in table:
        return columns
    lists = [numbers_of(path, "probabilities", cell.split()) for cell in table["probabilities"]]
    width = max(map(len, lists), default=0)
    probabilities = np.full((len(lists), width), np.nan, dtype=np.float32)
    for row, values in enumerate(lists):
        if len(values) not in (0, width):
            raise columns.wrong("probabilities", row, f"expected {width} numbers, got {len(values)} (one per label)")
        probabilities[row, : len(values)] = values
    return Columns(str(path), names, numbers, probabilities)
