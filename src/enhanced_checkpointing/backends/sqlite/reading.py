"""A whole thread as SQLite has it, in pages: between two of them others get their turn on the connection.

What is written meanwhile to a part that was read already is missed, and comes with the next reading.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from enhanced_checkpointing.backends.directory import load_metadata
from enhanced_checkpointing.backends.reading import CHUNK_BYTES, Chunks, History, WriteRow, in_chunks, writes_of
from enhanced_checkpointing.backends.stored_values import take_apart
from enhanced_checkpointing.operations import Operation
from enhanced_checkpointing.serialization import Serialized, SharingSerializer

HAS_PATH_SQL = "SELECT 1 FROM pragma_table_info('writes') WHERE name = 'task_path'"
PAGE_SQL = """
SELECT checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata FROM checkpoints
WHERE thread_id = ? AND (checkpoint_ns, checkpoint_id) > (?, ?) ORDER BY checkpoint_ns, checkpoint_id
"""
FIRST_PAGE_SQL = PAGE_SQL.replace("AND (checkpoint_ns, checkpoint_id) > (?, ?) ", "")
WRITES_SQL = """
SELECT task_id, {task_path}, idx, channel, type, value FROM writes
WHERE thread_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?
"""
LEFT_ALONE_SQL = """
SELECT DISTINCT checkpoint_ns, checkpoint_id FROM writes WHERE thread_id = ? AND NOT EXISTS (
    SELECT 1 FROM checkpoints WHERE checkpoints.thread_id = writes.thread_id
    AND checkpoints.checkpoint_ns = writes.checkpoint_ns AND checkpoints.checkpoint_id = writes.checkpoint_id
) ORDER BY checkpoint_ns, checkpoint_id
"""

Place = tuple[str, str]
"""Namespace and id of a checkpoint."""
Row = tuple[Any, ...]
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
    history = History(thread_id)
    after: Place | None = None
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
        rows = await hop(partial(_writes_there, thread_id=thread_id, place=(checkpoint_ns, checkpoint_id)))
        yield writes_of(thread_id, checkpoint_ns, checkpoint_id, map(_write, rows))


def _page(connection: sqlite3.Connection, thread_id: str, after: Place | None) -> Page:
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


def _left_alone(connection: sqlite3.Connection, thread_id: str) -> list[Place]:
    return connection.execute(LEFT_ALONE_SQL, (thread_id,)).fetchall()


def _writes_there(connection: sqlite3.Connection, thread_id: str, place: Place) -> list[Row]:
    return connection.execute(_writes_sql(connection), (thread_id, *place)).fetchall()


def _writes_sql(connection: sqlite3.Connection) -> str:
    """A file of an older version of the official saver has no paths until that saver's next one writes to it."""
    has_path = connection.execute(HAS_PATH_SQL).fetchone() is not None
    return WRITES_SQL.format(task_path="task_path" if has_path else "''")


def _write(row: Row) -> WriteRow:
    task_id, task_path, index, channel, tag, data = row
    return WriteRow(task_id, task_path, index, channel, Serialized(tag, data))
