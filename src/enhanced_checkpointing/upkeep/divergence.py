"""Two branches of one thread: seen by comparing the primary's heads with those that the journal grew from. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from enhanced_checkpointing.journal.contract import UNKNOWN, JournalRecord
from enhanced_checkpointing.operations import Operation, Put


@dataclass(frozen=True, slots=True)
class Branch:
    """One namespace of which somebody else moved the head while this process journaled it."""

    checkpoint_ns: str
    expected_head: str | None
    found_head: str | None


def namespaces_to_check(records: Sequence[JournalRecord]) -> dict[str, JournalRecord]:
    """For every namespace that gets a new checkpoint, its oldest record, if it knows which head it grew from."""
    grown = {record.operation.checkpoint_ns for record in records if isinstance(record.operation, Put)}
    oldest: dict[str, JournalRecord] = {}
    for record in records:
        namespace = getattr(record.operation, "checkpoint_ns", None)
        if namespace is None:
            return oldest  # the thread is deleted from here on: what is below it does not matter
        if namespace in grown and namespace not in oldest:
            oldest[namespace] = record
    return {namespace: record for namespace, record in oldest.items() if record.base_head is not UNKNOWN}


def diverged(
    records: Sequence[JournalRecord], oldest: Mapping[str, JournalRecord], heads: Mapping[str, str | None]
) -> list[Branch]:
    """The namespaces whose head in the primary is neither the one that was grown from nor one of our own.

    A checkpoint of ours can be there already: its first try was committed although its reply was lost.
    """
    own = {record.operation.checkpoint_id for record in records if isinstance(record.operation, Put)}
    return [
        Branch(namespace, None if record.base_head is UNKNOWN else record.base_head, heads[namespace])
        for namespace, record in oldest.items()
        if heads[namespace] != record.base_head and heads[namespace] not in own
    ]


def sibling_id(thread_id: str, records: Sequence[JournalRecord]) -> str:
    """The thread that takes the outage's branch in quarantine; the same for every try at the same branch."""
    first = next(record.operation for record in records if isinstance(record.operation, Put))
    return f"{thread_id}~outage~{first.checkpoint_id}"


def moved_to(operation: Operation, thread_id: str) -> Operation:
    """The same operation on another thread."""
    return replace(operation, thread_id=thread_id)
