"""What a client shows, and whom it believes: TLS, its own certificate, a bearer token.

A token goes out over TLS alone, or to this same machine.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from coe.cascade.errors import ConfigError

from .service import Options


@dataclass(frozen=True)
class ClientSecurity:
    """How a remote tier is dialled. As it stands: plaintext.

    Args:
        tls: encrypt, and believe the public CAs where no `ca` is given.
        ca: PEM file of the CA that signed the server's certificate.
        certificate, key: PEM files the client shows, for mutual TLS.
        token: bearer token.
        token_file: file that holds it; read again when it changes.
        server_name: the name in the server's certificate, where the address has another one.
    """

    tls: bool = False
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: str | None = None
    token_file: Path | None = None
    server_name: str = ""

    @property
    def is_encrypted(self) -> bool:
        return self.tls or self.ca is not None or self.certificate is not None or bool(self.server_name)

    @property
    def has_token(self) -> bool:
        return self.token is not None or self.token_file is not None

    def __repr__(self) -> str:
        """Without the token: configs are logged."""
        return f"ClientSecurity(tls={self.is_encrypted}, ca={self.ca}, certificate={self.certificate})"

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """For TLS; None: plaintext.

        Raises:
            ConfigError: a file cannot be read.
        """
        if not self.is_encrypted:
            return None
        ca, key, certificate = (_read(path) for path in (self.ca, self.key, self.certificate))
        return grpc.ssl_channel_credentials(ca, key, certificate)


PLAINTEXT = ClientSecurity()


def dial(target: str, options: Options | None = None, *, security: ClientSecurity = PLAINTEXT) -> grpc.Channel:
    """A channel to a gRPC target; it connects with its first call.

    Raises:
        ConfigError: a file cannot be read, or a token would leave this machine in plaintext.
    """
    chosen: Options = list(options or ())
    credentials = security.channel_credentials()
    check_target(target, security)
    if credentials is None:
        if security.has_token:
            chosen.append(("grpc.enable_http_proxy", 0))  # $http_proxy would get to read it
        channel = grpc.insecure_channel(target, chosen)
    else:
        if security.server_name:
            chosen.append(("grpc.ssl_target_name_override", security.server_name))
        channel = grpc.secure_channel(target, credentials, chosen)
    if not security.has_token:
        return channel
    token = security.token or ""
    read: Callable[[], str] = (lambda: token) if security.token_file is None else _TokenFile(security.token_file)
    read()  # a token that cannot be used is an error now
    return grpc.intercept_channel(channel, _BearerToken(read))


def check_target(target: str, security: ClientSecurity) -> None:
    """A bearer token is never sent where others can read it, and a list of hosts has one name.

    Raises:
        ConfigError: a token, no TLS, and a target that is not of this machine; or TLS to a list without `server_name`.
    """
    if security.has_token and not security.is_encrypted and not is_this_machine(target):
        fix = "set `tls: true`, or `tls: {ca: ...}` for a CA of your own"
        raise ConfigError([f"tls: expected TLS for a bearer token, got plaintext to {target} ({fix})"])
    if security.is_encrypted and not security.server_name and target.startswith(("ipv4:", "ipv6:")) and "," in target:
        raise ConfigError(
            [f"tls.server_name: expected the name that the certificates of all hosts have, got none for {target}"]
        )


def is_loopback(host: str) -> bool:
    """A host or an IP address that cannot be reached from other machines."""
    if host.lower().rstrip(".") == "localhost":
        return True
    ip = _ip(host)
    return ip is not None and ip.is_loopback


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """None: it is no IP address. An IPv4 address in IPv6's form is one of IPv4."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None
    return (address.ipv4_mapped if address.version == 6 else None) or address


OF_PRIVATE_NAMES = ("local", "lan", "internal", "localdomain", "home", "arpa")


def is_private(host: str) -> bool:
    """A host of this machine or of its own network: a private or link-local IP address, or a name without a public
    domain."""
    if (ip := _ip(host)) is not None:
        return ip.is_private or ip.is_link_local
    name = host.lower().rstrip(".")
    return "." not in name or name.rpartition(".")[2] in OF_PRIVATE_NAMES


def proxy_of(addresses: Sequence[str], proxy: str = "auto") -> str:
    """URL of the HTTP proxy that calls to these go through; "" for none.

    Args:
        proxy: a URL; "none"; or "auto": gRPC's own environment variables, but for private hosts.
    """
    if proxy != "auto":
        return "" if proxy == "none" else proxy
    hosts = [_host(address) for address in addresses]
    if all(map(is_private, hosts)):
        return ""
    found = next((value for name in PROXIES if (value := os.environ.get(name))), "")
    skipped = next((value for name in NOT_BY_PROXY if (value := os.environ.get(name))), "")
    endings = [ending.strip() for ending in skipped.split(",") if ending.strip()]
    return "" if any(host.endswith(ending) for host in hosts for ending in endings) else found


PROXIES, NOT_BY_PROXY = ("grpc_proxy", "https_proxy", "http_proxy"), ("no_grpc_proxy", "no_proxy")  # in gRPC's order


def is_this_machine(target: str) -> bool:
    """Every address of a gRPC target is of this machine; one that may be another's is not."""
    scheme, colon, rest = target.partition(":")
    if colon and scheme in ("unix", "unix-abstract"):
        return True
    if colon and scheme in ("ipv4", "ipv6"):
        return all(is_loopback(_host(one)) for one in rest.split(","))
    if colon and scheme == "dns":
        return is_loopback(_host(rest.removeprefix("///")))  # "dns://SERVER/localhost": whatever that server says
    return is_loopback(_host(target))


def _host(address: str) -> str:
    """Of "host:port", "[::1]:port" or a host alone."""
    if address.startswith("["):
        return address.partition("]")[0][1:]
    return address.rpartition(":")[0] if address.count(":") == 1 else address


def _read(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise ConfigError([f"cannot be read: {error.strerror}"], str(path)) from None


def read_token(path: Path) -> str:
    """The token in a file.

    Raises:
        ConfigError: no such file, or something else in it. The error never quotes what it holds.
    """
    words = (_read(path) or b"").split()
    if len(words) != 1 or not words[0].isascii() or not words[0].decode().isprintable():
        raise ConfigError(
            [f"expected one token, got {len(words)} words (`coe-cloud certs token` makes one)"], str(path)
        )
    return words[0].decode()


Stamp = tuple[int, int, int] | None


def stamp(path: Path) -> Stamp:
    """What changes when a file does; None: there is no such file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class _TokenFile:
    """The token in a file, read again when the file changes; one that cannot be used leaves the old one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp = stamp(path)
        self._token = read_token(path)

    def __call__(self) -> str:
        found = stamp(self.path)
        if found != self._stamp:
            with contextlib.suppress(ConfigError):  # being written: read again with the next call
                self._token = read_token(self.path)
                self._stamp = found
        return self._token


class _BearerToken(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[type-arg]
    grpc.UnaryStreamClientInterceptor,  # type: ignore[type-arg]
    grpc.StreamUnaryClientInterceptor,  # type: ignore[type-arg]
    grpc.StreamStreamClientInterceptor,  # type: ignore[type-arg]
):
    """Adds the token to each call.

    gRPC's own call credentials would do so, too, but on a thread made for each call: 150 us against 30 us here.
    """

    def __init__(self, token: Callable[[], str]) -> None:
        self._token = token

    def _intercept(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        metadata = [*(client_call_details.metadata or ()), ("authorization", f"Bearer {self._token()}")]
        return continuation(client_call_details._replace(metadata=metadata), request)

    intercept_unary_unary = intercept_unary_stream = _intercept
    intercept_stream_unary = intercept_stream_stream = _intercept  # type: ignore[assignment]
