"""An SQLite file of the agent's: its lock, how it is opened, and how a damaged one is set aside."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from coe.cascade import errors
from coe.cascade.errors import ConfigError, NotUsableNow


class FileLock:
    """An exclusive lock of `path`, the file of the setting `field`, until `close`.

    Raises:
        ConfigError: another process holds it.
        OSError: the folder cannot be written now.
    """

    def __init__(self, path: Path, field: str) -> None:
        self.path = path.with_name(path.name + ".lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            why = f"{field} cannot be written: {error.strerror} (set `state:` to a folder that can)"
            raise OSError(error.errno, why, str(path.parent)) from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._descriptor, 20, 0).decode(errors="replace").strip()
            os.close(self._descriptor)
            who = f"coe-edge, process {holder}" if holder else "coe-edge"
            what = f"{path} is in use by another {who}"
            raise NotUsableNow([f"{field}: {what} (stop it, or set `state:` to another folder)"]) from None
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


PAGE_BYTES = 4096
OURS = 0x636F6573  # application id: "coes"
BUSY_S = 5.0
INCREMENTAL = 2
DISK_FULL = "disk full"

DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@dataclass(frozen=True)
class DatabaseFormat:
    """A kind of file: the setting `field` has its path, `schema` creates it, `version` is the schema's.

    `upgrade` makes a file of the version before one of this.
    """

    field: str
    version: int
    schema: str
    upgrade: str = ""


class NewerFormat(ConfigError):
    """The file was written by a newer coe-edge. `version`: of its schema."""

    def __init__(self, finding: str, version: int) -> None:
        super().__init__([finding])
        self.version = version


def connect(path: Path, kind: DatabaseFormat, sync: str) -> sqlite3.Connection:
    """The file at `path`, created where it is missing; for one process that writes, and any that read.

    Args:
        sync: "full" or "normal".
    Raises:
        ConfigError: the file is another program's, or a newer coe-edge's (NewerFormat).
        sqlite3.Error: it cannot be opened, or is damaged (`is_damaged`).
    """
    db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        version = _checked_version(db, path, kind)
        db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        db.execute("PRAGMA journal_mode = WAL").fetchall()
        db.execute(f"PRAGMA synchronous = {sync.upper()}")
        if db.execute("PRAGMA auto_vacuum").fetchone()[0] != INCREMENTAL:
            db.execute(f"PRAGMA auto_vacuum = {INCREMENTAL}")
            db.execute("VACUUM")
        if version < kind.version:
            change = f"{kind.upgrade if version else kind.schema} PRAGMA application_id = {OURS};"
            db.executescript(f"BEGIN; {change} PRAGMA user_version = {kind.version}; COMMIT;")
    except BaseException:
        db.close()
        raise
    return db


def connect_or_anew(path: Path, kind: DatabaseFormat, sync: str) -> tuple[sqlite3.Connection, Path | None]:
    """As `connect`; a file that is damaged, or a newer coe-edge's, is replaced by a new one.

    Its new path is returned, too: NAME.damaged-TIME, or NAME.format-VERSION-TIME.

    Raises:
        ConfigError: as `connect`.
        OSError: it cannot be opened now, as on a full disk.
    """
    try:
        try:
            return connect(path, kind, sync), None
        except NewerFormat as error:
            why = f"format-{error.version}"
        except sqlite3.Error as error:
            if not is_damaged(error):
                raise
            why = "damaged"
        aside = set_aside(path, why)
        return connect(path, kind, sync), aside
    except (sqlite3.Error, OSError) as error:
        raise OSError(errno.EIO, f"{kind.field} cannot be opened: {error}", str(path)) from None


def read_only(path: Path) -> sqlite3.Connection:
    """The file at `path`, also while another process writes it.

    Raises:
        sqlite3.Error: it cannot be opened.
    """
    place = path.absolute().as_uri()
    try:
        db = sqlite3.connect(f"{place}?mode=ro", timeout=BUSY_S, uri=True, isolation_level=None)
        db.execute("PRAGMA user_version").fetchone()
    except sqlite3.OperationalError:  # nobody writes it, and we may not create the log that reading needs
        if log_of(path).exists():
            raise
        db = sqlite3.connect(f"{place}?immutable=1", uri=True, isolation_level=None)
    return db


def _checked_version(db: sqlite3.Connection, path: Path, kind: DatabaseFormat) -> int:
    """The version of the schema in the file; 0 where there is none yet."""
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    if version > kind.version:
        formats = f"format {version}; this one knows {kind.version}"
        raise NewerFormat(f"{kind.field}: {path} was written by a newer coe-edge ({formats})", version)
    is_ours = db.execute("PRAGMA application_id").fetchone()[0] == OURS
    if not is_ours and db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise ConfigError([f"{kind.field}: {path} is another program's database (set another path)"])
    return version


def set_aside(path: Path, why: str = "damaged") -> Path:
    """Rename a file that cannot be used and its log, so that a new one can be created; returns the new path."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    aside = path.with_name(f"{path.name}.{why}-{stamp}")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.{why}-{stamp}-{number}")
    os.rename(path, aside)
    with contextlib.suppress(FileNotFoundError):
        os.rename(f"{path}-wal", f"{aside}-wal")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{path}-shm")
    return aside


def is_damaged(error: sqlite3.Error) -> bool:
    return _code(error) in DAMAGED


def is_full(error: sqlite3.Error) -> bool:
    return _code(error) == sqlite3.SQLITE_FULL


def describe_error(error: Exception) -> str:
    """SQLite's or the operating system's error in words."""
    return DISK_FULL if _code(error) == sqlite3.SQLITE_FULL else errors.describe_error(error)


def _code(error: Exception) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF  # the extended code's first byte is the primary one


def log_of(path: Path) -> Path:
    """The file's write-ahead log."""
    return path.with_name(path.name + "-wal")
