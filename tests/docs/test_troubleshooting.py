"""Every message on the page is one that somebody really says, and it means what the page says."""

from __future__ import annotations

import ast
import asyncio
import errno
import importlib.util
import re
import sqlite3
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from docs.building.writing import DOCS, ROOT
from enhanced_checkpointing import CheckpointerError, CheckpointUnavailableError, EnhancedCheckpointerManager
from enhanced_checkpointing.backends.postgres.failures import classify_postgres
from enhanced_checkpointing.backends.sqlite.file import classify_sqlite
from enhanced_checkpointing.journal.disk import refusal
from enhanced_checkpointing.resilience.failures import FailureKind
from tests.support.checkpointer import opened, postgres, sqlite
from tests.support.checkpointer import saver_of as saver
from tests.support.checkpoints import Thread

PAGE = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
SOURCE = ROOT / "src" / "enhanced_checkpointing"


def messages(speaker: str) -> list[str]:
    """The lines that the page quotes of somebody."""
    blocks = re.findall(rf'^```text title="{speaker}"\n(.*?)^```$', PAGE, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def pattern(message: str) -> re.Pattern[str]:
    """A quoted message, with anything where it has `…`."""
    return re.compile(".*?".join(map(re.escape, message.split("…"))))


def texts_in(source: str) -> str:
    """All texts of a program, as they come out: pieces that stand side by side are one, what is filled in is `…`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
        elif isinstance(node, ast.JoinedStr):
            found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values))
    return "\n".join(found).replace("\\n", "\n")


@cache
def our_texts() -> str:
    """Every text of the library, and those that it puts together of several."""
    together = [str(refusal(OSError(number, "…"))) for number in (errno.ENOSPC, errno.EIO)]
    return "\n".join(
        [*together, *(texts_in(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py")))]
    )


def package_texts(name: str) -> str:
    """Every text of an installed package."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    return "\n".join(texts_in(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.py")))


def speakers() -> set[str]:
    return set(re.findall(r'^```text title="([^"]+)"$', PAGE, flags=re.MULTILINE))


def test_every_speaker_of_the_page_is_listened_to_here() -> None:
    assert speakers() == {
        "enhanced_checkpointing",
        "psycopg",
        "psycopg_pool",
        "PostgreSQL",
        "SQLite",
        "asyncio",
        "LangGraph",
    }
    assert "```text\n" not in PAGE, "say who says it"


@pytest.mark.parametrize("message", messages("enhanced_checkpointing"))
def test_message_of_ours_is_in_the_source_word_for_word(message: str) -> None:
    pieces = [piece.strip() for piece in message.split("…")]
    long = [piece for piece in pieces if len(piece) > 12]
    assert long, "nothing that could be searched for"
    for piece in long:
        whole = piece in our_texts()
        sentences = re.split(r"(?<=[.:]) ", piece)
        assert whole or all(sentence in our_texts() for sentence in sentences), piece


@pytest.mark.parametrize(
    ("speaker", "packages"),
    [
        ("psycopg", ["psycopg"]),
        ("psycopg_pool", ["psycopg_pool"]),
        ("asyncio", ["asyncio"]),
        ("LangGraph", ["langgraph.checkpoint.postgres.aio", "langgraph.checkpoint.sqlite"]),
    ],
)
def test_message_of_a_package_is_in_its_source(speaker: str, packages: list[str]) -> None:
    texts = " ".join("\n".join(map(package_texts, packages)).split())
    for message in messages(speaker):
        of_libpq = message.removeprefix("consuming input failed: ")  # the rest is in no Python
        searched = "consuming input failed: " if of_libpq != message else message
        for piece in filter(None, re.split(r"…|<…>|(?<=[.]) ", searched)):
            assert piece.strip(" <>") in texts, piece


IN_SQL: dict[str, tuple[str, FailureKind]] = {
    'prepared statement "_pg3_0" already exists': (
        "PREPARE _pg3_0 AS SELECT 1; PREPARE _pg3_0 AS SELECT 1",
        FailureKind.CONFIGURATION,
    ),
    'prepared statement "_pg3_0" does not exist': ("EXECUTE _pg3_0", FailureKind.CONFIGURATION),
    "cannot execute INSERT in a read-only transaction": (
        "CREATE TABLE t (n int); SET transaction_read_only = on; INSERT INTO t VALUES (1)",
        FailureKind.OUTAGE,
    ),
    "cannot execute UPDATE in a read-only transaction": (
        "CREATE TABLE t (n int); SET transaction_read_only = on; UPDATE t SET n = 1",
        FailureKind.OUTAGE,
    ),
    'relation "checkpoints" does not exist': ("SELECT FROM checkpoints", FailureKind.CONFIGURATION),
    'relation "checkpoint_migrations" does not exist': ("SELECT FROM checkpoint_migrations", FailureKind.CONFIGURATION),
    'duplicate key value violates unique constraint "checkpoint_migrations_pkey"': (
        "CREATE TABLE checkpoint_migrations (v INTEGER PRIMARY KEY);INSERT INTO checkpoint_migrations VALUES (0), (0)",
        FailureKind.DATA,
    ),
    "permission denied for table checkpoints": (
        "CREATE TABLE checkpoints (n int); CREATE ROLE nobody_here; SET ROLE nobody_here; SELECT FROM checkpoints",
        FailureKind.CONFIGURATION,
    ),
    "permission denied for schema public": (
        "CREATE ROLE nobody_here; SET ROLE nobody_here; CREATE TABLE public.t (n int)",
        FailureKind.CONFIGURATION,
    ),
    "unsupported Unicode escape sequence": (r"""SELECT '{"a": "\u0000"}'::jsonb""", FailureKind.DATA),
    "invalid input syntax for type json": ("SELECT '{\"a\": NaN}'::jsonb", FailureKind.DATA),
    'index row size … exceeds btree version 4 maximum 2704 for index "…"': (
        (
            "CREATE TABLE t (n text PRIMARY KEY);"
            "INSERT INTO t SELECT string_agg(sha512(n::text::bytea)::text, '') FROM generate_series(1, 60) AS n"
        ),
        FailureKind.DATA,
    ),
}
"""What makes PostgreSQL say so, and what that means."""

OTHERWISE = {
    'duplicate key value violates unique constraint "pg_type_typname_nsp_index"',
    'FATAL: password authentication failed for user "…"',
    'FATAL: database "…" does not exist',
    "FATAL: sorry, too many clients already",
    "FATAL: remaining connection slots are reserved for roles with the SUPERUSER attribute",
}


def test_every_message_of_the_server_is_looked_at() -> None:
    assert set(messages("PostgreSQL")) == IN_SQL.keys() | OTHERWISE


@pytest.mark.parametrize("message", IN_SQL)
def test_server_says_so_and_it_means_what_the_page_says(message: str, database_url: str) -> None:
    statement, kind = IN_SQL[message]
    with psycopg.connect(database_url) as connection:
        with pytest.raises(psycopg.Error) as raised:
            connection.execute(sql.SQL(statement))
        connection.rollback()
    assert pattern(message).match(str(raised.value)), str(raised.value)
    assert classify_postgres(raised.value).kind is kind


def test_two_who_set_up_at_once_without_a_lock_are_told_of_the_unique_constraint(database_url: str) -> None:
    statement = "CREATE TABLE IF NOT EXISTS checkpoints (n int)"
    told: list[str] = []

    def second() -> None:
        try:
            with psycopg.connect(database_url) as connection:
                connection.execute(statement)
        except psycopg.errors.UniqueViolation as error:
            told.append(str(error))

    with psycopg.connect(database_url) as connection:
        connection.execute(statement)
        other = threading.Thread(target=second)
        other.start()
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        with psycopg.connect(database_url, autocommit=True) as watcher:
            while watcher.execute(waiting).fetchone() == (0,):
                other.join(0.01)
        connection.commit()
    other.join()
    assert told
    assert told[0].startswith('duplicate key value violates unique constraint "pg_type_typname_nsp_index"')
    assert told[0].splitlines()[0] in messages("PostgreSQL")


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("sorry, too many clients already", FailureKind.OUTAGE),
        ("remaining connection slots are reserved for roles with the SUPERUSER attribute", FailureKind.OUTAGE),
        ('password authentication failed for user "app"', FailureKind.CONFIGURATION),
        ('database "chat" does not exist', FailureKind.CONFIGURATION),
    ],
)
def test_refusal_while_connecting_means_what_the_page_says(words: str, kind: FailureKind) -> None:
    error = psycopg.OperationalError(
        f'connection failed: connection to server at "127.0.0.1", port 5432 failed: FATAL:  {words}'
    )
    assert classify_postgres(error).kind is kind
    assert any(pattern(message.removeprefix("FATAL: ")).fullmatch(words) for message in messages("PostgreSQL"))


@pytest.mark.parametrize("message", messages("psycopg")[:4])
def test_connection_that_was_lost_leaves_unknown_what_was_applied(message: str) -> None:
    assert classify_postgres(psycopg.OperationalError(message)).kind is FailureKind.UNKNOWN


def locked(file: Path) -> None:
    with sqlite3.connect(file) as one, sqlite3.connect(file, timeout=0) as other:
        one.execute("BEGIN IMMEDIATE")
        other.execute("BEGIN IMMEDIATE")


def locked_table(file: Path) -> None:
    shared = f"file:{file.name}?mode=memory&cache=shared"
    with sqlite3.connect(shared, uri=True) as one, sqlite3.connect(shared, uri=True) as other:
        one.execute("CREATE TABLE t (n)")
        one.commit()
        one.execute("INSERT INTO t VALUES (1)")
        other.execute("SELECT * FROM t").fetchall()


def read_only(file: Path) -> None:
    sqlite3.connect(file).execute("CREATE TABLE t (n)").connection.close()
    sqlite3.connect(f"file:{file}?mode=ro", uri=True).execute("INSERT INTO t VALUES (1)")


def no_folder(file: Path) -> None:
    sqlite3.connect(file / "nowhere" / "file")


def overwritten(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE t (n)")
        connection.executemany("INSERT INTO t VALUES (?)", [("x" * 1000,)] * 50)
    connection.close()
    content = bytearray(file.read_bytes())
    content[5000:] = b"\xff" * (len(content) - 5000)
    file.write_bytes(content)
    sqlite3.connect(file).execute("SELECT * FROM t").fetchall()


def no_database(file: Path) -> None:
    file.write_bytes(b"these are the words of somebody else" * 100)
    sqlite3.connect(file).execute("SELECT * FROM t")


IN_SQLITE: dict[str, tuple[Callable[[Path], None], FailureKind]] = {
    "database is locked": (locked, FailureKind.TRANSIENT),
    "database table is locked": (locked_table, FailureKind.TRANSIENT),
    "attempt to write a readonly database": (read_only, FailureKind.OUTAGE),
    "unable to open database file": (no_folder, FailureKind.CONFIGURATION),
    "database disk image is malformed": (overwritten, FailureKind.CORRUPTION),
    "file is not a database": (no_database, FailureKind.CORRUPTION),
}


def test_every_message_of_sqlite_is_looked_at() -> None:
    assert set(messages("SQLite")) == IN_SQLITE.keys()


@pytest.mark.parametrize("message", IN_SQLITE)
def test_sqlite_says_so_and_it_means_what_the_page_says(message: str, tmp_path: Path) -> None:
    provoke, kind = IN_SQLITE[message]
    with pytest.raises(sqlite3.Error) as raised:
        provoke(tmp_path / "file.sqlite")
    assert str(raised.value).startswith(message)
    assert classify_sqlite(raised.value).kind is kind


def quoted(error: CheckpointerError) -> bool:
    """Whether the page quotes the whole of what this error says."""
    return any(pattern(message).fullmatch(str(error)) for message in messages("enhanced_checkpointing"))


async def test_synchronous_call_and_closed_checkpointer_say_what_is_quoted(tmp_path: Path) -> None:
    manager = EnhancedCheckpointerManager(sqlite(tmp_path / "file.sqlite"))
    with pytest.raises(CheckpointerError) as raised:
        manager.get_checkpointer()
    assert quoted(raised.value)
    async with manager:
        kept = saver(manager)
        with pytest.raises(CheckpointerError) as raised:
            kept.get_tuple(Thread(kept, "one").config)
        assert quoted(raised.value)
    with pytest.raises(CheckpointerError) as raised:
        await kept.aget_tuple(Thread(kept, "one").config)
    assert quoted(raised.value)


async def test_cold_thread_says_what_is_quoted() -> None:
    nobody_listens = postgres("postgresql://postgres@127.0.0.1:1/postgres", environment="production")
    async with opened(nobody_listens) as manager:
        with pytest.raises(CheckpointUnavailableError) as raised:
            await asyncio.wait_for(saver(manager).aget_tuple(Thread(saver(manager), "one").config), 10)
        assert quoted(raised.value)


async def test_missing_tables_say_what_is_quoted(database_url: str) -> None:
    with pytest.raises(CheckpointerError) as raised:
        async with opened(postgres(database_url, auto_setup=False)):
            pass
    assert quoted(raised.value)


def test_every_statement_of_the_page_runs(database_url: str) -> None:
    statements = [
        words
        for line in re.findall(r"^psql .*$", PAGE, flags=re.MULTILINE)
        for words in re.findall(r'-c "([^"]+)"', line)
    ]
    assert len(statements) >= 6
    with psycopg.connect(database_url) as connection:
        connection.execute("CREATE ROLE app")
        for statement in statements:
            connection.execute(sql.SQL(statement))
        connection.rollback()
