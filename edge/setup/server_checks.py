"""Checks of the remote tiers: certificates, tokens, and each server from its name to its metadata."""

from __future__ import annotations

import re
import socket
import ssl
import statistics
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from coe.cascade.errors import CascadeError, ConfigError, TierError
from coe.config import format_seconds
from coe.config.cascade import RemoteTierConfig
from coe.config.open import open_tier
from coe.models.inputs import InputDecoder
from coe.protocol.channel import split
from coe.protocol.credentials import ClientSecurity, is_this_machine
from coe.protocol.remote import RemoteTier, remote_of

from .findings import CheckContext, Finding, fail, from_error, ok, warn

PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.S)
SEQUENCE, UTC_TIME, GENERALIZED_TIME, VERSION = 0x30, 0x17, 0x18, 0xA0


def certificate_validities(path: Path) -> list[tuple[datetime, datetime]]:
    """The first and last moment of each certificate in a PEM file, in its order.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds no certificate, or a damaged one.
    """
    found = [ssl.PEM_cert_to_DER_cert(text.decode("ascii")) for text in PEM.findall(path.read_bytes())]
    if not found:
        raise ValueError("it holds no certificate")
    return [validity(der) for der in found]


def validity(der: bytes) -> tuple[datetime, datetime]:
    """The first and last moment of a DER certificate (X.509, RFC 5280 section 4.1).

    Raises:
        ValueError: these are not a certificate's bytes.
    """
    try:
        (_, certificate), *_ = _parts(der)
        (_, to_be_signed), *_ = _parts(certificate)
        fields = list(_parts(to_be_signed))
        at = 1 if fields[0][0] == VERSION else 0  # then: serial number, algorithm, issuer, validity
        tag, times = fields[at + 3]
        if tag != SEQUENCE:
            raise ValueError
        since, until = (_time(tag, value) for tag, value in _parts(times))
    except (IndexError, ValueError):
        raise ValueError("it is no certificate") from None
    return since, until


def _parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each of the DER values in `data`."""
    at = 0
    while at < len(data):
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            n_digits = length & 0x7F
            length = int.from_bytes(data[at : at + n_digits], "big")
            at += n_digits
        if at + length > len(data):
            raise ValueError("it ends early")
        yield tag, data[at : at + length]
        at += length


def _time(tag: int, value: bytes) -> datetime:
    text = value.decode("ascii")
    if tag == UTC_TIME:  # two digits of the year: 1950 to 2049
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    elif tag != GENERALIZED_TIME:
        raise ValueError("it is no time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


REACH_S = 3.0  # for a name, a connection, a handshake: each
N_ROUND_TRIPS = 5
EXPIRES_SOON_DAYS = 30
RENEW = "`coe-cloud certs` makes new ones; they are read again without a restart of the server"


class ConnectionClosed(Exception):
    """The server ended the connection right after the handshake."""


def check_certificates(context: CheckContext) -> Iterator[Finding]:
    """How long certificates are valid. (Reading the config has checked that the files exist and fit.)"""
    now = datetime.fromtimestamp(context.system.now, UTC)
    files = [
        (f"{name} of {tier.name}", path)
        for tier in context.remote_tiers
        for name, path in (("CA", tier.security.ca), ("certificate", tier.security.certificate))
        if path is not None
    ]
    for what, path in files:
        try:
            since, until = min(certificate_validities(path), key=lambda span: span[1])
        except (OSError, ValueError) as error:
            yield fail(what, f"{path}: {error}", RENEW)
            continue
        days = (until - now).days
        if until <= now:
            yield fail(what, f"{path} expired on {until:%Y-%m-%d}", RENEW)
        elif since > now:
            yield fail(what, f"{path} is valid from {since:%Y-%m-%d %H:%M} UTC on", "set the clock; or wait")
        elif days < EXPIRES_SOON_DAYS:
            yield warn(what, f"{path} expires in {days} days", RENEW)
        else:
            yield ok(what, f"{path} is valid for {days} days")


def check_tokens(context: CheckContext) -> Iterator[Finding]:
    for tier in context.remote_tiers:
        if tier.security.token_file is not None:
            yield ok(f"token of {tier.name}", f"{tier.security.token_file} holds one")


def check_tiers(context: CheckContext) -> Iterator[Finding]:
    if not context.remote_tiers:
        yield warn("tiers", "none beyond this device", "add a tier with `address:` for what its models disagree on")
    for tier in context.remote_tiers:
        reached = [_reach(tier, address) for address in tier.addresses]
        bad = [finding for finding in reached if finding.level == "fail"]
        yield from reached if len(tier.addresses) > 1 else bad
        if len(bad) < len(reached):
            yield from _probe_server(context, tier)


def _reach(tier: RemoteTierConfig, address: str) -> Finding:
    """The result of name look-up, connection and handshake: which of them fails says more than gRPC does."""
    what = f"tier {tier.name}"
    host, port = split(address)
    host = host.strip("[]")
    try:
        socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        return fail(what, f"{address}: the name is not known: {reason}", "correct `address:`, or the network's DNS")
    try:
        started = time.perf_counter()
        with socket.create_connection((host, int(port)), REACH_S) as connection:
            connected_s = time.perf_counter() - started
            if tier.security.is_encrypted:
                _tls_handshake(connection, tier.security, host)
    except TimeoutError:
        return fail(what, f"{address}: no answer", f"is this the host, is it on, does a firewall let {port} through?")
    except ConnectionRefusedError:
        beyond = "" if is_this_machine(address) else " --host 0.0.0.0 (that takes TLS, or --insecure)"
        fix = f"start it there: coe-cloud serve --config ...{beyond}; or correct the port"
        return fail(what, f"{address}: the host is there, and nothing listens on port {port}", fix)
    except (ConnectionClosed, ConnectionResetError):
        fix = "the server asks for a device's certificate: `tls: {certificate: ..., key: ...}`"
        if tier.security.certificate is not None:
            fix = f"is {tier.security.certificate} signed by the server's client_ca, and not expired?"
        return fail(what, f"{address}: the server closes the connection after the handshake", fix)
    except ssl.SSLError as error:
        return fail(what, f"{address}: TLS fails: {_reason(error)}", _tls_fix(error))
    except OSError as error:
        return fail(what, f"{address}: {error.strerror or error}", "repair the network, or correct `address:`")
    return ok(what, f"{address}: connects in {format_seconds(connected_s)}")


def _tls_handshake(connection: socket.socket, security: ClientSecurity, host: str) -> None:
    context = ssl.create_default_context(cafile=security.ca)
    context.set_alpn_protocols(["h2"])
    if security.certificate is not None:
        context.load_cert_chain(security.certificate, security.key)
    with context.wrap_socket(connection, server_hostname=security.server_name or host) as encrypted:
        encrypted.settimeout(REACH_S)
        try:
            first = encrypted.recv(1)  # an HTTP/2 server sends first; one that refuses this client closes (TLS 1.3)
        except TimeoutError:
            return
        if not first:
            raise ConnectionClosed


def _reason(error: ssl.SSLError) -> str:
    verify = getattr(error, "verify_message", "")
    return verify or (error.reason or str(error)).replace("_", " ").lower()


def _tls_fix(error: ssl.SSLError) -> str:
    reason = _reason(error).lower()
    if "expired" in reason:
        return f"renew the server's certificate: {RENEW}"
    if "not yet valid" in reason:
        return "set this device's clock"
    if "mismatch" in reason or "not valid for" in reason:
        return "set `server_name:` to a name in its certificate, or make one for this host"
    if "self-signed" in reason or "issuer" in reason or "unable to get" in reason:
        return "set `tls: {ca: ...}` to the CA that signed the server's certificate"
    if "certificate required" in reason or "handshake failure" in reason:
        return "the server asks for a device's certificate: `tls: {certificate: ..., key: ...}`"
    if "wrong version number" in reason or "record" in reason:
        return "the server speaks plaintext on this port: leave `tls:` out, or correct the port"
    return "compare `tls:` with the server's `security.tls:`"


def _probe_server(context: CheckContext, tier: RemoteTierConfig) -> Iterator[Finding]:
    """The server's own name, and its round-trip time."""
    what = f"tier {tier.name}"
    try:
        opened = open_tier(tier, context.the_config.cascade)
    except CascadeError as error:
        yield _error_finding(what, error)
        return
    try:
        remote = remote_of(opened)
        assert remote is not None
        yield _probe(what, remote, InputDecoder(context.the_config.cascade.task.input_spec))
    finally:
        opened.close()


def _probe(what: str, remote: RemoteTier, decoder: InputDecoder) -> Finding:
    try:
        metadata = remote.metadata()
        trips, is_ready = [], True
        for _ in range(N_ROUND_TRIPS):
            started = time.perf_counter()
            is_ready = remote.is_ready()
            trips.append(time.perf_counter() - started)
        answer = remote.describe_answer(decoder.blank()) if is_ready else ""
    except (TierError, ConfigError) as error:
        return _error_finding(what, error)
    trip = format_seconds(statistics.median(trips))
    message = f"{metadata.name} on {metadata.platform or 'an unnamed platform'}, round trip {trip}"
    if not is_ready:
        return warn(what, f"{message}; it does not take calls now", "it starts or drains: wait, or look at its log")
    return ok(what, f"{message}; {answer}")


def _error_finding(what: str, error: CascadeError) -> Finding:
    if "UNAUTHENTICATED" in str(error):
        fix = "set `token_file:`, or `tls: {certificate: ..., key: ...}`, to what that server knows"
        return fail(what, str(error).removeprefix(f"{what}: "), fix)
    return from_error(what, error, "is it a server of the Open Inference Protocol on that port? its log says more")
