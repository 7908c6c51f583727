"""What a SQLite file tells of threads, and our one index on the official saver's tables, by which a user's are found.

Each look is one hop to the connection's thread, so that no other call waits long for its turn. Nothing depends on that
index but the speed of a listing, so nothing fails without it.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import aiosqlite

from enhanced_checkpointing.backends.listing import Cursor, ThreadOwner, ThreadTotal, Top, note, time_of, top_of
from enhanced_checkpointing.backends.stored_values import is_unicode
from enhanced_checkpointing.identifiers import USER_ID
from enhanced_checkpointing.serialization import Serialized, SharingSerializer, load_plain

T = TypeVar("T")
Row = tuple[Any, ...]

# Metadata is JSON in bytes; or nothing, or what SQLite cannot read: an index must not refuse what the table takes.
JSON = "CAST(metadata AS TEXT)"
USER_KEY = f"""
CASE WHEN json_valid({JSON}) AND json_type({JSON}, '$.{USER_ID}') IN ('text', 'integer')
THEN CAST(json_extract({JSON}, '$.{USER_ID}') AS TEXT) END
""".strip()
OF_ROOT_WITH_USER = f"""checkpoint_ns = '' AND instr(metadata, '"{USER_ID}"')"""
"""The condition of our index; a look that does not say it does not find it. Where no user is named it costs nothing."""

FIRST_THREAD_SQL = "SELECT thread_id FROM checkpoints WHERE thread_id >= '' ORDER BY thread_id LIMIT 1"
NEXT_THREAD_SQL = "SELECT thread_id FROM checkpoints WHERE thread_id > ? ORDER BY thread_id LIMIT 1"

NAMING_SQL = f"""
SELECT checkpoint_id, thread_id FROM checkpoints
WHERE {USER_KEY} = ? AND {OF_ROOT_WITH_USER} {{behind}}
ORDER BY checkpoint_id DESC, thread_id DESC LIMIT ?
"""
FIRST_NAMING_SQL = NAMING_SQL.format(behind="")
NAMING_BELOW_SQL = NAMING_SQL.format(behind="AND checkpoint_id < ?")
NAMING_BEHIND_SQL = NAMING_SQL.format(behind="AND checkpoint_id <= ? AND (checkpoint_id < ? OR thread_id < ?)")

NEWEST_SQL = """
SELECT coalesce(
    (SELECT max(checkpoint_id) FROM checkpoints WHERE thread_id = ?1 AND checkpoint_ns = ''),
    (SELECT max(checkpoint_id) FROM checkpoints WHERE thread_id = ?1)
)
"""
TOP_SQL = """
SELECT checkpoint_id, metadata, checkpoint_ns FROM checkpoints WHERE thread_id = ? AND checkpoint_ns = ''
ORDER BY checkpoint_id DESC LIMIT 1
"""
TOP_OF_ANY_SQL = """
SELECT checkpoint_id, metadata, checkpoint_ns FROM checkpoints WHERE thread_id = ?
ORDER BY checkpoint_id DESC LIMIT 1
"""
VALUE_SQL = "SELECT type, checkpoint FROM checkpoints WHERE thread_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?"

OWNER_SQL = f"""
SELECT checkpoint_id, {USER_KEY} FROM checkpoints
WHERE thread_id = ? AND checkpoint_ns = '' AND {USER_KEY} IS NOT NULL
ORDER BY checkpoint_id DESC LIMIT 1
"""

# The length of a value is known without reading it.
TOTAL_SQL = """
SELECT count(*), sum(length(checkpoint) + ifnull(length(metadata), 0)),
    (SELECT ifnull(sum(length(value)), 0) FROM writes WHERE thread_id = ?1)
FROM checkpoints WHERE thread_id = ?1
"""


class Looks(Protocol):
    """Lets work be done on the thread of the connection, between the transactions of all others."""

    def __call__(self, work: Callable[[sqlite3.Connection], T]) -> Awaitable[T]: ...


class SqliteThreads:
    """The looks of `listing`, as work on the connection's thread."""

    def __init__(self, look: Looks, serializer: SharingSerializer) -> None:
        self._look = look
        self._serializer = serializer
        self.unreadable: dict[str, str] = {}

    async def thread_ids(self, after: str | None, limit: int) -> Sequence[str]:
        return await self._look(lambda connection: thread_ids_from(connection, after, limit))

    async def naming(self, user_id: str, before: Cursor | None, limit: int) -> Sequence[Cursor]:
        if not is_unicode(user_id):
            return []
        text, key = FIRST_NAMING_SQL, list[str | None]()
        if before is not None and before.thread_id is None:
            text, key = NAMING_BELOW_SQL, [before.checkpoint_id]
        elif before is not None:
            text, key = NAMING_BEHIND_SQL, [before.checkpoint_id, before.checkpoint_id, before.thread_id]
        values = (user_id, *key, limit)
        return [
            Cursor(*row) for row in await self._look(lambda connection: connection.execute(text, values).fetchall())
        ]

    async def newest(self, thread_ids: Sequence[str]) -> Mapping[str, str]:
        found = await self._look(lambda connection: _of_each(connection, NEWEST_SQL, _storable(thread_ids)))
        return {thread_id: row[0] for thread_id, row in found.items() if row[0] is not None}

    async def tops(self, thread_ids: Sequence[str]) -> Mapping[str, Top]:
        found = await self._look(lambda connection: _tops(connection, _storable(thread_ids)))
        tops = {
            thread_id: top_of(checkpoint_id, metadata, of_root, self._timestamp(whole))
            for thread_id, (checkpoint_id, metadata, of_root, whole) in found.items()
        }
        return note(self.unreadable, thread_ids, tops)

    async def owners(self, thread_ids: Sequence[str]) -> Mapping[str, ThreadOwner]:
        found = await self._look(lambda connection: _of_each(connection, OWNER_SQL, _storable(thread_ids)))
        return {thread_id: ThreadOwner(user_id, checkpoint_id) for thread_id, (checkpoint_id, user_id) in found.items()}

    async def totals(self, thread_ids: Sequence[str]) -> Mapping[str, ThreadTotal]:
        found = await self._look(lambda connection: _of_each(connection, TOTAL_SQL, _storable(thread_ids)))
        return {
            thread_id: ThreadTotal(checkpoints, size + size_of_writes)
            for thread_id, (checkpoints, size, size_of_writes) in found.items()
            if checkpoints
        }

    def _timestamp(self, whole: Row | None) -> object:
        """Of a checkpoint whose id tells none; what cannot be read tells none either, and hides no other thread."""
        try:
            return None if whole is None else load_plain(Serialized(*whole[:2]), self._serializer).get("ts")
        except Exception:  # noqa: BLE001  # whatever is stored there
            return None


def thread_ids_from(connection: sqlite3.Connection, after: str | None, limit: int) -> list[str]:
    """From one thread to the next by the primary key: one step for each, however many checkpoints it has."""
    found: list[str] = []
    while len(found) < limit:
        text, values = (FIRST_THREAD_SQL, ()) if after is None else (NEXT_THREAD_SQL, (after,))
        row = connection.execute(text, values).fetchone()
        if row is None:
            break
        after = row[0]
        found.append(row[0])
    return found


def _tops(connection: sqlite3.Connection, thread_ids: Sequence[str]) -> dict[str, Row]:
    """Id and metadata of each thread's newest checkpoint, whether it is one of the root graph, and where its id tells
    no time, its type and bytes."""
    found: dict[str, Row] = {}
    for thread_id in thread_ids:
        row = connection.execute(TOP_SQL, (thread_id,)).fetchone()
        of_root = row is not None
        row = row or connection.execute(TOP_OF_ANY_SQL, (thread_id,)).fetchone()
        if row is None:
            continue
        checkpoint_id, metadata, namespace = row
        whole = None
        if time_of(checkpoint_id) is None:
            whole = connection.execute(VALUE_SQL, (thread_id, namespace, checkpoint_id)).fetchone()
        found[thread_id] = (checkpoint_id, metadata, of_root, whole)
    return found


def _of_each(connection: sqlite3.Connection, text: str, thread_ids: Sequence[str]) -> dict[str, Row]:
    rows = ((thread_id, connection.execute(text, (thread_id,)).fetchone()) for thread_id in thread_ids)
    return {thread_id: row for thread_id, row in rows if row is not None}


def _storable(texts: Sequence[str]) -> list[str]:
    return [text for text in dict.fromkeys(texts) if is_unicode(text)]


INDEX = "checkpoints_newest_of_user"
CREATE_SQL = f"CREATE INDEX IF NOT EXISTS {INDEX} ON checkpoints ({USER_KEY}, checkpoint_id) WHERE {OF_ROOT_WITH_USER}"
IS_THERE_SQL = f"SELECT 1 FROM sqlite_master WHERE type = 'index' AND name = '{INDEX}'"

LOOK_EVERY = 10_000
"""Steps of SQLite's machine between two looks at the clock: about a millisecond."""


async def is_there(connection: aiosqlite.Connection) -> bool:
    return bool([*await connection.execute_fetchall(IS_THERE_SQL)])


async def make(connection: aiosqlite.Connection, seconds: float | None) -> str | None:
    """Make the index, on a connection of its own; why it is not there after so many seconds, or None.

    Writes wait meanwhile, for SQLite has one writer at a time.
    """
    ends_at = time.monotonic() + seconds if seconds is not None else float("inf")
    await connection.set_progress_handler(lambda: int(time.monotonic() > ends_at), LOOK_EVERY)
    try:
        while True:
            try:
                await connection.execute(CREATE_SQL)
                return None
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > ends_at:
                    return str(error)
    finally:
        await connection.set_progress_handler(None, 0)  # type: ignore[arg-type]  # as sqlite3 takes it
