"""An operation as one statement on the tables of the official PostgreSQL saver. Pure: no I/O.

One statement is one transaction and one round trip by itself. The rows are those that `langgraph-checkpoint-postgres`
writes, so that either can read the other's data; a test compares the two against a real server.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

from langgraph.checkpoint.base import WRITES_IDX_MAP
from psycopg.types.json import Jsonb

from enhanced_checkpointing.operations import Operation, Put, PutWrites
from enhanced_checkpointing.serialization import Serialized

Statement = tuple[str, dict[str, Any]]

PUT_SQL = """
INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
VALUES (%(thread_id)s, %(checkpoint_ns)s, %(checkpoint_id)s, %(parent)s, %(checkpoint)s, %(metadata)s)
ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id)
DO UPDATE SET checkpoint = EXCLUDED.checkpoint, metadata = EXCLUDED.metadata
"""

BLOB_ROW = "(%(thread_id)s, %(checkpoint_ns)s, %(channel_{0})s, %(version_{0})s, %(tag_{0})s, %(blob_{0})s)"
PUT_WITH_BLOBS_SQL = f"""
WITH blobs AS (
    INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
    VALUES {{rows}}
    ON CONFLICT (thread_id, checkpoint_ns, channel, version) DO NOTHING
)
{PUT_SQL}
"""

WRITE_ROW = (
    "(%(thread_id)s, %(checkpoint_ns)s, %(checkpoint_id)s, %(task_id)s, %(task_path)s, "
    "%(index_{0})s, %(channel_{0})s, %(tag_{0})s, %(blob_{0})s)"
)
PUT_WRITES_SQL = """
INSERT INTO checkpoint_writes
    (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
VALUES {rows}
ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) {conflict}
"""
KEEP_FIRST = "DO NOTHING"
KEEP_LAST = "DO UPDATE SET channel = EXCLUDED.channel, type = EXCLUDED.type, blob = EXCLUDED.blob"

DELETE_SQL = """
WITH blobs AS (DELETE FROM checkpoint_blobs WHERE thread_id = %(thread_id)s),
     writes AS (DELETE FROM checkpoint_writes WHERE thread_id = %(thread_id)s)
DELETE FROM checkpoints WHERE thread_id = %(thread_id)s
"""


def statement(operation: Operation) -> Statement | None:
    """The statement of one operation; None where there is nothing to write."""
    if isinstance(operation, Put):
        return _put(operation)
    if isinstance(operation, PutWrites):
        return _put_writes(operation)
    return DELETE_SQL, {"thread_id": operation.thread_id}


def _put(put: Put) -> Statement:
    blobs = {channel: value for channel, value in put.values.items() if type(value) is Serialized}
    inline: dict[str, Any] = {
        channel: True if channel in put.snapshot_channels else value
        for channel, value in put.values.items()
        if channel not in blobs or channel in put.snapshot_channels
    }
    metadata = {key: value for key, value in cast("dict[str, Any]", put.metadata).items() if key != "writes"}
    parameters: dict[str, Any] = {
        "thread_id": put.thread_id,
        "checkpoint_ns": put.checkpoint_ns,
        "checkpoint_id": put.checkpoint_id,
        "parent": put.parent_checkpoint_id,
        "checkpoint": Jsonb({**put.skeleton, "channel_values": inline}),
        "metadata": Jsonb(metadata),
    }
    changed = [(channel, str(version)) for channel, version in put.new_versions.items() if channel in blobs]
    if not changed:
        return PUT_SQL, parameters
    for row, (channel, version) in enumerate(changed):
        parameters[f"channel_{row}"] = channel
        parameters[f"version_{row}"] = version
        parameters[f"tag_{row}"] = blobs[channel].tag
        parameters[f"blob_{row}"] = blobs[channel].data
    return put_with_blobs_sql(len(changed)), parameters


def _put_writes(operation: PutWrites) -> Statement | None:
    if not operation.writes:
        return None
    special = all(channel in WRITES_IDX_MAP for channel, _ in operation.writes)
    rows: dict[int, tuple[str, Serialized]] = {}
    for position, (channel, value) in enumerate(operation.writes):
        # Special channels have a row each; of two such writes the last stays, as with one statement after the other.
        index = WRITES_IDX_MAP.get(channel, position)
        if special or index not in rows:
            rows[index] = (channel, value)
    parameters: dict[str, Any] = {
        "thread_id": operation.thread_id,
        "checkpoint_ns": operation.checkpoint_ns,
        "checkpoint_id": operation.checkpoint_id,
        "task_id": operation.task_id,
        "task_path": operation.task_path,
    }
    for row, (index, (channel, value)) in enumerate(rows.items()):
        parameters[f"index_{row}"] = index
        parameters[f"channel_{row}"] = channel
        parameters[f"tag_{row}"] = value.tag
        parameters[f"blob_{row}"] = value.data
    return put_writes_sql(len(rows), special=special), parameters


@cache
def put_with_blobs_sql(blobs: int) -> str:
    """The statement of a put with so many blobs. Rows of scalars, since psycopg builds arrays in Python, slowly."""
    return PUT_WITH_BLOBS_SQL.format(rows=", ".join(BLOB_ROW.format(row) for row in range(blobs)))


@cache
def put_writes_sql(writes: int, *, special: bool) -> str:
    """The statement of so many writes; the last of two special ones stays, the first of two others."""
    rows = ", ".join(WRITE_ROW.format(row) for row in range(writes))
    return PUT_WRITES_SQL.format(rows=rows, conflict=KEEP_LAST if special else KEEP_FIRST)
