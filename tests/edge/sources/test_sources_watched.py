"""A watched folder of which the operating system tells: files are taken when they are whole, at once."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("watchdog.observers.inotify", reason="needs watchdog on Linux: pip install 'coe-cascade[edge]'")

from fakes import BOUND_S, until

from coe.zoo import digits
from edge.sources import Example, SourceConfig, folder, open_source
from edge.sources.folder import FileWatcher, FolderSource, filesystem_of, why_not_watched

PNG = digits.test_examples(1)[0][1]


class Watching:
    """A watched folder, read on a thread of its own; once its first look is over, `poll_s` keeps it from another."""

    def __init__(self, path: Path, poll_s: float = 60.0) -> None:
        self.path = path
        self.stop = threading.Event()
        self.examples: list[Example] = []
        self._source = FolderSource(path, True, poll_s, uses_inotify=True)
        self._thread = threading.Thread(target=self._read, daemon=True)

    def _read(self) -> None:
        for example in self._source.examples(self.stop):
            self.examples.append(example)

    @property
    def ids(self) -> list[str]:
        return [example.id for example in self.examples if not example.id.startswith("warm")]

    def __enter__(self) -> Watching:
        self._thread.start()
        until(self._is_told)
        return self

    def _is_told(self) -> bool:
        """Whether a file that is put there now is noticed."""
        (self.path / f"warm-{time.monotonic_ns()}.png").write_bytes(PNG)
        time.sleep(0.01)
        return bool(self.examples)

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self._thread.join(BOUND_S)
        assert not self._thread.is_alive()


@pytest.fixture(autouse=True)
def _no_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the system's word within the time of a test."""
    monkeypatch.setattr(folder, "SCAN_S", 60.0)


def test_a_file_is_taken_as_soon_as_it_is_closed(tmp_path):
    with Watching(tmp_path) as watching:
        for number in range(5):
            (tmp_path / f"{number}.png").write_bytes(PNG)
            until(lambda: len(watching.ids) == number + 1)  # noqa: B023 - called here
    assert watching.ids == [f"{number}.png" for number in range(5)]
    assert all(example.value == PNG for example in watching.examples)


def test_a_file_that_is_still_written_is_left_alone(tmp_path):
    with Watching(tmp_path) as watching, (tmp_path / "slow.png").open("wb") as file:
        file.write(PNG[:50])
        file.flush()
        (tmp_path / "other.png").write_bytes(PNG)
        until(lambda: watching.ids == ["other.png"])
        time.sleep(0.1)
        assert watching.ids == ["other.png"]
        file.write(PNG[50:])
        file.close()
        until(lambda: watching.ids == ["other.png", "slow.png"])
    assert watching.examples[-1].value == PNG


def test_a_file_that_is_moved_in_or_gets_its_name_is_taken(tmp_path):
    watched, elsewhere = tmp_path / "watched", tmp_path / "elsewhere"
    watched.mkdir()
    elsewhere.mkdir()
    with Watching(watched) as watching:
        (elsewhere / "a.png").write_bytes(PNG)
        (elsewhere / "a.png").rename(watched / "a.png")
        until(lambda: watching.ids == ["a.png"])
        (watched / "b.png.part").write_bytes(PNG)
        (watched / "b.png.part").rename(watched / "b.png")
        until(lambda: watching.ids == ["a.png", "b.png"])


def test_a_file_moved_away_does_not_hold_up_the_next_one(tmp_path):
    watched = tmp_path / "watched"
    watched.mkdir()
    with Watching(watched) as watching:
        (watched / "a.png").write_bytes(PNG)
        until(lambda: watching.ids == ["a.png"])
        (watched / "a.png").rename(tmp_path / "done.png")
        (watched / "b.png").write_bytes(PNG)
        until(lambda: watching.ids == ["a.png", "b.png"])


def test_what_copies_a_file_has_a_moment_to_set_its_time_after_it_closed_it(tmp_path, monkeypatch):
    """As `shutil.copy2` does: else the file would be taken twice, once with either time."""
    monkeypatch.setattr(folder, "SETTLE_S", 0.3)
    seen, stop = FileWatcher(tmp_path), threading.Event()
    try:
        started = time.monotonic()
        for name in ("a.png", "b.png"):
            (tmp_path / name).write_bytes(PNG)
        assert seen.wait(stop, BOUND_S) >= {"a.png"}
        assert time.monotonic() - started >= 0.3
    finally:
        seen.close()


def test_a_file_written_again_is_taken_again_and_an_empty_one_waits_to_be_filled(tmp_path):
    with Watching(tmp_path) as watching:
        (tmp_path / "a.png").touch()
        (tmp_path / "b.png").write_bytes(PNG)
        until(lambda: watching.ids == ["b.png"])
        (tmp_path / "a.png").write_bytes(PNG)
        until(lambda: watching.ids == ["b.png", "a.png"])
        (tmp_path / "a.png").write_bytes(PNG + b"more")
        until(lambda: watching.ids == ["b.png", "a.png", "a.png"])


def test_what_was_there_before_is_taken_too_and_the_folder_looked_through_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "SCAN_S", 0.02)
    (tmp_path / "before.png").write_bytes(PNG)
    with Watching(tmp_path, poll_s=0.02) as watching:
        until(lambda: watching.ids == ["before.png"])
        (tmp_path.parent / "linked.png").write_bytes(PNG)
        (tmp_path / "linked.png").hardlink_to(tmp_path.parent / "linked.png")  # nothing is closed, nothing moved
        until(lambda: watching.ids == ["before.png", "linked.png"])


def test_a_folder_that_is_made_anew_is_watched_on(tmp_path):
    watched = tmp_path / "watched"
    watched.mkdir()
    seen = FileWatcher(watched)
    try:
        stop = threading.Event()
        (watched / "a.png").write_bytes(PNG)
        assert seen.wait(stop, BOUND_S) == {"a.png"}
        shutil.rmtree(watched)
        watched.mkdir()

        def noticed() -> bool:
            seen.refresh()
            (watched / "b.png").write_bytes(PNG)
            return "b.png" in seen.wait(stop, 0.1)

        until(noticed)
    finally:
        seen.close()


def test_waiting_ends_soon_after_stop(tmp_path):
    seen, stop = FileWatcher(tmp_path), threading.Event()
    try:
        threading.Timer(0.05, stop.set).start()
        assert seen.wait(stop, 60.0) == set()
    finally:
        seen.close()


MOUNTS = """\
rootfs / rootfs rw 0 0
/dev/root / ext4 rw 0 0
server:/photos {there} nfs4 rw 0 0
sshfs# {there}/with\\040space fuse.sshfs rw 0 0
"""


def test_the_filesystem_of_a_folder_is_the_one_mounted_nearest_above_it(tmp_path):
    there = tmp_path / "net"
    (there / "with space" / "in").mkdir(parents=True)
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS.format(there=there))
    assert filesystem_of(tmp_path, mounts) == "ext4"
    assert filesystem_of(there, mounts) == "nfs4"
    assert filesystem_of(there / "with space" / "in", mounts) == "fuse.sshfs"
    assert filesystem_of(tmp_path, tmp_path / "nowhere") == ""


def test_a_folder_on_another_machine_is_scanned_and_that_is_logged(tmp_path, monkeypatch, logged):
    monkeypatch.setattr(folder, "filesystem_of", lambda path: "nfs4")
    source = open_source(SourceConfig("folder", tmp_path, watch=True))
    assert not source.uses_inotify
    assert logged == [
        f"warning: {tmp_path} is on nfs4, where other machines may write: it is scanned twice a second "
        "(`poll: true` says that this is meant)"
    ]
    logged.clear()
    open_source(SourceConfig("folder", tmp_path, watch=True, poll=True))
    assert logged == []


def test_without_watchdog_it_is_scanned_and_the_install_that_fixes_it_is_logged(tmp_path, monkeypatch, logged):
    monkeypatch.setitem(sys.modules, "watchdog.observers.inotify", None)
    assert "pip install 'coe-cascade[edge]'" in why_not_watched(tmp_path)
    assert not open_source(SourceConfig("folder", tmp_path, watch=True)).uses_inotify
    assert len(logged) == 1


def test_where_inotify_does_not_work_it_is_scanned(tmp_path, monkeypatch, logged):
    def no_room(path: Path) -> FileWatcher:
        raise OSError(28, "inotify watch limit reached")

    monkeypatch.setattr(folder, "FileWatcher", no_room)
    (tmp_path / "a.png").write_bytes(PNG)
    source, stop = FolderSource(tmp_path, True, 0.01, uses_inotify=True), threading.Event()
    assert next(source.examples(stop)).id == "a.png"
    assert "cannot be watched through inotify (inotify watch limit reached)" in logged[0]


def test_once_is_not_watched_and_a_watched_one_uses_inotify(tmp_path):
    assert not open_source(SourceConfig("folder", tmp_path, watch=True), once=True).uses_inotify
    assert open_source(SourceConfig("folder", tmp_path, watch=True)).uses_inotify
