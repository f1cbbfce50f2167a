"""Everything that observes the server, put together from the settings."""

from __future__ import annotations

import asyncio
from typing import Any

from cloud.config import ObserveConfig
from coe.protocol import trace_context
from coe.protocol.core import Gate, Request, RequestObserver

from .logs import RequestLog
from .metrics import Metrics
from .status import Page, ServerView, page, status_json
from .tally import History, Tally
from .tracing import Tracer

SAMPLE_S = 1.0


class Observer:
    """The `gates` (before all others) and `watchers` of the `InferenceCore`, and the `pages` of the HTTP port, by path.

    Everything is called on the event loop.

    Raises:
        RuntimeMissing: what a setting asks for is not installed.
    """

    def __init__(self, settings: ObserveConfig, server: ServerView) -> None:
        self.tally = Tally()
        self.history = History(self.tally, server)
        self.pages: dict[str, Page] = {}
        if settings.page:
            self.pages["/"] = lambda accept: page()
            self.pages["/status.json"] = status_json(server, self.tally, self.history)
        if settings.metrics:
            self.pages["/metrics"] = Metrics(self.tally, server).expose
        self._tracer = Tracer(settings) if settings.traces else None
        tracing: tuple[Any, ...] = () if self._tracer is None else (self._tracer,)
        counting = (self.tally,) if self.pages else ()  # nobody could see it otherwise
        self.gates: tuple[Gate, ...] = (*counting, *(tracing or (TraceRelay(),)))
        self.watchers: tuple[RequestObserver, ...] = (*counting, RequestLog(settings.log_requests), *tracing)

    async def run(self) -> None:
        """Sample the history until cancelled."""
        while True:
            self.history.sample()
            await asyncio.sleep(SAMPLE_S)

    def close(self) -> None:
        """After the last request: send the traces that are left."""
        if self._tracer is not None:
            self._tracer.close()


class TraceRelay:
    """A gate that passes a caller's trace on to the next server, where none is recorded here."""

    def enter(self, request: Request) -> None:
        if request.trace:
            trace_context.relay(request.trace)

    def leave(self, request: Request) -> None:
        """Nothing: the request's context ends with it."""
