"""The server's life: load, warm, serve, drain, close."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from coe.wire.plane import Plane
from coe.wire.servicer import Identify, InferenceServicer

from .config import ServerConfig
from .doors.grpc import GrpcDoor
from .engines.embedded import Embedded
from .limits import Calls
from .repository import Repository
from .security.identity import Authenticator
from .security.quota import Quota
from .security.tls import grpc_credentials

log = logging.getLogger(__name__)
T = TypeVar("T")


class Server:
    """Serves a config's cascade, and each of its local tiers.

    Made outside the event loop, since loading models takes long; started and stopped inside it.

    Args:
        say: told what is loaded and on what it runs.
    Raises:
        CascadeError: a model cannot be loaded, or the next server is of another task.
    """

    def __init__(self, config: ServerConfig, say: Callable[[str], None] = log.info) -> None:
        self.config = config
        self._say = say
        self.engine = Embedded(config, say)
        self.repository: Repository | None = None
        self._watch: asyncio.Task[None] | None = None
        self.calls = Calls(config.limits)
        self._authenticator = Authenticator(config.security)
        self.plane = Plane(
            self.engine.models,
            max_rows=config.limits.max_rows,
            max_bytes=config.limits.max_message_bytes,
            gates=(self.calls, Quota(config.security.quota, self._authenticator.rate_of)),
        )
        self.port = 0
        self._door: GrpcDoor | None = None
        self._is_stopped = False

    @property
    def models(self) -> dict[str, Any]:
        return self.plane.models

    async def start(self) -> None:
        """Bind, and accept calls: every member was tried out as it loaded, so the server is warm.

        Raises:
            ConfigError: the port cannot be bound.
        """
        config = self.config
        self.repository = Repository(
            self.plane, config, self.engine, partial(Embedded, say=self._say), control=config.model_control
        )
        self._door = GrpcDoor(
            InferenceServicer(self.plane, identify=self._identify(), repository=self.repository),
            max_message_bytes=config.limits.max_message_bytes,
            max_calls=config.limits.max_calls,
            reflection=config.reflection,
        )
        credentials = grpc_credentials(config.security) if config.security.has_tls else None
        self.port = self._door.bind(config.host, config.grpc_port, credentials)
        await self._door.start()
        self.plane.accepts = True
        await self._door.health.tell(self.models, True)
        if config.reload_s > 0:
            self._watch = asyncio.get_running_loop().create_task(self.repository.watch(config.reload_s))

    def _identify(self) -> Identify | None:
        """Who a gRPC call is from; None where nobody is asked."""
        authenticator = self._authenticator
        return (lambda context: authenticator.of_grpc(context).name) if self.config.security.asks_who else None

    async def stop(self) -> None:
        """Not ready; no new calls; those under way may finish within `grace_s`; then close. Twice is fine."""
        if self._is_stopped:
            return
        self._is_stopped = True
        self.plane.accepts = False
        if self._watch is not None:
            self._watch.cancel()
        if self._door is not None:
            await self._door.health.tell(self.models, False)
            await self._door.stop(self.config.grace_s)
        if self.repository is not None:
            await self.repository.close()  # a call that was cut off may still be computing
        else:
            await asyncio.to_thread(self.engine.close)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop where it is installed, which is faster, else on asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
