"""What loading and writing cost as the database grows: 10, 1,000 and 100,000 threads, and one of 10,000 checkpoints."""

from __future__ import annotations

import statistics
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass

from langchain_core.runnables import RunnableConfig

from benchmarks.laboratory import Laboratory, Result, Table
from benchmarks.rounds import Comparison, Pace, compare
from benchmarks.savers import Pair, postgres_pair
from benchmarks.workload import Caller, Saver, State, Work, write_threads, writing

SHORT = 10
"""Checkpoints of the threads that are read."""
LONG = 10_000
FILLING = 2
"""Checkpoints of the other threads of a big database."""
READ_THREADS = 10
THREADS = (10, 1_000, 100_000)
QUICK_THREADS = (10, 20)
QUICK_LONG = 100
PACE = Pace(rounds=5, seconds=0.3, patience=6.0)

# Copies of the one checkpoint that a saver wrote, with ids and versions of their own.
FILL = """
WITH many AS (
    SELECT '{prefix}-' || thread AS thread_id, position, lpad(position::text, 32, '0') || '.0' AS version,
        '1f000000-0000-6000-8000-' || lpad(to_hex(position), 12, '0') AS id,
        '1f000000-0000-6000-8000-' || lpad(to_hex(position - 1), 12, '0') AS parent
    FROM generate_series(1, {threads}) AS thread, generate_series(1, {checkpoints}) AS position
), blobs AS (
    INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
    SELECT many.thread_id, '', channel, many.version, type, blob FROM many, checkpoint_blobs AS model
    WHERE model.thread_id = '{model}'
), writes AS (
    INSERT INTO checkpoint_writes
        (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob, task_path)
    SELECT many.thread_id, '', many.id, task_id, idx, channel, type, blob, task_path
    FROM many, checkpoint_writes AS model
    WHERE model.thread_id = '{model}'
)
INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata)
SELECT many.thread_id, '', many.id, CASE WHEN position > 1 THEN many.parent END, type,
    checkpoint || jsonb_build_object(
        'id', many.id, 'channel_versions', jsonb_build_object('messages', many.version, 'summary', many.version)
    ), metadata
FROM many, checkpoints AS model
WHERE model.thread_id = '{model}'
"""


@dataclass(frozen=True)
class Place:
    """A filled database that both savers are open on, and what is read there."""

    name: str
    pair: Pair
    threads: list[RunnableConfig]


async def measure(laboratory: Laboratory) -> Result:
    sizes = QUICK_THREADS if laboratory.quick else THREADS
    length = QUICK_LONG if laboratory.quick else LONG
    pace = laboratory.pace if laboratory.quick else PACE
    async with AsyncExitStack() as stack:
        places = [await _fill(laboratory, stack, size, length if size == sizes[-1] else 0) for size in sizes]
        largest = places[-1]
        among_many = Place(f"thread of {length:,} among {largest.name}", largest.pair, [_newest_of("long-1")])
        rows = []
        for place in (*places, among_many):
            laboratory.say(f"growth: {place.name}")
            read = await compare(
                wandering(place.pair.bare, place.threads), wandering(place.pair.ours, place.threads), pace
            )
            wrote = await compare(writing(place.pair.bare, 1, State()), writing(place.pair.ours, 1, State()), pace)
            rows.append((place.name, *_times(read), *_times(wrote)))
        laboratory.say("growth: the largest against the smallest")
        smallest, longest = (wandering(place.pair.ours, place.threads) for place in (places[0], among_many))
        growth = await compare(smallest, longest, pace)
    ratio = statistics.median(
        statistics.median(large.seconds) / statistics.median(small.seconds)
        for small, large in zip(growth.bare.rounds, growth.ours.rounds, strict=True)
    )
    milliseconds = 1000 * growth.ours.p50
    columns = ("database", *(f"{call}: {who} p50, p99 ms" for call in ("newest", "write") for who in ("bare", "ours")))
    note = (
        f"The newest checkpoint of the thread of {length:,} among {sizes[-1]:,} threads takes {milliseconds:.2f} ms, "
        f"{ratio:.2f} times as long as one of {SHORT} among {sizes[0]}; people ask for less than 100 ms."
    )
    return Result(
        [Table("Cost as the database grows, one caller, on loopback", columns, rows, note)],
        {"growth/ratio": ratio, "growth/milliseconds": milliseconds},
    )


async def _fill(laboratory: Laboratory, stack: AsyncExitStack, threads: int, long: int) -> Place:
    """A database of so many threads, of which some are read; with one of `long` checkpoints besides, if any."""
    laboratory.say(f"growth: a database of {threads:,} threads")
    database = await stack.enter_async_context(laboratory.database())
    folder = stack.enter_context(laboratory.folder())
    url = laboratory.url(database)
    pair = await stack.enter_async_context(postgres_pair(url, url, folder))
    (model,) = await write_threads(pair.bare, 1, 1, State())
    wanted = {"read": (READ_THREADS, SHORT), "other": (threads - READ_THREADS, FILLING), "long": (1, long)}
    async with laboratory.connect(database) as connection:
        await connection.execute("SET synchronous_commit = off")
        for prefix, (count, checkpoints) in wanted.items():
            fill = FILL.format(
                prefix=prefix, threads=count, checkpoints=checkpoints, model=model["configurable"]["thread_id"]
            )
            await connection.execute(fill.encode())
        await connection.execute("VACUUM ANALYZE")
    name = f"{threads:,} threads"
    return Place(name, pair, [_newest_of(f"read-{number}") for number in range(1, READ_THREADS + 1)])


def _newest_of(thread_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}


def wandering(saver: Saver, threads: list[RunnableConfig]) -> Work:
    """One caller reads the newest checkpoints of these threads in turn."""

    async def call(seconds: list[float], repeats: int) -> None:
        for _ in range(repeats):
            for thread in threads:
                started_at = time.perf_counter()
                found = await saver.aget_tuple(thread)
                seconds.append(time.perf_counter() - started_at)
                if found is None or len(found.checkpoint["channel_values"]) != len(("messages", "summary")):
                    raise RuntimeError(f"this is not what was filled in: {found}")

    def prepare(repeats: int) -> list[Caller]:
        return [lambda seconds: call(seconds, repeats)]

    return prepare


def _times(comparison: Comparison) -> tuple[str, str]:
    bare, ours = (f"{1000 * side.p50:.2f}, {1000 * side.p99:.2f}" for side in (comparison.bare, comparison.ours))
    return bare, ours
