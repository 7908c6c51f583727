"""Reads of SQLite: the official saver, with the calls that every step of a graph makes in one hop to the connection's
thread, and whole threads, in pages.

The official one hops for every statement, and each hop costs about as much as the statement itself. Between two pages
of a thread others get their turn; what is written meanwhile to a part that was read comes with the next reading.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

import aiosqlite
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple, get_checkpoint_id
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.checkpoint.sqlite.utils import load_pending_writes, pending_writes_sql

from enhanced_checkpointing.backends.listing import load_metadata
from enhanced_checkpointing.backends.reading import CHUNK_BYTES, Chunks, PutHistory, WriteRow, in_chunks, writes_of
from enhanced_checkpointing.backends.sqlite.file import FileIdentity
from enhanced_checkpointing.backends.sqlite.rows import Statement
from enhanced_checkpointing.backends.stored_values import take_apart
from enhanced_checkpointing.operations import Operation
from enhanced_checkpointing.serialization import Serialized, SharingSerializer

T = TypeVar("T")
Row = tuple[Any, ...]

CHECKPOINTS_SQL = """
SELECT checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata FROM checkpoints
WHERE thread_id = ? AND checkpoint_ns = ?
"""
NEWEST_SQL = f"{CHECKPOINTS_SQL} ORDER BY checkpoint_id DESC LIMIT 1"
NAMED_SQL = f"{CHECKPOINTS_SQL} AND checkpoint_id = ?"
ANYTHING_SQL = "SELECT 1 FROM checkpoints WHERE thread_id = ? LIMIT 1"
WRITES_SQL = pending_writes_sql(has_task_path=True)


class OneHopSaver(AsyncSqliteSaver):
    """Reads a checkpoint, and commits any number of statements, in one hop each."""

    def __init__(
        self, connection: aiosqlite.Connection, serializer: SharingSerializer, place: FileIdentity | None = None
    ) -> None:
        super().__init__(connection, serde=serializer)
        self.place = place
        """Of the file; None: it has none."""
        self.lock = _RollingBackLock(connection)

    async def commit(self, statements: Sequence[Statement]) -> None:
        """Commit the statements as one transaction: all of them, or after an error none."""
        await self._hop(lambda connection: self._commit(connection, statements))

    @property
    def is_free(self) -> bool:
        """Whether no transaction of several hops is under way, and the tables are known to be there."""
        return self.is_setup and not self.lock.locked()

    def commit_at_once(self, statements: Sequence[Statement], answer: asyncio.Future[None]) -> None:
        """Commit the statements as `commit` does, while the saver `is_free`: the next call comes after them."""
        connection = self.conn._conn
        self.conn._tx.put_nowait((answer, lambda: self._commit(connection, statements)))

    def _commit(self, connection: sqlite3.Connection, statements: Sequence[Statement]) -> None:
        """Returns only if what was committed is in the file that others find."""
        if len(statements) == 1 and len(statements[0][1]) == 1:
            _commit_one(connection, statements[0][0], statements[0][1][0])
        else:
            with connection:  # by itself, since its caller may be cancelled
                for text, rows in statements:
                    connection.executemany(text, rows)
        if self.place is not None:
            self.place.check()

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        found, _ = await self.aget_or_anything(config)
        return found

    async def aget_or_anything(self, config: RunnableConfig) -> tuple[CheckpointTuple | None, bool]:
        """What `aget_tuple` gives; and if that is None, whether the thread has any other, as `Backend.get` says."""
        thread_id = str(config["configurable"]["thread_id"])
        checkpoint_ns = config["configurable"].get("checkpoint_ns", "")
        named = get_checkpoint_id(config)

        def read(connection: sqlite3.Connection) -> tuple[tuple[Row, list[Row]] | None, bool]:
            found = read_checkpoint(connection, thread_id, checkpoint_ns, named)
            if found is not None or named or checkpoint_ns:
                return found, found is not None
            return None, connection.execute(ANYTHING_SQL, (thread_id,)).fetchone() is not None

        found, is_any = await self._alone(read)
        if found is None:
            return None, is_any
        (checkpoint_id, parent_id, tag, checkpoint, metadata), writes = found
        return CheckpointTuple(
            config if named else _config(thread_id, checkpoint_ns, checkpoint_id),
            self.serde.loads_typed((tag, checkpoint)),
            json.loads(metadata) if metadata is not None else {},
            _config(thread_id, checkpoint_ns, parent_id) if parent_id else None,
            load_pending_writes(writes, self.serde),
        ), True

    async def _alone(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on the connection's thread, between the transactions of all others. Returns only if what it may
        have changed is in the file that others find."""

        def kept(connection: sqlite3.Connection) -> T:
            before = connection.total_changes
            result = work(connection)
            if self.place is not None and connection.total_changes != before:
                self.place.check()
            return result

        return await self._hop(kept)

    async def _hop(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if not self.is_setup:
            await self.setup()
        async with self.lock:
            result: T = await self.conn._execute(work, self.conn._conn)  # type: ignore[no-untyped-call]  # it has none
            return result


class _RollingBackLock(asyncio.Lock):
    """The saver's lock, which rolls a call that failed back before the next one gets its turn.

    The official saver does not: the next commit would take half of the failed call along, and until then no other
    process could write.
    """

    def __init__(self, connection: aiosqlite.Connection) -> None:
        super().__init__()
        self._connection = connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is not None and self._connection.in_transaction:
                await self._connection.rollback()
        finally:
            self.release()


def _commit_one(connection: sqlite3.Connection, text: str, row: Row) -> None:
    """One row is a transaction by itself, which spares the statements that begin and end one."""
    level = connection.isolation_level
    connection.isolation_level = None
    try:
        connection.execute(text, row)
    finally:
        connection.isolation_level = level


def read_checkpoint(
    connection: sqlite3.Connection, thread_id: str, checkpoint_ns: str, checkpoint_id: str | None
) -> tuple[Row, list[Row]] | None:
    """The row of one checkpoint, the newest if none is named, and the rows of its writes."""
    if checkpoint_id:
        found = connection.execute(NAMED_SQL, (thread_id, checkpoint_ns, checkpoint_id)).fetchone()
    else:
        found = connection.execute(NEWEST_SQL, (thread_id, checkpoint_ns)).fetchone()
    if found is None:
        return None
    return found, connection.execute(WRITES_SQL, (thread_id, checkpoint_ns, found[0])).fetchall()


def _config(thread_id: str, checkpoint_ns: str, checkpoint_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": checkpoint_ns, "checkpoint_id": checkpoint_id}}


HAS_PATH_SQL = "SELECT 1 FROM pragma_table_info('writes') WHERE name = 'task_path'"
PAGE_SQL = """
SELECT checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata FROM checkpoints
WHERE thread_id = ? AND (checkpoint_ns, checkpoint_id) > (?, ?) ORDER BY checkpoint_ns, checkpoint_id
"""
FIRST_PAGE_SQL = PAGE_SQL.replace("AND (checkpoint_ns, checkpoint_id) > (?, ?) ", "")
WRITES_OF_SQL = """
SELECT task_id, {task_path}, idx, channel, type, value FROM writes
WHERE thread_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?
"""
LEFT_ALONE_SQL = """
SELECT DISTINCT checkpoint_ns, checkpoint_id FROM writes WHERE thread_id = ? AND NOT EXISTS (
    SELECT 1 FROM checkpoints WHERE checkpoints.thread_id = writes.thread_id
    AND checkpoints.checkpoint_ns = writes.checkpoint_ns AND checkpoints.checkpoint_id = writes.checkpoint_id
) ORDER BY checkpoint_ns, checkpoint_id
"""

Key = tuple[str, str]
"""Namespace and id of a checkpoint."""
Page = list[tuple[Row, list[Row]]]
"""Rows of checkpoints, each with those of its writes."""
Hop = Callable[[Callable[[sqlite3.Connection], Any]], Awaitable[Any]]
"""Runs a function on the connection's thread, alone."""


async def read_thread(hop: Hop, serializer: SharingSerializer, thread_id: str) -> Chunks:
    """The operations that make a thread again."""
    async with aclosing(in_chunks(_groups(hop, serializer, thread_id))) as chunks:
        async for chunk in chunks:
            yield chunk


async def _groups(hop: Hop, serializer: SharingSerializer, thread_id: str) -> AsyncGenerator[Sequence[Operation], None]:
    history = PutHistory(thread_id)
    after: Key | None = None
    while True:
        page: Page = await hop(partial(_page, thread_id=thread_id, after=after))
        for (checkpoint_ns, checkpoint_id, parent_id, tag, data, metadata), writes in page:
            parts = take_apart(Serialized(tag, data), serializer)
            described = load_metadata(metadata)
            put = history.put(
                checkpoint_ns, checkpoint_id, parent_id, parts.skeleton, parts.values, described, parts.snapshots
            )
            yield [put, *writes_of(thread_id, checkpoint_ns, checkpoint_id, map(_write, writes))]
        if not page:
            break
        after = page[-1][0][:2]
    if after is None:
        return
    for checkpoint_ns, checkpoint_id in await hop(partial(_left_alone, thread_id=thread_id)):
        rows = await hop(partial(_writes_there, thread_id=thread_id, key=(checkpoint_ns, checkpoint_id)))
        yield writes_of(thread_id, checkpoint_ns, checkpoint_id, map(_write, rows))


def _page(connection: sqlite3.Connection, thread_id: str, after: Key | None) -> Page:
    """As many checkpoints as fit, one at least while there is one."""
    page: Page = []
    size = 0
    writes_sql = _writes_sql(connection)
    cursor = connection.execute(*((FIRST_PAGE_SQL, (thread_id,)) if after is None else (PAGE_SQL, (thread_id, *after))))
    for row in cursor:
        writes = connection.execute(writes_sql, (thread_id, *row[:2])).fetchall()
        page.append((row, writes))
        size += len(row[4]) + sum(len(write[5]) for write in writes)
        if size >= CHUNK_BYTES:
            break
    cursor.close()  # one that is not read to its end keeps its snapshot
    return page


def _left_alone(connection: sqlite3.Connection, thread_id: str) -> list[Key]:
    return connection.execute(LEFT_ALONE_SQL, (thread_id,)).fetchall()


def _writes_there(connection: sqlite3.Connection, thread_id: str, key: Key) -> list[Row]:
    return connection.execute(_writes_sql(connection), (thread_id, *key)).fetchall()


def _writes_sql(connection: sqlite3.Connection) -> str:
    """A file of an older version of the official saver has no paths until that saver's next one writes to it."""
    has_path = connection.execute(HAS_PATH_SQL).fetchone() is not None
    return WRITES_OF_SQL.format(task_path="task_path" if has_path else "''")


def _write(row: Row) -> WriteRow:
    task_id, task_path, index, channel, tag, data = row
    return WriteRow(task_id, task_path, index, channel, Serialized(tag, data))
