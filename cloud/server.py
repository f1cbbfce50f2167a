"""The server process: load, warm up, serve, drain, close."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from coe.protocol.core import InferenceCore, ServedModel
from coe.protocol.credentials import is_loopback
from coe.protocol.servicer import InferenceServicer

from .config import ServerConfig
from .engines.embedded import EmbeddedEngine
from .limits import CallGate, Quota
from .observe.observer import Observer
from .observe.status import ServerView, describe
from .phone_address import announcement, show_qr_code
from .repository import ModelRepository
from .security.identity import Authenticator
from .security.tls import grpc_credentials, http_context, issuer_beside
from .transports.device_page import DeviceFiles, authority_pages
from .transports.grpc_server import GrpcServer
from .transports.rest_server import RestOptions, RestServer

log = logging.getLogger(__name__)
T = TypeVar("T")
LEAVING_S = 0.25  # between NOT_SERVING and closing the ports


class Server:
    """Serves a config's cascade, and each of its local tiers.

    Made outside the event loop, since loading models takes long; started and stopped inside it.

    Args:
        notify: called with a line for each thing loaded, and what it runs on.
    Raises:
        CascadeError: a model cannot be loaded, or the next server is of another task.
    """

    def __init__(self, config: ServerConfig, notify: Callable[[str], None] = log.info) -> None:
        self.config = config
        self._notify = notify
        self.engine = EmbeddedEngine(config, notify)
        self.calls = CallGate(config.limits)
        self._authenticator = Authenticator(config.security)
        self._facts = describe(config.cascade, config.model, self.engine.runs_on)
        observe = config.observe if config.http_port is not None else replace(config.observe, metrics=False, page=False)
        self._device = None if config.http_port is None or config.device is None else DeviceFiles(config.device)
        self._authority = authority_pages(issuer_beside(config.security.certificate))
        self.observer = Observer(
            observe,
            ServerView(
                lambda name: self.core.is_ready(name),
                lambda: self._facts,
                lambda: self.repository.engine.queued(),
                lambda: self.repository.engine.failures(),
            ),
        )
        self.core = InferenceCore(
            self.engine.models,
            max_rows=config.limits.max_rows,
            max_bytes=config.limits.max_message_bytes,
            gates=(*self.observer.gates, self.calls, Quota(config.security.quota, self._authenticator.rate_of)),
            watchers=self.observer.watchers,
        )
        self.repository = ModelRepository(self.core, config, self.engine, self._load, control=config.model_control)
        self.port = self.http_port = 0
        self._grpc: GrpcServer | None = None
        self._http: RestServer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._is_stopped = False

    @property
    def models(self) -> dict[str, ServedModel]:
        return self.core.models

    async def start(self) -> None:
        """Bind, and accept calls: every member was tried out as it loaded, so the server is warm.

        Raises:
            ConfigError: a port cannot be bound.
        """
        config, security = self.config, self.config.security
        who, sent = self._authenticator, self.observer.tally.sent
        servicer = InferenceServicer(
            self.core,
            identify=(lambda context: who.of_grpc(context).name) if security.asks_who else None,
            repository=self.repository,
            sent=sent,
        )
        self._grpc = GrpcServer(servicer, limits=config.limits, reflection=config.reflection)
        credentials = grpc_credentials(security) if security.has_tls else None
        self.port = self._grpc.bind(config.host, config.grpc_port, credentials)
        if config.http_port is not None:
            device = self._device
            options = RestOptions(
                identify=(lambda names, token: who.identify(names, token).name) if security.asks_who else None,
                repository=self.repository,
                pages=self.observer.pages | (device.pages if device else {}),
                folders=device.folders if device else {},
                files=device.files if device else {},
                open_pages=self._authority,
                pages_need_identity=not is_loopback(config.host),
                cors=config.cors,
                sent=sent,
                max_message_bytes=config.limits.max_message_bytes,
            )
            self._http = RestServer(self.core, options)
            tls = http_context(security) if security.has_tls else None
            self.http_port = self._http.bind(config.host, config.http_port, tls)
        await self._grpc.start()
        if self._http is not None:
            await self._http.start()
        self.core.accepts = True
        await self._grpc.health.set_serving(self.models, True)
        loop = asyncio.get_running_loop()
        self._tasks.append(loop.create_task(self.observer.run()))
        if config.reload_s > 0:
            self._tasks.append(loop.create_task(self.repository.watch(config.reload_s)))

    def announce_page(self) -> None:
        """Say on the console where a phone opens the page, or why it cannot; with a QR code on a terminal."""
        if self.config.device is None:
            return
        authority, has_tls = next(iter(self._authority), ""), self.config.security.has_tls
        lines, url = announcement(self.config.device, self.config.host, self.http_port, has_tls, authority)
        for line in lines:
            print(f"coe-cloud: {line}", flush=True)
        show_qr_code(url)

    async def stop(self) -> None:
        """Not ready; no new calls; those under way may finish within `grace_s`; then close. Twice is fine.

        Clients that watch the server's health have a moment to turn away before the ports close: a call that gRPC
        has accepted meanwhile would be cut off, and nobody retries that.
        """
        if self._is_stopped:
            return
        self._is_stopped = True
        self.core.is_leaving = True
        for task in self._tasks:
            task.cancel()
        if self._grpc is not None:
            await self._grpc.health.set_serving(self.models, False)
            await asyncio.sleep(min(LEAVING_S, self.config.grace_s))
        self.core.accepts = False
        transports = [transport for transport in (self._grpc, self._http) if transport is not None]
        await asyncio.gather(*(transport.stop(self.config.grace_s) for transport in transports))
        await self.repository.close()  # a call that was cut off may still be computing
        await asyncio.to_thread(self.observer.close)

    def _load(self, config: ServerConfig) -> EmbeddedEngine:
        """The next generation of models; called on a thread."""
        engine = EmbeddedEngine(config, self._notify)
        self._facts = describe(config.cascade, config.model, engine.runs_on)
        return engine


def run(main: Coroutine[Any, Any, T]) -> T:
    """The result of `main`, run on uvloop where it is installed, which is faster, else on asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
