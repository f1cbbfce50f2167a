"""The program coe-cloud: serve a cascade's tiers, list them, make certificates."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from coe import __version__
from coe.cascade.errors import ConfigError
from coe.config.cascade import LocalTierConfig
from coe.config.program import run_program
from coe.models.loading import import_runtime
from coe.protocol.channel import fix_of_host, reachable

from .config import ServerConfig, default_config, read_config
from .observe import logs
from .security import certs
from .security.config import check_exposure, need_certificates

if TYPE_CHECKING:
    from .server import Server


def main(arguments: Sequence[str] | None = None) -> int:
    return run_program("coe-cloud", _run, sys.argv[1:] if arguments is None else arguments)


def _run(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    if options.command == "certs":
        return certs.run(options)
    path = options.config or default_config()
    config = read_config(path)
    given = {key: getattr(options, key, None) for key in ("host", "grpc_port", "http_port")}
    config = replace(config, **{key: value for key, value in given.items() if value is not None})
    for warning in config.warnings:
        print(f"coe-cloud: {path}: warning: {warning}", file=sys.stderr)
    if options.command == "models":
        return _list_models(config)
    return _serve(config, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="coe-cloud", description="Serve a cascade's cloud tiers over the Open Inference Protocol (gRPC)."
    )
    parser.add_argument("--version", action="version", version=f"coe-cloud {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    serve = commands.add_parser("serve", help="serve until SIGTERM or ^C, then drain")
    models = commands.add_parser("models", help="list the models of the config, and exit")
    certs.add_parser(commands)
    for command in (serve, models):
        command.add_argument(
            "--config", type=Path, help="YAML file; default: the cloud tiers of the bundled task digits"
        )
    serve.add_argument("--host", type=_host, help="address to listen on; default: the config's, or 127.0.0.1")
    port_help = "default: the config's, or 8001; 0: a free one"
    serve.add_argument("--grpc-port", type=_port, metavar="PORT", help=port_help)
    serve.add_argument(
        "--http-port", type=_port, metavar="PORT", help="default: the config's, or no HTTP; 0: a free one"
    )
    serve.add_argument("--insecure", action="store_true", help="allow plaintext beyond this machine")
    engine_help = "where tiers run: in this process (embedded, the default), or on a Ray cluster (docs/scale-out.md)"
    serve.add_argument("--engine", choices=("embedded", "ray"), default="embedded", help=engine_help)
    serve.add_argument(
        "--address", help="address of a running Ray cluster; default: start one here, and stop it at the end"
    )
    serve.add_argument("--verbose", action="store_true", help="log at level debug")
    return parser


def _host(text: str) -> str:
    if fix := fix_of_host(text):
        raise argparse.ArgumentTypeError(f'expected a name or an IP address, got "{text}" ({fix})')
    return text


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected 0 to 65535, got {text}")
    return int(text)


def _list_models(config: ServerConfig) -> int:
    task = config.cascade.task
    print(f"task {task.name}: {len(task.labels)} labels, fingerprint {task.fingerprint}")
    print(f"model {config.model}: the whole cascade, {len(config.cascade.tiers)} tier(s)")
    for tier in config.cascade.tiers:
        if not isinstance(tier, LocalTierConfig):
            print(f"  tier {tier.name}: {tier.model} at {tier.address}")
            continue
        alone = f", also served alone as model {config.model}-{tier.name}" if tier.delay is None else ""
        print(f"  tier {tier.name}{alone}:")
        for spec in tier.members:
            flops = "unknown FLOPs" if spec.flops is None else f"{spec.flops:.3g} FLOPs"
            accuracy = "" if spec.calibration_accuracy is None else f", {spec.calibration_accuracy:.1%} on calibration"
            checksum = "no checksum" if spec.sha256 is None else f"sha256 {spec.sha256[:12]}.."
            print(f"    {spec.name} ({spec.format}, {flops}{accuracy}, {checksum})")
    return 0


def _serve(config: ServerConfig, options: argparse.Namespace) -> int:
    import_runtime("grpc_health.v1.health", "gRPC health", "pip install 'coe-cascade[cloud]'")
    need_certificates()
    logs.configure(replace(config.observe, log_level="debug") if options.verbose else config.observe)
    if options.engine == "ray":
        from .engines import ray

        return ray.serve(config, options)
    if options.address is not None:
        raise ConfigError(["--address: expected with --engine ray alone, got it without (a Ray cluster's address)"])
    from .server import Server, run

    check_exposure(config.host, config.security, options.insecure)
    server = Server(config, notify=lambda line: print(f"coe-cloud: {line}", flush=True))
    run(_until_stopped(server))
    return 0


async def _until_stopped(server: Server) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        await server.start()
        host, names = await asyncio.to_thread(reachable, server.config.host), ", ".join(server.models)
        if server.http_port:
            scheme = "https" if server.config.security.has_tls else "http"
            print(f"coe-cloud: HTTP and the status page on {scheme}://{host}:{server.http_port}/", flush=True)
            server.announce_page()
        print(f"coe-cloud: ready on {host}:{server.port}: {names}", flush=True)
        await stop.wait()
        print(f"coe-cloud: draining, at most {server.config.grace_s:g} s", flush=True)
    finally:
        await server.stop()
    print("coe-cloud: stopped", flush=True)


if __name__ == "__main__":
    sys.exit(main())
