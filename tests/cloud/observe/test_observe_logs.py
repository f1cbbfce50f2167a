"""What the logs say of requests, and what they never say."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import re
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from watching import World, core, decided, request, served

from cloud.config import ObserveConfig
from cloud.observe.logs import MOST_LINES, LineFormatter, RequestLog, clean, configure
from cloud.observe.observer import Observer
from coe.cascade import Cascade, CascadeError, InputError, TierOverloaded, TierRejected
from coe.models.inputs import decode_image
from coe.protocol.codec import WireError
from coe.protocol.core import Decided, Request
from coe.protocol.status import UnknownModel, to_status

CANARY = "canary-4711"


class Lines(io.StringIO):
    """A log's stream, as its lines."""

    @property
    def lines(self) -> list[str]:
        return self.getvalue().splitlines()

    @property
    def records(self) -> list[dict]:
        return [json.loads(line) for line in self.lines]


@pytest.fixture(params=["json", "plain"])
def form(request) -> str:
    return request.param


@pytest.fixture
def start() -> Iterator[object]:
    """Configures the process' logs into a stream; afterwards all is as it was."""
    root = logging.getLogger()
    before = root.handlers[:], root.level

    def started(form: str = "json", level: str = "info") -> Lines:
        stream = Lines()
        configure(ObserveConfig(log_format=form, log_level=level), stream)
        return stream

    yield started
    root.handlers[:], level = before[0], before[1]
    root.setLevel(level)


def ask(one: Request, *, log_requests: bool = True, model: object = None) -> None:
    observer = Observer(ObserveConfig(log_requests=log_requests), World().view)
    made = core(observer, model or served())  # type: ignore[arg-type]
    with contextlib.suppress(Exception):  # the watchers were told
        asyncio.run(made.infer(one))


def test_a_request_is_one_line_with_all_that_is_needed_to_find_it(start):
    stream = start()
    ask(request([0, 1, 2], id="abc", caller="pi-7"))
    (record,) = stream.records
    assert record["level"] == "info"
    assert record["message"] == "answered"
    facts = {key: record[key] for key in ("id", "caller", "model", "rows", "exits", "code")}
    assert facts == {
        "id": "abc",
        "caller": "pi-7",
        "model": "digits",
        "rows": 3,
        "exits": {"1": 2, "2": 1},
        "code": "OK",
    }
    assert 0 < record["seconds"] < 10
    assert record["time"].endswith("Z")


def test_a_plain_line_says_the_same(start):
    stream = start("plain")
    ask(request([0, 1, 2], id="abc", caller="pi-7"))
    (line,) = stream.lines
    assert "answered id=abc caller=pi-7 model=digits rows=3 exits=1:2,2:1 code=OK seconds=" in line


def test_requests_are_not_logged_unless_asked_for_but_failures_are(start):
    stream = start()
    ask(request(), log_requests=False)
    ask(request(model="nobody", id="abc"), log_requests=False)
    (record,) = stream.records
    assert (record["level"], record["code"], record["kind"]) == ("warning", "NOT_FOUND", "UnknownModel")
    assert record["reason"].startswith("model: expected one of digits")


def test_a_bug_is_an_error_with_its_trace_in_one_field(start):
    stream = start()
    broken = served()

    async def decide(batch: object) -> Decided:
        raise ZeroDivisionError(CANARY)

    object.__setattr__(broken, "decide", decide)
    ask(request(id="abc"), model=broken)
    (record,) = stream.records
    assert (record["level"], record["id"], record["code"]) == ("error", "abc", "INTERNAL")
    assert record["error"]["kind"] == "bug"
    assert "ZeroDivisionError at " in record["error"]["trace"]
    assert "test_observe_logs.py" in record["error"]["trace"]
    assert " decide" in record["error"]["trace"]


def test_an_error_says_what_led_to_it(start):
    stream = start()
    try:
        try:
            raise KeyError(CANARY)
        except KeyError as error:
            raise ValueError("outer") from error
    except ValueError as error:
        logging.getLogger("x").error("it broke", exc_info=error)
    assert "| caused by KeyError at " in stream.records[0]["error"]["trace"]


ERRORS = [
    lambda: float(CANARY),  # "could not convert string to float: 'canary-4711'"
    lambda: int(CANARY.encode()),
    lambda: {}[CANARY],
    lambda: np.array([CANARY]).astype(np.float32),
    lambda: json.loads(f'{{"{CANARY}"'),
    lambda: decode_image(CANARY.encode(), 1),
    lambda: (_ for _ in ()).throw(InputError(f"expected a number, got {CANARY!r}")),
    lambda: (_ for _ in ()).throw(WireError("input", "a number", repr(CANARY), "send one")),
    lambda: (_ for _ in ()).throw(TierRejected("best", f"INVALID_ARGUMENT: example row 0: got {CANARY}")),
    lambda: (_ for _ in ()).throw(RuntimeError(CANARY.encode())),
    lambda: (_ for _ in ()).throw(UnicodeDecodeError("utf-8", CANARY.encode(), 0, 1, "bad")),
]


@pytest.mark.parametrize("number", range(len(ERRORS)))
def test_a_payload_is_in_no_log_whatever_error_it_causes(start, form, number):
    """The canary is the request's input; each error quotes it, as the library's own messages do."""
    stream = start(form, "debug")
    failing = served()

    async def decide(batch: object) -> Decided:
        ERRORS[number]()
        raise AssertionError("not reached")

    object.__setattr__(failing, "decide", decide)
    made = core(Observer(ObserveConfig(log_requests=True), World().view), failing)

    async def ask_and_be_refused() -> None:
        try:
            await made.infer(request(id="abc"))
        except Exception as error:  # noqa: BLE001 - as a server does
            to_status(error)
        loop = asyncio.get_running_loop()
        try:
            ERRORS[number]()
        except Exception as error:
            future = loop.create_future()
            future.set_exception(error)
            loop.call_exception_handler(
                {"message": "Task exception was never retrieved", "exception": error, "future": future}
            )
            future.exception()
            logging.getLogger("grpc").error("Exception calling application: %s", error, exc_info=error)
            logging.getLogger("other").warning("tried again: %s", error)

    asyncio.run(ask_and_be_refused())
    assert len(stream.lines) >= 4
    assert any("abc" in line for line in stream.lines)
    for text in (CANARY, CANARY.encode()[:8].hex(" ")):
        assert text not in stream.getvalue()


def test_an_answered_payload_is_in_no_log(start, form):
    stream = start(form)
    values = np.array([[0]], dtype=np.int64)
    ask(Request("digits", "", "abc", {CANARY: values}))
    assert len(stream.lines) == 1
    assert CANARY not in stream.getvalue()


def pairs_of(line: str) -> dict[str, str]:
    """The fields of a plain line, read as a program would: `key=word` or `key="quoted"`."""
    pair = r'(\w+)=("(?:[^"\\]|\\.)*"|[^\s"]+)'
    message, fields = re.fullmatch(rf"(.*?: \w+)((?: {pair})*)", line).group(1, 2)
    assert message
    found = re.findall(pair, fields)
    assert len({key for key, _ in found}) == len(found)
    return dict(found)


HOSTILE = [
    "a\nb",
    "a\r\n2025-01-01T00:00:00.000Z info fake",
    "a\u2028b\u2029c\x85d",
    "\x1b[31mred\x1b[0m",
    "\u202eevil",
    "\x00\x07",
    '" code=OK',
    "x code=OK rows=9",
    "\ud800",
    "é" * 5000,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_an_id_cannot_start_a_line_or_pass_for_another_field(start, form, text):
    stream = start(form)
    ask(request(id=text, caller=text))
    ask(request(model=text, id=text))
    written = stream.getvalue()
    assert written.count("\n") == 2
    assert len(stream.lines) == 2
    for line in stream.lines:
        assert line.isprintable()
        assert len(line) < 4000
    if form == "json":
        answered, failed = stream.records
        assert (answered["code"], answered["rows"], failed["code"]) == ("OK", 1, "NOT_FOUND")
    else:
        answered, failed = (pairs_of(line) for line in stream.lines)
        assert (answered["code"], answered["rows"], failed["code"]) == ("OK", "1", "NOT_FOUND")


@given(st.text())
def test_cleaned_text_is_printable_and_printable_text_stays(text):
    cleaned = clean(text, 10_000)
    assert cleaned.isprintable()
    if text.isprintable():
        assert cleaned == text


def test_a_flood_of_refusals_is_written_down_in_part_and_the_rest_is_counted(start, monkeypatch):
    stream = start()
    now = [100.0]
    monkeypatch.setattr("cloud.observe.logs.time.monotonic", lambda: now[0])
    log = RequestLog()
    for _ in range(1000):
        log.failed(request(), TierOverloaded("medium", "x"), 0.0)
    log.failed(request(), ValueError(), 0.0)  # a bug always is
    assert len(stream.lines) == MOST_LINES + 1
    now[0] += 1
    log.failed(request(), TierOverloaded("medium", "x"), 0.0)
    told = stream.records[MOST_LINES + 1]
    assert (told["code"], told["left_out"]) == ("RESOURCE_EXHAUSTED", 1000 - MOST_LINES)


def test_a_record_whose_arguments_do_not_fit_is_still_one_line_and_says_none_of_them(start, capsys):
    stream = start()
    logging.getLogger("x").warning("%d rows", CANARY)
    assert len(stream.lines) == 1
    assert CANARY not in stream.getvalue() + capsys.readouterr().err


def test_the_level_of_the_settings_holds(start):
    stream = start(level="error")
    ask(request())
    ask(request(model="nobody"))
    assert stream.lines == []


def test_our_own_errors_keep_their_words_where_they_cannot_quote_an_example():
    record = logging.LogRecord("x", logging.ERROR, "", 0, "failed", (), None)
    record.exc_info = (UnknownModel, UnknownModel("no such model"), None)
    line = LineFormatter("plain").format(record)
    assert 'error_kind=UnknownModel error_reason="no such model"' in line


def test_log_lines_of_answers_cost_nothing_where_they_are_off(start):
    stream = start(level="warning")
    RequestLog(answers=True).answered(request(), served(), decided(Cascade(served_tiers())), 0.1)
    assert stream.lines == []


def served_tiers() -> list:
    from watching import best, medium

    return [medium(), best()]


def test_errors_that_may_quote_what_was_sent_are_refused_with_their_words_all_the_same():
    """The caller gets them; only the log does not."""
    with pytest.raises(CascadeError, match="got 11 bytes"):
        decode_image(CANARY.encode(), 1)
