"""MQTT topics: templates, and what may stand in one level of a topic."""

from __future__ import annotations

import re
import socket

from .base import Record

FIELDS = ("id", "name")  # of a record
_PLACE = re.compile(r"\{([^{}]*)\}")


def level(text: str) -> str:
    """A text as one level of a topic."""
    return "".join("_" if sign in "/+#" or not sign.isprintable() else sign for sign in text) or "_"


def this_host() -> str:
    """This device's name, as one level of a topic."""
    return level(socket.gethostname())


def wrong_with(template: str, fields: tuple[str, ...] = ()) -> str:
    """What a template must not say; "" where it is fine. `{host}` may always stand in it."""
    known = ("host", *fields)
    unknown = [place for place in _PLACE.findall(template) if place not in known]
    if unknown:
        return f"expected {', '.join(f'{{{place}}}' for place in known)} in it and no other, got {{{unknown[0]}}}"
    rest = _PLACE.sub("", template)
    found = next((sign for sign in "+#{}\0" if sign in rest), None)
    if found is not None:
        return f"expected a topic to publish to, got {template!r} with {found!r} in it"
    return "" if template else "expected a topic, got nothing"


def filled(template: str, record: Record) -> str:
    """The topic of a record; what it has no `name` for, because it has no decision, says "none"."""
    for field in FIELDS:
        if f"{{{field}}}" in template:
            template = template.replace(f"{{{field}}}", level(str(record.get(field, "none"))))
    return template
