"""Looks at every thread once, and retires what its policy says: a page at a time, in small steps, with rests between.

What is decided from a listing is decided again from the checkpoint itself, in the step that deletes it, so that nothing
is deleted that was written meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TypeVar

from langgraph.checkpoint.base import CheckpointTuple

from enhanced_checkpointing.backends.contract import Backend
from enhanced_checkpointing.backends.directory import ThreadHead, time_of
from enhanced_checkpointing.errors import CheckpointUnavailableError, redact
from enhanced_checkpointing.failover.engine import Engine
from enhanced_checkpointing.failover.explanations import explained
from enhanced_checkpointing.failover.maintenance import Maintenance
from enhanced_checkpointing.resilience.breaker import Clock
from enhanced_checkpointing.resilience.failure_kinds import CallFailed
from enhanced_checkpointing.telemetry.events import Notice, Telemetry, ThreadRetired
from enhanced_checkpointing.threads.marks import Marks
from enhanced_checkpointing.threads.retention import (
    GONE_ON,
    NO_ROOT,
    YOUNG,
    Decision,
    Delete,
    Keep,
    Prune,
    RetentionPolicy,
    ThreadState,
    decide,
    unfinished,
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
then. A busy server makes steps, and so rests, longer, whoever keeps it busy."""
NAMED = 1000
"""Threads that a result names; all are counted."""

OWNER = "retention"
"""The name under which one of all processes sweeps."""


@dataclass(frozen=True, slots=True)
class Retired:
    """What became of a thread, or in a rehearsal would: "deleted", "pruned" or "failed", and why."""

    thread_id: str
    outcome: str
    reason: str


@dataclass(frozen=True, slots=True)
class Sweep:
    """What one look at all threads came to; in a rehearsal, what it would have."""

    dry_run: bool
    looked_at: int = 0
    deleted: int = 0
    pruned: int = 0
    failed: int = 0
    touched: int = 0
    """Threads that were read, which is written into them now."""
    checkpoints: int = 0
    size: int = 0
    """How many checkpoints went, and about how many bytes; of what would be pruned nobody knows."""
    kept: Mapping[str, int] = field(default_factory=dict)
    """Threads that were left as they are, by the reason."""
    retired: tuple[Retired, ...] = ()
    """The first thousand others."""
    sole: bool = True
    """False: another process is at it, so nothing was done."""
    stopped: str | None = None
    """Why it did not come to the end; the next one goes on from there, or begins anew."""
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether every thread was looked at."""
        return self.sole and self.stopped is None


Tell = Callable[[Sweep], None]


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
        self.held: Callable[[], Collection[str]] = engine.held_threads
        """The threads of which a journal holds anything: by default, that of this process."""
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
        sweep = _Running(policy or self._policy, dry_run, tell, self._clock)
        try:
            async with AsyncExitStack() as stack:
                if not dry_run:
                    sweep.sole = await self._alone(stack)
                if sweep.sole:
                    await self._touch(sweep)
                    await self._look_at_all(sweep, resume=resume)
        except CheckpointUnavailableError as error:
            sweep.stopped = redact(error)
        result = sweep.result()
        self._report(result)
        return result

    async def _alone(self, stack: AsyncExitStack) -> bool:
        try:
            return await stack.enter_async_context(self._backend.sole(OWNER))
        except Exception as error:  # noqa: BLE001  # the backend says what it means
            failed = CallFailed(self._backend.classify(error))
        raise explained(failed, "retention cannot find out whether another process is at it")

    async def _look_at_all(self, sweep: _Running, *, resume: bool) -> None:
        after = self._after if resume else None
        while page := await self._ask(sweep, _page(after)):
            for start in range(0, len(page), LOOKED_AT_ONCE):
                await self._look_at(sweep, page[start : start + LOOKED_AT_ONCE])
                after = page[min(start + LOOKED_AT_ONCE, len(page)) - 1]
                if resume:
                    self._after = after
                sweep.tell(sweep.result())
        self._after = None if resume else self._after

    async def _look_at(self, sweep: _Running, thread_ids: Sequence[str]) -> None:
        doomed: list[ThreadHead] = []
        long: list[ThreadHead] = []
        now, state_of = self.now(), self._states()
        for head in await self._ask(sweep, lambda one: one.describe(thread_ids)):
            sweep.looked_at += 1
            match decide(head, state_of(head.thread_id), sweep.policy, now):
                case Delete():
                    doomed.append(head)
                case Prune():
                    long.append(head)
                case Keep(reason):
                    sweep.kept[reason] += 1
        for start in range(0, len(doomed), DELETED_AT_ONCE):
            await self._delete(sweep, doomed[start : start + DELETED_AT_ONCE])
        for head in long:
            await self._prune(sweep, head)

    # Deleting

    async def _delete(self, sweep: _Running, heads: Sequence[ThreadHead]) -> None:
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
        self, sweep: _Running, heads: Sequence[ThreadHead]
    ) -> tuple[dict[str, Decision], frozenset[str]]:
        """What was decided when they were looked at once more, and which of them went."""
        by_id = {head.thread_id: head for head in heads}
        decisions: dict[str, Decision] = {}
        now, state_of = self.now(), self._states()

        def judge(thread_id: str, found: CheckpointTuple | None) -> bool:
            decided = decide_again(by_id[thread_id], found, state_of(thread_id), sweep.policy, now)
            decisions[thread_id] = decided
            return isinstance(decided, Delete)

        if sweep.dry_run:
            return decisions, frozenset([one for one in by_id if judge(one, await self._newest(sweep, one))])
        free = [thread_id for thread_id in by_id if not state_of(thread_id).journaled]
        gone = await self._timed(
            sweep, lambda: self._maintenance.revise(OWNER, free, lambda one: one.delete_if(free, judge))
        )
        return decisions, frozenset(gone)

    # Pruning

    async def _prune(self, sweep: _Running, head: ThreadHead) -> None:
        keep = sweep.policy.keep
        assert keep is not None  # it is what made the thread too long
        thread_id = head.thread_id
        try:
            found = await self._newest(sweep, thread_id)
            decided = decide_again(head, found, self._states()(thread_id), sweep.policy, self.now())
            if not isinstance(decided, Prune):
                sweep.kept[(decided if isinstance(decided, Keep) else GONE_ON).reason] += 1
                return
            went = 0
            if not sweep.dry_run:
                went = await self._timed(
                    sweep,
                    lambda: self._maintenance.revise(OWNER, [thread_id], lambda one: one.prune_thread(thread_id, keep)),
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
        sweep.pruned += 1
        sweep.checkpoints += went
        self._retired(sweep, head, "pruned", decided.reason)

    async def _size(self, sweep: _Running, thread_id: str) -> int:
        return sum(head.size for head in await self._ask(sweep, lambda one: one.describe([thread_id])))

    # Reads

    async def _touch(self, sweep: _Running) -> None:
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

    def _states(self) -> Callable[[str], ThreadState]:
        """What is known here of threads now."""
        held, reads = frozenset(self.held()), self._engine.reads

        def state_of(thread_id: str) -> ThreadState:
            return ThreadState(thread_id in held, read_at=reads.at(thread_id) if reads is not None else None)

        return state_of

    async def _newest(self, sweep: _Running, thread_id: str) -> CheckpointTuple | None:
        found, _ = await self._ask(
            sweep, lambda one: one.get({"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}})
        )
        return found

    async def _ask(self, sweep: _Running, question: Callable[[Backend], Awaitable[T]]) -> T:
        return await self._timed(sweep, lambda: self._maintenance.consult(OWNER, [], question, frozen=True))

    async def _timed(self, sweep: _Running, step: Callable[[], Awaitable[T]]) -> T:
        """Take a step, and rest after it: the longer, the more others have to do."""
        begun = self._clock()
        done = await step()
        took = self._clock() - begun
        await asyncio.sleep(min(LONGEST_REST, took * (REST + REST_PER_CALL * self._engine.live_calls())))
        return done

    # What is said of it

    def _retired(self, sweep: _Running, head: ThreadHead, outcome: str, reason: str) -> None:
        if len(sweep.retired) < NAMED:
            sweep.retired.append(Retired(head.thread_id, outcome, reason))
        if not sweep.dry_run:
            self._telemetry.emit(ThreadRetired(self._backend.name, head.thread_id, outcome))

    def _failed(self, sweep: _Running, head: ThreadHead, error: Exception) -> None:
        sweep.failed += 1
        self._retired(sweep, head, "failed", f"{type(error).__name__}: {redact(error)}")

    def _report(self, sweep: Sweep) -> None:
        if sweep.dry_run or not (sweep.deleted or sweep.pruned or sweep.failed or sweep.stopped):
            return
        done = (
            f"retention looked at {sweep.looked_at} threads in {sweep.seconds:.1f} s: {sweep.deleted} deleted, "
            f"{sweep.pruned} pruned ({sweep.checkpoints} checkpoints, {sweep.size} bytes)"
        )
        if sweep.failed:
            done += f", {sweep.failed} could not be, the first of them: " + next(
                (f"{one.thread_id!r} ({one.reason})" for one in sweep.retired if one.outcome == "failed"), "not named"
            )
        if sweep.stopped:
            done += f". It stopped early, and goes on later: {sweep.stopped}"
        self._telemetry.emit(Notice("WARNING" if sweep.failed else "INFO", done))


def decide_again(
    head: ThreadHead, found: CheckpointTuple | None, state: ThreadState, policy: RetentionPolicy, now: datetime
) -> Decision:
    """What is to become of a thread of which the newest root checkpoint has been read after its head was. Pure."""
    if found is None:
        return NO_ROOT
    checkpoint_id = found.checkpoint["id"]
    if checkpoint_id != head.checkpoint_id:
        return GONE_ON
    updated_at = head.updated_at or time_of(checkpoint_id, found.checkpoint.get("ts"))
    newest = replace(head, metadata=dict(found.metadata), updated_at=updated_at)
    return decide(newest, replace(state, unfinished=unfinished(found)), policy, now)


def _page(after: str | None) -> Callable[[Backend], Awaitable[Sequence[str]]]:
    return lambda backend: backend.thread_ids(after, PAGE)


class _Running:
    """A sweep under way."""

    def __init__(self, policy: RetentionPolicy, dry_run: bool, tell: Tell, clock: Clock) -> None:
        self.policy = policy
        self.dry_run = dry_run
        self.tell = tell
        self.looked_at = self.deleted = self.pruned = self.failed = self.touched = self.checkpoints = self.size = 0
        self.kept: Counter[str] = Counter()
        self.retired: list[Retired] = []
        self.sole = True
        self.stopped: str | None = None
        self._clock = clock
        self._begun = clock()

    def result(self) -> Sweep:
        return Sweep(
            dry_run=self.dry_run,
            looked_at=self.looked_at,
            deleted=self.deleted,
            pruned=self.pruned,
            failed=self.failed,
            touched=self.touched,
            checkpoints=self.checkpoints,
            size=self.size,
            kept=dict(self.kept),
            retired=tuple(self.retired),
            sole=self.sole,
            stopped=self.stopped,
            seconds=self._clock() - self._begun,
        )
