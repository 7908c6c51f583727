"""`checkpointing health`: how the checkpointer is, as a running application says it, or as it looks from outside.

From outside no manager is opened: that would take over what ended processes left, and drain it. The primary is probed
and the journal's directory is read; what only lives in a running process, such as its breaker, is not seen.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import urllib.error
import urllib.request
from base64 import b64encode
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError
from rich.console import Console
from rich.text import Text

from enhanced_checkpointing.cli.configuration import Options, reading, required
from enhanced_checkpointing.cli.database import bounded, opened_primary
from enhanced_checkpointing.cli.doctor.journal import JournalFacts, ask_journal
from enhanced_checkpointing.cli.doctor.sqlite import ask_sqlite
from enhanced_checkpointing.cli.output import ExitCode, UsageError, age, one_size, paragraph, plural, print_json, stdout
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import CheckpointerConfigurationError, redact
from enhanced_checkpointing.observability import health
from enhanced_checkpointing.resilience.cooperative import in_thread_of_its_own
from enhanced_checkpointing.resilience.failures import CallFailed

MOST_BYTES = 4 * 1024 * 1024
"""Of an answer over HTTP; a report has a few thousand."""

STYLES = {"healthy": "bold green", "degraded": "bold yellow", "unhealthy": "bold red"}


class _Part(BaseModel):
    """Of a report, what is shown of it: anybody may have written it."""

    model_config = ConfigDict(strict=True)


class _Primary(_Part):
    healthy: bool = False
    backend: str = ""
    outage_seconds: FiniteFloat | None = None
    error: str | None = None


class _Backlog(_Part):
    books: int
    home: str


class _Journal(_Part):
    mode: str = ""
    error: str | None = None
    foreign: list[_Backlog] | None = None
    size_bytes: FiniteFloat | None = None
    oldest_age_seconds: FiniteFloat | None = None
    pending: int | None = None
    dead_letters: int | None = None
    damages: int | None = None
    frozen_threads: int | None = None


class _Divergences(_Part):
    count: int | None = None


class _Report(_Part):
    overall_status: str
    primary_checkpointer: _Primary = _Primary()
    journal: _Journal = _Journal()
    divergences: _Divergences = _Divergences()


def run(options: Options, *, url: str | None, timeout: float, as_json: bool) -> ExitCode:
    """Find out, print, and tell how it is: fine only where the status is `healthy`."""
    if url is not None:
        _see_that_it_can_be_shown(url)
        report, source = asyncio.run(_asked(url, timeout)), f"the application at {_shown(url)}"
    else:
        with reading(options) as read:
            config = required(read)
            report = asyncio.run(_seen(config, timeout))
        source = "this command, from outside"
    if as_json:
        print_json({**report, "source": source})
    else:
        _print(report, source, stdout())
    return ExitCode.FINE if report["overall_status"] == "healthy" else ExitCode.WRONG


# As a running application says it


async def _asked(url: str, timeout: float) -> dict[str, Any]:
    work = in_thread_of_its_own(lambda: _fetch(_with_path(url), timeout), "ask the application")
    try:
        return await bounded(work, 2 * timeout)
    except (OSError, ValueError, RecursionError, HTTPException) as error:  # a time-out is an OSError, too
        reason = getattr(error, "reason", None) or error
        raise UsageError(
            f"The application at {_shown(url)} gave no health report: {redact(reason)}. Is it running, and is the "
            "checkpointer's app mounted there?"
        ) from None


def _see_that_it_can_be_shown(url: str) -> None:
    """What is meant as a password may only stand where it is known as one.

    Raises:
        UsageError: it is no URL, or a special character in a password moved part of that to behind the host.
    """
    try:
        parts = urlsplit(url)
        moved = "@" in parts.path + parts.query + parts.fragment or parts.port == 0
    except ValueError:  # a port that is no number, for one; its words quote the URL
        moved = True
    if not url.startswith(("http://", "https://")) or moved:
        raise UsageError(
            "--url needs http://host:port/path, where the checkpointer's app is mounted. Special characters of a "
            "password, and an '@' in the path, are written as %XX ('@' is %40, '/' is %2F). What was given is not "
            "repeated here, as there may be a password in it."
        )


def _with_path(url: str) -> str:
    return url if urlsplit(url).path.rstrip("/").endswith("health") else f"{url.rstrip('/')}/health"


def _shown(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _fetch(url: str, timeout: float) -> dict[str, Any]:
    parts = urlsplit(url)
    user, at, place = parts.netloc.rpartition("@")
    request = urllib.request.Request(urlunsplit((parts.scheme, place, parts.path, parts.query, "")))
    if at:
        request.add_unredirected_header("Authorization", f"Basic {b64encode(unquote(user).encode()).decode()}")
    elif token := os.environ.get("CHECKPOINT_STATUS_TOKEN"):
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            body = answer.read(MOST_BYTES)
    except urllib.error.HTTPError as error:  # 503 carries the report, too
        body = error.read(MOST_BYTES)
        if not body.lstrip().startswith(b"{"):
            raise
    report = json.loads(body)
    try:
        _Report.model_validate(report)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise ValueError(f"what it serves is no health report{f' (see {place})' if place else ''}") from None
    checked: dict[str, Any] = report
    return checked


# As it looks from outside


async def _seen(config: CheckpointerConfig, timeout: float) -> dict[str, Any]:
    if not config.enabled:
        return health.report_closed({}, enabled=False)
    directory = config.journal_dir.absolute()
    facts, error = await asyncio.gather(
        bounded(in_thread_of_its_own(lambda: ask_journal(directory, measure=_keeps(config)), "journal"), 4 * timeout),
        _probe(config, timeout),
    )
    return health.report(
        primary=health.PrimaryHealth(
            backend=config.backend_name,
            healthy=error is None,
            breaker_open=False,
            outage_seconds=None,
            error=error,
            outstanding_attempts=0,
            pool={},
            notes={},
        ),
        journal=_journal(config, facts),
        standby=health.StandbyHealth(threads=0, size=0),
        divergences=0,
        parts={},
    )


def _keeps(config: CheckpointerConfig) -> bool:
    return config.journal == "durable" and config.on_outage == "journal"


async def _probe(config: CheckpointerConfig, timeout: float) -> str | None:
    """What keeps a write from the primary; None if one was proven."""
    if config.backend_name == "sqlite" and str(config.database_path) != ":memory:":
        path = Path(config.database_path)  # by itself: the backend would make the file
        seen = await bounded(
            in_thread_of_its_own(lambda: ask_sqlite(path, timeout, thorough=False), "probe"), 2 * timeout
        )
        missing = f"{path} lacks {', '.join(seen.missing)}" if seen.missing else ""
        return seen.error or missing or (None if seen.exists else f"{path} is not there: nothing was ever stored")
    try:
        async with opened_primary(config) as primary:
            await primary.ask("probe", primary.backend.probe, timeout)
    except CallFailed as failed:
        return " ".join(redact(failed.error).split())
    except CheckpointerConfigurationError as error:
        return str(error)
    return None


def _journal(config: CheckpointerConfig, facts: JournalFacts) -> health.JournalHealth:
    logs = facts.survey.logs if facts.survey is not None else ()
    stamps = [log.oldest_at for log in logs if log.oldest_at is not None]
    keeps = _keeps(config)
    return health.JournalHealth(
        mode=config.journal,
        durable=config.journal == "durable",
        accepts=config.on_outage == "journal" and config.journal != "off" and not facts.error,
        pending=sum(log.pending for log in logs),
        oldest_age=max(0.0, time.time() - min(stamps)) if stamps else 0.0,
        size=sum(log.size for log in logs),
        capacity=config.journal_max_bytes,
        dead_letters=sum(len(log.dead_letters) for log in logs),
        frozen_threads=tuple(
            {letter.thread_id for log in logs for letter in log.dead_letters}
            | {thread for log in logs for thread in log.damaged_threads}
        ),
        damages=sum(len(log.faults) for log in logs),
        error=(facts.error or facts.survey_error or None) if keeps else None,
    )


# For people


def _print(report: dict[str, Any], source: str, console: Console) -> None:
    status = report["overall_status"]
    console.print(Text.assemble((status, STYLES.get(status, "bold")), f", says {source}"), soft_wrap=True)
    for name, text in (("primary", _primary_line(report)), ("journal", _journal_line(report))):
        paragraph(console, Text(f"{name:<12}", style="dim"), text)
    if count := report.get("divergences", {}).get("count"):
        paragraph(console, Text(f"{'branches':<12}", style="dim"), f"{plural(count, 'thread')} had two branches.")
    for name, part in report.items():
        if isinstance(part, dict) and name not in _KNOWN:
            well = "healthy" if part.get("healthy") else f"unhealthy: {part.get('error', 'it does not say why')}"
            paragraph(console, Text(f"{name:<12}", style="dim"), well)


_KNOWN = ("primary_checkpointer", "fallback_checkpointer", "journal", "divergences")


def _primary_line(report: dict[str, Any]) -> str:
    primary = report.get("primary_checkpointer", {})
    if primary.get("healthy"):
        return f"{primary.get('backend', 'it')} takes writes."
    since = primary.get("outage_seconds")
    outage = f" for {age(since)}" if since else ""
    return f"{primary.get('backend', 'it')} takes no writes{outage}: {primary.get('error') or 'it does not say why'}"


def _journal_line(report: dict[str, Any]) -> str:
    journal = report.get("journal", {})
    parts = []
    if pending := journal.get("pending"):
        waits = plural(pending, "operation waits", "operations wait")
        parts.append(f"{waits} for the primary, the oldest for {age(journal.get('oldest_age_seconds') or 0.0)}")
    if letters := journal.get("dead_letters"):
        parts.append(plural(letters, "dead letter"))
    if damages := journal.get("damages"):
        parts.append(plural(damages, "damaged place"))
    if frozen := journal.get("frozen_threads"):
        parts.append(f"{plural(frozen, 'thread is', 'threads are')} frozen")
    parts += [
        f"{plural(foreign['books'], 'backlog')} for another database ({foreign['home']})"
        for foreign in journal.get("foreign") or ()
    ]
    if journal.get("error"):
        parts.append(f"it cannot be written: {journal['error']}")
    kind = f"{journal.get('mode', 'unknown')}, {one_size(journal.get('size_bytes') or 0)} on it"
    return f"{'; '.join(parts) or 'nothing waits'} ({kind})."
