"""The primaries without a server: writes to SQLite by 1 and 64 callers, and what a call costs on top of memory."""

from __future__ import annotations

import statistics

from benchmarks.laboratory import Laboratory, Result, Table
from benchmarks.rounds import Comparison, Side, compare, joined
from benchmarks.savers import memory_pair, sqlite_pair
from benchmarks.workload import State, reading, write_threads, writing
from benchmarks.writes import TIMING, compare_writes, timing

CALLERS = (1, 64)
QUICK_CALLERS = (1, 16)

SITTINGS = 6
"""How often both savers begin anew with SQLite: where their threads and files happen to come to lie makes a tenth of
the time of a lone call, for as long as they are open."""


async def measure(laboratory: Laboratory) -> Result:
    result = Result()
    await _sqlite(laboratory, result)
    await _memory(laboratory, result)
    return result


async def _sqlite(laboratory: Laboratory, result: Result) -> None:
    rows = []
    for count in QUICK_CALLERS if laboratory.quick else CALLERS:
        laboratory.say(f"writes, SQLite, {count} callers")
        sittings = []
        for _ in range(1 if laboratory.quick else SITTINGS):
            with laboratory.folder() as folder:
                async with sqlite_pair(folder) as pair:
                    sittings.append(await compare_writes(laboratory, pair, count, State()))
        comparison = joined(sittings)
        rows.append((str(count), *timing(comparison)))
        result.figures[f"embedded/sqlite/{count}/ratio"] = comparison.ratio
    result.tables.append(Table("Writes to SQLite", ("callers", *TIMING), rows))


async def _memory(laboratory: Laboratory, result: Result) -> None:
    """One caller; its calls are put and put_writes by turns, and then reads."""
    laboratory.say("calls, memory")
    async with memory_pair() as pair:
        works = writing(pair.bare, 1, State()), writing(pair.ours, 1, State())
        written = await compare(*works, laboratory.pace)
        bare = await write_threads(pair.bare, 1, 3, State())
        ours = await write_threads(pair.ours, 1, 3, State())
        read = await compare(reading(pair.bare, bare), reading(pair.ours, ours), laboratory.pace)
    rows, overheads = [], []
    for name, comparison, every in (
        ("aput", written, slice(0, None, 2)),
        ("aput_writes", written, slice(1, None, 2)),
        ("aget_tuple", read, slice(None)),
    ):
        bare_time, our_time = (_microseconds(side, every) for side in (comparison.bare, comparison.ours))
        overheads.append(_overhead(comparison, every))
        rows.append((name, f"{bare_time:,.0f}", f"{our_time:,.0f}", f"{overheads[-1]:,.0f}"))
        result.figures[f"embedded/memory/{name}"] = overheads[-1]
    result.figures["embedded/memory/overhead"] = max(overheads)
    columns = ("call", "bare p50 µs", "ours p50 µs", "on top, µs")
    note = "On top: the median over the pairs of rounds of the difference of their medians."
    result.tables.append(Table("Calls on memory, one caller", columns, rows, note))


def _microseconds(side: Side, every: slice) -> float:
    return 1e6 * statistics.median(statistics.median(one.seconds[every]) for one in side.rounds)


def _overhead(comparison: Comparison, every: slice) -> float:
    pairs = zip(comparison.bare.rounds, comparison.ours.rounds, strict=True)
    differences = (
        statistics.median(ours.seconds[every]) - statistics.median(bare.seconds[every]) for bare, ours in pairs
    )
    return 1e6 * statistics.median(differences)
