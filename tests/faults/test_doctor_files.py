"""Files and directories that are broken for real: SQLite's file, the journal's directory and disk, the settings."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from enhanced_checkpointing.backends.sqlite.listing import INDEX
from enhanced_checkpointing.journal.format import Signer
from tests.support.checkpointer import opened, saver_of, sqlite
from tests.support.checkpoints import Thread
from tests.support.cipher import encrypting
from tests.support.disks import bound_by_modes, fill, folder_without_root, set_modes, small_disk
from tests.support.held_directory import held_by_another_process
from tests.support.journals import add, opened_journal
from tests.support.terminal import assert_named, command, doctor

FILE = Path("checkpoints.sqlite")
JOURNAL = Path(".checkpoints/journal")


def made(path: Path = FILE) -> Path:
    assert command("setup", "--sqlite", path).code == 0
    return path


def test_file_that_is_not_there_is_no_fault_and_is_not_made() -> None:
    ended = doctor("--sqlite", "new/folder/file.sqlite")
    assert ended.code == 0
    assert "first start makes it, with its folder" in ended.finding("database.file")["what"]
    assert os.listdir() == []
    made()
    ended = doctor("--sqlite", FILE)
    assert "takes writes" in ended.finding("database.file")["what"]
    with contextlib.closing(sqlite3.connect(FILE)) as connection:
        assert connection.execute("SELECT count(*) FROM checkpoints").fetchone() == (0,)


def test_folder_in_which_no_file_can_be_made_is_told() -> None:
    with folder_without_root() as folder:
        set_modes(folder, 0o444, 0o555)
        with bound_by_modes():
            ended = doctor("--sqlite", folder / "new" / "file.sqlite", "--journal-dir", "/nonexistent")
    assert_named(ended, "database.file", what="cannot be made", fix=f"user write {folder}")


@pytest.mark.parametrize("target", ["link.sqlite", "not/there.sqlite"])
def test_link_that_leads_nowhere_is_told(target: str) -> None:
    Path("link.sqlite").symlink_to(target)
    assert_named(doctor("--sqlite", "link.sqlite"), "database.file", what="leads nowhere", fix="SQLITE_PATH")
    assert command("setup", "--sqlite", "link.sqlite").code == 1


@pytest.mark.parametrize("empty", [False, True])
def test_log_without_its_file_is_told_and_stays(empty: bool) -> None:
    made(Path("other.sqlite"))
    with contextlib.closing(sqlite3.connect("other.sqlite")) as connection:
        connection.execute("CREATE TABLE one (number INTEGER)")
        Path(f"{FILE}-wal").write_bytes(Path("other.sqlite-wal").read_bytes())
    if empty:
        FILE.touch()
    what = "is empty, but its log" if empty else "is not there, but its log"
    assert_named(doctor("--sqlite", FILE), "database.file", what=what, fix="Put back the very file")
    for arguments in (
        ("setup", "--sqlite", FILE),
        ("migrate", "--dry-run", "other.sqlite", FILE),
        ("export", FILE, "-"),
    ):
        ended = command(*arguments)
        assert ended.code != 0
        assert "Put back the very file" in " ".join((ended.out + ended.err).split())
    assert Path(f"{FILE}-wal").stat().st_size > 0
    assert FILE.exists() is empty


def test_file_in_the_place_of_the_folder_is_told() -> None:
    Path("data").touch()
    ended = doctor("--sqlite", "data/file.sqlite")
    assert_named(ended, "database.file", what="Not a directory", fix="SQLITE_PATH")


@pytest.mark.parametrize("path", ["/dev/null", "/tmp"])
def test_path_of_something_that_is_no_file_is_told(path: str) -> None:
    assert_named(doctor("--sqlite", path), "database.file", what="no regular file", fix="correct SQLITE_PATH")
    ended = command("setup", "--sqlite", path)
    assert (ended.code, "is no regular file" in ended.words) == (1, True), ended.out


def test_file_that_may_not_be_written_is_told() -> None:
    with folder_without_root() as folder:
        path = made(folder / "file.sqlite")
        set_modes(folder, 0o444, 0o555)
        with bound_by_modes():
            ended = doctor("--sqlite", path, "--journal-dir", folder / "journal")
    assert_named(ended, "database.file", what="cannot be written", fix="not mounted read-only")
    assert_named(ended, "journal.directory", what="Permission denied", fix="CHECKPOINT_JOURNAL_DIR")


def test_file_that_another_process_holds_locked_is_told_within_the_time() -> None:
    made()
    with contextlib.closing(sqlite3.connect(FILE, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        ended = doctor("--sqlite", FILE, "--timeout", "0.3")
    assert_named(ended, "database.file", what="holds the file locked", fix="fuser")
    assert ended.seconds < 5


def test_file_that_is_no_database_is_told_from_one_that_is_damaged() -> None:
    Path("letter.txt").write_text("Dear Ada, " * 100)
    assert_named(
        doctor("--sqlite", "letter.txt"), "database.file", what="no SQLite database", fix="Correct SQLITE_PATH"
    )
    assert Path("letter.txt").read_text() == "Dear Ada, " * 100
    made()
    asyncio.run(put_some(FILE))
    data = bytearray(FILE.read_bytes())
    data[4096:8192] = bytes(reversed(data[4096:8192]))
    FILE.write_bytes(data)
    assert_named(doctor("--sqlite", FILE), "database.file", what="damaged", fix=".recover")


async def put_some(path: Path) -> None:
    async with opened(sqlite(path)) as manager:
        thread = Thread(saver_of(manager), "thread")
        for _ in range(5):
            await thread.put()


def test_tables_that_the_application_may_not_make_are_told() -> None:
    ended = doctor("--sqlite", FILE, CHECKPOINT_AUTO_SETUP="false")
    assert_named(ended, "database.file", what="AUTO_SETUP=false", fix="checkpointing setup")
    sqlite3.connect(FILE).close()
    ended = doctor("--sqlite", FILE, CHECKPOINT_AUTO_SETUP="false")
    assert_named(ended, "database.file", what="lacks checkpoints, writes", fix="checkpointing setup")
    assert "which the first start makes" in doctor("--sqlite", FILE).finding("database.file")["what"]


def test_table_of_another_program_is_told() -> None:
    with contextlib.closing(sqlite3.connect(FILE)) as connection:
        connection.execute("CREATE TABLE checkpoints (thread_id, at)")
    assert_named(doctor("--sqlite", FILE), "database.file", what="not LangGraph's", fix="another file")
    assert command("setup", "--sqlite", FILE).code == 1


def test_missing_index_is_warned_of_and_made_by_a_setup() -> None:
    with contextlib.closing(sqlite3.connect(made())) as connection:
        connection.execute(f"DROP INDEX {INDEX}")
    ended = doctor("--sqlite", FILE)
    assert_named(ended, "database.thread_index", status="warning", what="is missing", fix="checkpointing setup")
    made()
    assert not [each for each in doctor("--sqlite", FILE).report["findings"] if each["status"] != "fine"]


def test_full_disk_is_told_for_the_file_and_for_the_journal(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        path = made(disk / "file.sqlite")
        fill(disk)
        ended = doctor("--sqlite", path, "--journal-dir", disk / "journal")
    assert_named(ended, "database.file", what="full", fix="Make room")
    assert_named(ended, "journal.room", what="is full", fix="Make room")


# The journal


def test_directory_of_the_journal_that_is_a_file_is_told() -> None:
    JOURNAL.parent.mkdir()
    JOURNAL.touch()
    ended = doctor("--sqlite", made())
    assert_named(ended, "journal.directory", what="Not a directory", fix="CHECKPOINT_JOURNAL_DIR")


def test_directory_in_memory_is_warned_of(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        disk.chmod(0o755)
        ended = doctor("--sqlite", made(), "--journal-dir", disk)
    assert_named(ended, "journal.directory", status="warning", what="in memory (tmpfs)", fix="volume")
    assert_named(ended, "journal.room", status="warning", what="left; each process may journal", fix="MAX_BYTES")


def test_directory_that_another_process_holds_for_too_long_is_told() -> None:
    asyncio.run(leave("a"))
    with held_by_another_process(JOURNAL) as process_id:
        ended = doctor("--sqlite", made())
    assert_named(ended, "journal.owners", status="warning", what=f"held by process {process_id}", fix="end it")


async def leave(*threads: str, home: str | None = None) -> None:
    """Let a process end that has journaled an operation of each of these threads."""
    async with opened_journal(JOURNAL, home=home) as journal:
        for thread_id in threads:
            await add(journal, thread_id)


async def bury() -> None:
    async with opened_journal(JOURNAL) as journal:
        await journal.dead_letter(await add(journal, "poisoned"), "a value is too long")


async def leave_in_a_running_process(home: str, then: Callable[[], None]) -> None:
    async with opened_journal(JOURNAL, home=home) as journal:  # which adopts what is for the same database
        await add(journal, "d")
        await asyncio.to_thread(then)


def test_backlogs_are_told_by_whose_they_are() -> None:
    path = made()
    asyncio.run(leave("a", "b", home=str(path.resolve())))
    asyncio.run(leave("c", home="postgres://db:5432/prod"))
    ended = doctor("--sqlite", path)
    assert_named(
        ended, "journal.foreign", what="for another database: postgres://db:5432/prod", fix="JOURNAL_ADOPT=all"
    )
    left = ended.finding("journal.left")
    assert (left["status"], left["details"]["pending"]) == ("warning", 2)

    def look() -> None:
        ended = doctor("--sqlite", path)
        assert_named(ended, "journal.foreign", what="for another database", fix="JOURNAL_ADOPT=all")
        assert ended.finding("journal.backlog")["details"]["pending"] == 3
        assert ended.finding("journal.owners")["details"]["process_ids"] == [os.getpid()]

    asyncio.run(leave_in_a_running_process(str(path.resolve()), look))


def test_dead_letters_and_damage_are_told() -> None:
    asyncio.run(bury())
    ended = doctor("--sqlite", made())
    assert_named(ended, "journal.dead_letters", what="1 thread: poisoned", fix="checkpointing journal retry --all`")
    damage()
    ended = doctor("--sqlite", FILE)
    assert_named(ended, "journal.damage", what="not what was written", fix="checkpointing journal quarantine")


def damage() -> None:
    (file,) = JOURNAL.glob("*.journal")
    data = bytearray(file.read_bytes())
    data[data.index(b"delete")] ^= 1
    file.write_bytes(data)


# Settings


def test_settings_that_do_not_fit_are_told_each_and_nothing_else_is_looked_at() -> None:
    ended = doctor(CHECKPOINT_DEADLINE="soon", CHECKPOINT_POOL_MAX_SIZE="0", DATABASE_URL="postgresql://a:s3cr3t@b@c/d")
    assert_named(ended, "settings.deadline", what="CHECKPOINT_DEADLINE", fix="Give a number from 0.01")
    assert_named(ended, "settings.pool_max_size", what="CHECKPOINT_POOL_MAX_SIZE", fix="Give a number from 1")
    assert ended.finding("database")["status"] == "skipped"
    assert "s3cr3t" not in ended.out
    url = "postgresql://a:s3cr3t@b@c/d"
    ended = doctor(CHECKPOINT_ENVIRONMENT="production", DATABASE_URL=url)
    assert_named(ended, "settings.connection_string", what="ended too early", fix="'@' is %40")
    assert "s3cr3t" not in ended.out


def test_name_that_is_no_setting_is_warned_of() -> None:
    ended = doctor(CHECKPOINT_DEADLIN="1")
    assert_named(
        ended, "settings.CHECKPOINT_DEADLIN", status="warning", what="no such setting", fix="CHECKPOINT_DEADLINE"
    )


def test_production_without_a_database_is_told_unless_the_file_was_named() -> None:
    ended = doctor("--environment", "production")
    assert_named(ended, "settings.database_url", what="neither DATABASE_URL nor POSTGRES_URL", fix="Set DATABASE_URL")
    ended = doctor("--environment", "production", SQLITE_PATH="here.sqlite")
    assert_named(ended, "settings.database_url", status="warning", what="neither", fix="Set DATABASE_URL")


def test_file_of_variables_that_nobody_has_loaded_is_warned_of_and_is_read_when_it_is_given() -> None:
    Path(".env").write_text(
        "CHECKPOINT_ENVIRONMENT=production\nSQLITE_PATH=data.sqlite\nOTHER=1\nCHECKPOINT_RETRIES=\n"
    )
    ended = doctor()
    names = "sets CHECKPOINT_ENVIRONMENT, SQLITE_PATH,"
    assert_named(ended, "settings.env_file", status="warning", what=names, fix="--env-file .env")
    ended = doctor("--env-file", ".env", SQLITE_PATH="mine.sqlite")
    sources = {each["name"]: (each["value"], each["source"]) for each in ended.report["settings"]}
    assert sources["environment"] == ("production", "file .env")
    assert sources["database_path"] == ("mine.sqlite", "environment")
    assert "CHECKPOINT_ENVIRONMENT" not in os.environ


def test_missing_driver_is_told_with_the_command_that_installs_it() -> None:
    program = "import sys; sys.modules['psycopg'] = None; from enhanced_checkpointing.cli.entry import main; main()"
    arguments = ["doctor", "--database-url", "postgresql://me:s3cr3t@127.0.0.1:1/x"]
    ended = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert 'pip install "psycopg[binary,pool]"' in " ".join(ended.stdout.split())
    assert "s3cr3t" not in ended.stdout + ended.stderr


def test_collector_that_nobody_runs_is_warned_of() -> None:
    ended = doctor(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    assert_named(ended, "telemetry", status="warning", what="127.0.0.1:1 cannot be reached", fix="4318")


# Keys

KEY, OTHER = "a key that is as long as it has to be", "another key, which is as long as that"


@pytest.mark.parametrize(("key", "what"), [(None, "CHECKPOINT_JOURNAL_KEY is not set"), (OTHER, "not signed with")])
def test_key_that_the_journal_was_not_signed_with_is_told(key: str | None, what: str) -> None:
    async def leave_signed() -> None:
        async with opened_journal(JOURNAL, signer=Signer(KEY)) as journal:
            await add(journal, "a")

    path = made()
    asyncio.run(leave_signed())
    ended = doctor("--sqlite", path, CHECKPOINT_JOURNAL_KEY=key)
    assert_named(ended, "journal.key", what=what, fix="the key that")
    assert KEY not in ended.out
    assert OTHER not in ended.out
    sound = doctor("--sqlite", path, CHECKPOINT_JOURNAL_KEY=KEY)
    assert sound.code == 0
    assert not [each for each in sound.report["findings"] if each["name"] == "journal.key"]


def test_key_that_does_not_decrypt_what_is_stored_is_told_where_the_serializer_is_named() -> None:
    path = made()

    async def talk() -> None:
        async with opened(sqlite(path, serde=encrypting())) as manager:
            await Thread(saver_of(manager), "secret").put()

    asyncio.run(talk())
    program = "from tests.support.cipher import encrypting\nright, wrong = encrypting(), encrypting(b'another key')\n"
    Path("keys_of_this_test.py").write_text(program)
    ended = doctor("--sqlite", path, "--serde", "keys_of_this_test:wrong")
    assert_named(ended, "database.key", what="1 thread of 1 cannot be decrypted with this key: secret", fix="--serde")
    assert doctor("--sqlite", path, "--serde", "keys_of_this_test:right").code == 0
    advised = doctor("--sqlite", path, CHECKPOINT_ENVIRONMENT="production", LANGGRAPH_STRICT_MSGPACK="true")
    assert "--serde MODULE:NAME" in advised.finding("database.sample")["what"]
