"""Copying, pruning and deleting by run in a SQLite file, in small transactions: others wait for each."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

from enhanced_checkpointing.backends.directory import load_metadata
from enhanced_checkpointing.backends.pruning import (
    DELETE,
    Held,
    HeldBy,
    Key,
    Link,
    Plan,
    check_strategy,
    leave_out,
    link_of,
    plan_pruning,
    plan_removal,
    read_of,
    refuse_copy,
)
from enhanced_checkpointing.backends.sqlite.directory import JSON, VALUE_SQL, thread_ids_from
from enhanced_checkpointing.backends.sqlite.saver import OneHopSaver
from enhanced_checkpointing.errors import CheckpointCorruptionError
from enhanced_checkpointing.serialization import without_objects

T = TypeVar("T")
Planner = Callable[[dict[str, list[Link]], HeldBy], Plan]

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
DROP_THREAD_SQL = ("DELETE FROM checkpoints WHERE thread_id = ?", "DELETE FROM writes WHERE thread_id = ?")

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
        """Copy a thread, all of it in one transaction, so that nobody ever finds half of it."""
        source, target = str(source_thread_id), str(target_thread_id)
        if not await self._alone(partial(_copy, source=source, target=target)):
            raise refuse_copy(source, target)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        check_strategy(thread_ids, strategy)
        for thread_id in map(str, thread_ids):
            if strategy == DELETE:
                await self._paced(partial(_drop_thread, thread_id=thread_id))
            else:
                await self.aprune_thread(thread_id, keep=1)

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


def _plan_removal(thread: dict[str, list[Link]], held_by: HeldBy, *, doomed: set[Key]) -> Plan:
    return plan_removal(thread, doomed, held_by)
