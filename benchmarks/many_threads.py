"""Databases of very many checkpoints, filled in bulk: what a year of conversations leaves behind."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

CHECKPOINTS = 20
"""Of each thread, one after the other; the next thread begins when the last one has ended."""
THREADS_AT_ONCE = 2_000
STEADY = 100
"""Threads of the user who has as many in a large database as in a small one; they are among the oldest."""

GROWING_USER, STEADY_USER = "growing", "steady"
MESSAGE = {"role": "user", "content": "the same few words as in every other message of this conversation"}

FILL = """
WITH many AS (
    SELECT 'thread-' || thread AS thread_id, position, lpad(position::text, 32, '0') || '.0' AS version,
        CASE WHEN thread % 5 = 0 THEN 'growing' WHEN thread % 5 = 1 AND thread < 5 * {steady} THEN 'steady'
            ELSE 'user-' || thread % 997 END AS user_id,
        '1f000000-0000-6000-8000-' || lpad(to_hex({checkpoints} * thread + position), 12, '0') AS id,
        '1f000000-0000-6000-8000-' || lpad(to_hex({checkpoints} * thread + position - 1), 12, '0') AS parent
    FROM generate_series({first}, {last}) AS thread, generate_series(1, {checkpoints}) AS position
), blobs AS (
    INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
    SELECT thread_id, '', 'messages', version, 'msgpack', convert_to(repeat('a message ', 60), 'UTF8') FROM many
), writes AS (
    INSERT INTO checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob)
    SELECT thread_id, '', id, 'task', 0, 'messages', 'msgpack', convert_to(repeat('a message ', 6), 'UTF8') FROM many
)
INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
SELECT thread_id, '', id, CASE WHEN position > 1 THEN parent END,
    jsonb_build_object(
        'v', 4, 'id', id, 'ts', '2026-01-01T00:00:00+00:00', 'channel_values', '{{"summary": "so far"}}'::jsonb,
        'channel_versions', jsonb_build_object('messages', version, 'summary', version),
        'versions_seen', jsonb_build_object('agent', jsonb_build_object('messages', version)), 'updated_channels', null
    ),
    jsonb_build_object('source', 'loop', 'step', position, 'parents', '{{}}'::jsonb, 'user_id', user_id)
FROM many
"""

INSERT_CHECKPOINT = """
INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata)
VALUES (?, '', ?, ?, ?, ?, ?)
"""
INSERT_WRITE = """
INSERT INTO writes (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, value)
VALUES (?, '', ?, 'task', 0, 'messages', ?, ?)
"""


async def fill_postgres(connection: AsyncConnection[TupleRow], checkpoints: int) -> None:
    """Put so many checkpoints into the official saver's tables, which are there."""
    threads = checkpoints // CHECKPOINTS
    await connection.execute("SET synchronous_commit = off")
    for first in range(0, threads, THREADS_AT_ONCE):
        last = min(first + THREADS_AT_ONCE, threads) - 1
        fill = FILL.format(first=first, last=last, checkpoints=CHECKPOINTS, steady=STEADY)
        await connection.execute(fill.encode())
    await connection.execute("VACUUM ANALYZE")


def fill_sqlite(path: Path, checkpoints: int) -> None:
    """Put so many checkpoints into the official saver's tables, which are there."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        for first in range(0, checkpoints // CHECKPOINTS, THREADS_AT_ONCE):
            last = min(first + THREADS_AT_ONCE, checkpoints // CHECKPOINTS)
            rows = [*_rows(first, last)]
            with connection:
                connection.executemany(INSERT_CHECKPOINT, (checkpoint for checkpoint, _ in rows))
                connection.executemany(INSERT_WRITE, (write for _, write in rows))
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _rows(first: int, last: int) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    value = JsonPlusSerializer().dumps_typed({"v": 4, "channel_values": {"messages": [MESSAGE] * 8}})
    written = JsonPlusSerializer().dumps_typed(MESSAGE)
    for thread in range(first, last):
        for position in range(1, CHECKPOINTS + 1):
            metadata = f'{{"source": "loop", "step": {position}, "parents": {{}}, "user_id": "{_user(thread)}"}}'
            name, own = f"thread-{thread}", _id(thread, position)
            parent = _id(thread, position - 1) if position > 1 else None
            yield (name, own, parent, *value, metadata.encode()), (name, own, *written)


def _user(thread: int) -> str:
    if thread % 5 == 0:
        return GROWING_USER
    return STEADY_USER if thread % 5 == 1 and thread < 5 * STEADY else f"user-{thread % 997}"


def _id(thread: int, position: int) -> str:
    return f"1f000000-0000-6000-8000-{CHECKPOINTS * thread + position:012x}"
