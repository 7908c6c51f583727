"""Listing a thread of 1,000 checkpoints, newest first, with `alist`."""

from __future__ import annotations

import time

from langchain_core.runnables import RunnableConfig

from benchmarks.laboratory import LOOPBACK, Laboratory, Result, Table
from benchmarks.rounds import compare
from benchmarks.workload import Caller, Saver, State, Work, write_threads
from benchmarks.writes import TIMING, timing

CHECKPOINTS = 1_000
QUICK_CHECKPOINTS = 20


def listing(saver: Saver, thread: RunnableConfig, expected: int) -> Work:
    async def call(seconds: list[float], repeats: int) -> None:
        for _ in range(repeats):
            started_at = time.perf_counter()
            found = [one async for one in saver.alist(thread)]
            seconds.append(time.perf_counter() - started_at)
            if len(found) != expected:
                raise RuntimeError(f"{len(found)} checkpoints were listed instead of {expected}")

    def prepare(repeats: int) -> list[Caller]:
        return [lambda seconds: call(seconds, repeats)]

    return prepare


async def measure(laboratory: Laboratory) -> Result:
    count = QUICK_CHECKPOINTS if laboratory.quick else CHECKPOINTS
    laboratory.say(f"a history of {count:,} checkpoints")
    async with laboratory.postgres_pair(LOOPBACK) as (pair, _):
        (bare,) = await write_threads(pair.bare, 1, count, State())
        (ours,) = await write_threads(pair.ours, 1, count, State())
        works = listing(pair.bare, bare, count), listing(pair.ours, ours, count)
        comparison = await compare(*works, laboratory.pace)
    row = (f"{count:,}", *timing(comparison))
    return Result(
        [Table("Listing a whole history, one caller, on loopback", ("checkpoints", *TIMING), [row])],
        {"history/ratio": comparison.ratio, "history/our_seconds": comparison.ours.p50},
    )
