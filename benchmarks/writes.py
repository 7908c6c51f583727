"""One put and one put_writes per step, 20 messages of state, by 1 to 5,000 callers, on loopback and 2 ms away."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime

from benchmarks.laboratory import LOOPBACK, WAYS, Laboratory, Result, Table
from benchmarks.rounds import Comparison, compare
from benchmarks.savers import Pair
from benchmarks.workload import State, writing

CALLERS = (1, 16, 64, 256, 1_000, 5_000)
QUICK_CALLERS = (1, 16)
CROWDED_FROM = 16
"""From so many callers on the slowest of our calls is held against a middling one of the bare saver."""

TIMING = (
    *("bare per s", "ours per s", "ratio (lowest to highest pair)"),
    *("bare p50, p99 ms", "ours p50, p99 ms", "CPU s per 1,000: bare, ours"),
)
COLUMNS = ("callers", *TIMING, "our p99 below bare p50", "connections")

# A session that a probe has opened in between is not one of those that write.
BUSY_SESSIONS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = %s AND application_name LIKE 'enhanced-checkpointing%%'
    AND backend_start < %s AND state_change >= %s
"""


@dataclass
class Watch:
    """Looks, before and after each of our rounds, how many connections it used and whether all went well."""

    laboratory: Laboratory
    pair: Pair
    database: str
    connections: int = 0
    stayed_healthy: bool = True
    _began: datetime | None = field(default=None, init=False)

    async def before(self) -> None:
        async with self.laboratory.connect("postgres") as connection:
            row = await (await connection.execute("SELECT clock_timestamp()")).fetchone()
        self._began = row[0] if row else None

    async def after(self) -> None:
        self.stayed_healthy = self.stayed_healthy and self.pair.healthy
        async with self.laboratory.connect("postgres") as connection:
            cursor = await connection.execute(BUSY_SESSIONS, (self.database, self._began, self._began))
            row = await cursor.fetchone()
        self.connections = max(self.connections, int(row[0]) if row else 0)
        await self.pair.recover()


async def measure(laboratory: Laboratory) -> Result:
    result = Result()
    connections = 0
    all_callers = QUICK_CALLERS if laboratory.quick else CALLERS
    for way in WAYS:
        rows = []
        async with laboratory.postgres_pair(way) as (pair, database):
            for callers in all_callers:
                laboratory.say(f"writes, {way}, {callers:,} callers")
                watch = Watch(laboratory, pair, database)
                comparison = await compare_writes(laboratory, pair, callers, State(), watch)
                rows.append((f"{callers:,}", *row_of(comparison, watch)))
                note_figures(result, f"writes/{way}/{callers}", comparison, watch)
                connections = max(connections, watch.connections)
        result.tables.append(Table(f"Writes to PostgreSQL, {away(way)}", COLUMNS, rows))
    result.figures["writes/connections"] = connections
    crowded = [
        result.figures[f"writes/{LOOPBACK}/{callers}/p99_to_bare_p50"]
        for callers in all_callers
        if callers >= CROWDED_FROM
    ]
    result.figures["writes/crowded_p99_to_bare_p50"] = math.nan if any(map(math.isnan, crowded)) else max(crowded)
    return result


async def compare_writes(
    laboratory: Laboratory, pair: Pair, callers: int, state: State, watch: Watch | None = None
) -> Comparison:
    bare, ours = writing(pair.bare, callers, state), writing(pair.ours, callers, state)
    if watch is None:
        return await compare(bare, ours, laboratory.pace)
    return await compare(bare, ours, laboratory.pace, before_ours=watch.before, after_ours=watch.after)


def note_figures(result: Result, name: str, comparison: Comparison, watch: Watch) -> None:
    """Figures that the journal took part in are not numbers: they compare nothing."""
    factor = 1.0 if watch.stayed_healthy else math.nan
    result.figures |= {
        f"{name}/ratio": comparison.ratio * factor,
        f"{name}/bare_per_second": comparison.bare.per_second,
        f"{name}/our_per_second": comparison.ours.per_second,
        f"{name}/p99_to_bare_p50": comparison.ours.p99 / comparison.bare.p50 * factor,
    }


def row_of(comparison: Comparison, watch: Watch) -> tuple[str, ...]:
    below = "yes" if comparison.ours.p99 < comparison.bare.p50 else "no"
    return (
        *timing(comparison),
        below if watch.stayed_healthy else "went to the journal",
        str(watch.connections),
    )


def timing(comparison: Comparison) -> tuple[str, ...]:
    """The cells of `TIMING`."""
    bare, ours, ratios = comparison.bare, comparison.ours, comparison.ratios
    return (
        *(f"{side.per_second:,.0f}" if side.per_second >= 100 else f"{side.per_second:.1f}" for side in (bare, ours)),
        f"{comparison.ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        *(f"{1000 * side.p50:,.2f}, {1000 * side.p99:,.2f}" for side in (bare, ours)),
        f"{bare.cpu_per_thousand:.2f}, {ours.cpu_per_thousand:.2f}",
    )


def away(way: str) -> str:
    return "on loopback" if way == LOOPBACK else f"{way} of round trip away"
