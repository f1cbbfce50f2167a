"""The server's life: load, warm, serve, drain, close."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from coe.assembly import open_tier
from coe.cascade.cascade import Cascade
from coe.cascade.errors import ConfigError, TierError
from coe.cascade.rule import Always
from coe.cascade.tier import Tier
from coe.models.inputs import Door
from coe.wire.remote import remote_of
from coe.wire.service import SERVICE, server_options
from coe.wire.servicer import InferenceServicer, Served

from .batcher import BatchedTier
from .config import ServerConfig

log = logging.getLogger(__name__)


class Server:
    """Serves a config's cascade, and each of its local tiers, over gRPC.

    Args:
        say: told what is loaded and on what it runs.
    Raises:
        CascadeError: a model cannot be loaded, the next server is of another task, or the port cannot be bound.
    """

    def __init__(self, config: ServerConfig, say: Callable[[str], None] = log.info) -> None:
        self.config = config
        self._is_ready = False
        self._stopped = threading.Event()
        self._tiers: list[Tier] = []
        try:
            for tier in config.cascade.tiers:
                self._tiers.append(self._batched(open_tier(tier, config.cascade, say)))
            self._greet(say)
            self.models = self._served()
            self._health = health.HealthServicer()
            self._server = self._build()
            self.port = self._bind()
        except BaseException:
            self._close_tiers()
            raise

    def start(self) -> None:
        """Accept calls: every member was tried out as it loaded, so the server is warm."""
        self._server.start()
        self._set_ready(True)

    def stop(self) -> None:
        """Not ready; no new calls; those under way may finish within `grace_s`; then close. Twice is fine."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        self._set_ready(False)
        self._server.stop(self.config.grace_s).wait()
        self._calls.shutdown(wait=True, cancel_futures=True)  # a call that was cut off may still be computing
        self._close_tiers()

    def _greet(self, say: Callable[[str], None]) -> None:
        """Ask the next server who it is. One of another task is an error; one that is not there yet is not."""
        for tier in self._tiers:
            if remote := remote_of(tier):
                try:
                    remote.metadata()
                except TierError as error:
                    say(f"warning: {error}; the tier before it answers until it can be reached")

    def _batched(self, tier: Tier) -> Tier:
        """Local tiers are asked in batches; a remote one takes calls side by side as they are."""
        if tier.waits:
            return tier
        config = self.config
        return BatchedTier(
            tier, max_batch=config.max_batch, max_delay_s=config.max_delay_s, max_queued=config.max_queued
        )

    def _served(self) -> dict[str, Served]:
        config = self.config
        cascades = {config.model: self._cascade(self._tiers)}
        for tier in self._tiers:
            if not tier.waits:
                cascades[f"{config.model}-{tier.name}"] = self._cascade([tier])
        task = config.cascade.task
        door = Door(task.contract)
        door.warm_up()
        is_image = task.contract.kind == "image"
        offered: tuple[str, tuple[int, ...]] = ("BYTES", (-1,)) if is_image else ("FP32", (-1, *task.contract.shape))
        return {
            name: Served(
                name,
                task.fingerprint,
                task.labels,
                offered,
                door,
                cascade.decide,
                cascade.n_tiers,
            )
            for name, cascade in cascades.items()
        }

    def _cascade(self, tiers: Sequence[Tier]) -> Cascade:
        """Its last tier asks every member, because a caller may want the vote itself."""
        last_rule = Always(pools_scores=tiers[-1].rule.pools_scores, asks_all=True)
        return Cascade(tiers, keep_last_answer=self.config.cascade.keep_last_answer, last_rule=last_rule)

    def _build(self) -> grpc.Server:
        config = self.config
        servicer = InferenceServicer(
            self.models, lambda: self._is_ready, max_rows=config.max_rows, max_bytes=config.max_message_bytes
        )
        self._calls = ThreadPoolExecutor(config.max_calls, "coe-call")
        server = grpc.server(
            self._calls,
            options=server_options(config.max_message_bytes),
            maximum_concurrent_rpcs=config.max_calls,
        )
        server.add_generic_rpc_handlers((servicer.handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if config.reflection:
            _add_reflection(server)
        return server

    def _bind(self) -> int:
        host = self.config.host
        bracketed = f"[{host}]" if ":" in host and not host.startswith("[") else host  # an IPv6 address
        address = f"{bracketed}:{self.config.grpc_port}"
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError:
            port = 0
        if port == 0:
            raise ConfigError([f"expected a free port, got {address} which cannot be bound (set --grpc-port)"])
        return port

    def _set_ready(self, ready: bool) -> None:
        self._is_ready = ready
        state = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", SERVICE, *self.models):
            self._health.set(name, state)

    def _close_tiers(self) -> None:
        for tier in self._tiers:
            tier.close()


def _add_reflection(server: grpc.Server) -> None:
    from google.protobuf import descriptor_pool
    from grpc_reflection.v1alpha import reflection

    from coe.wire import inference_pb2

    pool = descriptor_pool.DescriptorPool()  # ours and health's together: neither's own pool has both
    for module in (inference_pb2, health_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    names = (SERVICE, health.SERVICE_NAME)
    reflection.enable_server_reflection(names, server, pool=pool)
