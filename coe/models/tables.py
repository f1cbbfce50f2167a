"""Tables in text, as spreadsheets, pandas and loggers write them: CSV with any usual delimiter, and TSV.

Rows that hold less than an example are put together: windows of a sensor's rows.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coe.cascade.errors import ConfigError, InputError
from coe.cascade.types import Array

from .input_spec import InputSpec

SUFFIXES = (".csv", ".tsv")
GUESSED = ",;\t|"  # whichever the header line has most of
INDEX = re.compile(r"|Unnamed: \d+|level_\d+")  # names of a column that pandas wrote for its index
DECIMAL_COMMA = re.compile(r"\s*[+-]?\d*,\d+(?:[eE][+-]?\d+)?\s*")
MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
MOST_CELL = 2**24  # characters
LABEL = ("label", "class", "target", "y")  # names that a column may have, the first that is there
ID = ("id", "example_id")

Label = str | int | None  # as written: a name, or a number; None: it is not known


class Rows:
    """The rows of a table, one after another, each of as many cells as the header has names.

    Columns without a name, or with the one that pandas gives an index, are left out. Where the delimiter is not a
    comma, "0,5" is 0.5.

    Args:
        lines: of text; the first with content is the header (a line "sep=;" of Excel before it is passed over).
        delimiter: taken where the header has it; else whichever that has most of.
        quoted: cells may be in double quotes.
    Raises:
        ValueError: no header, or a name twice.
    """

    def __init__(self, lines: Iterable[str], delimiter: str | None = None, *, quoted: bool = True) -> None:
        rest = iter(lines)
        header = next((line for line in rest if line.strip(" \r\n\ufeff") and not line.startswith("sep=")), "")
        header = header.removeprefix("\ufeff")
        if not header:
            raise ValueError("expected a header line, got an empty file")
        bare = re.sub(r'"[^"]*"', "", header)
        self.delimiter = delimiter if delimiter and delimiter in bare else max(GUESSED, key=bare.count)
        quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        form: Any = {"delimiter": self.delimiter, "quoting": quoting, "skipinitialspace": quoted, "strict": True}
        csv.field_size_limit(MOST_CELL)
        try:
            names = [name.strip() for name in next(csv.reader([header], **form))]
        except csv.Error as error:
            raise ValueError(f"expected a header line: {error}") from None
        self._rows = csv.reader(rest, **form)
        self._places = [place for place, name in enumerate(names) if not INDEX.fullmatch(name)]
        self._width = len(names)
        self.names = tuple(names[place] for place in self._places)
        if twice := next((name for name in self.names if self.names.count(name) > 1), None):
            raise ValueError(f'expected each column once, got "{twice}" twice (rename or drop one)')
        self.number = 0  # of the row read last, from 1

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        """The next row that is not blank.

        Raises:
            ValueError: it has other cells than the header; the one after it can be read all the same.
        """
        row: list[str] = []
        while not row:
            try:
                row = next(self._rows)
            except csv.Error as error:
                self.number += 1
                raise ValueError(f"row {self.number}: expected a line of a table: {error}") from None
        self.number += 1
        if len(row) != self._width:
            raise ValueError(
                f"row {self.number}: expected {self._width} cells as in the header, got {len(row)} (correct the line)"
            )
        cells = [row[place] for place in self._places]
        if self.delimiter != ",":
            cells = [cell.replace(",", ".") if DECIMAL_COMMA.fullmatch(cell) else cell for cell in cells]
        return cells


def read_table(path: Path, *, quoted: bool = True) -> dict[str, list[str]]:
    """The columns of a TSV or CSV file with a header line, as texts.

    Raises:
        ConfigError: it cannot be read, or a row has another number of cells than the header.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError([f"cannot be read: {error.strerror}"], str(path)) from None
    encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        lines = io.StringIO(data.decode(encoding), newline="")
    except UnicodeDecodeError as error:
        fix = 'save it as UTF-8; in Excel, as "CSV UTF-8"'
        raise ConfigError([f"expected a table in UTF-8 text: {error} ({fix})"], str(path)) from None
    try:
        rows = Rows(lines, "\t" if path.suffix.lower() == ".tsv" else None, quoted=quoted)
        cells = list(rows)
    except ValueError as error:
        raise ConfigError([str(error)], str(path)) from None
    columns = zip(*cells, strict=True) if cells else [()] * len(rows.names)
    table = {name: list(column) for name, column in zip(rows.names, columns, strict=True)}
    if "index" in table and table["index"] == [str(at) for at in range(len(cells))] and len(table) > 1:
        del table["index"]
    return table


def find_column(names: Iterable[str], wanted: Iterable[str]) -> str | None:
    """The first of the wanted columns that is there, whatever its case and the spaces in it."""
    there = {re.sub(r"[\s_-]+", "_", name.strip().casefold()): name for name in names}
    return next((there[name] for name in wanted if name in there), None)


class TableReader:
    """Puts the numbers in a table's rows together to examples.

    Where a row has fewer numbers than an example, `window` rows in turn are one, and the next one begins `hop` rows
    later; its label is the one that most of its rows have.

    Args:
        names: of the table's columns.
        columns: of numbers, in the model's order; (): all but the label's and the id's.
        label: the label's column; "": one of LABEL, where there is one.
        window: rows; 0: as many as the task's shape asks for.
        hop: rows; 0: as many as the window.
    Raises:
        InputError: the columns do not give what the task takes.
    """

    def __init__(
        self,
        names: Sequence[str],
        spec: InputSpec,
        columns: Sequence[str] = (),
        label: str = "",
        window: int = 0,
        hop: int = 0,
    ) -> None:
        if spec.kind != "tensor":
            raise InputError(f"expected a task of numbers (kind: tensor), got one of {spec.kind}s")
        missing = [name for name in (*columns, *([label] if label else [])) if name not in names]
        if missing:
            raise InputError(f"expected the column {missing[0]}, got {', '.join(names)}")
        found = label or find_column(names, LABEL)
        others = {found, find_column(names, ID)}
        self.columns = tuple(columns) or tuple(name for name in names if name not in others)
        self._label = names.index(found) if found and found not in columns else None
        self._places = [names.index(name) for name in self.columns]
        n = math.prod(spec.shape)
        self.window = window or (n // len(self.columns) if self.columns and n % len(self.columns) == 0 else 0)
        if self.window * len(self.columns) != n:
            listed = f"{len(self.columns)} ({', '.join(self.columns[:8])}{', ..' if len(self.columns) > 8 else ''})"
            wanted = f"{n} columns of numbers" if not window else f"{n / window:g} columns in windows of {window} rows"
            raise InputError(
                f"expected {wanted} for the task's shape {list(spec.shape)}, got {listed} (name them: `columns:`)"
            )
        self.hop = hop or self.window
        self._shape = spec.shape
        self._rows: deque[list[float]] = deque(maxlen=self.window)
        self._labels: deque[Label] = deque(maxlen=self.window)
        self._skip = 0  # rows before the next window begins

    def add(self, cells: Sequence[str]) -> tuple[Array, Label] | None:
        """The example that this row completes, and its label; None where it completes none.

        Raises:
            InputError: a cell is no number; the next window begins after this row.
        """
        try:
            row = [number_in(cells[place], name) for place, name in zip(self._places, self.columns, strict=True)]
        except InputError:
            self._rows.clear()
            self._labels.clear()
            self._skip = 0
            raise
        if self._skip:
            self._skip -= 1
            return None
        self._rows.append(row)
        self._labels.append(None if self._label is None else cells[self._label].strip() or None)
        if len(self._rows) < self.window:
            return None
        x = as_shape(np.array(self._rows, dtype=np.float32), self._shape)
        label = Counter(self._labels).most_common(1)[0][0]
        for _ in range(min(self.hop, self.window)):
            self._rows.popleft()
            self._labels.popleft()
        self._skip = max(0, self.hop - self.window)
        return x, label


def as_shape(rows: Array, shape: tuple[int, ...]) -> Array:
    """(*shape) from (W, C) rows of channels: as they are, by channel where the shape is (C, W), or flat.

    Raises:
        InputError: it holds another number of them.
    """
    if rows.size != math.prod(shape):
        raise InputError(f"expected numbers for the shape {list(shape)}, got {' x '.join(map(str, rows.shape))}")
    inner = tuple(dim for dim in shape if dim != 1)
    by_channel = rows.ndim == 2 and inner == rows.shape[::-1] and inner != rows.shape
    return np.ascontiguousarray(rows.T if by_channel else rows).reshape(shape)


def number_in(cell: str, name: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise InputError(f'column {name}: expected a number, got "{cell}"') from None
