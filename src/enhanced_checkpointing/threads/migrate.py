"""Moves threads from one database into another, several at a time, and tells what became of each.

A thread counts as moved when what was read of it and what the target has of it afterwards are the same. Nothing else is
remembered: a migration that was killed finds out by comparing again, and leaves alone what is there already. So one
that ends well has seen that all are the same, whatever the source has got meanwhile. What it holds in memory does not
grow with either.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeVar

from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_exponential

from enhanced_checkpointing.audit import NAMED
from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.backends.reading import Chunks
from enhanced_checkpointing.errors import CheckpointerError, redact
from enhanced_checkpointing.operations import DeleteThread, Operation, frozen_size
from enhanced_checkpointing.resilience.failures import CallFailed, Classify, Failure, FailureKind
from enhanced_checkpointing.serialization import SharingSerializer
from enhanced_checkpointing.threads.comparison import Comparison, compare
from enhanced_checkpointing.threads.contents import Count, Digest, Entry, Gathering, entries

T = TypeVar("T")

KEEPS = "it keeps what it has, unless it is told to overwrite the thread"


class Outcome(StrEnum):
    """What became of a thread; in a rehearsal, what would."""

    COPIED = "copied"
    """The target had nothing of it."""
    COMPLETED = "completed"
    """The target had a part of it, or surely an older state."""
    REPLACED = "replaced"
    """The target had something else, and was told to take this instead."""
    EQUAL = "equal"
    """The target had it already."""
    REFUSED = "refused"
    """The target has what the source does not have, or what may be newer there, and keeps it."""
    DIFFERENT = "different"
    """The two are not the same."""
    FAILED = "failed"
    """It cannot be read, or the target does not take it."""

    @property
    def good(self) -> bool:
        """Whether the target has what the source has."""
        return self not in (Outcome.REFUSED, Outcome.DIFFERENT, Outcome.FAILED)


@dataclass(frozen=True, slots=True)
class Orders:
    """What is wanted of a move."""

    overwrite: bool = False
    """Replace threads of which the target has something else."""
    rehearse: bool = False
    """Only find out what would be done."""
    compare_only: bool = False
    """Only find out what differs."""


@dataclass(frozen=True, slots=True)
class Source:
    """A thread that can be read any number of times."""

    thread_id: str
    read: Callable[[], Chunks]
    serializer: SharingSerializer
    classify: Classify
    reads_everything: bool
    release: Callable[[], None] = lambda: None
    """Called when it is read no more."""


@dataclass(frozen=True, slots=True)
class Report:
    """What became of one thread; `reasons` say why it is not good."""

    thread_id: str
    outcome: Outcome
    count: Count = field(default_factory=Count)
    size: int = 0
    """Bytes that were written."""
    reasons: tuple[str, ...] = ()


class SideFailed(CallFailed):
    """The source or the target failed; `side` says which."""

    def __init__(self, side: str, failure: Failure) -> None:
        super().__init__(failure)
        self.side = side


def decide(found: Comparison, orders: Orders) -> Outcome:
    """What to do with a thread of which the target has something. Pure."""
    if found.equal:
        return Outcome.EQUAL
    if orders.compare_only:
        return Outcome.DIFFERENT
    if orders.overwrite and (found.unknown or found.changed or found.contested):
        return Outcome.REPLACED
    return Outcome.REFUSED if found.unknown or found.contested else Outcome.COMPLETED


class Mover:
    """Moves threads into a target, one at a time or several."""

    def __init__(self, target: Backend, orders: Orders) -> None:
        self._target = target
        self._orders = orders

    async def move(self, source: Source) -> Report:
        """Move a thread.

        Raises:
            SideFailed: a database failed; what was written of the thread is right, and the next move completes it.
        """
        everything = source.reads_everything and self._target.reads_everything
        found = await self._compare(source, everything, unless_new=not self._orders.compare_only)
        outcome = Outcome.COPIED if found is None else decide(found, self._orders)
        if found is not None and outcome in (Outcome.EQUAL, Outcome.REFUSED, Outcome.DIFFERENT):
            return _reported(source, outcome, found)
        if self._orders.rehearse:
            return Report(source.thread_id, outcome)
        size, written = await self._write(source, afresh=outcome is Outcome.REPLACED, everything=everything)
        if await self._digest(source.thread_id, everything) != written.value():
            found = await self._compare(source, everything)
            assert found is not None
            if not found.equal:
                report = _reported(source, Outcome.DIFFERENT, found, size)
                return replace(report, reasons=(*report.reasons, KEEPS))
        return Report(source.thread_id, outcome, written.count, size)

    async def _compare(self, source: Source, everything: bool, *, unless_new: bool = False) -> Comparison | None:
        """What differs; None, without a look at the source, `unless_new` and the target has nothing of the thread."""
        theirs = self._in_target(source.thread_id)
        async with aclosing(theirs):
            first = await anext(theirs, None)
            if first is None and unless_new:
                return None
            ours = attributed("source", source.classify, entries(source.read(), source.serializer))
            async with aclosing(ours):
                return await compare(ours, _led_by(first, theirs), everything=everything)

    async def _write(self, source: Source, *, afresh: bool, everything: bool) -> tuple[int, Digest]:
        """Write all that is read; returns its size and its digest."""
        size, digest, gathering = 0, Digest(everything=everything), Gathering(source.serializer)
        before: list[Operation] = [DeleteThread(source.thread_id)] if afresh else []
        async with aclosing(attributed("source", source.classify, source.read())) as chunks:
            async for chunk in chunks:
                with side("target", self._target.classify):
                    await self._target.apply_all([*before, *chunk], {})
                before = []
                size += sum(map(frozen_size, chunk))
                with side("source", source.classify):
                    for operation in chunk:
                        digest.add(gathering.add(operation))
        digest.add(gathering.end())
        return size, digest

    async def _digest(self, thread_id: str, everything: bool) -> bytes:
        digest = Digest(everything=everything)
        async with aclosing(self._in_target(thread_id)) as found:
            async for entry in found:
                digest.add(entry)
        return digest.value()

    def _in_target(self, thread_id: str) -> AsyncGenerator[Entry, None]:
        target = self._target
        return attributed("target", target.classify, entries(target.read_thread(thread_id), target.serializer))


def _reported(source: Source, outcome: Outcome, found: Comparison, size: int = 0) -> Report:
    reasons = () if outcome.good else tuple(_explained(found, outcome))
    return Report(source.thread_id, outcome, found.source, size, reasons)


def _explained(found: Comparison, outcome: Outcome) -> Iterator[str]:
    yield f"the source has {found.source}, the target {found.target}"
    yield from found.examples
    if outcome is Outcome.REFUSED:
        went_on = "has gone on" if found.unknown else "may have gone on"
        yield f"the target {went_on} by itself, so nothing was changed; {KEEPS}"


async def attributed(name: str, classify: Classify, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """The same items; of an error among them it is said whose it is."""
    async with aclosing(items):
        while True:
            with side(name, classify):
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    return
            yield item


async def _led_by(first: Entry | None, others: AsyncGenerator[Entry, None]) -> AsyncGenerator[Entry, None]:
    if first is not None:
        yield first
    async for entry in others:
        yield entry


@contextmanager
def side(name: str, classify: Classify) -> Iterator[None]:
    """Say of an error whose it is."""
    try:
        yield
    except Exception as error:
        raise SideFailed(name, classify(error)) from error


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
    thread_ids: list[str] = field(default_factory=list)
    """As many as the audit trail names."""
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
        if report.thread_id and len(self.thread_ids) < NAMED:
            self.thread_ids.append(report.thread_id)
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
