"""What a journal holds, without the journal: what its two kinds do not show by themselves."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enhanced_checkpointing.errors import JournalFullError
from enhanced_checkpointing.journal.api import UNKNOWN, BaseHead, JournalEntry, entry_of
from enhanced_checkpointing.journal.index import Index
from enhanced_checkpointing.operations import DeleteThread
from tests.support.journals import soon


def entry(
    index: Index, thread_id: str, thread_sequence: int = 1, size: int = 10, journaled_at: float = 1.0
) -> JournalEntry:
    return entry_of(
        DeleteThread(thread_id),
        UNKNOWN,
        sequence=index.next_sequence(),
        thread_sequence=thread_sequence,
        journaled_at=journaled_at,
        size=size,
    )


async def added(index: Index, thread_id: str) -> JournalEntry:
    stored = entry(index, thread_id, await index.begin(thread_id, 10, soon()))
    index.add(stored)
    return stored


def adopted(index: Index, thread_id: str) -> JournalEntry:
    found = entry(index, thread_id, index.next_of(thread_id))
    index.take_over(thread_id, [found])
    return found


async def test_thread_is_held_from_the_moment_that_an_append_begins() -> None:
    index = Index(100)
    assert await index.begin("a", 10, soon()) == 1
    assert index.holds("a")
    assert index.held_threads() == ["a"]
    assert not index.anything_waits()
    assert (index.status().pending, index.status().size, index.own_size) == (0, 10, 10)


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
    index.redirect("a", "sibling")
    index.remove([first])
    assert index.holds("a")
    assert index.redirected("a") == "sibling"
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


async def test_what_was_adopted_takes_no_room_of_ours_and_is_counted() -> None:
    index = Index(80)
    others = [adopted(index, "a") for _ in range(3)]
    ours = [await added(index, "a") for _ in range(2)]
    status = index.status()
    assert (status.pending, status.size, status.adopted_size, index.own_size) == (5, 50, 30, 20)
    index.remove(others[:2])
    index.dead_letter(others[2], "refused")
    with pytest.raises(JournalFullError, match="holds 20 of 80 bytes"):
        await index.begin("b", 70, soon(0.02))
    assert index.status().adopted_size == 0
    assert index.entries("a") == tuple(ours)


async def test_room_that_is_not_enough_is_waited_on() -> None:
    index = Index(20)
    first, second = await added(index, "a"), await added(index, "c")
    waiting = asyncio.ensure_future(index.begin("b", 20, soon()))
    await asyncio.sleep(0)
    index.remove([first])
    await asyncio.sleep(0.01)
    assert not waiting.done(), "there is room now, but not enough"
    index.remove([second])
    assert await waiting == 1


def test_records_that_are_adopted_take_their_places_by_the_time_when_they_were_written() -> None:
    index = Index(1000)

    def written(*stamps: float) -> list[JournalEntry]:
        return [replace(entry(index, "a", index.next_of("a")), journaled_at=stamp) for stamp in stamps]

    ours = written(3.0, 1.0, 5.0)  # the clock jumped back once
    index.take_over("a", ours)
    theirs = written(2.0, 3.0, 4.0)
    index.take_over("a", theirs)
    assert index.entries("a") == (theirs[0], ours[0], ours[1], theirs[1], theirs[2], ours[2])
    index.remove(index.entries("a", 2))
    assert index.waiting_threads() == ["a"]


def test_deletion_means_what_other_processes_had_written_before_it() -> None:
    index = Index(1000)

    def put(checkpoint_id: str, checkpoint_ns: str = "") -> JournalEntry:
        found = entry(index, "a", index.next_of("a"))
        return replace(found, name="put", checkpoint_ns=checkpoint_ns, checkpoint_id=checkpoint_id)

    def deletion(base_head: BaseHead) -> JournalEntry:
        return replace(entry(index, "a", index.next_of("a")), base_head=base_head)

    index.take_over(
        "a",
        [
            *(put("3"), put("9", "child"), deletion("2")),
            *(deletion("2"), put("4"), deletion("5")),
            *(put("6"), deletion(None), put("7"), deletion(UNKNOWN)),
        ],
    )
    deletions = [found.base_head for found in index.entries("a") if found.name == "delete"]
    assert deletions == ["3", "2", "5", "6", UNKNOWN]


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
    index.redirect("a", "sibling")
    assert not index.holds("a")
    assert index.redirected("a") is None


# The order in which appends come in


async def come(index: Index, log: list[str], name: str, size: int = 10, seconds: float = 5.0) -> None:
    deadline = soon(seconds)
    async with index.turn(deadline) as mine:
        assert mine
    await index.begin(name[0], size, deadline)
    log.append(name)


async def test_append_that_nobody_is_in_front_of_has_its_turn_without_waiting() -> None:
    index, deadline = Index(100), soon(0.0)
    async with index.turn(deadline) as mine:
        assert mine
    async with index.turn(deadline) as mine:
        assert mine, "the first one gave it back"
    assert len(asyncio.all_tasks()) == 1


async def test_record_that_waits_for_room_lets_other_threads_pass_and_its_own_wait_behind_it() -> None:
    index, log = Index(100), list[str]()
    first = await added(index, "first")
    names = (("big", 95), ("b small", 2), ("small", 2), ("b last", 2))
    waiting = [asyncio.ensure_future(come(index, log, name, size)) for name, size in names]
    await asyncio.sleep(0.01)
    assert log == ["small"]
    assert not index.takes_at_once("b", 1)
    assert index.takes_at_once("c", 1)
    index.remove([first])
    index.give_up("s", 2)
    await asyncio.sleep(0.01)
    assert log == ["small", "big"], "a quarter is full, and more"
    index.give_up("b", 95)
    await asyncio.gather(*waiting)
    assert log == ["small", "big", "b small", "b last"]


async def test_thread_takes_no_more_than_a_quarter_and_is_told_so_while_others_go_on() -> None:
    index = Index(100)
    await index.begin("greedy", 20, soon())
    assert not index.takes_at_once("greedy", 6)
    with pytest.raises(JournalFullError, match=r"thread holds 20 of the 25 bytes.*this write of 6 bytes"):
        await index.begin("greedy", 6, soon(0.02))
    assert await index.begin("greedy", 5, soon(0.0)) == 2
    assert await index.begin("large", 60, soon(0.0)) == 1, "what is larger by itself is taken while there is room"
    assert await index.begin("small", 15, soon(0.0)) == 1
    with pytest.raises(JournalFullError, match=r"holds 100 of 100 bytes"):
        await index.begin("greedy", 5, soon(0.02))


async def test_record_that_no_room_would_be_enough_for_is_refused_at_once() -> None:
    index = Index(100)
    assert not index.takes_at_once("huge", 101)
    with pytest.raises(JournalFullError, match=r"whole journal has room for 100 bytes.*this write of 101 bytes"):
        await index.begin("huge", 101, soon(60.0))
    assert not index.holds("huge")


async def test_room_of_a_caller_who_is_cancelled_when_it_is_granted_goes_to_the_next() -> None:
    index = Index(100)
    await index.begin("x", 95, soon())
    waiting = [asyncio.ensure_future(index.begin(name, 95, soon())) for name in "ab"]
    await asyncio.sleep(0.01)
    index.give_up("x", 95)
    waiting[0].cancel()
    assert await asyncio.wait_for(waiting[1], 1.0) == 1
    assert not index.holds("a")
    assert index.own_size == 95


async def test_turn_that_does_not_come_in_time_is_told_and_leaves_the_door_to_others() -> None:
    index = Index(100)
    async with index.turn(soon()) as first, index.turn(soon(0.02)) as second:
        assert (first, second) == (True, False)
    async with index.turn(soon(0.02)) as third:
        assert third


async def test_records_of_one_thread_that_wait_are_let_in_one_behind_the_other() -> None:
    index, log = Index(100), list[str]()
    await index.begin("x", 95, soon())
    waiting = [asyncio.ensure_future(come(index, log, f"a{number}")) for number in range(2)]
    await asyncio.sleep(0.01)
    index.give_up("x", 95)
    waiting.append(asyncio.ensure_future(come(index, log, "a2", 5)))
    await asyncio.gather(*waiting)
    assert log == ["a0", "a1", "a2"]


async def test_those_who_come_between_two_turns_do_not_overtake_who_is_next() -> None:
    index, log = Index(100), list[str]()
    inside = asyncio.Event()

    async def stay() -> None:
        async with index.turn(soon()):
            await inside.wait()

    staying = asyncio.ensure_future(stay())
    await asyncio.sleep(0)
    waiting = [asyncio.ensure_future(come(index, log, "next"))]
    await asyncio.sleep(0.01)
    inside.set()
    for number in range(6):
        waiting.append(asyncio.ensure_future(come(index, log, str(number))))
        await asyncio.sleep(0)
    await asyncio.gather(staying, *waiting)
    assert log == ["next", *"012345"]


@pytest.mark.parametrize("turns", range(4))
async def test_append_that_is_cancelled_in_its_turn_or_before_it_leaves_it_to_the_next(turns: int) -> None:
    index, log = Index(100), list[str]()
    first = await added(index, "first")
    cancelled = [asyncio.ensure_future(come(index, log, name, 95)) for name in ("in its turn", "before it")]
    patient = asyncio.ensure_future(come(index, log, "patient"))
    await asyncio.sleep(0.01)
    index.remove([first])
    for _ in range(turns):
        await asyncio.sleep(0)
    for task in cancelled:
        task.cancel()
    await asyncio.gather(*cancelled, return_exceptions=True)
    if "in its turn" in log:
        index.give_up("i", 95)
    if "before it" in log:
        index.give_up("b", 95)
    await asyncio.wait_for(patient, 1.0)
    assert log[-1] == "patient"
    assert len(asyncio.all_tasks()) == 1


@contextmanager
def threads_that_take_turns_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def test_status_is_read_from_another_thread_while_records_come_and_go() -> None:
    index, ended = Index(1_000_000), threading.Event()
    for number in range(50):
        adopted(index, f"kept-{number}")

    def come_and_go() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            index.remove([adopted(index, f"passing-{number % 7}")])

    writer = threading.Thread(target=come_and_go)
    with threads_that_take_turns_often():
        writer.start()
        try:
            for _ in range(3000):
                assert index.status().oldest_at == 1.0
                assert index.dead_letters() == []
        finally:
            ended.set()
            writer.join()


@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "adopt", "remove", "bury", "damage"]), st.integers(0, 3), st.floats(0, 9))
    )
)
def test_status_tells_what_a_look_at_every_thread_would_tell(changes: list[tuple[str, int, float]]) -> None:
    index = Index(1_000_000)
    waiting: dict[str, list[JournalEntry]] = {}
    frozen: set[str] = set()
    letters = 0
    for change, number, journaled_at in changes * 30:
        thread_id = f"thread-{number}"
        of_thread = waiting.setdefault(thread_id, [])
        if change == "add":
            stored = entry(index, thread_id, index.reserve(thread_id, 10), journaled_at=journaled_at)
            index.add(stored)
            of_thread.append(stored)
        elif change == "adopt":
            found = entry(index, thread_id, index.next_of(thread_id), journaled_at=journaled_at)
            index.take_over(thread_id, [found])
            of_thread[:] = index.entries(thread_id)
        elif change == "damage":
            index.damage(thread_id)
            frozen.add(thread_id)
        elif of_thread and change == "remove":
            index.remove([of_thread.pop(0)])
        elif of_thread and change == "bury":
            index.dead_letter(of_thread.pop(0), "refused")
            frozen.add(thread_id)
            letters += 1
        status = index.status()
        adopted_size = 10 * sum(map(len, waiting.values())) - index.own_size
        assert status.oldest_at == min((one[0].journaled_at for one in waiting.values() if one), default=None)
        assert (set(status.frozen_threads), status.dead_letters) == (frozen, letters)
        assert (status.pending, status.adopted_size) == (sum(map(len, waiting.values())), adopted_size)
