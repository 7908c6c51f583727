"""Looks at every thread once, and retires what its policy says: a page at a time, in small steps, with rests between.

What is decided from a listing is decided again from the checkpoint itself, in the step that deletes it, so that nothing
is deleted that was written meanwhile.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple

from enhanced_checkpointing.audit import Notes
from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.backends.listing import THREAD_STATUS, TOUCHED_AT, ThreadHead
from enhanced_checkpointing.errors import CheckpointNotFoundError, CheckpointUnavailableError, listed, quoted, redact
from enhanced_checkpointing.journal.inspect import held_in
from enhanced_checkpointing.observability.events import Notice, Telemetry, ThreadRetired
from enhanced_checkpointing.resilience.breaker import Breaker, Clock
from enhanced_checkpointing.resilience.cooperative import in_thread_of_its_own
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.resilience.failures import NOT_STORED, CallFailed, cold, explained, unavailable
from enhanced_checkpointing.resilience.guard import Guard
from enhanced_checkpointing.saver.maintenance import Maintenance
from enhanced_checkpointing.saver.read_path import Engine
from enhanced_checkpointing.serialization import without_objects
from enhanced_checkpointing.standby.cache import Standby
from enhanced_checkpointing.threads.retention import (
    GONE_ON,
    IN_JOURNAL,
    YOUNG,
    Decision,
    Delete,
    Keep,
    Prune,
    RetentionPolicy,
    Sweep,
    Tell,
    ThreadState,
    UnderWay,
    decide,
    decide_again,
    told,
    wants_touch,
)

T = TypeVar("T")

PAGE = 500
LOOKED_AT_ONCE = 25
"""Threads whose ids, and whose heads, are asked for at once."""
DELETED_AT_ONCE = 5
"""Threads that go in one transaction, after which others have their turn."""
LONGEST_REST = 1.0
"""Seconds."""
REST, REST_PER_CALL = 4.0, 0.25
"""How long to rest after a step, in times of what it took: always, and more for each live call that is with the primary
then. A busy server makes steps, and so rests, longer, whatever keeps it busy."""
UNREADABLE_AT_ONCE = 25
"""Unreadable threads that are looked at after a probe."""
OWNER = "retention"
"""The name under which one of all processes sweeps."""


class Sweeper:
    """Sweeps for one manager, on its event loop."""

    def __init__(
        self,
        *,
        backend: Backend,
        maintenance: Maintenance,
        engine: Engine,
        marks: Marks,
        telemetry: Telemetry,
        policy: RetentionPolicy,
        journal_dir: Path | None,
        note: Notes,
        clock: Clock = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._backend = backend
        self._maintenance = maintenance
        self._engine = engine
        self._marks = marks
        self._telemetry = telemetry
        self._policy = policy
        self._clock = clock
        self.now = now
        """The time of day."""
        self._note = note
        self._journal_dir = journal_dir
        """Where other processes of this machine have their journals; None: there are none."""
        self._after: str | None = None
        """Where the last sweep that was to be resumed was stopped."""

    async def run(
        self,
        policy: RetentionPolicy | None = None,
        *,
        dry_run: bool = False,
        resume: bool = False,
        tell: Tell = lambda _: None,
    ) -> Sweep:
        """Sweep once; `tell` hears of each page. With `resume` it begins where the last such one was stopped."""
        sweep = UnderWay(policy or self._policy, dry_run, tell, self._clock)
        try:
            async with AsyncExitStack() as stack:
                if not dry_run:
                    sweep.sole = await self._alone(stack)
                if sweep.sole:
                    await self._touch(sweep)
                    await self._look_at_all(sweep, resume=resume)
        except CheckpointUnavailableError as error:
            sweep.stopped = _why(error, sweep)
        result = sweep.result()
        if not dry_run and (what := told(result)) is not None:
            self._telemetry.emit(Notice("WARNING" if result.failed else "INFO", what))
        return result

    async def _alone(self, stack: AsyncExitStack) -> bool:
        try:
            return await stack.enter_async_context(self._backend.sole(OWNER))
        except Exception as error:  # noqa: BLE001  # the backend says what it means
            failed = CallFailed(self._backend.classify(error))
        raise explained(failed, "retention cannot find out whether another process is at it")

    async def _look_at_all(self, sweep: UnderWay, *, resume: bool) -> None:
        after = self._after if resume else None
        while page := await self._ask(sweep, _page(after)):
            sweep.held_elsewhere = await self._held_elsewhere()
            for start in range(0, len(page), LOOKED_AT_ONCE):
                await self._look_at(sweep, page[start : start + LOOKED_AT_ONCE])
                after = page[min(start + LOOKED_AT_ONCE, len(page)) - 1]
                if resume:
                    self._after = after
                sweep.tell(sweep.result())
        self._after = None if resume else self._after

    async def _look_at(self, sweep: UnderWay, thread_ids: Sequence[str]) -> None:
        doomed: list[ThreadHead] = []
        long: list[ThreadHead] = []
        now, state_of = self.now(), self._states(sweep)
        for head in await self._ask(sweep, lambda one: one.describe(thread_ids)):
            sweep.looked_at += 1
            match decide(head, state_of(head.thread_id), sweep.policy, now):
                case Delete():
                    doomed.append(head)
                case Prune():
                    long.append(head)
                case Keep(reason):
                    sweep.kept[reason] += 1
        if doomed or long:  # while others were dealt with, one of these may have been journaled
            sweep.held_elsewhere = await self._held_elsewhere()
        for start in range(0, len(doomed), DELETED_AT_ONCE):
            await self._delete(sweep, doomed[start : start + DELETED_AT_ONCE])
        for head in long:
            await self._prune(sweep, head)

    # Deleting

    async def _delete(self, sweep: UnderWay, heads: Sequence[ThreadHead]) -> None:
        """Delete threads that look old, as far as they still are; those that cannot be read stay, and are counted."""
        try:
            decisions, gone = await self._deleted(sweep, heads)
        except CheckpointUnavailableError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever one of them has in it: it must not keep the others
            if len(heads) == 1:
                self._failed(sweep, heads[0], error)
                return
            for head in heads:
                await self._delete(sweep, [head])
            return
        if gone and not sweep.dry_run:
            await self._note("retention delete", threads=sorted(gone))
        for head in heads:
            decision = decisions.get(head.thread_id, GONE_ON)
            if head.thread_id in gone:
                sweep.deleted += 1
                sweep.checkpoints += head.checkpoints
                sweep.size += head.size
                self._retired(sweep, head, "deleted", decision.reason)
            else:
                sweep.kept[(decision if isinstance(decision, Keep) else GONE_ON).reason] += 1

    async def _deleted(
        self, sweep: UnderWay, heads: Sequence[ThreadHead]
    ) -> tuple[dict[str, Decision], frozenset[str]]:
        """What was decided when they were looked at once more, and which of them went."""
        by_id = {head.thread_id: head for head in heads}
        decisions: dict[str, Decision] = {}
        now, state_of = self.now(), self._states(sweep)

        def judge(thread_id: str, found: CheckpointTuple | None) -> bool:
            decided = decide_again(by_id[thread_id], found, state_of(thread_id), sweep.policy, now)
            decisions[thread_id] = decided
            return isinstance(decided, Delete)

        if sweep.dry_run:
            return decisions, frozenset([one for one in by_id if judge(one, await self._newest(sweep, one))])
        decisions.update({thread_id: IN_JOURNAL for thread_id in by_id if state_of(thread_id).journaled})
        free = [thread_id for thread_id in by_id if thread_id not in decisions]
        gone = await self._timed(
            sweep, lambda: self._maintenance.change(OWNER, free, lambda one: one.delete_if(free, judge))
        )
        return decisions, frozenset(gone)

    # Pruning

    async def _prune(self, sweep: UnderWay, head: ThreadHead) -> None:
        keep = sweep.policy.keep
        assert keep is not None  # it is what made the thread too long
        thread_id = head.thread_id
        try:
            found = await self._newest(sweep, thread_id)
            decided = decide_again(head, found, self._states(sweep)(thread_id), sweep.policy, self.now())
            if not isinstance(decided, Prune):
                sweep.kept[(decided if isinstance(decided, Keep) else GONE_ON).reason] += 1
                return
            went = 0
            if not sweep.dry_run:
                went = await self._timed(
                    sweep,
                    lambda: self._maintenance.change(OWNER, [thread_id], lambda one: one.prune_thread(thread_id, keep)),
                )
                if not went:
                    sweep.kept["all of its checkpoints are needed"] += 1
                    return
                sweep.size += head.size - await self._size(sweep, thread_id)
        except CheckpointUnavailableError:
            raise
        except Exception as error:  # noqa: BLE001  # as with deleting
            self._failed(sweep, head, error)
            return
        if not sweep.dry_run:
            await self._note("retention prune", threads=[thread_id], checkpoints=went)
        sweep.pruned += 1
        sweep.checkpoints += went
        self._retired(sweep, head, "pruned", decided.reason)

    async def _size(self, sweep: UnderWay, thread_id: str) -> int:
        return sum(head.size for head in await self._ask(sweep, lambda one: one.describe([thread_id])))

    # Reads

    async def _touch(self, sweep: UnderWay) -> None:
        """Write down, for other processes and later ones, which threads were read here."""
        reads = self._engine.reads
        if reads is None or not sweep.policy.refresh_on_read or sweep.dry_run:
            return
        noted = [*reads.all().items()]
        for start in range(0, len(noted), LOOKED_AT_ONCE):
            some = dict(noted[start : start + LOOKED_AT_ONCE])
            for head in await self._ask(sweep, lambda one: one.describe([*some])):  # noqa: B023  # awaited at once
                read_at = some[head.thread_id]
                if wants_touch(head, read_at, sweep.policy):
                    thread_id = head.thread_id
                    sweep.touched += await self._timed(sweep, lambda: self._marks.touch(thread_id, read_at))  # noqa: B023
            for thread_id, read_at in some.items():
                if self.now() - read_at > YOUNG:  # it is written down, or too soon after what is
                    reads.forget(thread_id, read_at)

    # With the primary

    async def _held_elsewhere(self) -> Collection[str]:
        """The threads of which any journal of this machine holds anything, whatever its database is called there: those
        that a process died with, or that wait for an operator, may be held for longer than the threads are kept."""
        directory = self._journal_dir
        if directory is None:
            return ()
        try:
            return await in_thread_of_its_own(lambda: held_in(directory), "look into all journals")
        except OSError as error:
            reason = redact(error)
        raise unavailable(f"retention cannot read the journals ({reason})", "Nothing more was deleted.")

    def _states(self, sweep: UnderWay) -> Callable[[str], ThreadState]:
        """What is known here of threads now."""
        held, reads = frozenset((*self._engine.held_threads(), *sweep.held_elsewhere)), self._engine.reads

        def state_of(thread_id: str) -> ThreadState:
            return ThreadState(thread_id in held, read_at=reads.at(thread_id) if reads is not None else None)

        return state_of

    async def _newest(self, sweep: UnderWay, thread_id: str) -> CheckpointTuple | None:
        with without_objects():
            found, _ = await self._ask(
                sweep, lambda one: one.get({"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}})
            )
        return found

    async def _ask(self, sweep: UnderWay, question: Callable[[Backend], Awaitable[T]]) -> T:
        return await self._timed(sweep, lambda: self._maintenance.ask(OWNER, [], question, frozen=True))

    async def _timed(self, sweep: UnderWay, step: Callable[[], Awaitable[T]]) -> T:
        """Take a step, and rest after it: the longer, the more others have to do."""
        begun = self._clock()
        done = await step()
        took = self._clock() - begun
        await asyncio.sleep(min(LONGEST_REST, took * (REST + REST_PER_CALL * self._engine.live_calls())))
        return done

    # What is said of it

    def _retired(self, sweep: UnderWay, head: ThreadHead, outcome: str, reason: str) -> None:
        sweep.name(head.thread_id, outcome, reason)
        if not sweep.dry_run:
            self._telemetry.emit(ThreadRetired(self._backend.name, head.thread_id, outcome))

    def _failed(self, sweep: UnderWay, head: ThreadHead, error: Exception) -> None:
        sweep.failed += 1
        self._retired(sweep, head, "failed", f"{type(error).__name__}: {redact(error)}")


def _why(error: CheckpointUnavailableError, sweep: UnderWay) -> str:
    """On one line, and without what is meant for the caller of a write."""
    untouched = "" if sweep.looked_at else "Nothing was deleted."
    return " ".join(redact(error).replace(NOT_STORED, untouched).split())


def _page(after: str | None) -> Callable[[Backend], Awaitable[Sequence[str]]]:
    return lambda backend: backend.thread_ids(after, PAGE)


class Marks:
    """Writes them. All methods run on the manager's event loop."""

    def __init__(
        self,
        engine: Engine,
        maintenance: Maintenance,
        standby: Standby,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._engine = engine
        self._maintenance = maintenance
        self._standby = standby
        self._now = now

    async def mark(self, thread_id: str, status: str) -> None:
        """Mark a thread, now or, in an outage, when the journal is drained. Its time counts from now. It takes two
        deadlines at most: one of the primary, one for the journal.

        Raises:
            CheckpointNotFoundError: there is no such thread.
            CheckpointUnavailableError: neither the primary nor the journal took it.
        """
        changes = {THREAD_STATUS: status, TOUCHED_AT: self._now().isoformat()}
        try:
            found = await self._annotate(thread_id, changes)
        except CheckpointUnavailableError:
            found = await self._put_again(thread_id, changes)
        else:
            await self._warm_again(thread_id)
        if not found:
            raise CheckpointNotFoundError(f"There is no thread {quoted(thread_id)}, so it was not marked as {status}.")

    async def touch(self, thread_id: str, read_at: datetime) -> bool:
        """Write down when a thread was read; False if it is gone.

        Raises:
            CheckpointUnavailableError: there is an outage. This is not worth the journal.
        """
        return await self._annotate(thread_id, {TOUCHED_AT: read_at.isoformat()})

    async def _annotate(self, thread_id: str, changes: Mapping[str, Any]) -> bool:
        found = await self._maintenance.ask(
            "mark", [thread_id], lambda one: one.annotate(thread_id, changes), frozen=True, patience=1
        )
        self._standby.annotate(thread_id, changes)
        return found

    async def _warm_again(self, thread_id: str) -> None:
        # In an outage that has just begun, the mark is made all the same.
        with suppress(CheckpointUnavailableError), without_objects():
            await self._engine.get_tuple(_newest_of(thread_id))

    async def _put_again(self, thread_id: str, changes: Mapping[str, Any]) -> bool:
        """The same as an operation, for the journal: the newest checkpoint as the warm copy has it.

        Behind whatever is on its way: a deletion that comes before it leaves nothing to be marked.
        """
        await self._engine.quiet(thread_id)
        try:
            with without_objects():
                found = self._standby.get_tuple(_newest_of(thread_id))
        except CheckpointUnavailableError as error:
            raise cold(thread_id, error, None) from None
        if found is None:
            return False
        await self._engine.writes.annotate(found, changes)
        return True


def _newest_of(thread_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}


AFTER_AN_OUTAGE = 30.0
"""Seconds until what an outage has stopped is tried again; the interval, if that is shorter."""


class RetentionScheduler:
    """Sweeps when the interval is over; of all processes that share a primary, one at a time does so."""

    def __init__(self, sweeper: Sweeper, interval: float, chance: Callable[[], float] = random.random) -> None:
        self._sweeper = sweeper
        self._interval = interval
        self._chance = chance

    async def run(self) -> None:
        """Sweep for ever. The first comes at some time within the interval, not with all processes that start now."""
        pause = self._interval * self._chance()
        while True:
            await asyncio.sleep(pause)
            sweep = await self._sweeper.run(resume=True)
            pause = self._interval if sweep.stopped is None else min(self._interval, AFTER_AN_OUTAGE)


class UnreadableThreads:
    """Tells of threads whose metadata cannot be read, once each, and finds out when they can be again or are gone.

    Looks after each probe. Listings find such threads; without any, this asks the primary for nothing.
    """

    def __init__(
        self, backend: Backend, guard: Guard, breaker: Breaker, telemetry: Telemetry, clock: Clock, seconds: float
    ) -> None:
        self._backend = backend
        self._clock = clock
        self._seconds = seconds
        self._guard = guard
        self._breaker = breaker
        self._telemetry = telemetry
        self._told: frozenset[str] = frozenset()

    async def look(self) -> None:
        known = self._backend.unreadable
        fresh = {thread_id: why for thread_id, why in known.items() if thread_id not in self._told}
        if fresh:
            named = listed(f"{quoted(one)} ({why})" for one, why in fresh.items())
            what = (
                f"threads cannot be listed, and retention leaves them alone: {named}. All others are. Mend the "
                "metadata of their newest checkpoint, or delete them: checkpointing threads delete"
            )
            self._telemetry.emit(Notice("WARNING", what))
        self._told = frozenset(known)
        if known and not self._breaker.is_open:
            some = [*known][:UNREADABLE_AT_ONCE]
            try:
                deadline = Deadline(self._clock, self._seconds)
                await self._guard.once("describe", lambda: self._backend.describe(some), deadline=deadline)
            except CallFailed:
                return  # the next probe says why
