"""5,000 threads at once: whether all of it is there in the end, how long it took, and what memory it needed.

Each measurement has a process of its own, so that nothing else counts as its memory.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import re
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from benchmarks.laboratory import Laboratory, Result, Table
from benchmarks.rounds import percentile
from benchmarks.savers import our_postgres, saver_of
from benchmarks.workload import MESSAGES, State, write_threads, writing

THREADS = 5_000
STEPS = 2
CALLS = 2 * STEPS
WARM_THREADS = 2_000
QUICK_DIVISOR = 50
DRAIN_SECONDS = 120.0

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Crowd:
    """How it went; times in seconds, memory in bytes."""

    elapsed: float
    p50: float
    p99: float
    failures: list[str]
    memory_on_top: int
    through_the_journal: bool


async def measure(laboratory: Laboratory) -> Result:
    divisor = QUICK_DIVISOR if laboratory.quick else 1
    threads = THREADS // divisor
    laboratory.say(f"{threads:,} threads at once")
    async with laboratory.database() as database:
        with laboratory.folder() as folder:
            crowd = await _in_a_process(_let_all_go, laboratory.url(database), folder, threads)
        missing = 2 * threads * STEPS - await _rows(laboratory, database)
    laboratory.say("the memory of warm threads")
    async with laboratory.database() as database:
        with laboratory.folder() as folder:
            per_thread = await _in_a_process(_keep_warm, laboratory.url(database), folder, WARM_THREADS // divisor)
    mebibytes = crowd.memory_on_top / 2**20
    rows = [
        ("threads, each with a caller of its own", f"{threads:,}"),
        ("calls: put and put_writes by turns", f"{threads * CALLS:,}"),
        ("calls that failed", ", the first: ".join([f"{len(crowd.failures):,}", *crowd.failures[:1]])),
        ("rows that are missing in the end", f"{missing:,}"),
        ("calls per s", f"{threads * CALLS / crowd.elapsed:,.0f}"),
        ("p50, p99 ms", f"{1000 * crowd.p50:,.0f}, {1000 * crowd.p99:,.0f}"),
        ("memory on top at the highest, MiB", f"{mebibytes:,.1f}"),
        ("went through the journal", "some" if crowd.through_the_journal else "nothing"),
        ("memory of a warm thread, bytes", f"{per_thread:,.0f}"),
        (f"of that its {MESSAGES} messages, serialized, bytes", f"{_state_bytes():,}"),
    ]
    return Result(
        [Table("Many threads at once, on loopback", ("what", "ours"), rows)],
        {
            "crowd/missing": missing,
            "crowd/peak_mebibytes": mebibytes,
            "crowd/p99": crowd.p99,
            "crowd/bytes_per_warm_thread": per_thread,
        },
    )


def _let_all_go(url: str, folder: Path, threads: int) -> Crowd:
    return asyncio.run(_crowd(url, folder, threads))


async def _crowd(url: str, folder: Path, threads: int) -> Crowd:
    async with our_postgres(url, folder) as manager:
        saver = saver_of(manager)
        await write_threads(saver, 1, 1, State())  # connects
        callers = writing(saver, threads, State())(STEPS)
        seconds: list[float] = []
        before = _peak_memory()
        started_at = time.perf_counter()
        outcomes = await asyncio.gather(*(caller(seconds) for caller in callers), return_exceptions=True)
        elapsed = time.perf_counter() - started_at
        through_the_journal = bool(manager.health_status["journal"]["pending"])
        on_top = _peak_memory() - before
        await manager.wait_drained(DRAIN_SECONDS)
    failures = [repr(outcome) for outcome in outcomes if outcome is not None]
    return Crowd(elapsed, percentile(seconds, 50), percentile(seconds, 99), failures, on_top, through_the_journal)


def _peak_memory() -> int:
    # Not `getrusage`: what that tells begins with the peak of the process that started this one.
    (peak,) = re.findall(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), flags=re.MULTILINE)
    return 1024 * int(peak)


async def _rows(laboratory: Laboratory, database: str) -> int:
    """Checkpoints and writes of the crowd's threads, which have at least two."""
    async with laboratory.connect(database) as connection:
        cursor = await connection.execute(
            "SELECT count(*) + (SELECT count(*) FROM checkpoint_writes) - 2 FROM checkpoints"
        )
        row = await cursor.fetchone()
    return int(row[0]) if row else 0


def _keep_warm(url: str, folder: Path, threads: int) -> float:
    return asyncio.run(_warm(url, folder, threads))


async def _warm(url: str, folder: Path, threads: int) -> float:
    """Bytes that one more thread costs which the standby knows."""
    async with our_postgres(url, folder) as manager:
        saver = saver_of(manager)
        await write_threads(saver, 64, 1, State())
        tracemalloc.start()
        await write_threads(saver, threads, 1, State())
        gc.collect()
        return tracemalloc.get_traced_memory()[0] / threads


def _state_bytes() -> int:
    messages = [State().message(number) for number in range(MESSAGES)]
    return len(JsonPlusSerializer().dumps_typed(messages)[1])


async def _in_a_process(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return await asyncio.wrap_future(executor.submit(function, *arguments, **named))
