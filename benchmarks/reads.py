"""`aget_tuple` on threads that exist, by 1 and by 64 callers, each with a thread of its own."""

from __future__ import annotations

from benchmarks.laboratory import WAYS, Laboratory, Result, Table
from benchmarks.rounds import compare
from benchmarks.workload import State, reading, write_threads
from benchmarks.writes import TIMING, away, timing

CALLERS = (1, 64)
QUICK_CALLERS = (1, 16)
STEPS = 3


async def measure(laboratory: Laboratory) -> Result:
    result, rows = Result(), []
    for way in WAYS:
        callers = QUICK_CALLERS if laboratory.quick else CALLERS
        async with laboratory.postgres_pair(way) as (pair, _):
            laboratory.say(f"threads to read, {way}")
            bare = await write_threads(pair.bare, max(callers), STEPS, State())
            ours = await write_threads(pair.ours, max(callers), STEPS, State())
            for count in callers:
                laboratory.say(f"reads, {way}, {count} callers")
                works = reading(pair.bare, bare[:count]), reading(pair.ours, ours[:count])
                comparison = await compare(*works, laboratory.pace)
                rows.append((f"{away(way)}, {count}", *timing(comparison)))
                result.figures[f"reads/{way}/{count}/ratio"] = comparison.ratio
                result.figures[f"reads/{way}/{count}/our_per_second"] = comparison.ours.per_second
    result.tables.append(Table("aget_tuple of PostgreSQL", ("callers", *TIMING), rows))
    return result
