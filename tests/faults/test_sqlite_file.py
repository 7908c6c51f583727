"""The file of a SQLite primary: where it may be, what a commit to it is worth, and what a failed call leaves of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from enhanced_checkpointing import (
    CheckpointCorruptionError,
    CheckpointerConfigurationError,
    CheckpointUnavailableError,
    EnhancedCheckpointerManager,
)
from enhanced_checkpointing.backends.sqlite import backend as sqlite_backend
from enhanced_checkpointing.backends.sqlite.backend import SqliteBackend
from enhanced_checkpointing.operations import apply_to_saver
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.resilience.failures import CallFailed
from enhanced_checkpointing.serialization import SharingSerializer
from tests.support.author import Author
from tests.support.checkpointer import eventually, opened, recovered, saver_of, sqlite
from tests.support.checkpoints import Thread
from tests.support.disks import bound_by_modes, folder_without_root, set_modes
from tests.support.dump import dump_sqlite
from tests.support.graphs import GRAPHS, run_case
from tests.support.leaks import LeakWatch
from tests.support.terminal import command

CASE = GRAPHS["counting_chain"]
DEADLINE = 0.5
LATE = 0.25
"""What a call may be late: 0.1 s are promised, the rest is for other work on the machine."""


async def run_alone(path: Path) -> None:
    async with opened(sqlite(path)) as manager:
        await run_case(CASE, saver_of(manager), "thread")


async def test_folder_of_the_file_is_made(tmp_path: Path, no_leaks: LeakWatch) -> None:
    path = tmp_path / "a" / "new" / "folder" / "primary.sqlite"
    async with opened(sqlite(path)) as manager:
        assert manager.health_status["overall_status"] == "healthy"
    assert path.exists()


async def test_folder_that_may_not_be_made_ends_the_start(no_leaks: LeakWatch) -> None:
    with folder_without_root() as folder:
        set_modes(folder, 0o444, 0o555)
        manager = EnhancedCheckpointerManager(sqlite(folder / "new" / "primary.sqlite"))
        with (
            bound_by_modes(),
            pytest.raises(CheckpointerConfigurationError, match=r"SQLITE_PATH.*Permission denied"),
        ):
            await manager.initialize()
        await manager.cleanup()


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_file_on_a_read_only_disk_is_told_to_be_read_from_a_copy(mode: str) -> None:
    with folder_without_root() as folder:
        path = folder / "backup.sqlite"
        assert command("setup", "--sqlite", path).code == 0
        with contextlib.closing(sqlite3.connect(path)) as file:
            file.execute(f"PRAGMA journal_mode={mode}")
        set_modes(folder, 0o444, 0o555)
        with bound_by_modes():
            place = {"CHECKPOINT_JOURNAL_DIR": str(folder / "journal")}
            ends = [
                command("export", path, "-", **place),
                command("migrate", path, folder / "other.sqlite", **place),
                command("threads", "list", "--sqlite", path, **place),
            ]
    for ended in ends:
        assert ended.code == 2
        assert "can be read from a copy" in " ".join(ended.err.split())


@pytest.mark.parametrize("place", ["file", "folder"])
async def test_path_that_can_be_no_file_ends_the_start(place: str, tmp_path: Path, no_leaks: LeakWatch) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "primary.sqlite" if place == "file" else tmp_path
    manager = EnhancedCheckpointerManager(sqlite(path))
    with pytest.raises(CheckpointerConfigurationError, match="SQLITE_PATH"):
        await manager.initialize()
    await manager.cleanup()


async def test_file_that_is_no_database_ends_the_start_and_is_left_as_it_is(
    tmp_path: Path, no_leaks: LeakWatch
) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear Ada, " * 100)
    manager = EnhancedCheckpointerManager(sqlite(path))
    with pytest.raises(CheckpointCorruptionError, match="file is not a database"):
        await manager.initialize()
    await manager.cleanup()
    assert path.read_text() == "Dear Ada, " * 100


async def test_missing_tables_without_auto_setup_end_the_start(tmp_path: Path, no_leaks: LeakWatch) -> None:
    path = tmp_path / "primary.sqlite"
    with pytest.raises(CheckpointerConfigurationError, match="CHECKPOINT_AUTO_SETUP=true"):
        await EnhancedCheckpointerManager(sqlite(path, auto_setup=False)).initialize()
    await run_alone(path)
    async with opened(sqlite(path, auto_setup=False, require_primary=True)) as manager:
        await run_case(CASE, saver_of(manager), "later")


async def test_commits_are_on_the_disk_when_they_return(tmp_path: Path) -> None:
    async with opened(sqlite(tmp_path / "primary.sqlite")) as manager:
        backend = manager.components.backend
        assert isinstance(backend, SqliteBackend)
        connection = (await backend.connected()).conn
        for pragma, value in (("journal_mode", "wal"), ("synchronous", 2)):
            assert [tuple(row) for row in await connection.execute_fetchall(f"PRAGMA {pragma}")] == [(value,)]
        backend.retire(await backend.connected())
        connection = (await backend.connected()).conn  # one that replaces another is no weaker
        assert [tuple(row) for row in await connection.execute_fetchall("PRAGMA synchronous")] == [(2,)]


async def test_stop_leaves_one_whole_file(tmp_path: Path, no_leaks: LeakWatch) -> None:
    await run_alone(tmp_path / "folder" / "primary.sqlite")
    assert os.listdir(tmp_path / "folder") == ["primary.sqlite"]


FOR_EVER = "WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number) SELECT max(n) FROM number"


async def test_hung_statement_is_left_within_the_deadline_and_its_thread_ends(
    tmp_path: Path, no_leaks: LeakWatch
) -> None:
    async with opened(sqlite(tmp_path / "primary.sqlite", deadline=DEADLINE)) as manager:
        parts = manager.components
        started_at = time.monotonic()
        with pytest.raises(CallFailed, match="no answer within"):
            await parts.guard.call(
                "get",
                lambda: parts.backend.ask(lambda saver: saver.conn.execute_fetchall(FOR_EVER)),  # type: ignore[attr-defined]
                deadline=Deadline(time.monotonic, DEADLINE),
            )
        assert time.monotonic() - started_at < DEADLINE + LATE
        await eventually(lambda: parts.guard.outstanding == 0)
        await recovered(manager)
        await run_case(CASE, saver_of(manager), "thread")
        assert parts.engine.journaling.journaled == 0  # the primary serves again, on another connection


def write(manager: EnhancedCheckpointerManager, channel: str, task_id: str) -> Awaitable[None]:
    config: Any = {"configurable": {"thread_id": "thread", "checkpoint_ns": "", "checkpoint_id": "1"}}
    return saver_of(manager).aput_writes(config, [("first", 1), (channel, 2)], task_id)


async def test_refused_call_is_rolled_back_before_the_next_one_commits(tmp_path: Path, no_leaks: LeakWatch) -> None:
    path = tmp_path / "primary.sqlite"
    async with opened(sqlite(path)) as manager:
        with pytest.raises(UnicodeEncodeError):
            await write(manager, "no text: \ud800", "refused")
        with contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # the refused call holds no lock either
            other.rollback()
        await write(manager, "second", "taken")
        assert manager.health_status["overall_status"] == "healthy"
    assert {row["task_id"] for row in dump_sqlite(path)["checkpoint_writes"]} == {"taken"}


def rows_without_the_log(path: Path) -> int:
    """How many checkpoints the database file has by itself; 0 where it was copied in the middle of a change."""
    alone = path.with_suffix(".copy")
    shutil.copyfile(path, alone)
    with contextlib.closing(sqlite3.connect(alone)) as connection, contextlib.suppress(sqlite3.DatabaseError):
        return int(connection.execute("SELECT count(*) FROM checkpoints").fetchone()[0])
    return 0


@pytest.mark.parametrize("callers", [1, 8])
async def test_log_is_folded_into_the_file_beside_the_writes(
    callers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: LeakWatch
) -> None:
    monkeypatch.setattr(sqlite_backend, "FOLD_EVERY", 40)
    path = tmp_path / "primary.sqlite"
    async with opened(sqlite(path)) as manager:
        saver = saver_of(manager)
        assert rows_without_the_log(path) == 0

        async def put(author: Author) -> None:
            for _ in range(200 // callers):
                await apply_to_saver(saver, author.put({"messages": 1000 * "x"}), SharingSerializer())

        await asyncio.gather(*(put(Author(f"thread {number}")) for number in range(callers)))
        await eventually(lambda: rows_without_the_log(path) >= 150)
        assert path.with_name("primary.sqlite-wal").stat().st_size > 0, "closing would have folded it in too"


async def test_log_that_cannot_be_folded_in_is_no_failure_of_a_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: LeakWatch
) -> None:
    monkeypatch.setattr(sqlite_backend, "FOLD_EVERY", 5)
    monkeypatch.setattr(sqlite_backend, "FOLD_SQL", "PRAGMA wal_checkpoint(PASSIVE) and more")
    async with opened(sqlite(tmp_path / "primary.sqlite")) as manager:
        await run_case(CASE, saver_of(manager), "thread")
        assert manager.health_status["overall_status"] == "healthy"
        assert manager.components.engine.journaling.journaled == 0


# A file that is taken away


@pytest.mark.parametrize("calls", ["alone", "together"])
async def test_nothing_is_acknowledged_into_a_file_that_was_moved_and_all_is_there_when_it_is_back(
    calls: str, tmp_path: Path
) -> None:
    path, away = tmp_path / "primary.sqlite", tmp_path / "away"
    away.mkdir()
    async with opened(sqlite(path, journal_dir=tmp_path / "journal")) as manager:
        threads = [Thread(saver_of(manager), f"thread-{number}") for number in range(1 if calls == "alone" else 8)]
        for _ in range(12):
            await asyncio.gather(*(thread.put() for thread in threads))
        move(path, away)
        for _ in range(3):
            await asyncio.gather(*(thread.put() for thread in threads))
        assert manager.health_status["journal"]["pending"] == 3 * len(threads)
        assert not path.exists()
        move(away / path.name, tmp_path)
        await recovered(manager)
    stored = {row["checkpoint_id"] for row in dump_sqlite(path)["checkpoints"]}
    assert stored == {checkpoint_id for thread in threads for checkpoint_id in thread.ids}


async def test_mark_is_not_acknowledged_into_a_file_that_was_moved(tmp_path: Path) -> None:
    path, away = tmp_path / "primary.sqlite", tmp_path / "away"
    away.mkdir()
    async with opened(sqlite(path, journal_dir=tmp_path / "journal", probe_interval=60.0)) as manager:
        thread = Thread(saver_of(manager), "thread")
        await thread.put()
        move(path, away)
        await manager.mark_completed("thread")
        assert manager.health_status["journal"]["pending"] == 1
        move(away / path.name, tmp_path)
        await recovered(manager)
        found = await manager.get_thread("thread")
        assert found is not None
        assert found["status"] == "completed"


async def test_maintenance_of_a_file_that_was_moved_is_no_success(tmp_path: Path) -> None:
    path, away = tmp_path / "primary.sqlite", tmp_path / "away"
    away.mkdir()
    async with opened(sqlite(path, journal_dir=tmp_path / "journal", probe_interval=60.0)) as manager:
        await Thread(saver_of(manager), "thread").put()
        move(path, away)
        with pytest.raises(CheckpointUnavailableError, match="was moved, deleted or replaced"):
            await manager.copy_thread("thread", "copy")


async def test_file_that_went_without_its_log_is_not_replaced_by_an_empty_one(tmp_path: Path) -> None:
    path, left = tmp_path / "primary.sqlite", tmp_path / "left"
    left.mkdir()
    async with opened(sqlite(path)) as manager:
        thread = Thread(saver_of(manager), "thread")
        await thread.put()
        for name in ("primary.sqlite", "primary.sqlite-wal"):  # as a process that is killed now leaves them
            shutil.copy(tmp_path / name, left / name)
    (left / path.name).rename(tmp_path / "aside")
    with pytest.raises(CheckpointerConfigurationError, match=r"Put back the very file.*Nothing was stored"):
        await EnhancedCheckpointerManager(sqlite(left / path.name)).initialize()
    assert os.listdir(left) == ["primary.sqlite-wal"]
    (tmp_path / "aside").rename(left / path.name)
    async with opened(sqlite(left / path.name)) as manager:
        found = await saver_of(manager).aget_tuple(thread.config)
    assert found is not None
    assert found.checkpoint["id"] == thread.ids[-1]


async def test_file_that_was_deleted_without_its_log_is_replaced_once_that_is_away(tmp_path: Path) -> None:
    path = tmp_path / "primary.sqlite"
    async with opened(sqlite(path, journal_dir=tmp_path / "journal")) as manager:
        thread = Thread(saver_of(manager), "thread")
        await thread.put()
        path.unlink()
        await thread.put()
        assert manager.health_status["journal"]["pending"] == 1
        assert (await asyncio.to_thread(command, "setup", "--sqlite", path)).code == 1
        for end in ("-wal", "-shm"):
            path.with_name(path.name + end).rename(tmp_path / f"old{end}")
        assert (await asyncio.to_thread(command, "setup", "--sqlite", path)).code == 0
        await recovered(manager)
    assert [row["checkpoint_id"] for row in dump_sqlite(path)["checkpoints"]] == [thread.ids[-1]]


async def test_file_that_was_deleted_is_missed_and_what_comes_then_is_in_the_next_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "primary.sqlite"
    async with opened(sqlite(path, journal_dir=tmp_path / "journal")) as manager:
        thread = Thread(saver_of(manager), "thread")
        await thread.put()
        delete(path)
        await thread.put()
        assert "was moved, deleted or replaced while it was open" in caplog.text
        await asyncio.sleep(0.3)
        assert not path.exists(), "a probe has made an empty file"
        await make_tables(path)
        await recovered(manager)
        assert await saver_of(manager).aget_tuple(thread.config) is not None
    assert [row["checkpoint_id"] for row in dump_sqlite(path)["checkpoints"]] == [thread.ids[-1]]


async def test_file_that_was_replaced_is_missed_and_what_comes_then_is_in_the_one_that_is_there(tmp_path: Path) -> None:
    path, away = tmp_path / "primary.sqlite", tmp_path / "away"
    away.mkdir()
    async with opened(sqlite(path, journal_dir=tmp_path / "journal")) as manager:
        thread = Thread(saver_of(manager), "thread")
        await thread.put()
        move(path, away)
        await make_tables(path)
        await thread.put()
        assert manager.health_status["journal"]["pending"] == 1
        await recovered(manager)
        await thread.put()
    assert [row["checkpoint_id"] for row in dump_sqlite(path)["checkpoints"]] == thread.ids[1:]
    in_the_old_one = [row["checkpoint_id"] for row in dump_sqlite(away / path.name)["checkpoints"]]
    assert thread.ids[0] in in_the_old_one
    assert thread.ids[2] not in in_the_old_one


def test_folding_in_makes_no_empty_file_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        sqlite_backend._fold_in(str(tmp_path / "gone #1?.sqlite"))
    assert list(tmp_path.iterdir()) == []


def delete(path: Path) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()


def move(path: Path, folder: Path) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        file.rename(folder / file.name)


async def make_tables(path: Path) -> None:
    """A new database of the official saver's, made aside and put there whole."""
    async with AsyncSqliteSaver.from_conn_string(str(path.with_name("new.sqlite"))) as saver:
        await saver.setup()
    path.with_name("new.sqlite").rename(path)


async def test_path_in_the_home_is_one_file_for_application_and_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    async with opened(sqlite("~/agents/one.sqlite", journal_dir="~/journal")) as manager:
        thread = Thread(saver_of(manager), "thread")
        for _ in range(3):
            await thread.put()
            assert (await manager.health_check())["overall_status"] == "healthy"
    assert (tmp_path / "agents" / "one.sqlite").is_file()
    listed = await asyncio.to_thread(command, "threads", "list", "--sqlite", "~/agents/one.sqlite", "--json")
    assert [one["thread_id"] for one in listed.report["threads"]] == ["thread"]
    moved = await asyncio.to_thread(command, "migrate", "~/agents/one.sqlite", "sqlite:///~/two.sqlite")
    assert moved.code == 0, moved
    assert (tmp_path / "two.sqlite").is_file()
    status = await asyncio.to_thread(command, "journal", "status", "--journal-dir", "~/journal")
    assert status.code == 0, status


def test_name_of_sqlite_that_is_no_path_is_refused_by_every_command(tmp_path: Path) -> None:
    source = str(tmp_path / "one.sqlite")
    assert command("setup", "--sqlite", source).code == 0
    uri = f"file:{source}"
    for arguments in (
        ("setup", "--sqlite", uri),
        ("threads", "list", "--sqlite", uri),
        ("retention", "run", "--sqlite", uri),
        ("migrate", uri, source),
        ("migrate", source, uri),
        ("export", uri, tmp_path / "out"),
    ):
        ended = command(*arguments)
        assert (ended.code, "it is a URI of SQLite" in ended.err) == (2, True), (arguments, ended)
    ended = command("threads", "list", CHECKPOINT_ENVIRONMENT="production", SQLITE_PATH=uri)
    assert (ended.code, "SQLITE_PATH): it is a URI of SQLite" in ended.err) == (2, True), ended
    for arguments in (
        ("migrate", source, ":memory:"),
        ("migrate", ":memory:", source),
        ("migrate", source, "sqlite:///:memory:"),
        ("export", ":memory:", tmp_path / "out"),
        ("threads", "list", "--sqlite", ":memory:"),
    ):
        ended = command(*arguments)
        assert (ended.code, "is memory, which" in ended.err) == (2, True), (arguments, ended)
