"""Copying, pruning, deleting and marking threads in PostgreSQL: a transaction for each thread.

None of these takes a lock that a live write waits for: what they delete is old, and what they insert is new. The
statements look rows up by key, for a join of two sets of one thread's rows would be planned by how many a thread has on
average, which is wrong for the few huge ones that are worth pruning.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.types import TASKS
from psycopg import AsyncConnection, DataError, sql
from psycopg.errors import LockNotAvailable, SerializationFailure
from psycopg.pq import TransactionStatus
from psycopg.rows import DictRow

from enhanced_checkpointing.backends.base import Judge
from enhanced_checkpointing.backends.postgres.connections import PostgresConnections, cut, got_lock
from enhanced_checkpointing.backends.postgres.rows import DELETE_SQL, text_array
from enhanced_checkpointing.backends.postgres.saver import NEWEST_FORMAT, SELECT_SQL, PooledSaver, value_of
from enhanced_checkpointing.backends.postgres.wire import execute, fetch
from enhanced_checkpointing.backends.pruning import (
    COUNTERS,
    VERSIONED_DELTA,
    Held,
    HeldBy,
    Key,
    Link,
    PruningPlan,
    leave_out,
    link_of,
    plan_pruning,
    plan_removal,
    prune_each,
    refuse_copy,
)
from enhanced_checkpointing.serialization import without_objects

Connection = AsyncConnection[DictRow]

LINKS_SQL = f"""
SELECT
    checkpoint_ns, checkpoint_id, parent_checkpoint_id, metadata ->> 'run_id' AS run_id,
    metadata -> '{COUNTERS}' AS counters, metadata -> 'parents' AS parents, metadata ? '{VERSIONED_DELTA}' AS versioned,
    checkpoint -> 'v' < '4' AND EXISTS (
        SELECT FROM checkpoint_writes
        WHERE checkpoint_writes.thread_id = checkpoints.thread_id
            AND checkpoint_writes.checkpoint_ns = checkpoints.checkpoint_ns
            AND checkpoint_writes.checkpoint_id = checkpoints.parent_checkpoint_id AND channel = '{TASKS}'
    ) AS needs_parent
FROM checkpoints WHERE thread_id = %(thread_id)s
"""

HELD_SQL = """
SELECT
    checkpoint_id,
    ARRAY(SELECT name FROM unnest(%(channels)s::text[]) AS name WHERE checkpoint -> 'channel_versions' ? name) AS known,
    ARRAY(
        SELECT name FROM unnest(%(channels)s::text[]) AS name
        WHERE checkpoint -> 'channel_values' ? name OR EXISTS (
            SELECT FROM checkpoint_blobs
            WHERE checkpoint_blobs.thread_id = checkpoints.thread_id
                AND checkpoint_blobs.checkpoint_ns = checkpoints.checkpoint_ns
                AND checkpoint_blobs.channel = name
                AND checkpoint_blobs.version = checkpoint -> 'channel_versions' ->> name
                AND checkpoint_blobs.type <> 'empty'
        )
    ) AS valued
FROM checkpoints WHERE thread_id = %(thread_id)s AND checkpoint_ns = %(namespace)s
"""

PARENTS_SQL = """
UPDATE checkpoints SET parent_checkpoint_id = %(parent_id)s
WHERE thread_id = %(thread_id)s AND checkpoint_ns = %(namespace)s AND checkpoint_id = %(checkpoint_id)s
"""
DROP_NAMESPACES_SQL = tuple(
    f"DELETE FROM {table} WHERE thread_id = %(thread_id)s AND checkpoint_ns = ANY(%(namespaces)s)"
    for table in ("checkpoints", "checkpoint_writes", "checkpoint_blobs")
)
DROP_WRITES_SQL = """
DELETE FROM checkpoint_writes
WHERE thread_id = %(thread_id)s AND checkpoint_ns = %(namespace)s AND checkpoint_id = ANY(%(checkpoint_ids)s)
"""
DROP_CHECKPOINTS_SQL = """
WITH dropped AS (
    DELETE FROM checkpoints
    WHERE thread_id = %(thread_id)s AND checkpoint_ns = %(namespace)s AND checkpoint_id = ANY(%(checkpoint_ids)s)
    RETURNING checkpoint -> 'channel_versions' AS versions
)
SELECT DISTINCT one.key AS channel, one.value AS version
FROM dropped CROSS JOIN LATERAL jsonb_each_text(dropped.versions) AS one
"""
NEEDED_BLOBS_SQL = """
SELECT DISTINCT one.key AS channel, one.value AS version
FROM checkpoints CROSS JOIN LATERAL jsonb_each_text(checkpoint -> 'channel_versions') AS one
WHERE thread_id = %(thread_id)s AND checkpoint_ns = %(namespace)s
"""
DROP_BLOBS_SQL = """
DELETE FROM checkpoint_blobs
WHERE thread_id = %(thread_id)s AND checkpoint_ns = %(namespace)s
    AND channel = %(channel)s AND version = ANY(%(versions)s)
"""
STRANGERS_SQL = """
SELECT EXISTS (
    SELECT FROM checkpoints AS target WHERE thread_id = %(target)s AND NOT EXISTS (
        SELECT FROM checkpoints AS source
        WHERE source.thread_id = %(source)s AND source.checkpoint_ns = target.checkpoint_ns
            AND source.checkpoint_id = target.checkpoint_id
    )
) AS any
"""
COPY_SQL = tuple(
    f"""
    INSERT INTO {table} (thread_id, {columns})
    SELECT %(target)s, {columns} FROM {table} WHERE thread_id = %(source)s
    ON CONFLICT DO NOTHING
    """
    for table, columns in {
        "checkpoint_blobs": "checkpoint_ns, channel, version, type, blob",
        "checkpoint_writes": "checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob",
        "checkpoints": "checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata",
    }.items()
)
THREADS_OF_RUNS_SQL = "SELECT DISTINCT thread_id FROM checkpoints WHERE metadata ->> 'run_id' = ANY(%(runs)s)"


class MaintainedPooledSaver(PooledSaver):
    """What operators ask of threads, besides."""

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a thread, all of it in one transaction, so that half of it is never seen."""
        names = {"source": str(source_thread_id), "target": str(target_thread_id)}
        async with self._connections.borrow() as connection, connection.transaction():
            if (await _ask(connection, STRANGERS_SQL, **names))[0]["any"]:
                raise refuse_copy(names["source"], names["target"])
            for text in COPY_SQL:
                await _tell(connection, text, **names)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        await prune_each(self, thread_ids, strategy)

    async def aprune_thread(self, thread_id: str, *, keep: int) -> int:
        """Keep the newest checkpoints of each namespace, and what these need; returns how many went."""
        async with self._connections.borrow() as connection, connection.transaction():
            thread = _linked(await _ask(connection, LINKS_SQL, thread_id=thread_id))
            plan = plan_pruning(thread, await _held_by(connection, thread_id, thread), keep)
            await _carry_out(connection, thread_id, thread, plan)
        return len(plan.dropped)

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        runs = [*map(str, run_ids)]
        if not runs:
            return
        async with self._connections.borrow() as connection:
            rows = await _ask(connection, THREADS_OF_RUNS_SQL, runs=runs)
        for row in rows:
            try:
                async with self._connections.borrow() as connection, connection.transaction():
                    await _drop_runs(connection, row["thread_id"], {*runs})
            except DataError as error:  # a document that is not LangGraph's
                leave_out(row["thread_id"], error)


async def _drop_runs(connection: Connection, thread_id: str, runs: set[str]) -> None:
    rows = await _ask(connection, LINKS_SQL, thread_id=thread_id)
    doomed = {(row["checkpoint_ns"], row["checkpoint_id"]) for row in rows if row["run_id"] in runs}
    thread = _linked(rows)
    plan = plan_removal(thread, doomed, await _held_by(connection, thread_id, thread))
    await _carry_out(connection, thread_id, thread, plan)


async def _carry_out(
    connection: Connection, thread_id: str, thread: Mapping[str, Sequence[Link]], plan: PruningPlan
) -> None:
    execute = partial(_tell, connection, thread_id=thread_id)
    for (namespace, checkpoint_id), parent_id in plan.parents.items():
        await execute(PARENTS_SQL, namespace=namespace, checkpoint_id=checkpoint_id, parent_id=parent_id)
    dropped = plan.by_namespace()
    whole = [
        namespace for namespace, checkpoint_ids in dropped.items() if len(checkpoint_ids) == len(thread[namespace])
    ]
    if whole:
        for text in DROP_NAMESPACES_SQL:
            await execute(text, namespaces=whole)
    for namespace, checkpoint_ids in dropped.items():
        if namespace not in whole:
            await _drop(connection, thread_id, namespace, checkpoint_ids)


async def _drop(connection: Connection, thread_id: str, namespace: str, checkpoint_ids: Sequence[str]) -> None:
    """Drop checkpoints, their writes, and the values that none of those that stay has."""
    where = {"thread_id": thread_id, "namespace": namespace}
    await _tell(connection, DROP_WRITES_SQL, checkpoint_ids=checkpoint_ids, **where)
    freed = await _ask(connection, DROP_CHECKPOINTS_SQL, checkpoint_ids=checkpoint_ids, **where)
    needed = await _ask(connection, NEEDED_BLOBS_SQL, **where)
    useless: dict[str, list[str]] = {}
    for channel, version in _blobs(freed) - _blobs(needed):
        useless.setdefault(channel, []).append(version)
    for channel, versions in useless.items():
        await _tell(connection, DROP_BLOBS_SQL, channel=channel, versions=versions, **where)


def _blobs(rows: Iterable[DictRow]) -> set[tuple[str, str]]:
    return {(row["channel"], row["version"]) for row in rows}


def _linked(rows: Iterable[DictRow]) -> dict[str, list[Link]]:
    found: dict[str, list[Link]] = {}
    for row in rows:
        metadata = {COUNTERS: row["counters"], "parents": row["parents"]}
        if row["versioned"]:
            metadata[VERSIONED_DELTA] = True
        needs_parent = bool(row["needs_parent"])
        link = link_of(row["checkpoint_id"], row["parent_checkpoint_id"], metadata, needs_parent=needs_parent)
        found.setdefault(row["checkpoint_ns"], []).append(link)
    return found


async def _held_by(connection: Connection, thread_id: str, thread: Mapping[str, Sequence[Link]]) -> HeldBy:
    """Looks that up in the namespaces that have delta channels, at once."""
    known: dict[Key, Held] = {}
    for namespace, links in thread.items():
        channels = frozenset[str]().union(*(link.deltas for link in links))
        if channels:
            where = {"thread_id": thread_id, "namespace": namespace}
            for row in await _ask(connection, HELD_SQL, channels=[*channels], **where):
                held = Held(frozenset(row["known"]), frozenset(row["valued"]))
                known[namespace, row["checkpoint_id"]] = held
    return lambda namespace, checkpoint_id, _: known[namespace, checkpoint_id]


async def _tell(connection: Connection, text: str, **values: Any) -> None:
    await connection.execute(text, values, prepare=False)  # planned with its arrays known


async def _ask(connection: Connection, text: str, **values: Any) -> list[DictRow]:
    return await (await connection.execute(text, values, prepare=False)).fetchall()


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
# In the order of writers, and without waiting for them: there is no deadlock.
LOCK_HEADS_SQL = """
SELECT FROM checkpoints
WHERE checkpoint_ns = '' AND (thread_id, checkpoint_id) IN (SELECT * FROM unnest($1::text[], $2::text[]))
ORDER BY thread_id COLLATE "C" FOR UPDATE NOWAIT
"""
# What a crash of the server brings back is deleted by the next sweep, so that this need not wait for the disk.
LAZY_SQL = "SET LOCAL synchronous_commit TO 'off'"

TRY_SOLE = "SELECT {function}(hashtextextended(current_schema() || {name}, 4937)) AS locked"
"""A lock of the session; or, behind a transaction pooler, of a transaction that stays open."""


async def annotate(connections: PostgresConnections, thread_id: str, changes: Mapping[str, Any]) -> bool:
    """Put these keys into the metadata of the newest root checkpoint; False if there is none."""
    statement = ANNOTATE_SQL, [thread_id.encode(), json.dumps(dict(changes)).encode()]
    async with connections.borrow() as connection:
        return bool(await fetch(connection, statement))


async def delete_if(
    connections: PostgresConnections, saver: PooledSaver, thread_ids: Sequence[str], judge: Judge
) -> list[str]:
    """Delete those of which `judge` says so, except threads that are being continued.

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
    """Whether no other session has the lock of this name; it is asked for in at most so many seconds."""
    async with connections.alone() as connection:
        in_time = asyncio.get_running_loop().call_later(seconds, cut, connection)
        try:
            if not connections.behind_pooler:
                is_sole = await got_lock(connection, _try_sole("pg_try_advisory_lock", name))
                in_time.cancel()
                yield is_sole
                return
            async with connections.in_schema(connection), connection.transaction():
                is_sole = await got_lock(connection, _try_sole("pg_try_advisory_xact_lock", name))
                in_time.cancel()
                yield is_sole
        finally:
            in_time.cancel()


def _try_sole(function: str, name: str) -> sql.Composed:
    return sql.SQL(TRY_SOLE).format(function=sql.SQL(function), name=sql.Literal(name))


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
