"""A whole thread as PostgreSQL has it, row by row, of one moment.

The official saver keeps one blob for each version of a channel. A version that the checkpoint before had too is not
read again: of a thread that grows by little, little is read.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from langgraph.checkpoint.serde.types import TASKS
from psycopg import AsyncConnection
from psycopg.rows import DictRow

from enhanced_checkpointing.backends.directory import load_metadata
from enhanced_checkpointing.backends.postgres.arrays import json_of, rows_of, text_of
from enhanced_checkpointing.backends.postgres.connections import PostgresConnections
from enhanced_checkpointing.backends.postgres.wire import Row, stream
from enhanced_checkpointing.backends.reading import Chunks, History, WriteRow, in_chunks, inherits_snapshot, writes_of
from enhanced_checkpointing.backends.stored_values import from_json, is_snapshot, list_of
from enhanced_checkpointing.operations import Operation
from enhanced_checkpointing.serialization import Serialized, SharingSerializer

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
        self._history = History(thread_id)
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
