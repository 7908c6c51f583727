"""The newest 50 threads of one user among 10,000 and 1,000,000 checkpoints, and what the index for it costs writes."""

from __future__ import annotations

import sqlite3
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from benchmarks.laboratory import Laboratory, Result, Table
from benchmarks.many_threads import GROWING_USER, STEADY_USER, fill_postgres, fill_sqlite
from benchmarks.rounds import Comparison, Pace, compare
from benchmarks.savers import saver_of
from benchmarks.workload import Caller, Conversation, Saver, State, Step, Work
from enhanced_checkpointing import (
    CheckpointerConfig,
    EnhancedCheckpointerManager,
    create_postgres_checkpointer,
    create_sqlite_checkpointer,
)
from enhanced_checkpointing.backends.postgres import listing as postgres_directory
from enhanced_checkpointing.backends.postgres import listing as postgres_index
from enhanced_checkpointing.backends.sqlite import listing as sqlite_directory
from enhanced_checkpointing.backends.sqlite import listing as sqlite_index

SMALL, LARGE = 10_000, 1_000_000
QUICK_SMALL, QUICK_LARGE = 5_000, 10_000
LIMIT = 50
PACE = Pace(rounds=15, seconds=0.3, patience=60.0)
WRITE_PACE = Pace(rounds=15, seconds=0.4, patience=60.0)
CALLERS = (1, 8, 64)
QUICK_CALLERS = (1, 8)
KINDS = ("PostgreSQL", "SQLite")

Run = Callable[[str], Awaitable[list[Any]]]
"""Executes SQL beside the manager, and returns the rows."""


@dataclass(frozen=True)
class Place:
    """A database of so many checkpoints with a manager open on it."""

    manager: EnhancedCheckpointerManager
    run: Run


async def measure(laboratory: Laboratory) -> Result:
    result = Result()
    rows, plans = [], []
    for kind in KINDS:
        async with AsyncExitStack() as stack:
            small_size, large_size = (QUICK_SMALL, QUICK_LARGE) if laboratory.quick else (SMALL, LARGE)
            small = await stack.enter_async_context(_filled(laboratory, kind, small_size))
            large = await stack.enter_async_context(_filled(laboratory, kind, large_size))
            for user in (GROWING_USER, STEADY_USER):
                laboratory.say(f"listing: {kind}, user {user}")
                pace = laboratory.pace if laboratory.quick else PACE
                compared = await compare(listing(small, user), listing(large, user), pace)
                ratio = _ratio(compared)
                rows.append((f"{kind}, user {user}", *(f"{1000 * p50:.2f}" for p50 in _p50s(compared)), f"{ratio:.2f}"))
                result.figures[f"listing/{kind.lower()}/{user}/ratio"] = ratio
            plans.append((kind, await plan_of(kind, large.run)))
            rows.append(await _besides(kind, small, large))
    columns = ("user", f"among {small_size:,} ms", f"among {large_size:,} ms", "ratio")
    note = (
        f"The newest {LIMIT} threads, p50 of a call through the manager; every thread has 20 checkpoints. A fifth of "
        "all threads is the growing user's; the steady one has 100, the oldest, in both databases."
    )
    result.tables.append(Table("Listing the threads of one user", columns, rows, note))
    result.tables.append(Table("The plan among the most checkpoints", ("database", "plan"), plans))
    result.tables.append(await measure_writes(laboratory, result))
    return result


def listing(place: Place, user: str) -> Work:
    """One caller lists the user's newest threads again and again."""

    async def call(seconds: list[float], repeats: int) -> None:
        for _ in range(repeats):
            started_at = time.perf_counter()
            found = await place.manager.list_threads(user_id=user, limit=LIMIT)
            seconds.append(time.perf_counter() - started_at)
            if len(found) != LIMIT or any(thread["user_id"] != user for thread in found):
                raise RuntimeError(f"these are not the newest threads of {user}: {found}")

    def prepare(repeats: int) -> list[Caller]:
        return [lambda seconds: call(seconds, repeats)]

    return prepare


async def plan_of(kind: str, run: Run) -> str:
    """How the database finds a user's newest checkpoints."""
    if kind == "SQLite":
        text = sqlite_directory.FIRST_NAMING_SQL.replace("?", f"'{GROWING_USER}'", 1).replace("?", str(4 * LIMIT), 1)
        return "\n".join(str(row[3]) for row in await run(f"EXPLAIN QUERY PLAN {text}"))
    await run("SET enable_bitmapscan = off")  # as the listing does it for its own transaction
    text = postgres_directory.FIRST_NAMING_SQL % {"user_id": f"'{GROWING_USER}'", "limit": 4 * LIMIT}
    return "\n".join(str(row[0]) for row in await run(f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) {text}"))


async def _besides(kind: str, small: Place, large: Place) -> tuple[str, ...]:
    """All threads, of whichever user: of each the newest checkpoint is looked at."""
    times = []
    for place in (small, large):
        started_at = time.perf_counter()
        await place.manager.list_threads(limit=LIMIT)
        times.append(time.perf_counter() - started_at)
    return f"{kind}, all users", *(f"{1000 * seconds:.2f}" for seconds in times), f"{times[1] / times[0]:.1f}"


@asynccontextmanager
async def _filled(laboratory: Laboratory, kind: str, checkpoints: int) -> AsyncIterator[Place]:
    laboratory.say(f"listing: {checkpoints:,} checkpoints in {kind}")
    async with _opened(laboratory, kind) as (place, fill):
        await fill(checkpoints)
        yield place


@asynccontextmanager
async def _opened(laboratory: Laboratory, kind: str) -> AsyncIterator[tuple[Place, Callable[[int], Awaitable[None]]]]:
    """A fresh database with a manager on it, and what fills it."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(laboratory.folder())
        if kind == "SQLite":
            path = folder / "checkpoints.sqlite"

            async def fill_file(checkpoints: int) -> None:
                fill_sqlite(path, checkpoints)

            config = create_sqlite_checkpointer(path, journal_dir=folder / "journal")
            yield Place(await _manager(stack, config), lambda text: _run_sqlite(path, text)), fill_file
            return
        database = await stack.enter_async_context(laboratory.database())
        connection = await stack.enter_async_context(laboratory.connect(database))

        async def run(text: str) -> list[Any]:
            cursor = await connection.execute(text.encode())
            return await cursor.fetchall() if cursor.description else []

        config = create_postgres_checkpointer(laboratory.url(database), journal_dir=folder / "journal")
        yield Place(await _manager(stack, config), run), lambda checkpoints: fill_postgres(connection, checkpoints)


async def _manager(stack: AsyncExitStack, config: CheckpointerConfig) -> EnhancedCheckpointerManager:
    return await stack.enter_async_context(EnhancedCheckpointerManager(config))


async def _run_sqlite(path: Path, text: str) -> list[Any]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(text).fetchall()


async def measure_writes(laboratory: Laboratory, result: Result) -> Table:
    """The same writes with the index and without it, in pairs; every checkpoint names one of a thousand users."""
    rows = []
    for kind, index in (("PostgreSQL", postgres_index.INDEX), ("SQLite", sqlite_index.INDEX)):
        for callers in QUICK_CALLERS if laboratory.quick else CALLERS:
            laboratory.say(f"listing: writes to {kind} by {callers}")
            async with _opened(laboratory, kind) as (without, _), _opened(laboratory, kind) as (having, _):
                await without.run(f"DROP INDEX {index}")
                bare, ours = (writing_of_users(saver_of(place.manager), callers) for place in (without, having))
                compared = await compare(bare, ours, laboratory.pace if laboratory.quick else WRITE_PACE)
            sides = (f"{side.per_second:,.0f}" for side in (compared.bare, compared.ours))
            ratios = f"{compared.ratio:.3f} ({min(compared.ratios):.2f} to {max(compared.ratios):.2f})"
            cpu = f"{compared.bare.cpu_per_thousand:.3f}, {compared.ours.cpu_per_thousand:.3f}"
            rows.append((f"{kind}, {callers}", *sides, ratios, cpu))
            result.figures[f"listing/{kind.lower()}/writes/{callers}/ratio"] = compared.ratio
    columns = (
        "database, callers",
        "without per s",
        "with it per s",
        "ratio (lowest to highest pair)",
        "CPU s per 1,000",
    )
    note = "Steps of one put and one put_writes. CPU: this process's, without the index and with it."
    return Table("What the index costs writes", columns, rows, note)


def writing_of_users(saver: Saver, callers: int) -> Work:
    """Each caller writes to a conversation of its own, of a user of its own."""
    conversations = [Conversation(State()) for _ in range(callers)]

    def prepare(repeats: int) -> list[Caller]:
        return [
            _writer(saver, one, f"user-{37 * number % 1000}", one.prepare(repeats))
            for number, one in enumerate(conversations)
        ]

    return prepare


def _writer(saver: Saver, conversation: Conversation, user: str, steps: list[Step]) -> Caller:
    async def call(seconds: list[float]) -> None:
        config = conversation.config
        for step in steps:
            started_at = time.perf_counter()
            metadata = cast("Any", {**step.metadata, "user_id": user})
            config = await saver.aput(config, step.checkpoint, metadata, step.new_versions)
            await saver.aput_writes(config, step.writes, step.task_id)
            seconds.append(time.perf_counter() - started_at)
        conversation.config = config

    return call


def _p50s(compared: Comparison) -> tuple[float, float]:
    return compared.bare.p50, compared.ours.p50


def _ratio(compared: Comparison) -> float:
    """How many times as long the call takes among the most checkpoints: the median over the pairs of rounds."""
    pairs = zip(compared.bare.rounds, compared.ours.rounds, strict=True)
    return statistics.median(
        statistics.median(large.seconds) / statistics.median(small.seconds) for small, large in pairs
    )


if __name__ == "__main__":
    from benchmarks.__main__ import main

    sys.argv[1:1] = ["--only", "listing"]
    main()
