"""The official SQLite saver, with the calls that every step of a graph makes in one hop to the connection's thread.

The official one hops for every statement, and each hop costs about as much as the statement itself.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, TypeVar

import aiosqlite
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple, get_checkpoint_id
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.checkpoint.sqlite.utils import load_pending_writes, pending_writes_sql

from enhanced_checkpointing.backends.sqlite.place import Place
from enhanced_checkpointing.backends.sqlite.rows import Statement
from enhanced_checkpointing.serialization import SharingSerializer

T = TypeVar("T")
Row = tuple[Any, ...]

CHECKPOINTS_SQL = """
SELECT checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata FROM checkpoints
WHERE thread_id = ? AND checkpoint_ns = ?
"""
NEWEST_SQL = f"{CHECKPOINTS_SQL} ORDER BY checkpoint_id DESC LIMIT 1"
NAMED_SQL = f"{CHECKPOINTS_SQL} AND checkpoint_id = ?"
WRITES_SQL = pending_writes_sql(has_task_path=True)


class OneHopSaver(AsyncSqliteSaver):
    """Reads a checkpoint, and commits any number of statements, in one hop each."""

    def __init__(
        self, connection: aiosqlite.Connection, serializer: SharingSerializer, place: Place | None = None
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
        """Whether nobody is in the middle of a transaction of several hops, and the tables are known to be there."""
        return self.is_setup and not self.lock.locked()

    def commit_at_once(self, statements: Sequence[Statement], answer: asyncio.Future[None]) -> None:
        """Commit the statements as `commit` does, while the saver `is_free`: whoever comes next, comes after them."""
        connection = self.conn._conn
        self.conn._tx.put_nowait((answer, lambda: self._commit(connection, statements)))

    def _commit(self, connection: sqlite3.Connection, statements: Sequence[Statement]) -> None:
        """Returns only if what was committed is in the file that others find."""
        _commit(connection, statements)
        if self.place is not None:
            self.place.check()

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        thread_id = str(config["configurable"]["thread_id"])
        checkpoint_ns = config["configurable"].get("checkpoint_ns", "")
        named = get_checkpoint_id(config)
        found = await self._alone(lambda connection: read_checkpoint(connection, thread_id, checkpoint_ns, named))
        if found is None:
            return None
        (checkpoint_id, parent_id, tag, checkpoint, metadata), writes = found
        return CheckpointTuple(
            config if named else _config(thread_id, checkpoint_ns, checkpoint_id),
            self.serde.loads_typed((tag, checkpoint)),
            json.loads(metadata) if metadata is not None else {},
            _config(thread_id, checkpoint_ns, parent_id) if parent_id else None,
            load_pending_writes(writes, self.serde),
        )

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


def _commit(connection: sqlite3.Connection, statements: Sequence[Statement]) -> None:
    if len(statements) == 1 and len(statements[0][1]) == 1:
        _commit_one(connection, statements[0][0], statements[0][1][0])
        return
    with connection:  # by itself, since whoever waits for it may be cancelled
        for text, rows in statements:
            connection.executemany(text, rows)


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
