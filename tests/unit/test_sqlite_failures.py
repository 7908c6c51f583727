"""What every error of SQLite means for the data, most of them made by a real SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import aiosqlite
import pytest

from enhanced_checkpointing.backends.sqlite.file import OrphanedLogError, classify_sqlite
from enhanced_checkpointing.resilience.failures import FailureKind


def coded(code: int, text: str = "what SQLite said", kind: type[sqlite3.Error] = sqlite3.OperationalError) -> Exception:
    error = kind(text)
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sqlite3.SQLITE_BUSY, FailureKind.TRANSIENT),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, FailureKind.TRANSIENT),
        (sqlite3.SQLITE_LOCKED, FailureKind.TRANSIENT),
        (sqlite3.SQLITE_LOCKED_SHAREDCACHE, FailureKind.TRANSIENT),
        (sqlite3.SQLITE_PROTOCOL, FailureKind.TRANSIENT),
        (sqlite3.SQLITE_SCHEMA, FailureKind.TRANSIENT),
        (sqlite3.SQLITE_INTERRUPT, FailureKind.UNKNOWN),
        (sqlite3.SQLITE_IOERR, FailureKind.OUTAGE),
        (sqlite3.SQLITE_IOERR_FSYNC, FailureKind.OUTAGE),
        (sqlite3.SQLITE_FULL, FailureKind.OUTAGE),
        (sqlite3.SQLITE_READONLY, FailureKind.OUTAGE),
        (sqlite3.SQLITE_READONLY_DBMOVED, FailureKind.OUTAGE),
        (sqlite3.SQLITE_NOMEM, FailureKind.OUTAGE),
        (sqlite3.SQLITE_CANTOPEN, FailureKind.CONFIGURATION),
        (sqlite3.SQLITE_CANTOPEN_ISDIR, FailureKind.CONFIGURATION),
        (sqlite3.SQLITE_PERM, FailureKind.CONFIGURATION),
        (sqlite3.SQLITE_AUTH, FailureKind.CONFIGURATION),
        (sqlite3.SQLITE_CORRUPT, FailureKind.CORRUPTION),
        (sqlite3.SQLITE_CORRUPT_INDEX, FailureKind.CORRUPTION),
        (sqlite3.SQLITE_NOTADB, FailureKind.CORRUPTION),
        (sqlite3.SQLITE_CONSTRAINT, FailureKind.DATA),
        (sqlite3.SQLITE_CONSTRAINT_UNIQUE, FailureKind.DATA),
        (sqlite3.SQLITE_TOOBIG, FailureKind.DATA),
        (sqlite3.SQLITE_MISMATCH, FailureKind.DATA),
    ],
)
def test_error_is_classified_by_its_primary_code(code: int, kind: FailureKind) -> None:
    error = coded(code)
    failure = classify_sqlite(error)
    assert (failure.kind, failure.error, failure.answered) == (kind, error, True)
    is_read_only = code == sqlite3.SQLITE_READONLY
    assert bool(failure.fix) is (kind is FailureKind.CONFIGURATION or is_read_only)


def test_log_without_its_file_is_no_outage_that_passes() -> None:
    error = OrphanedLogError("file.sqlite is not there, but its log is there")
    failure = classify_sqlite(error)
    assert (failure.kind, failure.error) == (FailureKind.CONFIGURATION, error)
    assert "Put back the very file" in failure.fix
    assert classify_sqlite(FileNotFoundError()).kind is FailureKind.OUTAGE


def raised(work: Callable[[], object]) -> BaseException:
    with pytest.raises(sqlite3.Error) as caught:
        work()
    return caught.value


def test_file_that_somebody_else_holds_locked_is_transient(tmp_path: Path) -> None:
    holder = sqlite3.connect(tmp_path / "file", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    other = sqlite3.connect(tmp_path / "file", timeout=0)
    assert classify_sqlite(raised(lambda: other.execute("CREATE TABLE t (x)"))).kind is FailureKind.TRANSIENT
    other.close()
    holder.close()


def test_file_that_may_only_be_read_is_an_outage(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "file").execute("CREATE TABLE t (x)").connection.close()
    reader = sqlite3.connect(f"file:{tmp_path / 'file'}?mode=ro", uri=True)
    assert classify_sqlite(raised(lambda: reader.execute("INSERT INTO t VALUES (1)"))).kind is FailureKind.OUTAGE
    reader.close()


def test_file_that_is_no_database_is_corruption(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"this was never a database, and it is long enough to be seen as none" * 20)
    connection = sqlite3.connect(tmp_path / "file")
    assert classify_sqlite(raised(lambda: connection.execute("SELECT 1 FROM t"))).kind is FailureKind.CORRUPTION
    connection.close()


def test_folder_that_is_not_there_is_a_matter_of_configuration(tmp_path: Path) -> None:
    failure = classify_sqlite(raised(lambda: sqlite3.connect(tmp_path / "no" / "such" / "file")))
    assert failure.kind is FailureKind.CONFIGURATION
    assert "SQLITE_PATH" in failure.fix


@pytest.mark.parametrize("statement", ["SELECT 1 FROM checkpoints", "SELECT task_path FROM writes"])
def test_missing_table_or_column_says_how_it_is_made(statement: str) -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE writes (idx)")
    failure = classify_sqlite(raised(lambda: connection.execute(statement)))
    assert failure.kind is FailureKind.CONFIGURATION
    assert "CHECKPOINT_AUTO_SETUP" in failure.fix
    connection.close()


def test_statement_that_was_interrupted_may_have_been_applied() -> None:
    connection = sqlite3.connect(":memory:")
    connection.create_function("stop", 0, lambda: connection.interrupt())
    endless = "WITH RECURSIVE n(i) AS (SELECT stop() UNION ALL SELECT i FROM n) SELECT * FROM n LIMIT 100000000"
    error = raised(lambda: connection.execute(endless).fetchall())
    assert classify_sqlite(error).kind is FailureKind.UNKNOWN
    connection.close()


def test_duplicate_key_is_the_callers_own_fault() -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (x PRIMARY KEY)")
    connection.execute("INSERT INTO t VALUES (1)")
    assert classify_sqlite(raised(lambda: connection.execute("INSERT INTO t VALUES (1)"))).kind is FailureKind.DATA
    connection.close()


async def test_connection_that_was_replaced_is_transient() -> None:
    """What a call meets that got hold of a connection just before it was given up."""
    connection = await aiosqlite.connect(":memory:")
    await connection.close()
    with pytest.raises((ValueError, sqlite3.ProgrammingError)) as caught:
        await connection.execute("SELECT 1")
    assert classify_sqlite(caught.value).kind is FailureKind.TRANSIENT


@pytest.mark.parametrize(
    ("error", "kind", "answered"),
    [
        (sqlite3.ProgrammingError("Cannot operate on a closed database."), FailureKind.TRANSIENT, False),
        (ValueError("Connection closed"), FailureKind.TRANSIENT, False),
        (ValueError("no active connection"), FailureKind.TRANSIENT, False),
        (ValueError("a caller's bug"), FailureKind.DATA, True),
        (sqlite3.ProgrammingError("Incorrect number of bindings supplied"), FailureKind.DATA, True),
        (TypeError("not serializable"), FailureKind.DATA, True),
        (PermissionError("denied"), FailureKind.OUTAGE, False),
    ],
)
def test_error_without_a_code_is_classified_by_type_and_text(
    error: Exception, kind: FailureKind, answered: bool
) -> None:
    failure = classify_sqlite(error)
    assert (failure.kind, failure.answered) == (kind, answered)
