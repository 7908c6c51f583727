"""What ended processes leave is taken over by one that runs."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from enhanced_checkpointing.backends.base import EVERYTHING
from enhanced_checkpointing.errors import CheckpointUnavailableError
from enhanced_checkpointing.journal.api import Journal
from enhanced_checkpointing.journal.memory import MemoryJournal
from enhanced_checkpointing.operations import DeleteThread
from enhanced_checkpointing.recovery.orphans import LOOK_SECONDS, Takeover, set_right
from enhanced_checkpointing.standby.cache import NewThreads, Standby
from enhanced_checkpointing.testing import FakeClock
from tests.support.author import Author, config_of
from tests.support.faulty_disk import FaultyDisk
from tests.support.journals import add, opened_journal


class Household:
    """An takeover of a journal, and what it did."""

    def __init__(self, journal: Journal, seconds: float = 1.0) -> None:
        self.clock = FakeClock()
        self.standby = Standby(Author().serializer, 10_000_000, journal.holds)
        self.woken = 0
        self.takeover = Takeover(
            journal, self.standby, time.monotonic, seconds, undrained=self._undrained, wake=self._wake
        )
        self.takeover._looked_at = float("-inf")

    async def _undrained(self, thread_id: str) -> None:
        pass

    def _wake(self) -> None:
        self.woken += 1


async def test_thread_that_was_taken_over_is_warm_as_it_was_left_and_is_to_be_drained() -> None:
    author = Author("a")
    async with opened_journal() as journal:
        household = Household(journal)
        household.standby.note_empty("a", "")
        async with opened_journal() as other:
            await add(other, author.put({"n": 1}))
            await add(other, author.put({"n": 2}))
        await household.takeover.look()
        found = household.standby.get_tuple(config_of("a"))
        assert found is not None
        assert found.checkpoint["channel_values"] == {"n": 2}
        with pytest.raises(CheckpointUnavailableError):
            household.standby.history(config_of("a"), EVERYTHING)  # it may have begun before the outage
        assert household.woken == 1
        assert journal.waiting_threads() == ["a"]
        await household.takeover.close()


async def test_directory_is_looked_into_every_few_seconds_at_most() -> None:
    disk = FaultyDisk(Path("journal"))
    async with opened_journal(disk=disk) as journal:
        household = Household(journal)
        household.takeover._clock = household.clock
        household.takeover._looked_at = household.clock()
        looks = []
        for _ in range(4):
            before = disk.count("alone")
            await household.takeover.look()
            looks.append(disk.count("alone") - before)
            household.clock.advance(LOOK_SECONDS * 0.6)
        assert looks == [0, 0, 1, 0]


async def test_disk_that_hangs_holds_no_probe_up_and_is_looked_at_when_it_answers() -> None:
    async with opened_journal() as other:
        await add(other, "a")
    disk = FaultyDisk(Path("journal"))
    async with opened_journal(disk=disk) as journal:
        await journal.mark_applied(journal.entries("a"))
        async with opened_journal() as other:
            await add(other, "b")
            household = Household(journal, seconds=0.05)
        disk.gate = threading.Event()
        started_at = time.monotonic()
        for _ in range(2):
            await household.takeover.look()
        assert time.monotonic() - started_at < 0.5
        assert not journal.holds("b")
        disk.gate.set()
        household.takeover._seconds = 5.0
        await household.takeover.look()
        assert journal.holds("b")
        assert household.woken == 1


async def test_end_does_not_wait_for_a_look_under_way() -> None:
    disk = FaultyDisk(Path("journal"))
    async with opened_journal(disk=disk) as journal:
        async with opened_journal() as other:
            await add(other, "a")
        household = Household(journal, seconds=0.02)
        disk.gate = threading.Event()
        await household.takeover.look()
        await household.takeover.close()
        disk.gate.set()
    async with opened_journal() as journal:
        assert journal.held_threads() == ["a"], "nothing of it is kept"


async def test_nothing_is_left_in_memory_and_nobody_is_woken() -> None:
    household = Household(MemoryJournal(1000))
    await household.takeover.look()
    assert household.woken == 0
    await household.takeover.close()


def standby() -> Standby:
    return Standby(Author().serializer, 10_000_000, lambda _: True)


def test_warm_copy_never_goes_back_to_a_checkpoint_older_than_one_that_was_shown() -> None:
    """Somebody else's branch is older than what this process wrote to the primary meanwhile."""
    warm, author = standby(), Author("a")
    theirs, ours = author.put({"n": 1}), author.put({"n": 2})
    warm.apply(ours)
    set_right(warm, "a", [theirs])
    with pytest.raises(CheckpointUnavailableError):
        warm.get_tuple(config_of("a"))


def test_warm_copy_that_is_older_gives_way_and_answers_on_their_way_are_not_kept() -> None:
    warm, author = standby(), Author("a")
    ours, theirs = author.put({"n": 1}), author.put({"n": 2})
    warm.apply(ours)
    watch = warm.watch("a")
    set_right(warm, "a", [theirs])
    assert watch.is_stale
    found = warm.get_tuple(config_of("a"))
    assert found is not None
    assert found.checkpoint["id"] == theirs.checkpoint_id
    set_right(warm, "a", [DeleteThread("a")])
    assert warm.get_tuple(config_of("a")) is None


def test_thread_of_which_it_is_not_known_what_the_journal_holds_is_cold() -> None:
    warm = standby()
    warm.apply(Author("a").put({"n": 1}))
    set_right(warm, "a", None)
    assert not warm.knows("a")


def test_cold_thread_that_the_journal_holds_is_not_taken_for_new() -> None:
    warm = standby()
    newcomers = NewThreads(warm, start_fresh=True, wall_clock=FakeClock(), held=lambda thread_id: thread_id == "a")
    for thread_id in "ab":
        newcomers.admit(thread_id, outage=True)
    assert not warm.knows("a")
    assert warm.knows("b")
