"""Deferred examples and the cloud's answers, kept as a labelled set for the next models. `recipes.harvest` reads it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from coe.cascade.types import Array
from coe.models.inputs import suffix_of
from edge.sinks import Event, Outcome
from edge.sinks.jsonlines import repair_last_line
from edge.sources import Example

from .config import HarvestConfig

INDEX = "labels.jsonl"
EXAMPLES = "examples"
MAX_STALE_LINES = 1000  # lines of the index about files that were removed to make room


class Harvest:
    """An outcome observer that writes an example's file, then its line, so that a crash leaves no line without a file.

    It keeps examples that the device deferred and a larger tier answered, at once or later; no degraded answers, and no
    examples for which `may_be_shared` is False. An example that comes twice is one file.

    Raises:
        OSError: its folder cannot be created.
    """

    def __init__(
        self,
        config: HarvestConfig,
        labels: tuple[str, ...],
        notify: Callable[[Event], None] = lambda event: None,
        may_be_shared: Callable[[Outcome], bool] = lambda outcome: True,
    ) -> None:
        self.config = config
        self.labels = labels
        self.n_dropped = 0
        self._notify = notify
        self._may_be_shared = may_be_shared
        self._is_failing = False
        self._lock = threading.Lock()
        self._folder = config.path / EXAMPLES
        self._folder.mkdir(parents=True, exist_ok=True)
        (config.path / INDEX).touch()
        here = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        self._files = {path.name: path.stat().st_size for path in here}  # the oldest first
        self._bytes = sum(self._files.values())
        self._n_lines = 0
        self._recover()

    def on_outcome(self, example: Example, outcome: Outcome) -> None:
        decision = outcome.decision
        is_late = bool(outcome.corrects)
        if decision is None or decision.degraded or not (outcome.deferred or is_late) or example.value is None:
            return
        if not self._may_be_shared(outcome):  # the cloud gave it a label that is never sent, though no member did
            return
        data, suffix = as_file(example.value)
        name = hashlib.sha256(data).hexdigest()[:24] + suffix
        record = {
            "file": f"{EXAMPLES}/{name}",
            "id": outcome.id,
            "label": decision.label,
            "name": self.labels[decision.label],
            "vote": round(decision.vote, 6),
            "score": None if math.isnan(decision.score) else round(decision.score, 6),
            "tier": decision.exit_tier,
            "device_votes": [round(vote, 6) for vote in decision.tier_votes[: decision.exit_tier - 1]],
            "at": round(outcome.at, 3),
        }
        with self._lock:
            try:
                if name not in self._files and self._make_room(len(data)):
                    self._write(name, data, record)
                self._is_failing = False
            except OSError as error:
                self.n_dropped += 1
                if not self._is_failing:
                    self._notify(Event("harvest", {"error": f"{self.config.path}: {error.strerror}"}))
                self._is_failing = True

    def report(self) -> dict[str, Any]:
        return {"examples": len(self._files), "bytes": self._bytes, "dropped": self.n_dropped}

    def _make_room(self, n_bytes: int) -> bool:
        while len(self._files) >= self.config.max_count or self._bytes + n_bytes > self.config.max_bytes:
            self.n_dropped += 1
            if not self.config.drop_oldest or not self._files:
                return False
            self._remove(next(iter(self._files)))
        return True

    def _remove(self, name: str) -> None:
        self._bytes -= self._files.pop(name)
        (self._folder / name).unlink(missing_ok=True)

    def _write(self, name: str, data: bytes, record: dict[str, Any]) -> None:
        path, beside = self._folder / name, self._folder / f".{name}"
        try:
            beside.write_bytes(data)
            os.replace(beside, path)
        except OSError:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
        with (self.config.path / INDEX).open("a", encoding="utf-8") as index:
            index.write(json.dumps(record) + "\n")
        self._files[name] = len(data)
        self._bytes += len(data)
        self._n_lines += 1
        if self._n_lines > 2 * len(self._files) + MAX_STALE_LINES:
            self._compact_index()

    def _compact_index(self) -> None:
        """Remove the lines of files that are gone, or the index would grow without bound."""
        index, beside = self.config.path / INDEX, self.config.path / f".{INDEX}"
        with contextlib.suppress(OSError):  # a full disk: later
            lines = {_file_of(line): line for line in index.read_bytes().splitlines(keepends=True)}
            kept = [line for name, line in lines.items() if name in self._files]
            beside.write_bytes(b"".join(kept))
            os.replace(beside, index)
            self._n_lines = len(kept)

    def _recover(self) -> None:
        """After a crash: remove an incomplete last line, and files that have no line."""
        index = self.config.path / INDEX
        repair_last_line(index)
        lines = index.read_bytes().splitlines()
        self._n_lines = len(lines)
        named = {_file_of(line) for line in lines}
        for name in [name for name in self._files if name not in named]:
            self._remove(name)


def _file_of(line: bytes) -> str:
    """The name of the file that a line of the index is about."""
    name: str = json.loads(line)["file"].rpartition("/")[2]
    return name


def as_file(value: bytes | Array) -> tuple[bytes, str]:
    """The bytes to write for an example, and the suffix of its file."""
    if isinstance(value, bytes):
        return value, suffix_of(value)
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=False)
    return buffer.getvalue(), ".npy"
