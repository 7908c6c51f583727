"""Two sides in turns: short rounds of the bare saver and of ours, so that whatever the machine does meets both."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.workload import Work


@dataclass(frozen=True)
class Pace:
    """How long to measure: pairs of rounds, seconds of a round, and seconds after which no further pair begins."""

    rounds: int
    seconds: float
    patience: float


@dataclass(frozen=True)
class Round:
    """What one round of one side came to; `seconds` are those of every call."""

    elapsed: float
    cpu: float
    seconds: list[float] = field(repr=False)

    @property
    def per_second(self) -> float:
        return len(self.seconds) / self.elapsed


@dataclass(frozen=True)
class Side:
    """The rounds of one side, each figure the median of them."""

    rounds: list[Round]

    @property
    def per_second(self) -> float:
        return statistics.median(one.per_second for one in self.rounds)

    @property
    def p50(self) -> float:
        """Seconds."""
        return statistics.median(statistics.median(one.seconds) for one in self.rounds)

    @property
    def p99(self) -> float:
        """Seconds."""
        return statistics.median(percentile(one.seconds, 99) for one in self.rounds)

    @property
    def cpu_per_thousand(self) -> float:
        """Seconds of this process's CPU time for 1,000 operations."""
        return statistics.median(1000 * one.cpu / len(one.seconds) for one in self.rounds)


@dataclass(frozen=True)
class Comparison:
    """The rounds of both sides; the n-th ones ran directly one after the other."""

    bare: Side
    ours: Side

    @property
    def ratios(self) -> list[float]:
        """How many times as many operations a second ours made, pair by pair."""
        pairs = zip(self.bare.rounds, self.ours.rounds, strict=True)
        return [ours.per_second / bare.per_second for bare, ours in pairs]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)


def joined(comparisons: Sequence[Comparison]) -> Comparison:
    """What several sittings came to, as if it had been one."""
    return Comparison(
        Side([one for comparison in comparisons for one in comparison.bare.rounds]),
        Side([one for comparison in comparisons for one in comparison.ours.rounds]),
    )


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest of `values` that `percent` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


async def _nothing() -> None:
    return None


async def compare(
    bare: Work,
    ours: Work,
    pace: Pace,
    *,
    before_ours: Callable[[], Awaitable[None]] = _nothing,
    after_ours: Callable[[], Awaitable[None]] = _nothing,
) -> Comparison:
    """Rounds of both in turns, the side that goes first alternating; the hooks stand outside the clock."""

    async def run_ours(repeats: int) -> Round:
        await before_ours()
        done = await run(ours, repeats)
        await after_ours()
        return done

    async def run_bare(repeats: int) -> Round:
        return await run(bare, repeats)

    ends_at = time.monotonic() + pace.patience
    sides = [await _find_repeats(run_bare, pace), await _find_repeats(run_ours, pace)]
    number = 0
    while number < pace.rounds and (number == 0 or time.monotonic() < ends_at):
        for side in sides if number % 2 else reversed(sides):
            if len(side.rounds) == number:  # else the first one is there already
                side.rounds.append(await side.run(side.repeats))
        number += 1
    return Comparison(*(Side(side.rounds) for side in sides))


@dataclass(frozen=True)
class _Pacing:
    """One side that knows how often each caller repeats its work so that a round takes its time."""

    run: Callable[[int], Awaitable[Round]]
    repeats: int
    rounds: list[Round]
    """Begins with the round that told `repeats`, unless that only warmed up."""


async def _find_repeats(run_side: Callable[[int], Awaitable[Round]], pace: Pace) -> _Pacing:
    repeats = 1
    for _ in range(2):
        trial = await run_side(repeats)
        wanted = max(1, round(repeats * pace.seconds / trial.elapsed))
        if wanted == repeats:
            return _Pacing(run_side, repeats, [trial])
        repeats = wanted
    return _Pacing(run_side, repeats, [])


async def run(work: Work, repeats: int) -> Round:
    """One round: prepare, clear up, start the clock, let all callers go, stop it when the last is done."""
    callers = work(repeats)
    seconds: list[float] = []
    gc.collect()
    gc.freeze()  # what is prepared is not to be searched for garbage while the clock runs
    cpu, started_at = time.process_time(), time.perf_counter()
    await asyncio.gather(*(caller(seconds) for caller in callers))
    elapsed, cpu = time.perf_counter() - started_at, time.process_time() - cpu
    gc.unfreeze()
    return Round(elapsed, cpu, seconds)
