"""`checkpointing retention run`, as a user runs it: beside an application, and beside what a dead one left."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from enhanced_checkpointing.cli.app import app
from enhanced_checkpointing.cli.database import home
from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres
from tests.support.backends import checkpoint_id, config_of, opened_backend, put, write
from tests.support.checkpointer import opened, postgres, saver_of, sqlite
from tests.support.checkpoints import Thread
from tests.support.disks import bound_by_modes, folder_without_root, set_modes
from tests.support.journals import add, opened_journal

OLD = 100_000_000
"""Seconds before 2026: long gone, whenever this runs."""


async def fill(backend: str, database_url: str, folder: Path) -> None:
    async with opened_backend(config_of(backend, database_url, folder)) as primary:
        for name, metadata in (("old", {}), ("done", {"thread_status": "completed"}), ("asking", {})):
            for number in range(3):
                await primary.apply(put(name, number - OLD, metadata=metadata, values={"text": b"\xa3abc"}))
        await primary.apply(write("asking", 2 - OLD, "__interrupt__", b"\xa1?"))


def where(backend: str, database_url: str, folder: Path) -> list[str]:
    place = (
        ["--database-url", database_url] if backend == "postgres" else ["--sqlite", str(folder / "checkpoints.sqlite")]
    )
    return [*place, "--journal-dir", str(folder / "journal")]


def run(*arguments: str) -> tuple[int, dict[str, Any]]:
    ran = CliRunner().invoke(app, ["retention", "run", "--json", *arguments])
    found: dict[str, Any] = json.loads(ran.stdout)
    return ran.exit_code, found


@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
def test_command_rehearses_and_then_does_the_same(backend: str, database_url: str, tmp_path: Path) -> None:
    asyncio.run(fill(backend, database_url, tmp_path))
    place = where(backend, database_url, tmp_path)
    code, rehearsed = run(*place, "--dry-run", "--completed-days", "30000", "--keep", "2")
    assert (code, rehearsed["status"], rehearsed["dry_run"]) == (0, "complete", True)
    assert rehearsed["kept"] == {"it waits at an interrupt": 1}
    shown = CliRunner().invoke(
        app, ["retention", "run", *place, "--dry-run", "--completed-days", "30000", "--keep", "2"]
    )
    assert "would be deleted old:" in " ".join(shown.stdout.split())
    assert "would be pruned done:" in " ".join(shown.stdout.split())
    code, done = run(*place, "--completed-days", "30000", "--keep", "2")
    assert code == 0
    assert done["retired"] == rehearsed["retired"]
    assert {(one["thread_id"], one["outcome"]) for one in done["retired"]} == {("old", "deleted"), ("done", "pruned")}
    code, again = run(*place, "--completed-days", "30000", "--keep", "2")
    assert (again["looked_at"], again["deleted"], again["pruned"]) == (2, 0, 0)
    shown = CliRunner().invoke(app, ["retention", "run", *place])
    assert "2 threads looked at" in shown.stdout
    assert "kept       1  it waits at an interrupt" in shown.stdout


async def test_command_leaves_alone_what_a_dead_process_left_in_its_journal(tmp_path: Path) -> None:
    path, folder = tmp_path / "checkpoints.sqlite", tmp_path / "journal"
    async with opened_backend(config_of("sqlite", "", tmp_path)) as primary:
        for name in ("held", "free"):
            await primary.apply(put(name, -OLD))
    async with opened(sqlite(path, journal_dir=folder, shutdown_grace=0.0)) as manager:
        held = Thread(saver_of(manager), "held")
        held.ids.append(checkpoint_id(-OLD))
        with sqlite3.connect(path, isolation_level=None) as lock:
            lock.execute("BEGIN EXCLUSIVE")
            await held.put()
            lock.rollback()
    code, found = await asyncio.to_thread(run, "--sqlite", str(path), "--journal-dir", str(folder))
    assert code == 0, found
    assert [one["thread_id"] for one in found["retired"]] == ["free"]
    assert found["kept"] == {"the journal holds something of it": 1}


async def test_command_leaves_alone_what_a_journal_holds_for_the_same_database_under_another_name(
    database_url: str, tmp_path: Path
) -> None:
    await fill("postgres", database_url, tmp_path)
    other = home(postgres(database_url.replace("127.0.0.1", "localhost")))
    assert other != home(postgres(database_url))
    async with opened_journal(tmp_path / "journal", home=other) as journal:
        await add(journal, "old")
    code, found = await asyncio.to_thread(run, *where("postgres", database_url, tmp_path))
    assert code == 0, found
    assert [one["thread_id"] for one in found["retired"]] == ["done"]
    assert found["kept"]["the journal holds something of it"] == 1


async def test_command_does_nothing_while_an_application_is_at_it(database_url: str, tmp_path: Path) -> None:
    await fill("postgres", database_url, tmp_path)
    async with opened(postgres(database_url, journal="off")) as manager:
        async with manager.components.backend.sole("retention") as is_sole:
            assert is_sole
            place = where("postgres", database_url, tmp_path)
            code, found = await asyncio.to_thread(run, *place)
            assert (code, found["sole"], found["looked_at"], found["status"]) == (1, False, 0, "incomplete")
        code, found = await asyncio.to_thread(run, *place)
        assert (code, found["deleted"]) == (0, 2)


def test_command_says_what_is_wrong_with_a_database_that_is_not_there(tmp_path: Path) -> None:
    code, found = run("--database-url", "postgresql://postgres@127.0.0.1:1/none", "--journal-dir", str(tmp_path))
    assert code == 2
    assert "refused" in found["error"]
    assert_words_are_not_meant_for_a_write(found["error"])


def assert_words_are_not_meant_for_a_write(error: str) -> None:
    assert "\n" not in error
    assert "acknowledged" not in error
    assert "Nothing was deleted." in error


@pytest.mark.parametrize("rehearsal", [(), ("--dry-run",)])
def test_command_says_that_nothing_was_deleted_where_the_server_is_down(
    rehearsal: tuple[str, ...], private_postgres: LocalPostgres, tmp_path: Path
) -> None:
    place = ("--database-url", private_postgres.url(), "--journal-dir", str(tmp_path))
    private_postgres.kill()
    code, found = run(*place, *rehearsal)
    assert code == 2
    assert_words_are_not_meant_for_a_write(found["error"])


def test_command_says_that_nothing_was_deleted_where_it_may_not_open_its_lock_file() -> None:
    with folder_without_root() as folder:
        asyncio.run(fill("sqlite", "", folder))
        set_modes(folder, 0o666, 0o777)
        (folder / "checkpoints.sqlite.retention.lock").touch(mode=0o000)
        with bound_by_modes():
            code, found = run(*where("sqlite", "", folder))
    assert code == 2
    assert "lock" in found["error"]
    assert_words_are_not_meant_for_a_write(found["error"])
