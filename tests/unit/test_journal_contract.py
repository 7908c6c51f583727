"""What every journal promises: the one on disk and the one in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import pytest
from langgraph.checkpoint.base import CheckpointMetadata

from enhanced_checkpointing.errors import JournalFullError
from enhanced_checkpointing.journal.api import UNKNOWN, BaseHead, Journal, JournalEntry, entry_of
from enhanced_checkpointing.journal.memory import MemoryJournal
from enhanced_checkpointing.operations import DeleteThread, Operation, Put
from enhanced_checkpointing.testing import FakeClock
from tests.support.author import Author
from tests.support.journals import CAPACITY, add, durable_journal, operations_in, soon

both = pytest.mark.parametrize("kind", ["memory", "durable"])


class Desk:
    """A journal on a clock of its own. `size` is what a deletion takes in it, in bytes."""

    def __init__(self, kind: str, capacity: int) -> None:
        self.clock = FakeClock(1000.0)
        self.journal: Journal = (
            MemoryJournal(capacity, self.clock)
            if kind == "memory"
            else durable_journal(capacity=capacity, wall_clock=self.clock)
        )

    async def add(self, thread_id: str, seconds: float = 5.0) -> JournalEntry:
        return await add(self.journal, thread_id, seconds=seconds)


@asynccontextmanager
async def desk_of(kind: str, capacity: int = CAPACITY) -> AsyncIterator[Desk]:
    desk = Desk(kind, capacity)
    await desk.journal.open()
    try:
        yield desk
    finally:
        await desk.journal.close()


async def size_of_one(kind: str) -> int:
    """Bytes that the deletion of a thread with a name of one letter takes."""
    async with desk_of(kind) as desk:
        entry = await desk.add("x")
        await desk.journal.mark_applied([entry])
        return entry.size


@both
@pytest.mark.parametrize("base_head", ["base", None, UNKNOWN])
async def test_record_keeps_what_was_appended_ready_for_replay(kind: str, base_head: BaseHead) -> None:
    async with desk_of(kind) as desk:
        put = Author().put({"profile": ["Ada"], "n": 1})
        entry = await add(desk.journal, put, base_head)
        assert entry == entry_of(put, base_head, sequence=1, thread_sequence=1, journaled_at=1000.0, size=entry.size)
        assert entry.size > await size_of_one(kind)
        (record,) = await desk.journal.read([entry])
        assert record.entry is entry
        assert record.operation == put.replayable()
        assert isinstance(record.operation, Put)
        assert record.operation.live_values is None, "the caller's own objects must not be kept"


@both
async def test_caller_who_goes_on_changing_what_he_put_changes_nothing_of_the_record(kind: str) -> None:
    async with desk_of(kind) as desk:
        metadata: dict[str, Any] = {"source": "loop", "step": 1, "parents": {}, "tags": ["kept"]}
        put = replace(Author().put({"n": 1}), metadata=cast("CheckpointMetadata", metadata))
        updated = put.skeleton["updated_channels"] = ["n"]  # type: ignore[index]  # as LangGraph's own is
        entry = await add(desk.journal, put)
        metadata["tags"].append("changed")
        updated.append("changed")
        (record,) = await desk.journal.read([entry])
        assert isinstance(record.operation, Put)
        assert dict(record.operation.metadata)["tags"] == ["kept"]
        assert record.operation.skeleton["updated_channels"] == ["n"]


@both
async def test_every_operation_is_read_back_as_it_was(kind: str) -> None:
    async with desk_of(kind) as desk:
        author = Author()
        operations: list[Operation] = [
            author.put({"n": 1, "profile": ["Ada"]}, bumped=["delta"]),
            author.writes(("n", 2), ("profile", {"b": b"x"}), task_path="~a"),
            DeleteThread("thread"),
        ]
        for operation in operations:
            await add(desk.journal, operation)
        assert await operations_in(desk.journal, "thread") == [operation.replayable() for operation in operations]


@both
async def test_sequences_count_all_records_and_those_of_each_thread(kind: str) -> None:
    async with desk_of(kind) as desk:
        entries = [await desk.add(thread_id) for thread_id in ("a", "b", "a", "b", "b")]
        assert [entry.sequence for entry in entries] == [1, 2, 3, 4, 5]
        assert [entry.thread_sequence for entry in entries] == [1, 1, 2, 2, 3]


@both
async def test_records_of_a_thread_come_oldest_first_and_only_go_when_marked(kind: str) -> None:
    async with desk_of(kind) as desk:
        first, second, third = [await desk.add("a") for _ in range(3)]
        assert desk.journal.entries("a") == (first, second, third)
        assert desk.journal.entries("a", 2) == (first, second)
        await desk.journal.mark_applied([first, second])
        assert desk.journal.entries("a") == (third,)
        assert desk.journal.holds("a")
        await desk.journal.mark_applied([third])
        assert desk.journal.entries("a") == ()
        assert not desk.journal.holds("a")
        assert not desk.journal.anything_waits()


@both
@pytest.mark.parametrize("which", [[1], [2], [0, 2], [1, 0]])
async def test_only_the_oldest_records_can_be_marked(kind: str, which: list[int]) -> None:
    async with desk_of(kind) as desk:
        entries = [await desk.add("a") for _ in range(3)]
        with pytest.raises(ValueError, match="not the oldest"):
            await desk.journal.mark_applied([entries[number] for number in which])
        assert desk.journal.entries("a") == tuple(entries)
        assert desk.journal.status().pending == 3


@both
async def test_only_the_oldest_record_can_be_buried(kind: str) -> None:
    async with desk_of(kind) as desk:
        entries = [await desk.add("a") for _ in range(2)]
        with pytest.raises(ValueError, match="not the oldest"):
            await desk.journal.dead_letter(entries[1], "refused")
        assert not desk.journal.is_frozen("a")


@both
async def test_records_that_are_not_there_any_more_cannot_be_marked(kind: str) -> None:
    async with desk_of(kind) as desk:
        first, second = await desk.add("a"), await desk.add("a")
        await desk.journal.mark_applied([first])
        with pytest.raises(ValueError, match="not in the journal"):
            await desk.journal.mark_applied([first, second])
        await desk.journal.mark_applied([second])
        with pytest.raises(ValueError, match="not in the journal"):
            await desk.journal.mark_applied([second])


@both
async def test_threads_wait_in_the_order_of_their_oldest_record(kind: str) -> None:
    async with desk_of(kind) as desk:
        first = await desk.add("a")
        await desk.add("b")
        await desk.add("a")
        assert desk.journal.waiting_threads() == ["a", "b"]
        await desk.journal.mark_applied([first])
        assert desk.journal.waiting_threads() == desk.journal.held_threads() == ["b", "a"]


@both
async def test_dead_letter_freezes_its_thread_and_no_other(kind: str) -> None:
    async with desk_of(kind) as desk:
        refused, behind, other = await desk.add("a"), await desk.add("a"), await desk.add("b")
        await desk.journal.dead_letter(refused, "value too long: ü\ud800")
        assert [(letter.entry, letter.error) for letter in desk.journal.dead_letters()] == [
            (refused, "value too long: ü\ud800")
        ]
        assert desk.journal.waiting_threads() == ["b"]
        assert desk.journal.held_threads() == ["a", "b"]
        assert desk.journal.holds("a")
        assert desk.journal.is_frozen("a")
        assert not desk.journal.is_damaged("a")
        assert not desk.journal.is_frozen("b")
        assert desk.journal.entries("a") == (behind,)
        status = desk.journal.status()
        assert (status.pending, status.dead_letters, status.frozen_threads) == (2, 1, ("a",))
        (record,) = await desk.journal.read([refused])
        assert record.operation == DeleteThread("a"), "what was refused can still be read"
        await desk.journal.mark_applied([other])
        assert not desk.journal.holds("b")


@both
async def test_thread_whose_last_record_was_buried_stays_held(kind: str) -> None:
    async with desk_of(kind) as desk:
        await desk.journal.dead_letter(await desk.add("a"), "refused")
        assert desk.journal.holds("a")
        assert desk.journal.waiting_threads() == []
        assert not desk.journal.anything_waits()
        status = desk.journal.status()
        assert (status.pending, status.oldest_at, status.size, status.frozen_threads) == (0, None, 0, ("a",))


@both
async def test_thread_that_came_back_after_its_drain_starts_anew(kind: str) -> None:
    async with desk_of(kind) as desk:
        await desk.journal.mark_applied([await desk.add("a")])
        entry = await desk.add("a")
        assert (entry.sequence, entry.thread_sequence) == (2, 1)


@both
async def test_what_is_diverted_stays_so_until_nothing_of_the_thread_is_left(kind: str) -> None:
    async with desk_of(kind) as desk:
        first, second = await desk.add("a"), await desk.add("a")
        assert desk.journal.redirected("a") is None
        await desk.journal.redirect("a", "sibling")
        await desk.journal.mark_applied([first])
        assert desk.journal.redirected("a") == "sibling"
        assert desk.journal.redirected("b") is None
        await desk.journal.mark_applied([second])
        assert desk.journal.redirected("a") is None
        await desk.add("a")
        assert desk.journal.redirected("a") is None, "another outage, another branch"


@both
async def test_thread_that_is_not_in_the_journal_is_nothing_of(kind: str) -> None:
    async with desk_of(kind) as desk:
        journal = desk.journal
        assert not any([journal.holds("a"), journal.is_frozen("a"), journal.is_damaged("a"), journal.redirected("a")])
        assert journal.entries("a") == ()
        assert (journal.held_threads(), journal.waiting_threads(), journal.dead_letters()) == ([], [], [])


@both
async def test_journal_that_is_healthy_passes_its_check_and_keeps_nothing_of_it(kind: str) -> None:
    async with desk_of(kind) as desk:
        before = desk.journal.status()
        await desk.journal.check()
        assert desk.journal.status() == before
        assert (before.error, before.damages) == (None, 0)


@both
async def test_status_tells_what_waits_since_when_and_how_much(kind: str) -> None:
    size = await size_of_one(kind)
    async with desk_of(kind, capacity=5 * size) as desk:
        assert desk.journal.status().oldest_at is None
        first = await desk.add("a")
        desk.clock.advance(30)
        await desk.add("b")
        status = desk.journal.status()
        assert (status.pending, status.oldest_at, status.size, status.capacity) == (2, 1000.0, 2 * size, 5 * size)
        await desk.journal.mark_applied([first])
        status = desk.journal.status()
        assert (status.pending, status.oldest_at, status.size) == (1, 1030.0, size)


@both
async def test_journal_that_is_full_refuses_after_the_deadline_and_drops_nothing(kind: str) -> None:
    size = await size_of_one(kind)
    async with desk_of(kind, capacity=2 * size) as desk:
        await desk.add("a")
        await desk.add("c")
        started_at = time.monotonic()
        with pytest.raises(
            JournalFullError, match=rf"{2 * size:,} of {2 * size:,} bytes.*{size} bytes.*CHECKPOINT_JOURNAL_MAX_BYTES"
        ):
            await desk.add("b", seconds=0.05)
        assert 0.04 < time.monotonic() - started_at < 0.25
        assert desk.journal.status().pending == 2
        assert not desk.journal.holds("b")


@both
async def test_append_waits_for_room_and_takes_it_as_soon_as_there_is_some(kind: str) -> None:
    size = await size_of_one(kind)
    async with desk_of(kind, capacity=2 * size) as desk:
        first = await desk.add("a")
        second = await desk.add("d")
        waiting = [asyncio.ensure_future(desk.add(name)) for name in ("b", "c")]
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in waiting)
        await desk.journal.mark_applied([first])
        done, pending = await asyncio.wait(waiting, timeout=0.2, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0.05)
        assert (len(done), sum(task.done() for task in waiting)) == (1, 1), "there was room for one"
        assert desk.journal.status().size == 2 * size
        await desk.journal.mark_applied([second])
        await asyncio.wait_for(asyncio.gather(*pending), 1.0)


@both
async def test_burying_makes_room_too(kind: str) -> None:
    async with desk_of(kind, capacity=await size_of_one(kind)) as desk:
        first = await desk.add("a")
        waiting = asyncio.ensure_future(desk.add("b"))
        await asyncio.sleep(0.01)
        await desk.journal.dead_letter(first, "refused")
        await asyncio.wait_for(waiting, 1.0)


@both
async def test_append_that_is_cancelled_while_it_waits_stores_nothing(kind: str) -> None:
    async with desk_of(kind, capacity=await size_of_one(kind)) as desk:
        first = await desk.add("a")
        waiting = asyncio.ensure_future(desk.add("b"))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await desk.journal.mark_applied([first])
        assert desk.journal.status().pending == 0
        assert len(asyncio.all_tasks()) == 1


@both
async def test_concurrent_appends_are_stored_in_the_order_of_their_calls(kind: str) -> None:
    async with desk_of(kind) as desk:
        names = [str(number) for number in range(30)]
        entries = await asyncio.gather(*(desk.add(name) for name in names))
        assert [entry.thread_id for entry in sorted(entries, key=lambda entry: entry.sequence)] == names


@both
async def test_appends_of_a_thread_that_wait_for_room_are_stored_in_order_and_hold_up_nobody_else(kind: str) -> None:
    size = await size_of_one(kind)
    async with desk_of(kind, capacity=8 * size) as desk:
        old = [await desk.add(name) for name in "aabbcc"]
        big = Author("g").put({"log": [2 * size * "x"]})
        waiting = [asyncio.ensure_future(add(desk.journal, big)), asyncio.ensure_future(desk.add("g"))]
        await asyncio.sleep(0.01)
        await desk.add("h", seconds=0.05)
        assert not any(task.done() for task in waiting)
        for entry in old:
            await desk.journal.mark_applied([entry])
        await waiting[0]
        await asyncio.sleep(0.01)
        assert not waiting[1].done(), "its thread has more than its share"
        await desk.journal.mark_applied([waiting[0].result()])
        await asyncio.wait_for(waiting[1], 1.0)


@both
async def test_write_that_is_larger_than_the_journal_is_refused_at_once_and_refuses_nobody_else(kind: str) -> None:
    """Seen before: of 40 small writes 30 were refused, as they waited behind it."""
    size = await size_of_one(kind)
    async with desk_of(kind, capacity=50 * size) as desk:
        large = Author("large").put({"log": [60 * size * "x"]})
        began = time.monotonic()
        tasks = [asyncio.ensure_future(desk.add(str(number % 20), seconds=0.3)) for number in range(10)]
        tasks.append(asyncio.ensure_future(add(desk.journal, large, seconds=2.0)))
        for number in range(10, 40):
            tasks.append(asyncio.ensure_future(desk.add(str(number % 20), seconds=0.3)))
            await asyncio.sleep(0.001)
        told = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [each for each in told if not isinstance(each, JournalEntry)]
        assert [type(each) for each in refused] == [JournalFullError]
        assert "whole journal" in str(refused[0])
        assert time.monotonic() - began < 1.0


@both
async def test_what_is_begun_is_stored_in_the_order_in_which_it_was_begun(kind: str) -> None:
    async with desk_of(kind) as desk:
        begun = [desk.journal.begin(DeleteThread(str(number)), None) for number in range(30)]
        assert all(desk.journal.holds(str(number)) for number in range(30)), "from now on"
        entries = [await appending.stored(soon()) for appending in begun if appending is not None]
        assert [entry.thread_id for entry in entries] == [str(number) for number in range(30)]
        assert [entry.sequence for entry in entries] == sorted(entry.sequence for entry in entries)
        assert desk.journal.entries("7") == (entries[7],)


@both
async def test_what_would_have_to_wait_is_not_begun(kind: str) -> None:
    size = await size_of_one(kind)
    async with desk_of(kind, capacity=2 * size) as desk:
        old = [await desk.add(name) for name in "ad"]
        assert desk.journal.begin(DeleteThread("b"), UNKNOWN) is None, "for room"
        assert not desk.journal.holds("b")
        waiting = asyncio.ensure_future(desk.add("b"))
        await asyncio.sleep(0.01)
        for entry in old:
            await desk.journal.mark_applied([entry])
        assert desk.journal.begin(DeleteThread("b"), UNKNOWN) is None, "behind the one that waits"
        await desk.journal.mark_applied([await waiting])
        assert desk.journal.begin(DeleteThread("b"), UNKNOWN) is not None


@both
async def test_what_was_begun_and_nobody_waits_for_is_stored_all_the_same(kind: str) -> None:
    async with desk_of(kind) as desk:
        desk.journal.begin(DeleteThread("a"), None)
        await desk.add("b")
        assert [len(desk.journal.entries(name)) for name in "ab"] == [1, 1]


@both
async def test_all_who_wait_until_the_same_moment_are_told_that_there_is_no_room(kind: str) -> None:
    async with desk_of(kind, capacity=await size_of_one(kind)) as desk:
        await desk.add("a")
        told = await asyncio.gather(*(desk.add(name, seconds=0.05) for name in "bcdef"), return_exceptions=True)
        assert [type(error) for error in told] == [JournalFullError] * 5


@both
async def test_append_behind_one_that_waits_for_room_ends_at_its_own_deadline(kind: str) -> None:
    async with desk_of(kind, capacity=await size_of_one(kind)) as desk:
        first = await desk.add("a")
        patient = asyncio.ensure_future(desk.add("b"))
        await asyncio.sleep(0)
        started_at = time.monotonic()
        with pytest.raises(JournalFullError):
            await desk.add("c", seconds=0.05)
        assert 0.04 < time.monotonic() - started_at < 0.25
        await desk.journal.mark_applied([first])
        await asyncio.wait_for(patient, 1.0)
        assert not desk.journal.holds("c")


def test_memory_is_never_durable_and_the_disk_is() -> None:
    assert MemoryJournal(CAPACITY).durable is False
    assert durable_journal().durable is True
