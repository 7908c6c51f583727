"""`checkpointing threads history`: the tree of a thread's checkpoints with its forks, newest first."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

from langgraph.checkpoint.base import CheckpointTuple
from rich.console import Console
from rich.text import Text

from enhanced_checkpointing.cli.output import (
    ExitCode,
    RefusedError,
    age,
    one_line,
    paragraph,
    plural,
    print_json,
    stdout,
)
from enhanced_checkpointing.cli.threads.checkpoint import is_inner, nodes_between, view_of
from enhanced_checkpointing.cli.threads.database import Holding, Store, Target, config_for, journal_notes, run_with
from enhanced_checkpointing.cli.values import brief
from enhanced_checkpointing.errors import listed, quoted
from enhanced_checkpointing.operations import checkpoint_id_of, namespace_of

SHORTEST = 13
"""Characters of an id that is a UUIDv6: so many tell times apart that differ by half a millisecond."""


@dataclass(frozen=True, slots=True)
class Node:
    """A checkpoint and its parent."""

    checkpoint_id: str
    parent_id: str | None


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the drawing; without a node it only joins branches, or leads on to more text of the node above."""

    lines: str
    node: int | None = None
    """The position of its node in what was given."""
    below: str = ""
    """How the lines go on under a node, for a second line of its text."""


def drawn(nodes: Sequence[Node]) -> Iterator[Row]:
    """Draw nodes that are given newest first: every parent comes after its children, or not at all."""
    lanes: list[str | None] = []
    for number, node in enumerate(nodes):
        mine = [place for place, waits in enumerate(lanes) if waits == node.checkpoint_id]
        for extra in reversed(mine[1:]):
            yield Row(_joining(lanes, mine[0], extra))
            lanes[extra] = None
            _trim(lanes)
        place = mine[0] if mine else _free(lanes)
        lanes[place] = node.checkpoint_id
        lines = _plain(lanes, place)
        lanes[place] = node.parent_id
        _trim(lanes)
        yield Row(lines, number, _plain(lanes))


def short_length(checkpoint_ids: Sequence[str]) -> int:
    """How many characters of these ids tell them apart."""
    ordered = sorted(set(checkpoint_ids))
    alike = (_common(one, other) for one, other in pairwise(ordered))
    return max(SHORTEST, max(alike, default=0) + 1)


def _common(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (ours, theirs) in pairs if ours != theirs), min(len(one), len(other)))


def _free(lanes: list[str | None]) -> int:
    if None in lanes:
        return lanes.index(None)
    lanes.append(None)
    return len(lanes) - 1


def _trim(lanes: list[str | None]) -> None:
    while lanes and lanes[-1] is None:
        lanes.pop()


def _plain(lanes: Sequence[str | None], star: int | None = None) -> str:
    marks = ("*" if place == star else "|" if waits is not None else " " for place, waits in enumerate(lanes))
    return " ".join(marks).rstrip()


def _joining(lanes: Sequence[str | None], into: int, extra: int) -> str:
    """The line on which the branch in column `extra` joins that in column `into`."""
    marks = list(_plain([None if place == extra else waits for place, waits in enumerate(lanes)]).ljust(2 * extra))
    for gap in range(2 * into + 1, 2 * extra - 1):
        if marks[gap] == " ":
            marks[gap] = "_"
    marks[2 * extra - 1] = "/"
    return "".join(marks).rstrip()


AT_ONCE = 20
"""Checkpoints that are read at once; of each only what is told is kept."""
MOST_WORDS = 60
"""Characters of a question or an error."""


@dataclass(frozen=True, slots=True)
class Marks:
    """The versions of a checkpoint's channels, and which of them each node had seen."""

    versions: Mapping[str, Any]
    seen: Mapping[str, Mapping[str, Any]]


NO_MARKS = Marks({}, {})


@dataclass(frozen=True, slots=True)
class Entry:
    """What is told of a checkpoint in its history: no values."""

    checkpoint_id: str
    parent_id: str | None
    namespace: str
    step: int | None
    source: str
    made_at: datetime | None
    marks: Marks
    updated: tuple[str, ...] | None
    """The channels that were written; None where it does not say."""
    next_nodes: tuple[str, ...]
    asks: tuple[str, ...]
    errors: tuple[str, ...]

    def as_json(
        self, ran: Sequence[str] | None, changed: Sequence[str] | None, *, is_leaf: bool | None
    ) -> dict[str, Any]:
        """The entry in plain JSON types."""
        return {
            "checkpoint_id": self.checkpoint_id,
            "parent_checkpoint_id": self.parent_id,
            "checkpoint_ns": self.namespace,
            "step": self.step,
            "source": self.source,
            "made_at": self.made_at.isoformat() if self.made_at else None,
            "ran": None if ran is None else list(ran),
            "changed": None if changed is None else list(changed),
            "next": list(self.next_nodes),
            "interrupts": list(self.asks),
            "errors": list(self.errors),
            "is_leaf": is_leaf,
        }


@dataclass(frozen=True, slots=True)
class History:
    """A page of a thread's history, newest first, and how to get the next one. `marks` are those of the parents."""

    thread_id: str
    entries: tuple[Entry, ...]
    marks: Mapping[tuple[str, str], Marks]
    following: str | None
    is_first: bool = True

    def ran(self, entry: Entry) -> tuple[str, ...] | None:
        """The nodes that made a checkpoint; None where it is not known."""
        before = self._before(entry)
        if before is None or entry.source != "loop":
            return None
        return nodes_between(before.seen, entry.marks.seen)

    def changed(self, entry: Entry) -> tuple[str, ...] | None:
        """The application's channels that were written; None where it is not known."""
        before, versions = self._before(entry), entry.marks.versions
        if entry.updated is None and before is None:
            return None
        names = entry.updated
        if names is None and before is not None:
            names = tuple(name for name, version in versions.items() if before.versions.get(name) != version)
        return tuple(sorted(name for name in names or () if not is_inner(name)))

    def _before(self, entry: Entry) -> Marks | None:
        return NO_MARKS if entry.parent_id is None else self.marks.get((entry.namespace, entry.parent_id))

    def leaves(self) -> set[tuple[str, str]]:
        """The checkpoints from which nothing has gone on; none on a later page, where it is not known."""
        if not self.is_first:
            return set()
        parents = {(entry.namespace, entry.parent_id) for entry in self.entries}
        every = {(entry.namespace, entry.checkpoint_id) for entry in self.entries}
        return {key for key in every if key not in parents}


def run(target: Target, thread_id: str, *, limit: int, before: str | None, every: bool, as_json: bool) -> ExitCode:
    """Draw a page of the history of a thread."""
    configured = config_for(target)

    async def work(store: Store) -> tuple[History, list[Holding], list[str]]:
        notes = journal_notes(configured.journal_dir, store.home, await store.seen([thread_id]))
        history = await _history(store, thread_id, limit, before, None if every else "")
        if not history.entries and before is None:
            text = f"There is no thread {quoted(thread_id)} in {store.home}."
            if not every and await store.heads([thread_id]):
                text = f"Thread {quoted(thread_id)} has checkpoints in subgraphs only: --all shows them."
            raise RefusedError(" ".join([text, *(f"{one.text} {one.way_out}" for one in notes[0])]))
        return history, *notes

    history, held, warnings = run_with(configured, work)
    if as_json:
        leaves = history.leaves()
        listed_entries = [
            entry.as_json(
                history.ran(entry),
                history.changed(entry),
                is_leaf=(entry.namespace, entry.checkpoint_id) in leaves if history.is_first else None,
            )
            for entry in history.entries
        ]
        print_json(
            {
                "thread_id": thread_id,
                "checkpoints": listed_entries,
                "next": history.following,
                "journal": [one.as_json() for one in held],
                "warnings": warnings,
            },
            whole=True,
        )
    else:
        console = stdout()
        for warning in warnings:
            paragraph(console, Text("WARN ", style="bold yellow"), warning, style="yellow")
        show_history(history, console, time.time())
    return ExitCode.FINE


async def _history(store: Store, thread_id: str, limit: int, before: str | None, namespace: str | None) -> History:
    entries: list[Entry] = []
    place = before
    while len(entries) <= limit:
        wanted = min(AT_ONCE, limit + 1 - len(entries))
        page = await store.page(thread_id, namespace, place, wanted)
        entries += map(_entry, page)
        if len(page) < wanted:
            break
        place = entries[-1].checkpoint_id
    following = entries[limit - 1].checkpoint_id if len(entries) > limit else None
    entries = entries[:limit]
    marks = {(entry.namespace, entry.checkpoint_id): entry.marks for entry in entries}
    for entry in entries:
        if entry.parent_id is not None and (entry.namespace, entry.parent_id) not in marks:
            parent = await store.get(thread_id, entry.namespace, entry.parent_id)
            if parent is not None:
                marks[entry.namespace, entry.parent_id] = _marks(parent)
    return History(thread_id, tuple(entries), marks, following, before is None)


def _entry(found: CheckpointTuple) -> Entry:
    view = view_of(found)
    updated = found.checkpoint.get("updated_channels")
    return Entry(
        checkpoint_id=view.checkpoint_id,
        parent_id=checkpoint_id_of(found.parent_config) if found.parent_config else None,
        namespace=namespace_of(found.config),
        step=view.step,
        source=view.source,
        made_at=view.made_at,
        marks=_marks(found),
        updated=None if updated is None else tuple(updated),
        next_nodes=view.next_nodes,
        asks=tuple(brief(one.value, MOST_WORDS) for one in view.interrupts),
        errors=tuple(brief(one.value, MOST_WORDS) for one in view.errors),
    )


def _marks(found: CheckpointTuple) -> Marks:
    return Marks(found.checkpoint["channel_versions"], found.checkpoint["versions_seen"])


def show_history(history: History, console: Console, now: float) -> None:
    """Draw it, each namespace by itself."""
    namespaces = dict.fromkeys(entry.namespace for entry in history.entries)
    for namespace in sorted(namespaces, key=lambda name: name != ""):
        if namespace:
            console.print(Text(f"\nsubgraph {one_line(namespace)}", style="bold"), soft_wrap=True)
        _show_namespace(history, namespace, console, now)
    _print_end(history, console)


def _show_namespace(history: History, namespace: str, console: Console, now: float) -> None:
    length = short_length([entry.checkpoint_id for entry in history.entries])
    leaves = history.leaves()
    entries = [entry for entry in history.entries if entry.namespace == namespace]
    for row in drawn([Node(entry.checkpoint_id, entry.parent_id) for entry in entries]):
        if row.node is None:
            console.print(Text(row.lines), soft_wrap=True)
            continue
        entry = entries[row.node]
        step = "-" if entry.step is None else str(entry.step)
        when = f"{age(now - entry.made_at.timestamp())} ago" if entry.made_at else "-"
        short = (entry.checkpoint_id[:length], "bold yellow")
        what = _what(entry, history.ran(entry), history.changed(entry))
        console.print(Text.assemble(row.lines, "  ", short, f"  step {step:<4} {when:<14} ", what), soft_wrap=True)
        lead = Text(f"{row.below.ljust(len(row.lines))}  ")
        _print_state(console, lead, entry, is_leaf=(namespace, entry.checkpoint_id) in leaves)


def _print_state(console: Console, lead: Text, entry: Entry, *, is_leaf: bool) -> None:
    for error in entry.errors:
        paragraph(console, lead + Text("ERROR  ", style="bold red"), error, style="red")
    for question in entry.asks:
        word, style = ("WAITS  ", "bold yellow") if is_leaf else ("asked  ", "dim")
        paragraph(console, lead + Text(word, style=style), question)
    if is_leaf and entry.next_nodes and not entry.asks:
        paragraph(console, lead + Text("next   ", style="dim"), listed(map(one_line, entry.next_nodes)))


def _what(entry: Entry, ran: Sequence[str] | None, changed: Sequence[str] | None) -> str:
    """Who made a checkpoint, and what that changed."""
    who = {"update": "update_state", "loop": "", "-": ""}.get(entry.source, entry.source)
    who = " + ".join(filter(None, [who, listed(map(one_line, ran or ()), 3)])) or "loop"
    return f"{who} -> {listed(map(one_line, changed), 4)}" if changed else who


def _print_end(history: History, console: Console) -> None:
    if history.following is not None:
        what = f"{plural(len(history.entries), 'checkpoint')}, and there are more. For the next page, add to the same"
        paragraph(console, Text(), f"{what} command:", style="dim")
        console.print(Text(f"    --before {history.following}", style="dim"), soft_wrap=True)
    elif not history.entries:
        console.print("There are no older checkpoints.")
    else:
        known = {(entry.namespace, entry.checkpoint_id) for entry in history.entries}
        orphans = [
            entry for entry in history.entries if entry.parent_id and (entry.namespace, entry.parent_id) not in known
        ]
        gone = " What came before is not stored any more." if orphans else ""
        paragraph(console, Text(), f"{plural(len(history.entries), 'checkpoint')}.{gone}", style="dim")
