"""A watched folder of which the operating system tells: files are taken when they are whole, at once."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes import BOUND_S, until

from coe.zoo import digits
from edge.sources import Example, SourceConfig, folder, inotify, open_source
from edge.sources.folder import FolderSource, SeenFiles
from edge.sources.inotify import FileWatcher, filesystem_of, is_open_to_write

PNG = digits.test_examples(1)[0][1]


class Watching:
    """A watched folder, read on a thread of its own; once its first look is over, `poll_s` keeps it from another."""

    def __init__(self, path: Path, poll_s: float = 60.0, uses_inotify: bool = True) -> None:
        self.path = path
        self.stop = threading.Event()
        self.examples: list[Example] = []
        self._source = FolderSource(path, True, poll_s, uses_inotify=uses_inotify)
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


only_with_leases = pytest.mark.skipif("not LEASES", reason="needs a kernel that grants leases on this filesystem")


def _grants_leases() -> bool:
    with tempfile.TemporaryFile() as file:
        return is_open_to_write(file.fileno()) is not None


LEASES = _grants_leases()


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
    monkeypatch.setattr(inotify, "SETTLE_S", 0.3)
    seen, stop = FileWatcher(tmp_path), threading.Event()
    try:
        started = time.monotonic()
        for name in ("a.png", "b.png"):
            (tmp_path / name).write_bytes(PNG)
        assert seen.wait(stop, BOUND_S)["a.png"]
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


def test_what_was_there_before_is_taken_too_and_so_is_a_link(tmp_path):
    (tmp_path / "before.png").write_bytes(PNG)
    (tmp_path.parent / "linked.png").write_bytes(PNG)
    with Watching(tmp_path, poll_s=0.02) as watching:
        until(lambda: watching.ids == ["before.png"])
        (tmp_path / "linked.png").hardlink_to(tmp_path.parent / "linked.png")  # nothing is closed, nothing moved
        until(lambda: watching.ids == ["before.png", "linked.png"])
        (tmp_path / "symbolic.png").symlink_to(tmp_path.parent / "linked.png")
        until(lambda: watching.ids == ["before.png", "linked.png", "symbolic.png"])


@only_with_leases
@pytest.mark.parametrize("uses_inotify", [True, False])
def test_a_file_that_a_program_had_open_before_the_start_is_taken_once_it_closes_it(tmp_path, uses_inotify):
    """However long it pauses: that it is open to be written is known, whatever its size and time say."""
    with (tmp_path / "a.png").open("wb") as file:
        file.write(PNG[:50])
        file.flush()
        os.utime(tmp_path / "a.png", (0, 0))
        with Watching(tmp_path, 0.01, uses_inotify) as watching:
            time.sleep(0.1)  # ten looks
            assert watching.ids == []
            file.write(PNG[50:])
            file.close()
            until(lambda: watching.ids == ["a.png"])
    assert watching.examples[-1].value == PNG or watching.examples[0].value == PNG


@only_with_leases
@pytest.mark.parametrize("uses_inotify", [True, False])
def test_a_file_created_empty_and_filled_later_is_one_example(tmp_path, uses_inotify):
    with Watching(tmp_path, 0.01, uses_inotify) as watching:
        (tmp_path / "a.png").touch()
        time.sleep(0.1)
        with (tmp_path / "a.png").open("ab") as file:
            file.write(PNG[:50])
            file.flush()
            time.sleep(0.1)
            file.write(PNG[50:])
        until(lambda: watching.ids == ["a.png"])
        (tmp_path / "b.png").write_bytes(PNG)
        until(lambda: "b.png" in watching.ids)
    assert watching.ids == ["a.png", "b.png"]
    assert {example.value for example in watching.examples} == {PNG}


def test_an_empty_file_that_nobody_fills_is_given_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "EMPTY_S", 0.1)
    with Watching(tmp_path, 0.01) as watching:
        (tmp_path / "a.png").touch()
        until(lambda: watching.ids == ["a.png"])


def test_where_the_kernel_does_not_say_who_writes_a_file_is_whole_that_ends_as_an_image_does(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "why_not_watched", lambda path: "on another machine")
    with Watching(tmp_path, 0.01) as watching:
        with (tmp_path / "a.png").open("wb") as file:
            file.write(PNG[:50])
            file.flush()
            time.sleep(0.1)
            assert watching.ids == []
            file.write(PNG[50:])
        (tmp_path / "b.jpg").write_bytes(b"\xff\xd8 a photo \xff\xd9")
        until(lambda: sorted(watching.ids) == ["a.png", "b.jpg"])
        monkeypatch.setattr(folder, "QUIET_S", 0.1)
        (tmp_path / "torn.png").write_bytes(PNG[:50])
        until(lambda: "torn.png" in watching.ids)
    assert [example.value for example in watching.examples if example.id == "a.png"] == [PNG]


@pytest.mark.parametrize("watch", [False, True])
def test_a_file_that_cannot_be_opened_is_one_record_and_the_others_are_taken(tmp_path, watch):
    """A loop of links; EACCES, EIO and ESTALE are errors of the same calls."""
    for name in ("a.png", "c.png"):
        (tmp_path / name).write_bytes(PNG)
    (tmp_path / "b.png").symlink_to("b.png")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    if watch:
        with Watching(tmp_path, 0.01, uses_inotify=False) as watching:
            until(lambda: len(watching.ids) == 3)
            time.sleep(0.1)  # it is looked at again, and not given again
        examples = [example for example in watching.examples if not example.id.startswith("warm")]
    else:
        examples = list(FolderSource(tmp_path).examples(threading.Event()))
    assert sorted((example.id, example.error) for example in examples) == [
        ("a.png", None),
        ("b.png", "cannot be read: Too many levels of symbolic links"),
        ("c.png", None),
    ]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_file_that_can_be_read_later_is_taken_then(tmp_path, monkeypatch, number):
    open_, bad = os.open, [True]

    def fails(path: object, *arguments: object, **options: object) -> int:
        if str(path).endswith("a.png") and bad:
            raise OSError(number, os.strerror(number))
        return open_(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", fails)
    monkeypatch.setattr(folder, "SCAN_S", 0.01)
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "b.png").write_bytes(PNG)
    with Watching(tmp_path, 0.01) as watching:
        until(lambda: watching.ids == ["a.png", "b.png"])
        bad.clear()
        until(lambda: watching.ids == ["a.png", "b.png", "a.png"])


@pytest.mark.parametrize("uses_inotify", [True, False])
@pytest.mark.parametrize("replacement", ["missing", "file", "loop"])
def test_a_folder_that_cannot_be_read_is_waited_for_and_that_is_logged_once(
    tmp_path, replacement, uses_inotify, monkeypatch, logged
):
    monkeypatch.setattr(folder, "CHECK_S", 0.02)
    path = tmp_path / "photos"
    if replacement == "file":
        path.write_text("no folder")
    elif replacement == "loop":
        path.symlink_to(path)
    watching = Watching(path, 0.01, uses_inotify)
    watching._thread.start()
    for number in range(2):  # at the start, and later
        until(lambda: len(logged) == 2 * number + 1)  # noqa: B023 - called here
        assert "cannot be read (" in logged[-1]
        path.unlink(missing_ok=True)
        path.mkdir()
        (path / f"{number}.png").write_bytes(PNG)
        until(lambda: watching.ids == [f"{at}.png" for at in range(number + 1)])  # noqa: B023 - called here
        until(lambda: len(logged) == 2 * number + 2)  # noqa: B023 - called here
        assert "can be read again, after" in logged[-1]
        path.rename(tmp_path / f"before-{number}")
        if replacement == "file":
            path.write_text("no folder")
    watching.stop.set()
    watching._thread.join(BOUND_S)


def test_what_is_remembered_of_a_file_is_a_few_bytes():
    tracemalloc.start()
    seen = SeenFiles()
    for number in range(50_000):
        seen.add(f"IMG_20261128_204500_{number:06}.jpg", (3_000_000 + number, 1_795_000_000_000_000_000 + number))
    there, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert there < 50 * 50_000
    assert most < 100 * 50_000
    assert len(seen) == 50_000
    marks = seen.mark()
    for number in (0, 25_000, 49_999):
        stamp = 3_000_000 + number, 1_795_000_000_000_000_000 + number
        assert seen.get(f"IMG_20261128_204500_{number:06}.jpg", marks) == hash(stamp)
    assert seen.get("another.jpg", marks) is None
    seen.keep(marks)
    assert len(seen) == 3
    seen.add("IMG_20261128_204500_000000.jpg", (1, 2))
    seen.mark()
    assert seen.get("IMG_20261128_204500_000000.jpg") == hash((1, 2))


@pytest.mark.parametrize("uses_inotify", [True, False])
def test_a_folder_in_which_nothing_happens_is_not_read_again_and_again(tmp_path, monkeypatch, uses_inotify):
    n_scans, scandir = [0], os.scandir

    def counted(path: Path) -> object:
        n_scans[0] += 1
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    monkeypatch.setattr(folder, "CHECK_S", 0.01)
    monkeypatch.setattr(folder, "COARSE_S", 0.0)
    monkeypatch.setattr(folder, "SCAN_SHARE", 1e-9)  # as of a folder whose scan takes long
    with Watching(tmp_path, 0.01, uses_inotify) as watching:
        for number in range(3):
            (tmp_path / f"{number}.png").write_bytes(PNG)
            until(lambda: len(watching.ids) == number + 1)  # noqa: B023 - called here
        time.sleep(0.05)
        n_before = n_scans[0]
        time.sleep(0.3)  # some thirty looks
        assert n_scans[0] == n_before


def test_after_events_that_were_not_reported_the_folder_is_scanned(tmp_path, monkeypatch):
    read = os.read

    def overflown(descriptor: int, n_bytes: int) -> bytes:
        return inotify.EVENT.pack(-1, inotify.OVERFLOW, 0, 0) if read(descriptor, n_bytes) else b""

    monkeypatch.setattr(inotify, "os", SimpleNamespace(**(vars(os) | {"read": overflown})))
    with Watching(tmp_path, 0.01) as watching:
        (tmp_path / "a.png").write_bytes(PNG)
        until(lambda: "a.png" in watching.ids)


def test_that_a_folder_is_deleted_is_reported(tmp_path):
    watched = tmp_path / "watched"
    watched.mkdir()
    seen = FileWatcher(watched)
    try:
        stop = threading.Event()
        (watched / "a.png").write_bytes(PNG)
        assert seen.wait(stop, BOUND_S) == {"a.png": True}
        shutil.rmtree(watched)
        seen.wait(stop, BOUND_S)
        assert seen.is_gone
    finally:
        seen.close()


def test_waiting_ends_soon_after_stop(tmp_path):
    seen, stop = FileWatcher(tmp_path), threading.Event()
    try:
        threading.Timer(0.05, stop.set).start()
        assert seen.wait(stop, 60.0) == {}
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
    monkeypatch.setattr(inotify, "filesystem_of", lambda path: "nfs4")
    (tmp_path / "a.png").write_bytes(PNG)
    for poll in (False, True):
        source = open_source(SourceConfig("folder", tmp_path, watch=True, poll=poll))
        assert next(source.examples(threading.Event())).id == "a.png"
    assert logged == [
        f"warning: {tmp_path} is on nfs4, where other machines may write: it is scanned twice a second "
        "(`poll: true` says that this is meant)"
    ]


def test_where_inotify_does_not_work_it_is_scanned(tmp_path, monkeypatch, logged):
    def no_room(path: Path) -> FileWatcher:
        raise OSError(28, "inotify watch limit reached")

    monkeypatch.setattr(folder, "FileWatcher", no_room)
    (tmp_path / "a.png").write_bytes(PNG)
    source, stop = FolderSource(tmp_path, True, 0.01, uses_inotify=True), threading.Event()
    assert next(source.examples(stop)).id == "a.png"
    assert "cannot be watched through inotify (inotify watch limit reached)" in logged[0]


def test_a_watched_folder_uses_inotify_unless_it_is_polled(tmp_path):
    assert open_source(SourceConfig("folder", tmp_path, watch=True)).uses_inotify
    assert not open_source(SourceConfig("folder", tmp_path, watch=True, poll=True)).uses_inotify
