"""The disk of the journal fails under a whole checkpointer: FAULTS rows 25, 27 and 29."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from benchmarks.journal import NOBODY
from enhanced_checkpointing import CheckpointUnavailableError, JournalFullError
from enhanced_checkpointing.journal import opening
from enhanced_checkpointing.journal import workers as thread_table
from enhanced_checkpointing.journal.disk import RealDisk
from enhanced_checkpointing.saver.saver import FailoverSaver
from tests.support.checkpointer import eventually, opened, postgres, recovered, saver_of, switched
from tests.support.checkpoints import Thread
from tests.support.disks import fill, small_disk

LATE = 0.1
"""Seconds that a call may return after its deadline."""
NOISE = 0.1
"""Seconds more that this test grants to a busy machine."""


async def test_journal_on_a_full_disk_refuses_clearly_shows_nothing_of_it_and_is_drained(
    database_url: str, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        async with switched("postgres", database_url, tmp_path, journal_dir=disk / "journal") as primary:
            manager = primary.manager
            thread = Thread(saver_of(manager), "full")
            await primary.off()
            for _ in range(50):
                await thread.put()
            fill(disk)
            for _ in range(2):
                with pytest.raises(JournalFullError, match=r"disk of the journal is full.*neither in the primary nor"):
                    await thread.put(note="x" * 100_000)
            await thread.timed_get()
            assert manager.health_status["overall_status"] == "unhealthy"
            assert "No space left" in manager.health_status["journal"]["error"]
            await primary.on()
            await recovered(manager)  # while the disk is as full as before
            assert await thread.stored_ids() == thread.ids
            await thread.put()
        assert [path.name for path in disk.iterdir() if path.name != "filler"] == ["journal"]
        assert [name for name in os.listdir(disk / "journal") if name != thread_table.TABLE_NAME] == []


class SlowDisk(RealDisk):
    """A disk whose syncs take so many seconds longer."""

    seconds = 0.0

    def sync(self, handle: int) -> None:
        time.sleep(self.seconds)
        super().sync(handle)


async def test_slow_disk_of_the_journal_delays_nothing_beyond_the_deadline(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "RealDisk", SlowDisk)
    deadline = 0.6
    async with switched("postgres", database_url, tmp_path, deadline=deadline, journal_dir=tmp_path / "j") as primary:
        saver = saver_of(primary.manager)
        threads = [Thread(saver, f"thread-{number}") for number in range(20)]
        await asyncio.gather(*(thread.put() for thread in threads))
        monkeypatch.setattr(SlowDisk, "seconds", 2.0)
        await asyncio.sleep(0.6)  # the journal's own look at its disk hangs now
        healthy = await asyncio.gather(*(thread.timed_put() for thread in threads))
        assert max(healthy) < deadline / 2, "the primary is up: nobody waits for the journal"
        monkeypatch.setattr(SlowDisk, "seconds", 0.2)
        await primary.off()
        await asyncio.sleep(2.0)  # what hung has ended
        await asyncio.gather(*(thread.put() for thread in threads))
        monkeypatch.setattr(SlowDisk, "seconds", 2.0)
        seconds = await asyncio.gather(*(refused_after(thread) for thread in threads))
        assert max(seconds) <= deadline + LATE + NOISE
        reads = await asyncio.gather(*(thread.timed_get() for thread in threads))
        assert max(reads) <= deadline + LATE + NOISE
        monkeypatch.setattr(SlowDisk, "seconds", 0.0)
        await primary.on()
        await recovered(primary.manager)
        for thread in threads:
            stored = await thread.stored_ids()
            assert set(thread.ids) <= set(stored), "what was acknowledged"


async def refused_after(thread: Thread) -> float:
    """How long it takes until a put is told that the disk did not answer."""
    started_at = time.perf_counter()
    with pytest.raises(CheckpointUnavailableError, match="did not answer in time"):
        await thread.put()
    return time.perf_counter() - started_at


async def test_damaged_record_of_the_journal_freezes_its_thread_keeps_it_from_the_primary_and_is_reported(
    database_url: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    journal_dir = tmp_path / "journal"
    fields: dict[str, Any] = {"journal_dir": journal_dir, "journal_adopt": "all", "on_unknown_thread": "raise"}
    async with opened(postgres(NOBODY, **fields)) as manager:
        damaged, whole = Thread(saver_of(manager), "damaged"), Thread(saver_of(manager), "whole")
        for note in ("first", "needle", "last"):
            await damaged.put(note=note)
            await whole.put()
    (file,) = journal_dir.glob("*.journal")
    content = file.read_bytes()
    at = content.index(b"needle")
    file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    for count in (1, 2):  # the next start finds it, too
        caplog.clear()
        async with opened(postgres(database_url, **fields)) as manager:
            saver = saver_of(manager)
            await eventually(lambda: manager.health_status["primary_healthy"])
            assert not await manager.wait_drained(10.0)
            health = manager.health_status
            assert health["overall_status"] == "degraded"
            assert (health["journal"]["damages"], health["journal"]["frozen_threads"]) == (1, 1)
            assert [record.levelname for record in caplog.records if file.name in record.getMessage()] == ["ERROR"]
            assert (journal_dir / "quarantine" / file.name).exists()
            with pytest.raises(CheckpointUnavailableError):
                await saver.aget_tuple(damaged.config)
            before = health["journal"]["pending"]
            onward = Thread(saver, "damaged")
            onward.go_on_from(damaged)
            await onward.put()
            assert manager.health_status["journal"]["pending"] == before + 1 == 2 + count
            assert await Thread(saver, "whole").stored_ids() == whole.ids
        with psycopg.connect(database_url) as connection:
            found = connection.execute("SELECT count(*) FROM checkpoints WHERE thread_id = 'damaged'").fetchone()
            assert found == (0,)


@pytest.mark.parametrize("on_unknown_thread", ["raise", "start_fresh"])
async def test_thread_of_which_the_journal_is_damaged_is_never_taken_for_new(
    on_unknown_thread: str, database_url: str, tmp_path: Path
) -> None:
    fields = {"journal_dir": tmp_path / "journal", "on_unknown_thread": on_unknown_thread, "journal_adopt": "all"}
    async with opened(postgres(NOBODY, **fields)) as manager:
        thread = Thread(saver_of(manager), "damaged")
        await thread.put(note="needle")
    (file,) = (tmp_path / "journal").glob("*.journal")
    file.write_bytes(file.read_bytes().replace(b"needle", b"noodle"))
    async with opened(postgres(database_url, **fields)) as manager:
        with pytest.raises(CheckpointUnavailableError):
            await saver_of(manager).aget_tuple(thread.config)


async def test_maintenance_of_a_frozen_thread_is_refused(database_url: str, tmp_path: Path) -> None:
    async with switched("postgres", database_url, tmp_path) as primary:
        saver = saver_of(primary.manager)
        assert isinstance(saver, FailoverSaver)

        async def unasked(bare: object) -> None:
            raise AssertionError("the primary was asked")

        frozen, other = Thread(saver, "frozen"), Thread(saver, "other")
        for thread in (frozen, other):
            await thread.put()
        await primary.off()
        await frozen.put(forbidden=True)
        with psycopg.connect(database_url) as connection:
            connection.execute("ALTER TABLE checkpoints ADD CHECK (metadata->>'forbidden' IS NULL)")
        await primary.on()
        await eventually(lambda: bool(primary.manager.health_status["journal"]["frozen_threads"]))
        changes: dict[str, Callable[[], Awaitable[object]]] = {
            "prune": lambda: saver.aprune(["other", "frozen"]),
            # Not every release of LangGraph's saver has these.
            "copy from": lambda: saver._maintenance.change("copy", ["frozen", "copy"], unasked),
            "copy into": lambda: saver._maintenance.change("copy", ["other", "frozen"], unasked),
            "delete for runs": lambda: saver._maintenance.change("delete_for_runs", None, unasked),
            "delete": lambda: primary.manager.delete_thread("frozen"),
        }
        for what, change in changes.items():
            with pytest.raises(CheckpointUnavailableError) as refused:
                await change()
            assert "frozen" in str(refused.value) or what == "delete for runs"
        with psycopg.connect(database_url) as connection:
            rows = connection.execute("SELECT thread_id FROM checkpoints ORDER BY thread_id").fetchall()
        assert rows == [("frozen",), ("other",)]
        assert primary.manager.health_status["journal"]["pending"] == 0, "no deletion waits behind the dead letter"
        await saver.aprune(["other"])
        assert await primary.manager.delete_thread("other")
