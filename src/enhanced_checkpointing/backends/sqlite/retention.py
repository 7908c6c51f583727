"""What keeping a SQLite file small asks of it: each function is one transaction, on the connection's thread."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.sqlite.utils import load_pending_writes

from enhanced_checkpointing.backends.contract import Judge
from enhanced_checkpointing.backends.directory import load_metadata
from enhanced_checkpointing.backends.sqlite.maintenance import DROP_THREAD_SQL
from enhanced_checkpointing.backends.sqlite.saver import read_checkpoint
from enhanced_checkpointing.private_files import open_lock
from enhanced_checkpointing.serialization import SharingSerializer, without_objects

if sys.platform != "win32":
    import fcntl

NEWEST_SQL = """
SELECT checkpoint_id, metadata FROM checkpoints WHERE thread_id = ? AND checkpoint_ns = ''
ORDER BY checkpoint_id DESC LIMIT 1
"""
ANNOTATE_SQL = "UPDATE checkpoints SET metadata = ? WHERE thread_id = ? AND checkpoint_ns = '' AND checkpoint_id = ?"


def annotate(connection: sqlite3.Connection, thread_id: str, changes: Mapping[str, Any]) -> bool:
    """Put these keys into the metadata of the newest root checkpoint; False if there is none."""
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        found = connection.execute(NEWEST_SQL, (thread_id,)).fetchone()
        if found is None:
            return False
        metadata = json.dumps({**load_metadata(found[1]), **changes}, ensure_ascii=False).encode("utf-8", "ignore")
        connection.execute(ANNOTATE_SQL, (metadata, thread_id, found[0]))
    return True


def delete_if(
    connection: sqlite3.Connection, serializer: SharingSerializer, thread_ids: Sequence[str], judge: Judge
) -> list[str]:
    """Delete those of which `judge` says so. Nobody else writes to the file meanwhile."""
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        gone = [one for one in thread_ids if judge(one, _newest(connection, serializer, one))]
        for text in DROP_THREAD_SQL:
            connection.executemany(text, [(thread_id,) for thread_id in gone])
    return gone


@contextmanager
def sole(path: Path | None) -> Iterator[bool]:
    """Whether nobody else has this file locked; where there are no locks, or no file, nobody is known to."""
    if path is None or sys.platform == "win32":
        yield True
        return
    handle = open_lock(path)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)  # which unlocks it; it is not removed, lest somebody lock what is there no more


def _newest(connection: sqlite3.Connection, serializer: SharingSerializer, thread_id: str) -> CheckpointTuple | None:
    found = read_checkpoint(connection, thread_id, "", None)
    if found is None:
        return None
    (checkpoint_id, _, tag, data, metadata), writes = found
    with without_objects():
        checkpoint, pending_writes = serializer.loads_typed((tag, data)), load_pending_writes(writes, serializer)
    return CheckpointTuple(
        {"configurable": {"thread_id": thread_id, "checkpoint_ns": "", "checkpoint_id": checkpoint_id}},
        checkpoint,
        load_metadata(metadata),  # type: ignore[arg-type]  # a TypedDict of what LangGraph itself puts there
        None,
        pending_writes,
    )
