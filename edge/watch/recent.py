"""The newest decisions, and how long decisions took."""

from __future__ import annotations

import bisect
import io
import itertools
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from coe.cascade.types import Array

from ..sinks import Outcome, as_record
from ..sources import Example

N_NEWEST = 24
MOST_BYTES = 64 * 1024  # of one thumbnail
SECONDS = (50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
TYPES = ((b"\x89PNG", "image/png"), (b"\xff\xd8\xff", "image/jpeg"))


@dataclass(frozen=True, slots=True)
class Seen:
    """One decision: its number from 1, its record, and the example as it may be shown."""

    number: int
    record: dict[str, Any]
    value: bytes | Array | None


class Recent:
    """A watcher. Memory stays what it is once the newest are all there.

    Args:
        thumbnails: keep examples to show.
        clears: whether an outcome's example may be shown; those held back are not in any case.
    """

    def __init__(
        self,
        labels: tuple[str, ...],
        *,
        thumbnails: bool,
        clears: Callable[[Outcome], bool] = lambda outcome: outcome.reason != "held-back",
    ) -> None:
        self.labels = labels
        self.thumbnails = thumbnails
        self._clears = clears
        self.times = [0] * (len(SECONDS) + 1)  # decisions by how long they took, the last: longer than all
        self.time_s = 0.0
        self.reasons: Counter[str] = Counter()  # decisions and failures that are not what was wanted
        self.n_deferred = 0
        self._numbers = itertools.count(1)
        self._newest: deque[Seen] = deque(maxlen=N_NEWEST)
        self._shown: deque[list[Seen]] = deque(maxlen=2)  # lists given to a page, which then asks for their thumbnails
        self._lock = threading.Lock()

    def saw(self, example: Example, outcome: Outcome) -> None:
        reason = outcome.reason
        value = example.value if self.thumbnails and self._clears(outcome) else None
        if value is not None and not _is_image(value):
            value = None
        with self._lock:
            self._newest.append(Seen(next(self._numbers), as_record(outcome, self.labels), value))
            if outcome.corrects:
                return
            self.n_deferred += outcome.deferred
            if reason:
                self.reasons[reason if outcome.deferred else "unreadable"] += 1
            if outcome.decision is not None:
                self.times[bisect.bisect_left(SECONDS, outcome.latency_s)] += 1
                self.time_s += outcome.latency_s

    def newest(self) -> list[dict[str, Any]]:
        """The newest first: their records, with `number`, and `thumbnail` where there is one to ask for.

        A thumbnail can be asked for as long as its decision is in one of the last two of these lists.
        """
        with self._lock:
            newest = list(self._newest)
            self._shown.append(newest)
        return [seen.record | {"number": seen.number, "thumbnail": seen.value is not None} for seen in reversed(newest)]

    def thumbnail(self, number: int) -> tuple[bytes, str] | None:
        """The example of a decision, as an image, and its media type; None where there is none."""
        with self._lock:
            shown = itertools.chain(*reversed(self._shown))
            value = next((seen.value for seen in shown if seen.number == number), None)
        if value is None:
            return None
        if isinstance(value, bytes):
            return value, next(kind for magic, kind in TYPES if value.startswith(magic))
        return _as_png(value), "image/png"


def _is_image(value: bytes | Array) -> bool:
    """PNG, JPEG or uint8 pixels (H, W), (H, W, 1) or (H, W, 3), and small enough."""
    if isinstance(value, bytes):
        return len(value) <= MOST_BYTES and value.startswith(tuple(magic for magic, _ in TYPES))
    is_picture = value.ndim == 2 or (value.ndim == 3 and value.shape[2] in (1, 3))
    return bool(value.dtype == np.uint8 and is_picture and 0 < value.nbytes <= MOST_BYTES)


def _as_png(pixels: Array) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels).save(buffer, "PNG")
    return buffer.getvalue()
