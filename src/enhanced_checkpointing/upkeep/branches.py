"""Where what was journaled of a thread goes: upon its own branch, beside another one, or to a sibling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from langgraph.checkpoint.base import CheckpointTuple

from enhanced_checkpointing.backends.contract import Backend, Heads
from enhanced_checkpointing.errors import quoted, redact
from enhanced_checkpointing.journal.api import Journal, JournalEntry
from enhanced_checkpointing.observability.events import Diverged, Notice, Telemetry
from enhanced_checkpointing.operations import Put, operations_of
from enhanced_checkpointing.ownership import ownership_of
from enhanced_checkpointing.resilience.failures import CallFailed
from enhanced_checkpointing.serialization import SharingSerializer, without_objects
from enhanced_checkpointing.upkeep.divergence import (
    diverged,
    heads_after,
    heads_to_grow_from,
    moved_to,
    namespaces_to_check,
    sibling_id,
)
from enhanced_checkpointing.upkeep.drain_calls import DrainCalls


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

    With `apart`, a branch that diverged goes to a sibling thread, and `on_quarantined` hears of it. The
    branch of another owner always does.
    """

    def __init__(
        self,
        *,
        backend: Backend,
        calls: DrainCalls,
        journal: Journal,
        serializer: SharingSerializer,
        telemetry: Telemetry,
        apart: bool,
        on_quarantined: Callable[[str], None],
    ) -> None:
        self._backend = backend
        self._calls = calls
        self._journal = journal
        self._serializer = serializer
        self._telemetry = telemetry
        self._apart = apart
        self._on_quarantined = on_quarantined
        self.diverged = 0
        """Divergences found so far."""

    async def target(self, thread_id: str, *, moved: bool) -> Target:
        """Where the records of a thread go; `moved`: somebody has moved a head since that was asked before.

        Where the primary's branch cannot be read, both stay in the thread.

        Raises:
            CallFailed: the primary does not answer now.
        """
        diverted_to = self._journal.diverted(thread_id)
        if diverted_to is not None:
            return Target(diverted_to)
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
        await self._journal.divert(thread_id, target)
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
