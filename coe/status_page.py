"""The document of a program's status page, and the HTTP headers it is served with.

Frame, style and script that the pages share lie beside this module; a program has a page.html (its sections), a
page.css and a page.js of its own, which call `follow(show)` of the shared script.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources

SECURITY_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


@cache
def status_page(
    program: str, package: str, links: tuple[str, ...] = (), images: str = "data:"
) -> tuple[bytes, dict[str, str]]:
    """The document and its headers. It fetches `status.json` from where it came, every few seconds.

    Args:
        program: its name, the title.
        package: in which its page.html, page.css and page.js are.
        links: other paths of the same server, shown at the bottom.
        images: sources of images that its policy allows.
    """
    style, script = (_text("coe", f"status_page.{kind}") + _text(package, f"page.{kind}") for kind in ("css", "js"))
    document = _text("coe", "status_page.html")
    for mark, text in (
        ("{program}", program),
        ("<!-- links -->", "".join(f' · <a href="{link}">{link}</a>' for link in links)),
        ("<!-- sections -->", _text(package, "page.html")),
        ("/* style */", style),
        ("/* script */", script),
    ):
        document = document.replace(mark, text)
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; connect-src 'self'; "
        f"img-src {images}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": policy,
        "Cache-Control": "no-cache",
    }
    return document.encode(), headers | SECURITY_HEADERS


def _text(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
