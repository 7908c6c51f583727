"""Reads of PostgreSQL: LangGraph's saver over our connections, whole threads, and what the saver would list.

The read that every step of a graph makes goes to the server and back without a cursor, as our writes do; all others are
the official saver's. A whole thread is read row by row, as of one moment: the official saver keeps one blob for each
version of a channel, and a version that the checkpoint before had too is not read again.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple, get_checkpoint_id
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.types import TASKS
from psycopg import AsyncConnection, AsyncCursor, errors
from psycopg.pq import Format
from psycopg.rows import AsyncRowFactory, DictRow, dict_row

from enhanced_checkpointing.backends.base import Selection
from enhanced_checkpointing.backends.listing import load_metadata
from enhanced_checkpointing.backends.postgres.connections import PostgresConnections
from enhanced_checkpointing.backends.postgres.failures import check_json
from enhanced_checkpointing.backends.postgres.rows import JSONB, json_of, rows_of, text_of
from enhanced_checkpointing.backends.postgres.wire import Row, fetch, stream
from enhanced_checkpointing.backends.reading import (
    Chunks,
    PutHistory,
    WriteRow,
    in_chunks,
    inherits_snapshot,
    writes_of,
)
from enhanced_checkpointing.backends.stored_values import from_json, is_snapshot, list_of
from enhanced_checkpointing.errors import CheckpointUnavailableError
from enhanced_checkpointing.operations import Operation
from enhanced_checkpointing.serialization import Serialized, SharingSerializer

LARGEST_LIMIT = 2**63 - 1

_SORTS_ALIKE = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""Ids that every collation sorts as Python does."""


def selection(filter: Mapping[str, Any] | None, before: RunnableConfig | None, limit: int | None) -> Selection:
    """What a listing takes.

    Raises:
        psycopg.DataError: PostgreSQL would refuse the filter or the limit.
        TypeError, ValueError, KeyError: it could not even be sent.
    """
    end = get_checkpoint_id(before) if before is not None else None
    most = None if limit is None else int(limit)
    wanted = None
    if filter:
        check_json(filter)
        wanted = JSONB.of(filter)
    if most is not None and most < 0:
        raise errors.InvalidRowCountInLimitClause("LIMIT must not be negative")
    if most is not None and most > LARGEST_LIMIT:
        raise errors.NumericValueOutOfRange("bigint out of range")

    def below(checkpoint_id: str) -> bool:
        if before is None or not end:  # nothing is less than NULL, or than no text
            return before is None
        if not (_SORTS_ALIKE.fullmatch(checkpoint_id) and _SORTS_ALIKE.fullmatch(end)):
            raise CheckpointUnavailableError("only the primary knows in which order it has such checkpoint ids")
        return checkpoint_id < end

    return Selection(lambda metadata: wanted is None or contains(metadata, wanted), below, most)


def contains(value: Any, wanted: Any) -> bool:
    """Whether JSON contains other JSON, both in the form in which JSONB gives them back."""
    if isinstance(wanted, dict):
        return isinstance(value, dict) and all(key in value and contains(value[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return isinstance(value, list) and all(any(contains(item, one) for item in value) for one in wanted)
    if isinstance(wanted, bool) or isinstance(value, bool):
        return wanted is value
    return not isinstance(value, (dict, list)) and bool(value == wanted)


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
"""The newest checkpoint; or, if there is none, whether any other namespace of the thread has one."""

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


LANGGRAPHS_ORDER = ("v", "ts", "id", "channel_versions", "versions_seen", "updated_channels")
"""In which the keys of a checkpoint are written; PostgreSQL has another of its own."""

WRITES = """
    SELECT array_agg(array[
        convert_to(task_id, 'UTF8'), convert_to(task_path, 'UTF8'), convert_to(idx::text, 'UTF8'),
        convert_to(channel, 'UTF8'), convert_to(type, 'UTF8'), blob
    ])
    FROM checkpoint_writes
"""
CHECKPOINTS = f"""
SELECT
    checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata,
    CASE WHEN parent_checkpoint_id IS DISTINCT FROM id_before THEN (
        SELECT checkpoint -> 'channel_versions'
        FROM checkpoints AS parents
        WHERE parents.thread_id = found.thread_id
            AND parents.checkpoint_ns = found.checkpoint_ns
            AND parents.checkpoint_id = found.parent_checkpoint_id
    ) END AS versions_of_parent,
    (
        SELECT array_agg(array[convert_to(wanted.key, 'UTF8'), convert_to(blob.type, 'UTF8'), blob.blob])
        FROM jsonb_each_text(checkpoint -> 'channel_versions') AS wanted
        CROSS JOIN LATERAL (
            SELECT type, blob
            FROM checkpoint_blobs
            WHERE checkpoint_blobs.thread_id = found.thread_id
                AND checkpoint_blobs.checkpoint_ns = found.checkpoint_ns
                AND checkpoint_blobs.channel = wanted.key
                AND checkpoint_blobs.version = wanted.value
            LIMIT 1
        ) AS blob
        WHERE found.versions_before ->> wanted.key IS DISTINCT FROM wanted.value AND blob.type <> 'empty'
    ) AS changed,
    (
        {WRITES}
        WHERE checkpoint_writes.thread_id = found.thread_id
            AND checkpoint_writes.checkpoint_ns = found.checkpoint_ns
            AND checkpoint_writes.checkpoint_id = found.checkpoint_id
    ) AS writes,
    CASE WHEN (checkpoint ->> 'v')::integer < 4 THEN (
        SELECT array_agg(array[convert_to(type, 'UTF8'), blob] ORDER BY task_path, task_id, idx)
        FROM checkpoint_writes
        WHERE checkpoint_writes.thread_id = found.thread_id
            AND checkpoint_writes.checkpoint_id = found.parent_checkpoint_id
            AND checkpoint_writes.channel = '{TASKS}'
    ) END AS sends
FROM (
    SELECT *, lag(checkpoint_id) OVER order_of_reading AS id_before,
        lag(checkpoint -> 'channel_versions') OVER order_of_reading AS versions_before
    FROM checkpoints
    WHERE thread_id = $1::text
    WINDOW order_of_reading AS (PARTITION BY checkpoint_ns COLLATE "C" ORDER BY checkpoint_id COLLATE "C")
) AS found
ORDER BY checkpoint_ns COLLATE "C", checkpoint_id COLLATE "C"
"""
"""One row for each checkpoint, made when it is sent: only the window needs an order before, of what is not large."""
LEFT_ALONE = f"""
SELECT
    checkpoint_ns, checkpoint_id,
    (
        {WRITES}
        WHERE checkpoint_writes.thread_id = $1::text
            AND checkpoint_writes.checkpoint_ns = alone.checkpoint_ns
            AND checkpoint_writes.checkpoint_id = alone.checkpoint_id
    ) AS writes
FROM (
    SELECT DISTINCT checkpoint_ns, checkpoint_id FROM checkpoint_writes
    WHERE thread_id = $1::text AND NOT EXISTS (
        SELECT FROM checkpoints
        WHERE checkpoints.thread_id = checkpoint_writes.thread_id
            AND checkpoints.checkpoint_ns = checkpoint_writes.checkpoint_ns
            AND checkpoints.checkpoint_id = checkpoint_writes.checkpoint_id
    )
) AS alone
ORDER BY checkpoint_ns COLLATE "C", checkpoint_id COLLATE "C"
"""


async def read_thread(connections: PostgresConnections, serializer: SharingSerializer, thread_id: str) -> Chunks:
    """The operations that make a thread again.

    One connection is in use until the last of them was taken; the pool closes it where that was given up before.
    """
    async with (
        connections.borrow() as connection,
        aclosing(in_chunks(_groups(connection, serializer, thread_id))) as chunks,
    ):
        async for chunk in chunks:
            yield chunk


async def _groups(
    connection: AsyncConnection[DictRow], serializer: SharingSerializer, thread_id: str
) -> AsyncGenerator[Sequence[Operation], None]:
    reading = _Reading(thread_id, serializer)
    thread = thread_id.encode()
    async with aclosing(stream(connection, (CHECKPOINTS, [thread]))) as rows:
        async for row in rows:
            yield reading.checkpoint(row)
    if reading.empty:
        return
    async with aclosing(stream(connection, (LEFT_ALONE, [thread]))) as rows:
        async for row in rows:
            yield reading.left_alone(row)


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """What the next row leaves out, as it has not changed."""

    checkpoint_ns: str
    checkpoint_id: str
    versions: Mapping[str, Any]
    blobs: Mapping[str, Serialized]


class _Reading:
    """Makes operations of the rows, in their order."""

    def __init__(self, thread_id: str, serializer: SharingSerializer) -> None:
        self._thread_id = thread_id
        self._serializer = serializer
        self._history = PutHistory(thread_id)
        self._before = _Checkpoint("", "", {}, {})

    @property
    def empty(self) -> bool:
        """Whether there was no checkpoint."""
        return not self._before.checkpoint_id

    def checkpoint(self, row: Row) -> Sequence[Operation]:
        """One checkpoint with its writes. A blob goes before a value in the JSON, which for a snapshot is a mark."""
        namespace, checkpoint_id, parent_id = (text_of(column) or "" for column in row[:3])
        checkpoint, parents = json_of(row[3]), json_of(row[5])
        metadata = load_metadata(None if row[4] is None else row[4][1:])  # behind the number of its version
        changed, writes, sends = map(rows_of, row[6:])
        versions = checkpoint.get("channel_versions") or {}
        short = checkpoint.pop("channel_values", None) or {}
        blobs = self._unchanged(namespace, versions) | {_text(row[0]): _value(*row[1:]) for row in changed}
        if (self._before.checkpoint_ns, self._before.checkpoint_id) == (namespace, parent_id):
            parents = self._before.versions
        self._before = _Checkpoint(namespace, checkpoint_id, versions, blobs)
        marked = {channel for channel in blobs if short.get(channel) is True}
        found = {channel for channel in blobs.keys() - marked if is_snapshot(blobs[channel], self._serializer)}
        inherited = {channel for channel in found if inherits_snapshot(channel, versions, parents)}
        own = {channel: value for channel, value in blobs.items() if channel not in inherited}
        if sends and versions:
            versions[TASKS] = max(versions.values())
            own[TASKS] = list_of([_value(*sent) for sent in sends], self._serializer)
        values = {channel: from_json(value, self._serializer) for channel, value in short.items()} | own
        snapshots = frozenset(marked | found - inherited)
        skeleton = {**{key: checkpoint[key] for key in LANGGRAPHS_ORDER if key in checkpoint}, **checkpoint}
        put = self._history.put(namespace, checkpoint_id, parent_id, skeleton, values, metadata, snapshots)
        return [put, *self._writes(namespace, checkpoint_id, writes)]

    def left_alone(self, row: Row) -> Sequence[Operation]:
        """Writes without their checkpoint."""
        namespace, checkpoint_id, writes = row
        return self._writes(_text(namespace), _text(checkpoint_id), rows_of(writes))

    def _writes(self, checkpoint_ns: str, checkpoint_id: str, rows: Sequence[Row]) -> Sequence[Operation]:
        found = [
            WriteRow(_text(task_id), _text(task_path), int(_text(index)), _text(channel), _value(*stored))
            for task_id, task_path, index, channel, *stored in rows
        ]
        return writes_of(self._thread_id, checkpoint_ns, checkpoint_id, found)

    def _unchanged(self, checkpoint_ns: str, versions: Mapping[str, Any]) -> dict[str, Serialized]:
        before = self._before
        if checkpoint_ns != before.checkpoint_ns:
            return {}
        return {name: blob for name, blob in before.blobs.items() if versions.get(name) == before.versions.get(name)}


def _text(column: bytes | None) -> str:
    assert column is not None
    return column.decode()


def _value(tag: bytes | None, data: bytes | None) -> Serialized:
    return Serialized(_text(tag), data or b"")
