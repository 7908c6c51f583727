"""`checkpointing setup`: makes or migrates the tables as a step of its own, from any number of places at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from rich.text import Text

from enhanced_checkpointing.cli.configuration import Options, reading, required
from enhanced_checkpointing.cli.database import Primary, opened_primary
from enhanced_checkpointing.cli.output import (
    ExitCode,
    UsageError,
    age,
    paragraph,
    print_json,
    progress_to_stderr,
    stdout,
)
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import CheckpointerConfigurationError, redact
from enhanced_checkpointing.resilience.failures import CallFailed, FailureKind

T = TypeVar("T")

PASSES = (FailureKind.OUTAGE, FailureKind.TRANSIENT, FailureKind.UNKNOWN, FailureKind.SATURATED)
"""Failures that may be over in a moment."""

PAUSE = 0.5
TELL_EVERY = 5.0
"""Seconds between two tries, and between two lines about them."""

CONTACT_SECONDS = 5.0
"""What a first answer may take; a migration may take as long as the tables are large."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`before` and `after` are versions of the tables, None without tables or where the backend has no such thing."""

    database: str
    done: bool
    before: int | None = None
    after: int | None = None
    what: str = ""
    fix: str = ""
    seconds: float = 0.0


def run(options: Options, *, wait: float, timeout: float, as_json: bool) -> ExitCode:
    """Set up, print, and tell how it ended."""
    tell = progress_to_stderr()
    with reading(options) as read:
        config = required(read).with_overrides(auto_setup=True)
        if config.backend_name == "memory":
            raise UsageError(
                "The primary is memory, where nothing is set up. Name a database: --database-url, --sqlite, or "
                "CHECKPOINT_ENVIRONMENT=production with DATABASE_URL."
            )
        outcome = asyncio.run(set_up(config, wait=wait, timeout=timeout, tell=tell))
    if as_json:
        print_json(_as_object(outcome))
    else:
        style = "bold green" if outcome.done else "bold red"
        console = stdout()
        paragraph(console, Text("ok   " if outcome.done else "FAIL ", style=style), outcome.what)
        if outcome.fix:
            paragraph(console, Text("fix  ", style="dim"), outcome.fix, style="cyan")
    return ExitCode.FINE if outcome.done else ExitCode.WRONG


def _as_object(outcome: Outcome) -> dict[str, object]:
    return {
        "status": "fine" if outcome.done else "failed",
        "database": outcome.database,
        "what": outcome.what,
        "fix": outcome.fix,
        "schema_before": outcome.before,
        "schema_after": outcome.after,
        "seconds": round(outcome.seconds, 3),
    }


async def set_up(config: CheckpointerConfig, *, wait: float, timeout: float, tell: Callable[[str], None]) -> Outcome:
    """Wait up to `wait` seconds for a database that does not answer or takes no writes, then set it up within `timeout`
    seconds."""
    begun = time.monotonic()
    try:
        async with opened_primary(config) as primary:
            database = primary.backend.database_id()
            tell(f"setting up {database}")
            try:
                contact = min(CONTACT_SECONDS, max(1.0, wait))
                before = await _patiently(lambda: _version(primary, config, contact), wait, tell)
                telling = asyncio.create_task(_say_that_it_goes_on(tell))
                try:
                    ask = partial(primary.ask, "setup", primary.backend.setup, timeout)
                    await _patiently(ask, wait, tell, busy=timeout)
                finally:
                    telling.cancel()
                    await asyncio.wait({telling})
                await _patiently(lambda: primary.ask("probe", primary.backend.probe, CONTACT_SECONDS), wait, tell)
                after = await _version(primary, config, CONTACT_SECONDS)
                missing = await _index(primary, timeout)
            except CallFailed as failed:
                return _failed(database, failed, time.monotonic() - begun)
    except CheckpointerConfigurationError as error:
        return Outcome(str(config.backend_name), False, what=str(error), seconds=time.monotonic() - begun)
    fix = f"The index of the threads of a user is missing ({missing}); nothing fails without it." if missing else ""
    return Outcome(database, True, before, after, _described(before, after, database), fix, time.monotonic() - begun)


async def _patiently(
    ask: Callable[[], Awaitable[T]], wait: float, tell: Callable[[str], None], busy: float | None = None
) -> T:
    """Ask again and again, for `wait` seconds, as long as what it meets may pass; `busy` where it is no outage.

    Raises:
        CallFailed: it did not pass, or cannot.
    """
    begun, told_at = time.monotonic(), float("-inf")
    while True:
        try:
            return await ask()
        except CallFailed as failed:
            waited = time.monotonic() - begun
            seconds = wait if busy is None or failed.kind is FailureKind.OUTAGE else busy
            if failed.kind not in PASSES or waited + PAUSE > seconds:
                raise
            if time.monotonic() - told_at >= TELL_EVERY:
                told_at = time.monotonic()
                reason = " ".join(redact(failed.error).split())
                tell(f"waiting for the database, for {seconds - waited:.0f} s more: {reason}")
        await asyncio.sleep(PAUSE)


async def _index(primary: Primary, seconds: float) -> str:
    """Make our own index, for which the setup itself takes its time only once; why it is not there, or nothing."""
    ends_at, backend = time.monotonic() + seconds, primary.backend
    while not await primary.ask("index", lambda: backend.make_thread_index(seconds), seconds + CONTACT_SECONDS):
        why = str(backend.notes().get("thread_index_missing", "it was not made"))
        if "another process" not in why or time.monotonic() > ends_at:
            return why
        await asyncio.sleep(PAUSE)
    return ""


async def _version(primary: Primary, config: CheckpointerConfig, seconds: float) -> int | None:
    """The version of the tables; asked, it also shows whether the database answers at all."""
    if config.backend_name != "postgres":
        return None
    from enhanced_checkpointing.cli.doctor.postgres import schema_version  # here, as it needs psycopg

    return await primary.ask("contact", lambda: schema_version(config), seconds)


async def _say_that_it_goes_on(tell: Callable[[str], None]) -> None:
    while True:
        await asyncio.sleep(TELL_EVERY)
        tell("still working: an index on a large table takes its time, or another process does this now")


def _described(before: int | None, after: int | None, database: str) -> str:
    if after is None:
        return f"The tables are there, and a write was proven: {database}"
    if before == after:
        return f"The tables were there already, of version {after}, and a write was proven: {database}"
    was = "there were none" if before is None else f"they were of version {before}"
    return f"The tables are of version {after} now ({was}), and a write was proven: {database}"


def _failed(database: str, failed: CallFailed, seconds: float) -> Outcome:
    if isinstance(failed.error, CheckpointerConfigurationError):
        return Outcome(database, False, what=str(failed.error), seconds=seconds)
    what = f"{database} was not set up: {' '.join(redact(failed.error).split())}"
    fix = failed.failure.fix
    if not fix and failed.kind in PASSES:
        fix = f"Given up after {age(seconds)}. `checkpointing doctor` looks for the cause; --wait waits longer."
    return Outcome(database, False, what=what, fix=fix, seconds=seconds)
