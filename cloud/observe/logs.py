"""Logs: one line a record, as JSON or plain, with a request's id, caller and model, and never what was sent.

An error's message goes to its caller. The log has it only where it is ours and cannot quote an example: a library's
exception may well have the payload in its message, so of those the log has the kind and the trace. What a caller chose
(ids, names) is cut short, and nothing in it can end a line or pass for another field.
"""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections import Counter
from collections.abc import Mapping
from typing import Any, TextIO

import numpy as np

from cloud.config import ObserveConfig
from coe.cascade.errors import ConfigError, ModelError, NotAllowed, TierError, TierFailed, Unauthenticated
from coe.protocol import trace_context
from coe.protocol.codec import WireError
from coe.protocol.core import Decided, Request, ServedModel
from coe.protocol.status import UnknownModel

from .tally import INTERNAL, OK, code_of, kind_of

MOST_TEXT = 200  # characters of what a caller chose
MOST_MESSAGE = 2000
MOST_FRAMES = 30
MOST_LINES = 20  # a second, of failures of one code: refusing must stay cheaper than asking
WITHHELD = "(withheld)"

log = logging.getLogger("coe.cloud.requests")


def configure(settings: ObserveConfig, stream: TextIO | None = None) -> logging.Handler:
    """Everything the process logs goes to `stream` (None: stderr) in this form, and nowhere else."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter(settings.log_format))
    logging.basicConfig(handlers=[handler], level=settings.log_level.upper(), force=True)
    return handler


class LineFormatter(logging.Formatter):
    """A record as one line. A record's `fields` (by `extra=`) come after the message.

    Args:
        form: "json" or "plain".
    """

    def __init__(self, form: str = "plain") -> None:
        super().__init__()
        self.form = form

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        fields: dict[str, Any] = {"logger": record.name, "message": _message(record, error)}
        fields |= getattr(record, "fields", {})
        if error is not None:
            fields["error"] = {"kind": kind_of(error), "reason": safe_text(error), "trace": trace_of(error)}
        moment = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03}Z"
        level = record.levelname.lower()
        if self.form == "json":
            return json.dumps({"time": moment, "level": level} | fields, default=str)  # ASCII: no odd line ends
        fields |= {f"error_{key}": value for key, value in fields.pop("error", {}).items()}
        message, name = fields.pop("message"), fields.pop("logger")
        pairs = [f"{key}={_quoted(value)}" for key, value in fields.items() if value != ""]
        return " ".join([moment, f"{level:7}", f"{name}:", message, *pairs])


class RequestLog:
    """Logs requests: those that failed, and with `answers` those answered."""

    def __init__(self, answers: bool = False) -> None:
        self.answers = answers
        self._second = 0
        self._written: Counter[str] = Counter()  # in this second, by code
        self._left_out: Counter[str] = Counter()

    def answered(self, request: Request, served: ServedModel, decided: Decided, seconds: float) -> None:
        if not self.answers or not log.isEnabledFor(logging.INFO):
            return
        exits = np.bincount(decided.column("exit_tier", served)).tolist()
        by_tier = {str(number): n for number, n in enumerate(exits) if n}
        fields = _of_request(request, served.name, sum(exits)) | {"exits": by_tier, "code": OK}
        log.info("answered", extra={"fields": fields | {"seconds": round(seconds, 6)}})

    def failed(self, request: Request, error: BaseException, seconds: float) -> None:
        code = code_of(error)
        is_bug = code == INTERNAL and not isinstance(error, TierFailed)  # whose members are in the log already
        if not is_bug and not self._has_room(code):
            return
        fields = _of_request(request, clean(request.model, 64), request.n_rows) | {"code": code}
        fields["seconds"] = round(seconds, 6)
        if is_bug:
            log.error("failed", exc_info=error, extra={"fields": fields})
        else:
            fields |= {"kind": kind_of(error), "reason": safe_text(error)}
            log.warning("failed", extra={"fields": fields})

    def _has_room(self, code: str) -> bool:
        """True if a failure of that code may still be logged this second; logs how many were left out before."""
        now = int(time.monotonic())
        if now != self._second:
            self._second = now
            self._written.clear()
            for left_out, n in self._left_out.items():
                log.warning("failed: more than were logged", extra={"fields": {"code": left_out, "left_out": n}})
            self._left_out.clear()
        self._written[code] += 1
        if self._written[code] <= MOST_LINES:
            return True
        self._left_out[code] += 1
        return False


def clean(text: str, most: int = MOST_TEXT) -> str:
    """`text` cut short, on one line, with invisible characters (controls, text direction marks) escaped."""
    text = text if len(text) <= most else f"{text[:most]}..."
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def safe_text(error: BaseException) -> str:
    """The error's message as the log may have it: "" where it might quote what was sent."""
    if isinstance(error, UnknownModel | Unauthenticated | NotAllowed | ConfigError | ModelError):
        return clean(str(error))
    if isinstance(error, TierError):  # what follows the first colon may be another server's text
        return clean(f"tier {error.tier}: {error.message.partition(':')[0]}")
    if isinstance(error, WireError):
        return clean(f"{error.where}: expected {error.expected}")
    return ""


def trace_of(error: BaseException) -> str:
    """Kinds and places of an error and of those that led to it, the first cause last. No messages, no values."""
    parts: dict[int, str] = {}
    following: BaseException | None = error
    while following is not None and id(following) not in parts:
        frames = traceback.extract_tb(following.__traceback__)[-MOST_FRAMES:]
        places = " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames))
        parts[id(following)] = clean(f"{type(following).__name__} at {places or 'an unknown place'}", 10_000)
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)
    return " | caused by ".join(parts.values())


def _message(record: logging.LogRecord, error: BaseException | None) -> str:
    """The record's message, without the messages of exceptions in it, which `safe_text` has."""
    try:
        text = record.getMessage()
    except Exception:  # noqa: BLE001 - arguments that do not fit; logging itself would print them all
        text = str(record.msg)
    given = record.args.values() if isinstance(record.args, Mapping) else record.args or ()
    errors = [one for one in (error, *given) if isinstance(one, BaseException)]
    if errors:
        text = text.partition("\n")[0]  # asyncio adds a line with the whole exception
    for words in filter(None, (words for one in errors for words in (repr(one), str(one), *map(str, one.args)))):
        text = text.replace(words, WITHHELD)
    return clean(text, MOST_MESSAGE)


def _of_request(request: Request, model: str, n_rows: int) -> dict[str, Any]:
    fields = {"id": clean(request.id), "caller": clean(request.caller), "model": model, "rows": n_rows}
    trace_id = trace_context.id_of(request.trace) if request.trace else ""
    return fields | {"trace": trace_id} if trace_id else fields


def _quoted(value: Any) -> str:
    """A value that cannot be taken for two fields."""
    if isinstance(value, dict):
        return ",".join(f"{key}:{n}" for key, n in value.items())
    text = str(value)
    return text if text and not set(text) & set(' "=\\') else json.dumps(text, ensure_ascii=False)
