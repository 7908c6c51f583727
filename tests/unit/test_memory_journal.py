"""The journal's contract, without the disk."""

from __future__ import annotations

import asyncio
import time

import pytest

from enhanced_checkpointing.errors import JournalFullError
from enhanced_checkpointing.journal.contract import UNKNOWN, JournalRecord
from enhanced_checkpointing.journal.memory_journal import MemoryJournal
from enhanced_checkpointing.operations import DeleteThread, Put
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.testing import FakeClock
from tests.support.author import Author

SIZE = 512
"""Bytes that a deletion takes in the journal."""


class Desk:
    """A journal on a clock of its own."""

    def __init__(self, capacity: int = 100_000) -> None:
        self.clock = FakeClock(1000.0)
        self.journal = MemoryJournal(capacity, self.clock)

    async def add(self, thread_id: str, seconds: float = 1.0) -> JournalRecord:
        return await self.journal.append(DeleteThread(thread_id), UNKNOWN, Deadline(time.monotonic, seconds))


async def test_record_keeps_what_was_appended_ready_for_replay() -> None:
    desk = Desk()
    await desk.journal.open()
    put = Author().put({"profile": ["Ada"]})
    record = await desk.journal.append(put, "base", Deadline(time.monotonic, 1.0))
    assert record == JournalRecord(1, 1, put.replayable(), "base", 1000.0, record.size)
    assert isinstance(record.operation, Put)
    assert record.operation.live_values is None, "the caller's own objects must not be kept"
    assert record.size > SIZE
    await desk.journal.close()


async def test_sequences_count_all_records_and_those_of_each_thread() -> None:
    desk = Desk()
    records = [await desk.add(thread_id) for thread_id in ("a", "b", "a", "b", "b")]
    assert [record.sequence for record in records] == [1, 2, 3, 4, 5]
    assert [record.thread_sequence for record in records] == [1, 1, 2, 2, 3]


async def test_records_of_a_thread_come_oldest_first_and_only_go_when_marked() -> None:
    desk = Desk()
    first, second = await desk.add("a"), await desk.add("a")
    assert await desk.journal.next_record("a") is first
    assert await desk.journal.next_record("a") is first
    assert await desk.journal.records("a") == (first, second)
    await desk.journal.mark_applied(first)
    assert await desk.journal.next_record("a") is second
    assert desk.journal.holds("a")
    await desk.journal.mark_applied(second)
    assert await desk.journal.next_record("a") is None
    assert await desk.journal.records("a") == ()
    assert not desk.journal.holds("a")


@pytest.mark.parametrize("which", [1, 2])
async def test_only_the_oldest_record_can_be_marked_or_buried(which: int) -> None:
    desk = Desk()
    records = [await desk.add("a") for _ in range(3)]
    with pytest.raises(ValueError, match="not the oldest"):
        await desk.journal.mark_applied(records[which])
    with pytest.raises(ValueError, match="not the oldest"):
        await desk.journal.bury(records[which], "refused")
    assert await desk.journal.records("a") == tuple(records)
    assert desk.journal.status().pending == 3


async def test_threads_wait_in_the_order_of_their_oldest_record() -> None:
    desk = Desk()
    first = await desk.add("a")
    await desk.add("b")
    await desk.add("a")
    assert desk.journal.waiting_threads() == ["a", "b"]
    await desk.journal.mark_applied(first)
    assert desk.journal.waiting_threads() == ["b", "a"]


async def test_dead_letter_freezes_its_thread_and_no_other() -> None:
    desk = Desk()
    refused, behind, other = await desk.add("a"), await desk.add("a"), await desk.add("b")
    await desk.journal.bury(refused, "value too long")
    assert [(letter.record, letter.error) for letter in desk.journal.dead_letters()] == [(refused, "value too long")]
    assert desk.journal.waiting_threads() == ["b"]
    assert desk.journal.holds("a")
    assert await desk.journal.next_record("a") is None
    assert await desk.journal.records("a") == (behind,)
    status = desk.journal.status()
    assert (status.pending, status.dead_letters, status.frozen_threads) == (2, 1, ("a",))
    await desk.journal.mark_applied(other)
    assert not desk.journal.holds("b")


async def test_thread_whose_last_record_was_buried_stays_held() -> None:
    desk = Desk()
    await desk.journal.bury(await desk.add("a"), "refused")
    assert desk.journal.holds("a")
    assert desk.journal.waiting_threads() == []
    status = desk.journal.status()
    assert (status.pending, status.oldest_at, status.frozen_threads) == (0, None, ("a",))


async def test_thread_that_came_back_after_its_drain_starts_anew() -> None:
    desk = Desk()
    await desk.journal.mark_applied(await desk.add("a"))
    record = await desk.add("a")
    assert (record.sequence, record.thread_sequence) == (2, 1)


async def test_status_tells_what_waits_since_when_and_how_much() -> None:
    desk = Desk(capacity=5 * SIZE)
    assert desk.journal.status().oldest_at is None
    first = await desk.add("a")
    desk.clock.advance(30)
    await desk.add("b")
    status = desk.journal.status()
    assert (status.pending, status.oldest_at, status.size, status.capacity) == (2, 1000.0, 2 * SIZE, 5 * SIZE)
    await desk.journal.mark_applied(first)
    status = desk.journal.status()
    assert (status.pending, status.oldest_at, status.size) == (1, 1030.0, SIZE)


async def test_journal_that_is_full_refuses_after_the_deadline_and_drops_nothing() -> None:
    desk = Desk(capacity=2 * SIZE)
    await desk.add("a")
    await desk.add("a")
    started_at = time.monotonic()
    with pytest.raises(JournalFullError, match=r"1,024 of 1,024 bytes.*512 bytes.*CHECKPOINT_JOURNAL_MAX_BYTES"):
        await desk.add("b", seconds=0.05)
    assert 0.04 < time.monotonic() - started_at < 0.15
    assert desk.journal.status().pending == 2
    assert not desk.journal.holds("b")


async def test_append_waits_for_room_and_takes_it_as_soon_as_there_is_some() -> None:
    desk = Desk(capacity=2 * SIZE)
    first = await desk.add("a")
    await desk.add("a")
    waiting = [asyncio.ensure_future(desk.add(name)) for name in ("b", "c")]
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in waiting)
    await desk.journal.mark_applied(first)
    done, pending = await asyncio.wait(waiting, timeout=0.05)
    assert (len(done), len(pending)) == (1, 1), "there was room for one"
    assert desk.journal.status().size == 2 * SIZE
    await desk.journal.mark_applied((await desk.journal.records("a"))[0])
    await asyncio.wait_for(asyncio.gather(*pending), 1.0)


async def test_burying_makes_room_too() -> None:
    desk = Desk(capacity=SIZE)
    first = await desk.add("a")
    waiting = asyncio.ensure_future(desk.add("b"))
    await asyncio.sleep(0.01)
    await desk.journal.bury(first, "refused")
    await asyncio.wait_for(waiting, 1.0)


async def test_append_that_is_cancelled_while_it_waits_stores_nothing() -> None:
    desk = Desk(capacity=SIZE)
    first = await desk.add("a")
    waiting = asyncio.ensure_future(desk.add("b"))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await desk.journal.mark_applied(first)
    assert desk.journal.status().pending == 0
    assert len(asyncio.all_tasks()) == 1


def test_memory_is_never_durable() -> None:
    assert MemoryJournal(SIZE).durable is False
