"""Who calls: the device's name, proven by its certificate or by a bearer token from the token file.

"pi-1": 9f86d08...                                          # 64 hex digits
"pi-2": [9f86d08..., 60303ae...]                            # two tokens, while one replaces the other
"pi-3": {sha256: 9f86d08..., quota: {examples_per_s: 5, burst: 20}}
"pi-4": {quota: {examples_per_s: 5}}                        # shows a certificate; this is its quota

A plain hash is right for these tokens, and for these alone: they are random, 256 bits, and cannot be guessed.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cloud.limits import Rate
from coe.cascade.errors import NotAllowed, Unauthenticated
from coe.config import Fields, Report, read_yaml
from coe.config.settings import read_settings

from .reload import ReloadedFiles

if TYPE_CHECKING:
    from .config import Security

HASH = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class Tokens:
    """The token file: devices by the hash of a token, and the rates of devices that have their own."""

    by_hash: Mapping[str, str] = field(default_factory=dict)
    quotas: Mapping[str, Rate] = field(default_factory=dict)


def hash_of(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def read_tokens(path: Path) -> Tokens:
    """The file's devices.

    Raises:
        ConfigError: every entry that is wrong. What stands where a hash belongs is never shown: it may be a token.
    """
    report = Report(str(path))
    by_hash: dict[str, str] = {}
    quotas: dict[str, Rate] = {}
    for name, entry in Fields(read_yaml(path), report).content.items():
        device = Fields(entry if isinstance(entry, Mapping) else {"sha256": entry}, report, str(name))
        if device.has("quota"):
            quotas[str(name)] = read_settings(Rate, device.section("quota"))
        if device.has("sha256") or not device.has("quota"):
            for digest in _hashes(device):
                owner = by_hash.setdefault(digest, str(name))
                if owner != str(name):
                    device.wrong("sha256", f"expected a token of its own, got the one of {owner}")
        device.finish()
    report.check()
    return Tokens(by_hash, quotas)


def _hashes(device: Fields) -> list[str]:
    value = device.raw("sha256", expected="the sha256 of its token")
    entries = value if isinstance(value, list) else [] if value is None else [value]
    good = [entry.lower() for entry in entries if isinstance(entry, str) and HASH.fullmatch(entry)]
    if len(good) < len(entries):
        device.wrong("sha256", "expected 64 hex digits, got something else (`coe-cloud certs token` makes them)")
    return good


MOST_NAME = 253  # characters, as of a DNS name
BEARER = "bearer "


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller. `name` is "" where nobody has to have one."""

    name: str
    how: Literal["certificate", "token", "anonymous"]


ANONYMOUS = Identity("", "anonymous")


class Authenticator:
    """Finds out who calls, from what the connection and the call show, and refuses whoever is not allowed.

    Raises:
        ConfigError: the file of tokens cannot be used.
    """

    def __init__(self, security: Security, clock: Callable[[], float] = time.monotonic) -> None:
        self.security = security
        self._allowed = re.compile("|".join(fnmatch.translate(pattern) for pattern in security.allow))
        self._tokens: ReloadedFiles[Tokens] | None = None
        if (path := security.tokens) is not None:
            self._tokens = ReloadedFiles(
                "tokens", [path], lambda: read_tokens(path), security.reload_s, in_background=True, clock=clock
            )

    def identify(self, certificate_names: Sequence[str], token: str | None) -> Identity:
        """The caller.

        Args:
            certificate_names: of a certificate that the handshake has verified; the first one is the device's.
            token: as it came; ignored where the server has no tokens.
        Raises:
            Unauthenticated: it shows nothing, or an unknown token, or certificate and token of two devices.
            NotAllowed: it is not on the allow-list.
        """
        by_token: str | None = None
        if token is not None and self._tokens is not None:
            # Found by hash: the time it takes reveals the hash at most, which is useless without the token.
            by_token = self._tokens.current().by_hash.get(hash_of(token))
            if by_token is None:
                fix = "`coe-cloud certs token` makes one"
                raise Unauthenticated(f"expected a token of a known device, got another ({fix})")
        if certificate_names and self.security.client_ca is not None:
            name = certificate_names[0]
            if not name or len(name) > MOST_NAME or not name.isprintable():
                raise Unauthenticated(f"expected a certificate with a printable name of at most {MOST_NAME} characters")
            if by_token is not None and by_token != name:
                raise Unauthenticated("expected a certificate and a token of one device, got those of two")
            identity = Identity(name, "certificate")
        elif by_token is not None:
            identity = Identity(by_token, "token")
        elif self.security.asks_who:
            given = self.security
            ways = {"a client certificate": given.client_ca, "`authorization: Bearer ...`": given.tokens}
            expected = " or ".join(way for way, setting in ways.items() if setting is not None)
            raise Unauthenticated(f"expected {expected or 'a way to tell devices apart'}, got none")
        else:
            return ANONYMOUS
        if self.security.allow and not self._allowed.match(identity.name):
            raise NotAllowed(f'device "{identity.name}" is not on the allow-list')
        return identity

    def of_grpc(self, context: Any) -> Identity:
        """The caller of a gRPC call: `identify` on what its context shows."""
        if not self.security.asks_who:
            return ANONYMOUS
        return self.identify(*identity_of_call(context, certificate=self.security.client_ca is not None))

    def rate_of(self, name: str) -> Rate | None:
        """The device's own quota, where the file of tokens gives it one."""
        return None if self._tokens is None else self._tokens.current().quotas.get(name)


def identity_of_call(context: Any, *, certificate: bool = True) -> tuple[tuple[str, ...], str | None]:
    """What a gRPC call, sync or asyncio, shows: the names in its certificate, and its token.

    Args:
        certificate: read it; that takes longer than all the rest.
    """
    names: tuple[str, ...] = ()
    if certificate:
        shown = context.auth_context()
        found = [*shown.get("peer_dns", ()), *shown.get("peer_uri", ())] or [*shown.get("x509_common_name", ())]
        names = tuple(name.decode("utf-8", "replace") for name in found)
    headers = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
    return names, bearer(one_header(headers))


def one_header(headers: Sequence[str]) -> str | None:
    """The `authorization` header; None where there is none, Unauthenticated raised where there are several."""
    if len(headers) > 1:
        raise Unauthenticated(f"expected one `authorization`, got {len(headers)}")
    return headers[0] if headers else None


def peer_names(certificate: Mapping[str, Any]) -> tuple[str, ...]:
    """The names in a certificate as Python's `ssl` gives it: DNS, then URI, else the common name."""
    others = certificate.get("subjectAltName", ())
    names = [name for wanted in ("DNS", "URI") for kind, name in others if kind == wanted]
    common = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return tuple(names or common)


def bearer(header: str | None) -> str | None:
    """The token of an `authorization` header; None for any other kind of it."""
    if header is None or header[: len(BEARER)].lower() != BEARER:
        return None
    return header[len(BEARER) :].strip()
