"""The channel on which a tier is called, to be replaced by a new one while calls are under way.

gRPC keeps a connection that has gone silent, as after a switch of networks, for as long as the kernel does: up to a
quarter of an hour, whatever the keepalive (grpc/grpc#32435). A new channel connects anew.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

from coe.cascade.errors import TierUnavailable

from .service import path
from .stream import InferStream


class Line:
    """One channel, and what is called on it.

    Args:
        tier: whose calls these are, for errors.
        stream: whether calls go on a persistent stream.
    """

    def __init__(self, tier: str, channel: grpc.Channel, *, stream: bool) -> None:
        self.channel = channel
        self.infer = channel.unary_unary(path("ModelInfer"), None, None)  # bytes to bytes: sizes are counted
        self.stream = InferStream(tier, channel) if stream else None

    def close(self) -> None:
        """Calls under way are TierUnavailable."""
        if self.stream is not None:
            self.stream.close()
        self.channel.close()


class Lines:
    """The line in use, and those before it on which calls are still under way. Thread-safe.

    Args:
        tier: whose calls these are, for errors.
        dial: opens a line.
    """

    def __init__(self, tier: str, dial: Callable[[], Line]) -> None:
        self._tier = tier
        self._dial = dial
        self._lock = threading.Lock()  # over all below
        self._line = dial()
        self._n_calls = {self._line: 0}  # under way on each line that is open
        self._is_closed = False

    @contextmanager
    def use(self) -> Iterator[Line]:
        """The line in use, which stays open while the block runs.

        Raises:
            TierUnavailable: all are closed, or were in the block.
        """
        with self._lock:
            line = self._line
            if self._is_closed:
                raise TierUnavailable(self._tier, "closed")
            self._n_calls[line] += 1
        try:
            yield line
        except ValueError:  # gRPC's word for a channel that was closed before the call was on its way
            if not self._is_closed:
                raise
            raise TierUnavailable(self._tier, "closed") from None
        finally:
            with self._lock:
                self._n_calls[line] -= 1
                is_over = self._is_over(line)
            if is_over:
                line.close()

    def redial(self) -> None:
        """A new line from here on. The old one is closed when the last call on it has ended; every call has a
        deadline.

        Raises:
            ConfigError: there is no new line; the old one stays.
        """
        line = self._dial()
        with self._lock:
            old, is_late = self._line, self._is_closed
            if not is_late:
                self._line = line
                self._n_calls[line] = 0
                is_over = self._is_over(old)
        if is_late:
            line.close()
        elif is_over:
            old.close()

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            left = list(self._n_calls)
        for line in left:
            line.close()

    def _is_over(self, line: Line) -> bool:
        """Whether nobody will call on it any more; then it is no longer ours. To be called with the lock held."""
        if line is self._line or self._n_calls[line]:
            return False
        del self._n_calls[line]
        return True
