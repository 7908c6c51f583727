"""An operation as the statements that the official PostgreSQL saver would run. Pure: no I/O.

The rows are those of `langgraph-checkpoint-postgres`, so that either can read the other's data. The statements
themselves are taken from the installed saver.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from langgraph.checkpoint.base import WRITES_IDX_MAP
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg.types.json import Jsonb

from enhanced_checkpointing.operations import Operation, Put, PutWrites, Serialized

Statement = tuple[str, Sequence[Any]]

DELETE_THREAD_SQL = (
    "DELETE FROM checkpoints WHERE thread_id = %s",
    "DELETE FROM checkpoint_blobs WHERE thread_id = %s",
    "DELETE FROM checkpoint_writes WHERE thread_id = %s",
)


def statements(operation: Operation) -> list[Statement]:
    """The statements of one operation; run between two syncs of a pipeline they are one transaction."""
    if isinstance(operation, Put):
        return _put(operation)
    if isinstance(operation, PutWrites):
        return _put_writes(operation)
    return [(sql, (operation.thread_id,)) for sql in DELETE_THREAD_SQL]


def _put(put: Put) -> list[Statement]:
    blobs = {channel: value for channel, value in put.values.items() if type(value) is Serialized}
    inline: dict[str, Any] = {
        channel: True if channel in put.snapshot_channels else value
        for channel, value in put.values.items()
        if channel not in blobs or channel in put.snapshot_channels
    }
    rows: list[Statement] = [
        (
            AsyncPostgresSaver.UPSERT_CHECKPOINT_BLOBS_SQL,
            (put.thread_id, put.checkpoint_ns, channel, str(version), blobs[channel].tag, blobs[channel].data),
        )
        for channel, version in put.new_versions.items()
        if channel in blobs
    ]
    metadata = {key: value for key, value in cast("dict[str, Any]", put.metadata).items() if key != "writes"}
    rows.append(
        (
            AsyncPostgresSaver.UPSERT_CHECKPOINTS_SQL,
            (
                put.thread_id,
                put.checkpoint_ns,
                put.checkpoint_id,
                put.parent_checkpoint_id,
                Jsonb({**put.skeleton, "channel_values": inline}),
                Jsonb(metadata),
            ),
        )
    )
    return rows


def _put_writes(operation: PutWrites) -> list[Statement]:
    special = all(channel in WRITES_IDX_MAP for channel, _ in operation.writes)
    sql = (
        AsyncPostgresSaver.UPSERT_CHECKPOINT_WRITES_SQL if special else AsyncPostgresSaver.INSERT_CHECKPOINT_WRITES_SQL
    )
    return [
        (
            sql,
            (
                operation.thread_id,
                operation.checkpoint_ns,
                operation.checkpoint_id,
                operation.task_id,
                operation.task_path,
                WRITES_IDX_MAP.get(channel, index),
                channel,
                value.tag,
                value.data,
            ),
        )
        for index, (channel, value) in enumerate(operation.writes)
    ]
