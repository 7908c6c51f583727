"""What keeping a PostgreSQL database small asks of it. No write waits for any of this."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.types import TASKS
from psycopg import AsyncConnection, sql
from psycopg.errors import LockNotAvailable, SerializationFailure
from psycopg.pq import TransactionStatus
from psycopg.rows import DictRow

from enhanced_checkpointing.backends.contract import Judge
from enhanced_checkpointing.backends.postgres.arrays import text_array
from enhanced_checkpointing.backends.postgres.connecting import cut
from enhanced_checkpointing.backends.postgres.connections import PostgresConnections
from enhanced_checkpointing.backends.postgres.saver import NEWEST_FORMAT, SELECT_SQL, PooledSaver, value_of
from enhanced_checkpointing.backends.postgres.sql import DELETE_SQL
from enhanced_checkpointing.backends.postgres.wire import Statement, execute, fetch
from enhanced_checkpointing.identifiers import is_old
from enhanced_checkpointing.operations import Operation, Put
from enhanced_checkpointing.serialization import without_objects

ANNOTATE_SQL = """
UPDATE checkpoints SET metadata = metadata || $2::text::jsonb
WHERE thread_id = $1::text AND checkpoint_ns = '' AND checkpoint_id = (
    SELECT max(checkpoint_id) FROM checkpoints WHERE thread_id = $1::text AND checkpoint_ns = ''
)
RETURNING 1
"""
NEWEST_SQL = f"""
SELECT found.*
FROM unnest($1::text[]) AS asked (id)
CROSS JOIN LATERAL (
    {SELECT_SQL} WHERE thread_id = asked.id AND checkpoint_ns = '' ORDER BY checkpoint_id DESC LIMIT 1
) AS found
"""
SENDS_SQL = f"""
SELECT 1 FROM checkpoint_writes
WHERE thread_id = $1::text AND checkpoint_ns = '' AND checkpoint_id = $2::text AND channel = '{TASKS}' LIMIT 1
"""
# Whoever goes on with an old thread changes the row that he goes on from, in the same transaction, so that whoever
# deletes the thread just then finds it changed. Otherwise a value that is there already, and so is not inserted with
# the new checkpoint that has it too, could be deleted before that is committed.
WAKE_SQL = """
UPDATE checkpoints SET metadata = metadata
WHERE thread_id = $1::text AND checkpoint_ns = $2::text AND checkpoint_id = $3::text
"""
# In the order of writers, and without waiting for them: nobody ever waits in a circle.
LOCK_HEADS_SQL = """
SELECT FROM checkpoints
WHERE checkpoint_ns = '' AND (thread_id, checkpoint_id) IN (SELECT * FROM unnest($1::text[], $2::text[]))
ORDER BY thread_id COLLATE "C" FOR UPDATE NOWAIT
"""
# What a crash of the server brings back is deleted by the next sweep, so that nobody waits for the disk.
LAZY_SQL = "SET LOCAL synchronous_commit TO 'off'"

TRY_SOLE = "SELECT {function}(hashtextextended(current_schema() || {name}, 4937)) AS locked"
"""A lock of the session; or, behind a transaction pooler, where that is anybody's, of a transaction that stays open."""


async def annotate(connections: PostgresConnections, thread_id: str, changes: Mapping[str, Any]) -> bool:
    """Put these keys into the metadata of the newest root checkpoint; False if there is none."""
    statement = ANNOTATE_SQL, [thread_id.encode(), json.dumps(dict(changes)).encode()]
    async with connections.borrow() as connection:
        return bool(await fetch(connection, statement))


def wake(operations: Sequence[Operation]) -> list[Statement]:
    """What is to come, in the same transaction, before statements that go on with old threads."""
    now = time.time()
    woken = sorted(
        {
            (operation.thread_id, operation.checkpoint_ns, str(operation.parent_checkpoint_id))
            for operation in operations
            if isinstance(operation, Put) and is_old(operation.parent_checkpoint_id, now)
        }
    )
    return [(WAKE_SQL, [part.encode() for part in key]) for key in woken]


async def delete_if(
    connections: PostgresConnections, saver: PooledSaver, thread_ids: Sequence[str], judge: Judge
) -> list[str]:
    """Delete those of which `judge` says so, but for threads with which somebody just goes on.

    All of it sees the database as of one moment, so that what comes later is not deleted.
    """
    try:
        return await _delete_if(connections, saver, thread_ids, judge)
    except (SerializationFailure, LockNotAvailable):
        if len(thread_ids) < 2:
            return []
        return [one for alone in thread_ids for one in await delete_if(connections, saver, [alone], judge)]


async def _delete_if(
    connections: PostgresConnections, saver: PooledSaver, thread_ids: Sequence[str], judge: Judge
) -> list[str]:
    async with connections.borrow() as connection, _one_moment(connection):
        found = await _newest(connection, saver, thread_ids)
        gone = [thread_id for thread_id in thread_ids if judge(thread_id, found.get(thread_id))]
        if gone:
            ids = text_array([one.encode() for one in gone])
            heads = text_array([found[one].checkpoint["id"].encode() for one in gone if one in found])
            await execute(connection, [(LOCK_HEADS_SQL, [ids, heads]), (DELETE_SQL, [ids])])
    return gone


@asynccontextmanager
async def sole(connections: PostgresConnections, name: str, seconds: float) -> AsyncIterator[bool]:
    """Whether nobody else has the lock of this name; it is asked for in at most so many seconds."""
    async with connections.alone() as connection:
        in_time = asyncio.get_running_loop().call_later(seconds, cut, connection)
        try:
            if not connections.behind_pooler:
                is_sole = await _try(connection, "pg_try_advisory_lock", name)
                in_time.cancel()
                yield is_sole
                return
            async with connections.in_schema(connection), connection.transaction():
                is_sole = await _try(connection, "pg_try_advisory_xact_lock", name)
                in_time.cancel()
                yield is_sole
        finally:
            in_time.cancel()


async def _try(connection: AsyncConnection[DictRow], function: str, name: str) -> bool:
    text = sql.SQL(TRY_SOLE).format(function=sql.SQL(function), name=sql.Literal(name))
    row = await (await connection.execute(text)).fetchone()
    return row is not None and bool(row["locked"])


@asynccontextmanager
async def _one_moment(connection: AsyncConnection[DictRow]) -> AsyncIterator[None]:
    """A transaction in which everything is seen as it was when it began."""
    async with AsyncExitStack() as stack:
        if connection.info.transaction_status == TransactionStatus.IDLE:  # behind a pooler there may be one already
            await stack.enter_async_context(connection.transaction())
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        await connection.execute(LAZY_SQL)
        yield


async def _newest(
    connection: AsyncConnection[DictRow], saver: PooledSaver, thread_ids: Sequence[str]
) -> dict[str, CheckpointTuple]:
    """The newest root checkpoints; one of an old format has its sends, of which only is said that there are any."""
    found: dict[str, CheckpointTuple] = {}
    asked = text_array([thread_id.encode() for thread_id in thread_ids])
    for row in await fetch(connection, (NEWEST_SQL, [asked])):
        value = value_of(row)
        with without_objects():
            one = await saver._load_checkpoint_tuple(value)
        parent_id = value["parent_checkpoint_id"]
        if value["checkpoint"]["v"] < NEWEST_FORMAT and parent_id is not None:
            key = [value["thread_id"].encode(), parent_id.encode()]
            if await fetch(connection, (SENDS_SQL, key)):
                one.checkpoint["channel_values"][TASKS] = [None]
        found[value["thread_id"]] = one
    return found
