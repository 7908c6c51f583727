"""SQLite as the primary, with real faults of its file: locked, read-only, disk full, damaged, no database at all."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from langgraph.graph.state import CompiledStateGraph

from enhanced_checkpointing import (
    CheckpointCorruptionError,
    EnhancedCheckpointerManager,
)
from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.resilience import group_commit
from enhanced_checkpointing.resilience.failures import FailureKind
from tests.support.checkpointer import opened, recovered, saver_of, sqlite
from tests.support.disks import bound_by_modes, fill, folder_without_root, make_room, set_modes, small_disk
from tests.support.dump import assert_equal_dumps, dump_sqlite
from tests.support.graphs import GRAPHS, run_case
from tests.support.leaks import LeakWatch

CASE = GRAPHS["counting_chain"]
DEADLINE = 0.5
LATE = 0.25
"""What a call may be late: 0.1 s are promised, the rest is for other work on the machine."""


class Timed:
    """Notes how long the slowest call of a saver took."""

    def __init__(self, manager: EnhancedCheckpointerManager) -> None:
        self.saver = saver_of(manager)
        self.slowest = 0.0
        for name in ("aput", "aput_writes", "aget_tuple"):
            setattr(self.saver, name, self._timed(getattr(self.saver, name)))

    def _timed(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @functools.wraps(call)  # LangGraph looks at the names of the parameters
        async def timed(*arguments: Any, **keywords: Any) -> Any:
            started_at = time.monotonic()
            try:
                return await call(*arguments, **keywords)
            finally:
                self.slowest = max(self.slowest, time.monotonic() - started_at)

        return timed


async def run_with_fault(path: Path, begin: Callable[[], None], end: Callable[[], None]) -> dict[str, Any]:
    """Run the graph with the fault from its second turn on, mend it, drain; return the health report from before."""

    async def between(turn: int) -> None:
        if turn == 1:
            begin()
        if turn == 2:
            await manager.health_check()

    async with opened(sqlite(path, deadline=DEADLINE)) as manager:
        timed = Timed(manager)
        try:
            found = await run_case(CASE, timed.saver, "thread", between=between)
            report = await manager.health_check()
        finally:
            end()
        assert timed.slowest < DEADLINE + LATE
        assert report["journal"]["pending"] > 0
        await recovered(manager)
        assert await run_case(CASE, saver_of(manager), "later") == found
    return report


async def assert_equals_twin(path: Path, twin: Path) -> None:
    async with opened(sqlite(twin)) as manager:
        for thread in ("thread", "later"):
            await run_case(CASE, saver_of(manager), thread)
    assert_equal_dumps(dump_sqlite(path), dump_sqlite(twin))


async def compiled(manager: EnhancedCheckpointerManager) -> CompiledStateGraph[Any, Any, Any, Any]:
    return CASE.builder().compile(checkpointer=saver_of(manager))


HOLD_LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.readline()
"""


class OtherProcess:
    """Holds the file locked until it is ended."""

    def __init__(self, path: Path) -> None:
        self._command = [sys.executable, "-c", HOLD_LOCK, str(path)]
        self._process: subprocess.Popen[str] | None = None

    def lock(self) -> None:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "locked\n"

    def end(self) -> None:
        assert self._process is not None
        self._process.communicate("\n")


@pytest.fixture(params=["gathered", "straight"])
def each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes go with others, as they may at first, or each by itself, as those of a caller who is used to be alone."""
    if request.param == "straight":
        monkeypatch.setattr(group_commit, "USED_TO_BE_ALONE", 0)


@pytest.mark.usefixtures("each_way")
async def test_file_locked_by_another_process_for_longer_than_the_deadline_loses_nothing(
    tmp_path: Path, no_leaks: LeakWatch
) -> None:
    path = tmp_path / "primary.sqlite"
    other = OtherProcess(path)
    report = await run_with_fault(path, other.lock, other.end)
    assert "locked" in report["primary_checkpointer"]["error"]
    await assert_equals_twin(path, tmp_path / "twin.sqlite")


async def test_start_on_a_locked_file_is_degraded_and_sets_it_up_later(tmp_path: Path, no_leaks: LeakWatch) -> None:
    path = tmp_path / "primary.sqlite"
    other = OtherProcess(path)
    other.lock()
    async with opened(sqlite(path, deadline=DEADLINE)) as manager:
        assert not manager.health_status["primary_healthy"]
        for thread in ("thread", "later"):
            await run_case(CASE, saver_of(manager), thread)
        other.end()
        await recovered(manager)
    await assert_equals_twin(path, tmp_path / "twin.sqlite")


@pytest.mark.usefixtures("each_way")
async def test_short_lock_is_waited_for_and_is_no_outage(tmp_path: Path, no_leaks: LeakWatch) -> None:
    path = tmp_path / "primary.sqlite"
    async with opened(sqlite(path, deadline=5.0)) as manager:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            running = asyncio.create_task(run_case(CASE, saver_of(manager), "thread"))
            await asyncio.sleep(0.3)
            other.rollback()
            await running
        assert manager.health_status["overall_status"] == "healthy"
        assert manager.components.engine.journaling.journaled == 0


@pytest.mark.usefixtures("each_way")
async def test_file_that_becomes_read_only_is_an_outage_and_loses_nothing(tmp_path: Path, no_leaks: LeakWatch) -> None:
    await run_alone(tmp_path / "first.sqlite")  # whatever is imported late is imported now, with all rights
    with folder_without_root() as folder:
        path = folder / "primary.sqlite"
        with bound_by_modes():
            report = await run_with_fault(
                path, lambda: set_modes(folder, 0o444, 0o555), lambda: set_modes(folder, 0o644, 0o755)
            )
        assert "readonly" in report["primary_checkpointer"]["error"]
        await assert_equals_twin(path, tmp_path / "twin.sqlite")


async def run_alone(path: Path) -> None:
    async with opened(sqlite(path)) as manager:
        await run_case(CASE, saver_of(manager), "thread")


@pytest.mark.usefixtures("each_way")
async def test_full_disk_is_an_outage_and_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, no_leaks: LeakWatch
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        path = disk / "primary.sqlite"
        await run_with_fault(path, lambda: fill(disk), lambda: make_room(disk))
        outages = [record.getMessage() for record in caplog.records if "outage: the primary" in record.getMessage()]
        assert len(outages) == 1, "probes passed while the disk was full"
        assert "disk is full" in outages[0] or "disk I/O error" in outages[0]
        await assert_equals_twin(path, tmp_path / "twin.sqlite")


async def test_probe_does_not_pass_while_the_disk_is_full(tmp_path: Path, no_leaks: LeakWatch) -> None:
    with small_disk(tmp_path / "disk") as disk:
        async with opened(sqlite(disk / "primary.sqlite")) as manager:
            backend = manager.components.backend
            await run_case(CASE, saver_of(manager), "thread")
            fill(disk)
            with pytest.raises(sqlite3.Error) as refused:
                await probe_until_refused(backend)
            assert backend.classify(refused.value).kind is FailureKind.OUTAGE
            make_room(disk)
            await recovered(manager)
            assert dump_sqlite(disk / "primary.sqlite")["checkpoints"][0]["thread_id"] == "thread"


async def probe_until_refused(backend: Backend) -> None:
    """The first ones find the room that the write-ahead log has already."""
    for _ in range(1000):
        await backend.probe()


def damage(path: Path) -> None:
    """Overwrite every page but the first, as a failing disk would."""
    with path.open("r+b") as file:
        pages = file.seek(0, os.SEEK_END) // 4096
        for page in range(1, pages):
            file.seek(page * 4096)
            file.write(b"\xa5" * 4096)


async def test_damaged_file_is_reported_and_nothing_is_acknowledged_until_it_is_restored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, no_leaks: LeakWatch
) -> None:
    path, backup = tmp_path / "primary.sqlite", tmp_path / "backup"
    thread: Any = {"configurable": {"thread_id": "thread"}}
    async with opened(sqlite(path)) as manager:
        await (await compiled(manager)).ainvoke(CASE.turns[0], thread)
    shutil.copy(path, backup)
    async with opened(sqlite(path)) as manager:
        graph = await compiled(manager)
        damage(path)
        with pytest.raises(CheckpointCorruptionError, match=r"(?i)damaged.* restore it from a backup"):
            await graph.ainvoke(CASE.turns[1], thread)
        with pytest.raises(CheckpointCorruptionError, match=r"(?i)damaged.* restore it from a backup"):
            await manager.delete_thread("thread")
        assert manager.health_status["journal"]["pending"] == 0
    assert any("damaged" in record.getMessage() for record in caplog.records)
    damage(path)  # closing wrote some healthy pages, which were in memory, over the damaged ones
    with pytest.raises(CheckpointCorruptionError, match=r"(?i)damaged.* restore it from a backup"):
        await EnhancedCheckpointerManager(sqlite(path)).initialize()
    shutil.copy(backup, path)
    for leftover in ("-wal", "-shm"):
        path.with_name(path.name + leftover).unlink(missing_ok=True)
    async with opened(sqlite(path)) as manager:
        for turn in CASE.turns[1:]:
            await (await compiled(manager)).ainvoke(turn, thread)
        await run_case(CASE, saver_of(manager), "later")
    await assert_equals_twin(path, tmp_path / "twin.sqlite")


async def test_table_dropped_in_mid_run_is_journaled_and_drained_once_it_is_back(
    tmp_path: Path, no_leaks: LeakWatch
) -> None:
    path = tmp_path / "primary.sqlite"

    def execute(statement: str) -> None:
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute(statement)

    report = await run_with_fault(
        path,
        lambda: execute("ALTER TABLE writes RENAME TO hidden"),
        lambda: execute("ALTER TABLE hidden RENAME TO writes"),
    )
    assert report["primary_checkpointer"]["breaker"] == "closed"
    await assert_equals_twin(path, tmp_path / "twin.sqlite")
