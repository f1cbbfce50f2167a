"""The agent watched: metrics, status, thumbnails, and who may ask."""

from __future__ import annotations

import http.client
import io
import json
import re

import numpy as np
import pytest
from fakes import DECODER, UNANIMOUS, Far, ListSink, Numbers, Seat
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from coe.cascade import Cascade, ConfigError, Decision, LocalTier, TierTimeout
from coe.config import Fields, Report
from edge.agent import Agent
from edge.field.config import AuditConfig, FieldConfig
from edge.field.drift import Baseline, DriftConfig
from edge.field.monitors import open_monitors
from edge.link import LinkState, LinkStatus
from edge.observe import status as status_module
from edge.observe.config import ObserveConfig, read_observe
from edge.observe.server import ObserveServer
from edge.observe.status import MAX_KEPT_BYTES, MAX_THUMBNAIL_BYTES, N_NEWEST, AgentView, RecentDecisions, _smaller
from edge.sinks import Outcome
from edge.sinks.delivery import SinkHealth
from edge.sources import Example

LABELS = ("zero", "one", "two")
SPOOL = {"waiting": 3, "bytes": 4096, "oldest_s": 12.5, "dropped": {"age": 2}, "error": ""}
BUDGET = {"month": "2026-11", "bytes": 12, "examples_in_hour": 6, "not_sent": {"cap": 0, "budget": 2, "duplicate": 1}}
SINK = SinkHealth("jsonlines", "jsonlines")
SINK.written, SINK.dropped = 9, 1


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), number, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def decided(name: str, reason: str | None = None, **changes: object) -> Outcome:
    return Outcome(name, Decision(name, 1, 1, 1.0, 0.9, 3, 3, (1.0,), (0.0,), reason), 0.002, **changes)


class Device:
    """An agent that has decided twenty examples, four of which the cloud did not answer, with a server around it."""

    def __init__(self, tmp_path) -> None:
        def fail_some(batch):
            if batch.ids[0] in ("x1", "x3", "x5", "x7"):
                raise TierTimeout("cloud", "late")

        cascade = Cascade([LocalTier("device", [Seat(1), Seat(2)], UNANIMOUS), Far(fail_some)])
        self.agent = Agent(cascade, DECODER, ListSink())
        drift = DriftConfig(20, baselines=(Baseline("deferred", 0.02, 10_000),))
        config = FieldConfig(audit=AuditConfig(1.0, 1e12, 1e12, 1.0), drift=drift)
        self.field = open_monitors(config, self.agent, LABELS, tmp_path)
        self.recent = RecentDecisions(LABELS, thumbnails=True)
        self.agent.observers.append(self.recent)
        self.agent.run(Numbers(20))
        assert self.field.audit is not None
        assert self.field.audit.settle(20)
        cascade.tiers[0].failures.count(0, OSError("disk on fire"))  # type: ignore[attr-defined]
        self.links = [LinkState("cloud", LinkStatus.OPEN, error="late", n_opened=2, n_rebuilds=1, round_trip_s=0.03)]
        watched = AgentView(
            self.agent,
            self.field,
            self.recent,
            "digits",
            ["device", "cloud"],
            lambda: self.links,
            lambda: SPOOL,
            lambda: [SINK],
            budget=lambda: BUDGET,
        )
        self.server = ObserveServer(ObserveConfig(port=0), watched)

    def get(self, path: str, host: str | None = None, method: str = "GET") -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=10)
        connection.request(method, path, headers={} if host is None else {"Host": host})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, body, dict(answer.getheaders())


@pytest.fixture
def device(tmp_path):
    device = Device(tmp_path)
    yield device
    device.server.close()
    device.field.close()


def samples(text: str) -> dict[str, float]:
    """Each sample under its name and labels."""
    return {
        sample.name + "".join(f"{{{key}={value}}}" for key, value in sample.labels.items()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_metrics_say_what_the_agent_did(device):
    code, body, headers = device.get("/metrics")
    assert (code, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    found = samples(body.decode())
    expected = {
        "coe_edge_examples_total": 20,
        "coe_edge_decisions_total{exit_tier=1}": 14,
        "coe_edge_decisions_total{exit_tier=2}": 6,
        "coe_edge_deferred_total": 10,
        "coe_edge_missed_total{reason=timeout}": 4,
        "coe_edge_decision_seconds_count": 20,
        "coe_edge_decision_seconds_bucket{le=+Inf}": 20,
        "coe_edge_member_failed_total{member=device/seat-1}": 1,
        "coe_edge_member_failing{member=device/seat-1}": 1,
        "coe_edge_member_failed_total{member=device/seat-2}": 0,
        "coe_edge_member_failing{member=device/seat-2}": 0,
        "coe_edge_link_up{tier=cloud}": 0,
        "coe_edge_link_opened_total{tier=cloud}": 2,
        "coe_edge_link_rebuilds_total{tier=cloud}": 1,
        "coe_edge_link_round_trip_seconds{tier=cloud}": 0.03,
        "coe_edge_link_month_bytes": 12,
        "coe_edge_not_sent_in_month{reason=duplicate}": 1,
        "coe_edge_spool_examples": 3,
        "coe_edge_spool_dropped_total{reason=age}": 2,
        "coe_edge_spool_oldest_seconds": 12.5,
        "coe_edge_sink_written_total{sink=jsonlines}": 9,
        "coe_edge_sink_failing{sink=jsonlines}": 0,
        "coe_edge_audit_answered_total": 10,
        "coe_edge_audit_error{bound=estimate}": 0,
        "coe_edge_drift_share{what=deferred}": 0.5,
        "coe_edge_drift_outside{what=deferred}": 1,
    }
    assert {name: found.get(name) for name in expected} == expected


def test_the_status_says_the_same_as_plain_data(device):
    facts = json.loads(device.get("/status.json")[1])
    assert (facts["examples"], facts["degraded"], facts["kept_share"]) == (20, 4, 0.5)
    assert facts["links"][0]["status"] == "open"
    assert facts["links"][0]["next_probe_s"] is None
    assert [gauge["state"] for gauge in facts["drift"]] == ["outside"]
    assert facts["link_budget"] == BUDGET
    assert len(facts["recent"]) == 20
    assert {record["id"] for record in facts["recent"]} == {f"x{number}" for number in range(20)}


def test_the_page_comes_with_a_policy_that_allows_itself_alone(device):
    code, body, headers = device.get("/")
    assert code == 200
    assert b"<title>coe-edge</title>" in body
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(rb"https?://(?!www\.w3\.org)", body)


def test_a_page_of_another_name_bent_to_this_device_is_refused(device):
    for path in ("/", "/status.json", "/metrics"):
        assert device.get(path, host="evil.example")[0] == 403
    assert device.get("/status.json", host="localhost:9109")[0] == 200


@pytest.mark.parametrize(("method", "path", "code"), [("GET", "/nothing", 404), ("HEAD", "/", 200), ("POST", "/", 501)])
def test_it_answers_questions_alone(device, method, path, code):
    found, body, _ = device.get(path, method=method)
    assert found == code
    if method == "HEAD":
        assert body == b""


def test_thumbnails_of_a_list_can_be_asked_for_though_newer_decisions_came(device):
    device.recent.on_outcome(Example("a", png(9)), decided("a"))
    device.recent.on_outcome(Example("b", np.full((4, 4, 3), 7, np.uint8)), decided("b"))
    facts = {record["id"]: record for record in json.loads(device.get("/status.json")[1])["recent"]}
    for number in range(3 * N_NEWEST):
        device.recent.on_outcome(Example(f"y{number}", png(number)), decided(f"y{number}"))
    code, body, headers = device.get(f"/thumbnails/{facts['a']['number']}")
    assert (code, body, headers["Content-Type"]) == (200, png(9), "image/png")
    code, body, _ = device.get(f"/thumbnails/{facts['b']['number']}")
    assert np.asarray(Image.open(io.BytesIO(body))).tolist() == np.full((4, 4, 3), 7).tolist()
    for _ in range(2):
        device.get("/status.json")
    assert device.get(f"/thumbnails/{facts['a']['number']}")[0] == 404


@pytest.mark.parametrize(
    ("value", "outcome", "thumbnails"),
    [
        (png(1), decided("a", 'held-back: tier cloud: class "two" is never sent', deferred=True), True),
        (b"\x89PNG" + bytes(MAX_KEPT_BYTES), decided("a"), True),
        (png(1), decided("a"), False),
    ],
)
def test_what_is_held_back_too_large_or_not_wanted_is_not_shown(value, outcome, thumbnails):
    recent = RecentDecisions(LABELS, thumbnails=thumbnails)
    recent.on_outcome(Example("a", value), outcome)
    (record,) = recent.newest()
    assert record["thumbnail"] is False
    assert recent.thumbnail(record["number"]) is None


def test_of_a_large_photo_a_thumbnail_is_made_once_somebody_looks(monkeypatch):
    made = []
    monkeypatch.setattr(status_module, "_smaller", lambda value: made.append(1) or _smaller(value))
    pixels = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    assert len(buffer.getvalue()) > MAX_THUMBNAIL_BYTES
    recent = RecentDecisions(LABELS, thumbnails=True)
    for name, value in (("photo", buffer.getvalue()), ("frame", pixels), ("torn", b"\x89PNG" + bytes(10**5))):
        recent.on_outcome(Example(name, value), decided(name))
    numbers = {record["id"]: record["number"] for record in recent.newest()}
    assert not made
    for name in ("photo", "frame"):
        body, kind = recent.thumbnail(numbers[name])
        assert (Image.open(io.BytesIO(body)).size, kind) == ((256, 192), "image/jpeg")
    assert recent.thumbnail(numbers["torn"]) is None


def test_large_photos_are_kept_within_bounded_memory():
    recent = RecentDecisions(LABELS, thumbnails=True)
    photo = b"\xff\xd8\xff" + bytes(MAX_KEPT_BYTES // 3)
    for number in range(2 * N_NEWEST):
        recent.on_outcome(Example(f"x{number}", photo), decided(f"x{number}"))
        kept = [record["thumbnail"] for record in recent.newest()]
        assert kept == [True] * min(2, number + 1) + [False] * (len(kept) - 2)
    for number in range(N_NEWEST):
        recent.on_outcome(Example(f"y{number}", png(1)), decided(f"y{number}"))
    assert all(record["thumbnail"] for record in recent.newest())


def test_a_correction_is_listed_and_not_counted_again():
    recent = RecentDecisions(LABELS, thumbnails=True)
    recent.on_outcome(Example("a", png(1)), decided("a", "timeout: late", deferred=True))
    recent.on_outcome(Example("a", png(1)), decided("a", corrects="key"))
    assert [record.get("corrects", "") for record in recent.newest()] == ["key", ""]
    assert (sum(recent.times), dict(recent.reasons), recent.n_deferred) == (1, {"timeout": 1}, 1)


def test_memory_is_bounded_by_the_newest():
    recent = RecentDecisions(LABELS, thumbnails=True)
    for number in range(1000):
        recent.on_outcome(Example(f"x{number}", png(0)), decided(f"x{number}"))
    assert [record["number"] for record in recent.newest()] == list(range(1000, 1000 - N_NEWEST, -1))


def settings(**content: object) -> tuple[ObserveConfig, Report]:
    report = Report("pi.yaml")
    return read_observe(Fields(content, report, "watch")), report


def test_the_address_is_this_devices_own_unless_it_is_to_be_exposed():
    config, report = settings()
    assert (config.host, config.port, config.thumbnails, report.findings) == ("127.0.0.1", 9109, True, [])
    config, report = settings(address="[::1]:80")
    assert (config.host, config.port, report.findings) == ("::1", 80, [])
    _, report = settings(address="0.0.0.0:9109")
    assert report.findings[0].startswith("watch.address: expected an address of this device alone, got 0.0.0.0")
    _, report = settings(address="0.0.0.0:9109", expose=True)
    assert report.findings == []
    for address, fix in (("http://localhost:9109", "leave http:// out"), ("::1:9109", 'write "[::1]:9109"')):
        _, report = settings(address=address)
        assert report.findings == [f'watch.address: expected host:port, got "{address}" ({fix})']
    _, report = settings(address="9109")
    assert report.findings == ['watch.address: expected host:port, got "9109" (write 127.0.0.1:9109)']


def test_an_address_that_is_taken_is_a_clear_error(device):
    with pytest.raises(ConfigError, match=r"watch\.address: 127\.0\.0\.1:\d+ cannot be used: Address already in use"):
        ObserveServer(ObserveConfig(port=device.server.port), None)
