"""LangGraph's PostgreSQL saver over our connections: its reads, without its one lock around everything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncCursor
from psycopg.rows import DictRow, dict_row

from enhanced_checkpointing.backends.postgres_connections import PostgresConnections
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
                async with connection.pipeline(), connection.cursor(binary=True, row_factory=dict_row) as cursor:
                    yield cursor
            else:
                async with connection.cursor(binary=True, row_factory=dict_row) as cursor:
                    yield cursor

    async def _load_checkpoint_tuple(self, value: DictRow) -> CheckpointTuple:
        # Here, not in the loop's default executor: its threads may all be synchronous callers that wait for this read.
        return PostgresSaver._load_checkpoint_tuple(cast("PostgresSaver", self), value)
