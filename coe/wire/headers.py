"""What travels beside a request: headers that belong to one call, such as those of a trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar

Header = tuple[str, str]
Headers = Callable[[], Sequence[Header]]

OUTGOING: ContextVar[tuple[Header, ...]] = ContextVar("coe_outgoing_headers", default=())
"""Headers of every call to a remote tier made in this context, such as those of a trace that is handed on unchanged;
names in lower case."""


def headers_of(own: Headers | None) -> tuple[Header, ...]:
    """A call's headers: the tier's own, and those of the context that have other names."""
    outgoing = OUTGOING.get()
    if own is None:
        return outgoing
    mine = tuple(own())
    names = {name for name, _ in mine}
    return (*mine, *(header for header in outgoing if header[0] not in names))
