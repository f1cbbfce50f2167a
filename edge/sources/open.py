"""Opens the configured source: one of its kinds, the bundled digits, or several sources in turn."""

from __future__ import annotations

import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from coe.cascade.errors import ConfigError
from coe.config.manifest import Task
from coe.zoo import digits

from .base import Example, Source
from .config import SourceConfig

if TYPE_CHECKING:
    from edge.spool.history import FileHistory


class DigitsSource:
    """The digits in their fixed order, `repeat` times."""

    def __init__(self, repeat: int = 1) -> None:
        self.repeat = repeat

    def examples(self, stop: threading.Event) -> Iterator[Example]:
        bundled = digits.test_examples()
        for turn in range(1, self.repeat + 1):
            for name, png, label in bundled:
                if stop.is_set():
                    return
                yield Example(name if turn == 1 else f"{name}#{turn}", png, label)


POLL_S = 0.2  # how soon after the agent's `stop` the parts are stopped
JOIN_S = 10.0


class RoundRobinSource:
    """The examples of all parts, in turn; a part that is slow, or has ended, delays no other.

    Args:
        parts: at least one.
        intervals_s: least time between two examples of each part.
    """

    def __init__(self, parts: Sequence[Source], intervals_s: Sequence[float] = ()) -> None:
        self.parts = tuple(parts)
        self.intervals_s = tuple(intervals_s) or (0.0,) * len(self.parts)

    def examples(self, stop: threading.Event) -> Iterator[Example]:
        """Examples until every part has ended, or one fails: its error is raised here."""
        changed = threading.Condition()
        over = threading.Event()  # what the parts see as `stop`
        parts = [
            _PartThread(part, every, changed, over) for part, every in zip(self.parts, self.intervals_s, strict=True)
        ]
        try:
            for part in parts:
                part.thread.start()
            at = 0
            while (found := self._next(parts, at, changed, stop, over)) is not None:
                at = found + 1
                example = parts[found].example
                assert example is not None
                yield example
                parts[found].release()  # the agent asks for more: it is through with this one
        finally:
            over.set()
            for part in parts:
                part.drop()
            for part in parts:
                if part.thread.ident is not None:
                    part.thread.join(JOIN_S)

    def _next(
        self,
        parts: Sequence[_PartThread],
        start: int,
        changed: threading.Condition,
        stop: threading.Event,
        over: threading.Event,
    ) -> int | None:
        """The index of the first part from `start` on that has an example, once one has; None: all have ended."""
        order = [(start + step) % len(parts) for step in range(len(parts))]
        with changed:
            while True:
                if stop.is_set():
                    over.set()  # an example that is ready is still taken: it may not be given again
                for at in order:
                    if (error := parts[at].error) is not None:
                        raise error
                    if parts[at].example is not None:
                        return at
                if all(part.is_over for part in parts):
                    return None
                changed.wait(POLL_S)


class _PartThread:
    """One part, its thread, and the example that it has ready."""

    def __init__(self, part: Source, every_s: float, changed: threading.Condition, over: threading.Event) -> None:
        self.example: Example | None = None
        self.error: Exception | None = None
        self.is_over = False
        self._is_dropped = False
        self.thread = threading.Thread(target=self._run, name="coe-source", daemon=True)
        self._part = part
        self._every_s = every_s
        self._changed = changed
        self._over = over

    def release(self) -> None:
        """Have the part give its next example."""
        with self._changed:
            self.example = None
            self._changed.notify_all()

    def drop(self) -> None:
        """Close the part's iterator at the example that it has ready, which was not decided."""
        with self._changed:
            self._is_dropped = True
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            examples = self._part.examples(self._over)
            for example in examples:
                if not self._hand_over(example):
                    break
                if self._every_s:
                    self._over.wait(self._every_s)
            if isinstance(examples, Generator):
                examples.close()
        except Exception as error:  # noqa: BLE001 - raised on the agent's thread
            self.error = error
        finally:
            with self._changed:
                self.is_over = True
                self._changed.notify_all()

    def _hand_over(self, example: Example) -> bool:
        """True once the agent took it and asks for more; False: the part is dropped."""
        with self._changed:
            self.example = example
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.example is None or self._is_dropped)
            return not self._is_dropped


def open_source(config: SourceConfig, once: bool = False, history: FileHistory | None = None) -> Source:
    """The configured source; the module of its kind is imported only then.

    Args:
        once: what is there now, and no watching.
        history: of watched folders; None: nothing is remembered.
    Raises:
        ConfigError: it cannot be opened.
        RuntimeMissing: a package that it needs is not installed.
    """
    if config.kind == "several":
        parts = [open_source(part, once, history) for part in config.parts]
        return RoundRobinSource(parts, [part.interval_s for part in config.parts])
    if config.kind == "folder":
        return _open_folder(config, once, history)
    if config.kind == "stdin":
        from .jsonlines import JsonLinesSource

        if sys.stdin is None:
            raise ConfigError(["source: expected JSON lines on standard input, which is closed (pipe them in)"])
        return JsonLinesSource(sys.stdin.buffer, labels=config.task.labels if config.task else ())
    if config.kind in ("csv", "arrays"):
        from .table import PlaceSource, TableSource

        assert config.task is not None
        if config.kind == "csv":
            return TableSource(config, config.task)
        assert config.path is not None
        return PlaceSource(config.path, config.task)
    if config.kind == "camera":
        from .camera import CameraSource

        assert config.camera is not None
        return CameraSource(config.camera, config.path, once=once)
    if config.kind == "grpc":
        from .grpc_server import GrpcSource

        assert config.server is not None
        return GrpcSource(config.server, once=once)
    return DigitsSource(config.repeat)


def open_data(reference: str, task: Task) -> Source:
    """What a flag `--data` names: "-", JSON lines on standard input; or a folder or a file, labelled or not.

    Raises:
        ConfigError: it does not exist.
    """
    if reference == "-":
        return open_source(SourceConfig("stdin", task=task))
    from .folder import FolderSource, holds_images
    from .table import PlaceSource

    place = Path(reference).expanduser()
    if not place.exists():
        raise ConfigError([f'--data: expected a folder, a file or -, got "{reference}" (no such file)'])
    if task.input_spec.kind == "image" and place.is_dir() and holds_images(place):
        return FolderSource(place)  # which passes over a file that cannot be read
    return PlaceSource(place, task)


def _open_folder(config: SourceConfig, once: bool, history: FileHistory | None) -> Source:
    from .folder import FolderSource

    assert config.path is not None
    watch = config.watch and not once
    if history is not None and watch and config.remember:
        history.add(config.path)
    else:
        history = None
    return FolderSource(config.path, watch, uses_inotify=not config.poll, recursive=config.recursive, history=history)
