"""Set-ups that are broken for real: the doctor names cause and fix of each, within its time, and never a secret."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
import pytest

from enhanced_checkpointing.backends.postgres.listing import INDEX
from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres
from enhanced_checkpointing.cli.doctor import postgres as postgres_facts
from tests.support.pgbouncer import PgBouncer
from tests.support.postgres import ClusterTemplate, fresh_database, postgres_binaries
from tests.support.terminal import SECRET, assert_named, command, doctor

PASSWORD = f"{SECRET}&3"
MIGRATIONS = "checkpoint_migrations"


@pytest.fixture(scope="module")
def server() -> Iterator[LocalPostgres]:
    """A server that asks for a password."""
    with LocalPostgres(postgres_binaries(), password=PASSWORD) as server:
        execute(
            server.url(),
            f"CREATE ROLE visitor LOGIN PASSWORD '{SECRET}'",
            f"CREATE ROLE statue NOLOGIN PASSWORD '{SECRET}'",
            f"CREATE ROLE crowd LOGIN PASSWORD '{SECRET}' CONNECTION LIMIT 0",
            "CREATE DATABASE closed",
            "REVOKE CONNECT ON DATABASE closed FROM PUBLIC",
        )
        yield server


@pytest.fixture
def url(server: LocalPostgres) -> Iterator[str]:
    """A fresh database, as its superuser sees it."""
    with fresh_database(server.url()) as url:
        yield url


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def as_visitor(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"visitor:{SECRET}@{parts.netloc.rpartition('@')[2]}"))


def set_up(url: str, *arguments: object) -> None:
    assert command("setup", "--database-url", url, *arguments).code == 0


def test_sound_set_up_has_nothing_to_mend_before_and_after_the_tables_are_made(url: str) -> None:
    ended = doctor("--database-url", url)
    assert ended.code == 0, ended.out
    assert {finding["status"] for finding in ended.report["findings"]} == {"fine"}
    assert "first start makes" in ended.finding("database.schema")["what"]
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT to_regclass('checkpoints')").fetchone() == (None,)
    set_up(url)
    ended = doctor("--database-url", url)
    assert ended.code == 0
    assert ended.finding("database.probe")["what"] == "A checkpoint was written and rolled back."
    assert (
        ended.finding("database.schema")["details"]["version"] == ended.finding("database.schema")["details"]["newest"]
    )
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM checkpoints").fetchone() == (0,)


# Where no session comes about

LOGINS = {
    "wrong password": ("postgresql://postgres:wr0ng@{host}/postgres", "user and password", "Correct user and password"),
    "no password": ("postgresql://postgres@{host}/postgres", "user and password", "Correct user and password"),
    "missing database": ("postgresql://postgres:{right}@{host}/not_there", "no such database", "CREATE DATABASE"),
    "database that is closed to the user": (
        "postgresql://visitor:{secret}@{host}/closed",
        "may not connect",
        "GRANT CONNECT",
    ),
    "role without LOGIN": (
        "postgresql://statue:{secret}@{host}/postgres",
        "let this user log in",
        "ALTER ROLE name LOGIN",
    ),
    "role without a connection left": (
        "postgresql://crowd:{secret}@{host}/postgres",
        "no further connection",
        "CONNECTION LIMIT",
    ),
    "server without TLS": ("postgresql://postgres:{right}@{host}/postgres?sslmode=require", "encryption", "sslmode"),
    "missing root certificate": (
        "postgresql://postgres:{right}@{host}/postgres?sslmode=verify-full&sslrootcert=/not/there",
        "encryption",
        "sslrootcert",
    ),
}


@pytest.mark.parametrize(("template", "what", "fix"), LOGINS.values(), ids=LOGINS)
def test_login_that_is_refused_is_explained(template: str, what: str, fix: str, server: LocalPostgres) -> None:
    url = template.format(host=f"127.0.0.1:{server.port}", right=quote(PASSWORD), secret=SECRET)
    ended = doctor("--database-url", url)
    assert ended.finding("database.host")["status"] == "fine"
    assert_named(ended, "database.login", what=what, fix=fix)


def test_host_without_an_address_is_told_from_one_where_nobody_listens(server: LocalPostgres) -> None:
    ended = doctor("--database-url", "postgresql://me@nowhere.invalid/x", "--timeout", "2")
    assert_named(ended, "database.host", what="'nowhere.invalid' has no address", fix="Correct the host")
    assert ended.finding("database.login")["status"] == "skipped"
    ended = doctor("--database-url", "postgresql://me@127.0.0.1:1/x")
    assert_named(ended, "database.host", what="no server listens there", fix="Start the server")
    ended = doctor("--database-url", f"{server.url()}?host=127.0.0.1,127.0.0.1&port={server.port},1")
    assert "of the others: 127.0.0.1:1: the connection was refused" in ended.finding("database.host")["what"]
    assert ended.code == 0


@contextmanager
def silent_listener(*, full: bool) -> Iterator[int]:
    """A port that takes connections and never says a word; `full`: that does not even take them any more."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0 if full else 128)
        port: int = listener.getsockname()[1]
        for _ in range(4 if full else 0):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        yield port


def test_black_hole_is_told_within_the_time() -> None:
    with silent_listener(full=False) as port:
        ended = doctor("--database-url", f"postgresql://me@127.0.0.1:{port}/x", "--timeout", "0.5")
    assert_named(ended, "database.login", what="does not answer within 0.5 s", fix="It hangs")
    assert ended.seconds < 5
    with silent_listener(full=True) as port:
        ended = doctor("--database-url", f"postgresql://me@127.0.0.1:{port}/x", "--timeout", "0.5")
    assert_named(ended, "database.host", what="127.0.0.1", fix="firewall")
    assert ended.seconds < 5


def test_server_that_freezes_before_or_in_the_midst_of_the_questions_is_told_within_the_time(
    private_postgres: LocalPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    private_postgres.freeze()
    ended = doctor("--database-url", private_postgres.url(), "--timeout", "0.5")
    assert_named(ended, "database.login", what="does not answer", fix="disk full? frozen?")
    assert ended.seconds < 5
    private_postgres.thaw()
    ask = postgres_facts._ask_all

    async def freeze_first(*arguments: Any, **options: Any) -> Any:
        private_postgres.freeze()
        return await ask(*arguments, **options)

    monkeypatch.setattr(postgres_facts, "_ask_all", freeze_first)
    ended = doctor("--database-url", private_postgres.url(), "--timeout", "0.5")
    assert_named(ended, "database.login", what="does not answer", fix="It hangs")
    assert ended.seconds < 6


# Where there is a session


def read_only(url: str) -> None:
    name = urlsplit(url).path.lstrip("/")
    execute(url, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')


def half_made_index(url: str) -> None:
    """What an interrupted `CREATE INDEX CONCURRENTLY` leaves."""
    set_up(url)
    execute(
        url,
        "INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, checkpoint, metadata) "
        "VALUES ('a', '', '1', '{}', '{}'), ('a', '', '2', '{}', '{}')",
    )
    with contextlib.suppress(psycopg.errors.UniqueViolation):
        execute(url, "CREATE UNIQUE INDEX CONCURRENTLY half ON checkpoints (thread_id)")


def without_a_table(url: str) -> None:
    set_up(url)
    execute(url, "DROP TABLE checkpoint_writes")


def without_our_index(url: str) -> None:
    set_up(url)
    execute(url, f"DROP INDEX {INDEX}")


BROKEN: dict[str, tuple[Callable[[str], None], str, str, str, str]] = {
    "read-only server": (read_only, "database.writable", "failed", "takes no writes", "read-only"),
    "half made index": (half_made_index, "database.indexes", "warning", "half: half made", "DROP INDEX half"),
    "index of ours is missing": (
        without_our_index,
        "database.thread_index",
        "warning",
        "is missing",
        "checkpointing setup",
    ),
    "lost table": (without_a_table, "database.schema", "failed", "checkpoint_writes is missing", "Restore the table"),
}


@pytest.mark.parametrize(("break_it", "name", "status", "what", "fix"), BROKEN.values(), ids=BROKEN)
def test_server_that_does_not_fit_is_explained(
    break_it: Callable[[str], None], name: str, status: str, what: str, fix: str, url: str
) -> None:
    break_it(url)
    assert_named(doctor("--database-url", url), name, status=status, what=what, fix=fix)


def test_tables_that_are_missing_or_old_are_told_where_the_application_may_not_make_them(url: str) -> None:
    ended = doctor("--database-url", url, CHECKPOINT_AUTO_SETUP="false")
    assert_named(ended, "database.schema", what="not there yet", fix="checkpointing setup")
    set_up(url)
    execute(url, f"DELETE FROM {MIGRATIONS} WHERE v = (SELECT max(v) FROM {MIGRATIONS})")
    ended = doctor("--database-url", url, CHECKPOINT_AUTO_SETUP="false")
    assert_named(ended, "database.schema", what="of the older version", fix="checkpointing setup")
    assert doctor("--database-url", url).code == 0


def test_user_who_may_not_create_tables_is_told_who_has_to_grant_what(url: str) -> None:
    execute(url, "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    ended = doctor("--database-url", as_visitor(url))
    fix = "GRANT USAGE, CREATE ON SCHEMA public TO visitor"
    assert_named(ended, "database.schema", what="may not create tables in the schema public", fix=fix)


def test_schema_that_may_not_be_created_is_told(url: str) -> None:
    ended = doctor("--database-url", as_visitor(url), CHECKPOINT_POSTGRES_SCHEMA="agents")
    fix = "CREATE SCHEMA agents AUTHORIZATION visitor"
    assert_named(ended, "database.schema", what="the schema agents is missing", fix=fix)
    assert doctor("--database-url", url, CHECKPOINT_POSTGRES_SCHEMA="agents").code == 0


def test_privileges_that_are_missing_are_listed(url: str) -> None:
    set_up(url)
    execute(url, f"GRANT SELECT ON checkpoints, checkpoint_blobs, checkpoint_writes, {MIGRATIONS} TO visitor")
    ended = doctor("--database-url", as_visitor(url))
    assert_named(ended, "database.privileges", what="lacks INSERT on", fix="GRANT SELECT, INSERT, UPDATE, DELETE")


def test_table_that_is_locked_fails_the_probe_within_the_time(url: str) -> None:
    set_up(url)
    with psycopg.connect(url) as blocker:
        blocker.execute("LOCK TABLE checkpoints")
        ended = doctor("--database-url", url, "--timeout", "1", CHECKPOINT_DEADLINE="1")
    assert_named(ended, "database.probe", what="does not work", fix="pg_stat_activity")
    assert ended.seconds < 5


def test_database_of_another_encoding_is_warned_of(server: LocalPostgres) -> None:
    execute(server.url(), "CREATE DATABASE latin ENCODING 'SQL_ASCII' TEMPLATE template0")
    ended = doctor("--database-url", server.url("latin"))
    assert_named(ended, "database.encoding", status="warning", what="SQL_ASCII", fix="ENCODING 'UTF8'")


def test_pooler_is_told_from_the_server(database_url: str) -> None:
    with PgBouncer(database_url) as pooler:
        ended = doctor("--database-url", pooler.url)
        what = "A connection pooler is in between"
        assert_named(ended, "database.pooler", status="warning", what=what, fix="checkpointing setup")
        set_up(pooler.url)
        assert doctor("--database-url", pooler.url).finding("database.probe")["status"] == "fine"


def test_server_with_too_few_connections_none_left_or_unsafe_settings_is_told(
    cluster_template: ClusterTemplate,
) -> None:
    settings = {"max_connections": "8", "superuser_reserved_connections": "1", "full_page_writes": "off"}
    with cluster_template.server(settings) as small, contextlib.ExitStack() as stack:
        url = small.url()
        ended = doctor("--database-url", url)
        what, fix = "leaves 7", "Set CHECKPOINT_POOL_MAX_SIZE to 6"
        assert_named(ended, "database.connections", what=what, fix=fix)
        durability = ended.finding("database.durability")
        assert (durability["status"], durability["what"]) == ("warning", "The server runs with full_page_writes=off.")
        for _ in range(4):
            stack.enter_context(psycopg.connect(url))
        ended = doctor("--database-url", url, CHECKPOINT_POOL_MAX_SIZE="5")
        assert_named(ended, "database.connections", status="warning", what="4 of 7 connections are taken", fix="Lower")
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                stack.enter_context(psycopg.connect(url))
        ended = doctor("--database-url", url)
        assert_named(ended, "database.login", what="no connection left", fix="Raise max_connections")
