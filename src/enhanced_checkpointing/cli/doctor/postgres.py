"""The doctor's look at PostgreSQL, step by step: reach the host, log in, ask, prove a write."""

from __future__ import annotations

from collections.abc import Sequence

from enhanced_checkpointing.cli.doctor import checks_postgres
from enhanced_checkpointing.cli.doctor.checks_connect import check_host, explain_login, places_of, reach_all
from enhanced_checkpointing.cli.doctor.checks_trust import check_transport, sampled_threads
from enhanced_checkpointing.cli.findings import (
    Finding,
    Status,
    failed,
    fine,
    skipped,
    thread_index_missing,
)
from enhanced_checkpointing.cli.postgres_facts import NEWEST_SCHEMA, PostgresFacts, ask_postgres, try_to_create
from enhanced_checkpointing.cli.primary import Primary, opened_primary
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import CheckpointerConfigurationError, redact
from enhanced_checkpointing.resilience.failures import CallFailed

__all__ = ["look_at_postgres"]


async def look_at_postgres(config: CheckpointerConfig, timeout: float) -> Sequence[Finding]:
    """All findings; a step that fails ends the look, as the next ones could only fail, too."""
    assert config.connection_string is not None
    reached = await reach_all(places_of(config.connection_string.get_secret_value()), timeout)
    host, transport = check_host(reached), [*check_transport(config)]
    if host.status is Status.FAILED:
        return [host, *transport, skipped("database.login", "Nobody can log in before the host is reached.")]
    try:
        async with opened_primary(config) as primary:
            facts = await primary.ask("doctor", lambda: ask_postgres(config), 2 * timeout)
            return [host, *transport, *await _judged(primary, facts, config, timeout)]
    except CheckpointerConfigurationError as error:
        means = "An application that starts now is refused its start."
        return [host, *transport, failed("database.login", str(error), means, "See the message.")]
    except CallFailed as error:
        return [host, *transport, explain_login(error, timeout)]


async def _judged(
    primary: Primary, facts: PostgresFacts, config: CheckpointerConfig, timeout: float
) -> Sequence[Finding]:
    user = facts.answers.get("user", {})
    encrypted = "encrypted" if facts.encrypted else "not encrypted"
    login = fine(
        "database.login",
        f"{user.get('name', 'The user')} is logged in to {user.get('database', 'the database')}, {encrypted}, after "
        f"{facts.milliseconds:.0f} ms.",
        encrypted=facts.encrypted,
        milliseconds=round(facts.milliseconds, 1),
    )
    judged = checks_postgres.judge(facts, config)
    if any(finding.status is Status.FAILED for finding in judged):
        return [login, *judged, skipped("database.probe", "No write is tried before this is mended.")]
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
    name = "database.probe"
    has_newest = facts.has_tables and (facts.schema_version or 0) >= NEWEST_SCHEMA
    work = primary.backend.probe if has_newest else lambda: try_to_create(config)
    try:
        await primary.ask("probe", work, timeout)
    except CallFailed as error:
        late = error.timed_out or "lock timeout" in str(error.error)
        fix = "Somebody may hold a lock: SELECT pid, query FROM pg_stat_activity WHERE state <> 'idle'." if late else ""
        return failed(
            name,
            f"A write does not work: {' '.join(redact(error.error).split())}",
            "Writes fail, or go to the journal, until this is mended.",
            fix or error.failure.fix or "Look into the server's log.",
        )
    return fine(name, f"{'A checkpoint was written' if has_newest else 'A table was made'} and rolled back.")
