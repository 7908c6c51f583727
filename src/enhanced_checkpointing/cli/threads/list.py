"""`checkpointing threads list`: which threads there are, newest first, a page at a time."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from enhanced_checkpointing.backends.listing import (
    ACTIVE,
    COMPLETED,
    FAILED,
    THREAD_STATUS,
    Cursor,
    HeadQuery,
    ThreadHead,
)
from enhanced_checkpointing.cli.output import (
    MOST_JSON,
    ExitCode,
    UsageError,
    age,
    one_line,
    one_size,
    paragraph,
    plural,
    print_json,
    stdout,
)
from enhanced_checkpointing.cli.threads.database import Store, Target, config_for, run_with
from enhanced_checkpointing.errors import listed, quoted
from enhanced_checkpointing.threads.methods import Entry, listed_entry

WIDEST = 100_000
"""Columns of a table."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which threads are asked for. `before` is what the page before said, `checkpoint id:thread id`."""

    user_id: str | None = None
    limit: int = 50
    before: str | None = None
    metadata: tuple[str, ...] = ()
    status: str | None = None


def run(target: Target, wanted: Wanted, *, as_json: bool) -> ExitCode:
    """List a page of threads."""
    metadata, place = parsed_metadata(wanted.metadata), _place(wanted.before)
    if wanted.status is not None:
        if wanted.status not in (ACTIVE, COMPLETED, FAILED):
            raise UsageError(f"--status is {ACTIVE}, {COMPLETED} or {FAILED}, not {wanted.status}")
        metadata[THREAD_STATUS] = wanted.status
    found, following, unreadable = run_with(config_for(target), lambda store: _found(store, wanted, metadata, place))
    if as_json:
        left_out = {"unreadable": unreadable} if unreadable else {}
        print_json({"threads": found, "next": following, **left_out})
    else:
        _print(found, following, wanted, stdout())
        if unreadable:
            named = listed(f"{quoted(one)} ({why})" for one, why in unreadable.items())
            what = f"{plural(len(unreadable), 'thread')} left out, whose metadata cannot be read: {named}."
            paragraph(stdout(), Text(), what, style="yellow")
    return ExitCode.FINE


def parsed_metadata(pairs: Sequence[str]) -> dict[str, Any]:
    """What `key=value` says: the value is JSON where it can be read as that, such as a number, else a text.

    Raises:
        UsageError: a pair is none.
    """
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise UsageError(f"--metadata {pair} is not of the form key=value")
        try:
            found[key] = json.loads(value)
        except (ValueError, RecursionError):  # a text without its quotes
            found[key] = value
    return found


async def _found(
    store: Store, wanted: Wanted, metadata: dict[str, Any], place: Cursor | None
) -> tuple[list[Entry], str | None, dict[str, str]]:
    """A page of threads; where it ends, unless these are the last ones; and those that were left out, and why."""
    query = HeadQuery(wanted.limit + 1, wanted.user_id, metadata, place)
    heads = await store.ask("list threads", lambda backend: backend.heads(query))
    page: list[Entry] = []
    last: ThreadHead | None = None
    room = 3 * MOST_JSON // 4
    for head in heads[: wanted.limit]:
        entry = listed_entry(head)
        room -= len(json.dumps(entry, indent=2, default=str))
        if room < 0 and last is not None:
            break  # the next page begins here
        last = head
        if store.shows(head.metadata):
            page.append(entry)
    following = f"{last.checkpoint_id}:{last.thread_id}" if last is not None and last is not heads[-1] else None
    return page, following, dict(store.unreadable)


def _place(before: str | None) -> Cursor | None:
    if before is None:
        return None
    checkpoint_id, _, thread_id = before.partition(":")
    if not checkpoint_id or not thread_id:
        raise UsageError(f"--before is what the page before said, 'checkpoint id:thread id', not {before!r}")
    return Cursor(checkpoint_id, thread_id)


def _print(found: list[Entry], following: str | None, wanted: Wanted, console: Console) -> None:
    if not found:
        more = " further" if wanted.before else ""
        chosen = " that fits" if wanted.user_id or wanted.metadata or wanted.status else ""
        console.print(f"There is no{more} thread{chosen}.")
        return
    print_whole(console, table_of(found, time.time()))
    if following is None:
        console.print(Text(f"{plural(len(found), 'thread')}; there is none after these.", style="dim"))
    else:
        what = f"{plural(len(found), 'thread')}, and there are more. For the next page, add to the same command:"
        paragraph(console, Text(), what, style="dim")
        console.print(Text(f"    --before '{following}'", style="dim"), soft_wrap=True)


def table_of(found: Sequence[Entry], now: float) -> Table:
    """The table; columns that would say nothing are left out. Ids stay whole, so that they can be copied."""
    users = any(entry["user_id"] is not None for entry in found)
    statuses = any(entry["status"] != ACTIVE for entry in found)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("thread", no_wrap=True)
    if users:
        table.add_column("user", overflow="fold", max_width=16)
    for name in ("age", "step", "checkpoints", "size"):
        table.add_column(name, justify="right", no_wrap=True)
    if statuses:
        table.add_column("status", no_wrap=True)
    for entry in found:
        table.add_row(*_cells(entry, now, users=users, statuses=statuses))
    return table


def print_whole(console: Console, table: Table) -> None:
    """Print a table as wide as it is: what the terminal breaks can be copied, what is cut off cannot."""
    needed = Measurement.get(console, console.options.update(max_width=WIDEST), table).maximum
    console.width = max(console.width, needed)
    console.print(table)


def _cells(entry: Entry, now: float, *, users: bool, statuses: bool) -> list[Text]:
    cells = [one_line(entry["thread_id"])]
    if users:
        cells.append(one_line(entry["user_id"] or "-"))
    cells += [
        _age(entry["updated_at"], now),
        "-" if entry["step"] is None else str(entry["step"]),
        f"{entry['checkpoints']:,}",
        one_size(entry["size"]),
    ]
    return [Text(cell) for cell in (*cells, *([str(entry["status"])] if statuses else []))]


def _age(updated_at: str | None, now: float) -> str:
    """In its largest unit only, as there is little room."""
    if updated_at is None:
        return "-"
    said = age(now - datetime.fromisoformat(updated_at).timestamp()).split()
    return " ".join(said[:2])
