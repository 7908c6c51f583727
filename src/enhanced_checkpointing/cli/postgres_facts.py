"""What a PostgreSQL server says of itself, of us and of our tables: asked once, judged elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, LiteralString

import psycopg
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncConnection, sql
from psycopg.rows import DictRow

from enhanced_checkpointing.backends.postgres.backend import MISSING_PRIVILEGES
from enhanced_checkpointing.backends.postgres.connections import PostgresConnections
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import redact

__all__ = ["NEWEST_SCHEMA", "TABLES", "PostgresFacts", "ask_postgres", "schema_version", "try_to_create"]

TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes", "checkpoint_migrations")
NEWEST_SCHEMA = len(AsyncPostgresSaver.MIGRATIONS) - 1
"""The version of the tables that the installed saver of LangGraph makes."""

STATEMENT_MILLISECONDS = 3000
LOCK_MILLISECONDS = 1000
"""What one question may take: a lock on a table, or a tired server, must not hold up all the others."""

QUESTIONS: dict[str, LiteralString] = {
    "server": """
        SELECT current_setting('server_version') AS version, current_setting('server_encoding') AS encoding,
               current_setting('transaction_read_only') = 'on' AS read_only, pg_is_in_recovery() AS in_recovery,
               current_setting('fsync') AS fsync, current_setting('full_page_writes') AS full_page_writes,
               current_setting('synchronous_commit') AS synchronous_commit,
               pg_backend_pid() AS process_id, extract(epoch FROM clock_timestamp())::float8 AS time
    """,
    "user": """
        SELECT current_user AS name, current_database() AS database, current_schema() AS schema,
               CASE WHEN current_schema() IS NULL THEN false
                    ELSE has_schema_privilege(current_schema(), 'CREATE') END AS may_create_tables,
               has_database_privilege(current_database(), 'CREATE') AS may_create_schemas
    """,
    "connections": """
        SELECT current_setting('max_connections')::int AS most,
               current_setting('superuser_reserved_connections')::int
               + coalesce(current_setting('reserved_connections', true)::int, 0) AS reserved,
               (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')::int AS used,
               (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user) AS most_of_user,
               (SELECT datconnlimit FROM pg_database WHERE datname = current_database()) AS most_of_database
    """,
    "tables": """
        SELECT to_regclass('checkpoints') IS NOT NULL AS checkpoints,
               to_regclass('checkpoint_blobs') IS NOT NULL AS checkpoint_blobs,
               to_regclass('checkpoint_writes') IS NOT NULL AS checkpoint_writes,
               to_regclass('checkpoint_migrations') IS NOT NULL AS checkpoint_migrations
    """,
    "invalid_indexes": """
        SELECT coalesce(json_agg(name.relname ORDER BY name.relname), '[]') AS names
        FROM pg_index JOIN pg_class AS name ON name.oid = indexrelid
        WHERE NOT indisvalid AND indrelid IN (
            to_regclass('checkpoints'), to_regclass('checkpoint_blobs'), to_regclass('checkpoint_writes'))
    """,
}

VERSION_SQL: LiteralString = "SELECT max(v) AS version FROM checkpoint_migrations"


@dataclass(frozen=True, slots=True)
class PostgresFacts:
    """The answers, by question; those that were refused are in `refused`, with the server's words.

    `version` is the server's as a number (180001), `clock_offset` how many seconds its clock is ahead of ours, within
    `clock_error`. `schema_version` is None without tables; `missing` are the privileges that the user lacks on them.
    """

    version: int
    encrypted: bool
    behind_pooler: bool
    milliseconds: float
    answers: Mapping[str, Mapping[str, Any]]
    refused: Mapping[str, str] = field(default_factory=dict)
    clock_offset: float = 0.0
    clock_error: float = 0.0
    schema_version: int | None = None
    missing: tuple[str, ...] = ()

    @property
    def has_tables(self) -> bool:
        return all(self.answers.get("tables", {}).get(name, False) for name in TABLES)


async def ask_postgres(config: CheckpointerConfig) -> PostgresFacts:
    """Ask everything on one connection, each question in a transaction that changes nothing.

    Raises:
        psycopg.Error: no connection came about, or it was lost.
    """
    begun = time.perf_counter()
    connections = PostgresConnections(config)
    async with connections.alone() as connection:
        milliseconds = (time.perf_counter() - begun) * 1000
        async with connections.in_schema(connection):
            return await _ask_all(connection, milliseconds, behind_pooler=connections.behind_pooler)


async def schema_version(config: CheckpointerConfig) -> int | None:
    """The version of the tables; None if there are none.

    Raises:
        psycopg.Error: the server could not tell.
    """
    connections = PostgresConnections(config)
    async with connections.alone() as connection, connections.in_schema(connection):
        tables = await _ask(connection, QUESTIONS["tables"])
        return (await _ask(connection, VERSION_SQL))["version"] if tables["checkpoint_migrations"] else None


async def _ask_all(connection: AsyncConnection[DictRow], milliseconds: float, *, behind_pooler: bool) -> PostgresFacts:
    answers: dict[str, Mapping[str, Any]] = {}
    refused: dict[str, str] = {}

    async def ask(name: str, question: LiteralString) -> Mapping[str, Any]:
        try:
            answers[name] = await _ask(connection, question)
        except psycopg.Error as error:
            if connection.broken:
                raise
            refused[name] = redact(error)
        return answers.get(name, {})

    sent_at = time.time()
    server = await ask("server", QUESTIONS["server"])
    received_at = time.time()
    for name, question in QUESTIONS.items():
        if name != "server":
            await ask(name, question)
    version, missing = None, ()
    if answers.get("tables", {}).get("checkpoint_migrations"):
        version = (await ask("version", VERSION_SQL)).get("version")
    if all(answers.get("tables", {}).get(name) for name in TABLES):
        listed = f"SELECT coalesce(json_agg(missing), '[]') AS missing FROM ({MISSING_PRIVILEGES}) AS all_missing"
        missing = tuple((await ask("privileges", listed)).get("missing", ()))
    return PostgresFacts(
        version=connection.info.server_version,
        encrypted=bool(connection.pgconn.ssl_in_use),
        behind_pooler=behind_pooler,
        milliseconds=milliseconds,
        answers=answers,
        refused=refused,
        clock_offset=server["time"] - (sent_at + received_at) / 2 if server else 0.0,
        clock_error=(received_at - sent_at) / 2,
        schema_version=version,
        missing=missing,
    )


async def _ask(connection: AsyncConnection[DictRow], question: LiteralString) -> DictRow:
    async with connection.transaction(force_rollback=True):
        await connection.execute(f"SET LOCAL statement_timeout = {STATEMENT_MILLISECONDS}")
        await connection.execute(f"SET LOCAL lock_timeout = {LOCK_MILLISECONDS}")
        cursor = await connection.execute(question, prepare=False)
        row = await cursor.fetchone()
    assert row is not None  # none of the questions can have no row
    return row


async def try_to_create(config: CheckpointerConfig) -> None:
    """Make a table where the checkpoints' would be, and roll that back.

    Raises:
        psycopg.Error: it cannot be made.
    """
    connections = PostgresConnections(config)
    async with (
        connections.alone() as connection,
        connections.in_schema(connection),
        connection.transaction(force_rollback=True),
    ):
        if config.postgres_schema:
            name = sql.Identifier(config.postgres_schema)
            await connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(name))
        await connection.execute("CREATE TABLE checkpointing_doctor_trial (v integer)")
