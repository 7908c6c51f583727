"""Two branches of one thread: seen by comparing the primary's heads with those that the journal grew from, which is
pure; and where what was journaled goes then: upon its own branch, beside another one, or to a sibling. What a drain
asks of the primary for it, each call with a deadline of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

from langgraph.checkpoint.base import CheckpointTuple

from enhanced_checkpointing.backends.base import Heads
from enhanced_checkpointing.errors import quoted, redact
from enhanced_checkpointing.journal.api import UNKNOWN, Journal, JournalEntry
from enhanced_checkpointing.observability.events import Diverged, Notice
from enhanced_checkpointing.operations import DeleteThread, Operation, Put, checkpoint_id_of, operations_of
from enhanced_checkpointing.ownership import ownership_of
from enhanced_checkpointing.resilience.failures import CallFailed, FailureKind
from enhanced_checkpointing.saver.core import Core
from enhanced_checkpointing.serialization import without_objects

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


UNREADABLE = "unreadable"


class DrainCalls:
    """Every method raises `CallFailed` for what the primary did not do."""

    def __init__(self, core: Core) -> None:
        self._backend = core.backend
        self._guard = core.guard
        self._deadline = core.deadline

    async def fence(self, thread_id: str) -> bool:
        """End the sessions that writes to a thread were left behind on; False if one still lives."""
        return await self._guard.once("fence", lambda: self._backend.fence(thread_id), deadline=self._deadline())

    async def apply(self, operation: Operation) -> None:
        await self._guard.call(
            "drain",
            lambda: self._backend.apply(operation),
            deadline=self._deadline(),
            subjects=(operation.thread_id,),
            writes=True,
        )

    async def annotate(self, thread_id: str, checkpoint_id: str, changes: Mapping[str, Any]) -> None:
        """Change the metadata of the newest checkpoint of a thread, if it is that one: what others have deleted stays
        deleted, and a thread with which they have gone on is not marked."""
        if await self.head(thread_id, "") != checkpoint_id:
            return
        await self._guard.call(
            "drain",
            lambda: self._backend.annotate(thread_id, changes),
            deadline=self._deadline(),
            subjects=(thread_id,),
            writes=True,
        )

    async def apply_upon(self, heads: Heads, operations: Sequence[Operation]) -> bool:
        """Apply operations of one thread as one step; False if the newest checkpoint is not one of `heads`."""
        try:
            return await self._guard.call(
                "drain",
                lambda: self._backend.apply_all(operations, heads),
                deadline=self._deadline(),
                subjects=(operations[0].thread_id,),
                writes=True,
            )
        except CallFailed as failed:
            if failed.kind is not FailureKind.CONFIGURATION or isinstance(operations[0], DeleteThread):
                raise  # a probe does not delete
            # What a fault of the tables does to these operations, it does to a probe's write.
            await self._guard.once("probe", self._backend.probe, deadline=self._deadline())
            at_fault = replace(failed.failure, kind=FailureKind.DATA)
        raise CallFailed(at_fault) from at_fault.error

    async def find(self, thread_id: str, checkpoint_ns: str, checkpoint_id: str | None) -> CheckpointTuple | None:
        """A checkpoint, without objects of the application: it is looked at, or put as it is into another thread."""
        configurable = {"thread_id": thread_id, "checkpoint_ns": checkpoint_ns}
        if checkpoint_id is not None:
            configurable["checkpoint_id"] = checkpoint_id

        async def find() -> CheckpointTuple | None:
            with without_objects():
                return await self._backend.ask(lambda saver: saver.aget_tuple({"configurable": configurable}))

        return await self._guard.call(
            "drain",
            find,
            deadline=self._deadline(),
            subjects=(thread_id,),
        )

    async def head(self, thread_id: str, checkpoint_ns: str) -> str | None:
        """The newest checkpoint of a namespace."""
        found = await self.find(thread_id, checkpoint_ns, None)
        return checkpoint_id_of(found.config) if found is not None else None

    async def head_if_readable(self, thread_id: str) -> str | None:
        """The newest checkpoint of a thread; of one that nobody can read, a word that is no checkpoint's id."""
        try:
            return await self.head(thread_id, "")
        except CallFailed as failed:
            if not failed.at_fault:
                raise
            return UNREADABLE


@dataclass(frozen=True, slots=True)
class Target:
    """The thread that takes records, and the heads that those may be put upon; none: nobody else has to be minded."""

    thread_id: str
    heads: Heads = field(default_factory=dict)

    def after(self, applied: Sequence[JournalEntry], coming: Sequence[JournalEntry]) -> Target:
        """The same once the records `applied` are there; `coming` are some of those behind them."""
        return replace(self, heads=heads_after(self.heads, applied, coming))


class Branches:
    """Compares the heads in the primary with those that the journal grew from, and tells of what diverged.

    Where the configuration says so, a branch that diverged goes to a sibling thread, and `on_quarantined` hears of it.
    The branch of another owner always does.
    """

    def __init__(self, core: Core, calls: DrainCalls, journal: Journal, on_quarantined: Callable[[str], None]) -> None:
        self._backend = core.backend
        self._calls = calls
        self._journal = journal
        self._serializer = core.serializer
        self._telemetry = core.telemetry
        self._apart = core.config.on_divergence == "quarantine"
        self._on_quarantined = on_quarantined
        self.diverged = 0
        """Divergences found so far."""

    async def target(self, thread_id: str, *, moved: bool) -> Target:
        """Where the records of a thread go; `moved`: somebody has moved a head since that was asked before.

        Where the primary's branch cannot be read, both stay in the thread.

        Raises:
            CallFailed: the primary does not answer now.
        """
        redirected_to = self._journal.redirected(thread_id)
        if redirected_to is not None:
            return Target(redirected_to)
        try:
            return await self._compare(thread_id, moved=moved)
        except CallFailed as failed:
            if not failed.at_fault:
                raise
            what = f"the branches of thread {quoted(thread_id)} could not be compared ({redact(failed.error)})"
            self._telemetry.emit(Notice("WARNING", f"{what}; what was journaled is written to the same thread"))
            return Target(thread_id)

    async def _compare(self, thread_id: str, *, moved: bool) -> Target:
        entries = self._journal.entries(thread_id)
        oldest = namespaces_to_check(entries)
        if self._backend.compares_heads and len(oldest) == 1 and not moved:
            return Target(thread_id, heads_to_grow_from(entries, oldest))  # looked at in the step that writes
        heads = {namespace: await self._calls.head(thread_id, namespace) for namespace in oldest}
        branches = diverged(entries, oldest, heads)
        if not branches:
            return Target(thread_id, heads_to_grow_from(entries, oldest))
        apart = self._apart or await self._has_two_owners(thread_id, entries)
        target = sibling_id(thread_id, entries) if apart else thread_id
        for branch in branches:
            if apart and branch.expected_head is not None:
                await self._copy_ancestors(thread_id, branch.checkpoint_ns, branch.expected_head, target)
        await self._journal.redirect(thread_id, target)
        self.diverged += 1  # only now: a copy that was interrupted is made again, and is still one divergence
        for branch in branches:
            self._telemetry.emit(
                Diverged(
                    self._backend.name, thread_id, branch.checkpoint_ns, branch.expected_head, branch.found_head, target
                )
            )
        if apart:
            self._on_quarantined(thread_id)
        return Target(target)

    async def _has_two_owners(self, thread_id: str, entries: Sequence[JournalEntry]) -> bool:
        """Whether the thread belongs to one user in the primary and to another in the journal: two have begun a thread
        of the same name, which must not become one. The record that says so is among the first of its owner."""
        found = await self._calls.find(thread_id, "", None)
        theirs = ownership_of(found.metadata) if found is not None else None
        put = next(entry for entry in entries if entry.name == Put.name)
        record = (await self._journal.read([put]))[0]
        ours = ownership_of(record.operation.metadata) if isinstance(record.operation, Put) else None
        return (ours.owner if ours else None) != (theirs.owner if theirs else None)

    async def still_fits(self, target: Target) -> bool:
        """Whether what a target's heads were when they were looked at, or put there, is still so; a backend that
        compares them in the step that writes is not asked here.

        Raises:
            CallFailed: the primary does not answer now.
        """
        if self._backend.compares_heads:
            return True
        for namespace, known in target.heads.items():
            if await self._calls.head(target.thread_id, namespace) not in known:
                return False
        return True

    def deletion_spared(self, thread_id: str, expected_head: str | None, found_head: str | None) -> None:
        """Tell of a deletion that was not made, because somebody else has written to the thread since."""
        self.diverged += 1
        self._telemetry.emit(
            Diverged(self._backend.name, thread_id, "", expected_head, found_head, thread_id, deletion=True)
        )

    async def _copy_ancestors(self, thread_id: str, checkpoint_ns: str, checkpoint_id: str, target: str) -> None:
        """Give the sibling the whole chain that the branch grew from, so that delta channels find their beginning."""
        chain: list[CheckpointTuple] = []
        current: str | None = checkpoint_id
        while current is not None and (found := await self._calls.find(thread_id, checkpoint_ns, current)) is not None:
            chain.append(found)
            current = found.parent_config["configurable"]["checkpoint_id"] if found.parent_config else None
        for found in reversed(chain):
            with without_objects():
                operations = operations_of(found, self._serializer)
            for operation in operations:
                await self._calls.apply(moved_to(operation, target))
