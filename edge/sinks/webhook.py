"""Decisions to a URL, by POST."""

from __future__ import annotations

import hashlib
import http.client
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from coe import __version__
from coe.cascade.errors import ConfigError, describe_error

from .base import Record
from .config import WebhookConfig
from .delivery import PermanentFailure, read_secret

LATER = (401, 403, 404, 407, 408, 425, 429)  # of 4xx: the same request may be accepted later, as with a new token
MOST_ANSWER_BYTES = 2**16
MOST_REASON = 200  # characters of a response that are reported


class RetryLater(OSError):
    """The records cannot be taken now; `retry_after_s`: when they may be, where the server said so."""

    def __init__(self, text: str, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class WebhookTransport:
    """Posts records as JSON: each as an object, or several together (`batch` above 1) as an array.

    A refusal (4xx, or a redirect) is final; a request not answered in time, or with 5xx, is sent again with the same
    `Idempotency-Key`, so that a server can recognise it.

    Raises:
        ConfigError: the token or the CA cannot be read.
    """

    kind = "webhook"

    def __init__(self, config: WebhookConfig) -> None:
        self.config = config
        parts = urlsplit(config.url)
        self.name = f"{parts.scheme}://{parts.netloc}"  # what follows may be a secret
        self.most = config.batch
        self.gather_s = config.gather_s if config.batch > 1 else 0.0
        _headers(config)  # a token that cannot be used is an error now
        handlers: list[Any] = [_NoRedirects()]
        if config.is_local:
            handlers.append(urllib.request.ProxyHandler({}))
        if config.url.startswith("https"):
            handlers.append(urllib.request.HTTPSHandler(context=_context(config)))
        self._opener = urllib.request.build_opener(*handlers)

    def send(self, records: Sequence[Record]) -> None:
        content = json.dumps(list(records) if self.config.batch > 1 else records[0]).encode()
        try:
            headers = {**_headers(self.config), "Idempotency-Key": hashlib.sha256(content).hexdigest()[:32]}
        except ConfigError as error:  # the token's file is being replaced
            raise RetryLater(str(error)) from None
        request = urllib.request.Request(self.config.url, content, headers, method="POST")
        try:
            with self._opener.open(request, timeout=self.config.timeout_s) as answer:
                answer.read(MOST_ANSWER_BYTES)
        except urllib.error.HTTPError as error:
            with error:
                raise _error_from_response(error) from None
        except urllib.error.URLError as error:
            reason = error.reason
            raise RetryLater(reason if isinstance(reason, str) else describe_error(reason)) from None
        except http.client.HTTPException as error:
            raise RetryLater(f"its answer cannot be read: {describe_error(error)}") from None

    def close(self) -> None:
        self._opener.close()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A POST that is redirected would arrive as a GET, without its records."""

    def redirect_request(self, *_: object) -> None:
        return None


def _error_from_response(error: urllib.error.HTTPError) -> Exception:
    text = f"HTTP {error.code} {error.reason}"
    if error.code >= 500 or error.code in LATER:
        return RetryLater(text, _seconds(error.headers.get("Retry-After")))
    if 300 <= error.code < 400:
        return PermanentFailure(f"{text}, to {error.headers.get('Location')} (set `url:` to where it leads)")
    answer = error.read(MOST_REASON).decode("utf-8", "replace").strip()
    return PermanentFailure(f"{text}: {answer}" if answer else text)


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.isdecimal() and len(text) < 10 else None


def _headers(config: WebhookConfig) -> Mapping[str, str]:
    headers = {"Content-Type": "application/json", "User-Agent": f"coe-edge/{__version__}", **dict(config.headers)}
    if config.token_file is not None:
        headers["Authorization"] = f"Bearer {read_secret(config.token_file, 'sink.token_file', 'ascii')}"
    return headers


def _context(config: WebhookConfig) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=None if config.ca is None else str(config.ca))
    except OSError as error:
        raise ConfigError([f"sink.ca: {config.ca} cannot be used: {describe_error(error)}"]) from None
