"""A table of predictions: what every model answered on the same examples, to be replayed through any cascade."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.cascade import Batch
from coe.cascade.types import Array

Rows = NDArray[np.intp]
CHUNK = 2048  # examples worked on together: bounds the memory that a thousand labels take


@dataclass(frozen=True, slots=True)
class Answers:
    """What one model answered on each example; None where a column was not recorded.

    Args:
        predictions: (B,) int32 top-1 labels.
        scores: (B,) float32, the model's score of its own prediction.
        probabilities: (B, L) float.
        latency_s: (B,) float32, of one example alone.
    """

    predictions: NDArray[np.int32]
    scores: NDArray[np.float32] | None = None
    probabilities: Array | None = None
    latency_s: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, outputs: Array, latency_s: NDArray[np.float32] | None = None) -> Answers:
        """From a model's outputs (B, L) and its seconds (B,)."""
        predictions = outputs.argmax(axis=1)
        scores = outputs[np.arange(len(predictions)), predictions]
        kept = outputs.astype(np.float16)
        return cls(predictions.astype(np.int32), scores.astype(np.float32), kept, latency_s)

    def entropy(self) -> NDArray[np.float32]:
        """(B,) of the probabilities, in nats."""
        assert self.probabilities is not None
        entropy = np.empty(len(self.predictions), dtype=np.float32)
        for start in range(0, len(entropy), CHUNK):
            p = np.clip(self.probabilities[start : start + CHUNK].astype(np.float64), 1e-12, 1.0)
            entropy[start : start + CHUNK] = -(p * np.log(p)).sum(axis=1)
        return entropy

    def take(self, rows: Rows) -> Answers:
        """The answers on `rows` (A,), in that order."""
        columns: dict[str, Any] = {}
        for name in self.__slots__:
            column = getattr(self, name)
            columns[name] = None if column is None else column[rows]
        return Answers(**columns)


@dataclass(frozen=True, slots=True)
class Trace:
    """A table of predictions, one row per example and model.

    Args:
        name: of the file, for titles.
        ids: B names of the examples.
        labels: (B,) int32, the truth.
        models: by name, in the order of the file.
        payload_bytes: (B,) int32, of the example as a device would send it; None: not recorded.
        task: the bundled task it was recorded of; None: it is a file of the user's.
    """

    name: str
    ids: tuple[str, ...]
    labels: NDArray[np.int32]
    models: Mapping[str, Answers]
    payload_bytes: NDArray[np.int32] | None = None
    task: str | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self) -> Batch:
        """Every example, in order, by its row number: x is (B, 1), as recorded tiers take it."""
        return Batch(self.ids, np.arange(len(self))[:, None])

    @property
    def has_probabilities(self) -> bool:
        """True if those of every model are known."""
        return all(answers.probabilities is not None for answers in self.models.values())

    @property
    def has_scores(self) -> bool:
        return all(answers.scores is not None for answers in self.models.values())

    def right(self, model: str) -> NDArray[np.bool_]:
        """(B,) where the model's prediction is the label."""
        right: NDArray[np.bool_] = self.models[model].predictions == self.labels
        return right

    def accuracy(self, model: str) -> float:
        return float(self.right(model).mean())

    def latency_s(self, model: str) -> float | None:
        """Median over the examples; None where it was not recorded."""
        seconds = self.models[model].latency_s
        return None if seconds is None else float(np.median(seconds))

    def take(self, rows: Rows) -> Trace:
        """The examples at `rows` (A,), in that order."""
        return replace(
            self,
            ids=tuple(self.ids[row] for row in rows.tolist()),
            labels=self.labels[rows],
            models={name: answers.take(rows) for name, answers in self.models.items()},
            payload_bytes=None if self.payload_bytes is None else self.payload_bytes[rows],
        )

    def only(self, models: Sequence[str]) -> Trace:
        """The same examples with these models alone."""
        return replace(self, models={name: self.models[name] for name in models})

    def split(self, share: float, rng: np.random.Generator) -> tuple[Trace, Trace]:
        """(calibration, report): a random `share` of the examples of each label, and the rest.

        Rows are often grouped by label in their source, so a split is drawn label by label.
        """
        order = rng.permutation(len(self))
        by_label = order[np.argsort(self.labels[order], kind="stable")]
        counts = np.bincount(self.labels)
        place = np.concatenate([np.arange(count) for count in counts])  # within its label
        offset = np.repeat(rng.random(len(counts)), counts)  # small labels round up as often as down
        chosen = np.floor(place * share + offset) != np.floor((place + 1) * share + offset)
        return self.take(np.sort(by_label[chosen])), self.take(np.sort(by_label[~chosen]))
