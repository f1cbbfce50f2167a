"""What may come in at once. Beyond a limit a call is refused with a hint when to come again; memory never grows."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from coe.cascade.errors import InputError, TooManyCalls
from coe.models.inputs import MAX_PIXELS
from coe.settings import Fields
from coe.wire.plane import Request

LEAST_RETRY_S, MOST_RETRY_S = 0.05, 5.0  # of the hint when to come again
GROWS, SHRINKS = 1.5, 0.8  # each second, while more than MANY are refused, or fewer
MANY = 0.05


@dataclass(frozen=True)
class Limits:
    """The server's limits.

    Args:
        max_batch, max_delay_s, max_queued: of each local tier: rows of one call, how long a call with fewer waits
            for more, rows waiting.
        max_calls: calls under way at once.
        max_calls_per_connection: of one connection; its client keeps the others back.
        max_rows, max_message_bytes: of one request.
        max_pixels: of one request's encoded images together, by their headers, before any is decoded.
        max_text_bytes: of one text.
        max_s: longest a call may take, whatever deadline it came with.
    """

    max_batch: int = 64
    max_delay_s: float = 0.0
    max_queued: int = 1024
    max_calls: int = 256
    max_calls_per_connection: int = 128
    max_rows: int = 1024
    max_message_bytes: int = 64 * 2**20
    max_pixels: int = MAX_PIXELS
    max_text_bytes: int = 2**16
    max_s: float = 60.0


def read_limits(fields: Fields) -> Limits:
    """The `limits:` section."""
    limits = Limits(
        max_batch=fields.integer("max_batch", 64, 1, 65536),
        max_delay_s=fields.number("max_queue_delay_ms", 0.0, high=10_000) / 1000,
        max_queued=fields.integer("max_queued", 1024, 1),
        max_calls=fields.integer("max_calls", 256, 1, 65536),
        max_calls_per_connection=fields.integer("max_calls_per_connection", 128, 1, 65536),
        max_rows=fields.integer("max_rows", 1024, 1, 2**20),
        max_message_bytes=int(fields.number("max_message_mb", 64, 0.01, 2047) * 2**20),
        max_pixels=fields.integer("max_pixels", MAX_PIXELS, 1),
        max_text_bytes=fields.integer("max_text_bytes", 2**16, 1),
        max_s=fields.number("max_seconds", 60.0, 0.001, 86_400),
    )
    fields.finish()
    return limits


class Calls:
    """The gate that counts calls under way.

    The hint when to come again grows while many are refused and shrinks again after, so that callers who keep to it
    together ask for about as much as the server can do. It is spread, so that they do not come back all at once.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self.n_inside = 0
        self.retry_s = LEAST_RETRY_S
        self._clock = clock
        self._since = 0.0
        self._n_taken = self._n_refused = 0  # since then
        self._dice = random.Random(0)

    def enter(self, request: Request) -> None:
        if self.n_inside >= self.limits.max_calls:
            message = f"{self.n_inside} calls are under way, at most {self.limits.max_calls} may be"
            raise TooManyCalls(request.model[:64], message, retry_after_s=self._hint())
        self._check_texts(request)
        if request.remaining_s is None or request.remaining_s > self.limits.max_s:
            request.remaining_s = self.limits.max_s
        self.n_inside += 1
        self._n_taken += 1

    def _hint(self) -> float:
        """Seconds, anew for each caller."""
        self._n_refused += 1
        now = self._clock()
        if now - self._since >= 1.0:
            many = self._n_refused > MANY * (self._n_refused + self._n_taken)
            quiet_s = now - self._since  # seconds without a refusal count as many looks that found few
            factor = GROWS if many and quiet_s < 3.0 else SHRINKS ** min(quiet_s, 30.0)
            self.retry_s = min(max(self.retry_s * factor, LEAST_RETRY_S), MOST_RETRY_S)
            self._since, self._n_taken, self._n_refused = now, 0, 0
        return self.retry_s * self._dice.uniform(0.5, 1.5)

    def leave(self, request: Request) -> None:
        self.n_inside -= 1

    def _check_texts(self, request: Request) -> None:
        """Of BYTES examples none may be longer than a text may be, unless it is an encoded image (see max_pixels)."""
        most = self.limits.max_text_bytes
        for values in request.inputs.values():
            if values.dtype == object:
                for row, value in enumerate(values):
                    if len(value) > most and not value.startswith((b"\x89PNG", b"\xff\xd8")):
                        raise InputError(f"row {row}: expected a text of at most {most} bytes, got {len(value)}")
