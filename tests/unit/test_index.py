"""What a journal holds, without the journal: what its two kinds do not show by themselves."""

from __future__ import annotations

import asyncio

import pytest

from enhanced_checkpointing.errors import JournalFullError
from enhanced_checkpointing.journal.contract import UNKNOWN, DeadLetter, JournalEntry, entry_of
from enhanced_checkpointing.journal.index import Index
from enhanced_checkpointing.operations import DeleteThread
from tests.support.journals import soon


def entry(index: Index, thread_id: str, thread_sequence: int = 1, size: int = 10) -> JournalEntry:
    return entry_of(
        DeleteThread(thread_id),
        UNKNOWN,
        sequence=index.next_sequence(),
        thread_sequence=thread_sequence,
        journaled_at=1.0,
        size=size,
    )


async def added(index: Index, thread_id: str) -> JournalEntry:
    stored = entry(index, thread_id, await index.begin(thread_id, 10, soon()))
    index.add(stored)
    return stored


def adopted(index: Index, thread_id: str) -> JournalEntry:
    found = entry(index, thread_id, index.next_of(thread_id))
    index.adopt(found)
    return found


async def test_thread_is_held_from_the_moment_that_an_append_begins() -> None:
    index = Index(100)
    assert await index.begin("a", 10, soon()) == 1
    assert index.holds("a")
    assert index.held_threads() == ["a"]
    assert not index.anything_waits()
    assert (index.status().pending, index.status().size, index.fill) == (0, 10, 0.1)


async def test_append_that_was_given_up_leaves_nothing() -> None:
    index = Index(100)
    await index.begin("a", 10, soon())
    index.give_up("a", 10)
    assert not index.holds("a")
    assert index.status().size == 0


async def test_thread_whose_records_are_drained_while_another_is_on_its_way_stays_held() -> None:
    index = Index(100)
    first = await added(index, "a")
    assert await index.begin("a", 10, soon()) == 2
    index.divert("a", "sibling")
    index.remove([first])
    assert index.holds("a")
    assert index.diverted("a") == "sibling"
    second = entry(index, "a", 2)
    index.add(second)
    index.remove([second])
    assert not index.holds("a")


async def test_given_up_append_does_not_release_a_thread_with_records() -> None:
    index = Index(100)
    await added(index, "a")
    await index.begin("a", 10, soon())
    index.give_up("a", 10)
    assert index.waiting_threads() == ["a"]


async def test_threads_on_their_way_come_behind_all_that_have_records() -> None:
    index = Index(100)
    await added(index, "b")
    await index.begin("a", 10, soon())
    assert index.held_threads() == ["b", "a"]


async def test_adopted_records_come_first_and_count_like_others() -> None:
    index = Index(100)
    first, second = adopted(index, "a"), adopted(index, "a")
    third = await added(index, "a")
    assert index.entries("a") == (first, second, third)
    assert [each.thread_sequence for each in (first, second, third)] == [1, 2, 3]
    assert (index.status().pending, index.status().size) == (3, 30)


async def test_more_than_fits_may_be_adopted_and_then_nothing_else_fits() -> None:
    index = Index(15)
    first, second = adopted(index, "a"), adopted(index, "a")
    assert index.fill > 1
    with pytest.raises(JournalFullError):
        await index.begin("b", 10, soon(0.02))
    waiting = asyncio.ensure_future(index.begin("b", 10, soon()))
    await asyncio.sleep(0)
    index.remove([first])
    await asyncio.sleep(0.01)
    assert not waiting.done(), "there is room now, but not enough"
    index.remove([second])
    assert await waiting == 1


async def test_dead_letter_that_was_adopted_freezes_its_thread_and_takes_no_room() -> None:
    index = Index(100)
    letter = DeadLetter(entry(index, "a", index.next_of("a")), "refused")
    index.adopt_letter(letter)
    behind = adopted(index, "a")
    assert index.dead_letters() == [letter]
    assert index.entries("a") == (behind,)
    assert index.is_frozen("a")
    assert (index.status().dead_letters, index.status().pending, index.status().size) == (1, 1, 10)
    assert index.held_threads() == ["a"]


async def test_damaged_thread_is_held_and_frozen_although_nothing_is_left_of_it() -> None:
    index = Index(100)
    index.damage("a")
    assert index.holds("a")
    assert index.is_frozen("a")
    assert index.is_damaged("a")
    assert index.waiting_threads() == []
    record = await added(index, "a")
    index.remove([record])
    assert index.holds("a")


def test_thread_that_is_not_held_cannot_be_diverted() -> None:
    index = Index(100)
    index.divert("a", "sibling")
    assert not index.holds("a")
    assert index.diverted("a") is None
