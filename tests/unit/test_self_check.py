"""The journal is exercised while all is well."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

from enhanced_checkpointing.journal.memory import MemoryJournal
from enhanced_checkpointing.observability.events import Notice
from enhanced_checkpointing.recovery.prober import JournalCheck
from tests.support.faulty_disk import FaultyDisk
from tests.support.journals import opened_journal
from tests.support.recorder import Recorder


async def test_journal_that_answers_is_not_worth_a_word() -> None:
    recorder = Recorder()
    canary = JournalCheck(MemoryJournal(1000), recorder, time.monotonic, 1.0)
    await canary.check()
    assert not canary.silent
    assert recorder.events == []
    await canary.close()


async def test_journal_that_fails_answers_and_has_said_so_itself() -> None:
    disk, recorder = FaultyDisk(Path("journal")), Recorder()
    async with opened_journal(disk=disk) as journal:
        canary = JournalCheck(journal, recorder, time.monotonic, 1.0)
        disk.failing = {"sync"}
        await canary.check()
        assert not canary.silent
        assert recorder.events == []
        assert journal.status().error == "Input/output error"
        disk.heal()
        await canary.check()
        assert journal.status().error is None


async def test_disk_that_does_not_answer_is_told_once_and_also_when_it_answers_again() -> None:
    disk, recorder = FaultyDisk(Path("journal")), Recorder()
    async with opened_journal(disk=disk) as journal:
        canary = JournalCheck(journal, recorder, time.monotonic, 0.05)
        disk.gate = threading.Event()
        started_at = time.monotonic()
        await canary.check()
        await canary.check()
        assert time.monotonic() - started_at < 0.5, "a probe is not held up"
        assert canary.silent
        (notice,) = recorder.of(Notice)
        assert notice.level == "ERROR"
        assert "did not answer within 0.05 s" in notice.message
        before = disk.count("write")
        disk.gate.set()
        await asyncio.sleep(0.1)
        assert disk.count("write") == before, "the check under way is not joined by others"
        await canary.check()
        assert not canary.silent
        assert [notice.level for notice in recorder.of(Notice)] == ["ERROR", "INFO"]
        await canary.check()
        assert len(recorder.events) == 2


async def test_end_does_not_wait_for_a_check_under_way() -> None:
    disk = FaultyDisk(Path("journal"))
    async with opened_journal(disk=disk) as journal:
        canary = JournalCheck(journal, Recorder(), time.monotonic, 0.02)
        disk.gate = threading.Event()
        await canary.check()
        await asyncio.wait_for(canary.close(), 0.5)
        disk.gate.set()
