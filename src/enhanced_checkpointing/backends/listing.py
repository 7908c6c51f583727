"""Which threads are asked for, by few looks at a database that answers each by an index.

The newest checkpoints of a user are walked through, newest first, until enough threads are found: that takes as long
for a user among a million checkpoints as among ten thousand. For want of a user every thread is looked at once, by its
newest checkpoint alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from enhanced_checkpointing.backends.directory import (
    HeadQuery,
    Place,
    ThreadHead,
    fits,
    has_all,
    is_behind,
    load_metadata,
    order_of,
    place_of,
    time_of,
    user_of,
)
from enhanced_checkpointing.errors import CheckpointCorruptionError

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
class Naming:
    """The newest checkpoint of a thread's root graph that names a user."""

    user_id: str
    checkpoint_id: str


@dataclass(frozen=True, slots=True)
class Total:
    checkpoints: int
    size: int


class ThreadRows(Protocol):
    """The looks at a database; each is an index's work. Threads that are not there are left out."""

    async def thread_ids(self, after: str | None, limit: int) -> Sequence[str]: ...

    async def naming(self, user_id: str, before: Place | None, limit: int) -> Sequence[Place]:
        """Checkpoints of root graphs that may name a user, newest first, those with one id by thread, backwards.

        All are there that do name the user.
        """
        ...

    async def newest(self, thread_ids: Sequence[str]) -> Mapping[str, str]:
        """The ids of the checkpoints that `tops` finds, without a look at these."""
        ...

    async def tops(self, thread_ids: Sequence[str]) -> Mapping[str, Top]: ...

    async def owners(self, thread_ids: Sequence[str]) -> Mapping[str, Naming]:
        """Asked only for threads whose newest checkpoint names nobody."""
        ...

    async def totals(self, thread_ids: Sequence[str]) -> Mapping[str, Total]: ...


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


def _head(thread_id: str, top: Top, owner: Naming | None, total: Total) -> ThreadHead:
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
    found = await (_of_user(rows, query, query.user_id) if query.user_id is not None else _of_anybody(rows, query))
    described = await describe(rows, found)
    # Somebody may have written since: a thread is shown only to whom it belongs now.
    heads = [head for head in described if fits(head, query)]
    heads.sort(key=lambda head: order_of(place_of(head, query.user_id)), reverse=True)
    skipped = sum(head.unreadable is not None for head in described)
    if skipped and len(found) >= query.limit:  # others take their places, so that a short page is the last one
        last = min((place_of(head, query.user_id) for head in described), key=order_of)
        heads += await find_heads(rows, replace(query, limit=skipped, before=last))
    return heads


async def _of_anybody(rows: ThreadRows, query: HeadQuery) -> list[str]:
    newest: list[tuple[str, str]] = []
    after: str | None = None
    while thread_ids := await rows.thread_ids(after, THREADS_AT_ONCE):
        after = thread_ids[-1]
        ids = await (_with_metadata(rows, query, thread_ids) if query.metadata else rows.newest(thread_ids))
        places = [Place(checkpoint_id, thread_id) for thread_id, checkpoint_id in ids.items()]
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


async def _owned(rows: ThreadRows, query: HeadQuery, before: Place | None, thread_ids: Sequence[str]) -> list[str]:
    """Those of these threads that are the user's, stand behind `before`, and have the metadata."""
    tops = await rows.tops(thread_ids)
    owners = await _owners(rows, tops)
    return [
        thread_id
        for thread_id in thread_ids
        if (owner := owners.get(thread_id)) is not None
        and tops[thread_id].unreadable is None
        and owner.user_id == query.user_id
        and is_behind(Place(owner.checkpoint_id, thread_id), before)
        and has_all(tops[thread_id].metadata, query.metadata)
    ]


async def _owners(rows: ThreadRows, tops: Mapping[str, Top]) -> Mapping[str, Naming]:
    """Whose each thread is; mostly its newest checkpoint says so."""
    named = {
        thread_id: Naming(user_id, top.checkpoint_id)
        for thread_id, top in tops.items()
        if top.of_root and (user_id := user_of(top.metadata)) is not None
    }
    silent = [thread_id for thread_id, top in tops.items() if top.of_root and thread_id not in named]
    return {**named, **(await rows.owners(silent))} if silent else named


async def _exact(rows: ThreadRows, user_id: str, before: Place | None) -> Place | None:
    """Where the walk through a user's checkpoints goes on behind a thread of which the newest checkpoint is given.

    That one need not name anybody: then the thread stands further back, where its newest one does that does.
    """
    if before is None:
        return None
    if before.thread_id is not None:
        return await _place(rows, user_id, before, [before.thread_id]) or before
    seen: set[str] = set()
    at, step = before, FIRST_STEP
    just_above = Place(before.checkpoint_id, LAST_TEXT)
    if any(place.checkpoint_id == before.checkpoint_id for place in await rows.naming(user_id, just_above, 1)):
        return before
    while True:
        places = await rows.naming(user_id, at, step)
        exact = await _place(rows, user_id, before, _unseen(places, seen))
        if exact is not None or len(places) < step:
            return exact or before
        at, step = places[-1], min(2 * step, LONGEST_WALK)


async def _place(rows: ThreadRows, user_id: str, before: Place, thread_ids: Sequence[str]) -> Place | None:
    """The place of the first of these threads that is the user's and has the newest checkpoint that is given."""
    found = {
        one: top for one, top in (await rows.tops(thread_ids)).items() if top.checkpoint_id == before.checkpoint_id
    }
    owners = await _owners(rows, found)
    for thread_id in thread_ids:
        owner = owners.get(thread_id)
        if owner is not None and owner.user_id == user_id:
            return Place(owner.checkpoint_id, thread_id)
    return None


def _unseen(places: Sequence[Place], seen: set[str]) -> list[str]:
    """The threads of places that are not among those seen, which they are from now on."""
    fresh = [thread_id for place in places if (thread_id := place.thread_id) is not None and thread_id not in seen]
    seen.update(fresh)
    return [*dict.fromkeys(fresh)]
