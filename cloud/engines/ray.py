"""`coe-cloud serve --engine ray`: each tier a deployment of Ray Serve, behind Ray's own gRPC port.

Three kinds of processes take part: Ray's proxy, whose port callers see (`ray_way`); the door, which runs Algorithm 1
(`ray_door`); and each tier's replicas (`ray_tier`). Each tier is an application of its own, so that a tier outlives
the door as the server drains.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator

from coe.assembly import LocalTierConfig
from coe.cascade.errors import ConfigError
from coe.models.base import import_runtime
from coe.wire.target import is_address

from ..config import ServerConfig
from ..security.config import check_exposure
from .ray_cluster import ALL_INTERFACES, SETTINGS, WATCH_S, Cluster, dial, free_port
from .ray_tier import INSTALL

OBJECT_STORE_BYTES = 200 * 2**20  # of a cluster started here; batches go through it only where they are large


def serve(config: ServerConfig, options: argparse.Namespace) -> int:
    """Deploy, serve until SIGTERM or ^C, drain, and take down what was put up.

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
            say(f"ready on {cluster.host}:{port}: {', '.join(cluster.models)}")
            while not stop.wait(WATCH_S):
                cluster.check_alive()
            say(f"draining, at most {config.grace_s:g} s")
        finally:
            cluster.take_down()
    say("stopped")
    return 0


def say(line: str) -> None:
    print(f"coe-cloud: {line}", flush=True)


def check(config: ServerConfig, insecure: bool) -> None:
    """What the embedded engine can do and this one cannot is said before anything is started.

    Raises:
        ConfigError
    """
    security, findings = config.security, []
    if security.has_tls or security.can_tell or security.allow or security.quota:
        findings.append(
            "security: expected none with --engine ray, whose gRPC port knows neither TLS nor callers "
            "(put a proxy or another coe-cloud in front, and --insecure here)"
        )
    for tier in config.cascade.tiers:
        if isinstance(tier, LocalTierConfig) and tier.delay is not None:
            findings.append(f"tiers: expected no delay_ms for {tier.name} with --engine ray (it is for studies)")
    if config.model_control:
        findings.append("server.model_control: expected false with --engine ray (start it again to load models anew)")
    if config.http_port is not None:
        findings.append("server.http_port: expected none with --engine ray, which has no HTTP door (leave it out)")
    if config.watch.traces:
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
    if address is None:
        port = config.grpc_port or free_port()
        _check_port(port)
        here = {"num_cpus": max(len(os.sched_getaffinity(0)), _cpus(config)), "include_dashboard": False}
        ray.init("local", object_store_memory=OBJECT_STORE_BYTES, **here, **quiet)
    else:
        port = config.grpc_port or free_port()
        try:
            if is_address(address):  # Ray itself would try for minutes
                dial(address)
            ray.init(address, **quiet)
        except (OSError, ValueError, RuntimeError) as error:
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            mend = "`ray start --head` starts one and prints its address"
            raise ConfigError([f"--address: expected a Ray cluster, got {address} ({line}; {mend})"]) from None
    try:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        yield Cluster(config, port, say, is_ours=address is None)
    finally:
        ray.shutdown()


def _cpus(config: ServerConfig) -> int:
    """What all replicas at first book, so that a cluster started here has room for them."""
    tiers = [config.engine.of(tier.name) for tier in config.cascade.tiers if isinstance(tier, LocalTierConfig)]
    return int(sum(one.at_first * one.num_cpus for one in (*tiers, config.engine.door)) + 0.999)


def _check_port(port: int) -> None:
    try:
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(("", port))
    except OSError:
        raise ConfigError([f"expected a free port, got {port} which cannot be bound (set --grpc-port)"]) from None
