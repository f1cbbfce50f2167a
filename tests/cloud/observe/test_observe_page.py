"""The status page as a document: what it allows itself, and what it does without."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import urllib.request
from email.message import Message
from html.parser import HTMLParser

import pytest
from watching import World, core

from cloud.config import ObserveConfig
from cloud.observe.observer import Observer
from cloud.observe.status import MEANINGS, page
from cloud.observe.tally import CANCELLED, INTERNAL
from coe.protocol.status import TABLE


class Reader(HTMLParser):
    """Every tag with its attributes; the text of styles and scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline: dict[str, str] = {}
        self._in = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in = tag

    def handle_data(self, data):
        if self._in in ("style", "script"):
            self.inline[self._in] = self.inline.get(self._in, "") + data

    def handle_endtag(self, tag):
        self._in = ""


def read() -> tuple[Reader, dict[str, str], str]:
    body, headers = page()
    return Reader(body.decode()), headers, body.decode()


def test_the_policy_allows_the_pages_own_style_and_script_and_nothing_else():
    reader, headers, _ = read()
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for kind in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(reader.inline[kind].encode()).digest()).decode()
        assert policy[f"{kind}-src"] == f"'sha256-{digest}'"
    assert "unsafe" not in headers["Content-Security-Policy"]


def test_there_is_no_handler_and_no_style_in_an_attribute():
    reader, _, _ = read()
    attributes = {name for _, attrs in reader.tags for name in attrs}
    assert not {name for name in attributes if name.startswith("on") or name == "style"}


def test_nothing_is_fetched_from_another_host():
    reader, _, text = read()
    for tag, attrs in reader.tags:
        for name in ("src", "href", "action", "poster", "data"):
            value = attrs.get(name) or ""
            assert not re.match(r"(https?:)?//", value), (tag, value)
    outside = set(re.findall(r"https?://[^\s'\"`)]+", text))
    assert outside == {"http://www.w3.org/2000/svg"}  # the name of a namespace
    assert "@import" not in text
    assert "url(http" not in text


def test_what_the_server_says_is_never_read_as_html():
    reader, _, _ = read()
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", reader.inline["script"]
    )


def test_the_page_has_one_title_headings_in_order_and_a_language():
    reader, _, _ = read()
    tags = [tag for tag, _ in reader.tags]
    assert tags.count("h1") == 1
    assert tags.index("h1") < tags.index("h2")
    assert dict(reader.tags)["html"]["lang"] == "en"
    assert any(attrs.get("aria-live") == "polite" for _, attrs in reader.tags)
    assert "main" in tags


def test_every_label_and_description_points_at_something_that_is_there():
    reader, _, _ = read()
    ids = [attrs["id"] for _, attrs in reader.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["aria-labelledby"] for _, attrs in reader.tags if "aria-labelledby" in attrs} <= set(ids)
    asked_for = set(re.findall(r'\$\("([\w-]+)"\)', reader.inline["script"]))
    assert asked_for <= set(ids)


def test_the_page_is_small_enough_for_a_bad_line():
    body, _ = page()
    assert len(body) < 45_000


def test_the_http_port_offers_page_status_and_metrics_and_nothing_else():
    pages = Observer(ObserveConfig(), World().view).pages
    assert set(pages) == {"/", "/status.json", "/metrics"}
    assert pages["/"]("")[1]["Content-Type"] == "text/html; charset=utf-8"
    assert pages["/status.json"]("")[1]["Content-Type"] == "application/json"
    assert b"coe_cloud_ready 1.0" in pages["/metrics"]("")[0]


def test_a_page_switched_off_is_not_there():
    assert set(Observer(ObserveConfig(page=False), World().view).pages) == {"/metrics"}


def test_the_http_server_serves_the_pages_with_their_own_policies():
    for module in ("starlette", "uvicorn", "httptools"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    from cloud.transports.rest_server import RestOptions, RestServer

    observer = Observer(ObserveConfig(), World().view)

    async def fetch() -> list[tuple[int, Message, bytes]]:
        server = RestServer(core(observer), RestOptions(pages=observer.pages, pages_need_identity=False))
        port = server.bind("127.0.0.1", 0)
        await server.start()
        try:
            paths = ("", "status.json", "metrics")
            return [await asyncio.to_thread(get, f"http://127.0.0.1:{port}/{path}") for path in paths]
        finally:
            await server.stop(1.0)

    def get(url: str) -> tuple[int, Message, bytes]:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.headers, answer.read()

    document, told, metrics = asyncio.run(fetch())
    assert [document[0], told[0], metrics[0]] == [200, 200, 200]
    assert document[1]["Content-Security-Policy"] == page()[1]["Content-Security-Policy"]
    assert document[2] == page()[0]
    assert json.loads(told[2])["state"] == "ready"
    assert b"coe_cloud_ready 1.0" in metrics[2]


def test_every_code_that_is_counted_has_a_meaning_for_people():
    assert MEANINGS.keys() == {code.name for _, code in TABLE} | {CANCELLED, INTERNAL}
