"""A phone and its server: the built page in a real headless Chromium, from a real `coe-cloud` on fixed ports."""

from __future__ import annotations

import base64
import os
import re
import shutil
import sys
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path[1:1] = [str(Path(__file__).parents[1] / "e2e")]  # pytest adds it only once it has seen a test in it

from programs import Program, closed_port, until  # noqa: E402 - tests take them from here

__all__ = ["CHROMIUM", "CONFIG", "DIST", "INSECURE", "Hub", "Phone", "closed_port", "needs_a_phone", "server", "until"]

ROOT = Path(__file__).parents[2]
DIST = Path(os.environ.get("COE_WEB_DIST", ROOT / "web" / "dist"))
INSECURE = "home.test"  # a name of the server that is no secure context, as in a home network
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CONFIG = """
task: zoo:digits
model: digits
tiers:
  - name: medium
    members: [zoo:digits/ripple.onnx, zoo:digits/pyramid.onnx, zoo:digits/lattice.onnx]
    agreement: unanimous
    parallel: false
  - {name: best, members: [zoo:digits/resnet.onnx]}
server: {grace_s: 1}
"""
READY = re.compile(r"ready on (\S+):(\d+): (.*)")
WAIT_MS = 30_000  # nothing here takes as long, on any machine
DECIDE = """async (examples) => {
  const rows = [];
  for (const [id, base64] of examples) {
    const captured = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    const { decision } = await window.coe.decide(id, captured);
    const { label, exitTier, vote, score, asked, nMembers, tierVotes, degraded } = decision;
    const row = { id, label, vote, score, asked, degraded };
    rows.push({ ...row, exit_tier: exitTier, members: nMembers, tier_votes: tierVotes });
  }
  return rows;
}"""
OUTPUTS = """async (examples) => {
  const rows = [];
  for (const [, base64] of examples) {
    const captured = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    rows.push((await window.coe.outputs(captured)).map((output) => [...output]));
  }
  return rows;
}"""


def missing() -> str:
    """Why there is no phone here; "": there is."""
    if CHROMIUM is None:
        return "no Chromium here (apt-get install chromium)"
    if not (DIST / "index.html").is_file():
        return f"no built page in {DIST} (.ci/web builds it; COE_WEB_DIST names another place)"
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "no Playwright here (pip install playwright; its own browsers are not needed)"
    return ""


needs_a_phone = pytest.mark.skipif(missing() != "", reason=missing() or "there is one")


class Hub(Program):
    """`coe-cloud serve` with its HTTP port, so that it can come back where it was; ready once the block begins."""

    def __init__(self, folder: Path, config: str, http_port: int, grpc_port: int) -> None:
        path = folder / f"hub-{id(self)}.yaml"
        path.write_text(config, encoding="utf-8")
        ports = ["--http-port", http_port, "--grpc-port", grpc_port]
        super().__init__("cloud.main", ["serve", "--config", path, *ports], folder)
        self.http_port, self.grpc_port = http_port, grpc_port

    def __enter__(self) -> Hub:
        try:
            until(lambda: READY.search(self.said) or self.process.poll() is not None, lambda: self.complained)
            assert READY.search(self.said), self.complained
        except BaseException:
            self.__exit__()
            raise
        return self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}/device/"

    def examples_answered(self, model: str = "digits") -> int:
        """Of one model, as the server itself counts them."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        found = re.findall(rf'^coe_cloud_rows_total{{model="{model}"}} (\S+)$', text, re.MULTILINE)
        return int(sum(map(float, found)))


class Phone:
    """One page of a browser, and what it asked for and complained of."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self.page = context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.asked: list[str] = []
        self.complaints: list[str] = []
        context.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self._heard(message.type, message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _heard(self, kind: str, text: str) -> None:
        """Chromium itself says on the console that a server is away, and Playwright what it has blocked."""
        if kind in ("error", "warning") and not re.search(
            "ERR_|Opener-Policy header has been ignored|Playwright", text
        ):
            self.complaints.append(text)

    def open(self, url: str) -> None:
        """The page, ready to decide."""
        self.page.goto(url)
        self.ready()

    def ready(self) -> None:
        self.page.wait_for_selector("#state[data-state=ready], #state[data-state=queue]")

    def ready_for_no_network(self) -> None:
        """The service worker has all it keeps."""
        self.page.wait_for_selector("html[data-offline=ready]")

    def source(self, name: str) -> None:
        self.page.locator(f"label:has(input[value={name}])").click()

    def decide(self, examples: Iterable[tuple[str, bytes]]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.page.evaluate(DECIDE, _packed(examples))
        return rows

    def outputs(self, examples: Iterable[tuple[str, bytes]]) -> list[list[list[float]]]:
        """(B, M, L): what every member says."""
        rows: list[list[list[float]]] = self.page.evaluate(OUTPUTS, _packed(examples))
        return rows

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector))

    def kept(self) -> list[dict[str, Any]]:
        """Decisions as the page keeps them."""
        script = """() => new Promise((resolve, reject) => {
          const opening = indexedDB.open('coe-device');
          opening.onerror = () => reject(opening.error);
          opening.onsuccess = () => {
            const asking = opening.result.transaction('decided').objectStore('decided').getAll();
            asking.onsuccess = () => { opening.result.close(); resolve(asking.result); };
          };
        })"""
        rows: list[dict[str, Any]] = self.page.evaluate(script)
        return rows


def _packed(examples: Iterable[tuple[str, bytes]]) -> Sequence[Sequence[str]]:
    return [[name, base64.b64encode(captured).decode()] for name, captured in examples]


def server(folder: Path, more: str = "", like: Hub | None = None, config: str = CONFIG) -> Hub:
    """A server that hands out the built page; again on the ports of `like`."""
    text = f"{config}\ndevice: {{page: {DIST.resolve()}}}\n{more}"
    http_port = like.http_port if like else closed_port()
    return Hub(folder, text, http_port, like.grpc_port if like else closed_port())
