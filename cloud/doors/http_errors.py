"""The table between our errors and HTTP's: by the status gRPC gives them, so that both doors agree."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import grpc

from coe.cascade.errors import CascadeError, TierOverloaded, Unauthenticated
from coe.wire.servicer import NotOffered
from coe.wire.status import to_status

HTTP: Mapping[grpc.StatusCode, int] = MappingProxyType(
    {
        grpc.StatusCode.INVALID_ARGUMENT: 400,
        grpc.StatusCode.UNAUTHENTICATED: 401,
        grpc.StatusCode.PERMISSION_DENIED: 403,
        grpc.StatusCode.NOT_FOUND: 404,
        grpc.StatusCode.FAILED_PRECONDITION: 409,
        grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
        grpc.StatusCode.INTERNAL: 500,
        grpc.StatusCode.UNIMPLEMENTED: 501,
        grpc.StatusCode.UNAVAILABLE: 503,
        grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    }
)
RETRY_S = 1  # where nobody knows better; the header has whole seconds
ASK_TOKEN = 'Bearer realm="coe-cloud"'


class HttpError(CascadeError):
    """What only HTTP can get wrong: a body, a header, a method."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


def to_http(error: Exception) -> tuple[int, dict[str, str], str]:
    """Status, headers and text for the caller. What is not expected becomes 500 with an id of the log's."""
    if isinstance(error, HttpError):
        return error.status, error.headers, str(error)
    if isinstance(error, NotOffered):
        return 501, {}, str(error)
    code, text = to_status(error)
    headers: dict[str, str] = {}
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = ASK_TOKEN
    if isinstance(error, TierOverloaded):
        seconds = error.retry_after_s
        headers["retry-after"] = str(RETRY_S if seconds is None else max(1, math.ceil(seconds)))
    return HTTP.get(code, 500), headers, text
