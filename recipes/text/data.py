"""Labelled texts: how the published files are read, and which of them are train, calibration and test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coe.cascade.errors import ConfigError
from sim.studies.record import read_texts

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
    return Split(*read_texts(path, (task.text,), len(task.labels)))
