"""PostgreSQL, step by step: reach the host, log in, ask the server about itself, prove a write."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, LiteralString, NamedTuple

import psycopg
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncConnection, sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import DictRow

from enhanced_checkpointing.backends.postgres.backend import MISSING_PRIVILEGES
from enhanced_checkpointing.backends.postgres.connections import PostgresConnections
from enhanced_checkpointing.cli.database import bounded
from enhanced_checkpointing.cli.doctor.checks import NO_START, Finding, failed, fine, skipped
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import redact
from enhanced_checkpointing.resilience.cooperative import in_thread_of_its_own
from enhanced_checkpointing.resilience.failures import CallFailed

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


DEFAULT_PORT = "5432"

DEGRADED_START = (
    "An application that starts now runs degraded: writes go to the journal, threads that it does not hold cannot be "
    "read (with CHECKPOINT_REQUIRE_PRIMARY=true it does not start)."
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server should listen."""

    host: str
    port: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Reached:
    """How the attempt ended to connect to a place: without an `error` a server listens there."""

    place: Place
    error: str = ""
    explanation: str = ""


def places_of(connection_string: str) -> list[Place]:
    """Where TCP connections of this connection string go; those to sockets in the file system are left out."""
    parts = {key: str(value) for key, value in conninfo_to_dict(connection_string).items() if value}
    hosts = (parts.get("hostaddr") or parts.get("host") or "").split(",")
    ports = (parts.get("port") or DEFAULT_PORT).split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    pairs = zip(hosts, ports, strict=False)
    return [Place(host, port or DEFAULT_PORT) for host, port in pairs if host and not host.startswith(("/", "@"))]


async def reach(place: Place, seconds: float) -> Reached:
    """Connect to a place by TCP, and hang up."""

    def connect() -> None:
        socket.create_connection((place.host, int(place.port)), timeout=seconds).close()

    try:
        await bounded(in_thread_of_its_own(connect, f"connect to {place}"), 2 * seconds)
    except socket.gaierror as error:
        return Reached(place, f"the name {place.host!r} has no address ({error.strerror})", "name")
    except ConnectionRefusedError:
        return Reached(place, "the connection was refused: no server listens there", "refused")
    except (TimeoutError, OSError) as error:
        reason = getattr(error, "strerror", None) or f"no answer within {seconds:g} s"
        return Reached(place, str(reason), "silent")
    return Reached(place)


FIX_HOST = {
    "name": "Correct the host in DATABASE_URL; inside a container or cluster, it is the name of the database's "
    "service, not localhost.",
    "refused": "Start the server, or correct host and port in DATABASE_URL. In a container, localhost is the "
    "container itself. A server that listens on its own machine only needs listen_addresses='*'.",
    "silent": "A firewall, security group or network policy drops the packets, or the address is wrong: allow the port "
    "from this machine, or correct host and port in DATABASE_URL.",
}


def check_host(reached: Sequence[Reached]) -> Finding:
    """Whether a server listens where DATABASE_URL leads."""
    name = "database.host"
    if not reached:
        return skipped("DATABASE_URL leads to a socket in the file system, not over the network.", name=name)
    good = ", ".join(str(each.place) for each in reached if not each.error)
    bad = [each for each in reached if each.error]
    what = "; ".join(f"{each.place}: {each.error}" for each in bad)
    if not good:
        fix = FIX_HOST[bad[0].explanation]
        return failed(f"The server cannot be reached: {what}.", DEGRADED_START, fix, name=name)
    return fine(f"A server listens at {good}{f'; of the others: {what}' if bad else ''}.", name=name, places=good)


class _Refusal(NamedTuple):
    """What a server says when it gives no session; `signs` are parts of its words."""

    signs: tuple[str, ...]
    what: str
    means: str
    fix: str


_LOGINS = (
    _Refusal(
        ("password authentication failed", "no password supplied", "authentication failed"),
        "The server does not accept this user and password.",
        NO_START,
        "Correct user and password in DATABASE_URL. Special characters of the password are written as %XX there "
        "('@' is %40, '/' is %2F, '%' is %25).",
    ),
    _Refusal(
        ("does not support SSL", "certificate", "sslmode", "sslrootcert"),
        "The encryption that DATABASE_URL asks for does not come about.",
        NO_START,
        "Correct sslmode and sslrootcert in DATABASE_URL, or set the server up for TLS (ssl=on).",
    ),
    _Refusal(
        ("too many connections for",),
        "The server gives this user, or this database, no further connection.",
        DEGRADED_START,
        "Allow more: ALTER ROLE name CONNECTION LIMIT -1, or ALTER DATABASE name CONNECTION LIMIT -1; or end some.",
    ),
    _Refusal(
        ("is not permitted to log in",),
        "The server does not let this user log in.",
        NO_START,
        "Allow it: ALTER ROLE name LOGIN; or correct the user in DATABASE_URL.",
    ),
    _Refusal(
        ('role "',),
        "The server has no such user.",
        NO_START,
        "Create the role: CREATE ROLE name LOGIN PASSWORD '…'; or correct the user in DATABASE_URL.",
    ),
    _Refusal(
        ("permission denied for database",),
        "This user may not connect to the database.",
        NO_START,
        "As the owner of the database: GRANT CONNECT ON DATABASE name TO user.",
    ),
    _Refusal(
        ("does not exist", "no such database"),
        "The server has no such database.",
        NO_START,
        "Create it: CREATE DATABASE name; or correct its name at the end of DATABASE_URL.",
    ),
    _Refusal(
        ("no pg_hba.conf entry", "no encryption"),
        "The server does not admit this user from this machine, with or without encryption.",
        NO_START,
        "Add a line to pg_hba.conf on the server and reload it; or ask for encryption with ?sslmode=require.",
    ),
    _Refusal(
        ("too many clients", "too many connections", "remaining connection slots"),
        "The server has no connection left.",
        DEGRADED_START,
        "Raise max_connections, put a pooler in between, or lower CHECKPOINT_POOL_MAX_SIZE; who holds "
        "them: SELECT usename, application_name, count(*) FROM pg_stat_activity GROUP BY 1, 2.",
    ),
    _Refusal(
        ("starting up", "shutting down", "in recovery mode", "not yet accepting connections"),
        "The server is starting, stopping or recovering from a crash.",
        DEGRADED_START,
        "Wait until it is up; its log says how far it is.",
    ),
)


def explain_login(error: CallFailed, seconds: float) -> Finding:
    """Why the server, which listens, gave no session."""
    name, text = "database.login", redact(error.error).strip()
    if error.timed_out or isinstance(error.error, TimeoutError) or "timeout" in text:
        return failed(
            f"The server takes the connection and does not answer within {seconds:g} s.",
            DEGRADED_START,
            "It hangs, is overloaded, or is no PostgreSQL: look at its machine and log (disk full? frozen? swapping?), "
            "and at what is in between.",
            name=name,
        )
    for signs, what, means, fix in _LOGINS:
        if any(sign in text for sign in signs):
            return failed(what, means, fix, name=name, error=text)
    fix = error.failure.fix or "Look into the server's log: it says more than it tells a client."
    what = f"The server gave no session: {' '.join(text.split())}"
    return failed(what, DEGRADED_START, fix, name=name, error=text)


async def reach_all(places: Sequence[Place], seconds: float) -> list[Reached]:
    """Reach all places at the same time."""
    return list(await asyncio.gather(*(reach(place, seconds) for place in places)))
