"""The command `coe-cloud serve --engine ray`: deploys each tier with Ray Serve behind Ray's own gRPC port.

Three kinds of processes take part: Ray's proxy, whose port clients call (`ray_proxy`); the ingress, which runs
Algorithm 1 (`ray_ingress`); and each tier's replicas (`ray_tier`). Each tier is an application of its own, so that a
tier outlives the ingress as the server drains.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc

from cloud.config import Placement, ServerConfig
from cloud.security.config import check_exposure
from coe.cascade.errors import ConfigError, ModelError, TierUnavailable
from coe.models.loading import import_runtime
from coe.protocol import inference_pb2 as pb
from coe.protocol.channel import is_address, reachable
from coe.protocol.service import path

from .ray_ingress import RayIngress
from .ray_proxy import ADDED_BY, APPLICATION
from .ray_tier import CANNOT_OPEN, INSTALL, TierReplica

INGRESS = "ingress"  # its deployment's name
ALL_INTERFACES = "0.0.0.0"  # where Ray's gRPC port listens, whatever the config says
CHECK_S = 5.0  # between two checks that the cluster is there
LOGGING = {"enable_access_log": False}  # a line for each request, in each process, costs more than the vote
SETTINGS = {  # of Ray's processes, where nobody set them; a cluster that runs already has its own
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",  # replicas are asynchronous: one loop serves all of them
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",  # between replicas; as actor calls each hop costs twice as much
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),  # pixels are larger than the images they came as
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
}


class Cluster:
    """What this program runs on a Ray cluster.

    Args:
        is_ours: the cluster was started here, for this alone.
    """

    def __init__(self, config: ServerConfig, port: int, *, is_ours: bool) -> None:
        self.config = config
        self.port = port

        self.host = ALL_INTERFACES
        self.models: list[str] = []
        self._is_ours = is_ours
        self._started_serve = False
        self._applications: list[str] = []  # in the order they were deployed
        self._ray = import_runtime("ray", "Ray Serve", INSTALL)
        self._serve = import_runtime("ray.serve", "Ray Serve", INSTALL)
        self._gcs: str = self._ray.get_runtime_context().gcs_address
        self._is_lost = False
        self._environment = {} if is_ours else {"runtime_env": {"env_vars": SETTINGS}}

    def deploy(self) -> int:
        """Deploy everything, the tiers first; the port to call, once a call gets through.

        Raises:
            CascadeError: a model cannot be loaded, or the cluster has no room.
        """
        self._open_port()
        config = self.config
        handles = {}
        for tier in config.cascade.local_tiers:
            placement = config.engine.of(tier.name)
            replica = self._deployment(TierReplica, tier.name, placement)
            handles[tier.name] = self._run(replica.bind(tier, config.cascade, config.limits), tier.name)
            for line in handles[tier.name].describe.remote().result(timeout_s=config.engine.start_s):
                print_line(line)
            scale = placement.autoscaling
            count = f"{placement.replicas} replica(s)" if scale is None else f"{scale.min} to {scale.max} replicas"
            print_line(f"tier {tier.name}: {count}, each with {_books(placement)}")
        ingress = self._deployment(RayIngress, INGRESS, config.engine.ingress)
        handle = self._run(ingress.bind(config, handles), "")
        self.models = handle.describe.remote().result(timeout_s=config.engine.start_s)
        self._wait_for_port()
        return self.port

    def check_alive(self) -> None:
        """Raises TierUnavailable where the cluster itself is gone."""
        try:
            dial(self._gcs)
        except OSError as error:
            self._is_lost = True
            raise TierUnavailable("cluster", f"Ray at {self._gcs} is gone ({error.strerror or error})") from None

    def take_down(self) -> None:
        """The ingress first, whose calls still need the tiers; then the tiers. Other applications stay."""
        with contextlib.suppress(TierUnavailable):
            self.check_alive()
        if self._is_lost:
            return  # any request to Ray would take a minute, and end the process
        for name in reversed(self._applications):
            self._serve.delete(name)
        if self._started_serve and not self._is_ours and not self._serve.status().applications:
            self._serve.shutdown()

    def _open_port(self) -> None:
        """Open Ray's gRPC port with our service; where Serve runs already, it must have that service."""
        controller = import_runtime("ray.serve.context", "Ray Serve", INSTALL)._get_global_client(
            raise_if_no_controller_running=False
        )
        if controller is None:
            self._started_serve = True
            where = "EveryNode" if self.config.engine.every_node else "HeadOnly"
            grpc_options = {"port": self.port, "grpc_servicer_functions": [ADDED_BY], "enable_reflection": False}
            http_options = {"host": "127.0.0.1", "port": free_port()}  # Ray opens it in any case
            options = {"grpc_options": grpc_options, "http_options": http_options, "logging_config": LOGGING}
            self._serve.start(proxy_location=where, **options)
        else:
            running = self._ray.get(controller._controller.get_grpc_config.remote())
            if ADDED_BY not in running.grpc_servicer_functions:
                fix = f"`serve shutdown`, or start it with gRPC options that have {ADDED_BY}"
                raise ConfigError([f"--address: Ray Serve runs there already, without this project's service ({fix})"])
            self.port = running.port
        if not self._is_ours:
            nodes = [node for node in self._ray.nodes() if node.get("Alive")]
            heads = [node for node in nodes if "node:__internal_head__" in node.get("Resources", {})]
            self.host = heads[0]["NodeManagerAddress"] if heads else self.host

    def _deployment(self, kind: type, name: str, placement: Placement) -> Any:
        limits, scale = self.config.limits, placement.autoscaling
        options: dict[str, Any] = {
            "name": name,
            "ray_actor_options": {"num_cpus": placement.num_cpus, "num_gpus": placement.num_gpus} | self._environment,
            "max_ongoing_requests": 2 * limits.max_calls,  # what is over our own limit we refuse ourselves
            "max_queued_requests": limits.max_calls,
            "graceful_shutdown_timeout_s": self.config.grace_s,
            "graceful_shutdown_wait_loop_s": 0.1,
            "health_check_period_s": 5,
            "max_constructor_retry_count": 1,
            "logging_config": LOGGING,
        }
        if scale is None:
            options["num_replicas"] = placement.replicas
        else:
            target = {"target_ongoing_requests": scale.target_ongoing_requests}
            options["autoscaling_config"] = {"min_replicas": scale.min, "max_replicas": scale.max, **target}
        return self._serve.deployment(**options)(kind)

    def _run(self, application: Any, tier: str) -> Any:
        """Deploy it, and wait until it runs. `tier`: "" is the ingress."""
        name = f"{APPLICATION}-{tier}" if tier else APPLICATION
        self._applications.append(name)
        route = None if tier else f"/{APPLICATION}"  # only what has an HTTP route is found by Ray's gRPC port
        target = self._serve.RunTarget(application, name=name, route_prefix=route)
        (handle,) = self._serve.run_many([target], wait_for_applications_running=False)
        end = time.monotonic() + self.config.engine.start_s
        while time.monotonic() < end:
            if (status := self._serve.status().applications.get(name)) is not None:
                if status.status == "RUNNING":
                    return handle
                if status.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                    messages = [status.message, *(one.message for one in status.deployments.values())]
                    raise _failure(tier, " ".join(messages))
            time.sleep(0.1)
        free = {key: value for key, value in self._ray.available_resources().items() if key in ("CPU", "GPU")}
        placement = self.config.engine.of(tier) if tier else self.config.engine.ingress
        wants = f"{_books(placement)} for each of {placement.at_first}; free: {free}"
        raise TierUnavailable(tier or INGRESS, f"not there after {self.config.engine.start_s:g} s: it wants {wants}")

    def _wait_for_port(self) -> None:
        request, ask = pb.ServerReadyRequest().SerializeToString(), path("ServerReady")
        host = "127.0.0.1" if self.host == ALL_INTERFACES else self.host
        with grpc.insecure_channel(f"{host}:{self.port}") as channel:
            end = time.monotonic() + self.config.engine.start_s
            while True:
                try:
                    channel.unary_unary(ask, None, None)(request, timeout=5, wait_for_ready=True)
                    return
                except grpc.RpcError as error:
                    if time.monotonic() > end:
                        raise TierUnavailable(INGRESS, f"port {self.port} of {host}: {error.details()}") from None
                time.sleep(0.1)


def _failure(tier: str, words: str) -> Exception:
    """What a replica's constructor raised, from Ray's message, which is a traceback as text."""
    _, found, message = words.partition(CANNOT_OPEN)
    if found:
        return ModelError(message.splitlines()[0])
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    print("\n".join(lines), file=sys.stderr)
    return TierUnavailable(tier or INGRESS, "Ray Serve could not deploy it (its own message is above)")


def _books(placement: Placement) -> str:
    return f"num_cpus {placement.num_cpus:g}, num_gpus {placement.num_gpus:g}"


def dial(address: str) -> None:
    """Raises OSError where nobody listens."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=CHECK_S).close()


def free_port(port: int = 0) -> int:
    """`port`, or a free one where it is 0; ConfigError where it is taken."""
    try:
        with socket.create_server(("", port)) as trial:
            return int(trial.getsockname()[1])
    except OSError:
        raise ConfigError([f"expected a free port, got {port} which cannot be bound (set --grpc-port)"]) from None


OBJECT_STORE_BYTES = 200 * 2**20  # of a cluster started here; batches go through it only where they are large


def serve(config: ServerConfig, options: argparse.Namespace) -> int:
    """Deploy, serve until SIGTERM or ^C, drain, and remove what was deployed.

    Raises:
        CascadeError: Ray is not installed, the cluster cannot be reached, a model cannot be loaded, a setting is not
            for this engine.
    """
    import_runtime("ray.serve", "Ray Serve", INSTALL)
    for name, value in SETTINGS.items():  # after the import: they are for processes with an event loop, unlike this one
        os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_SERVE_GRPC_MAX_MESSAGE_SIZE", str(config.limits.max_message_bytes + 2**20))
    check(config, options.insecure)
    stop = threading.Event()
    with joined(config, options.address) as cluster:
        try:
            port = cluster.deploy()
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: stop.set())
            print_line(f"ready on {reachable(cluster.host)}:{port}: {', '.join(cluster.models)}")
            while not stop.wait(CHECK_S):
                cluster.check_alive()
            print_line(f"draining, at most {config.grace_s:g} s")
        finally:
            cluster.take_down()
    print_line("stopped")
    return 0


def print_line(line: str) -> None:
    print(f"coe-cloud: {line}", flush=True)


def check(config: ServerConfig, insecure: bool) -> None:
    """Fail, before anything is started, where a setting needs what this engine does not have.

    Raises:
        ConfigError: every such setting.
    """
    security, findings = config.security, []
    if security.has_tls or security.can_tell or security.allow or security.quota:
        findings.append(
            "security: expected none with --engine ray, whose gRPC port knows neither TLS nor callers "
            "(put a proxy or another coe-cloud in front, and --insecure here)"
        )
    for tier in config.cascade.local_tiers:
        if tier.delay is not None:
            findings.append(f"tiers: expected no delay_ms for {tier.name} with --engine ray (a delay is for studies)")
    if config.model_control:
        findings.append("server.model_control: expected false with --engine ray (restart it to reload models)")
    if config.http_port is not None:
        findings.append("server.http_port: expected none with --engine ray, which serves no HTTP (leave it out)")
    if config.observe.traces:
        findings.append("traces: expected none with --engine ray (Ray has its own)")
    if findings:
        raise ConfigError(findings, str(config.source or ""))
    check_exposure(ALL_INTERFACES, security, insecure)


@contextlib.contextmanager
def joined(config: ServerConfig, address: str | None) -> Iterator[Cluster]:
    """The cluster at `address`; without one, a cluster of this machine alone, which ends with the block.

    Raises:
        ConfigError: there is none.
    """
    ray = import_runtime("ray", "Ray Serve", INSTALL)
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "namespace": "coe-cascade"}
    port = config.grpc_port or free_port()
    if address is None:
        free_port(port)
        placed = [config.engine.of(tier.name) for tier in config.cascade.local_tiers]
        booked = sum(one.at_first * one.num_cpus for one in (*placed, config.engine.ingress))  # by all, at first
        here = {"num_cpus": max(len(os.sched_getaffinity(0)), math.ceil(booked)), "include_dashboard": False}
        ray.init("local", object_store_memory=OBJECT_STORE_BYTES, **here, **quiet)
    else:
        try:
            if is_address(address):  # Ray itself would try for minutes
                dial(address)
            ray.init(address, **quiet)
        except (OSError, ValueError, RuntimeError) as error:
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            fix = "`ray start --head` starts one and prints its address"
            raise ConfigError([f"--address: expected a Ray cluster, got {address} ({line}; {fix})"]) from None
    try:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        yield Cluster(config, port, is_ours=address is None)
    finally:
        ray.shutdown()
