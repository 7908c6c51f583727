"""What can be seen of the file of a SQLite primary, by one who changes nothing in it and makes none."""

from __future__ import annotations

import os
import secrets
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from enhanced_checkpointing.backends.contract import PROBE_THREAD
from enhanced_checkpointing.backends.sqlite.index import IS_THERE_SQL
from enhanced_checkpointing.backends.sqlite.place import is_something_else, orphaned_log
from enhanced_checkpointing.journal.disk import network_filesystem

__all__ = ["SqliteFacts", "ask_sqlite"]

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
