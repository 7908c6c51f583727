"""Moves every thread of one database into another, several at a time, and tells what became of each.

Threads are taken in the order of the source's ids. Each is compared with what the target has of it, whether it was
moved now or earlier: so a migration that ends well has seen that all are the same, however often it was killed before
and whatever the source has got meanwhile. What it holds in memory does not grow with either.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field

from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_exponential

from enhanced_checkpointing.backends.contract import Backend
from enhanced_checkpointing.errors import CheckpointerError, redact
from enhanced_checkpointing.resilience.failures import FailureKind
from enhanced_checkpointing.threads.contents import Count
from enhanced_checkpointing.threads.moving import Mover, Orders, Outcome, Report, SideFailed, Source, side

PAGE = 1000
"""Ids that are asked for at once."""
CONCURRENCY = 4
TRIES = 6
LONGEST_PAUSE = 8.0
"""Seconds between two tries. A migration gives up what has failed for about a quarter of a minute."""
PROBLEMS_KEPT = 1000
"""Threads that are named in the end; all are counted."""

MAY_PASS = frozenset({FailureKind.TRANSIENT, FailureKind.UNKNOWN, FailureKind.OUTAGE, FailureKind.SATURATED})

MOVE_WHAT_IS_MISSING = Orders()

Tell = Callable[[Report], None]


class MigrationStopped(CheckpointerError):
    """A database failed for so long that the migration gave up; running it again goes on where it was."""


@dataclass
class Tally:
    """What became of all threads."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    count: Count = field(default_factory=Count)
    """Of the threads that are the same on both sides."""
    written: int = 0
    """Bytes."""
    problems: list[Report] = field(default_factory=list)
    seconds: float = 0.0
    """How long all of it took."""

    @property
    def threads(self) -> int:
        return self.outcomes.total()

    @property
    def complete(self) -> bool:
        """Whether the target has all that the source has."""
        return all(outcome.good for outcome in self.outcomes)

    @contextmanager
    def timed(self) -> Iterator[None]:
        began_at = time.monotonic()
        try:
            yield
        finally:
            self.seconds += time.monotonic() - began_at

    def add(self, report: Report) -> None:
        self.outcomes[report.outcome] += 1
        self.written += report.size
        if report.outcome.good:
            self.count.checkpoints += report.count.checkpoints
            self.count.writes += report.count.writes
        elif len(self.problems) < PROBLEMS_KEPT:
            self.problems.append(report)


async def migrate(
    source: Backend,
    target: Backend,
    orders: Orders = MOVE_WHAT_IS_MISSING,
    *,
    concurrency: int = CONCURRENCY,
    tell: Tell = lambda _: None,
) -> Tally:
    """Bring every thread of an open backend into another one; `tell` hears of each as it is done.

    Raises:
        MigrationStopped: one of the two cannot be used, or does not answer any more.
    """
    return await move_all(threads_of(source), target, orders, concurrency=concurrency, tell=tell)


async def count_threads(backend: Backend) -> int:
    """How many threads there are."""
    count = 0
    after: str | None = None
    while page := await _page(backend, after):
        count, after = count + len(page), page[-1]
    return count


async def threads_of(backend: Backend) -> AsyncGenerator[Source | Report, None]:
    """Every thread of a backend, in the order of the ids; what is added behind the last one read comes too."""
    after: str | None = None
    while page := await _page(backend, after):
        for thread_id in page:
            yield thread_of_backend(backend, thread_id)
        after = page[-1]


def thread_of_backend(backend: Backend, thread_id: str) -> Source:
    return Source(
        thread_id,
        lambda: backend.read_thread(thread_id),
        backend.serializer,
        backend.classify,
        backend.reads_everything,
    )


async def move_all(
    sources: AsyncGenerator[Source | Report, None],
    target: Backend,
    orders: Orders,
    *,
    concurrency: int = CONCURRENCY,
    tell: Tell = lambda _: None,
) -> Tally:
    """Move these threads, so many at a time. What cannot even be tried may be among them as a report of its own.

    Raises:
        MigrationStopped: one of the two databases cannot be used, or does not answer any more.
    """
    tally, mover, turn = Tally(), Mover(target, orders), asyncio.Lock()

    async def work() -> None:
        while True:
            async with turn:
                source = await anext(sources, None)
            if source is None:
                return
            report = source if isinstance(source, Report) else await _move(mover, source)
            tally.add(report)
            tell(report)

    try:
        with tally.timed():
            async with aclosing(sources), asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(work())
    except ExceptionGroup as several:
        raise several.exceptions[0] from None
    return tally


async def _move(mover: Mover, source: Source) -> Report:
    try:
        return await _patiently()(mover.move, source)
    except SideFailed as failed:
        if not failed.at_fault:
            raise stopped(failed) from failed
        return failure_of(source.thread_id, failed)
    finally:
        source.release()


def failure_of(thread_id: str, failed: SideFailed) -> Report:
    """The report of a thread that one side cannot read or does not take."""
    return Report(thread_id, Outcome.FAILED, reasons=(f"the {failed.side} fails on it: {_said(failed)}",))


async def _page(backend: Backend, after: str | None) -> Sequence[str]:
    async def ask() -> Sequence[str]:
        with side("source", backend.classify):
            return await backend.thread_ids(after, PAGE)

    try:
        return await _patiently()(ask)
    except SideFailed as failed:
        raise stopped(failed) from failed


def _patiently() -> AsyncRetrying:
    """Tries again what fails for a moment: reading changes nothing, and writing the same again does not either."""
    return AsyncRetrying(
        retry=retry_if_exception(lambda error: isinstance(error, SideFailed) and error.kind in MAY_PASS),
        stop=stop_after_attempt(TRIES),
        wait=wait_exponential(multiplier=0.25, max=LONGEST_PAUSE),
        reraise=True,
    )


def stopped(failed: SideFailed) -> MigrationStopped:
    """What is raised when a side cannot be used."""
    fix = failed.failure.fix or "When it answers again, run the same command again: it goes on where it was."
    return MigrationStopped(f"The {failed.side} cannot be used: {_said(failed)}. {fix} What was moved stays.")


def _said(failed: SideFailed) -> str:
    return f"{type(failed.error).__name__}: {' '.join(redact(failed.error).split()).rstrip('.?')}"
