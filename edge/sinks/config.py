"""Settings of the sinks, MQTT topic templates included."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from coe.config import Fields
from coe.protocol.credentials import is_loopback

from .base import Record
from .delivery import FLUSH_S, MOST_QUEUED
from .jsonlines import Rotation

TOPIC_FIELDS = ("id", "name")  # of a record
_PLACE = re.compile(r"\{([^{}]*)\}")


def topic_level(text: str) -> str:
    """A text as one level of a topic."""
    return "".join("_" if sign in "/+#" or not sign.isprintable() else sign for sign in text) or "_"


def this_host() -> str:
    """This device's name, as one level of a topic."""
    return topic_level(socket.gethostname())


def topic_error(template: str, fields: tuple[str, ...] = ()) -> str:
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


def fill_topic(template: str, record: Record) -> str:
    """The topic of a record; what it has no `name` for, because it has no decision, says "none"."""
    for field in TOPIC_FIELDS:
        if f"{{{field}}}" in template:
            template = template.replace(f"{{{field}}}", topic_level(str(record.get(field, "none"))))
    return template


KINDS = ("jsonlines", "sqlite", "mqtt", "webhook")
MQTT_PORT, MQTT_TLS_PORT = 1883, 8883


@dataclass(frozen=True)
class MqttConfig:
    """A broker and what is published there.

    Args:
        topic: of decisions and corrections; `{id}` and `{name}` (the label's) stand for the record's own.
        event_topic: of events; status_topic: "online", and "offline" once the agent is gone, retained.
        tls: None: plaintext; else PEM files (CA, certificate, key), None for what is not used.
    """

    host: str
    port: int
    topic: str
    event_topic: str
    status_topic: str
    qos: int = 1
    retain: bool = False
    client_id: str = ""
    keepalive_s: int = 30
    username: str | None = None
    password_file: Path | None = None
    tls: tuple[Path | None, Path | None, Path | None] | None = None


@dataclass(frozen=True)
class WebhookConfig:
    """A URL, and how records are posted there.

    Args:
        headers: name and value, of each request.
        token_file: of a bearer token.
        ca: PEM file of the CA to believe; None: the public ones.
        batch: most records of one request; above 1 a request is an array.
        gather_s: how long fewer wait for more.
        is_local: it is on this device: no proxy is used.
    """

    url: str
    headers: tuple[tuple[str, str], ...] = ()
    token_file: Path | None = None
    ca: Path | None = None
    timeout_s: float = 5.0
    batch: int = 1
    gather_s: float = 1.0
    is_local: bool = False


@dataclass(frozen=True)
class SinkConfig:
    """kind "jsonlines" (`path`; None: standard output), "sqlite" (`path`), "mqtt" or "webhook".

    Args:
        rotation: of a file of JSON lines; None: it grows.
        max_rows: of a database; None: it grows.
        max_queued, flush_s: of mqtt and webhook: records that wait, and how long they are waited for at the end.
    """

    kind: str = "jsonlines"
    path: Path | None = None
    rotation: Rotation | None = None
    max_rows: int | None = None
    mqtt: MqttConfig | None = None
    webhook: WebhookConfig | None = None
    max_queued: int = MOST_QUEUED
    flush_s: float = FLUSH_S

    @property
    def prints(self) -> bool:
        """Whether it writes to standard output."""
        return self.kind == "jsonlines" and self.path is None


def read_sinks(fields: Fields, folder: Path) -> tuple[SinkConfig, ...]:
    """`sink:` (one) or `sinks:` (a list) of an agent's config; standard output where neither is there.

    Args:
        fields: of the whole file.
        folder: relative paths start here.
    """
    if fields.has("sink") and fields.has("sinks"):
        fields.wrong("sink", "expected `sink:` or `sinks:`, got both (leave one out)")
    entries = fields.sections("sinks") if fields.has("sinks") else [fields.section("sink", {})]
    sinks = tuple(sink for entry in entries if (sink := _read_sink(entry, folder)) is not None)
    if not entries:
        fields.wrong("sinks", "expected at least one sink, got none (add one, or leave `sinks:` out)")
    paths = [sink.path for sink in sinks if sink.kind in ("jsonlines", "sqlite")]
    for path in {path for path in paths if paths.count(path) > 1}:
        fields.wrong("sinks", f"expected a path for each sink, got {path or 'standard output'} twice")
    return sinks


def _read_sink(fields: Fields, folder: Path) -> SinkConfig | None:
    n_findings = len(fields.report.findings)
    kind = fields.choice("kind", KINDS, "jsonlines")
    if len(fields.report.findings) > n_findings:  # of what kind the other settings are is not known
        return None
    if kind == "jsonlines":
        sink = _read_jsonlines(fields, folder)
    elif kind == "sqlite":
        path = folder / Path(fields.text("path")).expanduser()
        sink = SinkConfig(kind, path, max_rows=fields.integer("max_rows", None, 1))
    else:
        sink = SinkConfig(
            kind,
            mqtt=_read_mqtt(fields, folder) if kind == "mqtt" else None,
            webhook=_read_webhook(fields, folder) if kind == "webhook" else None,
            max_queued=fields.integer("max_queued", MOST_QUEUED, 1, 10_000_000),
            flush_s=fields.number("flush_ms", FLUSH_S * 1000, high=3_600_000) / 1000,
        )
    fields.finish()
    return sink


def _read_jsonlines(fields: Fields, folder: Path) -> SinkConfig:
    text = fields.text("path", "-")
    rotates = fields.has("max_mb")
    max_mb = fields.number("max_mb", 16, 0.001, 1_000_000)
    rotation = Rotation(int(max_mb * 2**20), fields.integer("keep", 5, 1, 1000), fields.flag("gzip", False))
    if not rotates and (fields.has("keep") or fields.has("gzip")):
        fields.wrong("max_mb", "expected a size, got nothing (`keep` and `gzip` are about a file that is rotated)")
    if rotates and text == "-":
        fields.wrong("max_mb", "expected a file to rotate, got standard output (set `path:`)")
    return SinkConfig(
        "jsonlines", None if text == "-" else folder / Path(text).expanduser(), rotation if rotates else None
    )


def _read_mqtt(fields: Fields, folder: Path) -> MqttConfig:
    tls = _read_tls(fields, folder)
    username = fields.text("username", None) or None
    password_file = _read_path(fields, "password_file", folder)
    host = fields.text("host")
    if password_file is not None and username is None:
        fields.wrong("username", "expected one to go with the password, got nothing (add it)")
    if password_file is not None and tls is None and host and not is_loopback(host):
        fields.warn(
            "password_file", f"the password goes to {host} in plaintext (set `tls: true`, or `tls: {{ca: ...}}`)"
        )
    return MqttConfig(
        host=host,
        port=fields.integer("port", MQTT_PORT if tls is None else MQTT_TLS_PORT, 1, 65535),
        topic=_read_topic(fields, "topic", "coe/{host}/decisions", TOPIC_FIELDS),
        event_topic=_read_topic(fields, "event_topic", "coe/{host}/events"),
        status_topic=_read_topic(fields, "status_topic", "coe/{host}/status"),
        qos=fields.integer("qos", 1, 0, 2),
        retain=fields.flag("retain", False),
        client_id=fields.text("client_id", None) or "",
        keepalive_s=fields.integer("keepalive_s", 30, 1, 65535),
        username=username,
        password_file=password_file,
        tls=tls,
    )


def _read_topic(fields: Fields, key: str, default: str, known: tuple[str, ...] = ()) -> str:
    template = fields.text(key, default)
    if wrong := topic_error(template, known):
        fields.wrong(key, wrong)
    return template.replace("{host}", this_host())


def _read_tls(fields: Fields, folder: Path) -> tuple[Path | None, Path | None, Path | None] | None:
    if not isinstance(fields.raw("tls", None), dict):
        return (None, None, None) if fields.flag("tls", False) else None
    entry = fields.section("tls")
    ca, certificate, key = (_read_path(entry, name, folder) for name in ("ca", "certificate", "key"))
    if (certificate is None) != (key is None):
        entry.wrong("key" if key is None else "certificate", "expected certificate and key together, got one (add it)")
    entry.finish()
    return ca, certificate, key


def _read_webhook(fields: Fields, folder: Path) -> WebhookConfig:
    url = fields.text("url")
    host = _host_of(url) if url else ""
    if url and host is None:
        fields.wrong("url", f'expected http://HOST/... or https://HOST/..., got "{url}"')
    is_local = bool(host) and is_loopback(host or "")
    token_file = _read_path(fields, "token_file", folder)
    if token_file is not None and url.startswith("http:") and not is_local:
        fields.wrong("url", f"expected https for a bearer token, got plaintext to {host}")
    batch = fields.integer("batch", 1, 1, 10_000)
    return WebhookConfig(
        url=url,
        headers=_read_headers(fields),
        token_file=token_file,
        ca=_read_path(fields, "ca", folder),
        timeout_s=fields.number("timeout_ms", 5000.0, 1, 600_000) / 1000,
        batch=batch,
        gather_s=fields.number("gather_ms", 1000.0, 0, 3_600_000) / 1000,
        is_local=is_local,
    )


def _host_of(url: str) -> str | None:
    """None: it is no URL to post to."""
    try:
        parts = urlsplit(url)
        is_fine = parts.scheme in ("http", "https") and parts.port != 0 and url.isascii() and " " not in url
    except ValueError:
        return None
    return parts.hostname if is_fine and "@" not in parts.netloc else None


def _read_headers(fields: Fields) -> tuple[tuple[str, str], ...]:
    entry = fields.section("headers", {})
    found = []
    for name in entry.content:
        value = entry.text(str(name))
        if not str(name).isascii() or not value.isascii() or not (str(name) + value).isprintable() or ":" in str(name):
            entry.wrong(str(name), "expected a header's name and value in printable ASCII")
        found.append((str(name), value))
    return tuple(found)


def _read_path(fields: Fields, key: str, folder: Path) -> Path | None:
    text = fields.text(key, None) or None
    return None if text is None else folder / Path(text).expanduser()
