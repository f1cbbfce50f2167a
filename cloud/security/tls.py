"""TLS of both ports: certificate files checked before use and read again when they change.

A handshake takes the newest files; open connections keep what they were opened with.
"""

from __future__ import annotations

import ssl
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from coe.cascade.errors import ConfigError

from .config import Security
from .reload import ReloadedFiles

SOON = timedelta(days=14)
MAKE = "`coe-cloud certs init DIR` makes one"


@dataclass(frozen=True)
class Findings:
    """What is wrong with the files, as (setting, message): `fatal` ones cannot be served with."""

    fatal: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)

    def expected(self, setting: str, what: str, got: str, fix: str = MAKE) -> None:
        self.fatal.append((setting, f"expected {what}, got {got} ({fix})"))


@dataclass(frozen=True)
class TlsFiles:
    """PEM, as the TLS libraries take it."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None


def inspect(certificate: Path, key: Path, client_ca: Path | None) -> tuple[TlsFiles, Findings]:
    """The three files, empty where one cannot be read, and everything that is wrong with them."""
    found = Findings()
    files = TlsFiles(
        _read(certificate, "certificate", found),
        _read(key, "key", found),
        None if client_ca is None else _read(client_ca, "client_ca", found),
    )
    chain = _certificates(files.certificate, certificate, "certificate", found)
    if chain:
        _check_dates(chain[0], certificate, "certificate", found)
        _check_names(chain[0], certificate, found)
    if files.key or not _is_found("key", found):
        _check_key(files.key, key, chain[0] if chain else None, found)
    if client_ca is not None and files.client_ca is not None:
        for authority in _certificates(files.client_ca, client_ca, "client_ca", found):
            _check_authority(authority, client_ca, found)
    return files, found


def issuer_beside(certificate: Path | None) -> bytes | None:
    """The `ca.pem` in a certificate's folder, where it is what issued the certificate."""
    if certificate is None:
        return None
    path = certificate.with_name("ca.pem")
    try:
        pem = path.read_bytes()
        issuer = x509.load_pem_x509_certificate(pem)
        x509.load_pem_x509_certificate(certificate.read_bytes()).verify_directly_issued_by(issuer)
    except (OSError, ValueError, TypeError, InvalidSignature):
        return None
    return pem


def _is_found(setting: str, found: Findings) -> bool:
    return any(about == setting for about, _ in found.fatal)


def _read(path: Path, setting: str, found: Findings) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        found.expected(setting, "a readable file", f"{path}: {error.strerror}")
        return b""


def _certificates(pem: bytes, path: Path, setting: str, found: Findings) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        if pem or not _is_found(setting, found):  # else it cannot be read, which is a finding already
            found.expected(setting, "certificates in PEM", f"{path} which holds none")
        return []


def _check_dates(certificate: x509.Certificate, path: Path, setting: str, found: Findings) -> None:
    now = datetime.now(UTC)
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if last <= now:
        found.expected(setting, "one that is valid today", f"{path} which expired {last:%F}", "renew it")
    elif first > now:
        fix = "check this machine's clock"
        found.expected(setting, "one that is valid today", f"{path} which is valid from {first:%F}", fix)
    elif last <= now + SOON:
        found.warnings.append((setting, f"{path} expires {last:%F} (renew it; no restart is needed)"))


def _check_names(certificate: x509.Certificate, path: Path, found: Findings) -> None:
    try:
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        message = f"{path} has no subject alternative names, so clients will not trust it ({MAKE} with --host)"
        found.warnings.append(("certificate", message))
    except ValueError:
        found.expected("certificate", "extensions that can be read", str(path))


def _check_key(pem: bytes, path: Path, certificate: x509.Certificate | None, found: Findings) -> None:
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        fix = "openssl pkey -in KEY -out NEW takes the password off"
        found.expected("key", "a key without a password", f"{path} which has one", fix)
        return
    except (ValueError, UnsupportedAlgorithm):
        found.expected("key", "a private key in PEM", f"{path} which holds none")
        return
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        found.expected("key", "an EC or RSA key", f"{path} of another kind, which gRPC cannot serve with")
    elif certificate is not None and _public(key) != _public(certificate):
        found.expected("key", "the key of `certificate`", f"{path} which is of another one", "give the two of a pair")
    if path.stat().st_mode & (stat.S_IRWXO | stat.S_IWGRP):
        message = f"{path} can be read or written by others on this machine (chmod o=,g-w {path})"
        found.warnings.append(("key", message))


def _public(holder: x509.Certificate | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return holder.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _check_authority(certificate: x509.Certificate, path: Path, found: Findings) -> None:
    try:
        is_authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        is_authority = False
    if not is_authority:
        got = f'{path} with "{certificate.subject.rfc4514_string()}" which is none'
        found.expected("client_ca", "certificates of a CA (ca:true)", got, "give ca.pem")
    _check_dates(certificate, path, "client_ca", found)


T = TypeVar("T")
Clock = Callable[[], float]


def grpc_credentials(security: Security, clock: Clock = time.monotonic) -> grpc.ServerCredentials:
    """For `add_secure_port`; where there is a client CA, clients without a certificate of it are refused.

    Raises:
        ConfigError: there is no TLS in `security`, or its files cannot be served with.
    """

    def make(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(files.key, files.certificate)], files.client_ca)

    files = _reloaded(security, "TLS of gRPC", make, clock)
    used = files.current()

    def fetch() -> Any:
        """Called before each handshake; None: as before."""
        nonlocal used
        before, used = used, files.current()
        return None if used is before else used

    return grpc.dynamic_ssl_server_credentials(used, fetch, security.client_ca is not None)


def http_context(security: Security, clock: Clock = time.monotonic) -> ssl.SSLContext:
    """For the HTTP port's listener: HTTP/1.1 over TLS 1.3, with the same certificate and the same client CA.

    TLS 1.3 without tickets, so that no client resumes a session that an older client CA has allowed.

    Raises:
        ConfigError: as in `grpc_credentials`.
    """
    certificate, key, _ = _files(security)

    def make(files: TlsFiles) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(certificate, key, password=lambda: "")  # "": never ask on a terminal
        if files.client_ca is not None:
            context.load_verify_locations(cadata=files.client_ca.decode("ascii", "ignore"))
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    files = _reloaded(security, "TLS of HTTP", make, clock)

    def swap(handshake: ssl.SSLSocket | ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Called in each handshake, whether or not the client names a server."""
        handshake.context = files.current()

    first = files.current()
    first.sni_callback = swap
    return first


def _reloaded(security: Security, what: str, make: Callable[[TlsFiles], T], clock: Clock) -> ReloadedFiles[T]:
    paths = _files(security)

    def read() -> T:
        files, found = inspect(*paths)
        if found.fatal:
            raise ConfigError([f"{setting}: {message}" for setting, message in found.fatal])
        return make(files)

    given = [path for path in paths if path is not None]
    return ReloadedFiles(what, given, read, security.reload_s, clock=clock)


def _files(security: Security) -> tuple[Path, Path, Path | None]:
    if security.certificate is None or security.key is None:
        raise ConfigError(["security.tls: expected certificate and key, got none (`coe-cloud certs init DIR`)"])
    return security.certificate, security.key, security.client_ca
