"""Everything that a store of checkpoints holds, as plain rows."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import psycopg
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from psycopg import sql
from psycopg.rows import dict_row

from tests.support.comparison import KEYS, Dump, Row, assert_equal_dumps, normalise, row_key

__all__ = ["Dump", "assert_equal_dumps", "dump_memory", "dump_postgres", "dump_sqlite", "normalise"]


def dump_postgres(url: str, *, schema: str = "public", serializer: SerializerProtocol | None = None) -> Dump:
    """Dump the three tables of LangGraph's Postgres savers."""
    dump: Dump = {}
    with psycopg.connect(url, row_factory=dict_row) as connection:
        for table in KEYS:
            rows = connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(schema, table))).fetchall()
            dump[table] = [_decoded(row, "blob", serializer) if "blob" in row else dict(row) for row in rows]
    return _sorted(dump)


def dump_sqlite(path: Path | str, *, serializer: SerializerProtocol | None = None) -> Dump:
    """Dump the two tables of LangGraph's SQLite savers; a checkpoint there carries its channel values itself."""
    connection = sqlite3.connect(path)
    connection.row_factory = sqlite3.Row
    try:
        checkpoints = [dict(row) for row in connection.execute("SELECT * FROM checkpoints")]
        writes = [dict(row) for row in connection.execute("SELECT * FROM writes")]
    finally:
        connection.close()
    for row in checkpoints:
        row["metadata"] = json.loads(row["metadata"])
    return _sorted(
        {
            "checkpoints": [_decoded(row, "checkpoint", serializer, into="checkpoint") for row in checkpoints],
            "checkpoint_writes": [_decoded(row, "value", serializer) for row in writes],
        }
    )


def dump_memory(saver: InMemorySaver) -> Dump:
    """Dump what a memory saver holds."""
    load = saver.serde.loads_typed
    dump: Dump = {table: [] for table in KEYS}
    for thread_id, namespaces in saver.storage.items():
        for checkpoint_ns, checkpoints in namespaces.items():
            for checkpoint_id, (checkpoint, metadata, parent) in checkpoints.items():
                key = {"thread_id": thread_id, "checkpoint_ns": checkpoint_ns, "checkpoint_id": checkpoint_id}
                content = {"checkpoint": load(checkpoint), "metadata": load(metadata), "parent_checkpoint_id": parent}
                dump["checkpoints"].append(key | content)
    for (thread_id, checkpoint_ns, channel, version), typed in saver.blobs.items():
        row = {"thread_id": thread_id, "checkpoint_ns": checkpoint_ns, "channel": channel, "version": version}
        dump["checkpoint_blobs"].append(_decoded(row | {"type": typed[0], "blob": typed[1]}, "blob", saver.serde))
    for (thread_id, checkpoint_ns, checkpoint_id), writes in saver.writes.items():
        for (task_id, idx), (_, channel, typed, task_path) in writes.items():
            row = {"thread_id": thread_id, "checkpoint_ns": checkpoint_ns, "checkpoint_id": checkpoint_id}
            row |= {"task_id": task_id, "task_path": task_path, "idx": idx, "channel": channel}
            dump["checkpoint_writes"].append(_decoded(row | {"type": typed[0], "blob": typed[1]}, "blob", saver.serde))
    return _sorted(dump)


def _decoded(row: Row, column: str, serializer: SerializerProtocol | None, into: str = "value") -> Row:
    """The row with its serialised `column` as a value; the type stays, as it tells how it was serialised."""
    rest = {name: content for name, content in row.items() if name != column}
    data = None if row[column] is None else bytes(row[column])
    if row["type"] == "empty" or data is None:
        return rest | {into: None}
    return rest | {into: (serializer or JsonPlusSerializer()).loads_typed((row["type"], data))}


def _sorted(dump: Dump) -> Dump:
    return {table: sorted(rows, key=lambda row: row_key(table, row)) for table, rows in dump.items()}
