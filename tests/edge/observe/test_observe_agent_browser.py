"""The agent's page in a real browser: headless Chromium, an agent over real sockets."""

from __future__ import annotations

import re
import shutil
import subprocess

import numpy as np
import pytest
from test_observe_agent import Device, decided, png

from edge.sources import Example

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (apt-get install chromium)"),
]

PROBE = """
<script>addEventListener("load", () => setTimeout(() => {
  const wide = document.documentElement.scrollWidth > innerWidth;
  const shown = [...document.images].filter((image) => image.complete && image.naturalWidth).length;
  document.body.dataset.probe = `${wide} ${shown}`;
}, 2500));</script>
"""


@pytest.fixture
def device(tmp_path):
    device = Device(tmp_path)
    for number in range(6):
        device.recent.on_outcome(Example(f"shot-{number}", png(40 * number)), decided(f"shot-{number}"))
    device.recent.on_outcome(
        Example("array", np.full((4, 4, 3), 7, np.uint8)), decided("array", "timeout: late", deferred=True)
    )
    device.recent.on_outcome(Example("<b>bold</b>", png(1)), decided("<b>bold</b>"))
    yield device
    device.server.close()
    device.field.close()


def chromium(device, tmp_path, *flags: str) -> tuple[str, list[str]]:
    """The page as it stands after a while, and what it wrote on its console."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
            *(
                f"--user-data-dir={tmp_path / 'profile'}",
                "--enable-logging=stderr",
                "--v=0",
                "--virtual-time-budget=5000",
            ),
            *("--dump-dom", *flags, f"http://127.0.0.1:{device.server.port}/"),
        ],
        capture_output=True,
        text=True,
        timeout=90,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def text_of(dom: str) -> str:
    body = re.sub(r"<(style|script).*?</\1>", "", dom, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def test_the_facts_are_on_the_page_and_the_console_is_silent(device, tmp_path):
    dom, console = chromium(device, tmp_path, "--window-size=1000,1600")
    assert console == []
    seen = text_of(dom)
    for words in (
        "50.0% of 20 examples were decided on this device",
        "cloud cannot be reached: late",
        "deferred is 50.0%, outside",
        "cloud ✕ down",
        "▲ degraded",
        "timeout: late",
        "3 wait for a later answer",
        "2 dropped (age)",
        "The cloud differs on 0.00% of what the device decides",
        "running, with a notice",
    ):
        assert words in seen, words
    assert dom.count('<img src="thumbnails/') == 8
    assert "&lt;b&gt;bold&lt;/b&gt;" in dom  # an id is text, whatever it says


@pytest.mark.parametrize("width", [360, 1000])
def test_nothing_is_wider_than_the_screen_and_every_thumbnail_is_drawn(device, tmp_path, width, monkeypatch):
    from edge.observe import server

    document, headers = server.page()
    headers = {name: value for name, value in headers.items() if name != "Content-Security-Policy"}
    monkeypatch.setattr(server, "page", lambda: (document.replace(b"</body>", PROBE.encode() + b"</body>"), headers))
    dom, _ = chromium(device, tmp_path, f"--window-size={max(width, 500)},1600", *_narrow(width))
    probe = re.search(r'data-probe="(\w+) (\d+)"', dom)
    assert probe is not None
    assert probe[1] == "false"
    assert int(probe[2]) >= 8


def _narrow(width: int) -> tuple[str, ...]:
    """Chromium's window is at least 500 wide: a larger scale makes fewer pixels of it."""
    return (f"--force-device-scale-factor={500 / width}",) if width < 500 else ()


def test_an_agent_that_is_gone_is_said_to_be(device, tmp_path, monkeypatch):
    from edge.observe import server

    answers = iter(range(100))
    known = server._Routes.find

    def find(routes, path):
        if path == "/status.json" and next(answers):
            return lambda: (503, b"", {})
        return known(routes, path)

    monkeypatch.setattr(server._Routes, "find", find)
    dom, _ = chromium(device, tmp_path, "--window-size=1000,1600")
    seen = text_of(dom)
    assert "The agent cannot be reached since " in seen
    assert "(it answers 503)" in seen
    assert "What you see is from " in seen
    assert 'class="stale"' in dom
