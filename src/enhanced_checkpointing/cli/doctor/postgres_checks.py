"""What the facts of a PostgreSQL server and of its tables mean for the application. Nothing is asked here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from enhanced_checkpointing.backends.postgres.listing import INDEX
from enhanced_checkpointing.cli.database import Primary, opened_primary
from enhanced_checkpointing.cli.doctor.checks import (
    NO_START,
    Checks,
    Finding,
    Status,
    failed,
    fine,
    skipped,
    thread_index_missing,
    warning,
)
from enhanced_checkpointing.cli.doctor.postgres import (
    NEWEST_SCHEMA,
    TABLES,
    PostgresFacts,
    ask_postgres,
    check_host,
    explain_login,
    places_of,
    reach_all,
    try_to_create,
)
from enhanced_checkpointing.cli.doctor.trust import sampled_threads, transport_checks
from enhanced_checkpointing.cli.output import plural
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import CheckpointerConfigurationError, redact
from enhanced_checkpointing.resilience.failures import CallFailed

checks: Checks[PostgresFacts, CheckpointerConfig] = Checks()


OLDEST_SERVER = 14
"""`pg_terminate_backend` with a time to wait, which the fence needs, came with it."""
TESTED_SERVERS = (16, 18)

CLOCK_WARNING, CLOCK_FAILURE = 1.0, 30.0
"""Seconds that two machines may differ: checkpoints are put in order by the clocks of those who write them."""


@checks("database.version", "Is the server new enough?")
def check_version(facts: PostgresFacts, config: CheckpointerConfig) -> Iterator[Finding]:
    major = facts.version // 10_000
    version = facts.answers.get("server", {}).get("version", str(major))
    if major < OLDEST_SERVER:
        yield failed(
            f"The server is PostgreSQL {version}.",
            "A write that was left behind on a hung session could not be kept from committing late.",
            f"Upgrade to PostgreSQL {OLDEST_SERVER} or newer.",
            version=version,
        )
    else:
        tested = "" if TESTED_SERVERS[0] <= major <= TESTED_SERVERS[1] else ", which this release was not tested on"
        yield fine(f"The server is PostgreSQL {version}{tested}.", version=version)


@checks("database.writable", "Does the server take writes?")
def check_writable(facts: PostgresFacts, config: CheckpointerConfig) -> Iterator[Finding]:
    server = facts.answers.get("server")
    if server and (server["read_only"] or server["in_recovery"]):
        standby = "It is a standby." if server["in_recovery"] else "default_transaction_read_only is on."
        yield failed(
            f"The server takes no writes. {standby}",
            "This is an outage: writes go to the journal until the server takes writes again.",
            "Let DATABASE_URL name the primary; or name all servers and add ?target_session_attrs=read-write, so that "
            "a failover is followed."
            if server["in_recovery"]
            else "Find out what made it read-only (a full disk? a provider?), then ALTER SYSTEM or ALTER ROLE … RESET "
            "default_transaction_read_only.",
        )


@checks("database.durability", "Does the server keep what it has committed?")
def check_durability(facts: PostgresFacts, config: CheckpointerConfig) -> Iterator[Finding]:
    server = facts.answers.get("server", {})
    if off := [name for name in ("fsync", "full_page_writes") if server.get(name) == "off"]:
        yield warning(
            f"The server runs with {' and '.join(f'{name}=off' for name in off)}.",
            "A crash of its machine can lose or damage what was acknowledged, and nothing here can repair that.",
            "Switch it on in postgresql.conf; it is meant for throw-away databases.",
        )


@checks("database.encoding", "Can the database store every text?")
def check_encoding(facts: PostgresFacts, config: CheckpointerConfig) -> Iterator[Finding]:
    encoding = facts.answers.get("server", {}).get("encoding", "UTF8")
    if encoding != "UTF8":
        yield warning(
            f"The database's encoding is {encoding}.",
            "Texts with characters that it does not have are refused: live as an error, after an outage as dead "
            "letters.",
            "Make a database with ENCODING 'UTF8' TEMPLATE template0, and move there.",
        )


@checks("database.pooler", "Is a connection pooler in between?")
def check_pooler(facts: PostgresFacts, config: CheckpointerConfig) -> Iterator[Finding]:
    if not facts.behind_pooler:
        yield fine("No pooler is in between: sessions are the server's own.", pooler=False)
        return
    yield warning(
        "A connection pooler is in between (PgBouncer or its like).",
        "It works: nothing is prepared, and settings go along with each transaction. But a write that was left behind "
        "on a hung session cannot be ended, and setting up locks the tables while it makes indexes.",
        "Nothing has to be done. For large tables, run `checkpointing setup` on a direct connection.",
        pooler=True,
    )


@checks("database.connections", "Are there enough connections?")
def check_connections(facts: PostgresFacts, config: CheckpointerConfig) -> Iterator[Finding]:
    known = facts.answers.get("connections")
    if known is None or facts.behind_pooler:
        return  # a pooler shares out the server's connections by rules of its own
    limits = {
        "max_connections": known["most"] - known["reserved"],
        "the user's CONNECTION LIMIT": known["most_of_user"],
        "the database's CONNECTION LIMIT": known["most_of_database"],
    }
    limits = {limit: most for limit, most in limits.items() if most is not None and most >= 0}
    limit, most = min(limits.items(), key=lambda item: item[1])
    wanted, used = config.pool_max_size + 1, known["used"] - 1  # ours of this moment is no load
    details = {"limit": most, "used": used, "wanted_by_each_process": wanted}
    if wanted > most:
        yield failed(
            f"One process may take {plural(wanted, 'connection')} (CHECKPOINT_POOL_MAX_SIZE and a probe), and {limit} "
            f"leaves {most}.",
            "Under load, connections are refused, which counts as an outage.",
            f"Set CHECKPOINT_POOL_MAX_SIZE to {max(1, most - 1)} divided by the number of processes, or raise {limit}.",
            **details,
        )
    elif used + wanted > most:
        yield warning(
            f"{used} of {most} connections are taken now ({limit}), and one process may take {wanted}.",
            "Under load, connections may be refused, which counts as an outage.",
            f"Lower CHECKPOINT_POOL_MAX_SIZE, raise {limit}, or put a pooler in between.",
            **details,
        )
    else:
        processes = (most - used) // wanted
        yield fine(
            f"{used} of {most} connections are taken; there is room for {plural(processes, 'process', 'processes')} of "
            f"{wanted}.",
            **details,
        )


@checks("database.schema", "Are the tables there, or can they be made?")
def check_schema(facts: PostgresFacts, config: CheckpointerConfig) -> Iterator[Finding]:
    version = facts.schema_version
    there = [table for table in TABLES if facts.answers.get("tables", {}).get(table)]
    details: dict[str, Any] = {"version": version, "newest": NEWEST_SCHEMA, "tables": there}
    if version is not None and version >= NEWEST_SCHEMA and len(there) < len(TABLES):
        gone = ", ".join(table for table in TABLES if table not in there)
        yield failed(
            f"{gone} is missing, although checkpoint_migrations says that it was made.",
            NO_START,
            "Restore the table from a backup. If nothing in it is needed: DROP TABLE checkpoint_migrations, then "
            "`checkpointing setup`.",
            **details,
        )
    elif version is not None and version >= NEWEST_SCHEMA:
        newer = version > NEWEST_SCHEMA
        made_by = f", made by a newer saver of LangGraph than the one installed ({NEWEST_SCHEMA})" if newer else ""
        yield fine(f"The tables are there, of version {version}{made_by}.", **details)
    else:
        yield _unmade(facts, config, details)


def _unmade(facts: PostgresFacts, config: CheckpointerConfig, details: Mapping[str, Any]) -> Finding:
    version = facts.schema_version
    what = "The tables are not there yet" if version is None else f"The tables are of the older version {version}"
    if "version" in facts.refused:
        what = f"The version of the tables cannot be read ({facts.refused['version']})"
    if not config.auto_setup:
        return failed(
            f"{what}, and CHECKPOINT_AUTO_SETUP=false forbids the application to make them.",
            NO_START,
            "Run `checkpointing setup` as a user that may create tables, before the application starts.",
            **details,
        )
    if (refusal := _may_not_make(facts, config)) is not None:
        return failed(f"{what}, and {refusal[0]}.", NO_START, refusal[1], **details)
    return fine(f"{what}; the first start makes version {NEWEST_SCHEMA}.", **details)


def _may_not_make(facts: PostgresFacts, config: CheckpointerConfig) -> tuple[str, str] | None:
    """Why the tables cannot be made, and what to do; None if nothing speaks against it."""
    user = facts.answers.get("user")
    if user is None or user["may_create_tables"]:
        return None
    owner = "as the owner of the database"
    if user["schema"] is not None:
        what = f"the user {user['name']} may not create tables in the schema {user['schema']}"
        grant = f"GRANT USAGE, CREATE ON SCHEMA {user['schema']} TO {user['name']}"
        return what, f"{owner.capitalize()}: {grant}; or run `checkpointing setup` once as a user who may."
    if not config.postgres_schema:
        return "no schema of the search_path is there", "Create a schema, or set CHECKPOINT_POSTGRES_SCHEMA."
    if user["may_create_schemas"]:
        return None
    what = f"the schema {config.postgres_schema} is missing and the user {user['name']} may not create it"
    return what, f"{owner.capitalize()}: CREATE SCHEMA {config.postgres_schema} AUTHORIZATION {user['name']}."


@checks("database.privileges", "May the user read and write the tables?")
def check_privileges(facts: PostgresFacts, config: CheckpointerConfig) -> Iterator[Finding]:
    user = facts.answers.get("user", {}).get("name", "of DATABASE_URL")
    if facts.missing:
        yield failed(
            f"The user {user} lacks {', '.join(facts.missing)}.",
            NO_START,
            f"As the owner of the tables: GRANT SELECT, INSERT, UPDATE, DELETE ON {', '.join(TABLES)} TO {user}.",
            missing=list(facts.missing),
        )
    elif facts.has_tables and "privileges" not in facts.refused:
        yield fine(f"The user {user} may read and write the tables.", missing=[])


@checks("database.indexes", "Is every index whole?")
def check_indexes(facts: PostgresFacts, config: CheckpointerConfig) -> Iterator[Finding]:
    names = facts.answers.get("invalid_indexes", {}).get("names", [])
    if names := [name for name in names if name != INDEX]:  # ours is made anew by every setup
        yield warning(
            f"{', '.join(names)}: half made, by a setup that was interrupted.",
            "It costs every write and helps no read, and setting up again does not fix it.",
            f"DROP INDEX {', '.join(names)}; then `checkpointing setup`.",
            names=names,
        )


@checks("database.clock", "Do this machine's clock and the server's agree?")
def check_clock(facts: PostgresFacts, config: CheckpointerConfig) -> Iterator[Finding]:
    off = max(0.0, abs(facts.clock_offset) - facts.clock_error)
    details: dict[str, Any] = {"offset_seconds": round(facts.clock_offset, 3)}
    if off < CLOCK_WARNING:
        yield fine("This machine's clock agrees with the server's.", **details)
        return
    report = failed if off >= CLOCK_FAILURE else warning
    yield report(
        f"This machine's clock is {off:.1f} s {'behind' if facts.clock_offset > 0 else 'ahead of'} the server's.",
        "Checkpoints are put in order by the clocks of the machines that write them: with clocks that differ, another "
        "machine's older checkpoint can be taken for the newest.",
        "Synchronise the clocks of all machines (NTP, chrony).",
        **details,
    )


@checks("database.refused", "Did the server answer every question?")
def check_refused(facts: PostgresFacts, config: CheckpointerConfig) -> Iterator[Finding]:
    for question, error in facts.refused.items():
        if question != "version":
            yield warning(
                f"The server did not say what it was asked about {question.replace('_', ' ')}: {error}.",
                "This part is not checked.",
                "See the message: a lock on a table, or a missing privilege.",
                name=f"database.{question}",
            )


async def look_at_postgres(config: CheckpointerConfig, timeout: float) -> Sequence[Finding]:
    """All findings; a step that fails ends the look, as the next ones could only fail, too."""
    assert config.connection_string is not None
    reached = await reach_all(places_of(config.connection_string.get_secret_value()), timeout)
    host, transport = check_host(reached), transport_checks.judge(config, None)
    if host.status is Status.FAILED:
        return [host, *transport, skipped("A login is only tried once the host is reached.", name="database.login")]
    try:
        async with opened_primary(config) as primary:
            facts = await primary.ask("doctor", lambda: ask_postgres(config), 2 * timeout)
            return [host, *transport, *await _judged(primary, facts, config, timeout)]
    except CheckpointerConfigurationError as error:
        return [host, *transport, failed(str(error), NO_START, "See the message.", name="database.login")]
    except CallFailed as error:
        return [host, *transport, explain_login(error, timeout)]


async def _judged(
    primary: Primary, facts: PostgresFacts, config: CheckpointerConfig, timeout: float
) -> Sequence[Finding]:
    user = facts.answers.get("user", {})
    encrypted = "encrypted" if facts.encrypted else "not encrypted"
    login = fine(
        f"{user.get('name', 'The user')} is logged in to {user.get('database', 'the database')}, {encrypted}, after "
        f"{facts.milliseconds:.0f} ms.",
        encrypted=facts.encrypted,
        milliseconds=round(facts.milliseconds, 1),
        name="database.login",
    )
    judged = checks.judge(facts, config)
    if any(finding.status is Status.FAILED for finding in judged):
        return [login, *judged, skipped("A write is only tried once this is fixed.", name="database.probe")]
    probed = [await _probe(primary, facts, config, timeout), *await _index(primary, facts, timeout)]
    sampled = await sampled_threads(primary, config, timeout) if facts.has_tables else []
    return [login, *judged, *probed, *sampled]


async def _index(primary: Primary, facts: PostgresFacts, timeout: float) -> Sequence[Finding]:
    if not facts.has_tables:
        return []  # it is made with them
    try:
        there = await primary.ask("index", primary.backend.has_thread_index, timeout)
    except CallFailed as error:
        return [thread_index_missing(" ".join(redact(error.error).split()))]
    return [] if there else [thread_index_missing()]


async def _probe(primary: Primary, facts: PostgresFacts, config: CheckpointerConfig, timeout: float) -> Finding:
    """A real write, rolled back: nothing else finds a full disk, a lock or a trigger that refuses."""
    has_newest = facts.has_tables and (facts.schema_version or 0) >= NEWEST_SCHEMA
    work = primary.backend.probe if has_newest else lambda: try_to_create(config)
    try:
        await primary.ask("probe", work, timeout)
    except CallFailed as error:
        late = error.timed_out or "lock timeout" in str(error.error)
        fix = (
            "Another session may hold a lock: SELECT pid, query FROM pg_stat_activity WHERE state <> 'idle'."
            if late
            else ""
        )
        return failed(
            f"A write does not work: {' '.join(redact(error.error).split())}",
            "Writes fail, or go to the journal, until this is fixed.",
            fix or error.failure.fix or "Look into the server's log.",
            name="database.probe",
        )
    what = f"{'A checkpoint was written' if has_newest else 'A table was made'} and rolled back."
    return fine(what, name="database.probe")
