"""Settings of the sinks, MQTT topic templates included."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from coe.config import Fields
from coe.config.settings import REQUIRED, read_settings, setting, settings_of
from coe.protocol.channel import fix_of_host
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
    for place in _PLACE.findall(template):
        if place not in known:
            return f"expected {', '.join(f'{{{place}}}' for place in known)} in it and no other, got {{{place}}}"
    for sign in "+#{}\0":
        if sign in _PLACE.sub("", template):
            return f"expected a topic to publish to, got {template!r} with {sign!r} in it"
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
    """A broker and what is published there. `tls`: None: plaintext; else CA, certificate, key, None where not used."""

    host: str = setting(REQUIRED, "The broker's name or IP address.")
    port: int = setting(REQUIRED, "Port of the broker.", usual="1883, with TLS 8883", low=1, high=65535)
    topic: str = setting(
        "coe/{host}/decisions", "Topic of decisions; `{host}` is this device, `{id}` and `{name}` the record's."
    )
    event_topic: str = setting("coe/{host}/events", "Topic of events.")
    status_topic: str = setting("coe/{host}/status", "Topic that holds `online`, and `offline` once the agent is gone.")
    discovery: str = setting("", "Topic prefix of Home Assistant's discovery.", usual="none", example="homeassistant")
    qos: int = setting(1, "MQTT's quality of service.", low=0, high=2)
    retain: bool = setting(False, "The broker keeps each topic's latest record.")
    client_id: str = setting("", "Client id at the broker.", usual="the broker's choice")
    keepalive_s: int = setting(30, "Interval of MQTT's keep-alive.", unit="s", low=1, high=65535)
    username: str | None = setting(None, "User name at the broker.", usual="none")
    password_file: Path | None = setting(None, "File with the password.", usual="none")
    tls: tuple[Path | None, Path | None, Path | None] | None = setting(
        None, "TLS: `true`, or PEM files: `{ca, certificate, key}`.", usual="`false`"
    )


@dataclass(frozen=True)
class WebhookConfig:
    """A URL, and how records are posted there. `is_local`: it is on this device, so no proxy is used."""

    url: str = setting(REQUIRED, "URL that records are posted to.")
    headers: tuple[tuple[str, str], ...] = setting((), "Headers of each request, by name.")
    token_file: Path | None = setting(None, "File with a bearer token.", usual="none")
    ca: Path | None = setting(
        None, "PEM file of the CA that the server's certificate must come from.", usual="the public ones"
    )
    timeout_s: float = setting(5000, "Longest time for one request.", unit="ms", low=1, high=600_000)
    batch: int = setting(1, "Most records in one request; above 1 a request is an array.", low=1, high=10_000)
    gather_s: float = setting(
        1000, "Longest time that fewer than `batch` records wait for more.", unit="ms", high=3_600_000
    )
    is_local: bool = False


@dataclass(frozen=True)
class SinkConfig:
    """Where records go: kind "jsonlines" (`path` None: standard output), "sqlite", "mqtt" or "webhook"."""

    kind: str = setting("jsonlines", "Kind; the other settings follow from it.", choices=KINDS)
    path: Path | None = setting(None, "The file.", usual='"-": standard output')
    rotation: Rotation | None = None
    max_rows: int | None = setting(None, "Number of newest rows that each table keeps.", usual="all", low=1)
    mqtt: MqttConfig | None = None
    webhook: WebhookConfig | None = None
    max_queued: int = setting(MOST_QUEUED, "Most records that wait, over restarts, too.", low=1, high=10_000_000)
    drop: str = setting("oldest", "Which of them are dropped beyond it.", choices=("oldest", "newest"))
    flush_s: float = setting(
        FLUSH_S * 1000, "Longest time to deliver what waits when the agent ends.", unit="ms", high=3_600_000
    )

    @property
    def acknowledges(self) -> bool:
        """True if records wait until it has acknowledged them."""
        return self.mqtt is not None or self.webhook is not None

    @property
    def prints(self) -> bool:
        """True if it writes to standard output."""
        return self.kind == "jsonlines" and self.path is None


def read_sinks(fields: Fields, folder: Path) -> tuple[SinkConfig, ...]:
    """`sink:` (one) or `sinks:` (a list) of an agent's whole config; standard output where neither is there."""
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
        return _read_jsonlines(fields, folder)
    if kind == "sqlite":
        return read_settings(SinkConfig, fields, kind=kind, only=("max_rows",), path=fields.path("path", folder))
    given: dict[str, Any] = {kind: (_read_mqtt if kind == "mqtt" else _read_webhook)(fields, folder)}
    return read_settings(SinkConfig, fields, only=("max_queued", "drop", "flush_s"), kind=kind, **given)


def _read_jsonlines(fields: Fields, folder: Path) -> SinkConfig:
    path = None if fields.text("path", "-") == "-" else fields.path("path", folder)
    rotates = fields.raw("max_mb", None) is not None
    given: dict[str, Any] = {} if rotates else {"max_bytes": 0}
    rotation = read_settings(Rotation, fields, finish=False, **given)
    if not rotates and (fields.has("keep") or fields.has("gzip")):
        fields.wrong("max_mb", "expected a size, got nothing (`keep` and `gzip` are about a file that is rotated)")
    if rotates and path is None:
        fields.wrong("max_mb", "expected a file to rotate, got standard output (set `path:`)")
    return read_settings(SinkConfig, fields, only=(), path=path, rotation=rotation if rotates else None)


def _read_mqtt(fields: Fields, folder: Path) -> MqttConfig:
    tls = _read_tls(fields, folder)
    mqtt = read_settings(
        MqttConfig,
        fields,
        folder,
        finish=False,
        defaults={"port": MQTT_PORT if tls is None else MQTT_TLS_PORT},
        topic=_read_topic(fields, "topic", TOPIC_FIELDS),
        event_topic=_read_topic(fields, "event_topic"),
        status_topic=_read_topic(fields, "status_topic"),
        discovery=_read_topic(fields, "discovery") if fields.has("discovery") else "",
        tls=tls,
    )
    if mqtt.host and (fix := fix_of_host(mqtt.host)):
        fields.wrong("host", f'expected a name or an IP address, got "{mqtt.host}" ({fix})')
    if mqtt.password_file is not None and mqtt.username is None:
        fields.wrong("username", "expected one to go with the password, got nothing (add it)")
    if mqtt.password_file is not None and tls is None and mqtt.host and not is_loopback(mqtt.host):
        message = f"the password goes to {mqtt.host} in plaintext (set `tls: true`, or `tls: {{ca: ...}}`)"
        fields.warn("password_file", message)
    return mqtt


def _read_topic(fields: Fields, key: str, known: tuple[str, ...] = ()) -> str:
    template = fields.text(key, settings_of(MqttConfig)[key][1].default)
    if wrong := topic_error(template, known):
        fields.wrong(key, wrong)
    return template.replace("{host}", this_host())


def _read_tls(fields: Fields, folder: Path) -> tuple[Path | None, Path | None, Path | None] | None:
    if not isinstance(fields.raw("tls", None), dict):
        return (None, None, None) if fields.flag("tls", False) else None
    entry = fields.section("tls")
    ca, certificate, key = (entry.path(name, folder, None) for name in ("ca", "certificate", "key"))
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
    section = fields.section("headers", {})
    headers = tuple((name, section.text(name)) for name in map(str, section.content))
    for name, value in headers:
        if not (name + value).isascii() or not (name + value).isprintable() or ":" in name:
            section.wrong(name, "expected a header's name and value in printable ASCII")
    given: dict[str, Any] = {"url": url, "headers": headers, "is_local": is_local}
    webhook = read_settings(WebhookConfig, fields, folder, finish=False, **given)
    if webhook.token_file is not None and url.startswith("http:") and not is_local:
        fields.wrong("url", f"expected https for a bearer token, got plaintext to {host}")
    return webhook


def _host_of(url: str) -> str | None:
    """None: it is no URL to post to."""
    try:
        parts = urlsplit(url)
        is_fine = parts.scheme in ("http", "https") and parts.port != 0 and url.isascii() and " " not in url
    except ValueError:
        return None
    return parts.hostname if is_fine and "@" not in parts.netloc else None
