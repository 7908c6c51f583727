"""`checkpointing setup`: from ten processes at once, while the database is not there yet, and where it may not."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres
from enhanced_checkpointing.cli.setup import set_up
from tests.support.checkpointer import postgres, sqlite
from tests.support.disks import bound_by_modes, folder_without_root, set_modes
from tests.support.killed_process import start
from tests.support.terminal import command

PROCESSES = 10


def all_at_once(work: Callable[[], object]) -> list[int]:
    """The exit codes of ten processes that do the same."""
    pipes = dict(start(work()) for _ in range(PROCESSES))  # type: ignore[arg-type]  # coroutines
    codes = [os.waitstatus_to_exitcode(os.waitpid(process_id, 0)[1]) for process_id in pipes]
    for pipe in pipes.values():
        os.close(pipe)
    return codes


@pytest.mark.parametrize("postgres_schema", [None, "agents"])
def test_ten_processes_at_once_make_the_tables_once(postgres_schema: str | None, database_url: str) -> None:
    config = postgres(database_url, postgres_schema=postgres_schema, deadline=5.0)

    async def one() -> int:
        outcome = await set_up(config, wait=20, timeout=60, tell=lambda line: None)
        return 0 if outcome.done and outcome.after == 9 and not outcome.fix else 1

    assert all_at_once(one) == [0] * PROCESSES
    with psycopg.connect(database_url) as connection:
        query = (
            "SELECT count(*) FROM pg_index JOIN pg_class ON pg_class.oid = indrelid WHERE relname LIKE 'checkpoint%'"
        )
        assert connection.execute(f"{query} AND NOT indisvalid".encode()).fetchone() == (0,)
        schema = postgres_schema or "public"
        versions = connection.execute(f"SELECT v FROM {schema}.checkpoint_migrations ORDER BY v".encode()).fetchall()
    assert versions == [(version,) for version in range(10)]
    assert command("doctor", "--database-url", database_url, CHECKPOINT_POSTGRES_SCHEMA=postgres_schema or "").code == 0


def test_ten_processes_at_once_make_the_tables_of_a_file(tmp_path: Path) -> None:
    config = sqlite(tmp_path / "new" / "file.sqlite")

    async def one() -> int:
        outcome = await set_up(config, wait=20, timeout=60, tell=lambda line: None)
        return 0 if outcome.done and not outcome.fix else 1

    assert all_at_once(one) == [0] * PROCESSES


def test_database_that_is_not_up_yet_is_waited_for_and_told(private_postgres: LocalPostgres) -> None:
    private_postgres.stop()
    starting = threading.Thread(target=private_postgres.start)
    lines: list[str] = []

    def tell(line: str) -> None:
        lines.append(line)
        if line.startswith("waiting for the database") and starting.ident is None:
            starting.start()

    outcome = asyncio.run(set_up(postgres(private_postgres.url()), wait=30, timeout=60, tell=tell))
    starting.join()
    assert (outcome.done, outcome.before, outcome.after) == (True, None, 9)
    assert "Connection refused" in lines[1]
    again = command("setup", "--database-url", private_postgres.url())
    assert (again.code, "were there already" in again.words) == (0, True)


def test_wait_is_bounded_whether_the_server_is_gone_or_hangs(private_postgres: LocalPostgres) -> None:
    private_postgres.freeze()
    began = time.monotonic()
    ended = command("setup", "--database-url", private_postgres.url(), "--wait", "1")
    assert ended.code == 1
    assert time.monotonic() - began < 12
    private_postgres.kill()
    ended = command("setup", "--database-url", private_postgres.url(), "--wait", "0.7")
    assert (ended.code, ended.seconds < 5) == (1, True)
    assert "checkpointing doctor" in ended.words


def test_what_waiting_does_not_mend_ends_at_once_and_names_the_fix(database_url: str) -> None:
    parts = urlsplit(database_url)
    missing = urlunsplit(parts._replace(path="/not_there"))
    ended = command("setup", "--database-url", missing)
    assert (ended.code, ended.seconds < 5, "DATABASE_URL" in ended.words) == (1, True, True)
    assert command("setup").code == 2
    assert command("setup", "--database-url", database_url, "--sqlite", "a").code == 2
    assert command("setup", "--database-url", "postgresql://a:s3cr3t@b@c/d").code == 2
    assert command("setup", "--env-file", "missing").code == 2
    Path("latin").write_bytes("SQLITE_PATH=grün.sqlite".encode("latin-1"))
    ended = command("setup", "--env-file", "latin")
    assert (ended.code, "not UTF-8: byte 15" in ended.err) == (2, True), ended.err


def test_wait_bounds_a_file_that_answers_and_takes_no_writes() -> None:
    with folder_without_root() as folder:
        path = folder / "file.sqlite"
        sqlite3.connect(path).close()
        set_modes(folder, 0o444, 0o555)
        with bound_by_modes():
            ended = command("setup", "--sqlite", path, "--wait", "0.5")
    assert (ended.code, ended.seconds < 5) == (1, True)
    assert "readonly database" in ended.words


def test_console_script_sets_up_a_file_and_prints_one_object(tmp_path: Path) -> None:
    program = "from enhanced_checkpointing.cli.entry import main; main()"
    path = tmp_path / "file.sqlite"
    arguments = [sys.executable, "-c", program, "setup", "--sqlite", str(path), "--json"]
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.startswith('{\n  "status": "fine"')
    assert path.exists()
