"""The file of a SQLite primary: what can be seen of it without changing it, and what that means for the application."""

from __future__ import annotations

import os
import secrets
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from enhanced_checkpointing.backends.base import PROBE_THREAD
from enhanced_checkpointing.backends.sqlite.file import ORPHANED_LOG_FIX, is_something_else, orphan_text, orphaned_log
from enhanced_checkpointing.backends.sqlite.listing import IS_THERE_SQL
from enhanced_checkpointing.cli.doctor.checks import (
    NO_START,
    Answer,
    Checks,
    Finding,
    failed,
    fine,
    thread_index_missing,
    warning,
)
from enhanced_checkpointing.cli.output import one_size
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.journal.disk import network_filesystem

_KEYS = {"thread_id", "checkpoint_ns", "checkpoint_id"}
COLUMNS = {
    "checkpoints": {*_KEYS, "parent_checkpoint_id", "type", "checkpoint", "metadata"},
    "writes": {*_KEYS, "task_id", "idx", "channel", "type", "value", "task_path"},
}
"""The tables of the official saver."""

ADDED = "writes.task_path"
"""The one column that a start adds to a table that is there: older versions of the official saver lack it."""


@dataclass(frozen=True, slots=True)
class SqliteFacts:
    """`folder` is the nearest one that is there; `error` of the probe, or of whatever came before it, with `code`.

    `missing` names tables and columns that are not there, None where that could not be seen; `has_index` tells of the
    index of the threads of a user, and `orphaned_log` is what a file that has gone has left.
    """

    path: Path
    folder: Path
    exists: bool
    network: str | None
    folder_error: str = ""
    error: str = ""
    code: str = ""
    damage: str = ""
    missing: tuple[str, ...] | None = None
    has_index: bool = True
    orphaned_log: str | None = None
    free_bytes: int = 0

    @property
    def never_made(self) -> list[str]:
        """What is missing of a table that is there, and no start adds to it."""
        return [name for name in self.missing or () if "." in name and name != ADDED]


def ask_sqlite(path: Path, seconds: float, *, thorough: bool) -> SqliteFacts:
    """Look at a file, and write to it what the probe of an application writes: a row that is taken out again.

    `thorough` reads the whole file for damage. Every wait for a lock takes `seconds` at most.
    """
    given, path = path, Path(os.path.realpath(path))  # which takes a link to itself, too
    folder = next(parent for parent in path.parents if parent.exists())
    facts = SqliteFacts(
        path, folder, path.exists(), network_filesystem(folder), free_bytes=shutil.disk_usage(folder).free
    )
    if given.is_symlink() and (path.is_symlink() or not path.parent.is_dir()):
        return replace(facts, folder_error=f"{given} is a link that leads nowhere")
    if (log := orphaned_log(str(path))) is not None:
        return replace(facts, orphaned_log=log)
    if not facts.exists:
        return replace(facts, folder_error=_folder_error(folder))
    if is_something_else(str(path)):
        return replace(facts, error="it is no regular file", code="SQLITE_CANTOPEN")
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=seconds)) as connection:
            connection.isolation_level = None
            missing = _missing(connection)
            has_index = bool(missing) or connection.execute(IS_THERE_SQL).fetchone() is not None
            damage = _damage(connection) if thorough else ""
            if not missing and not damage:
                _probe(connection)
    except sqlite3.Error as error:
        return replace(facts, error=str(error), code=getattr(error, "sqlite_errorname", ""))
    return replace(facts, missing=missing, damage=damage, has_index=has_index)


def _folder_error(folder: Path) -> str:
    """Why nothing can be made in a folder."""
    trial = folder / f".checkpointing-{secrets.token_hex(4)}"
    try:
        trial.touch(exist_ok=False)
        trial.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _missing(connection: sqlite3.Connection) -> tuple[str, ...]:
    names: list[str] = []
    for table, columns in COLUMNS.items():
        there = {str(row[1]) for row in connection.execute(f"PRAGMA table_info({table})")}
        names += [table] if not there else [f"{table}.{column}" for column in sorted(columns - there)]
    return tuple(names)


def _damage(connection: sqlite3.Connection) -> str:
    found = [str(row[0]) for row in connection.execute("PRAGMA quick_check(3)")]
    return "" if found == ["ok"] else "; ".join(found)


def _probe(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(
        "INSERT OR REPLACE INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id) VALUES (?, '', '')",
        (PROBE_THREAD,),
    )
    # Taken out again and committed: what is rolled back never reaches the disk, and so finds none full.
    connection.execute("DELETE FROM checkpoints WHERE thread_id = ?", (PROBE_THREAD,))
    connection.execute("COMMIT")


OUTAGE = "This is an outage: writes go to the journal, and wait there."
LEAST_ROOM = 64 * 1024 * 1024
NO_ROOM = 256 * 1024


class _Fault(NamedTuple):
    what: str
    means: str
    fix: str


_BY_CODE = {
    "SQLITE_BUSY": _Fault(
        "Another process holds the file locked",
        OUTAGE,
        "Find what has it open (`fuser -v FILE`): a shell of sqlite3, a backup, a process that hangs in a transaction. "
        "End that, or let it finish.",
    ),
    "SQLITE_READONLY": _Fault(
        "The file cannot be written",
        OUTAGE,
        "Let the application's user write the file and its folder (the files -wal and -shm are made beside it), and "
        "see that the file system is not mounted read-only.",
    ),
    "SQLITE_CANTOPEN": _Fault(
        "The file cannot be opened",
        NO_START,
        "Let the application's user read and write the file and its folder, or correct SQLITE_PATH.",
    ),
    "SQLITE_NOTADB": _Fault(
        "The file is no SQLite database, or is encrypted",
        "An application that starts now is refused its start. The file is left as it is.",
        "Correct SQLITE_PATH, or move the file away: a new one is made.",
    ),
    "SQLITE_CORRUPT": _Fault(
        "The file is damaged",
        "An application that starts now, or a thread that meets the damage, gets an error. Nothing is read past it.",
        "Restore it from a backup; or save what can be read: sqlite3 FILE .recover | sqlite3 NEW.",
    ),
    "SQLITE_FULL": _Fault("The disk of the file is full", OUTAGE, "Make room on the disk."),
    "SQLITE_IOERR": _Fault("The disk of the file fails", OUTAGE, "Look at the disk and at the kernel's log (dmesg)."),
}
"""By the beginning of the name of SQLite's result code."""


checks: Checks[SqliteFacts, CheckpointerConfig] = Checks()


@checks("database.filesystem", "Is the file on a local disk?")
def check_network(facts: SqliteFacts, config: CheckpointerConfig) -> Answer:
    if facts.network is None:
        return None
    return failed(
        f"{facts.path} is on a network file system ({facts.network}).",
        "SQLite's write-ahead log does not work there: processes of two machines damage the file.",
        "Put SQLITE_PATH on a local disk; for several machines use PostgreSQL (DATABASE_URL).",
    )


@checks("database.room", "Has the file's disk room?")
def check_free(facts: SqliteFacts, config: CheckpointerConfig) -> Answer:
    if facts.free_bytes >= LEAST_ROOM:
        return None
    return warning(
        f"The disk of {facts.path} has {one_size(facts.free_bytes)} left.",
        "When it is full, writes go to the journal, as long as its disk has room.",
        "Make room.",
        free_bytes=facts.free_bytes,
    )


@checks("database.file", "Is the file there that the write-ahead log belongs to?")
def check_log(facts: SqliteFacts, config: CheckpointerConfig) -> Answer:
    if facts.orphaned_log is None:
        return None
    what = f"{orphan_text(str(facts.path), facts.orphaned_log)}."
    return failed(what, NO_START, ORPHANED_LOG_FIX)


@checks("database.file", "Can the file be made where there is none?")
def check_folder(facts: SqliteFacts, config: CheckpointerConfig) -> Iterator[Finding]:
    if facts.exists or facts.orphaned_log is not None:
        return
    if facts.folder_error:
        yield failed(
            f"{facts.path} is not there and cannot be made: {facts.folder}: {facts.folder_error}.",
            NO_START,
            f"Let the application's user write {facts.folder}, or correct SQLITE_PATH.",
        )
    elif not config.auto_setup:
        yield failed(
            f"{facts.path} is not there, and CHECKPOINT_AUTO_SETUP=false forbids the application to make its tables.",
            NO_START,
            "Run `checkpointing setup` once, before the application starts; or correct SQLITE_PATH.",
        )
    else:
        made = "" if facts.folder == facts.path.parent else ", with its folder"
        yield fine(f"{facts.path} is not there yet; the first start makes it{made}.", exists=False)


@checks("database.file", "Does the file take writes, and is it whole?")
def check_file(facts: SqliteFacts, config: CheckpointerConfig) -> Iterator[Finding]:
    if not facts.exists or facts.orphaned_log is not None:
        return
    if facts.error or facts.damage:
        code = "SQLITE_CORRUPT" if facts.damage else facts.code
        if code.startswith("SQLITE_IOERR") and facts.free_bytes < NO_ROOM:
            code = "SQLITE_FULL"  # the file with the index of the log could not even be made
        unknown = _Fault("The file cannot be used", NO_START, "See the message.")
        what, means, fix = next((text for start, text in _BY_CODE.items() if code.startswith(start)), unknown)
        said = facts.damage or facts.error
        yield failed(f"{what}: {facts.path} ({said}).", means, fix, code=code, error=said)
    elif facts.never_made:
        yield failed(
            f"{facts.path} has tables that are not LangGraph's: they lack {', '.join(facts.never_made)}.",
            NO_START,
            "Name another file in SQLITE_PATH, or give those tables other names: a start changes none of them.",
            missing=list(facts.missing or ()),
        )
    elif facts.missing and not config.auto_setup:
        yield failed(
            f"{facts.path} lacks {', '.join(facts.missing)}, and CHECKPOINT_AUTO_SETUP=false forbids the application "
            "to make it.",
            NO_START,
            "Run `checkpointing setup` once, before the application starts.",
            missing=list(facts.missing),
        )
    elif facts.missing:
        missing = ", ".join(facts.missing)
        yield fine(f"{facts.path} lacks {missing}, which the first start makes.", missing=list(facts.missing))
    else:
        yield fine(f"{facts.path} takes writes: one was committed and taken out again.", exists=True)


@checks("database.thread_index", "Is the index of the threads of a user there?")
def check_index(facts: SqliteFacts, config: CheckpointerConfig) -> Answer:
    usable = facts.exists and not facts.missing and not (facts.error or facts.damage)
    return thread_index_missing() if usable and not facts.has_index else None
