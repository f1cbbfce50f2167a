"""Labelled texts: how the published files are read, and which of them are train, calibration and test."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.cascade.errors import ConfigError

Labels = NDArray[np.int64]
SEED = 0  # of the split into train and calibration


@dataclass(frozen=True, slots=True)
class Split:
    """B labelled texts."""

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    labels: Labels  # (B,)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: NDArray[np.intp]) -> Split:
        return Split(tuple(self.ids[row] for row in rows), tuple(self.texts[row] for row in rows), self.labels[rows])


@dataclass(frozen=True, slots=True)
class Task:
    """A text task and where its examples are.

    Args:
        title: for people.
        learning, test: the data files, in the folder a user names: .tsv, .csv or .parquet.
        text: the column that holds the texts; the others are `id` (made up where there is none) and `label`.
        n_calibration: examples of the learning file that are held back from training.
        max_length: tokens a member sees of a text, at most.
        citation: what the report says of the data.
    """

    name: str
    title: str
    labels: tuple[str, ...]
    learning: str
    test: str
    text: str
    n_calibration: int
    max_length: int
    citation: str


def load_learning(task: Task, folder: Path) -> tuple[Split, Split]:
    """Train and calibration.

    Raises:
        ConfigError: a file is missing, or not of the expected columns.
    """
    return split(read(task, folder / task.learning), task.n_calibration)


def load_test(task: Task, folder: Path) -> Split:
    """The test examples, which nothing is chosen by."""
    return read(task, folder / task.test)


def split(every: Split, n_calibration: int) -> tuple[Split, Split]:
    """Train and calibration, at random by the seed. A text that comes twice goes to one side only."""
    group = {text: place for place, text in enumerate(dict.fromkeys(every.texts))}
    places = np.array([group[text] for text in every.texts])  # (B,)
    rank = np.random.default_rng(SEED).permutation(len(group))[places]  # (B,) the same for equal texts
    cut = np.sort(rank)[n_calibration - 1]
    return every.take(np.flatnonzero(rank > cut)), every.take(np.flatnonzero(rank <= cut))


def read(task: Task, path: Path) -> Split:
    """Every example of a data file.

    Raises:
        ConfigError: it is missing, or has other columns or labels.
    """
    if not path.exists():
        raise ConfigError([f"expected {task.title}'s {path.name} in {path.parent}, found none (name its folder)"])
    rows = _read_parquet(path) if path.suffix == ".parquet" else _read_table(path)
    missing = {task.text, "label"} - set(rows[0] if rows else ())
    if missing:
        raise ConfigError([f"expected the columns {task.text} and label, got none of {', '.join(missing)}"], str(path))
    labels = np.array([int(row["label"]) for row in rows], dtype=np.int64)
    if not ((labels >= 0) & (labels < len(task.labels))).all():
        found = sorted(set(labels.tolist()))
        raise ConfigError([f"expected labels 0 to {len(task.labels) - 1}, got {found}"], str(path))
    ids = tuple(str(row.get("id") or f"{path.stem}-{place:05d}") for place, row in enumerate(rows))
    return Split(ids, tuple(str(row[task.text]) for row in rows), labels)


def _read_table(path: Path) -> Sequence[dict[str, Any]]:
    """Tab-separated without quoting, as SST-2 is published, or plain .csv."""
    with path.open(encoding="utf-8", newline="") as lines:
        if path.suffix == ".tsv":
            return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
        return list(csv.DictReader(lines))


def _read_parquet(path: Path) -> Sequence[dict[str, Any]]:
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    rows: Sequence[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows
