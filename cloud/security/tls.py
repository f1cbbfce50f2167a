"""TLS of both ports: certificate files checked before use and read again when they change.

A handshake asks for the newest files; open connections keep what they were opened with.
"""

from __future__ import annotations

import ssl
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from coe.cascade.errors import ConfigError

from .config import Security
from .reload import ReloadedFiles

SOON = timedelta(days=14)
MAKE = "`coe-cloud certs init DIR` makes one"

Key = Literal["certificate", "key", "client_ca"]


@dataclass(frozen=True)
class FileFinding:
    """What was found wrong with one of the files.

    Args:
        about: its setting.
        is_fatal: it cannot be served with; otherwise a warning.
    """

    about: Key
    message: str
    is_fatal: bool = True


@dataclass(frozen=True)
class TlsFiles:
    """PEM, as the TLS libraries take it."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None


def load_tls_files(certificate: Path, key: Path, client_ca: Path | None) -> TlsFiles:
    """The three files.

    Raises:
        ConfigError: they cannot be served with.
    """
    material, remarks = inspect(certificate, key, client_ca)
    if material is None:
        raise ConfigError([f"{remark.about}: {remark.message}" for remark in remarks if remark.is_fatal])
    return material


def inspect(certificate: Path, key: Path, client_ca: Path | None) -> tuple[TlsFiles | None, list[FileFinding]]:
    """The three files, and everything there is to say about them; None where one of the remarks is fatal."""
    remarks: list[FileFinding] = []
    contents = {
        "certificate": _read(certificate, "certificate", remarks),
        "key": _read(key, "key", remarks),
        "client_ca": b"" if client_ca is None else _read(client_ca, "client_ca", remarks),
    }
    chain = _certificates(contents["certificate"], certificate, "certificate", remarks)
    if chain:
        _check_dates(chain[0], certificate, "certificate", remarks)
        _check_names(chain[0], certificate, remarks)
    _check_key(contents["key"], key, chain[0] if chain else None, remarks)
    if client_ca is not None:
        for authority in _certificates(contents["client_ca"], client_ca, "client_ca", remarks):
            _check_authority(authority, client_ca, remarks)
    if any(remark.is_fatal for remark in remarks):
        return None, remarks
    given = None if client_ca is None else contents["client_ca"]
    return TlsFiles(contents["certificate"], contents["key"], given), remarks


def _read(path: Path, about: Key, remarks: list[FileFinding]) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        remarks.append(FileFinding(about, f"expected a readable file, got {path}: {error.strerror} ({MAKE})"))
        return b""


def _certificates(pem: bytes, path: Path, about: Key, remarks: list[FileFinding]) -> list[x509.Certificate]:
    if not pem and any(remark.about == about for remark in remarks):
        return []  # said already: it cannot be read
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        remarks.append(FileFinding(about, f"expected certificates in PEM, got {path} which holds none ({MAKE})"))
        return []


def _check_dates(certificate: x509.Certificate, path: Path, about: Key, remarks: list[FileFinding]) -> None:
    now = datetime.now(UTC)
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if last <= now:
        remarks.append(
            FileFinding(about, f"expected one that is valid today, got {path} which expired {last:%F} (renew it)")
        )
    elif first > now:
        fix = "check this machine's clock"
        message = f"expected one that is valid today, got {path} which is valid from {first:%F} ({fix})"
        remarks.append(FileFinding(about, message))
    elif last <= now + SOON:
        remarks.append(FileFinding(about, f"{path} expires {last:%F} (renew it; no restart is needed)", is_fatal=False))


def _check_names(certificate: x509.Certificate, path: Path, remarks: list[FileFinding]) -> None:
    try:
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        message = f"{path} has no subject alternative names, so clients will not believe it ({MAKE} with --host)"
        remarks.append(FileFinding("certificate", message, is_fatal=False))
    except ValueError:
        remarks.append(FileFinding("certificate", f"expected extensions that can be read, got {path} ({MAKE})"))


def _check_key(pem: bytes, path: Path, certificate: x509.Certificate | None, remarks: list[FileFinding]) -> None:
    if not pem and any(remark.about == "key" for remark in remarks):
        return
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        fix = "openssl pkey -in KEY -out NEW takes the password off"
        remarks.append(FileFinding("key", f"expected a key without a password, got {path} which has one ({fix})"))
        return
    except (ValueError, UnsupportedAlgorithm):
        remarks.append(FileFinding("key", f"expected a private key in PEM, got {path} which holds none ({MAKE})"))
        return
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        message = f"expected an EC or RSA key, got {path} of another kind, which gRPC cannot serve with ({MAKE})"
        remarks.append(FileFinding("key", message))
    elif certificate is not None and _public(key) != _public(certificate):
        message = f"expected the key of `certificate`, got {path} which is of another one (give the two of a pair)"
        remarks.append(FileFinding("key", message))
    if path.stat().st_mode & (stat.S_IRWXO | stat.S_IWGRP):
        message = f"{path} can be read or written by others on this machine (chmod o=,g-w {path})"
        remarks.append(FileFinding("key", message, is_fatal=False))


def _public(holder: x509.Certificate | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return holder.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _check_authority(certificate: x509.Certificate, path: Path, remarks: list[FileFinding]) -> None:
    try:
        is_authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        is_authority = False
    if not is_authority:
        name = certificate.subject.rfc4514_string()
        message = f'expected certificates of a CA (ca:true), got {path} with "{name}" which is none (give ca.pem)'
        remarks.append(FileFinding("client_ca", message))
    _check_dates(certificate, path, "client_ca", remarks)


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

    context = _http_context(security, load_tls_files(*_files(security)))
    context.sni_callback = swap
    return context


def _watched(security: Security, what: str, make: Callable[[TlsFiles], T], clock: Clock) -> ReloadedFiles[T]:
    files = _files(security)
    given = [path for path in files if path is not None]
    return ReloadedFiles(what, given, lambda: make(load_tls_files(*files)), security.reload_s, clock=clock)


def _files(security: Security) -> tuple[Path, Path, Path | None]:
    if security.certificate is None or security.key is None:
        raise ConfigError(["security.tls: expected certificate and key, got none (`coe-cloud certs init DIR`)"])
    return security.certificate, security.key, security.client_ca


def _grpc_configuration(material: TlsFiles) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(material.key, material.certificate)], material.client_ca)


def _http_context(security: Security, material: TlsFiles) -> ssl.SSLContext:
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
