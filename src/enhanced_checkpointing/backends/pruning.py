"""Which checkpoints of a thread go, such that every one that stays can still be read. Pure: no I/O.

A checkpoint does not hold the value of a delta channel: that is rebuilt from the writes on the checkpoints before it,
back to the nearest one that holds the value. What lies in between stays, even if it was to go.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from enhanced_checkpointing.errors import CheckpointCorruptionError, CheckpointerError, quoted

_log = logging.getLogger(__name__)

T = TypeVar("T")

KEEP_LATEST, DELETE = "keep_latest", "delete"

COUNTERS = "counters_since_delta_snapshot"
"""Where LangGraph's metadata names the delta channels of which a checkpoint holds no value."""
VERSIONED_DELTA = "delta_writes_versioned"
"""Where LangGraph.js says that a thread has delta channels, of which it does not name any."""

ANY = "*"
"""Stands for the delta channels whose names are not known."""

Key = tuple[str, str]
"""Namespace and id of a checkpoint."""


@dataclass(frozen=True, slots=True)
class Link:
    """A checkpoint as the planning sees it."""

    checkpoint_id: str
    parent_id: str | None
    deltas: frozenset[str] = frozenset()
    """The delta channels that its metadata names."""
    root: str | None = None
    """The checkpoint of the root graph from which this one's subgraph was called."""
    needs_parent: bool = False
    """Whether it is read together with what was written on its parent, as those of old formats are."""


@dataclass(frozen=True, slots=True)
class Held:
    """Of some channels, those that a checkpoint knows, and those whose value is stored with it."""

    known: frozenset[str]
    valued: frozenset[str]


HeldBy = Callable[[str, str, frozenset[str]], Held]
"""What a checkpoint, by namespace and id, holds of these channels."""


@dataclass(slots=True)
class PruningPlan:
    """What is to become of a thread; `parents` are the new parents of those that stay and lose theirs."""

    dropped: set[Key] = field(default_factory=set)
    parents: dict[Key, str | None] = field(default_factory=dict)

    def by_namespace(self) -> dict[str, list[str]]:
        """What is dropped of each namespace, oldest first."""
        found: dict[str, list[str]] = {}
        for namespace, checkpoint_id in sorted(self.dropped):
            found.setdefault(namespace, []).append(checkpoint_id)
        return found


def link_of(checkpoint_id: str, parent_id: str | None, metadata: Mapping[str, Any], **more: Any) -> Link:
    """A link of what a checkpoint's metadata says."""
    counters, parents = metadata.get(COUNTERS), metadata.get("parents")
    deltas = frozenset(counters) if isinstance(counters, dict) else frozenset()
    if VERSIONED_DELTA in metadata:
        deltas |= {ANY}
    root = parents.get("") if isinstance(parents, dict) else None
    return Link(checkpoint_id, parent_id, deltas, root if isinstance(root, str) else None, **more)


class PrunedSaver(Protocol):
    """What a saver can do to one thread."""

    async def adelete_thread(self, thread_id: str) -> None: ...

    async def aprune_thread(self, thread_id: str, *, keep: int) -> int: ...


async def prune_each(saver: PrunedSaver, thread_ids: Sequence[str], strategy: str) -> None:
    """LangGraph's `aprune`. Raises as `check_strategy` does."""
    check_strategy(thread_ids, strategy)
    for thread_id in map(str, thread_ids):
        if strategy == DELETE:
            await saver.adelete_thread(thread_id)
        else:
            await saver.aprune_thread(thread_id, keep=1)


def check_strategy(thread_ids: Sequence[str], strategy: str) -> None:
    """Raise for what `prune` must not be asked.

    Raises:
        TypeError: the threads are one text.
        ValueError: there is no such strategy.
    """
    if isinstance(thread_ids, str):
        raise TypeError("thread_ids must be a sequence of thread IDs, not a str")
    if strategy not in (KEEP_LATEST, DELETE):
        raise ValueError(f"There is no strategy {strategy!r} to prune by: use {KEEP_LATEST!r} or {DELETE!r}.")


def plan_pruning(thread: Mapping[str, Sequence[Link]], held_by: HeldBy, keep: int = 1) -> PruningPlan:
    """Keep the newest checkpoints of each namespace; but of a subgraph's call that began at one that goes, none.

    The namespace of a call ends with the id of its task, behind a colon. Where the checkpoint that it began at is not
    stored, which may be since that is stored later, the call stays.
    """
    doomed: set[Key] = set()
    for namespace, links in thread.items():
        newest_first = sorted((link.checkpoint_id for link in links), reverse=True)
        doomed |= {(namespace, checkpoint_id) for checkpoint_id in newest_first[keep:]}
    plan = plan_removal(thread, doomed, held_by)
    gone = {checkpoint_id for namespace, checkpoint_id in plan.dropped if namespace == ""}
    for namespace, links in thread.items():
        newest = max(links, key=lambda link: link.checkpoint_id)
        if ":" in namespace and newest.root in gone:
            plan.dropped |= {(namespace, link.checkpoint_id) for link in links}
            plan.parents = {key: parent for key, parent in plan.parents.items() if key[0] != namespace}
    return plan


def plan_removal(thread: Mapping[str, Sequence[Link]], doomed: Set[Key], held_by: HeldBy) -> PruningPlan:
    """Drop what is doomed, but for what the others need."""
    plan = PruningPlan()
    for namespace, links in thread.items():
        chain = _Chain(namespace, links, held_by)
        stays = [link for link in links if (namespace, link.checkpoint_id) not in doomed]
        kept = {link.checkpoint_id for link in stays} | chain.needed_by(stays)
        plan.dropped |= {(namespace, link.checkpoint_id) for link in links if link.checkpoint_id not in kept}
        for link in links:
            if link.checkpoint_id in kept and (namespace, link.parent_id) in plan.dropped:
                plan.parents[namespace, link.checkpoint_id] = chain.ancestor_among(kept, link)
    return plan


class _Chain:
    """The checkpoints of one namespace, each of which knows its parent."""

    def __init__(self, namespace: str, links: Sequence[Link], held_by: HeldBy) -> None:
        self._namespace = namespace
        self._links = {link.checkpoint_id: link for link in links}
        self._held_by = held_by
        self._deltas = frozenset[str]().union(*(link.deltas for link in links))

    def needed_by(self, stays: Iterable[Link]) -> set[str]:
        """What must stay for these; how far each walk goes, one of those themselves ends: it walks on by itself."""
        ends = {link.checkpoint_id for link in stays}
        needed: set[str] = set()
        for link in self._links.values():
            if link.checkpoint_id in ends and link.parent_id is not None and link.parent_id not in ends:
                needed |= self._needed_by(link, ends)
        return needed

    def _needed_by(self, link: Link, ends: Set[str]) -> set[str]:
        needed = {link.parent_id} & self._links.keys() if link.needs_parent and link.parent_id is not None else set()
        missing = self._missing(link)
        for above in self._ancestors(link):
            if not missing or above.checkpoint_id in ends:
                break
            needed.add(above.checkpoint_id)
            missing -= self._held(above).valued
        return needed

    def ancestor_among(self, kept: Set[str], link: Link) -> str | None:
        return next((above.checkpoint_id for above in self._ancestors(link) if above.checkpoint_id in kept), None)

    def _missing(self, link: Link) -> frozenset[str]:
        if not self._deltas:
            return frozenset()
        held = self._held(link)
        return held.known - held.valued

    def _held(self, link: Link) -> Held:
        if ANY in self._deltas:  # which ones is not known: nothing ends the walk
            return Held(frozenset({ANY}), frozenset())
        return self._held_by(self._namespace, link.checkpoint_id, self._deltas)

    def _ancestors(self, link: Link) -> Iterator[Link]:
        """As far as they are stored, and each once: a checkpoint that was put again may be its own parent."""
        passed = {link.checkpoint_id}
        while link.parent_id is not None and link.parent_id not in passed and link.parent_id in self._links:
            link = self._links[link.parent_id]
            passed.add(link.checkpoint_id)
            yield link


def read_of(what: str, read: Callable[[], T]) -> T:
    """What `read` returns of stored bytes.

    Raises:
        CheckpointCorruptionError: they cannot be read, whatever the serializer raises then.
    """
    try:
        return read()
    except CheckpointCorruptionError:
        raise
    except Exception as error:
        raise CheckpointCorruptionError(f"its {what} cannot be read ({type(error).__name__})") from error


def leave_out(thread_id: str, error: BaseException) -> None:
    """Tell that one thread keeps a deletion by run from being carried out in it, and in no other."""
    _log.warning(
        "Thread %s was left out of a deletion by run: %s. All others were gone through.", quoted(thread_id), error
    )


def refuse_copy(source_thread_id: str, target_thread_id: str) -> CheckpointerError:
    """The error for a thread that is not copied, since that would mix two."""
    return CheckpointerError(
        f"Thread {quoted(target_thread_id)} has checkpoints that thread {quoted(source_thread_id)} has not, so nothing "
        "was copied into it. Copy into a thread that does not exist yet, or delete that one before."
    )
