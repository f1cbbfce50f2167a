"""Real agents asked through their local servers, by the clients people use; and agents that look at several things."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from programs import Cloud, Program, edge, records_in, until

from coe.cascade import Always
from coe.config.manifest import read_manifest
from coe.models.inputs import InputDecoder
from coe.protocol.remote import RemoteTier
from coe.zoo import digits

TASK = read_manifest(digits.MANIFEST).task
EXAMPLES = digits.test_examples(60)

AGENT = """
task: zoo:digits
tiers:
  - name: device
    members: [zoo:digits/stroke.onnx, zoo:digits/loom.onnx, zoo:digits/mosaic.onnx]
    {rule}
  - {{name: cloud, address: "{address}", model: digits, deadline_ms: 5000}}
{sources}
sink: {{path: {folder}/decisions.jsonl}}
"""
READY = re.compile(r"serving digits on (\S+)")


class ServingAgent:
    """A `coe-edge` with a local gRPC server, in a `with` block."""

    def __init__(self, folder: Path, address: str, sources: str, rule: str = "agreement: unanimous") -> None:
        folder.mkdir(exist_ok=True)
        self.sink = folder / "decisions.jsonl"
        config = folder / "edge.yaml"
        config.write_text(AGENT.format(folder=folder, address=address, sources=sources, rule=rule), encoding="utf-8")
        self.program = edge(folder, config)

    @property
    def address(self) -> str:
        found = READY.search(self.program.complained)
        return found[1] if found else ""

    @property
    def records(self) -> list[dict[str, Any]]:
        return records_in(self.sink.read_text()) if self.sink.exists() else []

    def __enter__(self) -> ServingAgent:
        until(lambda: self.address or self.program.process.poll() is not None, lambda: self.program.complained)
        assert self.address, self.program.complained
        return self

    def __exit__(self, *_: object) -> None:
        self.program.__exit__()


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with Cloud(tmp_path_factory.mktemp("cloud")) as program:
        yield program


TCP = 'source: {kind: grpc, address: "127.0.0.1:0"}'


def tier_to(address: str) -> RemoteTier:
    return RemoteTier("home", address, "digits", Always(), n_labels=10, fingerprint=TASK.fingerprint, deadline_s=10.0)


def test_a_chain_from_a_program_through_the_agents_cascade_to_the_cloud(cloud, tmp_path):
    batch = InputDecoder(TASK.input_spec).batch([name for name, _, _ in EXAMPLES], [png for _, png, _ in EXAMPLES])
    with ServingAgent(tmp_path / "a", f"127.0.0.1:{cloud.port}", TCP, "confidence: 0.99") as agent:
        tier = tier_to(agent.address)
        tier.metadata()
        vote = tier.vote(batch, Always())
        again = tier.vote(batch.take(np.arange(3)), Always())
        tier.close()
        agent.program.send(signal.SIGTERM)
        assert agent.program.end() == 0
    records = agent.records
    assert len(records) == 63
    by_row = {int(record["id"].rpartition("/")[2]): record for record in records[:60]}
    assert vote.labels.tolist() == [by_row[row]["label"] for row in range(60)]
    assert vote.exit_tier.tolist() == [by_row[row]["exit_tier"] for row in range(60)]
    assert set(vote.exit_tier.tolist()) >= {1, 2}  # some were decided here, some over there
    assert vote.degraded is None
    assert vote.labels[:3].tolist() == again.labels.tolist()
    right = sum(int(label) == truth for label, (_, _, truth) in zip(vote.labels, EXAMPLES, strict=True))
    assert right >= 55


def test_an_agent_may_be_the_cloud_of_another(cloud, tmp_path):
    """Its answers are a cascade's, so tier numbers count on through it."""
    source = "source: {kind: digits}"
    with ServingAgent(tmp_path / "near", f"127.0.0.1:{cloud.port}", TCP, "confidence: 0.99") as near:
        folder = tmp_path / "first"
        folder.mkdir()
        config = folder / "edge.yaml"
        config.write_text(
            AGENT.format(folder=folder, address=near.address, sources=source, rule="confidence: 1.0"), encoding="utf-8"
        )
        with edge(folder, config, "--limit", 40) as first:
            assert first.end() == 0, first.complained
    records = records_in((folder / "decisions.jsonl").read_text())
    assert len(records) == 40
    assert {record["exit_tier"] for record in records} >= {2, 3}
    assert not any(record["degraded"] for record in records)


def test_tritonclient_asks_a_device(cloud, tmp_path):
    triton = pytest.importorskip("tritonclient.grpc", reason="needs tritonclient: pip install 'tritonclient[grpc]'")
    with ServingAgent(tmp_path / "a", f"127.0.0.1:{cloud.port}", TCP) as agent:
        client = triton.InferenceServerClient(agent.address)
        assert client.is_server_live()
        assert client.is_model_ready("digits")
        assert client.get_model_metadata("digits").versions == [TASK.fingerprint]
        pngs = np.array([png for _, png, _ in EXAMPLES], dtype=object)
        tensor = triton.InferInput("input", list(pngs.shape), "BYTES")
        wanted = [triton.InferRequestedOutput(name) for name in ("label", "label_name")]
        told = client.infer("digits", [tensor.set_data_from_numpy(pngs)], outputs=wanted, request_id="album")
        client.close()
    assert [int(name) for name in told.as_numpy("label_name")] == told.as_numpy("label").tolist()
    labels = {record["id"]: record["label"] for record in agent.records}
    assert told.as_numpy("label").tolist() == [labels[f"album/{row}"] for row in range(60)]


def test_a_folder_and_a_door_at_once(cloud, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    sources = (
        f"sources:\n  - {{kind: folder, path: {photos}, watch: true}}\n"
        f"  - {{kind: grpc, address: 'unix:{tmp_path}/edge.sock'}}"
    )
    with ServingAgent(tmp_path / "a", f"127.0.0.1:{cloud.port}", sources) as agent:
        assert agent.address == f"unix:{tmp_path}/edge.sock"
        tier = tier_to(agent.address)
        batch = InputDecoder(TASK.input_spec).batch(["x"], [EXAMPLES[0][1]])
        for number, (_, png, _) in enumerate(EXAMPLES[:5]):
            (photos / f"{number}.png").write_bytes(png)
            tier.vote(batch, Always())
        tier.close()
        until(lambda: len(agent.records) == 10, lambda: agent.program.complained)
        agent.program.send(signal.SIGTERM)
        assert agent.program.end() == 0
    names = [record["id"] for record in agent.records]
    assert sorted(name for name in names if name.endswith(".png")) == [f"{number}.png" for number in range(5)]
    assert not Path(f"{tmp_path}/edge.sock").exists()


def test_a_video_is_decided_frame_by_frame(cloud, tmp_path):
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV: pip install 'coe-cascade[camera]'")
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25, (112, 112))
    for _, png, _ in EXAMPLES[:12]:
        picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
        writer.write(cv2.resize(picture, (112, 112)))
    writer.release()
    folder = tmp_path / "a"
    folder.mkdir()
    config = folder / "edge.yaml"
    sources = f"ordered: true\nsource: {{kind: camera, device: {tmp_path}/v.avi}}"
    config.write_text(
        AGENT.format(folder=folder, address=f"127.0.0.1:{cloud.port}", sources=sources, rule="agreement: unanimous"),
        encoding="utf-8",
    )
    with Program("edge.main", ["--config", config], folder) as agent:
        assert agent.end() == 0, agent.complained
    records = records_in((folder / "decisions.jsonl").read_text())
    assert len(records) == 12
    assert not any("error" in record for record in records)
    right = sum(record["label"] == truth for record, (_, _, truth) in zip(records, EXAMPLES[:12], strict=True))
    assert right >= 10
