"""The page: one HTML document that asks nobody but this agent, and allows itself nothing else."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources

SAFE = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}


@cache
def page() -> tuple[bytes, dict[str, str]]:
    """The document and its headers. It fetches `status.json` from where it came, every two seconds."""
    style, script = _text("page.css"), _text("page.js")
    document = _text("page.html").replace("/* page.css */", style).replace("/* page.js */", script)
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return document.encode(), {"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": policy, **SAFE}


def _text(name: str) -> str:
    return resources.files("edge.watch").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
