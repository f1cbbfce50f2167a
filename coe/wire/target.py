"""Where a tier's hosts are: one address, a name with several records, or a list, as one target of gRPC's."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from coe.cascade.errors import ConfigError

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Target:
    """What a channel is opened to.

    Args:
        uri: as gRPC names it.
        is_balanced: several hosts may be behind it.
    """

    uri: str
    is_balanced: bool


def target_of(addresses: Sequence[str]) -> Target:
    """The target of one or more "host:port".

    One name is looked up by gRPC, anew as hosts fail, and every record of it is a host. The names of a list are looked
    up here, once: gRPC takes a list of IP addresses alone.

    Raises:
        ConfigError: a name of a list cannot be looked up.
    """
    if len(addresses) == 1:
        (address,) = addresses
        return Target(address, is_balanced=_ip(split(address)[0]) is None)
    hosts = list(dict.fromkeys(host for address in addresses for host in _looked_up(address)))
    if all(ip.version == 4 for ip, _ in hosts):
        return Target("ipv4:" + ",".join(f"{ip}:{port}" for ip, port in hosts), is_balanced=True)
    return Target("ipv6:" + ",".join(f"[{_as_v6(ip)}]:{port}" for ip, port in hosts), is_balanced=True)


def is_address(text: str) -> bool:
    """Whether it is "host:port"."""
    host, port = split(text)
    return bool(host) and port.isdecimal() and len(port) < 6 and 0 < int(port) < 65536


def split(address: str) -> tuple[str, str]:
    """Host and port of "host:port"."""
    host, _, port = address.rpartition(":")
    return host, port


def _ip(host: str) -> IPAddress | None:
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


def _looked_up(address: str) -> Iterable[tuple[IPAddress, int]]:
    host, port = split(address)
    ip = _ip(host)
    if ip is not None:
        return [(ip, int(port))]
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:
        mend = "write its IP address, or start once the name is known"
        raise ConfigError([f"address {address}: the name cannot be looked up: {error} ({mend})"]) from None
    return [(ipaddress.ip_address(str(sockaddr[0])), int(port)) for *_, sockaddr in found]


def _as_v6(ip: IPAddress) -> str:
    """gRPC takes addresses of one kind in a list: an IPv4 address has an IPv6 form."""
    return str(ip) if ip.version == 6 else f"::ffff:{ip}"
