"""Everything that watches the server, put together as the settings say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from cloud.config import ObserveConfig
from coe.protocol import trace_context
from coe.protocol.core import Gate, Request, RequestObserver

from .logs import RequestLog
from .metrics import Metrics
from .status import ServerView, StatusJson, page
from .tally import History, Tally
from .tracing import Tracer

Page = Callable[[str], tuple[bytes, dict[str, str]]]  # from a request's Accept header: body and headers
SAMPLE_S = 1.0


class Observer:
    """What the plane is given (`gates`, before all others, and `watchers`), and what the HTTP port offers (`pages`).

    Everything is called on the event loop.

    Raises:
        RuntimeMissing: what a setting asks for is not installed.
    """

    def __init__(self, settings: ObserveConfig, watched: ServerView) -> None:
        self.tally = Tally()
        self.history = History(self.tally, watched)
        self._metrics = Metrics(self.tally, watched) if settings.metrics else None
        self._status = StatusJson(watched, self.tally, self.history) if settings.page else None
        self._tracer = Tracer(settings) if settings.traces else None
        tracing: tuple[Any, ...] = () if self._tracer is None else (self._tracer,)
        counting = (self.tally,) if settings.metrics or settings.page else ()  # nobody could see it otherwise
        self.gates: tuple[Gate, ...] = (*counting, *(tracing or (TraceRelay(),)))
        self.watchers: tuple[RequestObserver, ...] = (*counting, RequestLog(settings.log_requests), *tracing)

    async def run(self) -> None:
        """Until cancelled: look at the queue, and close the history's slots."""
        while True:
            self.history.sample()
            await asyncio.sleep(SAMPLE_S)

    @property
    def pages(self) -> dict[str, Page]:
        """What the HTTP port offers, by path."""
        pages: dict[str, Page] = {}
        if self._status is not None:
            told = self._status
            pages |= {"/": lambda accept: page(), "/status.json": lambda accept: told()}
        if self._metrics is not None:
            pages["/metrics"] = self._metrics.expose
        return pages

    def close(self) -> None:
        """After the last request: send the traces that are left."""
        if self._tracer is not None:
            self._tracer.close()


class TraceRelay:
    """A gate that hands a caller's trace on to the next server, where none is recorded here."""

    def enter(self, request: Request) -> None:
        if request.trace:
            trace_context.relay(request.trace)

    def leave(self, request: Request) -> None:
        """Nothing: the request's context ends with it."""
