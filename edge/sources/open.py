"""Opens the configured source: one of its kinds, the bundled digits, or several sources in turn."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence

from coe.cascade.errors import ConfigError
from coe.zoo import digits

from .base import Example, FileHistory, Source
from .config import SourceConfig


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


POLL_S = 0.2  # how soon after the agent is told to stop the sources are
JOIN_S = 10.0


class RoundRobinSource:
    """The examples of all parts, taking turns; a part that is slow, or has ended, holds up no other.

    Args:
        parts: at least one.
        intervals_s: least time between two examples of each part.
    """

    def __init__(self, parts: Sequence[Source], intervals_s: Sequence[float] = ()) -> None:
        self.parts = tuple(parts)
        self.intervals_s = tuple(intervals_s) or (0.0,) * len(self.parts)

    def examples(self, stop: threading.Event) -> Iterator[Example]:
        """Examples until every part has ended, or one fails: its error is raised here."""
        turn = threading.Condition()
        over = threading.Event()  # what the parts see as `stop`
        lines = [_PartThread(part, every, turn, over) for part, every in zip(self.parts, self.intervals_s, strict=True)]
        try:
            for line in lines:
                line.thread.start()
            at = 0
            while (found := self._next(lines, at, turn, stop, over)) is not None:
                at = found + 1
                example = lines[found].example
                assert example is not None
                yield example
                lines[found].go_on()  # asked for more: this one's outcome is in the sink, or it waits for a server
        finally:
            over.set()
            for line in lines:
                line.drop()
            for line in lines:
                if line.thread.ident is not None:
                    line.thread.join(JOIN_S)

    def _next(
        self,
        lines: Sequence[_PartThread],
        start: int,
        turn: threading.Condition,
        stop: threading.Event,
        over: threading.Event,
    ) -> int | None:
        """The first line from `start` on that has an example, once one has; None: all have ended."""
        order = [(start + step) % len(lines) for step in range(len(lines))]
        with turn:
            while True:
                if stop.is_set():
                    over.set()  # what a part had ready is still taken: it may not be given again
                for at in order:
                    if (error := lines[at].error) is not None:
                        raise error
                    if lines[at].example is not None:
                        return at
                if all(line.is_over for line in lines):
                    return None
                turn.wait(POLL_S)


class _PartThread:
    """One part, its thread, and the example that it holds ready."""

    def __init__(self, part: Source, every_s: float, turn: threading.Condition, over: threading.Event) -> None:
        self.example: Example | None = None
        self.error: Exception | None = None
        self.is_over = False
        self._is_dropped = False
        self.thread = threading.Thread(target=self._run, name="coe-source", daemon=True)
        self._part = part
        self._every_s = every_s
        self._turn = turn
        self._over = over

    def go_on(self) -> None:
        """The part may be asked for its next example."""
        with self._turn:
            self.example = None
            self._turn.notify_all()

    def drop(self) -> None:
        """The part is not asked again: what it holds ready was not decided, and it must not think so."""
        with self._turn:
            self._is_dropped = True
            self._turn.notify_all()

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
            with self._turn:
                self.is_over = True
                self._turn.notify_all()

    def _hand_over(self, example: Example) -> bool:
        """Whether the agent took it, and asks for more."""
        with self._turn:
            self.example = example
            self._turn.notify_all()
            self._turn.wait_for(lambda: self.example is None or self._is_dropped)
            return not self._is_dropped


Tell = Callable[[str], None]


def open_source(
    config: SourceConfig, once: bool = False, tell: Tell = lambda line: None, memory: FileHistory | None = None
) -> Source:
    """The configured source, its own module imported only then.

    Args:
        once: what is there now, and no watching.
        tell: told what a user must know of it while it runs.
        memory: of watched folders; None: nothing is remembered.
    Raises:
        ConfigError: it cannot be opened.
        RuntimeMissing: what it needs is not installed.
    """
    if config.kind == "several":
        parts = [open_source(part, once, tell, memory) for part in config.parts]
        return RoundRobinSource(parts, [part.interval_s for part in config.parts])
    if config.kind == "folder":
        return _folder(config, once, tell, memory)
    if config.kind == "stdin":
        from .jsonlines import JsonLinesSource

        if sys.stdin is None:
            raise ConfigError(["source: expected JSON lines on standard input, which is closed (pipe them in)"])
        return JsonLinesSource(sys.stdin.buffer)
    if config.kind == "camera":
        from .camera import CameraSource

        assert config.camera is not None
        return CameraSource(config.camera, config.path, once=once, tell=tell)
    if config.kind == "grpc":
        from .grpc_server import GrpcSource

        assert config.server is not None
        return GrpcSource(config.server, once=once, tell=tell)

    return DigitsSource(config.repeat)


def _folder(config: SourceConfig, once: bool, tell: Tell, memory: FileHistory | None) -> Source:
    from .folder import FolderSource

    assert config.path is not None
    watch = config.watch and not once
    why_not = ""
    if watch and not config.poll:
        from .folder import why_not_watched

        why_not = why_not_watched(config.path)
        if why_not:
            tell(f"warning: {why_not}: looked through twice a second (poll: true says that it is meant)")
    uses_inotify = watch and not config.poll and not why_not
    remembered = memory.of(config.path) if memory is not None and watch and config.remember else None
    return FolderSource(config.path, watch, uses_inotify=uses_inotify, tell=tell, memory=remembered)
