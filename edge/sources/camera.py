"""A camera, a stream or a video, frame by frame, through OpenCV.

A thread reads a live stream as fast as frames come and keeps only the newest, so that a device which is slower than
its camera decides the present frame, and not one from a while ago.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from coe.cascade.errors import ConfigError, NotUsableNow
from coe.cascade.types import Array
from coe.link import Backoff
from coe.models.loading import import_runtime

from .base import Example
from .config import CameraConfig

log = logging.getLogger(__name__)

FIRST_WAIT_S, MOST_WAIT_S = 0.5, 30.0  # before a stream that failed is opened again
TIMEOUT_MS = 5000  # for a stream to open, and for its next frame
ERRORS = 2  # OpenCV's log level
LEAD_S = 0.1  # frames are decoded from this long before one is wanted
POLL_S = 0.2
JOIN_S = 0.5  # for a read under way; one that waits for its next frame ends by itself, later


class CameraSource:
    """Frames as pixels (H, W, C) uint8, RGB or grey.

    Args:
        path: of a video file; None: `config.device` is opened.
        once: one frame of a camera, or the whole of a video, and no more.
        first_wait_s: before the first attempt to open it again; each further one waits twice as long.
    Raises:
        RuntimeMissing: OpenCV is not installed.
        ConfigError: the video does not exist.
    """

    def __init__(
        self,
        config: CameraConfig,
        path: Path | None = None,
        *,
        once: bool = False,
        first_wait_s: float = FIRST_WAIT_S,
    ) -> None:
        if path is not None and not path.is_file():
            raise NotUsableNow([f"source.device: expected a camera, a URL or a video file, got {path} (no such file)"])
        self.config = config
        self.path = path
        self.once = once
        self.n_frames = 0  # that came
        self.n_dropped = 0  # for newer ones
        self.n_failures = 0  # times it had to be opened again
        self._first_wait_s = first_wait_s
        self._cv2 = import_runtime("cv2", "OpenCV", "pip install 'coe-cascade[camera]'")
        _set_log_level(self._cv2)
        self._failing_since: float | None = None
        self._started = ""
        self._newest = _NewestFrame()

    @property
    def name(self) -> str:
        """Without the password that a URL may hold."""
        return re.sub("//[^/@]*@", "//", str(self.path or self.config.device))

    def examples(self, stop: threading.Event) -> Iterator[Example]:
        # the clock alone repeats after each boot of a device that has no battery for it
        self._started = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.urandom(4).hex()}"
        if not self.config.skip:
            yield from self._every_frame(stop)
            return
        self._newest = _NewestFrame()
        over = threading.Event()
        reader = threading.Thread(target=self._read, args=(over,), name="coe-camera", daemon=True)
        reader.start()
        try:
            yield from self._newest_frames(stop)
        finally:
            over.set()
            reader.join(JOIN_S)

    def _every_frame(self, stop: threading.Event) -> Iterator[Example]:
        """A video's frames, every one, or one each `every_s` of its own time."""
        while not stop.is_set():
            capture = self._open()
            if not capture.isOpened():
                raise ConfigError([f"source.device: expected a video that OpenCV can read, got {self.path}"])
            try:
                stride = max(1, round(self.config.every_s * (capture.get(self._cv2.CAP_PROP_FPS) or 0.0)))
                at = 0
                while not stop.is_set() and capture.grab():
                    self.n_frames += 1
                    if at % stride == 0 and (frame := _frame(capture)) is not None:
                        yield self._example(self.n_frames, frame)
                    at += 1
            finally:
                capture.release()
            if not self.config.loop or self.once or not at:
                return

    def _newest_frames(self, stop: threading.Event) -> Iterator[Example]:
        next_at = 0.0
        while not stop.is_set():
            wait_s = next_at - time.monotonic()
            if wait_s > 0:
                stop.wait(wait_s)
                continue
            taken = self._newest.take(POLL_S)
            if taken is None:
                if self._newest.is_over:
                    return
                continue
            next_at = time.monotonic() + self.config.every_s
            self._newest.wanted_at = next_at - LEAD_S
            yield self._example(*taken)
            if self.once:
                return

    def _example(self, number: int, frame: Array) -> Example:
        colours = self._cv2.COLOR_BGR2GRAY if self.config.channels == 1 else self._cv2.COLOR_BGR2RGB
        pixels: Array = self._cv2.cvtColor(frame, colours)
        return Example(f"{self._started}-{number:07d}", pixels)  # a name of its own in every run

    def _read(self, over: threading.Event) -> None:
        """On a thread of its own: read until `over`, and open the stream again where it fails."""
        backoff = Backoff(self._first_wait_s, MOST_WAIT_S)
        while not over.is_set():
            n_before = self.n_frames
            capture = self._open()
            try:
                self._follow(capture, over)
            finally:
                capture.release()
            came = self.n_frames > n_before
            if self.path is not None and self.config.loop and came:
                continue
            if self.path is not None or over.is_set():
                break
            if came:
                backoff.reset()
            self._fails()
            over.wait(backoff.next_s())
        self._newest.end()

    def _follow(self, capture: Any, over: threading.Event) -> None:
        """Keep the newest frame until no more come. A video is played at the speed it was taken."""
        frame_s = 0.0 if self.path is None else 1 / (capture.get(self._cv2.CAP_PROP_FPS) or 25.0)
        next_at = time.monotonic()
        while not over.is_set() and capture.grab():
            self.n_frames += 1
            self._works()
            if time.monotonic() < self._newest.wanted_at:
                self.n_dropped += 1  # without decoding it
            elif (frame := _frame(capture)) is not None:
                self.n_dropped += self._newest.put(self.n_frames, frame)
            if frame_s:
                next_at += frame_s
                over.wait(max(0.0, next_at - time.monotonic()))

    def _fails(self) -> None:
        self.n_failures += 1
        if self._failing_since is None:
            self._failing_since = time.monotonic()
            log.warning("camera %s: no frames; it is tried again until there are", self.name)

    def _works(self) -> None:
        if self._failing_since is not None:
            log.info("camera %s: frames again, after %.1f s", self.name, time.monotonic() - self._failing_since)
            self._failing_since = None

    def _open(self) -> Any:
        cv2 = self._cv2
        if isinstance(self.config.device, str) and "://" in self.config.device:
            timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, TIMEOUT_MS]
            return cv2.VideoCapture(self.config.device, cv2.CAP_FFMPEG, timeouts)
        return cv2.VideoCapture(self.config.device if self.path is None else str(self.path))


def _set_log_level(cv2: Any) -> None:
    """Turn off OpenCV's own warnings on standard error, which say less than ours."""
    set_level = cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel  # before 5, and since
    set_level(ERRORS)


def _frame(capture: Any) -> Array | None:
    """The frame that was grabbed last, decoded."""
    is_there, frame = capture.retrieve()
    return np.asarray(frame) if is_there else None


class _NewestFrame:
    """Holds one frame, the newest."""

    def __init__(self) -> None:
        self.is_over = False
        self.wanted_at = 0.0  # `time.monotonic()` second; frames before it are not decoded
        self._changed = threading.Condition()
        self._frame: tuple[int, Array] | None = None

    def put(self, number: int, frame: Array) -> int:
        """The number of frames dropped for this one: 1 or 0."""
        with self._changed:
            n_dropped = int(self._frame is not None)
            self._frame = (number, frame)
            self._changed.notify()
            return n_dropped

    def take(self, seconds: float) -> tuple[int, Array] | None:
        """The newest frame and its number; None: none came within `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: self._frame is not None or self.is_over, seconds)
            frame, self._frame = self._frame, None
            return frame

    def end(self) -> None:
        with self._changed:
            self.is_over = True
            self._changed.notify()
