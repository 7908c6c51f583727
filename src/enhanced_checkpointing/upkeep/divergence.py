"""Two branches of one thread: seen by comparing the primary's heads with those that the journal grew from. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from enhanced_checkpointing.journal.api import UNKNOWN, JournalEntry
from enhanced_checkpointing.operations import DeleteThread, Operation, Put

APART = "~outage~"
"""Stands in the id of a sibling between that of its thread and that of its first own checkpoint."""


@dataclass(frozen=True, slots=True)
class Branch:
    """One namespace of which somebody else moved the head while this process journaled it."""

    checkpoint_ns: str
    expected_head: str | None
    found_head: str | None


def is_mark(entry: JournalEntry) -> bool:
    """Whether a record puts the newest checkpoint once more, for what it says about the thread in its metadata."""
    return entry.name == Put.name and entry.checkpoint_id == entry.base_head


def namespaces_to_check(entries: Sequence[JournalEntry]) -> dict[str, JournalEntry]:
    """For every namespace that gets a new checkpoint, its oldest record, if it knows which head it grew from."""
    grown = {entry.checkpoint_ns for entry in entries if entry.name == Put.name and not is_mark(entry)}
    oldest: dict[str, JournalEntry] = {}
    for entry in entries:
        namespace = entry.checkpoint_ns
        if namespace is None:
            break  # the thread is deleted from here on: what is below it does not matter
        if namespace in grown and namespace not in oldest:
            oldest[namespace] = entry
    return {namespace: entry for namespace, entry in oldest.items() if entry.base_head is not UNKNOWN}


def diverged(
    entries: Sequence[JournalEntry], oldest: Mapping[str, JournalEntry], heads: Mapping[str, str | None]
) -> list[Branch]:
    """The namespaces whose head in the primary is neither the one that was grown from nor one of our own.

    A checkpoint of ours can be there already: its first try was committed although its reply was lost. So can nothing
    at all: a drain that was interrupted may have come as far as a deletion of ours.
    """
    grown_from = heads_to_grow_from(entries, oldest)
    return [
        Branch(namespace, None if entry.base_head is UNKNOWN else entry.base_head, heads[namespace])
        for namespace, entry in oldest.items()
        if heads[namespace] not in grown_from[namespace]
    ]


def heads_to_grow_from(
    entries: Sequence[JournalEntry], oldest: Mapping[str, JournalEntry]
) -> dict[str, frozenset[str | None]]:
    """For each namespace, the heads in the primary that our branch may be put upon: see `diverged`."""
    own = {entry.checkpoint_id for entry in entries if entry.name in (Put.name, DeleteThread.name)}
    return {
        namespace: frozenset({*own, None if entry.base_head is UNKNOWN else entry.base_head})
        for namespace, entry in oldest.items()
    }


def heads_after(
    heads: Mapping[str, Collection[str | None]], applied: Sequence[JournalEntry], coming: Sequence[JournalEntry]
) -> dict[str, Collection[str | None]]:
    """The heads that what is `coming` may be put upon, once other records were put upon `heads`: the newest of those,
    or what was there where none of them is a new checkpoint; and one that is coming, if its first try was committed.

    A namespace that comes up only now is looked at from now on.
    """
    coming = list(takewhile(lambda entry: entry.name != DeleteThread.name, coming))
    oldest = namespaces_to_check(coming)
    known: dict[str, Collection[str | None]] = {
        **heads_to_grow_from([], {namespace: entry for namespace, entry in oldest.items() if namespace not in heads}),
        **heads,
    }
    after: dict[str, Collection[str | None]] = {}
    for namespace, before in known.items():
        ours = _puts_in(namespace, applied)
        after[namespace] = frozenset({*(ours or before), *_puts_in(namespace, coming)})
    return after


def _puts_in(namespace: str, entries: Sequence[JournalEntry]) -> list[str | None]:
    return [entry.checkpoint_id for entry in entries if entry.name == Put.name and entry.checkpoint_ns == namespace]


def sibling_id(thread_id: str, entries: Sequence[JournalEntry]) -> str:
    """The thread that takes the outage's branch in quarantine; the same for every try at the same branch."""
    first = next(entry for entry in entries if entry.name == Put.name)
    return f"{thread_id}{APART}{first.checkpoint_id}"


def moved_to(operation: Operation, thread_id: str) -> Operation:
    """The same operation on another thread."""
    return replace(operation, thread_id=thread_id)
