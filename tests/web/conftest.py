"""One Chromium for a module of tests of the page; a phone, and a server, for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from phone import CHROMIUM, INSECURE, Hub, Phone, server


@pytest.fixture(scope="module")  # an open browser has an event loop running, which tests elsewhere cannot have
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    flags.append(f"--host-resolver-rules=MAP {INSECURE} 127.0.0.1")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def pick_up(browser) -> Iterator[Callable[..., Phone]]:
    """A phone that nobody has used before."""
    contexts = []

    def picked_up(**options: Any) -> Phone:
        own: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
        contexts.append(browser.new_context(**(own | options)))
        return Phone(contexts[-1])

    yield picked_up
    for context in contexts:
        context.close()


@pytest.fixture
def phone(pick_up) -> Phone:
    return pick_up()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A server that stays."""
    with server(tmp_path_factory.mktemp("hub")) as started:
        yield started


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Hub]:
    """A server of a test's own, which may go away and come back."""
    return partial(server, tmp_path)
