"""SQLite's file: whether it is where it should be, and what its errors mean for the data.

SQLite goes on writing to a file that was moved, deleted or replaced since it was opened, and drops the log of one that
has gone for the sake of a new one.
"""

from __future__ import annotations

import os
import sqlite3

from enhanced_checkpointing.resilience.failures import Failure, FailureKind


class MovedError(OSError):
    """The file that is open is not the one at its path any more."""


class OrphanedLogError(OSError):
    """There is no file at a path, or an empty one, but the log of one."""


class FileIdentity:
    """The path of a file that has just been opened."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = _identity(path)

    @property
    def is_vacant(self) -> bool:
        """Whether there is no file at the path."""
        return _identity(self.path) is None

    def is_kept(self) -> bool:
        """Whether the file that was opened is still there."""
        return _identity(self.path) == self._file

    def check(self) -> None:
        """Return if the file that was opened is still there.

        Raises:
            MovedError: it is not; who opens the path would not find what is written to it.
        """
        if not self.is_kept():
            raise self.moved()

    def moved(self) -> MovedError:
        return MovedError(
            f"{self.path} was moved, deleted or replaced while it was open. Put it back, with its -wal and -shm; "
            "or move those two away, too, and make a new one with `checkpointing setup`: what waits in the journal is "
            "drained into it."
        )


def check_log(path: str) -> None:
    """Return if nothing is lost by a new file at a path where there may be none.

    Raises:
        OrphanedLogError: commits of a file that was there may be in its log, and only there.
    """
    if (log := orphaned_log(path)) is not None:
        raise OrphanedLogError(orphan_text(path, log))


def orphan_text(path: str, log: str) -> str:
    """What is told of a log without its file."""
    if os.path.exists(path):
        return f"{path} is empty, but its log is there: {log}"
    return f"{path} is not there, but its log is there: {log}"


def orphaned_log(path: str) -> str | None:
    """The file with what may wait to be folded into the file at a path, where that one has gone or is empty."""
    log = f"{os.path.realpath(path)}-wal"
    # In this order: a new database has its file first, and the last one to close it removes its log.
    return log if _size(log) and not _size(path) else None


def is_something_else(path: str) -> bool:
    """Whether there is something at a path that is no file, such as a folder or a device."""
    return os.path.exists(path) and not os.path.isfile(path)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # where it is there and cannot be looked at, opening it tells why
        return 0


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


_KINDS = {
    sqlite3.SQLITE_BUSY: FailureKind.TRANSIENT,
    sqlite3.SQLITE_LOCKED: FailureKind.TRANSIENT,
    sqlite3.SQLITE_PROTOCOL: FailureKind.TRANSIENT,
    sqlite3.SQLITE_SCHEMA: FailureKind.TRANSIENT,
    sqlite3.SQLITE_INTERRUPT: FailureKind.UNKNOWN,
    sqlite3.SQLITE_IOERR: FailureKind.OUTAGE,
    sqlite3.SQLITE_FULL: FailureKind.OUTAGE,
    sqlite3.SQLITE_READONLY: FailureKind.OUTAGE,
    sqlite3.SQLITE_NOMEM: FailureKind.OUTAGE,
    sqlite3.SQLITE_CANTOPEN: FailureKind.CONFIGURATION,
    sqlite3.SQLITE_PERM: FailureKind.CONFIGURATION,
    sqlite3.SQLITE_AUTH: FailureKind.CONFIGURATION,
    sqlite3.SQLITE_CORRUPT: FailureKind.CORRUPTION,
    sqlite3.SQLITE_NOTADB: FailureKind.CORRUPTION,
}
"""By primary result code, which is the low byte of an extended one (https://www.sqlite.org/rescode.html)."""

WRITABLE_FIX = (
    "Check that the folder of the SQLite file (SQLITE_PATH) exists, and that both may be written: SQLite writes there "
    "even to read. What lies on a read-only disk can be read from a copy, to be made together with its -wal."
)
ORPHANED_LOG_FIX = (
    "Commits may be in that log alone, and SQLite would drop it for a new file. Put back the very file that it belongs "
    "to. To begin with a backup or with a new file, move the log away first: beside any other file it does damage."
)


def classify_sqlite(error: BaseException) -> Failure:
    """Say what an error of SQLite means for the data."""
    code = getattr(error, "sqlite_errorcode", None)
    text = str(error)
    if "no such table" in text or "no such column" in text:
        fix = "Run `checkpointing setup`, or start once with CHECKPOINT_AUTO_SETUP=true, so that the tables are made."
        return Failure(FailureKind.CONFIGURATION, error, answered=True, fix=fix)
    if isinstance(code, int):
        kind = _KINDS.get(code & 0xFF, FailureKind.DATA)
        is_read_only = code & 0xFF == sqlite3.SQLITE_READONLY and code != sqlite3.SQLITE_READONLY_DBMOVED
        is_bound = kind is FailureKind.CONFIGURATION or is_read_only
        return Failure(kind, error, answered=True, fix=WRITABLE_FIX if is_bound else "")
    if isinstance(error, (sqlite3.ProgrammingError, ValueError)) and "closed" in text.lower():
        return Failure(FailureKind.TRANSIENT, error)  # aiosqlite's answer on a connection that was just replaced
    if isinstance(error, ValueError) and "no active connection" in text:
        return Failure(FailureKind.TRANSIENT, error)
    if isinstance(error, OrphanedLogError):
        return Failure(FailureKind.CONFIGURATION, error, fix=ORPHANED_LOG_FIX)
    if isinstance(error, OSError):
        return Failure(FailureKind.OUTAGE, error)
    return Failure(FailureKind.DATA, error, answered=True)
