"""Operations as statements on the tables of the official PostgreSQL saver. Pure: no I/O.

Puts and writes of any number of threads are one statement: one transaction and one round trip by itself. The rows are
those that `langgraph-checkpoint-postgres` writes, so that either can read the other's data; a test compares the two
against a real server.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import Any, cast

from langgraph.checkpoint.base import WRITES_IDX_MAP

from enhanced_checkpointing.backends.postgres_arrays import bytea_array, integer_array, text_array
from enhanced_checkpointing.backends.postgres_wire import Statement
from enhanced_checkpointing.operations import DeleteThread, Operation, Put, PutWrites
from enhanced_checkpointing.serialization import Serialized

Row = tuple[Any, ...]

PUT_SQL = """
INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
SELECT thread_id, checkpoint_ns, checkpoint_id, parent, checkpoint::jsonb, metadata::jsonb
FROM unnest({arrays})
    AS row (thread_id, checkpoint_ns, checkpoint_id, parent, checkpoint, metadata)
ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id)
DO UPDATE SET checkpoint = EXCLUDED.checkpoint, metadata = EXCLUDED.metadata
"""
BLOBS_SQL = """
INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
SELECT * FROM unnest({arrays})
ON CONFLICT (thread_id, checkpoint_ns, channel, version) DO NOTHING
"""
WRITES_SQL = """
INSERT INTO checkpoint_writes
    (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
SELECT * FROM unnest({arrays})
ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
"""
KEEP_FIRST = "DO NOTHING"
KEEP_LAST = "DO UPDATE SET channel = EXCLUDED.channel, type = EXCLUDED.type, blob = EXCLUDED.blob"

DELETE_SQL = """
WITH blobs AS (DELETE FROM checkpoint_blobs WHERE thread_id = ANY($1::text[])),
     writes AS (DELETE FROM checkpoint_writes WHERE thread_id = ANY($1::text[]))
DELETE FROM checkpoints WHERE thread_id = ANY($1::text[])
"""

TEXT, BYTEA, INTEGER = "text", "bytea", "integer"
ARRAYS: dict[str, Callable[[Sequence[Any]], bytes]] = {TEXT: text_array, BYTEA: bytea_array, INTEGER: integer_array}
WRITES_TYPES = (TEXT, TEXT, TEXT, TEXT, TEXT, INTEGER, TEXT, TEXT, BYTEA)

PARTS = {
    "checkpoints": (PUT_SQL, (TEXT, TEXT, TEXT, TEXT, TEXT, TEXT)),
    "blobs": (BLOBS_SQL, (TEXT, TEXT, TEXT, TEXT, TEXT, BYTEA)),
    "writes": (WRITES_SQL + KEEP_FIRST, WRITES_TYPES),
    "special_writes": (WRITES_SQL + KEEP_LAST, WRITES_TYPES),
}
"""The parts of a statement, in the order in which the server carries them out."""


def statements(operations: Sequence[Operation]) -> list[Statement]:
    """What does all of these; those of one thread in their order, of several threads in that of their ids.

    That order is the same in every process, so that no two wait for each other's rows.
    """
    by_thread = sorted(operations, key=lambda operation: operation.thread_id)
    made: list[Statement] = []
    for deletes, group in groupby(by_thread, lambda operation: isinstance(operation, DeleteThread)):
        if deletes:
            threads = text_array([operation.thread_id.encode() for operation in group])
            made.append((DELETE_SQL, [threads]))
        else:
            made += filter(None, map(_insert, _without_repeats(cast("Iterable[Put | PutWrites]", group))))
    return made


def probe_statement(thread_id: str, checkpoint_id: str) -> Statement:
    """An empty checkpoint, by the very statement of a put and writes: it fails wherever those would."""
    row = thread_id.encode(), b"", checkpoint_id.encode(), None, b"{}", b"{}"
    return _statement({name: [row] if name == "checkpoints" else [] for name in PARTS})


def _without_repeats(operations: Iterable[Put | PutWrites]) -> Iterator[list[Put | PutWrites]]:
    """The same operations in pieces: of two puts with one id each is to be tried, and the last one's row is to stay."""
    piece: list[Put | PutWrites] = []
    seen: set[tuple[str, str, str]] = set()
    for operation in operations:
        if isinstance(operation, Put):
            key = operation.thread_id, operation.checkpoint_ns, operation.checkpoint_id
            if key in seen:
                yield piece
                piece = []
                seen.clear()
            seen.add(key)
        piece.append(operation)
    yield piece


def _insert(operations: Iterable[Put | PutWrites]) -> Statement | None:
    rows: dict[str, dict[Row, Row]] = {name: {} for name in PARTS}
    for operation in operations:
        if isinstance(operation, Put):
            _add_put(rows, operation)
        else:
            _add_writes(rows, operation)
    present = {name: list(rows[name].values()) for name in PARTS if rows[name]}
    return _statement(present) if present else None


def _statement(rows: Mapping[str, Sequence[Row]]) -> Statement:
    """One statement of these parts, which are in the order of `PARTS`."""
    present = tuple(rows)
    parameters: list[bytes] = []
    for name in present:
        kinds = PARTS[name][1]
        columns = zip(*rows[name], strict=True) if rows[name] else [()] * len(kinds)
        parameters += (ARRAYS[kind](column) for kind, column in zip(kinds, columns, strict=True))
    return insert_sql(present), parameters


def _add_put(rows: dict[str, dict[Row, Row]], put: Put) -> None:
    blobs = {channel: value for channel, value in put.values.items() if type(value) is Serialized}
    thread, namespace = put.thread_id.encode(), put.checkpoint_ns.encode()
    for channel, version in put.new_versions.items():
        if channel in blobs:
            value = blobs[channel]
            row = thread, namespace, channel.encode(), str(version).encode(), value.tag.encode(), value.data
            rows["blobs"].setdefault(row[:4], row)
    key = thread, namespace, put.checkpoint_id.encode()
    parent = put.parent_checkpoint_id.encode() if put.parent_checkpoint_id is not None else None
    described = (json.dumps(document).encode() for document in documents(put))
    rows["checkpoints"][key] = (*key, parent, *described)


def documents(put: Put) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is stored as JSON: the checkpoint with its inline values, and the metadata."""
    inline: dict[str, Any] = {
        channel: True if channel in put.snapshot_channels else value
        for channel, value in put.values.items()
        if type(value) is not Serialized or channel in put.snapshot_channels
    }
    metadata = {key: value for key, value in cast("dict[str, Any]", put.metadata).items() if key != "writes"}
    return {**put.skeleton, "channel_values": inline}, metadata


def _add_writes(rows: dict[str, dict[Row, Row]], operation: PutWrites) -> None:
    # Of two special writes of a task to one channel the last stays, of two others the first; special ones win.
    special = all(channel in WRITES_IDX_MAP for channel, _ in operation.writes)
    task = (
        operation.thread_id.encode(),
        operation.checkpoint_ns.encode(),
        operation.checkpoint_id.encode(),
        operation.task_id.encode(),
    )
    path = operation.task_path.encode()
    for position, (channel, value) in enumerate(operation.writes):
        index = WRITES_IDX_MAP.get(channel, position)
        key, row = (*task, index), (*task, path, index, channel.encode(), value.tag.encode(), value.data)
        if special:  # what is there keeps its path
            before = rows["writes"].pop(key, None) or rows["special_writes"].get(key)
            rows["special_writes"][key] = row if before is None else (*before[:5], *row[5:])
        elif key not in rows["special_writes"]:
            rows["writes"].setdefault(key, row)


@cache
def insert_sql(parts: tuple[str, ...]) -> str:
    """One statement of these parts: the first is the main one, the others go along."""
    made: list[str] = []
    number = 0
    for sql, types in (PARTS[name] for name in parts):
        arrays = ", ".join(f"${position}::{kind}[]" for position, kind in enumerate(types, number + 1))
        made.append(sql.format(arrays=arrays))
        number += len(types)
    along = ", ".join(f"{name}_part AS ({sql})" for name, sql in zip(parts[1:], made[1:], strict=True))
    return f"WITH {along} {made[0]}" if along else made[0]
