"""Where a phone opens the page of a server: the addresses of this machine in its networks, and a QR code of one."""

from __future__ import annotations

import fcntl
import importlib
import io
import ipaddress
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from urllib.parse import quote

from coe.protocol.channel import reachable
from coe.protocol.credentials import is_loopback

from .transports.device_page import PATH, DevicePage

SIOCGIFADDR = 0x8915  # Linux: an interface's IPv4 address


def lan_addresses() -> list[str]:
    """IPv4 addresses of this machine's interfaces, loopback left out."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(asked, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # it has none
                continue
            address = ipaddress.IPv4Address(answer[20:24])
            if not address.is_loopback:
                found.append(str(address))
    return list(dict.fromkeys(found))


def announcement(
    device: DevicePage,
    host: str,
    http_port: int,
    has_tls: bool,
    authority: str = "",
    addresses: Callable[[], Sequence[str]] = lan_addresses,
) -> tuple[list[str], str]:
    """Lines for the server's console, and the URL for a QR code; "" where no phone can open the page.

    Args:
        host: where the server listens.
        authority: path of the page that hands out the server's own CA; "": there is none.
    """
    if device.why:
        return [f"no page for phones: {device.why}"], ""
    scheme = "https" if has_tls else "http"
    if is_loopback(host):
        here = f"{scheme}://{reachable(host)}:{http_port}{PATH}"
        return [f"the page for phones is on this machine alone: {here} (--host 0.0.0.0 opens it to a phone)"], ""
    hosts = list(addresses()) if host in ("0.0.0.0", "::", "[::]") else []
    urls = [f"{scheme}://{one}:{http_port}" for one in hosts or [reachable(host)]]
    lines = [f"a phone opens {' or '.join(url + PATH for url in urls)}"]
    if authority:
        lines.append(f"once before that, it installs the CA that it finds at {urls[0]}{authority}")
    if not has_tls:
        lines.append("over plain HTTP it has no camera and no offline copy (security.tls brings them)")
    return lines, urls[0] + PATH


def with_token(url: str, token: str) -> str:
    """The URL with a token in its fragment, which a browser sends to nobody."""
    return f"{url.partition('#')[0]}#token={quote(token, safe='')}"


def qr_code(text: str) -> str:
    """The text as a QR code for a terminal; "" where segno is not installed."""
    try:
        segno = importlib.import_module("segno")
    except ImportError:
        return ""
    drawn = io.StringIO()
    segno.make(text, micro=False).terminal(out=drawn, compact=True, border=2)
    return drawn.getvalue()


def show_qr_code(url: str) -> None:
    """Print it where standard output is a terminal: a log has no use for it."""
    if url and sys.stdout.isatty():
        print(qr_code(url), flush=True)
