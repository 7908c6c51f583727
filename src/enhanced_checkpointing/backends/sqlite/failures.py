"""What an error of SQLite means for the data. Pure."""

from __future__ import annotations

import sqlite3

from enhanced_checkpointing.backends.sqlite.place import OrphanedLogError
from enhanced_checkpointing.resilience.failures import Failure, FailureKind

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
