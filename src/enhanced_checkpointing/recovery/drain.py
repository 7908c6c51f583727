"""What waits in the journal goes to the recovered primary: each thread in order, the threads as they come due."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import accumulate, takewhile
from typing import Any

from enhanced_checkpointing.errors import (
    CheckpointCorruptionError,
    CheckpointUnavailableError,
    JournalFullError,
    quoted,
    redact,
)
from enhanced_checkpointing.journal.api import UNKNOWN, Journal, JournalEntry, JournalRecord
from enhanced_checkpointing.observability.events import (
    ConfigurationFault,
    DeadLettered,
    Notice,
    ThreadDrained,
)
from enhanced_checkpointing.operations import DeleteThread, Operation, Put
from enhanced_checkpointing.recovery.divergence import (
    Branches,
    DrainCalls,
    Target,
    heads_to_grow_from,
    is_mark,
    moved_to,
)
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.resilience.failures import CallFailed, FailureKind
from enhanced_checkpointing.saver.core import Core

CHUNK = 4
CHUNK_BYTES = 1024 * 1024
"""Records, and bytes of them, that are read, applied and marked together: one commit, and one sync of the journal."""

LOOK_AHEAD = 64
"""Records that may have been committed by a first try whose reply was lost: those that were on their way together."""

GIVE_WAY_SECONDS = 0.01
GLANCE_SECONDS = 0.001
"""How long a drain waits at most, after each commit, for a moment without live calls, and how often it looks."""


class Drain(Enum):
    """How the draining of one thread ended."""

    DRAINED = "drained"
    PAUSED = "paused"
    """The primary could not take it now: nothing else is tried before a pause."""
    FENCED = "waiting for a lost session"
    """A session that a write was left behind on still lives: only this thread waits."""
    UNREADABLE = "waiting for types"
    """Its values would be stored as something else: only this thread waits."""
    FROZEN = "frozen"


@dataclass(slots=True)
class _Progress:
    """Of the drain of one thread: how many operations it has replayed."""

    operations: int = 0


class Replay:
    """Drains threads, one call of `drain` for each; the same thread never twice at a time.

    `on_drained` hears of each thread of which nothing is left in the journal; `live_calls` tells how many calls of
    users are under way, which go first.
    """

    def __init__(
        self,
        core: Core,
        calls: DrainCalls,
        branches: Branches,
        journal: Journal,
        *,
        on_drained: Callable[[str], None],
        live_calls: Callable[[], int],
    ) -> None:
        self._backend = core.backend
        self._calls = calls
        self._branches = branches
        self._journal = journal
        self._standby = core.standby
        self._telemetry = core.telemetry
        self._on_drained = on_drained
        self._live_calls = live_calls
        self._clock = core.clock
        self._forked: set[str] = set()
        """Threads of which the primary has a branch that the warm copy lacks; until they are drained."""
        self._unreadable: set[str] = set()
        """Threads that wait for types, so that each is told of once."""
        self.operations = 0
        """Operations replayed so far."""
        self.dead_letters = 0

    async def drain(self, thread_id: str) -> Drain:
        """Bring to the primary what the journal holds of a thread, as far as the primary takes it now."""
        started_at, begun, progress = time.time(), self._clock(), _Progress()
        outcome = Drain.PAUSED
        try:
            outcome = await self._replay(thread_id, progress)
        except CallFailed as failed:
            if failed.kind is FailureKind.CONFIGURATION:
                fault = ConfigurationFault(self._backend.name, redact(failed.error), failed.failure.fix)
                self._telemetry.emit(fault)
        except CheckpointCorruptionError:
            outcome = Drain.FROZEN  # the journal has said why
        except (CheckpointUnavailableError, JournalFullError):
            outcome = Drain.PAUSED  # what the primary has could not be marked; it is applied again
        finally:
            seconds = self._clock() - begun
            self._telemetry.emit(
                ThreadDrained(self._backend.name, thread_id, started_at, seconds, progress.operations, outcome.value)
            )
        return outcome

    async def _replay(self, thread_id: str, progress: _Progress) -> Drain:
        """Replay a thread's records, oldest first, until none is left.

        The thread goes back to the primary by itself: it is on the journal just as long as the journal holds it.

        Raises:
            CallFailed: the primary could not take a record now; it stays where it is.
        """
        if not await self._calls.fence(thread_id):
            return Drain.FENCED
        target: Target | None = None
        moved = False
        while not self._journal.is_frozen(thread_id) and (entries := self._next_entries(thread_id)):
            records = await self._journal.read(entries)
            if lost := {name for record in records for name in self._lost_types(record.operation)}:
                self._tell_lost(thread_id, lost)
                return Drain.UNREADABLE
            if isinstance(records[0].operation, DeleteThread):
                await self._replay_deletion(records[0], progress)
                target = None  # what is behind it grew from an empty thread, which is looked at anew
                continue
            if target is not None and not await self._branches.still_fits(target):
                moved, target = True, None
            target = target or await self._branches.target(thread_id, moved=moved)
            if self._journal.redirected(thread_id) is not None:
                self._forked.add(thread_id)
            if await self._replay_some(records, target, progress):
                target = self._after(target, entries)
            else:
                moved, target = True, None
        if self._journal.is_frozen(thread_id):
            return Drain.FROZEN
        if thread_id in self._forked:
            self._forked.discard(thread_id)
            self._standby.forget(thread_id)  # the warm copy lacks the other branch
        self._unreadable.discard(thread_id)
        self._standby.release(thread_id)
        self._on_drained(thread_id)
        return Drain.DRAINED

    def _lost_types(self, operation: Operation) -> Collection[str]:
        return () if isinstance(operation, Put) and operation.annotated else self._backend.lost_types(operation)

    def _tell_lost(self, thread_id: str, types: Collection[str]) -> None:
        if thread_id in self._unreadable:
            return
        self._unreadable.add(thread_id)
        what = f"thread {quoted(thread_id)} waits in the journal: {self._backend.name} takes live values, and the"
        names = ", ".join(sorted(types))
        lost = f"serializer does not make objects of {names}: they would be stored as plain data for good."
        fix = "Compile the graph that they belong to, or add the types to allowed_msgpack_modules"
        self._telemetry.emit(Notice("WARNING", f"{what} {lost} {fix}"))

    def _next_entries(self, thread_id: str) -> Sequence[JournalEntry]:
        """The oldest records of a thread, as many as are applied and marked together; a deletion is by itself."""
        entries = self._journal.entries(thread_id, CHUNK)
        sizes = accumulate(entry.size for entry in entries)
        before_deletion = takewhile(lambda entry: entry.name != DeleteThread.name, entries)
        return entries[: max(1, min(sum(size <= CHUNK_BYTES for size in sizes), len(list(before_deletion))))]

    async def _replay_some(self, records: Sequence[JournalRecord], target: Target, progress: _Progress) -> bool:
        """Apply these records in their order upon the heads of their target, and mark what the primary took.

        One mark stands for all of them: until it is durable the thread is held, and a process that dies before
        leaves them to be applied again, all of them in the same order, which changes nothing.

        False: somebody else has moved one of those heads since they were looked at.
        """
        try:
            operations = [moved_to(one, target.thread_id) for one in await self._with_marks_made(records, target)]
            if operations and not await self._calls.apply_upon(target.heads, operations):
                return False
        except CallFailed as failed:
            if not failed.at_fault:
                raise
            if len(records) > 1:
                return await self._replay_each(records, target, progress)
            await self._bury(records[0], failed)
        else:
            await self._mark(records, progress)
        await self._let_live_calls_pass()
        return True

    async def _with_marks_made(self, records: Sequence[JournalRecord], target: Target) -> Sequence[Operation]:
        """What is to be applied of these records. A mark changes the metadata of its checkpoint alone: here, of one
        among them; of one in the primary, there."""
        wanted: dict[tuple[str, ...], Operation] = {}
        for number, record in enumerate(records):
            operation = self._backend.from_journal(record.operation)
            key: tuple[str, ...] = (str(number),)
            if isinstance(operation, Put):
                key = operation.checkpoint_ns, operation.checkpoint_id
                own = wanted.get(key)
                if operation.annotated:
                    if isinstance(own, Put):
                        wanted[key] = replace(own, metadata=operation.metadata)
                    else:
                        metadata: Mapping[str, Any] = operation.metadata
                        changes = {name: metadata[name] for name in operation.annotated}
                        await self._calls.annotate(target.thread_id, operation.checkpoint_id, changes)
                    continue
                # Of an older release, which puts all of a checkpoint once more: not one that others have deleted since.
                if own is None and is_mark(record.entry) and await self._calls.find(target.thread_id, *key) is None:
                    continue
            wanted[key] = operation
        return [*wanted.values()]

    async def _replay_each(self, records: Sequence[JournalRecord], target: Target, progress: _Progress) -> bool:
        """Apply records one by one, up to the one at which they failed together, which becomes a dead letter."""
        for record in records:
            if not await self._replay_some([record], target, progress):
                return False
            if self._journal.is_frozen(record.entry.thread_id):
                break
            target = self._after(target, [record.entry])
        return True

    def _after(self, target: Target, applied: Sequence[JournalEntry]) -> Target:
        """A target after records of its thread were put there: others may move its heads until the last one is. Once
        it is known that there are two branches, nothing more is looked for."""
        thread_id = applied[0].thread_id
        if self._journal.redirected(thread_id) is not None:
            return target
        return target.after(applied, self._journal.entries(thread_id, LOOK_AHEAD))

    async def _mark(self, records: Sequence[JournalRecord], progress: _Progress) -> None:
        await self._journal.mark_applied([record.entry for record in records])
        self.operations += len(records)
        progress.operations += len(records)

    async def _replay_deletion(self, record: JournalRecord, progress: _Progress) -> None:
        """Delete a thread, and what was put into its sibling; but not what somebody else has written to it since."""
        entry, operation = record.entry, record.operation
        target = self._journal.redirected(entry.thread_id)
        found_head: str | None = None
        try:
            if target is not None and target != entry.thread_id:
                await self._calls.apply(moved_to(operation, target))
            deleted = await self._delete(record, forked=target is not None)
            if not deleted:
                found_head = await self._calls.head_if_readable(entry.thread_id)
        except CallFailed as failed:
            if not failed.at_fault:
                raise
            await self._bury(record, failed)
            return
        await self._mark([record], progress)
        if not deleted:
            self._forked.add(entry.thread_id)
            expected_head = None if entry.base_head is UNKNOWN else entry.base_head
            self._branches.deletion_spared(entry.thread_id, expected_head, found_head)

    async def _delete(self, record: JournalRecord, *, forked: bool) -> bool:
        """Delete the thread that was meant, unless there is more in it now than whoever deleted it could know of."""
        entry, operation = record.entry, record.operation
        if entry.base_head is UNKNOWN:
            await self._calls.apply(operation)
            return True
        if forked:
            return False
        heads = heads_to_grow_from(self._journal.entries(entry.thread_id), {"": entry})
        if self._backend.compares_heads:
            return await self._calls.apply_upon(heads, [operation])
        if await self._calls.head_if_readable(entry.thread_id) not in heads[""]:
            return False
        await self._calls.apply(operation)
        return True

    async def _let_live_calls_pass(self) -> None:
        """Live calls first, but not for ever."""
        until = self._clock() + GIVE_WAY_SECONDS
        await asyncio.sleep(0)
        while self._live_calls() and self._clock() < until:  # noqa: ASYNC110  # what is waited for signals nothing
            await asyncio.sleep(GLANCE_SECONDS)

    async def _bury(self, record: JournalRecord, failed: CallFailed) -> None:
        error = redact(failed.error)
        await self._journal.dead_letter(record.entry, error)
        self.dead_letters += 1
        operation = record.operation
        self._telemetry.emit(DeadLettered(self._backend.name, operation.thread_id, operation.name, error))


SHORTEST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
"""Seconds between passes while the primary takes calls but refuses to be drained."""


class Reconciler:
    """The only one who writes to the primary on behalf of a thread that the journal holds."""

    def __init__(
        self,
        core: Core,
        journal: Journal,
        *,
        on_drained: Callable[[], None],
        on_quarantined: Callable[[str], None] = lambda _: None,
        on_thread_drained: Callable[[str], None] = lambda _: None,
        live_calls: Callable[[], int] = lambda: 0,
    ) -> None:
        self._concurrency = core.config.drain_concurrency
        self._breaker = core.breaker
        self._journal = journal
        self._on_drained = on_drained
        self._clock = core.clock
        calls = DrainCalls(core)
        self._branches = Branches(core, calls, journal, on_quarantined)
        self._replay = Replay(core, calls, self._branches, journal, on_drained=on_thread_drained, live_calls=live_calls)
        self._woken = asyncio.Event()
        self._changed = asyncio.Event()
        self.before_drain: Callable[[str], Awaitable[bool]] = _nothing_first
        """Awaited before each drain of a thread; False: nothing may be drained now."""
        self._draining: dict[str, asyncio.Task[Drain]] = {}

    @property
    def drained(self) -> int:
        """Operations replayed so far."""
        return self._replay.operations

    @property
    def dead_letters(self) -> int:
        """Operations so far that the primary refused for good."""
        return self._replay.dead_letters

    @property
    def divergences(self) -> int:
        """Threads of which the primary had another branch so far."""
        return self._branches.diverged

    def wake(self) -> None:
        """There is something to drain, or the primary is back: whoever closes the breaker wakes again."""
        if not self._breaker.is_open:
            self._woken.set()

    async def run(self) -> None:
        """Drain for ever, whenever there is something to drain and the primary takes calls."""
        pause = SHORTEST_PAUSE
        while True:
            pause = await self._drain_once(pause)

    async def _drain_once(self, pause: float) -> float:
        """Drain as soon as there is a reason to; returns the pause after the next time that something stays behind."""
        if self._breaker.is_open or not self._journal.anything_waits():
            if not await self._is_woken():
                return SHORTEST_PAUSE
            pause = SHORTEST_PAUSE
        if await self.drain_all() or self._breaker.is_open:
            return SHORTEST_PAUSE
        await asyncio.sleep(pause)
        return min(2 * pause, LONGEST_PAUSE)

    async def _is_woken(self) -> bool:
        """Wait until somebody wakes this one, but not for ever: a record that its disk took too late for its caller is
        stored without anybody telling."""
        woken = asyncio.ensure_future(self._woken.wait())
        try:
            await asyncio.wait({woken}, timeout=LONGEST_PAUSE)
        finally:
            woken.cancel()
        was_woken = self._woken.is_set()
        self._woken.clear()
        return was_woken

    async def drain_all(self) -> bool:
        """Drain what waits now, several threads at a time, oldest first; True when nothing is left waiting."""
        waiting = iter(self._journal.waiting_threads())
        await asyncio.gather(*(self._drain_each(waiting) for _ in range(self._concurrency)))
        done = not self._breaker.is_open and not self._journal.anything_waits()
        if done:
            self._on_drained()
        return done

    async def drain_first(self, thread_id: str, deadline: Deadline) -> bool:
        """Drain one thread ahead of the others, for a read that waits; True when the journal holds nothing of it."""
        if not self._breaker.is_open:
            await deadline.wait_for(self._start(thread_id))
        return not self._journal.holds(thread_id)

    async def wait_drained(self, timeout: float) -> bool:
        """Wait until nothing waits to be drained; False when `timeout` seconds were over before, or a thread froze."""
        deadline = Deadline(self._clock, timeout)
        while self._draining or self._journal.anything_waits():
            self._changed.clear()
            changed = asyncio.ensure_future(self._changed.wait())
            try:
                if not await deadline.wait_for(changed):
                    return False
            finally:
                changed.cancel()
        return self._journal.status().pending == 0 and not self._journal.status().frozen_threads

    async def undrained(self, thread_id: str) -> None:
        """Return at a moment when a thread is not being drained."""
        while (draining := self._draining.get(thread_id)) is not None:
            await asyncio.wait({draining})

    async def close(self) -> None:
        """End drains under way; a record that is just being replayed stays in the journal and is replayed again."""
        draining = list(self._draining.values())
        for task in draining:
            task.cancel()
        if draining:
            await asyncio.wait(draining)

    async def _drain_each(self, waiting: Iterator[str]) -> None:
        for thread_id in waiting:
            if self._breaker.is_open or await asyncio.shield(self._start(thread_id)) is Drain.PAUSED:
                return

    def _start(self, thread_id: str) -> asyncio.Task[Drain]:
        """Drain a thread once, however many ask for it at the same time."""
        task = self._draining.get(thread_id)
        if task is None:
            task = asyncio.create_task(self._drain(thread_id), name=f"drain {thread_id}")
            self._draining[thread_id] = task
            task.add_done_callback(lambda _: self._ended(thread_id))
        return task

    async def _drain(self, thread_id: str) -> Drain:
        return await self._replay.drain(thread_id) if await self.before_drain(thread_id) else Drain.PAUSED

    def _ended(self, thread_id: str) -> None:
        del self._draining[thread_id]
        self._changed.set()


async def _nothing_first(_: str) -> bool:
    """By default a thread is drained as it is."""
    return True
