"""The status page in a real browser: headless Chromium, served over a real socket."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from watching import World, best, decided, medium, request, served

from cloud.observe.status import page, status
from cloud.observe.tally import History, Tally
from coe.cascade import Cascade, InputError, TierOverloaded

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (apt-get install chromium)"),
]
Reply = tuple[int, bytes, dict[str, str]]


def an_hour() -> dict:
    """The status of a server after an hour with a rush in the middle."""
    world, tally = World(waiting=7), Tally()
    history = History(tally, world.view, clock=lambda: world.now, wall=lambda: 1.76e9 + world.now)
    model, cascade = served(), Cascade([medium(), best()])
    easy, hard = decided(cascade, 1, 0), decided(cascade, 1, 3)
    for slot in range(361):
        rush = 200 <= slot < 220
        for number in range(60 if rush else 20):
            is_hard = number % 10 == 0
            tally.answered(request(), model, hard if is_hard else easy, 0.02 if rush else 0.0024 if is_hard else 0.0012)
        if rush:
            tally.failed(request(), TierOverloaded("medium", "x"), 0.001)
        world.now += 10
        history.sample()
    tally.failed(request(), InputError("x"), 0.001)
    return status(world.view, tally, history)


@pytest.fixture(scope="module")
def told() -> dict:
    return an_hour()


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[int], Reply]], str]]:
    """Serves the page, and `status.json` as the given function of how often it was asked for; the address."""
    servers = []

    def started(answer: Callable[[int], Reply]) -> str:
        asked = [0]

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/":
                    body, headers = page()
                    code = 200
                elif self.path == "/status.json":
                    asked[0] += 1
                    code, body, headers = answer(asked[0])
                else:
                    code, body, headers = 404, b"", {}
                self.send_response(code)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/"

    yield started
    for server in servers:
        server.shutdown()
        server.server_close()


def chromium(url: str, tmp_path: Path, *flags: str, for_ms: int = 4000) -> tuple[str, list[str]]:
    """What it printed, and what the page wrote on its console."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0"),
            *(f"--virtual-time-budget={for_ms}", *flags, url),
        ],
        capture_output=True,
        text=True,
        timeout=90,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def text_of(dom: str) -> str:
    """What a reader sees of a document, more or less."""
    body = re.sub(r"<(style|script).*?</\1>", "", dom, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def good(told: dict) -> Callable[[int], Reply]:
    return lambda n: (200, json.dumps(told).encode(), {"Content-Type": "application/json"})


def test_the_numbers_are_on_the_page_and_the_console_is_silent(serve, told, tmp_path):
    dom, console = chromium(serve(good(told)), tmp_path, "--dump-dom", "--window-size=1200,1600")
    assert console == []
    seen = text_of(dom)
    assert told["summary"] in seen
    for text in (
        "2 /s",
        "1.19 ms",
        "2.47 ms",
        "RESOURCE_EXHAUSTED",
        "INVALID_ARGUMENT",
        "resnet.onnx",
        "d" * 64,
        "7 rows",
    ):
        assert text in seen, text
    assert "tier 1, medium: 90.0%" in seen
    assert "1 hour" in seen
    assert 'data-state="ready"' in dom


def test_each_chart_has_a_name_in_words_and_a_table(serve, told, tmp_path):
    dom, _ = chromium(serve(good(told)), tmp_path, "--dump-dom", "--window-size=1200,1600")
    figures = re.findall(r"<figure.*?</figure>", dom, re.S)
    assert len(figures) == 4
    for figure in figures:
        chart = re.search(r'<svg[^>]*role="img".*?</svg>', figure, re.S)
        assert chart
        assert re.search(r"<title>[^<]{10,}</title>", chart[0])
        assert "<caption>" in figure
        assert len(re.findall(r'<th scope="row">', figure)) >= 12  # five minutes each
        assert len(re.findall(r"<(path|rect|circle) ", chart[0])) > 0


def test_no_row_of_bars_depends_on_colour_alone(serve, told, tmp_path):
    dom, _ = chromium(serve(good(told)), tmp_path, "--dump-dom", "--window-size=1200,1600")
    exits = re.search(r'<figure[^>]*data-key="exits digits".*?</figure>', dom, re.S)
    assert exits
    assert "url(#hatch-1)" in exits[0]
    assert 'class="line stroke-2 dash"' in dom


@pytest.mark.parametrize(("name", "flags"), [("light", ()), ("dark", ("--force-dark-mode",))])
def test_the_page_draws_itself_in_the_light_and_in_the_dark(serve, told, tmp_path, name, flags):
    from PIL import Image

    shot = tmp_path / f"{name}.png"
    _, console = chromium(serve(good(told)), tmp_path, f"--screenshot={shot}", "--window-size=1200,1600", *flags)
    assert console == []
    picture = Image.open(shot).convert("RGB")
    background = picture.getpixel((3, 800))
    assert (sum(background) > 600) == (name == "light")
    assert len(picture.getcolors(2**24) or ()) > 200  # charts, text and notices, not an empty page


def test_nothing_is_wider_than_a_narrow_phone(serve, told, tmp_path):
    from PIL import Image

    shot = tmp_path / "phone.png"
    chromium(serve(good(told)), tmp_path, f"--screenshot={shot}", "--window-size=360,3000")
    picture = Image.open(shot).convert("RGB")
    assert picture.width == 360
    edge = {picture.getpixel((355, y)) for y in range(picture.height)}
    assert len(edge) == 1  # the margin at the right is empty all the way down


def test_a_server_that_goes_away_is_said_plainly_and_what_was_known_stays(serve, told, tmp_path):
    answer = good(told)
    url = serve(lambda n: answer(n) if n == 1 else (503, b"", {}))
    dom, _ = chromium(url, tmp_path, "--dump-dom", "--window-size=1200,1600", for_ms=8000)
    seen = text_of(dom)
    assert "The server cannot be reached since " in seen
    assert "it answers 503" in seen
    assert "What you see is from " in seen
    assert told["summary"] in seen
    assert 'data-state="lost"' in dom


def test_a_server_that_comes_back_is_shown_again(serve, told, tmp_path):
    answer = good(told)
    url = serve(lambda n: (503, b"", {}) if n == 1 else answer(n))
    dom, _ = chromium(url, tmp_path, "--dump-dom", "--window-size=1200,1600", for_ms=8000)
    assert 'data-state="ready"' in dom
    assert re.search(r'id="lost"[^>]*hidden', dom)


def test_names_from_the_server_are_text_whatever_they_contain(serve, told, tmp_path):
    hostile = json.loads(json.dumps(told))
    hostile["models"][0]["tiers"][0]["members"][0]["name"] = "<img src=x onerror=console.log('pwned')>"
    hostile["summary"] = "<script>console.log('pwned')</script>"
    dom, console = chromium(serve(good(hostile)), tmp_path, "--dump-dom")
    assert console == []
    assert "&lt;img src=x" in dom
    assert "&lt;script&gt;" in dom
