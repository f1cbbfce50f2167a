"""Cameras and videos through OpenCV: a video file that it wrote, and an MJPEG stream that this test serves."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cv2", reason="needs OpenCV: pip install 'coe-cascade[camera]'")

import cv2
from fakes import BOUND_S, until

from coe.cascade import ConfigError, RuntimeMissing
from edge.sources import Example, SourceConfig, open_source
from edge.sources import camera as camera_module
from edge.sources.camera import CameraSource
from edge.sources.config import CameraConfig

N_LEVELS = 32  # of grey, eight apart: a frame's number survives compression


def frame(number: int) -> np.ndarray:
    """(48, 64, 3) of one grey, as OpenCV has it."""
    return np.full((48, 64, 3), 8 * (number % N_LEVELS) + 4, np.uint8)


def number_of(example: Example) -> int:
    return round((float(np.mean(example.value)) - 4) / 8)


def video(path: Path, n_frames: int = 20, fps: float = 50.0) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), fps, (64, 48))
    for number in range(n_frames):
        writer.write(frame(number))
    writer.release()
    return path


class Taking:
    """A source that is read on a thread of its own, `pause_s` after each example."""

    def __init__(self, source: CameraSource, pause_s: float = 0.0) -> None:
        self.stop = threading.Event()
        self.examples: list[Example] = []
        self.ages_s: list[float] = []
        self._source, self._pause_s = source, pause_s
        self._thread = threading.Thread(target=self._read, daemon=True)

    def _read(self) -> None:
        for example in self._source.examples(self.stop):
            self.examples.append(example)
            time.sleep(self._pause_s)

    @property
    def has_ended(self) -> bool:
        return not self._thread.is_alive()

    def __enter__(self) -> Taking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self._thread.join(BOUND_S)
        assert self.has_ended


def everything(source: CameraSource) -> list[Example]:
    return list(source.examples(threading.Event()))


def test_ids_do_not_repeat_where_the_clock_does(tmp_path, monkeypatch):
    """A device without a clock battery starts each time at the same second."""

    class Stopped(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(1970, 1, 1, tzinfo=tz)

    monkeypatch.setattr(camera_module, "datetime", Stopped)
    path = video(tmp_path / "v.avi", 3)
    config = CameraConfig(None, skip=False)
    ids = [example.id for _ in range(2) for example in CameraSource(config, path).examples(threading.Event())]
    assert len(ids) == len(set(ids)) == 6


def test_every_frame_of_a_video_is_given_in_order(tmp_path):
    source = CameraSource(CameraConfig(None, skip=False), video(tmp_path / "v.avi"))
    examples = everything(source)
    assert [number_of(example) for example in examples] == list(range(20))
    assert len({example.id for example in examples}) == 20
    assert [example.id for example in examples] == sorted(example.id for example in examples)
    assert (examples[0].value.shape, examples[0].value.dtype) == ((48, 64, 3), np.uint8)
    assert (source.n_frames, source.n_dropped) == (20, 0)


def test_a_video_is_looked_at_every_so_often_of_its_own_time(tmp_path):
    source = CameraSource(CameraConfig(None, every_s=0.1, skip=False), video(tmp_path / "v.avi", fps=50))
    assert [number_of(example) for example in everything(source)] == [0, 5, 10, 15]


def test_a_video_may_begin_again(tmp_path):
    source = CameraSource(CameraConfig(None, skip=False, loop=True), video(tmp_path / "v.avi", 3))
    stop, numbers = threading.Event(), []
    for example in source.examples(stop):
        numbers.append(number_of(example))
        if len(numbers) == 8:
            stop.set()
    assert numbers == [0, 1, 2, 0, 1, 2, 0, 1]


def test_colours_are_red_green_blue_or_grey_as_the_task_takes_them(tmp_path):
    path = tmp_path / "red.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (64, 48))
    writer.write(np.full((48, 64, 3), (0, 0, 255), np.uint8))  # blue, green, red
    writer.release()
    (red,) = everything(CameraSource(CameraConfig(None, skip=False), path))
    assert red.value[24, 32].tolist() == pytest.approx([255, 0, 0], abs=8)
    (grey,) = everything(CameraSource(CameraConfig(None, skip=False, channels=1), path))
    assert grey.value.shape == (48, 64)
    assert grey.value[24, 32] == pytest.approx(76, abs=5)


def test_a_video_played_as_a_camera_is_given_the_newest_frame_and_not_the_oldest(tmp_path):
    source = CameraSource(CameraConfig(None, skip=True), video(tmp_path / "v.avi", 30, fps=60))
    with Taking(source, pause_s=0.15) as taking:
        until(lambda: taking.has_ended)
    numbers = [number_of(example) for example in taking.examples]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 29  # the last one is never dropped
    assert len(numbers) < 15
    assert source.n_dropped == 30 - len(numbers)


def test_a_video_played_as_a_camera_takes_its_time(tmp_path):
    source = CameraSource(CameraConfig(None, skip=True), video(tmp_path / "v.avi", 20, fps=40))
    started = time.monotonic()
    everything(source)
    assert time.monotonic() - started >= 0.45  # of 0.5 s


def test_what_is_no_video_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match=r"source\.device: expected a camera, a URL or a video file, got .*nothing"):
        CameraSource(CameraConfig(None), tmp_path / "nothing")
    (tmp_path / "text.avi").write_text("no video")
    with pytest.raises(ConfigError, match=r"source\.device: expected a video that OpenCV can read, got .*text\.avi"):
        everything(CameraSource(CameraConfig(None, skip=False), tmp_path / "text.avi"))


def test_without_opencv_the_install_that_mends_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(RuntimeMissing, match=r"pip install 'coe-cascade\[camera\]'"):
        open_source(SourceConfig("camera", camera=CameraConfig(0)))


class Stream:
    """An HTTP camera: frames as JPEG, one after another, numbered through. `ends_after` frames it hangs up."""

    def __init__(self, port: int = 0, every_s: float = 0.005, ends_after: int = 10**9) -> None:
        self.every_s, self.ends_after = every_s, ends_after
        self.number = 0
        self.n_viewers = 0
        self.is_over = threading.Event()
        stream = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stream.n_viewers += 1
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                for _ in range(stream.ends_after):
                    if stream.is_over.is_set():
                        return
                    jpeg = cv2.imencode(".jpg", frame(stream.number))[1].tobytes()
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n".encode()
                    self.wfile.write(head + jpeg + b"\r\n")
                    stream.number += 1
                    time.sleep(stream.every_s)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass  # a viewer that went away

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/stream.mjpg"

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def stream() -> Iterator[Stream]:
    with Stream() as served:
        yield served


def camera(url: str, **changes: Any) -> CameraSource:
    return CameraSource(CameraConfig(url, **changes), first_wait_s=0.02)


def test_a_stream_is_decided_as_it_is_now_however_slow_the_device(stream):
    source = camera(stream.url)
    with Taking(source, pause_s=0.1) as taking:
        until(lambda: len(taking.examples) >= 8)
    steps = np.diff([int(example.id.rpartition("-")[2]) for example in taking.examples])
    assert (steps > 1).all()  # each time, those that came meanwhile were dropped
    assert source.n_dropped >= steps.sum() - len(steps)
    assert all(example.value.shape == (48, 64, 3) for example in taking.examples)


def test_frames_are_given_no_more_often_than_they_are_wanted(stream):
    with Taking(camera(stream.url, every_s=0.1)) as taking:
        until(lambda: len(taking.examples) >= 2)
        started, n_before = time.monotonic(), len(taking.examples)
        time.sleep(0.35)
        n_more, took_s = len(taking.examples) - n_before, time.monotonic() - started
    assert 1 <= n_more <= took_s / 0.1 + 1


def test_a_stream_that_ends_is_opened_again_and_that_is_logged(logged):
    with Stream(ends_after=40) as stream, Taking(camera(stream.url)) as taking:
        until(lambda: stream.n_viewers >= 3 and len(logged) >= 4)
        n_before = len(taking.examples)
        until(lambda: len(taking.examples) > n_before)
    assert logged[0] == f"warning: camera {stream.url}: no frames; it is tried again until there are"
    assert logged[1].startswith(f"camera {stream.url}: frames again, after ")
    assert len({example.id for example in taking.examples}) == len(taking.examples)


def test_a_stream_that_is_not_there_yet_is_waited_for(logged):
    with Stream() as trial:
        port = trial.port
    source = camera(f"http://127.0.0.1:{port}/stream.mjpg")
    with Taking(source) as taking:
        until(lambda: source.n_failures >= 3)
        assert len(logged) == 1
        with Stream(port):
            until(lambda: taking.examples)
    assert len(logged) >= 2


def test_the_password_of_a_camera_is_not_told():
    assert camera("rtsp://admin:secret@10.0.0.9:554/live").name == "rtsp://10.0.0.9:554/live"


def test_once_is_one_frame(stream):
    source = open_source(SourceConfig("camera", camera=CameraConfig(stream.url)), once=True)
    assert len(list(source.examples(threading.Event()))) == 1


def test_a_stream_without_frames_does_not_keep_it_from_stopping():
    with Stream(every_s=60) as stream, Taking(camera(stream.url)) as taking:
        until(lambda: stream.n_viewers >= 1)
        taking.stop.set()
        until(lambda: taking.has_ended)
