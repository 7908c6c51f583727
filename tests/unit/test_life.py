"""The two ends of a manager's life."""

from __future__ import annotations

from pathlib import Path

import pytest

from enhanced_checkpointing.errors import CheckpointUnavailableError
from enhanced_checkpointing.journal.api import Journal
from enhanced_checkpointing.journal.memory import MemoryJournal
from enhanced_checkpointing.observability.events import Notice
from enhanced_checkpointing.operations import DeleteThread, Put
from enhanced_checkpointing.recovery.orphans import WARM_TOGETHER, warm_from
from enhanced_checkpointing.standby.cache import Standby
from enhanced_checkpointing.upkeep.lifecycle import tell_backlog
from tests.support.author import Author, config_of
from tests.support.journals import add, durable_journal, opened_journal
from tests.support.recorder import Recorder


async def warmed_from(journal: Journal) -> Standby:
    standby = Standby(Author().serializer, 10_000_000, journal.holds)
    await warm_from(journal, standby)
    return standby


def largest_file() -> Path:
    return max(Path("journal").glob("*.journal"), key=lambda path: path.stat().st_size)


async def test_threads_that_earlier_processes_journaled_are_warm_from_the_start() -> None:
    author = Author("a")
    puts: list[Put] = [author.put({"n": step}) for step in range(WARM_TOGETHER + 2)]
    async with opened_journal() as journal:
        for put in puts:
            await add(journal, put, None)
        await add(journal, DeleteThread("b"))
    async with opened_journal() as journal:
        standby = await warmed_from(journal)
    newest = standby.get_tuple(config_of("a"))
    assert newest is not None
    assert newest.checkpoint["channel_values"] == {"n": WARM_TOGETHER + 1}
    assert standby.get_tuple(config_of("a", "", puts[0].checkpoint_id)) is not None
    assert standby.get_tuple(config_of("b")) is None, "it is known to be deleted"


async def test_what_the_primary_refused_is_warm_too_and_older_than_what_is_behind_it() -> None:
    author = Author("a")
    journal = MemoryJournal(1_000_000)
    for step in range(2):
        await add(journal, author.put({"n": step}), None)
    await journal.dead_letter(journal.entries("a")[0], "refused")
    found = (await warmed_from(journal)).get_tuple(config_of("a"))
    assert found is not None
    assert found.checkpoint["channel_values"] == {"n": 1}
    assert found.parent_config is not None


async def test_thread_of_which_records_may_be_lost_stays_cold() -> None:
    async with opened_journal() as journal:
        author, other = Author("a"), Author("b")
        for step in range(3):
            await add(journal, author.put({"n": [f"needle {step}"]}))
        await add(journal, other.put({"n": 1}))
    file = largest_file()
    file.write_bytes(file.read_bytes().replace(b"needle 2", b"needle 3"))
    async with opened_journal() as journal:
        assert journal.is_damaged("a")
        standby = await warmed_from(journal)
    with pytest.raises(CheckpointUnavailableError):
        standby.get_tuple(config_of("a"))
    assert standby.get_tuple(config_of("b")) is not None


async def test_thread_that_turns_out_to_be_damaged_while_it_is_read_is_cold_again() -> None:
    async with opened_journal() as journal:
        author = Author("a")
        for step in range(WARM_TOGETHER + 1):
            await add(journal, author.put({"n": [f"needle {step}"]}))
    async with opened_journal() as journal:
        file = largest_file()
        content = file.read_bytes()
        with file.open("r+b") as written:
            written.seek(content.index(f"needle {WARM_TOGETHER}".encode()))
            written.write(b"NEEDLE")
        standby = await warmed_from(journal)
        assert journal.is_damaged("a")
    assert not standby.knows("a")


async def test_backlog_of_a_memory_journal_is_told_as_lost() -> None:
    recorder = Recorder()
    journal = MemoryJournal(10_000)
    tell_backlog(journal, recorder)
    assert recorder.events == []
    await add(journal, "thread")
    tell_backlog(journal, recorder)
    assert recorder.events == [
        Notice(
            "ERROR",
            "Stopped with 1 acknowledged operations not in the primary. The journal is in memory, so they are lost.",
        )
    ]


async def test_backlog_of_a_durable_journal_counts_dead_letters_and_waits_for_the_next_start() -> None:
    recorder = Recorder()
    journal = durable_journal()
    await journal.open()
    await journal.dead_letter(await add(journal, "a"), "refused")
    await add(journal, "b")
    tell_backlog(journal, recorder)
    await journal.close()
    (notice,) = recorder.of(Notice)
    assert notice.level == "WARNING"
    assert "with 2 acknowledged operations" in notice.message
    assert "the next start drains them" in notice.message
