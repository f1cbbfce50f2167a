"""What a config says of sinks: every wrong setting is one line with its mend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coe.cascade import ConfigError
from coe.config import Fields, Report
from edge.sinks import SinkConfig, read_sinks
from edge.sinks.config import MqttConfig, WebhookConfig, fill_topic, this_host
from edge.sinks.jsonlines import Rotation

FOLDER = Path("/etc/coe")


def read(content: dict[str, Any], report: Report | None = None) -> tuple[SinkConfig, ...]:
    report = report or Report("edge.yaml")
    fields = Fields(content, report)
    sinks = read_sinks(fields, FOLDER)
    fields.finish()
    report.check()
    return sinks


def read_one(**sink: Any) -> SinkConfig:
    (only,) = read({"sink": sink})
    return only


def complaint(**sink: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read({"sink": sink})
    assert len(caught.value.findings) == 1
    return caught.value.findings[0]


def test_nothing_said_is_standard_output():
    assert read({}) == (SinkConfig(),)
    assert read({})[0].prints
    assert read_one(path="-").prints


def test_several_are_a_list():
    sinks = read({"sinks": [{"path": "a.jsonl"}, {"kind": "sqlite", "path": "~/a.db"}, {"path": "-"}]})
    assert [(sink.kind, sink.path) for sink in sinks] == [
        ("jsonlines", FOLDER / "a.jsonl"),
        ("sqlite", Path("~/a.db").expanduser()),
        ("jsonlines", None),
    ]
    assert [sink.prints for sink in sinks] == [False, False, True]


def test_a_file_is_rotated_where_the_config_says_how():
    assert read_one(path="a.jsonl").rotation is None
    assert read_one(path="a.jsonl", max_mb=2).rotation == Rotation(2 * 2**20)
    assert read_one(path="a.jsonl", max_mb=0.5, keep=2, gzip=True).rotation == Rotation(2**19, 2, True)


def test_mqtt_with_its_defaults_and_with_everything():
    host = this_host()
    assert read_one(kind="mqtt", host="broker").mqtt == MqttConfig(
        "broker", 1883, f"coe/{host}/decisions", f"coe/{host}/events", f"coe/{host}/status"
    )
    sink = read_one(
        kind="mqtt", host="broker", topic="a/{host}/{name}/{id}", event_topic="e", status_topic="s", qos=2, retain=True,
        client_id="me", discovery="ha", keepalive_s=5, username="pi", password_file="secret",
        tls={"ca": "ca.pem", "certificate": "pi.pem", "key": "pi.key"}, max_queued=5, flush_ms=100,
    )  # fmt: skip
    assert sink.mqtt == MqttConfig(
        "broker", 8883, f"a/{host}/{{name}}/{{id}}", "e", "s", "ha", 2, True, "me", 5, "pi", FOLDER / "secret",
        (FOLDER / "ca.pem", FOLDER / "pi.pem", FOLDER / "pi.key"),
    )  # fmt: skip
    assert (sink.max_queued, sink.flush_s) == (5, 0.1)
    assert read_one(kind="mqtt", host="broker", tls=True).mqtt.tls == (None, None, None)
    assert not read_one(kind="mqtt", host="broker").prints


def test_a_webhook_with_its_defaults_and_with_everything():
    assert read_one(kind="webhook", url="https://h/x").webhook == WebhookConfig("https://h/x")
    assert read_one(kind="webhook", url="http://127.0.0.1:8/x").webhook.is_local
    sink = read_one(
        kind="webhook", url="https://h/x", headers={"X-Site": "roof"}, token_file="token", ca="ca.pem",
        timeout_ms=100, batch=50, gather_ms=2000,
    )  # fmt: skip
    assert sink.webhook == WebhookConfig(
        "https://h/x", (("X-Site", "roof"),), FOLDER / "token", FOLDER / "ca.pem", 0.1, 50, 2.0
    )


BAD = [
    (
        {"kind": "sqllite"},
        'sink.kind: expected one of jsonlines, sqlite, mqtt, webhook, got "sqllite"; did you mean "sqlite"?',
    ),
    ({"kind": "sqlite"}, "sink.path: expected a text, got nothing (add it)"),
    ({"kind": "sqlite", "path": "a", "max_rows": 0}, "sink.max_rows: expected 1 to 2147483648, got 0"),
    ({"path": "a", "max_nb": 3}, 'sink.max_nb: unknown setting (did you mean "max_mb"?)'),
    (
        {"path": "a", "keep": 3},
        "sink.max_mb: expected a size, got nothing (`keep` and `gzip` are about a file that is rotated)",
    ),
    ({"max_mb": 3}, "sink.max_mb: expected a file to rotate, got standard output (set `path:`)"),
    ({"kind": "mqtt"}, "sink.host: expected a text, got nothing (add it)"),
    (
        {"kind": "mqtt", "host": "mqtt://h"},
        'sink.host: expected a name or an IP address, got "mqtt://h" (leave mqtt:// out)',
    ),
    ({"kind": "mqtt", "host": "h 1"}, 'sink.host: expected a name or an IP address, got "h 1" (leave the space out)'),
    ({"kind": "webhook", "url": "http://h 1/"}, "sink.url: expected http://HOST/..."),
    ({"kind": "webhook", "url": "http://::1:80/"}, "sink.url: expected http://HOST/..."),
    ({"kind": "mqtt", "host": "h", "qos": 3}, "sink.qos: expected 0 to 2, got 3"),
    ({"kind": "mqtt", "host": "h", "path": "a"}, "sink.path: unknown setting (known: "),
    (
        {"kind": "mqtt", "host": "h", "topic": "a/#"},
        "sink.topic: expected a topic to publish to, got 'a/#' with '#' in it",
    ),
    (
        {"kind": "mqtt", "host": "h", "topic": "{nmae}"},
        "sink.topic: expected {host}, {id}, {name} in it and no other, got {nmae}",
    ),
    (
        {"kind": "mqtt", "host": "h", "event_topic": "{id}"},
        "sink.event_topic: expected {host} in it and no other, got {id}",
    ),
    (
        {"kind": "mqtt", "host": "h", "password_file": "p", "tls": True},
        "sink.username: expected one to go with the password",
    ),
    (
        {"kind": "mqtt", "host": "h", "tls": {"certificate": "c"}},
        "sink.tls.key: expected certificate and key together, got one",
    ),
    ({"kind": "mqtt", "host": "h", "tls": {"cert": "c"}}, "sink.tls.cert: unknown setting"),
    ({"kind": "webhook"}, "sink.url: expected a text, got nothing (add it)"),
    ({"kind": "webhook", "url": "h/x"}, 'sink.url: expected http://HOST/... or https://HOST/..., got "h/x"'),
    ({"kind": "webhook", "url": "ftp://h/x"}, "sink.url: expected http://HOST/..."),
    ({"kind": "webhook", "url": "http://h:x/"}, "sink.url: expected http://HOST/..."),
    ({"kind": "webhook", "url": "https://u:p@h/"}, "sink.url: expected http://HOST/..."),
    (
        {"kind": "webhook", "url": "http://h/x", "token_file": "t"},
        "sink.url: expected https for a bearer token, got plaintext to h",
    ),
    (
        {"kind": "webhook", "url": "http://h/", "headers": {"a": "b\nc"}},
        "sink.headers.a: expected a header's name and value",
    ),
    ({"kind": "webhook", "url": "http://h/", "batch": 0}, "sink.batch: expected 1 to 10000, got 0"),
]


@pytest.mark.parametrize(("sink", "finding"), BAD, ids=[finding[:40] for _, finding in BAD])
def test_a_wrong_setting_is_one_line(sink, finding):
    assert complaint(**sink).startswith(finding)


def test_one_place_or_a_list_of_places():
    with pytest.raises(ConfigError, match=r"sink: expected `sink:` or `sinks:`, got both \(leave one out\)"):
        read({"sink": {}, "sinks": [{}]})
    with pytest.raises(ConfigError, match="sinks: expected at least one sink, got none"):
        read({"sinks": []})
    with pytest.raises(ConfigError, match=r"sinks: expected a path for each sink, got /etc/coe/a twice"):
        read({"sinks": [{"path": "a"}, {"kind": "sqlite", "path": "a"}]})
    with pytest.raises(ConfigError, match="got standard output twice"):
        read({"sinks": [{}, {"path": "-"}]})


def test_findings_of_several_sinks_come_together():
    with pytest.raises(ConfigError) as caught:
        read({"sinks": [{"kind": "nowhere"}, {"kind": "mqtt"}]})
    assert [finding.split(":")[0] for finding in caught.value.findings] == ["sinks[0].kind", "sinks[1].host"]


def test_a_password_that_others_could_read_on_its_way_is_warned_of():
    report = Report("edge.yaml")
    read({"sink": {"kind": "mqtt", "host": "broker", "username": "pi", "password_file": "p"}}, report)
    assert report.warnings == [
        "sink.password_file: the password goes to broker in plaintext (set `tls: true`, or `tls: {ca: ...}`)"
    ]
    report = Report("edge.yaml")
    read({"sink": {"kind": "mqtt", "host": "localhost", "username": "pi", "password_file": "p"}}, report)
    assert report.warnings == []


def test_what_a_record_says_is_one_level_of_a_topic_each():
    assert fill_topic("a/{id}/{name}", {"id": "x/+#\n", "name": "z é"}) == "a/x____/z é"
    assert fill_topic("a/{id}/{name}", {"id": "", "error": "cannot be read"}) == "a/_/none"
