"""`checkpointing threads delete`, `copy` and `prune`: straight in the database, beside a running application.

Nothing of a thread is changed while the journal holds anything of it: what is drained later would come on top."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from rich.console import Console
from rich.table import Table
from rich.text import Text

from enhanced_checkpointing.backends.listing import ThreadHead
from enhanced_checkpointing.backends.pruning import Held, Link, link_of, plan_pruning
from enhanced_checkpointing.cli.audit import note
from enhanced_checkpointing.cli.output import (
    ExitCode,
    RefusedError,
    UsageError,
    ask,
    one_line,
    one_size,
    paragraph,
    plural,
    print_json,
    stdout,
)
from enhanced_checkpointing.cli.threads.database import Configured, Store, Target, config_for, holdings, run_with
from enhanced_checkpointing.cli.threads.list import print_whole
from enhanced_checkpointing.errors import quoted
from enhanced_checkpointing.operations import checkpoint_id_of, namespace_of

AT_ONCE = 50
"""Checkpoints that are read at once."""

OLD_FORMAT = 4
"""Checkpoints of an older format (`v`) may be read together with what was written on their parents."""


async def count_pruned(store: Store, thread_id: str, keep: int) -> int:
    """How many checkpoints would go, as the database is now."""
    thread: dict[str, list[Link]] = {}
    held: dict[tuple[str, str], tuple[frozenset[str], frozenset[str]]] = {}
    for namespace in await _namespaces(store, thread_id):
        place: str | None = None
        while True:
            page = await store.page(thread_id, namespace, place, AT_ONCE)
            for found in page:
                checkpoint = found.checkpoint
                parent_id = checkpoint_id_of(found.parent_config) if found.parent_config else None
                old = checkpoint["v"] < OLD_FORMAT
                link = link_of(checkpoint["id"], parent_id, found.metadata, needs_parent=old)
                thread.setdefault(namespace, []).append(link)
                names = frozenset(checkpoint["channel_versions"]), frozenset(checkpoint["channel_values"])
                held[namespace, checkpoint["id"]] = names
            if len(page) < AT_ONCE:
                break
            place = page[-1].checkpoint["id"]

    def held_by(namespace: str, checkpoint_id: str, channels: frozenset[str]) -> Held:
        known, valued = held[namespace, checkpoint_id]
        return Held(channels & known, channels & valued)

    return len(plan_pruning(thread, held_by, keep).dropped)


async def _namespaces(store: Store, thread_id: str) -> list[str]:
    """Every namespace of a thread: pages of it may end between checkpoints with the same id in several."""
    found: set[str] = set()
    place: str | None = None
    while True:
        page = await store.page(thread_id, None, place, AT_ONCE)
        found |= {namespace_of(one.config) for one in page}
        if len(page) < AT_ONCE:
            return sorted(found)
        place = page[-1].checkpoint["id"]


CHANGE_SECONDS = 3600.0
"""A long thread takes its time, and only this command waits for it."""


def delete(target: Target, thread_ids: Sequence[str], *, yes: bool, as_json: bool) -> ExitCode:
    """Delete threads, after a question; fine only if all of them were there."""
    configured = config_for(target)
    thread_ids = [*dict.fromkeys(thread_ids)]
    heads = run_with(configured, lambda store: _looked_up(configured, store, thread_ids, "deleted", as_owner=True))
    missing = [thread_id for thread_id in thread_ids if thread_id not in heads]
    if heads:
        _ask(f"Delete {_total(heads.values())}? This cannot be undone.", [*heads.values()], yes=yes, as_json=as_json)
        run_with(configured, lambda store: _delete(configured, store, [*heads]))
    if as_json:
        print_json(
            {
                "status": "failed" if missing else "fine",
                "deleted": [_as_object(head) for head in heads.values()],
                "missing": missing,
            }
        )
    else:
        console = stdout()
        if heads:
            console.print(Text(f"Deleted: {_total(heads.values())}.", style="bold green"))
        _print_missing(missing, console)
    return ExitCode.WRONG if missing else ExitCode.FINE


def copy(target: Target, source: str, destination: str | None, *, as_json: bool) -> ExitCode:
    """Copy a thread as one step."""
    configured = config_for(target)
    destination = destination or str(uuid.uuid4())
    if source == destination:
        raise UsageError("A thread cannot be copied into itself. Nothing was copied.")

    async def work(store: Store) -> ThreadHead:
        heads = await _looked_up(configured, store, [source, destination], "copied")
        hidden = source if source not in heads else destination if await store.hides(destination) else None
        if hidden is not None:
            raise RefusedError(f"There is no thread {quoted(hidden)} in {store.home}, so nothing was copied.")
        await store.ask_saver("copy a thread", lambda saver: saver.acopy_thread(source, destination), CHANGE_SECONDS)
        return (await store.heads([destination]))[destination]

    made = run_with(configured, work)
    if as_json:
        print_json({"status": "fine", "source": source, "target": _as_object(made)})
    else:
        what = f"{plural(made.checkpoints, 'checkpoint')}, {one_size(made.size)}"
        paragraph(stdout(), Text(), f"Copied {one_line(source)} to {one_line(destination)}: {what}.")
    return ExitCode.FINE


def prune(target: Target, thread_ids: Sequence[str], *, keep: int, dry_run: bool, yes: bool, as_json: bool) -> ExitCode:
    """Keep only the newest checkpoints of threads, after a question; fine only if all of them were there."""
    configured = config_for(target)
    thread_ids = [*dict.fromkeys(thread_ids)]
    heads = run_with(configured, lambda store: _looked_up(configured, store, thread_ids, "pruned", as_owner=True))
    missing = [thread_id for thread_id in thread_ids if thread_id not in heads]
    if heads and not dry_run:
        what = f"Keep only the newest {plural(keep, 'checkpoint')} of each namespace of {_total(heads.values())}?"
        _ask(f"{what} This cannot be undone.", [*heads.values()], yes=yes, as_json=as_json)
    dropped = run_with(configured, lambda store: _prune(configured, store, [*heads], keep, dry_run=dry_run))
    if as_json:
        print_json(
            {
                "status": "failed" if missing else "fine",
                "dry_run": dry_run,
                "keep": keep,
                "threads": [{**_as_object(head), "dropped": dropped[name]} for name, head in heads.items()],
                "dropped": sum(dropped.values()),
                "missing": missing,
            }
        )
    else:
        _print_pruned(heads, dropped, missing, stdout(), dry_run=dry_run)
    return ExitCode.WRONG if missing else ExitCode.FINE


async def _looked_up(
    configured: Configured, store: Store, thread_ids: Sequence[str], done: str, *, as_owner: bool = False
) -> dict[str, ThreadHead]:
    seen = await store.seen(thread_ids, as_owner=as_owner)
    _see_that_nothing_waits(configured, store, seen, done)
    return await store.heads(seen)


def _see_that_nothing_waits(configured: Configured, store: Store, thread_ids: Sequence[str], done: str) -> None:
    """Raise if the journal holds anything of these threads.

    Raises:
        RefusedError: it does.
        OSError: it cannot be found out.
    """
    held = holdings(configured.journal_dir, store.home, thread_ids)
    if held:
        reasons = "\n".join(f"{one.text} {one.way_out}" for one in held)
        raise RefusedError(f"{reasons}\nNothing was {done}.", journal=[one.as_json() for one in held])


async def _delete(configured: Configured, store: Store, thread_ids: Sequence[str]) -> None:
    for number, thread_id in enumerate(thread_ids):
        done = "deleted" if number == 0 else f"deleted but the first {number} of {len(thread_ids)} threads"
        _see_that_nothing_waits(configured, store, [thread_id], done)  # it may have come while the question was open

        async def drop(saver: BaseCheckpointSaver[Any], thread_id: str = thread_id) -> None:
            await saver.adelete_thread(thread_id)

        await store.ask_saver("delete a thread", drop, CHANGE_SECONDS)
        note(configured.journal_dir, store.home, "delete", threads=[thread_id])


async def _prune(
    configured: Configured, store: Store, thread_ids: Sequence[str], keep: int, *, dry_run: bool
) -> dict[str, int]:
    """How many checkpoints went of each thread, or would go."""
    dropped: dict[str, int] = {}
    for thread_id in thread_ids:
        if dry_run:
            dropped[thread_id] = await count_pruned(store, thread_id, keep)
            continue
        _see_that_nothing_waits(configured, store, [thread_id], f"pruned but {len(dropped)} threads before it")

        async def drop(saver: BaseCheckpointSaver[Any], thread_id: str = thread_id) -> int:
            prune_thread = getattr(saver, "aprune_thread", None)
            if prune_thread is None:
                raise UsageError(f"A {type(saver).__name__} cannot prune by count. Nothing was pruned.")
            return int(await prune_thread(thread_id, keep=keep))

        dropped[thread_id] = await store.ask_saver("prune a thread", drop, CHANGE_SECONDS)
        note(configured.journal_dir, store.home, "prune", threads=[thread_id], checkpoints=dropped[thread_id])
    return dropped


def _ask(question: str, heads: Sequence[ThreadHead], *, yes: bool, as_json: bool) -> None:
    if not yes:
        ask(question, as_json=as_json, show=lambda console: print_whole(console, _table(heads)))


def _table(heads: Sequence[ThreadHead]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("thread", no_wrap=True)
    table.add_column("newest", no_wrap=True)
    table.add_column("checkpoints", justify="right")
    table.add_column("size", justify="right")
    for head in heads:
        newest = f"{head.updated_at:%Y-%m-%d %H:%M}" if head.updated_at else "-"
        cells = (one_line(head.thread_id), newest, f"{head.checkpoints:,}", one_size(head.size))
        table.add_row(*map(Text, cells))
    return table


def _total(heads: Any) -> str:
    every = [*heads]
    checkpoints, size = sum(head.checkpoints for head in every), sum(head.size for head in every)
    return f"{plural(len(every), 'thread')} with {plural(checkpoints, 'checkpoint')}, {one_size(size)}"


def _as_object(head: ThreadHead) -> dict[str, Any]:
    return {
        "thread_id": head.thread_id,
        "checkpoint_id": head.checkpoint_id,
        "checkpoints": head.checkpoints,
        "size": head.size,
    }


def _print_pruned(
    heads: dict[str, ThreadHead], dropped: dict[str, int], missing: Sequence[str], console: Console, *, dry_run: bool
) -> None:
    verb = "would go" if dry_run else "went"
    for name, head in heads.items():
        paragraph(
            console, Text(), f"{one_line(name)}: {dropped[name]:,} of {plural(head.checkpoints, 'checkpoint')} {verb}."
        )
    if dry_run:
        console.print(Text("Nothing was changed.", style="dim"))
    _print_missing(missing, console)


def _print_missing(missing: Sequence[str], console: Console) -> None:
    for thread_id in missing:
        paragraph(console, Text("MISSING  ", style="bold red"), f"There is no thread {quoted(thread_id)}.")
