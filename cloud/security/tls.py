"""TLS for both ports, with certificates that change while the server runs.

A handshake asks for the newest files; open connections keep what they were opened with.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc

from coe.cascade.errors import ConfigError

from .config import Security
from .material import Material, load_material
from .reload import Watched

T = TypeVar("T")
Clock = Callable[[], float]


def grpc_credentials(security: Security, clock: Clock = time.monotonic) -> grpc.ServerCredentials:
    """For `add_secure_port`; where there is a client CA, clients without a certificate of it are turned away.

    Raises:
        ConfigError: there is no TLS in `security`, or its files cannot be served with.
    """
    watched = _watched(security, "TLS of gRPC", _grpc_configuration, clock)
    used = watched.current()

    def fetch() -> Any:
        """Asked before each handshake; None: as before."""
        nonlocal used
        newest = watched.current()
        if newest is used:
            return None
        used = newest
        return newest

    return grpc.dynamic_ssl_server_credentials(used, fetch, security.client_ca is not None)


def http_context(security: Security, clock: Clock = time.monotonic) -> ssl.SSLContext:
    """For the HTTP port's listener: HTTP/1.1 over TLS 1.3, with the same certificate and the same client CA.

    TLS 1.3 without tickets, so that no client resumes a session that an older client CA has allowed.

    Raises:
        ConfigError: as in `grpc_credentials`.
    """
    watched = _watched(security, "TLS of HTTP", lambda material: _http_context(security, material), clock)

    def swap(handshake: ssl.SSLSocket | ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Called in each handshake, whether or not the client names a server."""
        handshake.context = watched.current()

    context = _http_context(security, load_material(*_files(security)))
    context.sni_callback = swap
    return context


def _watched(security: Security, what: str, make: Callable[[Material], T], clock: Clock) -> Watched[T]:
    files = _files(security)
    given = [path for path in files if path is not None]
    return Watched(what, given, lambda: make(load_material(*files)), security.reload_s, clock=clock)


def _files(security: Security) -> tuple[Path, Path, Path | None]:
    if security.certificate is None or security.key is None:
        raise ConfigError(["security.tls: expected certificate and key, got none (`coe-cloud certs init DIR`)"])
    return security.certificate, security.key, security.client_ca


def _grpc_configuration(material: Material) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(material.key, material.certificate)], material.client_ca)


def _http_context(security: Security, material: Material) -> ssl.SSLContext:
    certificate, key, _ = _files(security)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(certificate, key, password=lambda: "")  # "": never ask on a terminal
    if material.client_ca is not None:
        context.load_verify_locations(cadata=material.client_ca.decode("ascii", "ignore"))
        context.verify_mode = ssl.CERT_REQUIRED
    return context
