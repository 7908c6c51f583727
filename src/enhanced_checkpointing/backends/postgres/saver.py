"""LangGraph's PostgreSQL saver over our connections, without its one lock around everything.

The read that every step of a graph makes goes to the server and back without a cursor, as our writes do; all others are
the official saver's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple, get_checkpoint_id
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncConnection, AsyncCursor
from psycopg.pq import Format
from psycopg.rows import AsyncRowFactory, DictRow, dict_row

from enhanced_checkpointing.backends.postgres.arrays import json_of, rows_of, text_of
from enhanced_checkpointing.backends.postgres.connections import PostgresConnections
from enhanced_checkpointing.backends.postgres.wire import Row, fetch
from enhanced_checkpointing.serialization import SharingSerializer

SELECT_SQL = """
SELECT
    thread_id, checkpoint, checkpoint_ns, checkpoint_id, parent_checkpoint_id, metadata,
    (
        SELECT array_agg(array[blob.channel::bytea, blob.type::bytea, blob.blob])
        FROM jsonb_each_text(checkpoint -> 'channel_versions') AS wanted
        CROSS JOIN LATERAL (
            SELECT channel, type, blob
            FROM checkpoint_blobs
            WHERE checkpoint_blobs.thread_id = checkpoints.thread_id
                AND checkpoint_blobs.checkpoint_ns = checkpoints.checkpoint_ns
                AND checkpoint_blobs.channel = wanted.key
                AND checkpoint_blobs.version = wanted.value
            LIMIT 1
        ) AS blob
    ) AS channel_values,
    (
        SELECT array_agg(array[
            task_id::text::bytea, channel::bytea, type::bytea, blob, convert_to(task_path, 'UTF8'), idx::text::bytea
        ])
        FROM checkpoint_writes
        WHERE checkpoint_writes.thread_id = checkpoints.thread_id
            AND checkpoint_writes.checkpoint_ns = checkpoints.checkpoint_ns
            AND checkpoint_writes.checkpoint_id = checkpoints.checkpoint_id
    ) AS pending_writes
FROM checkpoints """
"""What the official saver selects. Its plain join reads all blobs of a thread to find those of one checkpoint, so that
reading gets slower with every step; LIMIT keeps the planner on the primary key, which finds each one."""


NEWEST_SQL = f"{SELECT_SQL} WHERE thread_id = $1::text AND checkpoint_ns = $2::text ORDER BY checkpoint_id DESC LIMIT 1"
NAMED_SQL = f"{SELECT_SQL} WHERE thread_id = $1::text AND checkpoint_ns = $2::text AND checkpoint_id = $3::text"
NEWEST_OR_ANYTHING_SQL = f"""
SELECT
    found.*,
    CASE WHEN checkpoint_id IS NULL THEN EXISTS (SELECT FROM checkpoints WHERE thread_id = $1::text) END AS has_others
FROM (VALUES (true)) AS always LEFT JOIN ({NEWEST_SQL}) AS found ON true
"""
"""The newest checkpoint; or, for want of one, whether there is one in any other namespace of the thread."""

TRUE = b"\x01"
"""In binary form."""

NEWEST_FORMAT = 4
"""The format of checkpoints (`v`) that needs no migration."""


ROWS = 20
"""Rows that are parsed in one turn on the event loop; a row with its values takes up to a tenth of a millisecond."""


class _Cursor(AsyncCursor[DictRow]):
    """Parses many rows in short turns."""

    def __init__(self, connection: AsyncConnection[Any], *, row_factory: AsyncRowFactory[DictRow]) -> None:
        super().__init__(connection, row_factory=row_factory)
        self.format = Format.BINARY

    async def fetchall(self) -> list[DictRow]:
        found: list[DictRow] = []
        while rows := await self.fetchmany(ROWS):
            found += rows
            await asyncio.sleep(0)
        return found


class PooledSaver(AsyncPostgresSaver):
    """Each call has a connection to itself."""

    SELECT_SQL = SELECT_SQL

    def __init__(self, connections: PostgresConnections, serializer: SharingSerializer) -> None:
        BaseCheckpointSaver.__init__(self, serde=serializer)
        self.pipe = None
        self.lock = asyncio.Lock()
        self.loop = asyncio.get_running_loop()
        self.supports_pipeline = True
        self._connections = connections

    @asynccontextmanager
    async def _cursor(self, *, pipeline: bool = False) -> AsyncIterator[AsyncCursor[DictRow]]:
        async with self._connections.borrow() as connection:
            if pipeline:
                async with connection.pipeline(), _Cursor(connection, row_factory=dict_row) as cursor:
                    yield cursor
            else:
                async with _Cursor(connection, row_factory=dict_row) as cursor:
                    yield cursor

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        found, _ = await self.aget_or_anything(config)
        return found

    async def aget_or_anything(self, config: RunnableConfig) -> tuple[CheckpointTuple | None, bool]:
        """What `aget_tuple` gives; and if that is None, whether the thread has any other, as `Backend.get` says."""
        configurable, named = config["configurable"], get_checkpoint_id(config)
        key = [configurable["thread_id"], configurable.get("checkpoint_ns", ""), *([named] if named else [])]
        text = NAMED_SQL if named else NEWEST_OR_ANYTHING_SQL
        async with self._connections.borrow() as connection:
            rows = await fetch(connection, (text, [part.encode() for part in key]))
        if not rows or rows[0][0] is None:
            return None, bool(rows) and rows[0][-1] == TRUE
        value = value_of(rows[0])
        if value["checkpoint"]["v"] < NEWEST_FORMAT:
            return await super().aget_tuple(config), True  # which migrates what it finds
        return await self._load_checkpoint_tuple(value), True

    async def _load_checkpoint_tuple(self, value: DictRow) -> CheckpointTuple:
        # Here, not in the loop's default executor: its threads may all be synchronous callers that wait for this read.
        return PostgresSaver._load_checkpoint_tuple(cast("PostgresSaver", self), value)


def value_of(row: Row) -> DictRow:
    """A row of `SELECT_SQL`, as psycopg would give it."""
    thread_id, checkpoint, checkpoint_ns, checkpoint_id, parent_id, metadata, blobs, writes = row[:8]
    return {
        "thread_id": text_of(thread_id),
        "checkpoint": json_of(checkpoint),
        "checkpoint_ns": text_of(checkpoint_ns),
        "checkpoint_id": text_of(checkpoint_id),
        "parent_checkpoint_id": text_of(parent_id),
        "metadata": json_of(metadata),
        "channel_values": rows_of(blobs),
        "pending_writes": rows_of(writes),
    }
