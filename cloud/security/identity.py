"""Who calls: the device's name, proven by its certificate or by its bearer token."""

from __future__ import annotations

import fnmatch
import hmac
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from coe.cascade.errors import NotAllowed, Unauthenticated

from .config import Security
from .quota import Rate
from .reload import Watched
from .tokens import Tokens, hash_of, read_tokens

MOST_NAME = 253  # characters, as of a DNS name
BEARER = "bearer "


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller. `name` is "" where nobody has to have one."""

    name: str
    how: Literal["certificate", "token", "anonymous"]


ANONYMOUS = Identity("", "anonymous")


class Authenticator:
    """Decides who calls, and whether it may, from what the connection and the call show.

    Raises:
        ConfigError: the file of tokens cannot be used.
    """

    def __init__(self, security: Security, clock: Callable[[], float] = time.monotonic) -> None:
        self.security = security
        self._allowed = re.compile("|".join(fnmatch.translate(pattern) for pattern in security.allow))
        self._tokens: Watched[Tokens] | None = None
        if (path := security.tokens) is not None:
            self._tokens = Watched(
                "tokens", [path], lambda: read_tokens(path), security.reload_s, in_background=True, clock=clock
            )

    def identify(self, certificate_names: Sequence[str], token: str | None) -> Identity:
        """The caller.

        Args:
            certificate_names: of a certificate that the handshake has verified; the first one is the device's.
            token: as it came; not looked at where the server has no tokens.
        Raises:
            Unauthenticated: it shows nothing, or a token nobody has; or its certificate and its token are of two.
            NotAllowed: it is not on the allow-list.
        """
        by_token = None if token is None or self._tokens is None else self._owner(token, self._tokens.current())
        if certificate_names and self.security.client_ca is not None:
            name = _checked(certificate_names[0])
            if by_token is not None and by_token != name:
                raise Unauthenticated("expected a certificate and a token of one device, got those of two")
            identity = Identity(name, "certificate")
        elif by_token is not None:
            identity = Identity(by_token, "token")
        elif self.security.asks_who:
            raise Unauthenticated(f"expected {self._expected()}, got none")
        else:
            return ANONYMOUS
        if self.security.allow and not self._allowed.match(identity.name):
            raise NotAllowed(f'device "{identity.name}" is not on the allow-list')
        return identity

    def of_grpc(self, context: Any) -> Identity:
        """The caller of a gRPC call, sync or asyncio: `identify` on what its context shows."""
        if not self.security.asks_who:
            return ANONYMOUS
        return self.identify(*grpc_identity(context, certificate=self.security.client_ca is not None))

    def rate_of(self, name: str) -> Rate | None:
        """The device's own quota, where the file of tokens gives it one."""
        return None if self._tokens is None else self._tokens.current().quotas.get(name)

    def _owner(self, token: str, tokens: Tokens) -> str:
        """Looked up by hash: how long that takes tells of the hash at most, which is of no use without the token."""
        digest = hash_of(token)
        known = tokens.by_hash.get(digest)
        if known is not None and hmac.compare_digest(known.digest, digest):
            return known.device
        raise Unauthenticated("expected a token of a known device, got another (`coe-cloud certs token` makes one)")

    def _expected(self) -> str:
        ways = [
            ("a client certificate", self.security.client_ca),
            ("`authorization: Bearer ...`", self.security.tokens),
        ]
        return " or ".join(way for way, setting in ways if setting is not None) or "a way to tell devices apart"


class _Call(Protocol):
    """What `grpc.ServicerContext` and `grpc.aio.ServicerContext` share."""

    def auth_context(self) -> Mapping[str, Any]: ...

    def invocation_metadata(self) -> Any: ...


def grpc_identity(context: _Call, *, certificate: bool = True) -> tuple[tuple[str, ...], str | None]:
    """What a gRPC call shows: the names in its certificate, and its token.

    Args:
        certificate: look for one; it takes longer than all the rest.
    """
    names: tuple[str, ...] = ()
    if certificate:
        shown = context.auth_context()
        found = [*shown.get("peer_dns", ()), *shown.get("peer_uri", ())] or [*shown.get("x509_common_name", ())]
        names = tuple(name.decode("utf-8", "replace") for name in found)
    headers = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
    if len(headers) > 1:
        raise Unauthenticated(f"expected one `authorization`, got {len(headers)}")
    return names, bearer(headers[0]) if headers else None


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


def _checked(name: str) -> str:
    if not name or len(name) > MOST_NAME or not name.isprintable():
        raise Unauthenticated(f"expected a certificate with a printable name of at most {MOST_NAME} characters")
    return name
