"""Bodies as they stream in: each within its size and its time, and all together within a budget of memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from coe.cascade.errors import TierOverloaded

from .http_errors import HttpError

Receive = Callable[[], Awaitable[Any]]
RETRY_S = 1.0


class Intake:
    """Reads bodies, and remembers how much of them is held.

    Args:
        max_held_bytes: of all bodies read or being read whose requests are not answered yet.
        body_s: longest a body may take to come.
    """

    def __init__(self, max_held_bytes: int, body_s: float) -> None:
        self.max_held_bytes = max_held_bytes
        self.body_s = body_s
        self.n_held_bytes = 0

    @asynccontextmanager
    async def body(self, receive: Receive, headers: Mapping[str, str], most: int) -> AsyncIterator[bytes]:
        """The body, counted as held while the block runs.

        Raises:
            HttpError: it is larger than `most`, or did not come in time, or not in full.
            TierOverloaded: too much is held already.
        """
        declared = headers.get("content-length")
        if declared is not None and int(declared) > most:  # digits: the HTTP parser has seen to it
            raise _too_large(most, declared)
        held = 0
        parts: list[bytes] = []
        try:
            try:
                async with asyncio.timeout(self.body_s):
                    more = True
                    while more:
                        part, more = await _next(receive)
                        held += len(part)
                        self.n_held_bytes += len(part)
                        if held > most:
                            raise _too_large(most, "more")
                        if self.n_held_bytes > self.max_held_bytes:
                            raise TierOverloaded("http", "too many bodies at once", retry_after_s=RETRY_S)
                        parts.append(part)
            except TimeoutError:
                message = f"body: expected all of it within {self.body_s:g} s, got {held} bytes"
                raise HttpError(408, message, {"connection": "close"}) from None
            yield parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            self.n_held_bytes -= held


async def _next(receive: Receive) -> tuple[bytes, bool]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise HttpError(400, "body: expected as many bytes as its Content-Length says, got fewer")
    return message.get("body", b""), message.get("more_body", False)


def _too_large(most: int, got: str) -> HttpError:
    return HttpError(413, f"body: expected at most {most} bytes, got {got} (send fewer rows in each request)")
