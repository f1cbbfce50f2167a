"""Tables in text, as spreadsheets, pandas and loggers write them: CSV with any usual delimiter, and TSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from coe.cascade.errors import ConfigError

SUFFIXES = (".csv", ".tsv")
GUESSED = ",;\t|"  # whichever the header line has most of
INDEX = re.compile(r"|Unnamed: \d+|level_\d+")  # names of a column that pandas wrote for its index
DECIMAL_COMMA = re.compile(r"\s*[+-]?\d*,\d+(?:[eE][+-]?\d+)?\s*")
MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
MOST_CELL = 2**24  # characters


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
