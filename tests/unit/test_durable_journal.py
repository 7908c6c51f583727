"""The journal on disk: what the disk does to it, and what the next process has of it."""

from __future__ import annotations

import asyncio
import errno
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from enhanced_checkpointing.errors import (
    CheckpointCorruptionError,
    CheckpointerConfigurationError,
    CheckpointUnavailableError,
    JournalFullError,
)
from enhanced_checkpointing.journal import durable as durable_module
from enhanced_checkpointing.journal import format as frames
from enhanced_checkpointing.journal.api import UNKNOWN
from enhanced_checkpointing.journal.disk import RealDisk
from enhanced_checkpointing.journal.durable import DurableJournal
from enhanced_checkpointing.journal.format import Draft, Kind
from enhanced_checkpointing.journal.log_files import TRIES, Committer
from enhanced_checkpointing.journal.recovery import MEMORY
from enhanced_checkpointing.observability.events import Notice
from enhanced_checkpointing.operations import DeleteThread, Operation, Put
from enhanced_checkpointing.testing import FakeClock
from tests.support.author import Author
from tests.support.cipher import encrypting
from tests.support.faulty_disk import FaultyDisk
from tests.support.journal_files import record
from tests.support.journals import add, durable_journal, opened_journal, operations_in
from tests.support.recorder import Recorder

HERE = Path("journal")


def files(pattern: str = "*.journal") -> list[Path]:
    return sorted(HERE.glob(pattern))


def everything() -> list[Path]:
    return list(HERE.iterdir())


def notices(journal: DurableJournal) -> list[tuple[str, str]]:
    telemetry = journal._telemetry
    assert isinstance(telemetry, Recorder)
    return [(notice.level, notice.message) for notice in telemetry.of(Notice)]


# A process and the next one


async def test_everything_acknowledged_is_there_for_the_next_process() -> None:
    author = Author("a")
    operations: list[Operation] = [author.put({"n": 1}), author.writes(("n", 2)), DeleteThread("a")]
    async with opened_journal(wall_clock=FakeClock(1000.0)) as journal:
        await add(journal, operations[0], None)
        await add(journal, operations[1], UNKNOWN)
        await add(journal, "b")
        await add(journal, operations[2], "base")
    async with opened_journal() as journal:
        assert await operations_in(journal, "a") == [operation.replayable() for operation in operations]
        assert journal.held_threads() == journal.waiting_threads() == ["a", "b"]
        entries = journal.entries("a")
        assert [entry.base_head for entry in entries] == [None, UNKNOWN, "base"]
        assert [entry.thread_sequence for entry in entries] == [1, 2, 3]
        assert [entry.sequence for entry in entries] == [1, 2, 4]
        assert {entry.journaled_at for entry in entries} == {1000.0}
        assert [entry.name for entry in entries] == ["put", "put_writes", "delete"]
        assert journal.status().pending == 4
        assert notices(journal) == [
            ("WARNING", "4 operations that an earlier process acknowledged wait in the journal")
        ]
        await journal.mark_applied(entries)
        assert (await add(journal, "a")).thread_sequence == 1


async def test_sizes_are_the_same_for_the_next_process() -> None:
    async with opened_journal() as journal:
        await add(journal, Author("a").put({"n": [1]}))
        before = journal.status()
    async with opened_journal() as journal:
        assert journal.status() == replace(before, adopted_size=before.size)
        await journal.mark_applied(journal.entries("a"))
        assert journal.status().size == 0


async def test_process_that_was_killed_leaves_the_same_as_one_that_was_closed() -> None:
    dead = durable_journal()
    await dead.open()
    await add(dead, "a")
    assert dead._logs.own is not None
    await dead._logs.run(dead._logs.own.release)
    async with opened_journal() as journal:
        assert journal.held_threads() == ["a"]
        assert await operations_in(journal, "a") == [DeleteThread("a")]


async def test_order_is_kept_over_several_processes_although_the_clock_jumps_back() -> None:
    for stamp in (2000.0, 1000.0, 500.0):
        async with opened_journal(wall_clock=FakeClock(stamp)) as journal:
            await add(journal, replace(Author("a").put({"n": 1}), metadata={"step": int(stamp)}))
    async with opened_journal() as journal:
        found = await operations_in(journal, "a")
        assert [put.metadata["step"] for put in found if isinstance(put, Put)] == [2000, 1000, 500]
        assert [entry.thread_sequence for entry in journal.entries("a")] == [1, 2, 3]


async def test_two_journals_in_one_directory_leave_each_other_alone() -> None:
    async with opened_journal() as one, opened_journal() as other:
        await add(one, "a")
        await add(other, "b")
        assert (one.held_threads(), other.held_threads()) == (["a"], ["b"])
    async with opened_journal() as journal:
        assert journal.held_threads() == ["a", "b"]


async def test_dead_letter_is_tried_again_at_the_next_start_in_its_place() -> None:
    async with opened_journal() as journal:
        first, second = await add(journal, Author("a").put({"n": 1})), await add(journal, "a")
        await journal.dead_letter(first, "refused")
        assert journal.is_frozen("a")
    for _ in range(2):
        async with opened_journal() as journal:
            assert journal.waiting_threads() == ["a"]
            assert [entry.name for entry in journal.entries("a")] == [first.name, second.name]
            await journal.dead_letter(journal.entries("a")[0], "refused again")
            (letter,) = journal.dead_letters()
            assert (letter.entry.name, letter.error) == (first.name, "refused again")
            assert journal.is_frozen("a")
    async with opened_journal() as journal:
        await journal.mark_applied(journal.entries("a", 1))
        await add(journal, "b")
    async with opened_journal() as journal:
        assert [entry.name for entry in journal.entries("a")] == [second.name], "once it is taken it is gone"
        assert journal._logs.taken_over[0].dead_letters == {}


async def test_diverted_threads_survive_a_restart() -> None:
    async with opened_journal() as journal:
        await add(journal, "b")
        await journal.redirect("b", "sibling")
    for _ in range(2):
        async with opened_journal() as journal:
            assert journal.redirected("b") == "sibling"
            assert journal.waiting_threads() == ["b"]


async def test_diverted_thread_stays_so_for_what_comes_later_and_for_the_next_process() -> None:
    async with opened_journal() as journal:
        await add(journal, "a")
    async with opened_journal() as journal:
        await journal.redirect("a", "sibling")
        await add(journal, "a")
        await journal.mark_applied(journal.entries("a", 1))
        assert journal.redirected("a") == "sibling"
    async with opened_journal() as journal:
        assert len(journal.entries("a")) == 1
        assert journal.redirected("a") == "sibling"
        await journal.mark_applied(journal.entries("a"))
        assert journal.redirected("a") is None
        await add(journal, "a")
    async with opened_journal() as journal:
        assert journal.redirected("a") is None, "another outage"


async def test_end_of_a_diversion_is_known_to_the_next_process() -> None:
    async with opened_journal() as journal:
        await add(journal, "a")
        await journal.redirect("a", "sibling")
        await journal.mark_applied(journal.entries("a"))
        await add(journal, "a")
        assert journal.redirected("a") is None
    async with opened_journal() as journal:
        assert journal.held_threads() == ["a"]
        assert journal.redirected("a") is None, "another outage"


async def test_diversion_whose_end_was_not_stored_is_not_taken_for_the_next_outage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with opened_journal() as journal:
        await add(journal, "a")
    disk = FaultyDisk(HERE)
    async with opened_journal(disk=disk) as journal:
        await journal.redirect("a", "sibling")
        await add(journal, "b")
        monkeypatch.setattr(journal, "_end_redirection", lambda thread_id: None)  # the process dies before it is stored
        await journal.mark_applied(journal.entries("a"))
    async with opened_journal() as journal:
        assert journal.held_threads() == ["b"]
        assert journal.redirected("a") is None


async def test_divert_is_stored_on_a_full_disk_too() -> None:
    async with opened_journal() as journal:
        await add(journal, "a")
    disk = FaultyDisk(HERE, error=errno.ENOSPC)
    disk.failing = {"reserve"}
    journal = durable_journal(disk=disk)
    await journal.open()
    await journal.redirect("a", "sibling")
    assert journal.redirected("a") == "sibling"
    await journal.mark_applied(journal.entries("a"))
    await journal.close()


async def test_drained_journal_leaves_nothing_behind() -> None:
    async with opened_journal() as journal:
        await add(journal, "a")
    async with opened_journal() as journal:
        await add(journal, "b")
        for thread_id in ("a", "b"):
            await journal.mark_applied(journal.entries(thread_id))
    assert everything() == []


async def test_records_of_two_books_are_marked_together() -> None:
    async with opened_journal() as journal:
        await add(journal, "a")
        await add(journal, "a")
    async with opened_journal() as journal:
        await add(journal, "a")
        await journal.mark_applied(journal.entries("a", 3))
        assert not journal.holds("a")
    assert everything() == []


async def test_mark_that_fails_in_one_book_leaves_what_is_behind_it_in_the_next() -> None:
    async with opened_journal() as journal:
        await add(journal, "a")
    disk = FaultyDisk(HERE)
    async with opened_journal(disk=disk) as journal:
        await add(journal, "a")
        disk.failing = {"create"}  # the adopted log needs a new file for its first mark, our own does not
        with pytest.raises(CheckpointUnavailableError):
            await journal.mark_applied(journal.entries("a"))
        assert len(journal.entries("a")) == 2
        disk.heal()
        await journal.mark_applied(journal.entries("a"))
        assert not journal.holds("a")


# Group commit


async def test_many_appends_share_a_few_syncs() -> None:
    disk = FaultyDisk(HERE)
    async with opened_journal(disk=disk) as journal:
        before = disk.count("sync")
        await asyncio.gather(*(add(journal, f"thread {number}") for number in range(500)))
        assert disk.count("sync") - before < 20
        assert journal.status().pending == 500
        entries = [journal.entries(thread_id)[0] for thread_id in journal.held_threads()]
        assert [entry.thread_id for entry in entries] == [f"thread {number}" for number in range(500)]


async def test_nothing_is_acknowledged_while_the_sync_runs_and_what_comes_meanwhile_waits_for_the_next() -> None:
    disk = FaultyDisk(HERE)
    async with opened_journal(disk=disk) as journal:
        disk.gate = threading.Event()
        first = asyncio.ensure_future(add(journal, "a"))
        await asyncio.sleep(0.05)
        assert disk.calls[-1] == "write"
        rest = [asyncio.ensure_future(add(journal, "a")) for _ in range(10)]
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in [first, *rest])
        assert journal.holds("a"), "from the moment that an append begins"
        assert journal.entries("a") == ()
        before = disk.count("sync")
        disk.gate.set()
        entries = [await first, *await asyncio.gather(*rest)]
        assert journal.entries("a") == tuple(entries)
        assert disk.count("sync") - before == 2


# A disk that is slow, fails or is full


async def test_append_ends_at_its_deadline_on_a_disk_that_hangs_and_is_stored_when_it_answers() -> None:
    disk = FaultyDisk(HERE)
    async with opened_journal(disk=disk) as journal:
        disk.gate = threading.Event()
        started_at = time.monotonic()
        with pytest.raises(CheckpointUnavailableError, match=r"did not answer in time.*delete.*'a'.*calling again"):
            await add(journal, "a", seconds=0.1)
        assert 0.09 < time.monotonic() - started_at < 0.5
        assert journal.holds("a"), "it may still be stored, and must not be overtaken"
        assert not journal.anything_waits()
        disk.gate.set()
        await add(journal, "b")
        assert journal.waiting_threads() == ["a", "b"]


async def test_append_ends_at_its_deadline_on_a_disk_that_could_not_begin_a_book_yet() -> None:
    disk = FaultyDisk(HERE)
    disk.failing = {"lock"}
    async with opened_journal(disk=disk) as journal:
        assert journal.status().error == "Input/output error"
        disk.heal()
        disk.gate = threading.Event()
        with pytest.raises(CheckpointUnavailableError, match=r"did not answer in time. Nothing was stored"):
            await add(journal, "a", seconds=0.1)
        assert not journal.holds("a")
        disk.gate.set()
        await add(journal, "a")
        assert journal.status().error is None


async def test_append_behind_one_for_which_the_disk_begins_a_book_ends_at_its_own_deadline() -> None:
    disk = FaultyDisk(HERE)
    disk.failing = {"lock"}
    async with opened_journal(disk=disk) as journal:
        disk.heal()
        disk.gate = threading.Event()
        first = asyncio.ensure_future(add(journal, "a"))
        await asyncio.sleep(0)
        started_at = time.monotonic()
        with pytest.raises(CheckpointUnavailableError, match=r"did not answer in time. Nothing was stored"):
            await add(journal, "b", seconds=0.05)
        assert time.monotonic() - started_at < 0.15
        disk.gate.set()
        await first
        assert journal.held_threads() == ["a"]


async def test_append_on_a_disk_that_cannot_begin_a_book_is_refused() -> None:
    disk = FaultyDisk(HERE)
    disk.failing = {"lock"}
    async with opened_journal(disk=disk) as journal:
        with pytest.raises(CheckpointUnavailableError, match="Input/output error"):
            await add(journal, "a")
        assert not journal.holds("a")


async def test_disk_that_fails_refuses_says_why_and_says_when_it_is_over() -> None:
    disk = FaultyDisk(HERE)
    async with opened_journal(disk=disk) as journal:
        await add(journal, "a")
        disk.failing = {"write"}
        for _ in range(2):
            with pytest.raises(
                CheckpointUnavailableError, match=r"cannot be written \(Input/output error\).*neither in"
            ):
                await add(journal, "b")
        assert not journal.holds("b")
        assert journal.status().size == journal.entries("a")[0].size, "what was not stored takes no room"
        assert journal.status().error == "Input/output error"
        disk.heal()
        await add(journal, "b")
        assert journal.status().error is None
        assert [level for level, _ in notices(journal)] == ["ERROR", "INFO"], "once each"


async def test_canary_finds_out_before_anybody_needs_the_journal() -> None:
    disk = FaultyDisk(HERE)
    async with opened_journal(disk=disk) as journal:
        disk.failing = {"sync"}
        with pytest.raises(CheckpointUnavailableError):
            await journal.check()
        assert journal.status().error is not None
        disk.heal()
        await journal.check()
        assert journal.status().error is None


async def test_full_disk_refuses_records_and_drains() -> None:
    disk = FaultyDisk(HERE)
    async with opened_journal(disk=disk) as journal:
        for number in range(6):
            await add(journal, Author(f"{number}").put({"n": ["x" * 500]}))
        disk.full = True
        for number in range(5):
            marked = asyncio.ensure_future(journal.mark_applied(journal.entries(f"{number}")))
            with pytest.raises(
                JournalFullError, match=r"disk of the journal is full \(No space.*CHECKPOINT_JOURNAL_DIR"
            ):
                await add(journal, "b")
            await marked
            assert journal.status().error == "No space left on device", "marks have room of their own"
        assert journal.held_threads() == ["5"]
        assert len(notices(journal)) == 1, "it is said once"
        disk.full = False
        await add(journal, "b")
        assert journal.status().error is None
    async with opened_journal() as journal:
        assert journal.held_threads() == ["5", "b"]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
async def test_quota_and_limit_on_the_size_of_files_are_a_full_disk_too(error: int) -> None:
    disk = FaultyDisk(HERE, error=error)
    async with opened_journal(disk=disk) as journal:
        disk.failing = {"write"}
        with pytest.raises(JournalFullError, match=r"disk of the journal is full.*neither in the primary"):
            await add(journal, "a")
        assert not journal.holds("a")


async def test_mark_that_could_not_be_stored_leaves_its_records() -> None:
    disk = FaultyDisk(HERE)
    async with opened_journal(disk=disk) as journal:
        entry = await add(journal, "a")
        disk.failing = {"sync"}
        with pytest.raises(CheckpointUnavailableError):
            await journal.mark_applied([entry])
        with pytest.raises(CheckpointUnavailableError):
            await journal.dead_letter(entry, "refused")
        with pytest.raises(CheckpointUnavailableError):
            await journal.redirect("a", "sibling")
        assert journal.entries("a") == (entry,)
        assert not journal.is_frozen("a")
        assert journal.redirected("a") is None
        disk.heal()
        await journal.mark_applied([entry])


async def test_disk_that_cannot_be_read_is_an_outage_of_the_journal_and_no_damage() -> None:
    disk = FaultyDisk(HERE)
    async with opened_journal(disk=disk) as journal:
        entry = await add(journal, "a")
        disk.failing = {"read"}
        with pytest.raises(CheckpointUnavailableError):
            await journal.read([entry])
        assert not journal.is_frozen("a")


async def test_caller_that_gave_up_leaves_its_append_to_arrive() -> None:
    disk = FaultyDisk(HERE)
    async with opened_journal(disk=disk) as journal:
        disk.gate = threading.Event()
        appending = asyncio.ensure_future(add(journal, "a"))
        await asyncio.sleep(0.02)
        appending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await appending
        disk.gate.set()
        await add(journal, "b")
        assert journal.waiting_threads() == ["a", "b"]


async def test_caller_that_gave_up_on_an_append_that_failed_holds_nothing() -> None:
    disk = FaultyDisk(HERE)
    async with opened_journal(disk=disk) as journal:
        disk.gate = threading.Event()
        disk.failing = {"sync"}
        with pytest.raises(CheckpointUnavailableError):
            await add(journal, "a", seconds=0.05)
        disk.gate.set()
        with pytest.raises(CheckpointUnavailableError):
            await add(journal, "b")
        assert journal.held_threads() == []


async def test_thread_of_a_record_that_the_next_process_may_find_is_held_until_that_is_void() -> None:
    """The bytes are on the disk, the sync failed, and neither can they be cut off nor a new file begun."""
    disk = FaultyDisk(HERE)
    async with opened_journal(disk=disk) as journal:
        disk.failing = {"sync", "truncate", "create"}
        with pytest.raises(CheckpointUnavailableError):
            await add(journal, "a")
        assert journal.holds("a"), "else the primary would take what comes later, and a drain this one after it"
        assert not journal.anything_waits()
        with pytest.raises(CheckpointUnavailableError):
            await journal.check()
        assert journal.holds("a")
        disk.heal()
        await journal.check()
        assert not journal.holds("a")
        assert journal.status().size == 0
        await add(journal, "b")
    async with opened_journal() as journal:
        assert journal.held_threads() == ["b"]


async def test_thread_of_a_record_that_was_cut_off_again_is_not_held() -> None:
    disk = FaultyDisk(HERE)
    async with opened_journal(disk=disk) as journal:
        disk.failing = {"sync", "create"}
        with pytest.raises(CheckpointUnavailableError):
            await add(journal, "a")
        assert journal.held_threads() == []
    async with opened_journal() as journal:
        assert journal.held_threads() == []


async def test_error_of_the_code_reaches_everybody_who_waits() -> None:
    """A wrong frame must not let the others wait until their deadlines."""
    async with opened_journal() as journal:
        log = journal._logs.own
        assert log is not None
        heard: list[str] = []
        waiting = [
            journal._committer.submit(
                log,
                Draft(Kind.RECORD, name, body),  # type: ignore[arg-type]
                stored=lambda _: None,
                failed=lambda name=name: heard.append(name),  # type: ignore[misc]
            )
            for name, body in (("x", b"bytes"), ("y", "no bytes"))
        ]
        for ended in waiting:
            with pytest.raises(TypeError):
                await ended
        assert heard == ["x", "y"]
        await add(journal, "a")


async def test_waiter_that_was_cancelled_is_not_told() -> None:
    async with opened_journal() as journal:
        log = journal._logs.own
        assert log is not None
        stored: list[int] = []
        ended = journal._committer.submit(log, record("x"), stored=stored.append)
        ended.cancel()
        await journal.check()
        await journal._committer.settle(1.0)
        assert len(stored) == 1


async def test_refusal_of_a_waiter_that_was_cancelled_is_not_told() -> None:
    disk = FaultyDisk(HERE)
    async with opened_journal(disk=disk) as journal:
        log = journal._logs.own
        assert log is not None
        disk.failing = {"write"}
        failed: list[bool] = []
        ended = journal._committer.submit(log, record("x"), stored=lambda _: None, failed=lambda: failed.append(True))
        ended.cancel()
        await journal._committer.settle(1.0)
        assert failed == [True]


async def test_nothing_is_on_its_way_in_a_committer_that_was_never_used() -> None:
    def run(work: Callable[[], Any]) -> asyncio.Future[Any]:
        raise AssertionError(work)

    await Committer(run, lambda _: None).settle(0.0)


# Damage


async def test_record_that_changed_on_the_disk_freezes_its_thread_when_it_is_read() -> None:
    async with opened_journal() as journal:
        entry = await add(journal, Author("a").put({"n": ["needle"]}))
        other = await add(journal, "b")
        (path,) = files()
        content = path.read_bytes()
        with path.open("r+b") as written:
            written.seek(content.index(b"needle"))
            written.write(b"noodle")
        with pytest.raises(CheckpointCorruptionError, match=r"record 1 of thread 'a'.*not what was written.*frozen"):
            await journal.read([entry])
        assert journal.is_damaged("a")
        assert journal.waiting_threads() == ["b"]
        assert journal.status().damages == 1
        assert notices(journal)[0][0] == "ERROR"
        assert len(await journal.read([other])) == 1


async def test_damage_is_reported_and_freezes_its_thread_from_the_start() -> None:
    async with opened_journal() as journal:
        await add(journal, Author("a").put({"n": ["needle"]}))
        await add(journal, "b")
    (path,) = files()
    path.write_bytes(path.read_bytes().replace(b"needle", b"noodle"))
    async with opened_journal() as journal:
        assert journal.is_damaged("a")
        assert journal.is_frozen("a")
        assert journal.holds("a"), "its operations must not go to the primary"
        assert journal.status().damages == 1
        assert journal.status().frozen_threads == ("a",)
        assert "the journal is damaged" in notices(journal)[0][1]
        await journal.mark_applied(journal.entries("b"))
    assert files(), "what is damaged stays"
    assert (HERE / "quarantine" / path.name).exists()


async def test_another_key_is_refused_loudly_and_nothing_is_dropped() -> None:
    async with opened_journal(serializer=encrypting()) as journal:
        await add(journal, Author("a", "", encrypting()).put({"n": ["needle"]}))
        await add(journal, "b")
    assert b"needle" not in files()[0].read_bytes()
    async with opened_journal(serializer=encrypting(b"another key")) as journal:
        with pytest.raises(CheckpointCorruptionError, match="the key is another one"):
            await journal.read(journal.entries("a"))
        assert journal.is_frozen("a")
        assert journal.status().pending == 2
    async with opened_journal(serializer=encrypting()) as journal:
        assert not journal.is_frozen("a")
        assert len(await journal.read(journal.entries("a"))) == 1


# Filling up


async def test_operator_is_told_once_at_half_and_once_at_four_fifths() -> None:
    async with opened_journal() as journal:
        size = (await add(journal, "a")).size
        await journal.mark_applied(journal.entries("a"))
    async with opened_journal(capacity=10 * size) as journal:
        for count in range(10):
            await add(journal, "abcde"[count // 2])
            assert len(notices(journal)) == (count >= 4) + (count >= 7), count
        assert [level for level, _ in notices(journal)] == ["WARNING", "ERROR"]
        assert "50%" in notices(journal)[0][1]
        for name in "abcd":
            await journal.mark_applied(journal.entries(name))
        for name in "aab":
            await add(journal, name)
        assert len(notices(journal)) == 3, "again, when it filled again"


async def test_what_earlier_processes_left_takes_no_room_and_is_no_alarm() -> None:
    async with opened_journal() as journal:
        size = (await add(journal, "a")).size
        await add(journal, "a")
    async with opened_journal(capacity=size) as journal:
        assert [level for level, _ in notices(journal)] == ["WARNING"], "that there is something"
        assert (journal.status().size, journal.status().adopted_size) == (2 * size, 2 * size)
        await add(journal, "b", seconds=0.5)
        assert [level for level, _ in notices(journal)[1:]] == ["ERROR"]
        assert f"holds {size} of {size} bytes" in notices(journal)[-1][1]
        with pytest.raises(JournalFullError):
            await add(journal, "b", seconds=0.02)
        await journal.mark_applied(journal.entries("a"))
        assert (journal.status().size, journal.status().adopted_size) == (size, 0)


async def test_name_that_no_database_stores_is_refused_and_holds_nothing() -> None:
    async with opened_journal() as journal:
        with pytest.raises(UnicodeEncodeError):
            await add(journal, "\ud800")
        assert journal.held_threads() == []
        assert journal.status().size == 0


async def test_thread_with_a_very_long_name_is_stored() -> None:
    async with opened_journal() as journal:
        await add(journal, "x" * 100_000)
    async with opened_journal() as journal:
        assert journal.held_threads() == ["x" * 100_000]


# Beginning and end


async def test_start_on_a_full_disk_goes_on_and_drains() -> None:
    async with opened_journal() as journal:
        await add(journal, "a")
    disk = FaultyDisk(HERE)
    disk.full = True
    async with opened_journal(disk=disk) as journal:
        assert journal.status().error == "No space left on device"
        await journal.mark_applied(journal.entries("a"))
        assert not journal.anything_waits()


@pytest.mark.parametrize("failing", ["names", "read", "open"])
async def test_start_that_cannot_see_what_was_acknowledged_is_refused(failing: str) -> None:
    async with opened_journal() as journal:
        await add(journal, "a")
    disk = FaultyDisk(HERE)
    disk.failing = {failing}
    with pytest.raises(CheckpointerConfigurationError, match=r"cannot be read \(Input/output error\)"):
        await durable_journal(disk=disk).open()
    async with opened_journal() as journal:
        assert journal.held_threads() == ["a"]


@pytest.mark.parametrize("failing", ["prepare", "lock"])
async def test_directory_that_cannot_be_used_is_refused(failing: str) -> None:
    disk = FaultyDisk(HERE, error=errno.EACCES)
    disk.failing = {failing}
    before = set(threading.enumerate())
    with pytest.raises(
        CheckpointerConfigurationError, match=r"cannot be used \(Permission denied\).*CHECKPOINT_JOURNAL"
    ):
        await durable_journal(disk=disk).open()
    for thread in set(threading.enumerate()) - before:
        await asyncio.to_thread(thread.join, 1.0)
        assert not thread.is_alive()


async def test_newer_format_is_refused_and_other_books_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened_journal() as journal:
        await add(journal, "a")
    monkeypatch.setattr(frames, "FORMAT", frames.FORMAT + 2)
    async with opened_journal(wall_clock=FakeClock(time.time() + 9)) as newer:
        await add(newer, "b")
    monkeypatch.setattr(frames, "FORMAT", frames.FORMAT - 2)
    with pytest.raises(CheckpointerConfigurationError, match="is of format 3"):
        await durable_journal().open()
    files()[-1].unlink()
    async with opened_journal() as journal:
        assert "a" in journal.held_threads(), "not locked by the start that was refused"


async def test_lock_that_somebody_else_took_is_made_up_anew() -> None:
    disk = FaultyDisk(HERE)
    disk.busy_locks = TRIES - 1
    async with opened_journal(disk=disk) as journal:
        await add(journal, "a")
    assert disk.busy_locks == 0


async def test_locks_that_are_all_taken_are_an_error_that_passes() -> None:
    disk = FaultyDisk(HERE)
    disk.busy_locks = 2 * TRIES  # it looks for a name twice
    async with opened_journal(disk=disk) as journal:
        assert journal.status().error == "another process took the lock of every log that was begun"
        await add(journal, "a")
        assert journal.status().error is None


async def test_open_that_is_cancelled_gives_everything_back() -> None:
    async with opened_journal() as journal:
        await add(journal, "a")

    class Slow(RealDisk):
        def names(self) -> list[str]:
            time.sleep(0.1)
            return super().names()

    opening = asyncio.ensure_future(durable_journal(disk=Slow(HERE)).open())
    await asyncio.sleep(0.05)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    async with opened_journal() as journal:
        assert journal.held_threads() == ["a"]


async def test_end_that_is_not_clean_is_said_and_nothing_is_lost() -> None:
    disk = FaultyDisk(HERE)
    journal = durable_journal(disk=disk)
    await journal.open()
    disk.failing = {"remove"}
    await journal.close()
    assert notices(journal) == [("WARNING", "the journal was not closed cleanly ([Errno 5] Input/output error)")]


async def test_end_does_not_wait_for_a_disk_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable_module, "CLOSE_SECONDS", 0.05)
    disk = FaultyDisk(HERE)
    journal = durable_journal(disk=disk)
    await journal.open()
    disk.gate = threading.Event()
    with pytest.raises(CheckpointUnavailableError):
        await add(journal, "a", seconds=0.01)
    started_at = time.monotonic()
    await journal.close()
    assert time.monotonic() - started_at < 0.5
    disk.gate.set()


async def test_end_lets_what_is_on_its_way_arrive() -> None:
    disk = FaultyDisk(HERE)
    journal = durable_journal(disk=disk)
    await journal.open()
    disk.gate = threading.Event()
    appending = asyncio.ensure_future(add(journal, "a"))
    await asyncio.sleep(0.02)
    closing = asyncio.ensure_future(journal.close())
    await asyncio.sleep(0.02)
    disk.gate.set()
    await asyncio.gather(appending, closing)
    async with opened_journal() as journal:
        assert journal.held_threads() == ["a"]


async def test_work_may_run_wherever_the_caller_says() -> None:
    ran: list[Callable[[], Any]] = []

    async def run(work: Callable[[], Any]) -> Any:
        ran.append(work)
        return work()

    async with opened_journal(run=run) as journal:
        await add(journal, "a")
        await journal.mark_applied(journal.entries("a"))
    assert len(ran) >= 4
    assert everything() == []


# Files that somebody removes


async def test_directory_that_is_removed_is_noticed_and_what_comes_then_is_durable() -> None:
    author = Author("a")
    before, after = author.put({"n": [1]}), author.put({"n": [2]})
    async with opened_journal(HERE) as journal:
        entry = await add(journal, before)
        shutil.rmtree(HERE)
        await journal.check()
        assert [level for level, _ in notices(journal)] == ["ERROR"]
        assert "removed the files of the journal: 1 operations" in notices(journal)[0][1]
        await add(journal, after)
        await journal.check()
        assert await operations_in(journal, "a") == [before.replayable(), after.replayable()]
        shutil.copytree(HERE, "left by a kill")
        async with opened_journal(Path("left by a kill")) as following:
            assert await operations_in(following, "a") == [after.replayable()]
            await following.mark_applied(following.entries("a"))
        await journal.mark_applied([entry])
        assert len(notices(journal)) == 1, "it is said once"


async def test_what_was_in_removed_files_is_drained_and_its_marks_need_no_disk() -> None:
    async with opened_journal(HERE) as journal:
        entries = [await add(journal, put) for put in (Author("a").put({"n": 1}), Author("b").put({"n": 1}))]
        await journal.redirect("b", "elsewhere")
        shutil.rmtree(HERE)
        await journal.check()
        for entry in entries:
            await journal.mark_applied([entry])
        assert journal.status().pending == 0
        await journal.check()  # behind what nobody waits for
        log = next(log for log in journal._logs.taken_over if log.is_lost)
        assert (log.is_settled, log.redirected) == (True, {})
    assert everything() == []
    assert [level for level, _ in notices(journal)] == ["ERROR"]


async def test_end_says_what_is_lost_with_removed_files() -> None:
    async with opened_journal(HERE) as journal:
        await add(journal, Author("a").put({"n": 1}))
        shutil.rmtree(HERE)
        await journal.check()
    assert "1 acknowledged operations are lost" in notices(journal)[-1][1]


async def test_file_that_alone_was_removed_is_noticed_and_marks_go_where_they_can() -> None:
    async with opened_journal(HERE) as journal:
        entry = await add(journal, Author("a").put({"n": 1}))
        for lock in files("*.lock"):
            lock.unlink()
        await journal.check()
        await journal.mark_applied([entry])
        assert journal.status().pending == 0
    async with opened_journal(HERE) as following:
        assert following.status().pending == 0, "the mark is where its record is"


def take_its_place() -> None:
    """Put a file where the directory was."""
    HERE.touch()


def make_way() -> None:
    HERE.unlink()


async def test_directory_that_cannot_be_made_again_is_told_until_it_can() -> None:
    async with opened_journal(HERE) as journal:
        await add(journal, Author("a").put({"n": 1}))
        shutil.rmtree(HERE)
        take_its_place()
        for _ in range(2):
            with pytest.raises(CheckpointUnavailableError):
                await journal.check()
        assert journal.status().error is not None
        make_way()
        await journal.check()
        await add(journal, Author("b").put({"n": 1}))
        assert journal.status().error is None


async def test_journal_of_a_primary_in_memory_has_no_other_workers_and_forgets_what_was_applied() -> None:
    async with opened_journal(home=MEMORY) as journal:
        assert journal.workers is None
        await add(journal, "a")
        await journal.mark_applied(journal.entries("a"))
        assert not journal.holds("a")
    assert everything() == []
