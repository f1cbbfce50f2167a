"""Decisions to a real MQTT broker: one that is there, is killed, comes back, and wants to know who publishes."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

pytest.importorskip("paho.mqtt.client", reason="needs paho-mqtt: pip install 'coe-cascade[mqtt]'")

from brokers import Mosquitto, Subscriber
from fakes import until
from outcomes import LABELS, outcome
from pki import Pki
from programs import Program, closed_port

from coe.cascade import ConfigError, RuntimeMissing
from edge.sinks import Event, Outcome, SinkConfig, Sinks, mqtt, open_sinks
from edge.sinks.config import MqttConfig
from edge.sinks.delivery import BufferedSink
from edge.sinks.mqtt import MqttTransport

HOST = "127.0.0.1"


def config(port: int, **changes: Any) -> MqttConfig:
    fields: dict[str, Any] = {
        "host": HOST,
        "port": port,
        "topic": "site/decisions",
        "event_topic": "site/events",
        "status_topic": "site/status",
    }
    return MqttConfig(**(fields | changes))


def sinks_to(port: int, **changes: Any) -> Sinks:
    return Sinks([queued(config(port, **changes))], LABELS)


def queued(chosen: MqttConfig, **options: Any) -> BufferedSink:
    return BufferedSink(MqttTransport(chosen, first_wait_s=0.05), first_wait_s=0.05, **{"flush_s": 20.0, **options})


def ids(payloads: list[bytes]) -> list[str]:
    return [json.loads(payload)["id"] for payload in payloads]


def test_each_record_is_published_where_the_config_says(broker):
    with Subscriber(broker.port) as seen:
        sinks = sinks_to(broker.port, topic="site/{name}/{id}")
        sinks.write(outcome("roof/a+b#1"))
        sinks.write(Outcome("bad", None, 0.0, None, "cannot be read"))
        sinks.write_event(Event("drift", {"share": 0.5}))
        sinks.write(outcome("x", corrects="k1", label=2))
        until(lambda: len(seen.messages) >= 5)
        sinks.close()
        until(lambda: seen.on("site/status") == [b"online", b"offline"])
    assert ids(seen.on("site/one/roof_a_b_1")) == ["roof/a+b#1"]
    assert json.loads(seen.on("site/none/bad")[0])["error"] == "cannot be read"
    assert json.loads(seen.on("site/events")[0])["share"] == 0.5
    assert json.loads(seen.on("site/two/x")[0])["corrects"] == "k1"


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_all_arrive_whatever_the_quality_of_service(broker, qos):
    with Subscriber(broker.port) as seen:
        sinks = sinks_to(broker.port, qos=qos)
        for number in range(100):
            sinks.write(outcome(f"x{number}"))
        sinks.close()
        until(lambda: len(seen.on("site/decisions")) == 100)
    assert ids(seen.on("site/decisions")) == [f"x{number}" for number in range(100)]
    assert sinks.health()[0].written == 100


def test_a_retained_decision_is_there_for_who_comes_later(broker):
    sinks = sinks_to(broker.port, retain=True, topic="site/latest")
    for name in "ab":
        sinks.write(outcome(name))
    sinks.close()
    with Subscriber(broker.port) as seen:
        until(lambda: len(seen.messages) == 2)
    assert seen.retained == {"site/latest", "site/status"}
    assert ids(seen.on("site/latest")) == ["b"]


def test_a_broker_that_is_killed_and_comes_back_costs_no_record_and_holds_up_none(broker, monkeypatch, logged):
    monkeypatch.setattr(mqtt, "ANSWER_S", 0.3)
    sinks = sinks_to(broker.port)
    for number in range(50):
        sinks.write(outcome(f"x{number}"))
        if number == 20:
            until(lambda: sinks.health()[0].written >= 10)
            broker.kill()
    slowest_s = 0.0
    for number in range(50, 150):
        started = time.perf_counter()
        sinks.write(outcome(f"x{number}"))
        slowest_s = max(slowest_s, time.perf_counter() - started)
    assert slowest_s < 1.0  # a broker that is away takes seconds to be noticed
    until(lambda: logged)
    n_before = sinks.health()[0].written
    broker.start()
    with Subscriber(broker.port) as seen:
        until(lambda: sinks.health()[0].failing_since is None)
        sinks.close()
        assert sinks.health()[0].written == 150
        assert sinks.health()[0].dropped == 0
        arrived = set(ids(seen.on("site/decisions")))
        assert len(arrived) > 0
        assert n_before < 150
    assert logged[0].startswith(f"warning: sink mqtt {HOST}:{broker.port} fails: {HOST}:{broker.port} ")
    assert "works again" in logged[1]


def test_a_subscriber_with_a_session_sees_every_record_through_an_outage(tmp_path, monkeypatch):
    """The broker keeps its sessions on disk, as installed brokers do."""
    monkeypatch.setattr(mqtt, "ANSWER_S", 0.3)
    stored = ("allow_anonymous true", "persistence true", f"persistence_location {tmp_path}/", "autosave_interval 1")
    with Mosquitto(tmp_path, *stored, "autosave_on_changes true") as broker, Subscriber(broker.port, "site/#") as seen:
        sinks = sinks_to(broker.port)
        for number in range(10):
            sinks.write(outcome(f"x{number}"))
        until(lambda: len(seen.on("site/decisions")) == 10)
        broker.kill()
        for number in range(10, 60):
            sinks.write(outcome(f"x{number}"))
        until(lambda: sinks.health()[0].failing_since is not None)
        broker.start()
        until(lambda: len(set(ids(seen.on("site/decisions")))) == 60)
        sinks.close()
    told = ids(seen.on("site/decisions"))
    assert list(dict.fromkeys(told)) == [f"x{number}" for number in range(60)]


def test_without_acknowledgements_too_it_goes_on_once_the_broker_is_back(broker, monkeypatch):
    monkeypatch.setattr(mqtt, "ANSWER_S", 0.2)
    sinks = sinks_to(broker.port, qos=0)

    def is_failing_with_another() -> bool:  # all before may have been through
        sinks.write(outcome("more"))
        return sinks.health()[0].failing_since is not None

    for number in range(100):
        sinks.write(outcome(f"x{number}"))
        if number in (3, 30):
            broker.kill()
            until(is_failing_with_another)
            broker.start()
    with Subscriber(broker.port) as seen:
        sinks.write(outcome("last"))
        until(lambda: "last" in ids(seen.on("site/decisions")))
    sinks.close()
    assert sinks.health()[0].queued == 0


def test_an_agent_starts_without_a_broker_and_keeps_what_fits(tmp_path, logged):
    broker = Mosquitto(tmp_path)
    writer = queued(config(broker.port), max_queued=30)
    sinks = Sinks([writer], LABELS)
    for number in range(100):
        sinks.write(outcome(f"x{number}"))
    until(lambda: any("cannot be reached" in line for line in logged))
    with broker, Subscriber(broker.port) as seen:
        sinks.close()
        until(lambda: len(seen.on("site/decisions")) + sinks.health()[0].dropped >= 100)
    assert ids(seen.on("site/decisions"))[-30:] == [f"x{number}" for number in range(70, 100)]


def test_a_password_is_shown_and_a_wrong_one_is_told_of(tmp_path, logged):
    tool = shutil.which("mosquitto_passwd")
    if tool is None:
        pytest.skip("needs mosquitto_passwd, which comes with mosquitto")
    passwords = tmp_path / "passwords"
    subprocess.run([tool, "-b", "-c", str(passwords), "pi", "right"], check=True, capture_output=True)
    if os.geteuid() == 0:
        passwords.chmod(0o644)
    secret = tmp_path / "secret"
    with Mosquitto(tmp_path, "allow_anonymous false", f"password_file {passwords}") as broker:
        secret.write_text("wrong\n")
        chosen = config(broker.port, username="pi", password_file=secret)
        sinks = Sinks([queued(chosen, flush_s=0.0)], LABELS)
        sinks.write(outcome("a"))
        until(lambda: logged)
        assert logged[0].endswith(f"fails: {HOST}:{broker.port} refuses: Not authorized")
        sinks.close()
        secret.write_text("right\n")
        sinks = sinks_to(broker.port, username="pi", password_file=secret)
        sinks.write(outcome("a"))
        until(lambda: sinks.health()[0].written == 1)
        sinks.close()
    with pytest.raises(ConfigError, match=r"sink\.password_file: .* cannot be read: No such file"):
        MqttTransport(config(1, username="pi", password_file=tmp_path / "nothing"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # paho leaves a socket to be collected
def test_it_speaks_tls_and_shows_its_certificate(tmp_path, logged):
    pki = Pki(tmp_path / "pki")
    pki.device("pi")
    for name in ("server.key", "server.pem", "ca.pem"):
        pki[name].chmod(0o644)
    settings = (f"cafile {pki['ca.pem']}", f"certfile {pki['server.pem']}", f"keyfile {pki['server.key']}")
    with Mosquitto(tmp_path, *settings, "require_certificate true", "use_identity_as_username true") as broker:
        sinks = sinks_to(broker.port, tls=(pki["ca.pem"], pki["pi.pem"], pki["pi.key"]))
        sinks.write(outcome("a"))
        until(lambda: sinks.health()[0].written == 1)
        sinks.close()
        stranger = Sinks([queued(config(broker.port, tls=(None, None, None)), flush_s=0.0)], LABELS)
        stranger.write(outcome("b"))
        until(lambda: logged)
        stranger.close()
        gc.collect()
    with pytest.raises(ConfigError, match=r"sink\.tls: a certificate or key cannot be used"):
        MqttTransport(config(1, tls=(tmp_path / "nothing", None, None)))


def test_a_port_that_is_closed_is_no_reason_not_to_end():
    sinks = Sinks([queued(config(closed_port()), flush_s=0.1)], LABELS)
    started = time.monotonic()
    sinks.write(outcome())
    sinks.close()
    assert time.monotonic() - started < 15


def test_without_paho_the_install_that_mends_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    with pytest.raises(RuntimeMissing, match=r"pip install 'coe-cascade\[mqtt\]'"):
        open_sinks([SinkConfig("mqtt", mqtt=config(1))], LABELS)


AGENT = """
task: zoo:digits
state: {folder}/state
tiers: [{{members: [zoo:digits/stroke.onnx, zoo:digits/loom.onnx]}}]
source: {{kind: digits, repeat: 1000, interval_ms: 5}}
sinks:
  - {{path: {folder}/decisions.jsonl}}
  - {{kind: mqtt, host: {host}, port: {port}, topic: site/decisions, status_topic: site/status, client_id: agent}}
"""


def test_the_broker_tells_of_an_agent_that_was_killed(broker, tmp_path):
    path = tmp_path / "edge.yaml"
    path.write_text(AGENT.format(folder=tmp_path, host=HOST, port=broker.port))
    with Subscriber(broker.port) as seen, Program("edge.main", ["--config", path], tmp_path) as agent:
        until(lambda: len(seen.on("site/decisions")) >= 3 or agent.process.poll() is not None)
        assert seen.on("site/status") == [b"online"], agent.complained
        agent.send(signal.SIGKILL)
        until(lambda: seen.on("site/status") == [b"online", b"offline"])
        written = [json.loads(line)["id"] for line in (tmp_path / "decisions.jsonl").read_text().splitlines()]
        told = ids(seen.on("site/decisions"))
        assert told == written[: len(told)]


def test_home_assistant_finds_the_agent_its_link_and_its_last_label(broker, monkeypatch):
    monkeypatch.setattr(mqtt, "STATE_S", 0.05)
    facts = {"kept_share": 0.5, "link_up": True, "examples": 2}
    sink = queued(config(broker.port, discovery="homeassistant", topic="site/{name}/decisions"))
    sink.transport.watch(lambda: dict(facts))
    sinks = Sinks([sink], LABELS)
    with Subscriber(broker.port) as seen:
        until(lambda: seen.on("site/status/state"))
        facts |= {"kept_share": 0.75, "link_up": False}
        sinks.write(outcome("a"))
        until(lambda: any(json.loads(state)["kept_share"] == 0.75 for state in seen.on("site/status/state")))
        sinks.close()
    with Subscriber(broker.port) as late:  # all of it is retained: Home Assistant may start later
        until(lambda: len(late.retained) == 5)
    found = {topic.split("/")[3]: json.loads(late.on(topic)[0]) for topic in late.retained if "homeassistant" in topic}
    assert set(found) == {"label", "kept", "link"}
    assert found["label"]["state_topic"] == "site/+/decisions"
    assert found["kept"]["state_topic"] == found["link"]["state_topic"] == "site/status/state"
    assert {entity["availability_topic"] for entity in found.values()} == {"site/status"}
    assert len({entity["unique_id"] for entity in found.values()}) == 3
    assert json.loads(late.on("site/status/state")[-1]) == {"kept_share": 0.75, "link_up": False, "examples": 2}
    assert late.on("site/status")[-1] == b"offline"


def test_without_discovery_nothing_more_is_published(broker):
    sink = queued(config(broker.port))
    sink.transport.watch(dict)
    sinks = Sinks([sink], LABELS)
    with Subscriber(broker.port) as seen:
        sinks.write(outcome("a"))
        sinks.close()
        until(lambda: b"offline" in seen.on("site/status"))
        assert {topic for topic, *_ in seen.messages} == {"site/status", "site/decisions"}
