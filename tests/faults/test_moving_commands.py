"""`checkpointing migrate`, `export` and `import`, as somebody at a terminal meets them."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from typer.testing import CliRunner, Result

from enhanced_checkpointing import CheckpointerConfig
from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.cli.app import app
from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres
from enhanced_checkpointing.operations import Operation
from enhanced_checkpointing.serialization import SharingSerializer
from enhanced_checkpointing.threads.migrate import count_threads
from tests.support.author import Author
from tests.support.checkpointer import postgres, saver_of, sqlite, switched
from tests.support.checkpoints import Thread
from tests.support.cipher import encrypting
from tests.support.journals import add, opened_journal
from tests.support.postgres import postgres_binaries
from tests.support.threads import backend_of, bare_postgres, bare_sqlite, shown

ROOT = Path(__file__).parents[2]
PASSWORD = "p@ss:word/%&"
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("CHECKPOINT_", "PG")) and name not in ("DATABASE_URL", "POSTGRES_URL", "SQLITE_PATH")
} | {"COLUMNS": "120", "TERM": "dumb", "PYTHONPATH": str(ROOT)}

serializer = encrypting(b"the key").inner
"""What `--serde` names in a test."""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "enhanced_checkpointing.cli.entry", *arguments]


def checkpointing(*arguments: str, stdin: bytes = b"", environment: Mapping[str, str] = ENVIRONMENT) -> Result:
    """Run a command in this process, which spares the time of a start."""
    unset = dict.fromkeys(os.environ.keys() - environment.keys())
    ended = CliRunner().invoke(app, arguments, input=stdin, env={**unset, **environment})
    assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exc_info
    return ended


def as_json(ended: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def apply(config: CheckpointerConfig, *operations: Operation, serializer: SharingSerializer | None = None) -> None:
    """Store these operations one after the other."""

    async def store() -> None:
        async with backend_of(config, serializer) as backend:
            for operation in operations:
                await backend.apply(operation)

    asyncio.run(store())


def make(path: Path, threads: int = 3, checkpoints: int = 2, size: int = 1) -> None:
    """A file with so many threads, each with one write upon its last checkpoint."""

    def history() -> Iterator[Operation]:
        for number in range(threads):
            author = Author(f"thread-{number:04}")
            for step in range(checkpoints):
                yield author.put({"log": ["x" * size, step]})
            yield author.writes(("log", 1))

    apply(sqlite(path), *history())


def same(path: Path, url: str, threads: int) -> None:
    """Assert that LangGraph's own savers show the same threads here and there."""

    async def compare() -> None:
        async with bare_sqlite(path) as one, bare_postgres(url) as other:
            for number in range(threads):
                thread_id = f"thread-{number:04}"
                assert await shown(one, thread_id) == await shown(other, thread_id)

    asyncio.run(compare())


def test_migration_says_what_it_did_and_that_all_is_equal(database_url: str, tmp_path: Path) -> None:
    make(tmp_path / "source.sqlite")
    ended = checkpointing("migrate", "source.sqlite", database_url)
    assert ended.exit_code == 0, ended.stderr
    said = ended.stdout
    assert "3 threads: 3 copied" in said
    assert "6 checkpoints and 3 writes" in said
    assert "threads/s" in said
    assert "Every thread of the source was read from both sides, and they are equal." in said
    same(tmp_path / "source.sqlite", database_url, 3)
    again = checkpointing("migrate", "sqlite:///source.sqlite", database_url, "--json", "--quiet")
    assert again.exit_code == 0
    assert again.stderr == ""
    found = as_json(again)
    assert found["status"] == "complete"
    assert found["outcomes"]["equal"] == 3
    assert found["source"] == str(tmp_path / "source.sqlite")
    assert urlsplit(database_url).path in found["target"]


def test_killed_again_and_again_it_goes_on_where_it_was(database_url: str, tmp_path: Path) -> None:
    """Each time with SIGKILL, in the middle of writing."""
    threads = 60
    make(tmp_path / "source.sqlite", threads, checkpoints=4, size=2000)
    kills = reached = 0
    while kills < 2:
        running = subprocess.Popen(
            command("migrate", "source.sqlite", database_url, "--quiet", "--concurrency", "2"), env=ENVIRONMENT
        )
        while (count := stored_threads(database_url)) < min(reached + 15, threads) and running.poll() is None:
            time.sleep(0.005)
        assert running.poll() is None, "it was done before it could be killed"
        running.send_signal(signal.SIGKILL)
        running.wait()
        reached, kills = count, kills + 1
    assert 0 < stored_threads(database_url) < threads
    ended = checkpointing("migrate", "source.sqlite", database_url, "--json", "--quiet")
    found = as_json(ended)
    assert ended.exit_code == 0, found["problems"]
    assert sum(found["outcomes"].values()) == threads
    assert found["outcomes"]["equal"] > 0
    assert found["outcomes"]["copied"] > 0
    same(tmp_path / "source.sqlite", database_url, threads)


def stored_threads(url: str) -> int:
    with psycopg.connect(url) as connection:
        try:
            row = connection.execute("SELECT count(DISTINCT thread_id) FROM checkpoints").fetchone()
        except psycopg.errors.UndefinedTable:
            return 0
    return int(row[0]) if row else 0


def test_refused_thread_is_named_and_the_exit_code_says_so(database_url: str, tmp_path: Path) -> None:
    make(tmp_path / "source.sqlite")
    checkpointing("migrate", "source.sqlite", database_url)
    apply(postgres(database_url), Author("thread-0001").put({"log": ["newer"]}))
    ended = checkpointing("migrate", "source.sqlite", database_url)
    assert ended.exit_code == 1
    said = ended.stdout
    assert "refused" in said
    assert "'thread-0001'" in said
    assert "Not complete" in said
    compared = checkpointing("migrate", "source.sqlite", database_url, "--verify-only", "--json")
    assert compared.exit_code == 1
    assert [problem["thread_id"] for problem in as_json(compared)["problems"]] == ["thread-0001"]
    rehearsed = checkpointing("migrate", "source.sqlite", database_url, "--overwrite", "--dry-run")
    assert rehearsed.exit_code == 0
    assert "1 would be replaced" in rehearsed.stdout
    assert "nothing was changed" in rehearsed.stdout
    assert checkpointing("migrate", "source.sqlite", database_url, "--overwrite").exit_code == 0
    same(tmp_path / "source.sqlite", database_url, 3)


def test_writes_that_wait_in_the_journal_are_told_and_make_it_incomplete(tmp_path: Path) -> None:
    """They are acknowledged, and not in the source."""

    async def write_in_an_outage() -> None:
        async with switched("sqlite", "", tmp_path / "source.sqlite", journal_dir=tmp_path / "journal") as primary:
            thread = Thread(saver_of(primary.manager), "thread")
            await thread.put()
            await primary.off()
            await thread.put()
            await primary.manager.cleanup()

    asyncio.run(write_in_an_outage())
    environment = ENVIRONMENT | {"CHECKPOINT_JOURNAL_DIR": str(tmp_path / "journal")}
    ended = checkpointing("migrate", "source.sqlite", "target.sqlite", environment=environment)
    assert ended.exit_code == 1
    assert "and not in the source: 1 acknowledged operation." in ended.stdout
    exported = checkpointing("export", "source.sqlite", "threads.jsonl", "--json", environment=environment)
    assert exported.exit_code == 1
    assert as_json(exported)["journaled"] == 1
    assert as_json(exported)["status"] == "incomplete"
    other = checkpointing("migrate", "target.sqlite", "other.sqlite", environment=environment)
    assert other.exit_code == 0, "what waits is for another database"


WORK = [("migrate", "source.sqlite", "target.sqlite"), ("export", "source.sqlite", "threads.jsonl")]


@pytest.mark.parametrize("work", WORK)
def test_journal_of_a_database_of_another_name_is_noted_and_counts_where_every_one_is_adopted(
    work: tuple[str, ...], tmp_path: Path
) -> None:
    make(tmp_path / "source.sqlite", 1)

    async def leave() -> None:
        async with opened_journal(tmp_path / "journal", home="db.example:5432/chat") as journal:
            await add(journal, "thread-0000")

    asyncio.run(leave())
    environment = ENVIRONMENT | {"CHECKPOINT_JOURNAL_DIR": str(tmp_path / "journal")}
    ended = checkpointing(*work, environment=environment)
    assert ended.exit_code == 0
    assert "holds 1 acknowledged operation for db.example:5432/chat. If that is the source under" in ended.stdout
    (tmp_path / work[-1]).unlink()
    found = as_json(checkpointing(*work, "--json", environment=environment))
    assert (found["status"], found["journaled"]) == ("complete", 0)
    assert found["journaled_elsewhere"] == {"db.example:5432/chat": 1}
    (tmp_path / work[-1]).unlink()
    ended = checkpointing(*work, environment=environment | {"CHECKPOINT_JOURNAL_ADOPT": "all"})
    assert ended.exit_code == 1
    assert "and not in the source: 1 acknowledged operation." in ended.stdout


@pytest.mark.parametrize("work", WORK)
def test_journal_that_cannot_be_read_is_told_before_anything_is_done(work: tuple[str, ...], tmp_path: Path) -> None:
    make(tmp_path / "source.sqlite", 1)
    (tmp_path / "journal").touch()
    ended = checkpointing(*work, environment=ENVIRONMENT | {"CHECKPOINT_JOURNAL_DIR": str(tmp_path / "journal")})
    assert ended.exit_code == 2
    assert "Not a directory" in ended.stderr
    assert not (tmp_path / work[-1]).exists()


@pytest.mark.parametrize("work", WORK)
def test_journal_that_cannot_be_read_any_more_does_not_hide_what_was_done(
    work: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "source.sqlite", 1)

    async def spoil_and_count(source: Backend) -> int:
        (tmp_path / "journal").touch()
        return await count_threads(source)

    monkeypatch.setattr("enhanced_checkpointing.cli.moving.count_threads", spoil_and_count)
    ended = checkpointing(*work, environment=ENVIRONMENT | {"CHECKPOINT_JOURNAL_DIR": str(tmp_path / "journal")})
    assert ended.exit_code == 1
    assert "1 thread: 1 " in ended.stdout
    assert "could be read before, and cannot be now" in ended.stdout
    assert (tmp_path / work[-1]).exists()


def test_rehearsal_makes_neither_file_nor_tables(database_url: str, tmp_path: Path) -> None:
    make(tmp_path / "source.sqlite")
    for target in (database_url, "new.sqlite"):
        ended = checkpointing("migrate", "source.sqlite", target, "--dry-run", "--json")
        assert ended.exit_code == 0, ended.stderr
        assert as_json(ended)["outcomes"]["copied"] == 3
        assert as_json(ended)["rehearsal"] is True
    assert not (tmp_path / "new.sqlite").exists()
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT to_regclass('checkpoints')").fetchone() == (None,)


def test_environment_names_a_database_too(database_url: str, tmp_path: Path) -> None:
    make(tmp_path / "source.sqlite")
    into = {"DATABASE_URL": database_url, "CHECKPOINT_ENVIRONMENT": "production", "CHECKPOINT_POSTGRES_SCHEMA": "moved"}
    assert checkpointing("migrate", "source.sqlite", "env", environment=ENVIRONMENT | into).exit_code == 0
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM moved.checkpoints").fetchone() == (6,)
    (tmp_path / "settings").write_text("".join(f"{name}={value}\n" for name, value in into.items()))
    ended = checkpointing("migrate", "env", "back.sqlite", "--env-file", "settings", "--json")
    assert as_json(ended)["outcomes"]["copied"] == 3
    memory = checkpointing("migrate", "env", "back.sqlite")
    assert memory.exit_code == 2
    assert "memory" in memory.stderr


def test_sealed_database_is_moved_with_the_serializer_of_the_application(tmp_path: Path) -> None:
    sealing = encrypting(b"the key")
    apply(sqlite(tmp_path / "source.sqlite"), Author(serializer=sealing).put({"log": ["secret"]}), serializer=sealing)
    ended = checkpointing("migrate", "source.sqlite", "target.sqlite", "--json")
    assert ended.exit_code == 1
    assert "'msgpack+stream'" in as_json(ended)["problems"][0]["reasons"][0]
    assert "is not of the serializer in use" in as_json(ended)["problems"][0]["reasons"][0]
    name = f"{__name__}:serializer"
    ended = checkpointing("migrate", "source.sqlite", "target.sqlite", "--serde", name)
    assert ended.exit_code == 0, ended
    assert b"secret" not in (tmp_path / "target.sqlite").read_bytes()
    for wrong in ("nowhere:serializer", f"{__name__}:nothing", f"{__name__}:ROOT", "no-colon"):
        ended = checkpointing("migrate", "source.sqlite", "target.sqlite", "--serde", wrong)
        assert ended.exit_code == 2
        assert f"--serde {wrong}" in ended.stderr


WRONG = {
    "the same file": ("source.sqlite", "./source.sqlite", "the same database"),
    "no such file": ("nothing.sqlite", "target.sqlite", "There is no file nothing.sqlite"),
    "no tables in the source": ("empty.sqlite", "target.sqlite", "has no tables of checkpoints"),
    "no database": ("text.sqlite", "target.sqlite", "not a database"),
    "no scheme": ("me:secret@host/x", "target.sqlite", "no URL: it has no scheme"),
    "misspelt key": ("source.sqlite", "host=h user=me pasword=secret", "no URL: it has no scheme"),
    "unknown scheme": ("mysql://me:secret@host/x", "target.sqlite", "No installed backend is called 'mysql'"),
    "memory": ("source.sqlite", "memory://", "memory"),
    "SQLite without a path": ("source.sqlite", "sqlite://host", "sqlite:///path"),
    "nobody listens": ("source.sqlite", "postgresql://me:secret@127.0.0.1:1/x", "Connection refused"),
    "a broken URL": ("source.sqlite", "postgresql://me:sec%ret@host/x", "hexadecimal"),
    "a folder that cannot be made": ("source.sqlite", "source.sqlite/x.sqlite", "cannot be created"),
}


@pytest.mark.parametrize(("source", "target", "says"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_done_ends_with_exit_code_2_and_one_clear_sentence(
    source: str, target: str, says: str, tmp_path: Path
) -> None:
    make(tmp_path / "source.sqlite", 1)
    sqlite3.connect(tmp_path / "empty.sqlite").execute("CREATE TABLE other (x)").connection.close()
    (tmp_path / "text.sqlite").write_text("not a database, but a text " * 50)
    ended = checkpointing("migrate", source, target)
    said = ended.stderr
    assert ended.exit_code == 2, said
    assert says in said
    assert "Traceback" not in said
    assert "secret" not in said.replace("sec%ret", "secret")
    assert not (tmp_path / "target.sqlite").exists() or "source" not in says


def test_target_without_tables_is_told_where_none_may_be_made(database_url: str, tmp_path: Path) -> None:
    make(tmp_path / "source.sqlite", 1)
    compared = checkpointing("migrate", "source.sqlite", database_url, "--verify-only")
    assert compared.exit_code == 2
    assert "The target" in compared.stderr
    assert "has no tables of checkpoints" in compared.stderr
    forbidden = {
        "DATABASE_URL": database_url,
        "CHECKPOINT_ENVIRONMENT": "production",
        "CHECKPOINT_AUTO_SETUP": "false",
    }
    ended = checkpointing("migrate", "source.sqlite", "env", environment=ENVIRONMENT | forbidden)
    assert ended.exit_code == 2
    assert "CHECKPOINT_AUTO_SETUP=false forbids making them" in ended.stderr


def test_wrong_options_end_with_exit_code_2(tmp_path: Path) -> None:
    assert checkpointing("migrate", "a", "b", "--verify-only", "--overwrite").exit_code == 2
    assert checkpointing("migrate", "a", "b", "--concurrency", "0").exit_code == 2
    assert checkpointing("migrate", "a").exit_code == 2


@pytest.fixture(scope="module")
def guarded() -> Iterator[LocalPostgres]:
    """A server whose superuser has a password."""
    with LocalPostgres(postgres_binaries(), password=PASSWORD) as server:
        yield server


def test_password_is_in_no_output_whatever_happens(guarded: LocalPostgres, tmp_path: Path) -> None:
    make(tmp_path / "source.sqlite", 1)
    url = guarded.url()
    wrong = url.replace("%", "x%", 1)
    parts = urlsplit(url)
    missing = urlunsplit(parts._replace(path="/nothing"))
    for arguments in (
        ("migrate", "source.sqlite", url),
        ("migrate", "source.sqlite", url, "--json"),
        ("migrate", url, url),
        ("migrate", "source.sqlite", wrong),
        ("migrate", missing, "target.sqlite"),
        ("migrate", url.replace("postgresql", "oracle"), "target.sqlite"),
        ("export", url, "-"),
        ("export", wrong, "-"),
        ("import", "missing.jsonl", url),
    ):
        ended = checkpointing(*arguments)
        said = ended.output
        assert ended.exit_code in (0, 2), said
        assert "p%40ss" not in said
        assert PASSWORD not in said
        assert "word/" not in said
        assert "Traceback" not in said


def test_export_and_import_through_a_pipe_are_exact(database_url: str, tmp_path: Path) -> None:
    make(tmp_path / "source.sqlite")
    exported = checkpointing("export", "source.sqlite", "-")
    assert exported.exit_code == 0
    assert "3 threads: 3 exported" in exported.stderr
    assert len(exported.stdout.splitlines()) == 2 + 3 * 4
    ended = checkpointing("import", "-", database_url, stdin=exported.stdout_bytes)
    assert ended.exit_code == 0, ended.stderr
    assert "3 threads: 3 imported" in ended.stdout
    same(tmp_path / "source.sqlite", database_url, 3)
    again = checkpointing("import", "-", database_url, "--json", stdin=exported.stdout_bytes)
    assert as_json(again)["outcomes"]["equal"] == 3


def test_exported_file_is_its_owners_alone_and_is_never_half(tmp_path: Path) -> None:
    make(tmp_path / "source.sqlite")
    ended = checkpointing("export", "source.sqlite", "threads.jsonl", "--thread", "thread-0001", "--json")
    assert as_json(ended)["threads"] == 1
    assert stat.S_IMODE((tmp_path / "threads.jsonl").stat().st_mode) == 0o600
    assert checkpointing("import", "threads.jsonl", "target.sqlite").exit_code == 0
    there = checkpointing("export", "source.sqlite", "threads.jsonl")
    assert there.exit_code == 2
    assert "threads.jsonl is there already" in there.stderr
    failed = checkpointing("export", "nothing.sqlite", "other.jsonl")
    assert failed.exit_code == 2
    assert sorted(path.name for path in tmp_path.glob("*.jsonl*")) == ["threads.jsonl"]


@pytest.mark.parametrize("links", [True, False])
def test_of_two_exports_to_one_file_the_first_that_is_done_has_it_and_the_other_one_says_so(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "source.sqlite", 4)
    make(tmp_path / "other.sqlite", 3)

    async def export_another_one(source: Backend) -> int:
        await asyncio.to_thread(
            subprocess.run, command("export", "other.sqlite", "threads.jsonl"), env=ENVIRONMENT, check=True
        )
        return await count_threads(source)

    def refused(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "a file system without links")

    monkeypatch.setattr("enhanced_checkpointing.cli.moving.count_threads", export_another_one)
    if not links:
        monkeypatch.setattr(os, "link", refused)
    ended = checkpointing("export", "source.sqlite", "threads.jsonl")
    assert ended.exit_code == 2
    assert "threads.jsonl has come while this was at work, and stays as it is." in ended.stderr
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    taken = as_json(checkpointing("import", "threads.jsonl", "target.sqlite", "--json"))
    assert (taken["status"], taken["threads"]) == ("complete", 3)
    assert [path.name for path in tmp_path.glob("*.jsonl*")] == ["threads.jsonl"]


def test_export_to_a_file_system_without_links_is_whole_and_its_owners_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "a file system without links")

    make(tmp_path / "source.sqlite")
    monkeypatch.setattr(os, "link", refused)
    assert checkpointing("export", "source.sqlite", "threads.jsonl").exit_code == 0
    assert stat.S_IMODE((tmp_path / "threads.jsonl").stat().st_mode) == 0o600
    assert as_json(checkpointing("import", "threads.jsonl", "target.sqlite", "--json"))["threads"] == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_export_that_is_ended_leaves_nothing(number: signal.Signals, database_url: str, tmp_path: Path) -> None:
    apply(postgres(database_url), Author().put({"log": [1]}))
    with psycopg.connect(database_url) as blocker:
        blocker.execute("LOCK TABLE checkpoints IN ACCESS EXCLUSIVE MODE")
        running = subprocess.Popen(
            command("export", database_url, "threads.jsonl"),
            env=ENVIRONMENT,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # a job in the background inherits it ignored
        )
        try:
            while not (parts := [*tmp_path.glob("threads.jsonl*")]) and running.poll() is None:
                time.sleep(0.005)
            assert [path.suffix for path in parts] == [".part"]
            assert stat.S_IMODE(parts[0].stat().st_mode) == 0o600
            running.send_signal(number)
            assert running.wait(30) == 128 + number
        finally:
            running.kill()
            running.wait()
    assert [*tmp_path.glob("threads.jsonl*")] == []


def test_file_of_several_exports_is_noticed(tmp_path: Path) -> None:
    exports = []
    for name, size in (("source", 1), ("other", 2)):
        make(tmp_path / f"{name}.sqlite", size=size)
        assert checkpointing("export", f"{name}.sqlite", f"{name}.jsonl").exit_code == 0
        exports.append((tmp_path / f"{name}.jsonl").read_bytes().splitlines(keepends=True))
    (tmp_path / "mixed.jsonl").write_bytes(b"".join([*exports[0][:5], *exports[1][5:]]))
    ended = checkpointing("import", "mixed.jsonl", "target.sqlite")
    assert ended.exit_code == 1
    assert "as if they were of several exports" in re.sub(r"\s+", " ", ended.stdout)


def test_damaged_export_is_imported_but_for_its_damaged_thread(tmp_path: Path) -> None:
    make(tmp_path / "source.sqlite")
    checkpointing("export", "source.sqlite", "threads.jsonl")
    whole = (tmp_path / "threads.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    lines[6] = lines[6].replace(b'"step": ', b'"step": 7', 1)
    (tmp_path / "threads.jsonl").write_bytes(b"".join(lines))
    ended = checkpointing("import", "threads.jsonl", "target.sqlite")
    assert ended.exit_code == 1
    assert "line 7: its check does not fit" in ended.stdout
    assert "2 imported, 1 failed" in re.sub(r"\s+", " ", ended.stdout)
    no_export = checkpointing("import", "source.sqlite", "target.sqlite")
    assert no_export.exit_code == 2
    assert "Nothing was imported" in no_export.stderr


MEASURED = """
import sys
from pathlib import Path
from enhanced_checkpointing.cli.entry import main
try:
    main()
finally:
    told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(told["VmHWM"].split()[0]) // 1024, file=sys.stderr)
"""
"""The kernel's own mark of the most memory; that of `getrusage` begins with what the parent process had."""


def peak_of(*arguments: str) -> int:
    """The most memory that a command held, in MiB."""
    ended = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments, "--quiet"], capture_output=True, timeout=110, env=ENVIRONMENT
    )
    assert ended.returncode == 0, ended.stderr
    return int(ended.stderr.split()[-1])


@pytest.mark.thorough
def test_memory_stays_flat_however_large_a_thread_is(database_url: str, tmp_path: Path) -> None:
    """96 MiB in one thread, through every command."""
    make(tmp_path / "small.sqlite", 1)
    make(tmp_path / "large.sqlite", 1, checkpoints=48, size=2 * 1024 * 1024)
    least = peak_of("migrate", "small.sqlite", "other.sqlite")
    peaks = {
        "to PostgreSQL": peak_of("migrate", "large.sqlite", database_url),
        "back": peak_of("migrate", database_url, "back.sqlite"),
        "exported": peak_of("export", database_url, "large.jsonl"),
        "imported": peak_of("import", "large.jsonl", "imported.sqlite"),
    }
    assert (tmp_path / "large.jsonl").stat().st_size > 96 * 1024 * 1024
    assert max(peaks.values()) < least + 60, f"{peaks}, with next to nothing {least}"
