"""`checkpointing audit show` and `verify`: what the audit trail tells, and whether it is whole."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.text import Text

from enhanced_checkpointing.audit import AuditTrail, hidden
from enhanced_checkpointing.cli.configuration import Options, reading, required
from enhanced_checkpointing.cli.output import ExitCode, one_line, paragraph, plural, print_json, stdout
from enhanced_checkpointing.errors import redact

SHOWN = 3
"""Threads that a line names; with --json, all that the entry has."""


def show(options: Options, thread_id: str | None, *, limit: int, before: int | None, as_json: bool) -> ExitCode:
    """Print entries, newest first."""
    names = {thread_id, hidden(thread_id)} if thread_id is not None else set()
    found = [
        entry
        for entry in _trail(options).entries()
        if (not names or names & {str(name) for name in entry.get("thread_ids", ())})
        and (before is None or int(entry.get("number", 0)) < before)
    ]
    page = found[::-1][:limit]
    more = page[-1].get("number") if len(found) > limit and page else None
    if as_json:
        print_json({"entries": page, "before": more})
        return ExitCode.FINE
    console = stdout()
    for entry in page:
        at = datetime.fromtimestamp(float(entry.get("at", 0)), UTC).isoformat(sep=" ", timespec="seconds")
        actor = entry.get("actor") or {}
        who = f"{actor.get('user')} on {actor.get('host')} (process {actor.get('process')})"
        named = ", ".join(one_line(str(name)) for name in entry.get("thread_ids", ())[:SHOWN])
        what = f"{plural(int(entry.get('threads', 0)), 'thread')} {named}".rstrip()
        paragraph(console, Text(f"{entry.get('number')}  {at}  "), one_line(f"{entry.get('action')}: {what}, by {who}"))
    if not page:
        console.print("The audit trail has no such entry.")
    if more is not None:
        console.print(Text(f"The next page: --before {more}", style="dim"))
    return ExitCode.FINE


def verify(options: Options, known: str | None, *, as_json: bool) -> ExitCode:
    """Tell whether every entry follows from the one before it."""
    found = _trail(options).verify(known)
    if as_json:
        print_json(
            {
                "status": "fine" if found.fault is None else "failed",
                "entries": found.entries,
                "newest": found.newest,
                "line": found.line,
                "fault": found.fault,
            }
        )
    elif found.fault is not None:
        what = f"Line {found.line}: {found.fault}. What is in front of it is whole."
        paragraph(stdout(), Text(), what, style="bold red")
    elif not found.entries:
        what = "The audit trail has no entry: nothing was noted yet, or both its files were taken away"
        paragraph(stdout(), Text(), f"{what}, which only `audit verify --known HASH` can tell.")
    else:
        what = f"The audit trail is whole: {plural(found.entries, 'entry', 'entries')}, the newest with the hash"
        paragraph(
            stdout(), Text(), f"{what} {found.newest}. Keep it elsewhere: `audit verify --known HASH` looks for it."
        )
    return ExitCode.FINE if found.fault is None else ExitCode.WRONG


def note(
    directory: Path, database: str, action: str, *, threads: Sequence[str] = (), count: int | None = None, **facts: Any
) -> None:
    """Note what a command did, where its application has a journal's directory; what keeps it from that is told."""
    if not directory.is_dir():
        return
    try:
        AuditTrail(directory, database).note(action, threads=threads, count=count, **facts)
    except Exception as error:  # noqa: BLE001  # whatever it is: what was done is done
        print(f"It was done, and is not in the audit trail: {redact(error)}", file=sys.stderr)


def _trail(options: Options) -> AuditTrail:
    with reading(options) as read:
        return AuditTrail(required(read).journal_dir.absolute())
