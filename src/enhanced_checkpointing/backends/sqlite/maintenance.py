"""Copying, pruning, deleting and marking threads in a SQLite file, in small transactions: others wait for each."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.sqlite.utils import load_pending_writes

from enhanced_checkpointing.backends.base import Judge
from enhanced_checkpointing.backends.listing import load_metadata
from enhanced_checkpointing.backends.pruning import (
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
    read_of,
    refuse_copy,
)
from enhanced_checkpointing.backends.sqlite.listing import JSON, VALUE_SQL, thread_ids_from
from enhanced_checkpointing.backends.sqlite.rows import DELETE_CHECKPOINTS_SQL, DELETE_WRITES_SQL
from enhanced_checkpointing.backends.sqlite.saver import OneHopSaver, read_checkpoint
from enhanced_checkpointing.errors import CheckpointCorruptionError
from enhanced_checkpointing.private_files import open_lock
from enhanced_checkpointing.serialization import SharingSerializer, without_objects

T = TypeVar("T")
Planner = Callable[[dict[str, list[Link]], HeldBy], PruningPlan]

DROPPED_AT_ONCE = 200
"""Checkpoints that go in one transaction."""
LONGEST_REST = 0.1
"""Seconds. After each transaction others have as long as it took, but no longer."""
THREADS_AT_ONCE = 10
"""Threads in which is looked for a run, in one go."""

LINKS_SQL = "SELECT checkpoint_ns, checkpoint_id, parent_checkpoint_id, metadata FROM checkpoints WHERE thread_id = ?"
PARENT_SQL = """
UPDATE checkpoints SET parent_checkpoint_id = ? WHERE thread_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?
"""
KEY = "thread_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?"
DROP_SQL = (f"DELETE FROM checkpoints WHERE {KEY}", f"DELETE FROM writes WHERE {KEY}")
DROP_THREAD_SQL = (DELETE_CHECKPOINTS_SQL, DELETE_WRITES_SQL)

STRANGERS_SQL = """
SELECT 1 FROM checkpoints AS target WHERE thread_id = ? AND NOT EXISTS (
    SELECT 1 FROM checkpoints AS source
    WHERE source.thread_id = ? AND source.checkpoint_ns = target.checkpoint_ns
        AND source.checkpoint_id = target.checkpoint_id
) LIMIT 1
"""
COPY_SQL = (
    """
    INSERT OR IGNORE INTO writes
        (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, value)
    SELECT ?, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, value
    FROM writes WHERE thread_id = ?
    """,
    """
    INSERT OR IGNORE INTO checkpoints
        (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata)
    SELECT ?, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata
    FROM checkpoints WHERE thread_id = ?
    """,
)
OF_RUNS_SQL = f"""
SELECT checkpoint_ns, checkpoint_id FROM checkpoints
WHERE thread_id = ? AND instr(metadata, '"run_id"')
    AND CASE WHEN json_valid({JSON}) THEN json_extract({JSON}, '$.run_id') END IN ({{places}})
"""


class MaintainedSqliteSaver(OneHopSaver):
    """What operators ask of threads, besides."""

    async def look(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do work that only reads on the connection's thread, between the transactions of all others."""
        return await self._alone(work)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a thread, all of it in one transaction, so that half of it is never seen."""
        source, target = str(source_thread_id), str(target_thread_id)
        if not await self._alone(partial(_copy, source=source, target=target)):
            raise refuse_copy(source, target)

    async def adelete_thread(self, thread_id: str) -> None:
        await self._paced(partial(_drop_thread, thread_id=str(thread_id)))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        await prune_each(self, thread_ids, strategy)

    async def aprune_thread(self, thread_id: str, *, keep: int) -> int:
        """Keep the newest checkpoints of each namespace, and what these need; returns how many went."""
        return await self._change(thread_id, partial(plan_pruning, keep=keep))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        runs = [*map(str, run_ids)]
        after: str | None = None
        while runs:
            look = partial(_of_runs, after=after, runs=runs)
            after, found = await self.look(look)
            for thread_id, doomed in found.items():
                try:
                    await self._change(thread_id, partial(_plan_removal, doomed=doomed))
                except CheckpointCorruptionError as error:
                    leave_out(thread_id, error)
            if after is None:
                break

    async def _change(self, thread_id: str, plan: Planner) -> int:
        rest = await self._paced(partial(_begin, thread_id=thread_id, plan=plan, held_by=self._held_by))
        dropped = len(rest)
        rest = rest[DROPPED_AT_ONCE:]
        while rest:
            await self._paced(partial(_drop, thread_id=thread_id, keys=rest[:DROPPED_AT_ONCE]))
            rest = rest[DROPPED_AT_ONCE:]
        return dropped

    async def _paced(self, work: Callable[[sqlite3.Connection], T]) -> T:
        started_at = time.monotonic()
        done = await self._alone(work)
        await asyncio.sleep(min(LONGEST_REST, time.monotonic() - started_at))
        return done

    def _held_by(self, connection: sqlite3.Connection, thread_id: str) -> HeldBy:
        def held_by(namespace: str, checkpoint_id: str, channels: frozenset[str]) -> Held:
            found = connection.execute(VALUE_SQL, (thread_id, namespace, checkpoint_id)).fetchone()

            def read() -> Held:
                with without_objects():
                    checkpoint = self.serde.loads_typed(found)
                return Held(
                    channels & checkpoint["channel_versions"].keys(), channels & checkpoint["channel_values"].keys()
                )

            return read_of("checkpoint", read)

        return held_by


def _copy(connection: sqlite3.Connection, *, source: str, target: str) -> bool:
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        if connection.execute(STRANGERS_SQL, (target, source)).fetchone() is not None:
            return False
        for text in COPY_SQL:
            connection.execute(text, (target, source))
    return True


def _drop_thread(connection: sqlite3.Connection, *, thread_id: str) -> None:
    with connection:
        for text in DROP_THREAD_SQL:
            connection.execute(text, (thread_id,))


def _begin(
    connection: sqlite3.Connection,
    *,
    thread_id: str,
    plan: Planner,
    held_by: Callable[[sqlite3.Connection, str], HeldBy],
) -> list[Key]:
    """Make the plan, and carry out as much of it as goes in one transaction: new parents, and the first to go."""
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        made = plan(_links(connection, thread_id), held_by(connection, thread_id))
        parents = ((parent_id, thread_id, *key) for key, parent_id in made.parents.items())
        connection.executemany(PARENT_SQL, parents)
        keys = sorted(made.dropped)
        _delete(connection, thread_id, keys[:DROPPED_AT_ONCE])
    return keys


def _drop(connection: sqlite3.Connection, *, thread_id: str, keys: Sequence[Key]) -> None:
    with connection:
        _delete(connection, thread_id, keys)


def _delete(connection: sqlite3.Connection, thread_id: str, keys: Iterable[Key]) -> None:
    rows = [(thread_id, *key) for key in keys]
    for text in DROP_SQL:
        connection.executemany(text, rows)


def _links(connection: sqlite3.Connection, thread_id: str) -> dict[str, list[Link]]:
    found: dict[str, list[Link]] = {}
    for namespace, checkpoint_id, parent_id, metadata in connection.execute(LINKS_SQL, (thread_id,)):
        found.setdefault(namespace, []).append(link_of(checkpoint_id, parent_id, load_metadata(metadata)))
    return found


def _of_runs(
    connection: sqlite3.Connection, *, after: str | None, runs: Sequence[str]
) -> tuple[str | None, dict[str, set[Key]]]:
    """What belongs to these runs in the next threads, and the last of those, or None if there are no more."""
    threads = thread_ids_from(connection, after, THREADS_AT_ONCE)
    text = OF_RUNS_SQL.format(places=", ".join("?" * len(runs)))
    found: dict[str, set[Key]] = {}
    for thread_id in threads:
        doomed: set[Any] = {*connection.execute(text, (thread_id, *runs))}
        if doomed:
            found[thread_id] = doomed
    return (threads[-1] if len(threads) == THREADS_AT_ONCE else None), found


def _plan_removal(thread: dict[str, list[Link]], held_by: HeldBy, *, doomed: set[Key]) -> PruningPlan:
    return plan_removal(thread, doomed, held_by)


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
    """Delete those of which `judge` says so. No other process writes to the file meanwhile."""
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        gone = [one for one in thread_ids if judge(one, _newest(connection, serializer, one))]
        for text in DROP_THREAD_SQL:
            connection.executemany(text, [(thread_id,) for thread_id in gone])
    return gone


@contextmanager
def sole(path: Path | None) -> Iterator[bool]:
    """Whether no other process has this file locked; true where there are no locks, or no file."""
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
        os.close(handle)  # which unlocks it; it is not removed, as a lock on a removed file would exclude no one


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
