"""Replaying the journal into a recovered primary, here an `InMemorySaver` that can fail and hang."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from enhanced_checkpointing.backends.base import PROBE_THREAD, Backend, Heads, classify_by_type
from enhanced_checkpointing.backends.memory.backend import MemoryBackend
from enhanced_checkpointing.config import create_memory_checkpointer
from enhanced_checkpointing.errors import CheckpointCorruptionError, JournalFullError
from enhanced_checkpointing.journal.api import UNKNOWN, BaseHead, JournalEntry, JournalRecord
from enhanced_checkpointing.journal.memory import MemoryJournal
from enhanced_checkpointing.observability.events import (
    ConfigurationFault,
    DeadLettered,
    Diverged,
    Notice,
    ThreadDrained,
)
from enhanced_checkpointing.operations import DeleteThread, Operation, Put, apply_shared
from enhanced_checkpointing.recovery import drain as reconciler
from enhanced_checkpointing.recovery.drain import Drain, Reconciler
from enhanced_checkpointing.resilience.breaker import Breaker, BreakerSettings
from enhanced_checkpointing.resilience.deadline import TICK, Deadline
from enhanced_checkpointing.resilience.failures import Failure, FailureKind
from enhanced_checkpointing.resilience.guard import Guard
from enhanced_checkpointing.saver.core import Core
from enhanced_checkpointing.serialization import SharingSerializer, widen_allowlist
from enhanced_checkpointing.standby.cache import Standby
from enhanced_checkpointing.testing import FlakySaver
from tests.support.author import Author, config_of
from tests.support.checkpointer import eventually
from tests.support.recorder import Recorder
from tests.support.virtual_time import now

pytestmark = pytest.mark.virtual_time


class Mode(StrEnum):
    FAST = "fast"


class Outer:
    class Inner(StrEnum):
        ONE = "one"


@dataclass
class Answer:
    mode: Mode


class Refused(Exception):
    """A failure whose kind it names itself."""

    def __init__(self, kind: FailureKind) -> None:
        super().__init__(f"refused, password=hunter2 ({kind.value})")
        self.kind = kind


class WatchedBackend(MemoryBackend):
    """Memory that notes what reaches it, and can refuse single threads or keep one behind its fence."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.applied: list[Operation] = []
        self.refusals: dict[str, FailureKind] = {}
        self.fenced: set[str] = set()
        self.running = 0
        self.most_running = 0
        self.gate: asyncio.Event | None = None
        self.down_after: int | None = None
        """How many operations are applied before the primary goes down."""

    async def apply(self, operation: Operation) -> None:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if self.gate is not None:
                await self.gate.wait()
            if len(self.applied) == self.down_after:
                raise ConnectionRefusedError("down")
            if operation.thread_id in self.refusals:
                raise Refused(self.refusals[operation.thread_id])
            await super().apply(operation)
            self.applied.append(operation)
        finally:
            self.running -= 1

    async def probe(self) -> None:
        if PROBE_THREAD in self.refusals:
            raise Refused(self.refusals[PROBE_THREAD])
        await super().probe()

    async def fence(self, thread_id: str) -> bool:
        return thread_id not in self.fenced

    def classify(self, error: BaseException) -> Failure:
        return Failure(error.kind, error, fix="Mend it.") if isinstance(error, Refused) else classify_by_type(error)


class Setting:
    """A reconciler with everything that it works on; nothing runs until a test starts it."""

    def __init__(self, backend: type[WatchedBackend] = WatchedBackend, **fields: Any) -> None:
        config = create_memory_checkpointer(**{"deadline": 0.2, "retries": 0, **fields})
        self.serializer = SharingSerializer(config.serde)
        self.backend = backend(config, self.serializer)
        self.primary = InMemorySaver(serde=self.serializer)
        self.saver = FlakySaver(self.primary)
        self.backend.saver = self.saver
        self.journal = MemoryJournal(10_000_000)
        self.standby = Standby(self.serializer, 10_000_000, self.journal.holds)
        self.recorder = Recorder()
        self.quiet = 0
        self.breaker = Breaker(now, BreakerSettings(), lambda opened, reason: None)
        guard = Guard(
            "memory",
            breaker=self.breaker,
            classify=self.backend.classify,
            saturated=self.backend.saturated,
            telemetry=self.recorder,
            retries=config.retries,
        )
        core = Core(
            config=config,
            backend=self.backend,
            guard=guard,
            breaker=self.breaker,
            journal=self.journal,
            standby=self.standby,
            serializer=self.serializer,
            telemetry=self.recorder,
            clock=now,
        )
        self.reconciler = Reconciler(core, self.journal, on_drained=self._quiet)

    def _quiet(self) -> None:
        self.quiet += 1

    def author(self, thread_id: str, checkpoint_ns: str = "") -> Author:
        return Author(thread_id, checkpoint_ns, self.serializer)

    async def add(self, operation: Operation, base_head: BaseHead = UNKNOWN) -> JournalEntry:
        """Journal an operation as the engine does: the journal, the standby, then a word to the reconciler."""
        entry = await self.journal.append(operation, base_head, Deadline(now, 1.0))
        self.standby.apply(operation)
        self.reconciler.wake()
        return entry

    async def add_steps(self, thread_id: str, count: int = 3) -> list[Put]:
        author = self.author(thread_id)
        puts = [author.put({"profile": ["Ada"], "n": step}) for step in range(count)]
        for put in puts:
            await self.add(put)
        return puts

    def of(self, thread_id: str) -> list[Operation]:
        return [operation for operation in self.backend.applied if operation.thread_id == thread_id]

    def outcomes(self) -> dict[str, str]:
        """How the last drain of each thread ended."""
        return {event.thread_id: event.outcome for event in self.recorder.of(ThreadDrained)}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.ensure_future(self.reconciler.run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await self.reconciler.close()


def chain(saver: InMemorySaver, thread_id: str, checkpoint_ns: str = "") -> list[str]:
    """The ids of a thread's checkpoints, oldest first."""
    return [found.checkpoint["id"] for found in saver.list(config_of(thread_id, checkpoint_ns))][::-1]


async def test_operations_of_a_thread_reach_the_primary_in_the_order_in_which_they_were_accepted() -> None:
    setting = Setting()
    author = setting.author("a")
    operations: list[Operation] = [
        author.put({"n": 1}),
        author.writes(("n", 2)),
        DeleteThread("a"),
        author.put({"n": 2}),
    ]
    for operation in operations:
        await setting.add(operation)
    assert await setting.reconciler.drain_all()
    assert setting.backend.applied == [operation.replayable() for operation in operations]
    assert not setting.journal.holds("a")
    assert setting.reconciler.drained == 4
    (drained,) = setting.recorder.of(ThreadDrained)
    assert (drained.backend, drained.thread_id, drained.operations, drained.outcome) == ("memory", "a", 4, "drained")
    assert setting.quiet == 1


async def test_drained_primary_equals_one_that_never_failed() -> None:
    setting, twin = Setting(), InMemorySaver(serde=SharingSerializer())
    author = setting.author("a")
    for step in range(4):
        for operation in (author.put({"profile": ["Ada"], "n": step}), author.writes(("n", step + 1))):
            await apply_shared(twin, operation)
            if step < 2:
                await apply_shared(setting.primary, operation)
            else:
                await setting.add(operation)
    await setting.reconciler.drain_all()
    assert list(setting.primary.list(config_of("a"))) == list(twin.list(config_of("a")))


def marked(put: Put, annotated: tuple[str, ...] = ("thread_status",)) -> Put:
    """As an outage journals it; without names as an older release did."""
    metadata: Any = {**put.metadata, "thread_status": "completed"}
    return replace(put, values={"n": "as it was read"}, metadata=metadata, annotated=annotated)


@pytest.mark.parametrize("annotated", [("thread_status",), ()])
@pytest.mark.parametrize("deleted", [False, True])
async def test_mark_of_a_checkpoint_that_somebody_else_deleted_is_left_out(
    deleted: bool, annotated: tuple[str, ...]
) -> None:
    setting = Setting()
    author = setting.author("a")
    first = author.put({"n": 1})
    if not deleted:
        await apply_shared(setting.primary, first)
    await setting.add(marked(first, annotated), first.checkpoint_id)
    assert await setting.reconciler.drain_all()
    assert len(setting.of("a")) == (0 if deleted else 1)
    found = [*setting.primary.list(config_of("a"))]
    assert [one.metadata["thread_status"] for one in found] == ([] if deleted else ["completed"])  # type: ignore[typeddict-item]
    assert setting.journal.status().pending == 0
    assert setting.outcomes() == {"a": "drained"}
    assert setting.recorder.of(Diverged) == []


async def test_mark_of_a_checkpoint_of_the_same_outage_is_drained_with_it() -> None:
    setting = Setting()
    author = setting.author("a")
    first = author.put({"n": 1})
    await setting.add(first, None)
    await setting.add(marked(first), first.checkpoint_id)
    await setting.add(author.writes(("n", 2)))
    assert await setting.reconciler.drain_all()
    (found,) = setting.primary.list(config_of("a"))
    assert found.metadata["thread_status"] == "completed"  # type: ignore[typeddict-item]
    assert found.checkpoint["channel_values"] == {"n": 1}


async def test_mark_changes_nothing_of_what_is_stored_and_is_not_made_where_others_have_gone_on() -> None:
    setting = Setting()
    for thread_id in "ab":
        author = setting.author(thread_id)
        first = author.put({"n": [thread_id]})
        await apply_shared(setting.primary, first)
        await setting.add(marked(first), first.checkpoint_id)
        if thread_id == "b":
            await apply_shared(setting.primary, author.put({"n": 2}))
    assert await setting.reconciler.drain_all()
    (found,) = setting.primary.list(config_of("a"))
    assert found.checkpoint["channel_values"] == {"n": ["a"]}
    assert found.metadata["thread_status"] == "completed"  # type: ignore[typeddict-item]
    assert ["thread_status" in one.metadata for one in setting.primary.list(config_of("b"))] == [False, False]
    assert setting.recorder.of(Diverged) == []


async def test_record_that_is_stored_without_anybody_telling_is_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciler, "LONGEST_PAUSE", 0.05)
    setting = Setting()
    async with setting.running():
        await asyncio.sleep(0)  # it has looked, and found nothing
        await setting.journal.append(setting.author("a").put({"n": 1}), UNKNOWN, Deadline(now, 1.0))
        await eventually(lambda: not setting.journal.holds("a"))
    assert len(setting.of("a")) == 1


async def test_threads_are_drained_oldest_first_and_a_few_at_a_time() -> None:
    setting = Setting(drain_concurrency=2)
    for thread_id in "abcde":
        await setting.add(DeleteThread(thread_id))
    setting.backend.gate = asyncio.Event()
    draining = asyncio.ensure_future(setting.reconciler.drain_all())
    await eventually(lambda: setting.backend.running == 2)
    setting.backend.gate.set()
    assert await draining
    assert setting.backend.most_running == 2
    assert [operation.thread_id for operation in setting.backend.applied] == ["a", "b", "c", "d", "e"]


async def test_refused_operation_freezes_its_thread_and_no_other() -> None:
    setting = Setting(drain_concurrency=1)
    await setting.add_steps("bad")
    await setting.add_steps("good")
    setting.backend.refusals["bad"] = FailureKind.DATA
    assert await setting.reconciler.drain_all(), "nothing waits: what is frozen does not"
    assert len(setting.of("good")) == 3
    assert setting.of("bad") == []
    (letter,) = setting.journal.dead_letters()
    assert letter.error == "refused, password=*** (data)"
    assert len(setting.journal.entries("bad")) == 2, "nothing is dropped"
    assert setting.journal.holds("bad")
    assert setting.outcomes() == {"bad": "frozen", "good": "drained"}
    assert setting.recorder.of(DeadLettered) == [DeadLettered("memory", "bad", "put", "refused, password=*** (data)")]
    assert setting.reconciler.dead_letters == 1
    assert not await setting.reconciler.wait_drained(0.5)


async def test_damaged_data_freezes_its_thread_too() -> None:
    setting = Setting()
    await setting.add_steps("bad")
    setting.backend.refusals["bad"] = FailureKind.CORRUPTION
    await setting.reconciler.drain_all()
    assert setting.journal.status().frozen_threads == ("bad",)


async def test_frozen_thread_is_not_replayed_past_its_dead_letter() -> None:
    setting = Setting()
    await setting.add_steps("bad")
    setting.backend.refusals["bad"] = FailureKind.DATA
    await setting.reconciler.drain_all()
    setting.backend.refusals.clear()
    await setting.reconciler.drain_all()
    assert not await setting.reconciler.drain_first("bad", Deadline(now, 1.0))
    assert setting.of("bad") == []
    assert setting.outcomes() == {"bad": "frozen"}


@pytest.mark.parametrize("kind", [FailureKind.TRANSIENT, FailureKind.UNKNOWN, FailureKind.SATURATED])
async def test_failure_that_passes_pauses_and_the_record_stays(kind: FailureKind) -> None:
    setting = Setting(drain_concurrency=1)
    puts = await setting.add_steps("a")
    await setting.add_steps("b")
    setting.backend.refusals["a"] = kind
    assert not await setting.reconciler.drain_all()
    assert setting.backend.applied == [], "after a pause nothing else is tried in this pass"
    assert setting.outcomes() == {"a": "paused"}
    assert setting.quiet == 0
    assert setting.recorder.of(ConfigurationFault) == []
    setting.backend.refusals.clear()
    assert await setting.reconciler.drain_all()
    assert setting.of("a") == [put.replayable() for put in puts]
    assert len(setting.of("b")) == 3


async def test_fault_that_waiting_does_not_mend_pauses_and_is_announced() -> None:
    setting = Setting()
    await setting.add_steps("a")
    setting.backend.refusals = dict.fromkeys(["a", PROBE_THREAD], FailureKind.CONFIGURATION)
    assert not await setting.reconciler.drain_all()
    assert setting.recorder.of(ConfigurationFault) == [
        ConfigurationFault("memory", "refused, password=*** (configuration)", "Mend it.")
    ]
    assert setting.journal.status().pending == 3


async def test_fault_that_a_probe_does_not_meet_is_that_of_the_operation_and_the_rest_is_drained() -> None:
    setting = Setting()
    await setting.add_steps("a")
    await setting.add_steps("b")
    setting.backend.refusals["a"] = FailureKind.CONFIGURATION
    assert await setting.reconciler.drain_all()
    assert [letter.entry.thread_id for letter in setting.journal.dead_letters()] == ["a"]
    assert not setting.journal.holds("b")
    assert setting.recorder.of(ConfigurationFault) == []


async def test_deletion_that_meets_such_a_fault_waits_as_no_probe_deletes() -> None:
    setting = Setting()
    await setting.add(DeleteThread("a"))
    setting.backend.refusals["a"] = FailureKind.CONFIGURATION
    assert not await setting.reconciler.drain_all()
    assert setting.journal.status().pending == 1


async def test_drain_that_was_interrupted_goes_on_where_it_stopped() -> None:
    setting = Setting()
    author = setting.author("a")
    puts = [author.put({"n": step}) for step in range(3)]
    base: BaseHead = None
    for put in puts:
        await setting.add(put, base)
        base = put.checkpoint_id
    setting.backend.down_after = 1
    assert not await setting.reconciler.drain_all()
    assert setting.backend.applied == [puts[0].replayable()]
    assert setting.outcomes() == {"a": "paused"}
    setting.backend.down_after = None
    setting.breaker.close()
    assert await setting.reconciler.drain_all()
    # What was applied and not marked is applied again; that changes nothing.
    assert setting.backend.applied == [put.replayable() for put in (puts[0], *puts)]
    assert setting.recorder.of(Diverged) == [], "our own checkpoints are not another branch"


async def test_nothing_is_drained_while_the_breaker_is_open() -> None:
    setting = Setting()
    await setting.add_steps("a")
    setting.breaker.trip("down")
    assert not await setting.reconciler.drain_all()
    assert not await setting.reconciler.drain_first("a", Deadline(now, 1.0))
    assert setting.recorder.events == []
    assert setting.quiet == 0


async def test_lost_session_keeps_only_its_own_thread_waiting() -> None:
    setting = Setting(drain_concurrency=1)
    await setting.add_steps("fenced")
    await setting.add_steps("free")
    setting.backend.fenced.add("fenced")
    assert not await setting.reconciler.drain_all()
    assert setting.of("fenced") == []
    assert len(setting.of("free")) == 3
    assert setting.outcomes() == {"fenced": Drain.FENCED.value, "free": "drained"}
    setting.backend.fenced.clear()
    assert await setting.reconciler.drain_all()
    assert len(setting.of("fenced")) == 3


async def test_operation_that_comes_while_its_thread_is_drained_is_drained_with_it() -> None:
    setting = Setting()
    setting.backend.gate = asyncio.Event()
    author = setting.author("a")
    await setting.add(author.put({"n": 1}))
    draining = asyncio.ensure_future(setting.reconciler.drain_all())
    await eventually(lambda: setting.backend.running == 1)
    await setting.add(author.put({"n": 2}))
    setting.backend.gate.set()
    assert await draining
    assert len(setting.of("a")) == 2
    assert len(setting.recorder.of(ThreadDrained)) == 1


async def test_moment_at_which_a_thread_is_not_drained_comes_when_its_drain_has_ended() -> None:
    setting = Setting()
    await asyncio.wait_for(setting.reconciler.undrained("a"), 0.1)
    gate = setting.backend.gate = asyncio.Event()
    await setting.add_steps("a")
    draining = asyncio.ensure_future(setting.reconciler.drain_all())
    await eventually(lambda: setting.backend.running == 1)
    waiting = asyncio.ensure_future(setting.reconciler.undrained("a"))
    await asyncio.wait_for(setting.reconciler.undrained("b"), 0.1)
    await asyncio.sleep(0.01)
    assert not waiting.done()
    gate.set()
    await waiting
    assert len(setting.of("a")) == 3
    assert await draining


# A read that waits


async def test_thread_that_a_read_waits_for_is_drained_ahead_of_the_others() -> None:
    setting = Setting(drain_concurrency=1)
    await setting.add_steps("first")
    await setting.add_steps("wanted")
    assert await setting.reconciler.drain_first("wanted", Deadline(now, 1.0))
    assert len(setting.of("wanted")) == 3
    assert setting.of("first") == []


async def test_drain_that_is_under_way_is_shared_and_not_done_twice() -> None:
    setting = Setting()
    setting.backend.gate = asyncio.Event()
    await setting.add_steps("a")
    asking = [asyncio.ensure_future(setting.reconciler.drain_first("a", Deadline(now, 2.0))) for _ in range(3)]
    draining = asyncio.ensure_future(setting.reconciler.drain_all())
    await eventually(lambda: setting.backend.running == 1)
    setting.backend.gate.set()
    assert await asyncio.gather(draining, *asking) == [True] * 4
    assert setting.backend.most_running == 1
    assert len(setting.of("a")) == 3


async def test_read_waits_no_longer_than_its_deadline_and_the_drain_goes_on() -> None:
    setting = Setting(deadline=2.0)
    setting.backend.gate = asyncio.Event()
    await setting.add_steps("a")
    started_at = now()
    assert not await setting.reconciler.drain_first("a", Deadline(now, 0.05))
    assert now() - started_at == pytest.approx(0.05, abs=1.01 * TICK)
    setting.backend.gate.set()
    assert await setting.reconciler.wait_drained(1.0)
    assert len(setting.of("a")) == 3


# Two branches


class Fork(Setting):
    """A thread with two checkpoints at the primary, of which one more was written there, and two here."""

    async def prepare(self) -> Fork:
        author, theirs = self.author("a"), self.author("a")
        self.shared = [author.put({"profile": ["Ada"], "n": step}) for step in range(2)]
        for put in self.shared:
            await apply_shared(self.primary, put)
        await apply_shared(self.primary, author.writes(("n", 9)))
        theirs.head = author.head
        self.theirs = theirs.put({"profile": ["Ada"], "n": 100})
        base: BaseHead = author.head
        self.ours = [author.put({"profile": ["Ada"], "n": step}) for step in (10, 11)]
        await apply_shared(self.primary, self.theirs)
        for put in self.ours:
            await self.add(put, base)
            base = put.checkpoint_id
        self.sibling = f"a~outage~{self.ours[0].checkpoint_id}"
        return self

    def ids(self, *puts: Put) -> list[str]:
        return [put.checkpoint_id for put in puts]


def compare_heads(setting: Setting) -> None:
    """Let the primary compare heads and write in one step, as PostgreSQL does."""
    apply_all = setting.backend.apply_all

    async def comparing(operations: Sequence[Operation], heads: Heads) -> bool:
        thread_id = operations[0].thread_id
        for name, known in heads.items():
            found = chain(setting.primary, thread_id, name)
            if (found[-1] if found else None) not in known:
                return False
        return await apply_all(operations, {})

    setting.backend.apply_all = comparing  # type: ignore[method-assign]
    setting.backend.compares_heads = True  # type: ignore[misc]  # of this one only


async def test_newest_wins_keeps_both_branches_in_the_thread_and_reports_them() -> None:
    fork = await Fork(on_divergence="newest_wins").prepare()
    assert await fork.reconciler.drain_all()
    assert set(chain(fork.primary, "a")) == set(fork.ids(*fork.shared, fork.theirs, *fork.ours))
    found = fork.primary.get_tuple(config_of("a"))
    assert found is not None
    assert found.checkpoint["channel_values"] == {"profile": ["Ada"], "n": 11}
    assert fork.recorder.of(Diverged) == [
        Diverged("memory", "a", "", fork.shared[1].checkpoint_id, fork.theirs.checkpoint_id, "a")
    ]
    assert fork.reconciler.divergences == 1
    assert not fork.standby.knows("a"), "the warm copy lacks the other branch"


@pytest.mark.parametrize("compares_heads", [False, True])
@pytest.mark.parametrize("on_divergence", ["newest_wins", "quarantine"])
async def test_branch_that_begins_in_mid_drain_is_found(on_divergence: str, compares_heads: bool) -> None:
    setting = Setting(on_divergence=on_divergence)
    if compares_heads:
        compare_heads(setting)
    author = Author("a")
    base: BaseHead = None
    ours = [author.put({"n": step}) for step in range(6)]
    for put in ours:
        await setting.add(put, base)
        base = put.checkpoint_id
    other = Author("a")
    other.head = ours[3].checkpoint_id
    theirs = other.put({"n": 100})
    mark_applied = setting.journal.mark_applied

    async def and_somebody_writes(entries: Sequence[JournalEntry]) -> None:
        await mark_applied(entries)
        if len(setting.journal.entries("a")) == 2:
            await apply_shared(setting.primary, theirs)

    setting.journal.mark_applied = and_somebody_writes  # type: ignore[method-assign]
    assert await setting.reconciler.drain_all()
    (found,) = setting.recorder.of(Diverged)
    assert (found.expected_head, found.found_head) == (ours[3].checkpoint_id, theirs.checkpoint_id)
    assert setting.reconciler.divergences == 1
    assert {put.checkpoint_id for put in ours} <= set(chain(setting.primary, found.kept_as))
    assert chain(setting.primary, "a")[-1] == theirs.checkpoint_id


async def test_quarantine_keeps_their_branch_and_gives_ours_a_whole_thread_of_its_own() -> None:
    fork = await Fork(on_divergence="quarantine").prepare()
    assert await fork.reconciler.drain_all()
    assert chain(fork.primary, "a") == fork.ids(*fork.shared, fork.theirs)
    assert chain(fork.primary, fork.sibling) == fork.ids(*fork.shared, *fork.ours)
    theirs, ours = (fork.primary.get_tuple(config_of(thread_id)) for thread_id in ("a", fork.sibling))
    assert theirs is not None
    assert ours is not None
    assert theirs.checkpoint["channel_values"] == {"profile": ["Ada"], "n": 100}
    assert ours.checkpoint["channel_values"] == {"profile": ["Ada"], "n": 11}
    ancestor = fork.primary.get_tuple(config_of(fork.sibling, "", fork.shared[1].checkpoint_id))
    assert ancestor is not None
    assert ancestor.pending_writes == [("task", "n", 9)]
    assert ancestor.parent_config == config_of(fork.sibling, "", fork.shared[0].checkpoint_id)
    assert fork.recorder.of(Diverged)[0].kept_as == fork.sibling
    assert not fork.journal.holds("a")
    assert not fork.standby.knows("a")


@pytest.mark.parametrize("applied", range(6))
async def test_quarantine_that_was_interrupted_goes_on_in_the_same_sibling_and_counts_once(applied: int) -> None:
    """Two ancestors, the writes of one, and our two checkpoints: it may stop before each of them."""
    fork = await Fork(on_divergence="quarantine").prepare()
    fork.backend.down_after = applied
    assert await fork.reconciler.drain_all() is (applied == 5)
    fork.backend.down_after = None
    fork.breaker.close()
    assert await fork.reconciler.drain_all()
    assert chain(fork.primary, fork.sibling) == fork.ids(*fork.shared, *fork.ours)
    assert chain(fork.primary, "a") == fork.ids(*fork.shared, fork.theirs)
    assert fork.reconciler.divergences == len(fork.recorder.of(Diverged)) == 1


@pytest.mark.parametrize("applied", range(2))
async def test_newest_wins_that_was_interrupted_counts_once_and_forgets_the_warm_copy(applied: int) -> None:
    fork = await Fork(on_divergence="newest_wins").prepare()
    fork.backend.down_after = applied
    assert not await fork.reconciler.drain_all()
    fork.backend.down_after = None
    fork.breaker.close()
    assert await fork.reconciler.drain_all()
    assert set(chain(fork.primary, "a")) == set(fork.ids(*fork.shared, fork.theirs, *fork.ours))
    assert fork.reconciler.divergences == len(fork.recorder.of(Diverged)) == 1
    assert not fork.standby.knows("a")


async def test_thread_that_was_deleted_meanwhile_is_quarantined_without_ancestors() -> None:
    fork = await Fork(on_divergence="quarantine").prepare()
    fork.primary.delete_thread("a")
    assert await fork.reconciler.drain_all()
    assert chain(fork.primary, "a") == []
    assert chain(fork.primary, fork.sibling) == fork.ids(*fork.ours)


async def test_thread_that_somebody_else_began_too_is_quarantined() -> None:
    setting = Setting(on_divergence="quarantine")
    theirs, ours = setting.author("a").put({"n": 1}), setting.author("a").put({"n": 2})
    await apply_shared(setting.primary, theirs)
    await setting.add(ours, None)
    assert await setting.reconciler.drain_all()
    assert chain(setting.primary, "a") == [theirs.checkpoint_id]
    assert chain(setting.primary, f"a~outage~{ours.checkpoint_id}") == [ours.checkpoint_id]


async def test_namespace_that_did_not_fork_goes_to_the_sibling_with_the_one_that_did() -> None:
    fork = await Fork(on_divergence="quarantine").prepare()
    child = fork.author("a", "child").put({"note": 1})
    await fork.add(child, None)
    assert await fork.reconciler.drain_all()
    assert chain(fork.primary, fork.sibling, "child") == [child.checkpoint_id]
    assert chain(fork.primary, "a", "child") == []


async def test_branches_that_cannot_be_compared_stay_in_one_thread_and_no_good_write_is_buried() -> None:
    setting = Setting(drain_concurrency=1)
    await setting.add(setting.author("unreadable").put({"n": 1}), "base")

    async def ask(question: object) -> object:
        raise ValueError("cannot be deserialized")

    setting.backend.ask = ask  # type: ignore[method-assign, assignment]  # stored data that no reader understands
    assert await setting.reconciler.drain_all()
    assert setting.outcomes() == {"unreadable": "drained"}
    assert len(setting.of("unreadable")) == 1
    assert setting.journal.dead_letters() == []
    assert "could not be compared (cannot be deserialized)" in setting.recorder.of(Notice)[0].message


async def test_deletion_in_quarantine_deletes_the_thread_that_was_meant_too() -> None:
    setting = Setting(on_divergence="quarantine")
    theirs, ours = setting.author("t"), setting.author("t")
    base, newer = theirs.put({"n": 1}), theirs.put({"n": 2})
    for put in (base, newer):
        await setting.backend.apply(put)
    await setting.add(ours.put({"n": 3}), base.checkpoint_id)
    await setting.add(DeleteThread("t"))
    quarantined: list[str] = []
    setting.reconciler._branches._on_quarantined = quarantined.append
    assert await setting.reconciler.drain_all()
    assert quarantined == ["t"]
    assert chain(setting.primary, "t") == []


async def late_deletion(*, base: str | None, moved: bool, **fields: Any) -> tuple[Setting, list[str]]:
    """A thread of one checkpoint that is deleted here and, if it `moved`, went on elsewhere; and what is there now."""
    setting = Setting(**fields)
    theirs = setting.author("t")
    puts = [theirs.put({"n": step}) for step in range(2 if moved else 1)]
    for put in puts:
        await apply_shared(setting.primary, put)
    known: BaseHead = {"known": puts[0].checkpoint_id, "empty": None, None: UNKNOWN}[base]
    await setting.add(DeleteThread("t"), known)
    return setting, [put.checkpoint_id for put in puts]


@pytest.mark.parametrize("compares_heads", [False, True])
@pytest.mark.parametrize("base", ["known", "empty"])
async def test_deletion_spares_what_somebody_else_wrote_since_and_is_reported(base: str, compares_heads: bool) -> None:
    setting, ids = await late_deletion(base=base, moved=True)
    if compares_heads:
        compare_heads(setting)
    assert await setting.reconciler.drain_all()
    assert chain(setting.primary, "t") == ids
    expected = ids[0] if base == "known" else None
    assert setting.recorder.of(Diverged) == [Diverged("memory", "t", "", expected, ids[1], "t", deletion=True)]
    assert setting.reconciler.divergences == 1
    assert not setting.journal.holds("t")
    assert not setting.standby.knows("t"), "the warm copy takes it for empty"


@pytest.mark.parametrize("compares_heads", [False, True])
@pytest.mark.parametrize(("base", "moved"), [("known", False), (None, True)])
async def test_deletion_of_what_nobody_else_wrote_or_of_what_was_never_seen_is_carried_out(
    base: str | None, moved: bool, compares_heads: bool
) -> None:
    setting, _ = await late_deletion(base=base, moved=moved)
    if compares_heads:
        compare_heads(setting)
    assert await setting.reconciler.drain_all()
    assert chain(setting.primary, "t") == []
    assert setting.reconciler.divergences == 0
    assert setting.standby.knows("t")


@pytest.mark.parametrize("on_divergence", ["newest_wins", "quarantine"])
async def test_what_comes_behind_a_deletion_that_was_not_carried_out_is_a_branch(on_divergence: str) -> None:
    setting, ids = await late_deletion(base="known", moved=True, on_divergence=on_divergence)
    ours = setting.author("t").put({"n": 9})
    await setting.add(ours, None)
    assert await setting.reconciler.drain_all()
    target = f"t~outage~{ours.checkpoint_id}" if on_divergence == "quarantine" else "t"
    assert chain(setting.primary, "t") == ids + [ours.checkpoint_id] * (target == "t")
    assert chain(setting.primary, target)[-1] == ours.checkpoint_id
    reported = [(event.deletion, event.kept_as) for event in setting.recorder.of(Diverged)]
    assert reported == [(True, "t"), (False, target)]


@pytest.mark.parametrize("on_divergence", ["newest_wins", "quarantine"])
async def test_deletion_behind_a_branch_spares_the_other_branch(on_divergence: str) -> None:
    fork = await Fork(on_divergence=on_divergence).prepare()
    await fork.add(DeleteThread("a"), fork.ours[-1].checkpoint_id)
    assert await fork.reconciler.drain_all()
    assert fork.theirs.checkpoint_id in chain(fork.primary, "a")
    assert chain(fork.primary, fork.sibling) == [], "in quarantine, our branch is what was deleted"
    assert [event.deletion for event in fork.recorder.of(Diverged)] == [False, True]


async def test_deletion_of_a_thread_that_nobody_can_read_is_not_carried_out() -> None:
    setting, ids = await late_deletion(base="known", moved=False)

    async def ask(question: object) -> object:
        raise ValueError("cannot be deserialized")

    setting.backend.ask = ask  # type: ignore[method-assign, assignment]  # stored data that no reader understands
    assert await setting.reconciler.drain_all()
    assert chain(setting.primary, "t") == ids
    assert [event.found_head for event in setting.recorder.of(Diverged)] == ["unreadable"]


@pytest.mark.parametrize("step", ["asked", "applied"])
async def test_outage_in_a_deletion_leaves_it_in_the_journal(step: str) -> None:
    setting, _ = await late_deletion(base="known", moved=False)
    if step == "asked":
        setting.saver.fail_with(ConnectionRefusedError("down"))
    else:
        setting.backend.refusals["t"] = FailureKind.OUTAGE
    assert not await setting.reconciler.drain_all()
    assert setting.journal.status().pending == 1
    setting.saver.heal()
    setting.backend.refusals.clear()
    setting.breaker.close()
    assert await setting.reconciler.drain_all()
    assert chain(setting.primary, "t") == []


async def test_deletion_that_is_refused_for_good_is_a_dead_letter() -> None:
    setting, ids = await late_deletion(base="known", moved=False)
    setting.backend.refusals["t"] = FailureKind.DATA
    assert await setting.reconciler.drain_all()
    assert setting.outcomes() == {"t": "frozen"}
    assert chain(setting.primary, "t") == ids


@pytest.mark.parametrize("on_divergence", ["newest_wins", "quarantine"])
async def test_branch_that_forked_is_found_by_the_step_that_writes(on_divergence: str) -> None:
    """A primary that compares heads itself is not asked for them first."""
    fork = await Fork(on_divergence=on_divergence).prepare()
    compare_heads(fork)
    assert await fork.reconciler.drain_all()
    kept_as = fork.sibling if on_divergence == "quarantine" else "a"
    assert [event.kept_as for event in fork.recorder.of(Diverged)] == [kept_as]
    assert fork.theirs.checkpoint_id in chain(fork.primary, "a")
    assert set(fork.ids(*fork.ours)) <= set(chain(fork.primary, kept_as))
    assert fork.reconciler.divergences == 1


async def test_thread_that_did_not_fork_stays_warm() -> None:
    setting = Setting()
    await setting.add(setting.author("a").put({"n": 1}), None)
    assert await setting.reconciler.drain_all()
    assert setting.standby.knows("a")
    assert setting.reconciler.divergences == 0


# In the background


async def test_it_drains_what_is_journaled_and_what_waited_for_the_primary() -> None:
    setting = Setting()
    async with setting.running():
        await setting.add_steps("a")
        assert await setting.reconciler.wait_drained(1.0)
        setting.breaker.trip("down")
        await setting.add_steps("b")
        await asyncio.sleep(0.02)
        assert setting.of("b") == []
        setting.breaker.close()
        setting.reconciler.wake()
        assert await setting.reconciler.wait_drained(1.0)
    assert len(setting.of("a")) == len(setting.of("b")) == 3


async def test_it_pauses_after_a_failure_and_tries_again_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enhanced_checkpointing.recovery.drain.SHORTEST_PAUSE", 0.01)
    setting = Setting()
    setting.backend.refusals["a"] = FailureKind.SATURATED
    async with setting.running():
        await setting.add_steps("a")
        await asyncio.sleep(0.1)
        tries = len(setting.recorder.of(ThreadDrained))
        assert 2 <= tries <= 6, "pauses grow"
        setting.backend.refusals.clear()
        assert await setting.reconciler.wait_drained(1.0)
    assert len(setting.of("a")) == 3


async def test_it_is_not_woken_by_what_is_journaled_while_the_breaker_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    setting, looks = Setting(), list[int]()
    drain_all = setting.reconciler.drain_all

    async def counted() -> bool:
        looks.append(setting.journal.status().pending)
        return await drain_all()

    monkeypatch.setattr(setting.reconciler, "drain_all", counted)
    setting.breaker.trip("down")
    async with setting.running():
        await setting.add_steps("a")
        await asyncio.sleep(0.02)
        assert looks == []
        setting.breaker.close()
        setting.reconciler.wake()
        await eventually(lambda: looks == [3])


async def test_it_goes_on_at_once_when_the_primary_is_back_after_it_was_lost_in_a_drain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reconciler, "SHORTEST_PAUSE", 2.0)
    setting = Setting()
    setting.backend.refusals["a"] = FailureKind.OUTAGE
    async with setting.running():
        await setting.add_steps("a")
        await eventually(lambda: setting.breaker.is_open and setting.outcomes() == {"a": "paused"})
        await asyncio.sleep(0.01)
        setting.backend.refusals.clear()
        setting.breaker.close()
        setting.reconciler.wake()
        assert await setting.reconciler.wait_drained(1.0), "whoever closed the breaker need not wait for a pause"


async def test_waiting_ends_with_its_time_and_tells_that_something_is_left() -> None:
    setting = Setting()
    await setting.add_steps("a")
    started_at = now()
    assert not await setting.reconciler.wait_drained(0.03)
    assert now() - started_at == pytest.approx(0.03, abs=1.01 * TICK)
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1


async def test_waiting_for_nothing_ends_at_once() -> None:
    assert await Setting().reconciler.wait_drained(0.0)


async def test_closing_ends_a_drain_and_what_was_not_marked_stays_in_the_journal() -> None:
    setting = Setting(deadline=5.0)
    await setting.add_steps("a")
    setting.saver.hang()
    draining = asyncio.ensure_future(setting.reconciler.drain_all())
    await eventually(lambda: setting.saver.calls.total() > 0)
    await setting.reconciler.close()
    with suppress(asyncio.CancelledError):
        await draining
    assert setting.journal.status().pending == 3
    await asyncio.sleep(0.01)
    assert len(asyncio.all_tasks()) == 1
    await setting.reconciler.close()


async def test_record_that_was_applied_without_a_reply_is_applied_again_without_harm() -> None:
    setting = Setting()
    puts = [replace(put, new_versions=put.new_versions) for put in await setting.add_steps("a")]
    await apply_shared(setting.primary, puts[0].replayable())
    before = setting.primary.get_tuple(puts[0].stored_config())
    assert await setting.reconciler.drain_all()
    assert setting.primary.get_tuple(puts[0].stored_config()) == before
    assert chain(setting.primary, "a") == [put.checkpoint_id for put in puts]


async def test_record_that_the_journal_cannot_read_any_more_freezes_its_thread() -> None:
    setting = Setting()
    await setting.add_steps("a")

    async def damaged(entries: Sequence[JournalEntry]) -> Sequence[JournalRecord]:
        raise CheckpointCorruptionError("it is not what was written")

    setting.journal.read = damaged  # type: ignore[method-assign]  # as the durable journal does
    await setting.reconciler.drain_all()
    assert setting.outcomes() == {"a": "frozen"}
    assert setting.backend.applied == []


async def test_mark_that_cannot_be_stored_leaves_the_thread_to_be_drained_again() -> None:
    setting = Setting()
    puts = await setting.add_steps("a")
    mark = setting.journal.mark_applied

    async def full(entries: Sequence[JournalEntry]) -> None:
        setting.journal.mark_applied = mark  # type: ignore[method-assign]  # the next one works
        raise JournalFullError("the disk is full")

    setting.journal.mark_applied = full  # type: ignore[method-assign]  # as the durable journal does
    assert not await setting.reconciler.drain_all()
    assert setting.outcomes() == {"a": "paused"}
    assert setting.journal.holds("a")
    assert await setting.reconciler.drain_all()
    assert setting.of("a") == 2 * [put.replayable() for put in puts]


async def test_live_calls_come_before_the_next_step_of_a_drain_but_not_for_ever() -> None:
    setting = Setting()
    looks = iter([1, 1, 0])
    setting.reconciler._replay._live_calls = lambda: next(looks, 1)
    await setting.add_steps("a")
    assert await setting.reconciler.drain_all()
    assert next(looks, None) is None
    await setting.add_steps("b")
    assert await setting.reconciler.drain_all(), "although a live call is always under way"


async def test_step_that_only_fails_as_a_whole_is_applied_record_by_record() -> None:
    setting = Setting()
    puts = await setting.add_steps("a")
    apply_all = setting.backend.apply_all

    async def alone_only(operations: Sequence[Operation], heads: Heads) -> bool:
        if len(operations) > 1:
            raise Refused(FailureKind.DATA)
        return await apply_all(operations, heads)

    setting.backend.apply_all = alone_only  # type: ignore[method-assign]  # a limit on the size of a step, for one
    assert await setting.reconciler.drain_all()
    assert setting.of("a") == [put.replayable() for put in puts]
    assert setting.journal.dead_letters() == []


async def test_head_that_moves_while_a_step_is_applied_record_by_record_is_seen() -> None:
    setting = Setting()
    compare_heads(setting)
    author, theirs = setting.author("a"), setting.author("a").put({"n": 100})
    base: BaseHead = None
    ours = [author.put({"n": step}) for step in range(2)]
    for put in ours:
        await setting.add(put, base)
        base = put.checkpoint_id
    comparing = setting.backend.apply_all

    async def alone_only(operations: Sequence[Operation], heads: Heads) -> bool:
        if len(operations) > 1 and theirs.checkpoint_id not in chain(setting.primary, "a"):
            await setting.backend.apply(theirs)  # by another process, in between
            raise Refused(FailureKind.DATA)
        return await comparing(operations, heads)

    setting.backend.apply_all = alone_only  # type: ignore[method-assign]
    assert await setting.reconciler.drain_all()
    assert set(chain(setting.primary, "a")) == {put.checkpoint_id for put in (*ours, theirs)}
    assert setting.reconciler.divergences == 1
    assert setting.journal.dead_letters() == []


async def test_outage_while_a_refused_record_is_looked_for_buries_nothing() -> None:
    setting = Setting()
    await setting.add_steps("a")
    failures = iter([FailureKind.DATA, FailureKind.OUTAGE])

    async def failing(operations: Sequence[Operation], heads: Heads) -> bool:
        raise Refused(next(failures))

    setting.backend.apply_all = failing  # type: ignore[method-assign]  # first a refusal, then nobody is there
    assert not await setting.reconciler.drain_all()
    assert setting.outcomes() == {"a": "paused"}
    assert setting.journal.dead_letters() == []
    assert setting.journal.status().pending == 3


async def test_record_that_nobody_told_of_is_looked_for_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciler, "LONGEST_PAUSE", 0.02)
    setting = Setting()
    async with setting.running():
        await asyncio.sleep(0.07)  # it looks, and there is nothing
        put = setting.author("a").put({"n": 1})
        await setting.journal.append(put, UNKNOWN, Deadline(now, 1.0))
        await eventually(lambda: setting.of("a") == [put.replayable()])


class LiveBackend(WatchedBackend):
    """A saver that serializes by itself, as those of others do."""

    lost_types = Backend.lost_types
    apply = Backend.apply


@pytest.mark.parametrize("where", ["value", "write"])
async def test_thread_waits_whose_objects_a_saver_of_others_would_store_as_plain_data(where: str) -> None:
    setting = Setting(backend=LiveBackend, serde=JsonPlusSerializer(allowed_msgpack_modules=None))
    kept = {"one": [Mode.FAST], "deep": [{"a": Answer(Mode.FAST)}], "known": {1}}
    author = setting.author("a")
    put = author.put(kept if where == "value" else {})
    await setting.add(put)
    if where == "write":
        await setting.add(author.writes(*kept.items()))
    await setting.add_steps("free")
    for _ in range(2):
        await setting.reconciler.drain_all()
    assert setting.outcomes() == {"a": Drain.UNREADABLE.value, "free": "drained"}
    assert setting.journal.holds("a")
    (notice,) = setting.recorder.of(Notice)
    assert f"{__name__}.Answer, {__name__}.Mode" in notice.message
    widen_allowlist(setting.serializer, [(__name__, "Mode"), (__name__, "Answer")])
    assert await setting.reconciler.drain_all()
    found = setting.primary.get_tuple(config_of("a"))
    assert found is not None
    read = found.checkpoint["channel_values"] if where == "value" else {c: v for _, c, v in found.pending_writes or ()}
    assert read == kept


async def test_object_that_no_reader_ever_makes_keeps_no_thread_waiting() -> None:
    """A class that is not found by its name comes back as plain data from any saver."""
    setting = Setting(backend=LiveBackend)
    await setting.add(setting.author("a").put({"n": [Outer.Inner.ONE]}))
    assert await setting.reconciler.drain_all()
    assert not setting.journal.holds("a")
