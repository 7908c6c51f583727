"""Which threads there are, and what becomes of them: for people, and for what they write."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias
from uuid import uuid4

from langchain_core.runnables import RunnableConfig

from enhanced_checkpointing.backends.listing import HeadQuery, Place, ThreadHead, status_of
from enhanced_checkpointing.errors import (
    CheckpointCorruptionError,
    CheckpointNotFoundError,
    CheckpointUnavailableError,
    quoted,
)
from enhanced_checkpointing.identifiers import USER_ID, text_of
from enhanced_checkpointing.saver.event_loop import LoopBridge
from enhanced_checkpointing.saver.maintenance import Maintenance
from enhanced_checkpointing.saver.owner_check import OwnerCheck
from enhanced_checkpointing.saver.saver import FailoverSaver
from enhanced_checkpointing.serialization import without_objects
from enhanced_checkpointing.threads.erasure import Erasure, ErasureReceipt
from enhanced_checkpointing.threads.retention import RetentionPolicy, Sweep
from enhanced_checkpointing.threads.sweeper import Marks, Sweeper

LISTED_METADATA = 16 * 1024
"""Bytes of JSON that the metadata of one thread takes in a listing. Those of a graph take some hundred."""
LEFT_OUT = "__left_out__"
"""The key in a listing's metadata that says what was left out of it."""

Entry: TypeAlias = dict[str, Any]
"""A thread, as plain JSON types."""


class ThreadDirectory:
    """Asks the primary; the methods may be awaited on any event loop. In an outage they raise, but for `delete`."""

    def __init__(
        self,
        saver: FailoverSaver,
        maintenance: Maintenance,
        bridge: LoopBridge,
        marks: Marks,
        sweeper: Sweeper,
        owners: OwnerCheck,
        presumes_empty: Callable[[str], bool],
        erasure: Erasure,
    ) -> None:
        self._saver = saver
        self._maintenance = maintenance
        self.bridge = bridge
        self._marks = marks
        self._sweeper = sweeper
        self._owners = owners
        self._presumes_empty = presumes_empty
        self._erasure = erasure

    async def find(
        self, user_id: str | None, limit: int, before: str | Mapping[str, Any] | None, metadata: Mapping[str, Any]
    ) -> list[Entry]:
        """The threads of a user, or all, that have this metadata, newest first.

        Raises:
            CheckpointUnavailableError: in an outage, since only the primary knows all threads.
        """
        if limit < 0:
            raise ValueError(f"limit must not be negative, but is {limit}")
        user = None if user_id is None else text_of(user_id, "user_id")
        query = HeadQuery(limit, user, metadata, _place(before))
        heads = await self.bridge.bring(
            lambda: self._maintenance.consult("list_threads", None, lambda one: one.heads(query), frozen=False)
        )
        return [listed_entry(head) for head in heads if self._owners.is_shown(head.metadata, user)]

    async def get(self, thread_id: str, user_id: str | None = None) -> Entry | None:
        """One thread; None if it is known that there is none.

        Raises:
            CheckpointNotFoundError: there is none that this user may see.
            CheckpointCorruptionError: its metadata cannot be read.
            CheckpointUnavailableError: in an outage, or while the journal holds something of the thread.
        """
        wanted = [text_of(thread_id, "thread_id")]
        await self._require(wanted, user_id)
        heads = await self.bridge.bring(
            lambda: self._maintenance.consult("get_thread", wanted, lambda one: one.describe(wanted), frozen=True)
        )
        if heads and heads[0].unreadable is not None:
            raise CheckpointCorruptionError(
                f"Thread {quoted(wanted[0])} cannot be described: {heads[0].unreadable}. Nothing was changed. "
                "Mend the metadata of its newest checkpoint in the database, or delete the thread."
            )
        return entry_of(heads[0]) if heads else None

    async def delete(self, thread_id: str, user_id: str | None) -> bool:
        """Delete a thread, now or, in an outage, when the journal is drained; False if it is known to be empty."""
        thread_id = text_of(thread_id, "thread_id")
        await self._require([thread_id], user_id, as_owner=True)
        config: RunnableConfig = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
        try:
            with without_objects():
                existed = await self._saver.aget_tuple(config) is not None or self._presumes_empty(thread_id)
        except CheckpointUnavailableError:
            existed = True  # nobody can tell now, so the deletion is kept for when somebody can
        except Exception:  # noqa: BLE001  # whatever is stored: a thread that cannot be read can be deleted
            existed = True
        await self._saver.adelete_thread(thread_id)
        return existed

    async def erase(self, thread_id: str | None, user_id: str | None, dry_run: bool) -> ErasureReceipt:
        return await self.bridge.bring(lambda: self._erasure.erase(thread_id, user_id, dry_run=dry_run))

    async def copy(self, source_thread_id: str, target_thread_id: str | None, user_id: str | None) -> str:
        """Copy a thread, and return the id of the copy.

        Raises:
            CheckpointNotFoundError: there is no such thread, or one of the two is another user's.
            CheckpointerError: the target has checkpoints of its own.
            CheckpointUnavailableError: in an outage, or while the journal holds something of either.
        """
        source = text_of(source_thread_id, "source_thread_id")
        target = text_of(uuid4() if target_thread_id is None else target_thread_id, "target_thread_id")
        if target_thread_id is not None:
            await self._require([target], user_id, new=True)
        if await self.get(source, user_id) is None:
            raise CheckpointNotFoundError(f"There is no thread {quoted(source)}, so nothing was copied.")
        await self._saver.acopy_thread(source, target)
        return target

    async def prune(self, thread_ids: Sequence[str], strategy: str, user_id: str | None) -> None:
        if user_id is not None and not isinstance(thread_ids, str):
            await self._require([text_of(one, "thread_ids") for one in thread_ids], user_id, as_owner=True)
        await self._saver.aprune(thread_ids, strategy=strategy)

    async def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        if isinstance(run_ids, str):
            raise TypeError("run_ids must be a sequence of run ids, not a text")
        await self._saver.adelete_for_runs(run_ids)

    async def mark(self, thread_id: str, status: str, user_id: str | None) -> None:
        thread_id = text_of(thread_id, "thread_id")
        await self._require([thread_id], user_id)
        await self.bridge.bring(self._marks.mark, thread_id, status)

    async def retire(self, policy: RetentionPolicy | None, dry_run: bool) -> Sweep:
        return await self.bridge.bring(lambda: self._sweeper.run(policy, dry_run=dry_run))

    async def _require(
        self, thread_ids: Sequence[str], user_id: str | None, *, as_owner: bool = False, new: bool = False
    ) -> None:
        user = None if user_id is None else text_of(user_id, USER_ID)
        for thread_id in thread_ids:
            await self.bridge.bring(self._owners.require, thread_id, user, as_owner=as_owner, new=new)


def listed_entry(head: ThreadHead) -> Entry:
    """An entry whose metadata takes `LISTED_METADATA` at most: what one row holds must not be the size of a listing."""
    return {**entry_of(head), "metadata": _bounded(head.metadata)}


def _bounded(metadata: Mapping[str, Any]) -> dict[str, Any]:
    sizes = {key: len(key) + len(json.dumps(value, default=str)) for key, value in metadata.items()}
    total = sum(sizes.values())
    if total <= LISTED_METADATA:
        return dict(metadata)
    kept, room = {}, LISTED_METADATA
    for key in sorted(sizes, key=sizes.__getitem__):
        room -= sizes[key]
        if room < 0:
            break
        kept[key] = metadata[key]
    left_out = f"{len(sizes) - len(kept)} of {len(sizes)} keys, which take {total:,} bytes: `get_thread` has them all"
    return {**{key: kept[key] for key in metadata if key in kept}, LEFT_OUT: left_out}


def entry_of(head: ThreadHead) -> Entry:
    return {
        "thread_id": head.thread_id,
        "checkpoint_id": head.checkpoint_id,
        "updated_at": head.updated_at.isoformat() if head.updated_at is not None else None,
        "step": head.step,
        "checkpoints": head.checkpoints,
        "size": head.size,
        "user_id": head.user_id,
        "status": status_of(head.metadata),
        "metadata": dict(head.metadata),
    }


def _place(before: str | Mapping[str, Any] | None) -> Place | None:
    if before is None:
        return None
    if not isinstance(before, Mapping):
        return Place(text_of(before, "checkpoint_id"))
    return Place(text_of(before["checkpoint_id"], "checkpoint_id"), text_of(before["thread_id"], "thread_id"))
