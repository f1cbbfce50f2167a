"""`coe-edge explain`: each sentence comes from a setting and goes with it, and what it says of the wire is so."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from pki import Pki

from coe import zoo
from coe.config.manifest import read_manifest
from coe.protocol import inference_pb2 as pb
from coe.protocol.service import PLATFORM
from edge.config import read_config
from edge.main import main
from edge.setup.explain import statements_of

BASE = """
task: zoo:digits
tiers:
  - name: device
    members: [zoo:digits/stroke.onnx, zoo:digits/loom.onnx, zoo:digits/mosaic.onnx]
    agreement: unanimous
  - {name: cloud, address: "gpu-host:8001", model: digits}
source: {kind: digits}
"""


def read(folder: Path, text: str = BASE, *more: str) -> dict[str, list[str]]:
    """Statements by topic."""
    path = folder / "pi.yaml"
    path.write_text(text + "".join(f"{line}\n" for line in more), encoding="utf-8")
    found: dict[str, list[str]] = {}
    for statement in statements_of(read_config(path)):
        found.setdefault(statement.topic, []).append(statement.text)
    return found


def all_of(found: dict[str, list[str]]) -> str:
    return "\n".join(text for texts in found.values() for text in texts)


def test_when_an_example_leaves_follows_the_rule(tmp_path):
    assert read(tmp_path)["leaves"][0].startswith(
        "An example leaves when not all 3 models of tier device give it the same label. It goes to gpu-host:8001"
    )
    two = read(tmp_path, BASE.replace("unanimous", "2/3"))["leaves"][0]
    assert "when not at least 2 of the 3 models of tier device" in two
    sure = read(tmp_path, BASE.replace("agreement: unanimous", "confidence: 0.9"))["leaves"][0]
    assert "when tier device is less than 0.9 sure" in sure


def test_a_device_without_models_sends_everything_and_one_without_a_cloud_nothing(tmp_path):
    head, _, rest = BASE.partition("  - name: device")
    far = read(tmp_path, head + rest[rest.index("  - {name: cloud") :])
    assert far["leaves"][0].startswith("Every example leaves")
    assert "settle never leave it" not in all_of(far)
    alone = read(tmp_path, BASE.replace('  - {name: cloud, address: "gpu-host:8001", model: digits}\n', ""))
    assert alone["leaves"] == ["No example: every tier runs on this device."]
    assert "beside" not in alone


def test_what_limits_the_link_is_said_with_what_was_not_sent_for_it(tmp_path):
    month = time.strftime("%Y-%m", time.gmtime())
    (tmp_path / "link.json").write_text(
        json.dumps({month: {"bytes": 12_300_000, "cap": 4, "budget": 5, "duplicate": 6}})
    )
    limits = ["state: .", "link: {max_mb_per_month: 500, max_examples_per_hour: 30}", "same_scene: {}"]
    window = ["when_unavailable: spool", 'spool: {send_between: ["22:00-06:00"]}']
    leaves = "\n".join(read(tmp_path, BASE, *limits, *window)["leaves"])
    assert "Calls end at 500 MB in a calendar month (UTC); in this one they took 12.3 MB, and 4 examples" in leaves
    assert "At most 30 examples are sent in an hour; in this month 5 were not sent for it." in leaves
    assert "like one of the last 16 sent in 60 minutes is not sent; in this month 6 were not." in leaves
    assert "is sent between 22:00-06:00 alone" in leaves
    assert f"{tmp_path / 'link.json'}: counts of what was sent, by month" in all_of(read(tmp_path, BASE, *limits))
    assert "calendar month" not in all_of(read(tmp_path))


def test_over_what_it_travels_follows_address_and_tls(tmp_path):
    assert "IN PLAINTEXT, so that everybody on the way" in read(tmp_path)["leaves"][0]
    here = read(tmp_path, BASE.replace("gpu-host", "127.0.0.1"))["leaves"][0]
    assert "in plaintext, which does not leave this machine" in here
    public = read(tmp_path, BASE.replace("model: digits", "model: digits, tls: true"))["leaves"][0]
    assert "encrypted (TLS), to a server whose certificate a public CA signed" in public
    pki = Pki(tmp_path / "pki")
    pki.device("pi-1")
    files = f"{{ca: {pki['ca.pem']}, certificate: {pki['pi-1.pem']}, key: {pki['pi-1.key']}}}"
    own = read(tmp_path, BASE.replace("model: digits", f"model: digits, tls: {files}"))
    assert "whose certificate the CA in ca.pem signed" in own["leaves"][0]
    assert f"The server knows this device by the name in the certificate {pki['pi-1.pem']}." in own["beside"]


def test_a_token_is_named_by_its_file_and_never_said(tmp_path):
    (tmp_path / "device.token").write_text("very-secret-token\n")
    (tmp_path / "device.token").chmod(0o600)
    text = BASE.replace("model: digits", "model: digits, tls: true, token_file: device.token")
    found = all_of(read(tmp_path, text))
    assert f"the token in {tmp_path / 'device.token'}" in found
    assert "very-secret-token" not in found


@pytest.mark.parametrize(
    ("send", "printed"),
    [
        ("captured", "byte for byte: a photo with everything its file holds"),
        ("pixels", "as its decoded pixels at their own size"),
        ("model-size", "resized to the 28 x 28 that the task's models see"),
        ("png", "encoded anew as PNG"),
        ("{jpeg: 61}", "encoded anew as JPEG at quality 61"),
    ],
)
def test_the_form_follows_the_payload_policy(tmp_path, send, printed):
    text = read(tmp_path, BASE.replace("model: digits", f"model: digits, send: {send}"))["leaves"][0]
    assert printed in text
    assert ("EXIF" in text) == (send == "captured")


def test_a_text_goes_word_for_word(tmp_path):
    text = BASE.replace("zoo:digits\n", "zoo:sst2\n", 1)
    tier = read_config(zoo.find("sst2/edge.yaml")).cascade.tiers[0]
    members = ", ".join(f"zoo:sst2/{spec.path.name}" for spec in tier.members)
    text = text.replace("zoo:digits/stroke.onnx, zoo:digits/loom.onnx, zoo:digits/mosaic.onnx", members)
    found = read(tmp_path, text.replace("source: {kind: digits}", "source: {kind: stdin}"))
    assert "as its text, word for word" in found["leaves"][0]
    assert "EXIF" not in all_of(found)


def test_several_hosts_and_a_stream_are_said(tmp_path):
    assert "If its metadata say that it is no coe-cloud, it is sent the numbers" in read(tmp_path)["leaves"][0]
    assert "to a coe-cloud a fingerprint of labels and input format" in read(tmp_path)["beside"][0]
    several = read(tmp_path, BASE.replace('"gpu-host:8001"', '["a:1", "b:2"]'))
    assert "It goes to a:1, b:2" in several["leaves"][0]
    assert "Each goes to one of these hosts" in several["leaves"][0]
    stream = read(tmp_path, BASE.replace("model: digits", "model: digits, stream: true"))
    assert "numbered, from 0" in stream["beside"][0]
    assert "numbered" not in all_of(several)


def test_an_audit_is_said_and_takes_back_that_settled_examples_stay(tmp_path):
    assert "Examples that this device's models settle never leave it." in read(tmp_path)["stays"]
    found = read(tmp_path, BASE, "audit: {share: 0.02, max_per_hour: 30, max_mb_per_day: 5}")
    (audit,) = [text for text in found["leaves"] if "drawn at random" in text]
    assert "up to 2% are drawn" in audit
    assert "30 an hour and 5 MB a day" in audit
    assert "Examples that this device's models settle never leave it." not in found["stays"]


def test_classes_that_are_never_sent_and_a_hook_are_said(tmp_path):
    (tmp_path / "rules.py").write_text("def private(value, votes):\n    return False\n")
    found = read(tmp_path, BASE, "never_send: ['3', '7']", "privacy_filter: rules.py:private")
    assert any(text.endswith("never leaves it: 3, 7.") for text in found["stays"])
    assert any(text.startswith("The privacy filter rules.py:private is called") for text in found["stays"])
    assert "never leaves it: " not in all_of(read(tmp_path))


def test_what_is_kept_on_the_disk_and_how_long_is_said(tmp_path):
    assert read(tmp_path)["kept"] == ["Decisions go to standard output: what is kept of them is up to who reads it."]
    grows = read(tmp_path, BASE, "sink: {path: out.jsonl}")["kept"]
    assert grows == [
        f"{tmp_path / 'out.jsonl'}: each decision's record, no example, without bound: nothing is removed."
    ]
    bound = read(tmp_path, BASE, "sink: {path: out.jsonl, max_mb: 2, keep: 3}")["kept"][0]
    assert "up to 2 MB in one file and 3 older files" in bound
    kept = read(tmp_path, BASE, "harvest: {path: harvest, max_mb: 7, max_count: 50}")["kept"]
    assert any("EXAMPLES that were sent" in text and "up to 50 and 7 MB" in text for text in kept)


def test_a_spool_is_said(tmp_path):
    found = read(tmp_path, BASE, "when_unavailable: spool", "state: state")
    assert "Where nobody answers it is kept here, and sent later." in found["leaves"][0]
    (spool,) = [text for text in found["kept"] if "EXAMPLES that a server should have answered" in text]
    assert spool.startswith(f"{tmp_path / 'state' / 'spool.db'}: ")
    assert "at most 168 hours, 100,000 examples and 256 MB; what is too much goes, the oldest first" in spool
    bound = read(
        tmp_path, BASE, "when_unavailable: spool", "spool: {max_age_h: 2, max_count: 10, max_mb: 3, drop: newest}"
    )
    assert "at most 2 hours, 10 examples and 3 MB; what is too much goes, the newest first" in all_of(bound)
    assert "kept here, and sent later" not in all_of(read(tmp_path))


def test_the_names_of_a_watched_folder_that_are_remembered_are_said(tmp_path):
    text = BASE.replace("source: {kind: digits}", "source: {kind: folder, path: ., watch: true, remember: true}")
    found = read(tmp_path, text, "state: state")
    assert any(text.startswith(f"{tmp_path / 'state' / 'folders.db'}: the names of files") for text in found["kept"])
    assert "folders.db" not in all_of(read(tmp_path, text.replace("remember: true", "remember: false")))


def test_sinks_that_send_decisions_away_are_said(tmp_path):
    found = read(tmp_path, BASE, "sinks: [{kind: webhook, url: 'https://example.org/in'}, {path: out.jsonl}]")
    assert any(
        "To https://example.org/in: each decision's record: the example's id" in text for text in found["leaves"]
    )
    broker = read(tmp_path, BASE, "sink: {kind: mqtt, host: broker}")["leaves"]
    assert any("To the broker broker:1883, in plaintext" in text for text in broker)
    assert "which class held it back" not in all_of(found)
    private = read(tmp_path, BASE, "sink: {kind: mqtt, host: broker}", 'never_send: ["3"]')["leaves"]
    assert any("no example, but its label, and which class held it back" in text for text in private)


def test_who_can_look_in_is_said(tmp_path):
    assert read(tmp_path)["open"] == ["Nobody: no port is open."]
    pytest.importorskip("prometheus_client")
    (page,) = read(tmp_path, BASE, "watch: {address: '127.0.0.1:9109', thumbnails: false}")["open"]
    assert page.startswith("http://127.0.0.1:9109/ shows counts")
    assert "without pictures" in page
    (page,) = read(tmp_path, BASE, "watch: {address: '127.0.0.1:9109'}")["open"]
    assert "with small pictures of recent examples, to everybody" in page
    (page,) = read(tmp_path, BASE, "watch: {address: '127.0.0.1:9109'}", 'never_send: ["3"]')["open"]
    assert "pictures of recent examples, but of none that may not leave, to everybody" in page


def test_what_is_sent_is_what_is_said(tmp_path):
    """A server that writes down every request and header of a real agent, which is then held against the sentences."""
    task = read_manifest(zoo.find("digits/manifest.yaml")).task
    requests: list[pb.ModelInferRequest] = []
    headers: list[dict[str, Any]] = []

    class Writes(grpc.GenericRpcHandler):
        def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
            def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
                if call.method.endswith("/ModelInfer"):
                    requests.append(pb.ModelInferRequest.FromString(request))
                    headers.append(dict(context.invocation_metadata()))
                if not call.method.endswith("/ModelMetadata"):
                    context.abort(grpc.StatusCode.UNAVAILABLE, "writes, and answers nothing")
                return pb.ModelMetadataResponse(platform=PLATFORM, versions=[task.fingerprint]).SerializeToString()

            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(ThreadPoolExecutor(4), handlers=[Writes()], options=[("grpc.so_reuseport", 0)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        text = BASE.replace("gpu-host:8001", f"127.0.0.1:{port}").replace("agreement: unanimous", "confidence: 1.0")
        found = all_of(read(tmp_path, text, f"sink: {{path: {tmp_path / 'out.jsonl'}}}"))
        assert main(["--config", str(tmp_path / "pi.yaml"), "--limit", "3"]) == 0
    finally:
        server.stop(None)
    assert requests
    for request in requests:
        set_fields = {field.name for field, _ in request.ListFields()}
        assert set_fields == {"model_name", "model_version", "inputs", "raw_input_contents"}  # no id, no parameters
        assert request.model_name == "digits"
        assert [{field.name for field, _ in tensor.ListFields()} for tensor in request.inputs] == [
            {"name", "datatype", "shape"}
        ]
        assert len(request.raw_input_contents) == 1
        assert request.raw_input_contents[0][4:12] == b"\x89PNG\r\n\x1a\n"  # the digit, as captured
        assert b"digit-" not in request.SerializeToString()  # how each is called here
    assert "An example's id, its file's name, its true label where it is known" in found
    known = {"traceparent", "user-agent", "grpc-accept-encoding", "accept-encoding", "grpc-previous-rpc-attempts"}
    for one in headers:
        assert set(one) <= known
        assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", str(one["traceparent"]))
    traces = {json.loads(line).get("trace") for line in (tmp_path / "out.jsonl").read_text().splitlines()}
    assert {str(one["traceparent"]).split("-")[1] for one in headers} <= traces
    assert (
        "a random trace id of the example's own (traceparent), which this device's record of the decision holds"
        in found
    )


def test_the_program_prints_sentences_or_json(tmp_path, capsys):
    read(tmp_path)
    path = str(tmp_path / "pi.yaml")
    assert main(["explain", "--config", path]) == 0
    printed = capsys.readouterr().out
    assert "What leaves this device\n  - An example leaves when" in printed
    assert max(len(line) for line in printed.splitlines()[1:]) <= 79
    assert main(["explain", "--config", path, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {one["topic"] for one in answer["statements"]} == {"leaves", "beside", "stays", "kept", "open"}
    (tmp_path / "pi.yaml").write_text("task: zoo:digits\n")
    assert main(["explain", "--config", path]) == 2
    assert "tiers: expected" in capsys.readouterr().err
