"""Which threads there are: an entry for each, and how few looks at a database find those that are asked for.

The newest checkpoints of a user are walked through, newest first, until enough threads are found: that takes as long
for a user among a million checkpoints as among ten thousand. Without a user, every thread is looked at once, by its
newest checkpoint alone. Nothing here does I/O but by `ThreadRows`.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from langgraph.checkpoint.base import CheckpointTuple

from enhanced_checkpointing.errors import CheckpointCorruptionError
from enhanced_checkpointing.identifiers import USER_ID, created_at
from enhanced_checkpointing.operations import frozen_size, namespace_of, operations_of, thread_of
from enhanced_checkpointing.serialization import SharingSerializer

THREAD_STATUS, TOUCHED_AT = "thread_status", "touched_at"
"""The keys of the newest root checkpoint's metadata that say how its thread ended, and when it was last used."""
ACTIVE, COMPLETED, FAILED = "active", "completed", "failed"
DEEPEST = 500
"""How deep metadata may be nested: Python's reader, whose limit depends on who calls it, gives up at some 900."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a page of a listing ended: the newest checkpoint of its last thread, and that thread where it is known.

    Copies of a thread share their ids, so that only with the thread no copy is missed at the end of a page.
    """

    checkpoint_id: str
    thread_id: str | None = None


@dataclass(frozen=True, slots=True)
class HeadQuery:
    """Which threads to list: those of a user, with this metadata at their head, behind the end of another page."""

    limit: int
    user_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    before: Cursor | None = None


@dataclass(frozen=True, slots=True)
class ThreadHead:
    """A thread as its newest checkpoint shows it.

    That is the newest one of the root graph; or, where a process died before it stored one, of any subgraph.
    """

    thread_id: str
    checkpoint_id: str
    updated_at: datetime | None
    """When that checkpoint was made, with a time zone; None if neither its id nor it itself tells."""
    metadata: Mapping[str, Any]
    checkpoints: int
    """How many there are, in all namespaces."""
    size: int
    """About how many bytes the backend holds of the thread."""
    user_id: str | None = None
    """The user whose thread it is: whom the newest checkpoint of the root graph names that names one."""
    named_by: str | None = None
    """The id of the checkpoint that names the user; by it a user's threads are ordered."""
    unreadable: str | None = None
    """Why nothing is known of its metadata, which is stored and is no metadata; such a thread is never listed."""

    @property
    def step(self) -> int | None:
        """The step of the graph after which the newest checkpoint was made, where it says one."""
        step = self.metadata.get("step")
        return step if isinstance(step, int) and not isinstance(step, bool) else None


def load_metadata(stored: str | bytes | None) -> dict[str, Any]:
    """What a row's metadata says; nothing where there is none.

    Raises:
        CheckpointCorruptionError: it is no JSON object, or one that cannot be passed on: nested deeper than `DEEPEST`,
            or with a number of more digits than Python reads (`sys.get_int_max_str_digits()`, 4,300).
    """
    if stored is None:
        return {}
    try:
        read = json.loads(stored)
    except RecursionError:
        raise CheckpointCorruptionError(f"its metadata is nested deeper than {DEEPEST}") from None
    except (ValueError, TypeError) as error:
        what = "has a number of too many digits" if "digits" in str(error) else "is no JSON"
        raise CheckpointCorruptionError(f"its metadata {what}") from None
    return checked_metadata(read)


def checked_metadata(read: object) -> dict[str, Any]:
    """What was read as metadata, if it can be passed on. Raises as `load_metadata` does."""
    if not isinstance(read, dict):
        raise CheckpointCorruptionError("its metadata can be read, but is no object")
    if is_deeper(read, DEEPEST):
        raise CheckpointCorruptionError(f"its metadata is nested deeper than {DEEPEST}")
    return read


def is_deeper(value: Any, deepest: int) -> bool:
    """Whether objects and lists stand in each other so many times."""
    level = [value]
    for _ in range(deepest + 1):
        inner = (one.values() if isinstance(one, dict) else one for one in level)
        level = [item for items in inner for item in items if isinstance(item, (dict, list))]
        if not level:
            return False
    return True


def user_of(metadata: Mapping[str, Any]) -> str | None:
    """The user that a checkpoint names: a text, or a whole number, which counts as its text. Nothing else names one."""
    user = metadata.get(USER_ID)
    if isinstance(user, str):
        return user
    return str(user) if isinstance(user, int) and not isinstance(user, bool) else None


def status_of(metadata: Mapping[str, Any]) -> str:
    """How a thread is, by its newest checkpoint: without a mark it is active, as it is when it goes on after one."""
    status = metadata.get(THREAD_STATUS)
    return status if status in (COMPLETED, FAILED) else ACTIVE


def has_all(metadata: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether metadata has these values under these keys; a value of None is there if the key is."""
    if THREAD_STATUS in wanted:
        metadata = {**metadata, THREAD_STATUS: status_of(metadata)}
    return all(key in metadata and metadata[key] == value for key, value in wanted.items())


def time_of(checkpoint_id: str, timestamp: object = None) -> datetime | None:
    """When a checkpoint was made: as its id tells, which LangGraph makes of the time, or else its own timestamp."""
    seconds = created_at(checkpoint_id)
    try:
        if seconds is not None:
            return datetime.fromtimestamp(seconds, UTC)
        told = datetime.fromisoformat(str(timestamp))
    except (ValueError, OverflowError):  # a year that a datetime does not know
        return None
    return told if told.tzinfo is not None else told.replace(tzinfo=UTC)


def page_of(heads: Sequence[ThreadHead], query: HeadQuery) -> list[ThreadHead]:
    """Those of all heads that a query asks for, newest first."""
    before = _place_for_user(heads, query)
    wanted = [head for head in heads if fits(head, query) and is_behind(cursor_of(head, query.user_id), before)]
    wanted.sort(key=lambda head: order_of(cursor_of(head, query.user_id)), reverse=True)
    return wanted[: max(0, query.limit)]


def fits(head: ThreadHead, query: HeadQuery) -> bool:
    """Whether a thread is one of those that are asked for, on whichever page."""
    if head.unreadable is not None or query.user_id not in (None, head.user_id):
        return False
    return has_all(head.metadata, query.metadata)


def cursor_of(head: ThreadHead, user_id: str | None) -> Cursor:
    """Where a thread stands in a listing; in a user's, by the newest checkpoint that names the user."""
    named_by = head.named_by if user_id is not None else None
    return Cursor(named_by or head.checkpoint_id, head.thread_id)


def order_of(place: Cursor) -> tuple[str, str]:
    return place.checkpoint_id, place.thread_id or ""


def is_behind(place: Cursor, before: Cursor | None) -> bool:
    """Whether a place comes after the end of another page."""
    if before is None:
        return True
    if before.thread_id is None:
        return place.checkpoint_id < before.checkpoint_id
    return order_of(place) < order_of(before)


def _place_for_user(heads: Sequence[ThreadHead], query: HeadQuery) -> Cursor | None:
    """The end of the other page as a place in a user's listing: its newest checkpoint need not name the user."""
    before = query.before
    if before is None or query.user_id is None:
        return before
    for head in sorted(heads, key=lambda head: head.thread_id, reverse=True):
        is_it = head.checkpoint_id == before.checkpoint_id and before.thread_id in (None, head.thread_id)
        if is_it and head.named_by is not None and head.user_id == query.user_id:
            alike = before.thread_id is None and head.named_by == before.checkpoint_id
            return before if alike else Cursor(head.named_by, head.thread_id)
    return before


class HeadGatherer:
    """Makes heads of checkpoints that come in any order; of each thread all are to come."""

    def __init__(self, serializer: SharingSerializer) -> None:
        self._serializer = serializer
        self._threads: dict[str, _Gathered] = {}

    def add(self, found: CheckpointTuple) -> None:
        thread = self._threads.setdefault(thread_of(found.config), _Gathered())
        checkpoint_id, of_root = found.checkpoint["id"], not namespace_of(found.config)
        rank = of_root, checkpoint_id
        thread.checkpoints += 1
        thread.size += sum(map(frozen_size, operations_of(found, self._serializer)))
        metadata: object = found.metadata
        sound = isinstance(metadata, Mapping)
        if rank > thread.rank:
            thread.rank, thread.metadata, thread.timestamp = rank, found.metadata, found.checkpoint.get("ts")
            thread.unreadable = None if sound else "its metadata is no mapping"
        user_id = user_of(found.metadata) if sound else None
        if of_root and user_id is not None and (thread.named_by is None or checkpoint_id > thread.named_by):
            thread.user_id, thread.named_by = user_id, checkpoint_id

    def heads(self) -> list[ThreadHead]:
        return [
            ThreadHead(
                thread_id=thread_id,
                checkpoint_id=thread.rank[1],
                updated_at=time_of(thread.rank[1], thread.timestamp),
                metadata=dict(thread.metadata) if thread.unreadable is None else {},
                checkpoints=thread.checkpoints,
                size=thread.size,
                user_id=thread.user_id,
                named_by=thread.named_by,
                unreadable=thread.unreadable,
            )
            for thread_id, thread in self._threads.items()
        ]


@dataclass(slots=True)
class _Gathered:
    rank: tuple[bool, str] = (False, "")
    metadata: Mapping[str, Any] = field(default_factory=dict)
    timestamp: object = None
    checkpoints: int = 0
    size: int = 0
    user_id: str | None = None
    named_by: str | None = None
    unreadable: str | None = None


FIRST_STEP = 4
"""So many checkpoints are walked through at first for each thread that is asked for; then twice as many, and so on."""
LONGEST_WALK = 2_000
"""Checkpoints of a user that are looked at in one go, at most."""
THREADS_AT_ONCE = 500

LAST_TEXT = "\U0010ffff"
"""No thread id comes after it."""


@dataclass(frozen=True, slots=True)
class Top:
    """The newest checkpoint of a thread: of its root graph, if that has any."""

    checkpoint_id: str
    metadata: Mapping[str, Any]
    of_root: bool
    timestamp: object = None
    unreadable: str | None = None
    """Why its metadata, which is left out then, is none."""


def top_of(checkpoint_id: str, stored: str | bytes | None, of_root: bool, timestamp: object) -> Top:
    """With its metadata as it is stored; what is unreadable of one thread must not keep others from being listed."""
    try:
        return Top(checkpoint_id, load_metadata(stored), of_root, timestamp)
    except CheckpointCorruptionError as error:
        return Top(checkpoint_id, {}, of_root, timestamp, str(error))


MOST_UNREADABLE = 1_000


def note(unreadable: dict[str, str], asked: Sequence[str], tops: Mapping[str, Top]) -> Mapping[str, Top]:
    """Keep in mind which of the threads that were asked for are unreadable now, and why; a thousand at most."""
    for thread_id in asked if unreadable else ():
        unreadable.pop(thread_id, None)
    for thread_id, top in tops.items():
        if top.unreadable is not None and len(unreadable) < MOST_UNREADABLE:
            unreadable[thread_id] = top.unreadable
    return tops


@dataclass(frozen=True, slots=True)
class ThreadOwner:
    """The newest checkpoint of a thread's root graph that names a user."""

    user_id: str
    checkpoint_id: str


@dataclass(frozen=True, slots=True)
class ThreadTotal:
    checkpoints: int
    size: int


class ThreadRows(Protocol):
    """The looks at a database; each is an index's work. Threads that are not there are left out."""

    async def thread_ids(self, after: str | None, limit: int) -> Sequence[str]: ...

    async def naming(self, user_id: str, before: Cursor | None, limit: int) -> Sequence[Cursor]:
        """Checkpoints of root graphs that may name a user, newest first, those with one id by thread, backwards.

        All are there that do name the user.
        """
        ...

    async def newest(self, thread_ids: Sequence[str]) -> Mapping[str, str]:
        """The ids of the checkpoints that `tops` finds, without a look at these."""
        ...

    async def tops(self, thread_ids: Sequence[str]) -> Mapping[str, Top]: ...

    async def owners(self, thread_ids: Sequence[str]) -> Mapping[str, ThreadOwner]:
        """Asked only for threads whose newest checkpoint names no user."""
        ...

    async def totals(self, thread_ids: Sequence[str]) -> Mapping[str, ThreadTotal]: ...


async def describe(rows: ThreadRows, thread_ids: Sequence[str]) -> list[ThreadHead]:
    """The heads of these threads, in their order."""
    distinct = [*dict.fromkeys(thread_ids)]
    heads: list[ThreadHead] = []
    for start in range(0, len(distinct), THREADS_AT_ONCE):
        heads += await _describe(rows, distinct[start : start + THREADS_AT_ONCE])
    return heads


async def _describe(rows: ThreadRows, thread_ids: Sequence[str]) -> list[ThreadHead]:
    tops = await rows.tops(thread_ids)
    if not tops:
        return []
    owners, totals = await _owners(rows, tops), await rows.totals([*tops])
    return [
        _head(thread_id, tops[thread_id], owners.get(thread_id), totals[thread_id])
        for thread_id in thread_ids
        if thread_id in tops and thread_id in totals
    ]


def _head(thread_id: str, top: Top, owner: ThreadOwner | None, total: ThreadTotal) -> ThreadHead:
    return ThreadHead(
        thread_id=thread_id,
        checkpoint_id=top.checkpoint_id,
        updated_at=time_of(top.checkpoint_id, top.timestamp),
        metadata=top.metadata,
        checkpoints=total.checkpoints,
        size=total.size,
        user_id=owner.user_id if owner is not None else None,
        named_by=owner.checkpoint_id if owner is not None else None,
        unreadable=top.unreadable,
    )


async def find_heads(rows: ThreadRows, query: HeadQuery) -> list[ThreadHead]:
    """The threads that are asked for, newest first."""
    if query.limit < 1:
        return []
    found = await (_of_user(rows, query, query.user_id) if query.user_id is not None else _of_all_users(rows, query))
    described = await describe(rows, found)
    # There may be newer writes: a thread is shown only to its owner of now.
    heads = [head for head in described if fits(head, query)]
    heads.sort(key=lambda head: order_of(cursor_of(head, query.user_id)), reverse=True)
    skipped = sum(head.unreadable is not None for head in described)
    if skipped and len(found) >= query.limit:  # others take their places, so that a short page is the last one
        last = min((cursor_of(head, query.user_id) for head in described), key=order_of)
        heads += await find_heads(rows, replace(query, limit=skipped, before=last))
    return heads


async def _of_all_users(rows: ThreadRows, query: HeadQuery) -> list[str]:
    newest: list[tuple[str, str]] = []
    after: str | None = None
    while thread_ids := await rows.thread_ids(after, THREADS_AT_ONCE):
        after = thread_ids[-1]
        ids = await (_with_metadata(rows, query, thread_ids) if query.metadata else rows.newest(thread_ids))
        places = [Cursor(checkpoint_id, thread_id) for thread_id, checkpoint_id in ids.items()]
        behind = [order_of(place) for place in places if is_behind(place, query.before)]
        newest = heapq.nlargest(query.limit, [*newest, *behind])
    return [thread_id for _, thread_id in newest]


async def _with_metadata(rows: ThreadRows, query: HeadQuery, thread_ids: Sequence[str]) -> Mapping[str, str]:
    tops = await rows.tops(thread_ids)
    return {
        one: top.checkpoint_id
        for one, top in tops.items()
        if top.unreadable is None and has_all(top.metadata, query.metadata)
    }


async def _of_user(rows: ThreadRows, query: HeadQuery, user_id: str) -> list[str]:
    before = at = await _exact(rows, user_id, query.before)
    seen: set[str] = set()
    found: list[str] = []
    step = min(FIRST_STEP * query.limit, LONGEST_WALK)
    while len(found) < query.limit:
        places = await rows.naming(user_id, at, step)
        found += await _owned(rows, query, before, _unseen(places, seen))
        if len(places) < step:
            break
        at, step = places[-1], min(2 * step, LONGEST_WALK)
    return found[: query.limit]


async def _owned(rows: ThreadRows, query: HeadQuery, before: Cursor | None, thread_ids: Sequence[str]) -> list[str]:
    """Those of these threads that are the user's, stand behind `before`, and have the metadata."""
    tops = await rows.tops(thread_ids)
    owners = await _owners(rows, tops)
    return [
        thread_id
        for thread_id in thread_ids
        if (owner := owners.get(thread_id)) is not None
        and tops[thread_id].unreadable is None
        and owner.user_id == query.user_id
        and is_behind(Cursor(owner.checkpoint_id, thread_id), before)
        and has_all(tops[thread_id].metadata, query.metadata)
    ]


async def _owners(rows: ThreadRows, tops: Mapping[str, Top]) -> Mapping[str, ThreadOwner]:
    """Whose each thread is; mostly its newest checkpoint says so."""
    named = {
        thread_id: ThreadOwner(user_id, top.checkpoint_id)
        for thread_id, top in tops.items()
        if top.of_root and (user_id := user_of(top.metadata)) is not None
    }
    silent = [thread_id for thread_id, top in tops.items() if top.of_root and thread_id not in named]
    return {**named, **(await rows.owners(silent))} if silent else named


async def _exact(rows: ThreadRows, user_id: str, before: Cursor | None) -> Cursor | None:
    """Where the walk through a user's checkpoints goes on behind a thread of which the newest checkpoint is given.

    That one need not name a user: then the thread's place is that of its newest checkpoint that does.
    """
    if before is None:
        return None
    if before.thread_id is not None:
        return await _place(rows, user_id, before, [before.thread_id]) or before
    seen: set[str] = set()
    at, step = before, FIRST_STEP
    just_above = Cursor(before.checkpoint_id, LAST_TEXT)
    if any(place.checkpoint_id == before.checkpoint_id for place in await rows.naming(user_id, just_above, 1)):
        return before
    while True:
        places = await rows.naming(user_id, at, step)
        exact = await _place(rows, user_id, before, _unseen(places, seen))
        if exact is not None or len(places) < step:
            return exact or before
        at, step = places[-1], min(2 * step, LONGEST_WALK)


async def _place(rows: ThreadRows, user_id: str, before: Cursor, thread_ids: Sequence[str]) -> Cursor | None:
    """The place of the first of these threads that is the user's and has the newest checkpoint that is given."""
    found = {
        one: top for one, top in (await rows.tops(thread_ids)).items() if top.checkpoint_id == before.checkpoint_id
    }
    owners = await _owners(rows, found)
    for thread_id in thread_ids:
        owner = owners.get(thread_id)
        if owner is not None and owner.user_id == user_id:
            return Cursor(owner.checkpoint_id, thread_id)
    return None


def _unseen(places: Sequence[Cursor], seen: set[str]) -> list[str]:
    """The threads of places that are not among those seen, which they are from now on."""
    fresh = [thread_id for place in places if (thread_id := place.thread_id) is not None and thread_id not in seen]
    seen.update(fresh)
    return [*dict.fromkeys(fresh)]
