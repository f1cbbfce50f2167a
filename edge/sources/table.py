"""Rows of a table as they come, a sensor's in windows; and examples of a file or folder of any form that is read.

source: {kind: csv, path: vibration.csv, columns: [ax, ay, az], label: state, window: 128, hop: 64}
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from coe.cascade.errors import ConfigError, InputError, NotUsableNow, describe_error
from coe.config.manifest import Task
from coe.models.labelled import TableReader, number_of, rows_in
from coe.models.tables import Rows

from .base import Example
from .config import SourceConfig
from .jsonlines import read_lines


class TableSource:
    """A row's example, or a window's, named by its `id` column or by its last row's number.

    A row that cannot be read is an example with an error; the next one is read, and a window begins anew.

    Raises:
        NotUsableNow: there is no such file. ConfigError: its columns are not what the task takes.
    """

    def __init__(self, config: SourceConfig, task: Task) -> None:
        self.config, self.task = config, task
        self.stem = "row" if config.path is None else config.path.stem
        if config.path is None:
            if sys.stdin is None:
                raise ConfigError(["source: expected a table on standard input, which is closed (pipe it in)"])
            return
        if not config.path.is_file():
            raise NotUsableNow([f"source.path: expected a file, got {config.path} (create it, or correct the path)"])
        with config.path.open("rb") as stream:
            self._open(stream, threading.Event())  # what is wrong with its columns is known before it is run

    def examples(self, stop: threading.Event) -> Iterator[Example]:
        if self.config.path is None:
            yield from self._examples(sys.stdin.buffer, stop)
            return
        with self.config.path.open("rb") as stream:
            yield from self._examples(stream, stop)

    def _open(self, stream: BinaryIO, stop: threading.Event) -> tuple[Rows, TableReader]:
        lines = (line.decode("utf-8", "replace") + "\n" for line in read_lines(stream, stop))
        config, folder = self.config, Path() if self.config.path is None else self.config.path.parent
        try:
            rows = Rows(lines)
            form = (config.columns, config.label, config.window, config.hop)
            return rows, TableReader(rows.names, self.task.input_spec, folder, *form)
        except (ValueError, InputError) as error:
            raise ConfigError([f"source.path: {config.path or 'standard input'}: {error}"]) from None

    def _examples(self, stream: BinaryIO, stop: threading.Event) -> Iterator[Example]:
        rows, reader = self._open(stream, stop)
        while True:
            name = f"{self.stem}-{rows.number + 1:05d}"
            cells = None
            try:
                cells = next(rows)
                name = reader.id_of(cells) or f"{self.stem}-{rows.number:05d}"
                found = reader.add(cells)
                if found is not None:
                    yield Example(name, found[0], number_of(found[1], self.task.labels))
            except StopIteration:
                return
            except (ValueError, InputError, OSError) as error:
                if cells is None:
                    reader.begin_anew()
                yield Example(name, None, error=f"cannot be read: {describe_error(error)}")


class PlaceSource:
    """The examples of a folder or a file, with their labels, as `coe.models.labelled` reads them."""

    def __init__(self, place: Path, task: Task) -> None:
        if not place.exists():
            raise NotUsableNow([f"source.path: expected a file, got {place} (create it, or correct the path)"])
        self.place, self.task = place, task

    def examples(self, stop: threading.Event) -> Iterator[Example]:
        for name, value, label in rows_in(self.place, self.task.input_spec):
            if stop.is_set():
                return
            try:
                yield Example(name, value, number_of(label, self.task.labels))
            except ValueError as error:
                yield Example(name, None, error=f"cannot be read: {error}")
