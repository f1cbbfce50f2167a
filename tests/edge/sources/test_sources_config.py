"""What a config says of sources: every wrong setting is one line with its mend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coe.cascade import ConfigError
from coe.config import Fields, Report
from coe.config.manifest import Task
from coe.models.input_spec import InputSpec
from edge.sources import SourceConfig, open_source, read_sources
from edge.sources.config import CameraConfig, GrpcSourceConfig
from edge.sources.open import RoundRobinSource

FOLDER = Path("/etc/coe")
IMAGES = Task("birds", ("a", "b"), InputSpec("image", (28, 28, 3)))
GREYS = Task("digits", ("a", "b"), InputSpec("image", (28, 28, 1)))
NUMBERS = Task("numbers", ("a", "b"), InputSpec("tensor", (3,)))


def read(content: dict[str, Any], task: Task = IMAGES) -> SourceConfig:
    report = Report("edge.yaml")
    fields = Fields(content, report)
    source = read_sources(fields, FOLDER, task, 2)
    fields.finish()
    report.check()
    return source


def read_one(task: Task = IMAGES, **source: Any) -> SourceConfig:
    return read({"source": source}, task)


def test_nothing_said_is_standard_input():
    assert read({}) == SourceConfig("stdin")


def test_a_folder():
    assert read_one(kind="folder", path="photos", interval_ms=20) == SourceConfig(
        "folder", FOLDER / "photos", interval_s=0.02
    )
    source = read_one(kind="folder", path="/photos", watch=True, poll=True)
    assert (source.path, source.watch, source.poll) == (Path("/photos"), True, True)


def test_a_camera_is_a_number_a_device_a_stream_or_a_video():
    assert read_one(kind="camera") == SourceConfig("camera", camera=CameraConfig(0))
    assert read_one(kind="camera", device="/dev/video2", every_ms=500).camera == CameraConfig("/dev/video2", 0.5)
    assert read_one(kind="camera", device="rtsp://h/1", task=GREYS).camera == CameraConfig("rtsp://h/1", channels=1)
    video = read_one(kind="camera", device="a.mp4")
    assert (video.path, video.camera) == (FOLDER / "a.mp4", CameraConfig(None, skip=False))
    assert read_one(kind="camera", device="a.mp4", skip=True, loop=True).camera == CameraConfig(None, loop=True)


def test_a_door_is_on_loopback_or_a_unix_socket():
    server = read_one(kind="grpc").server
    assert server == GrpcSourceConfig(IMAGES, 8002, None, "127.0.0.1", "birds", 2)
    assert server.address == "127.0.0.1:8002"
    server = read_one(kind="grpc", address="unix:run/edge.sock", model="m", max_queued=5, max_message_mb=1).server
    assert server == GrpcSourceConfig(IMAGES, 0, FOLDER / "run/edge.sock", "", "m", 2, 5, 5, 2**20)
    assert server.address == "unix:/etc/coe/run/edge.sock"
    assert read_one(kind="grpc", address="[::1]:8002").server.host == "[::1]"
    assert read_one(kind="grpc", address="localhost:0").server.host == "localhost"


def test_several_are_a_list_and_one_in_a_list_is_one():
    source = read({"sources": [{"kind": "digits", "interval_ms": 5}, {"kind": "grpc", "address": "unix:/run/a"}]})
    assert [part.kind for part in source.parts] == ["digits", "grpc"]
    assert (source.kind, source.interval_s, source.parts[0].interval_s) == ("several", 0.0, 0.005)
    opened = open_source(source)
    assert isinstance(opened, RoundRobinSource)
    assert opened.intervals_s == (0.005, 0.0)
    assert read({"sources": [{"kind": "digits"}]}) == SourceConfig("digits")


BAD = [
    (
        {"kind": "fodler"},
        "source.kind: expected one of digits, folder, csv, arrays, stdin, camera, grpc, "
        'got "fodler"; did you mean "folder"?',
    ),
    ({"kind": "folder"}, "source.path: expected a text, got nothing (add it)"),
    ({"kind": "folder", "path": "a", "wach": True}, 'source.wach: unknown setting (did you mean "watch"?)'),
    ({"kind": "stdin", "path": "a"}, "source.path: unknown setting"),
    (
        {"kind": "camera", "device": -1},
        "source.device: expected a camera's number, a video file or a URL such as rtsp://..., got -1",
    ),
    (
        {"kind": "camera", "device": True},
        "source.device: expected a camera's number, a video file or a URL such as rtsp://..., got True",
    ),
    ({"kind": "camera", "device": "file://a.mp4"}, "source.device: expected a URL of rtsp, "),
    ({"kind": "camera", "device": 0, "loop": True}, "source.loop: expected it with a video file alone (leave it out)"),
    ({"kind": "camera", "every_ms": -1}, "source.every_ms: expected 0 to 86400000, got -1"),
    ({"kind": "grpc", "address": "8002"}, 'source.address: expected 127.0.0.1:PORT or unix:PATH, got "8002"'),
    (
        {"kind": "grpc", "address": "http://127.0.0.1:8002"},
        'source.address: expected 127.0.0.1:PORT or unix:PATH, got "http://127.0.0.1:8002" (leave http:// out)',
    ),
    (
        {"kind": "grpc", "address": "::1:8002"},
        'source.address: expected 127.0.0.1:PORT or unix:PATH, got "::1:8002" (write "[::1]:8002")',
    ),
    ({"kind": "grpc", "address": "127.0.0.1:99999"}, "source.address: expected 127.0.0.1:PORT or unix:PATH"),
    (
        {"kind": "grpc", "address": "0.0.0.0:8002"},
        "source.address: expected an address of this device alone, got 0.0.0.0 (write ",
    ),
    (
        {"kind": "grpc", "address": "10.0.0.7:8002"},
        "source.address: expected an address of this device alone, got 10.0.0.7",
    ),
    ({"kind": "grpc", "address": "unix:/" + "x" * 120}, "source.address: expected a path of at most 107 bytes"),
    ({"kind": "grpc", "max_queue": 3}, 'source.max_queue: unknown setting (did you mean "max_queued"?)'),
]


@pytest.mark.parametrize(("source", "finding"), BAD, ids=[finding[:44] for _, finding in BAD])
def test_a_wrong_setting_is_one_line(source, finding):
    with pytest.raises(ConfigError) as caught:
        read({"source": source})
    assert len(caught.value.findings) == 1
    assert caught.value.findings[0].startswith(finding)


def test_a_camera_is_for_a_task_of_images():
    with pytest.raises(ConfigError, match=r"source\.kind: expected a task of images for a camera, got one of tensors"):
        read_one(kind="camera", task=NUMBERS)


def test_one_source_or_a_list_of_sources():
    with pytest.raises(ConfigError, match="source: expected `source:` or `sources:`, got both"):
        read({"source": {"kind": "digits"}, "sources": [{"kind": "digits"}]})
    with pytest.raises(ConfigError, match="sources: expected at least one source, got none"):
        read({"sources": []})
    with pytest.raises(ConfigError, match="sources: expected standard input once, got it twice"):
        read({"sources": [{"kind": "stdin"}, {"kind": "stdin"}]})
    with pytest.raises(ConfigError) as caught:
        read({"sources": [{"kind": "nothing"}, {"kind": "folder"}]})
    assert [finding.split(":")[0] for finding in caught.value.findings] == ["sources[0].kind", "sources[1].path"]
