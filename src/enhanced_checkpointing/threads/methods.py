"""What a manager does with threads: each method for `await`, and with the suffix `_sync` for code without a loop."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import update_wrapper
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar
from uuid import uuid4

from langchain_core.runnables import RunnableConfig

from enhanced_checkpointing.backends.listing import COMPLETED, FAILED, Cursor, HeadQuery, ThreadHead, status_of
from enhanced_checkpointing.errors import (
    CheckpointCorruptionError,
    CheckpointNotFoundError,
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

P = ParamSpec("P")
T = TypeVar("T")

LISTED_METADATA = 16 * 1024
"""Bytes of JSON that the metadata of one thread takes in a listing. Those of a graph take some hundred."""
LEFT_OUT = "__left_out__"
"""The key in a listing's metadata that says what was left out of it."""

Entry: TypeAlias = dict[str, Any]
"""A thread, as plain JSON types."""


@dataclass(frozen=True, slots=True)
class ThreadComponents:
    """What the methods work with. `presumes_empty` tells of a thread that was only taken for new."""

    saver: FailoverSaver
    maintenance: Maintenance
    bridge: LoopBridge
    marks: Marks
    sweeper: Sweeper
    owners: OwnerCheck
    presumes_empty: Callable[[str], bool]
    erasure: Erasure

    async def require(
        self, thread_ids: Sequence[str], user_id: str | None, *, as_owner: bool = False, new: bool = False
    ) -> None:
        """As `OwnerCheck.require`, for each of these threads."""
        user = None if user_id is None else text_of(user_id, USER_ID)
        for thread_id in thread_ids:
            await self.bridge.bring(self.owners.require, thread_id, user, as_owner=as_owner, new=new)


def _sync(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Any, P], T]:
    """The same method for code without a loop."""

    def wait(manager: ThreadMethods, /, *args: P.args, **named: P.kwargs) -> T:
        return manager._threads.bridge.wait(lambda: method(manager, *args, **named))

    update_wrapper(wait, method)
    wait.__name__, wait.__doc__ = f"{method.__name__}_sync", f"`{method.__name__}` for code without a loop."
    return wait


class ThreadMethods:
    """The part of the manager that knows threads. Only the primary knows them all: in an outage all of this raises
    `CheckpointUnavailableError`, but for deleting and marking a thread, which are journaled.

    With `user_id` a method acts for that user: a thread that has another owner (`create_thread_config(user_id=…)`) is
    answered as one that is not there, with `CheckpointNotFoundError`, or `CheckpointUnavailableError` in an outage in
    which that is not known of any thread. With `thread_ownership="record"` nothing is refused. Whom a thread is shared
    with may look at it, copy and mark it; only its owner may prune or delete it. Without `user_id` a method acts for
    the application itself, as do `delete_for_runs` and `run_retention`, which go through all threads.

    The `_sync` methods are for threads that do not run the manager's event loop, where they raise `CheckpointerError`.
    """

    @property
    def _threads(self) -> ThreadComponents:
        raise NotImplementedError

    async def list_threads(
        self,
        /,
        *,
        user_id: str | None = None,
        limit: int = 50,
        before: str | Mapping[str, Any] | None = None,
        **metadata: Any,
    ) -> list[Entry]:
        """The threads of a user, or all, newest first, that have this metadata at their newest checkpoint.

        Each is a dict of plain JSON types: `thread_id`; of its newest checkpoint `checkpoint_id`, `updated_at` (ISO
        8601), `step` and `metadata`; of all of them `checkpoints` (how many) and `size` (about how many bytes);
        `user_id`, of its newest checkpoint that names a user; and `status`: active, completed or failed. Of metadata
        above 16 KiB the largest keys are left out, and a key `__left_out__` says so: `get_thread` has them all.

        What a user's listing costs does not grow with the threads of others. Without a user every thread is looked at.

        Args:
            user_id: whose threads, as `create_thread_config(user_id=…)` says it. Those of others are never shown, not
                even those that they share with this user.
            limit: how many, at most.
            before: where the page before ended: the last of its dicts; or only that one's `checkpoint_id`, which
                copies of a thread have in common.
            metadata: of the newest checkpoint, which is to have these values. `thread_status="active"`, `"completed"`
                or `"failed"` asks for the status.

        Raises:
            CheckpointUnavailableError: in an outage, since only the primary knows all threads.
        """
        if limit < 0:
            raise ValueError(f"limit must not be negative, but is {limit}")
        threads, user = self._threads, None if user_id is None else text_of(user_id, USER_ID)
        query = HeadQuery(limit, user, metadata, _cursor(before))
        heads = await threads.bridge.bring(
            lambda: threads.maintenance.ask("list_threads", None, lambda one: one.heads(query), frozen=False)
        )
        return [listed_entry(head) for head in heads if threads.owners.is_shown(head.metadata, user)]

    list_threads_sync = _sync(list_threads)

    async def get_thread(self, thread_id: str, *, user_id: str | None = None) -> Entry | None:
        """One thread, as `list_threads` tells of it; None if it is known that there is none.

        Raises:
            CheckpointNotFoundError: there is none for this user.
            CheckpointCorruptionError: its metadata cannot be read.
            CheckpointUnavailableError: in an outage, or while the journal holds something of the thread.
        """
        threads, wanted = self._threads, [text_of(thread_id, "thread_id")]
        await threads.require(wanted, user_id)
        heads = await threads.bridge.bring(
            lambda: threads.maintenance.ask("get_thread", wanted, lambda one: one.describe(wanted), frozen=True)
        )
        if heads and heads[0].unreadable is not None:
            raise CheckpointCorruptionError(
                f"Thread {quoted(wanted[0])} cannot be described: {heads[0].unreadable}. Nothing was changed. "
                "Mend the metadata of its newest checkpoint in the database, or delete the thread."
            )
        return entry_of(heads[0]) if heads else None

    get_thread_sync = _sync(get_thread)

    async def delete_thread(self, thread_id: str, *, user_id: str | None = None) -> bool:
        """Delete a thread, now or, in an outage, when the journal is drained; False if it is known to be empty.

        Raises:
            CheckpointNotFoundError: there is none that belongs to this user.
            CheckpointUnavailableError: in an outage, for a user, when the owner is unknown.
        """
        threads, thread_id = self._threads, text_of(thread_id, "thread_id")
        await threads.require([thread_id], user_id, as_owner=True)
        config: RunnableConfig = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
        try:
            with without_objects():
                existed = await threads.saver.aget_tuple(config) is not None or threads.presumes_empty(thread_id)
        except Exception:  # noqa: BLE001  # in an outage it may be there; and what cannot be read can be deleted
            existed = True
        await threads.saver.adelete_thread(thread_id)
        return existed

    delete_thread_sync = _sync(delete_thread)

    async def erase(
        self, *, thread_id: str | None = None, user_id: str | None = None, dry_run: bool = False
    ) -> ErasureReceipt:
        """Erase one thread, or all threads of a user, from the database, the journal, its dead letters and the copies
        of its damaged files, so that no bytes of what was said stay there; and say what remains elsewhere.

        A user's threads are those that the user owns, and those without an owner that name the user. With both, the
        thread is erased only if it belongs to no other user; with `thread_ownership="record"`, which refuses nothing,
        its owner does not matter. Quarantined branches of an outage go with their thread, but for a user none that
        another user owns.

        In an outage a thread is erased from the journal now, and from the database when that is back: `pending` says
        so. Other processes of the same journal directory forget the thread too, when they next look; a turn of it that
        is under way is refused with `CheckpointNotFoundError`. Asked for again, it finishes what was interrupted.

        Raises:
            CheckpointNotFoundError: the thread belongs to another user, and `thread_ownership` is "enforce".
            CheckpointUnavailableError: in an outage, for all threads of a user, which only the primary knows.
        """
        threads = self._threads
        return await threads.bridge.bring(lambda: threads.erasure.erase(thread_id, user_id, dry_run=dry_run))

    erase_sync = _sync(erase)

    async def copy_thread(
        self, source_thread_id: str, target_thread_id: str | None = None, *, user_id: str | None = None
    ) -> str:
        """Copy all checkpoints and writes of a thread, as one step; return the id of the copy, by default a new one.

        Raises:
            CheckpointNotFoundError: there is no such thread, or one of the two is another user's.
            CheckpointerError: the target has checkpoints that the source has not; nothing was copied.
            CheckpointUnavailableError: in an outage, or while the journal holds something of either.
        """
        source = text_of(source_thread_id, "source_thread_id")
        target = text_of(uuid4() if target_thread_id is None else target_thread_id, "target_thread_id")
        if target_thread_id is not None:
            await self._threads.require([target], user_id, new=True)
        if await self.get_thread(source, user_id=user_id) is None:
            raise CheckpointNotFoundError(f"There is no thread {quoted(source)}, so nothing was copied.")
        await self._threads.saver.acopy_thread(source, target)
        return target

    copy_thread_sync = _sync(copy_thread)

    async def prune(
        self, thread_ids: Sequence[str], *, strategy: str = "keep_latest", user_id: str | None = None
    ) -> None:
        """Make threads small: `"keep_latest"` keeps the newest checkpoint of each namespace, with what its delta
        channels are rebuilt from; `"delete"` keeps nothing. Each thread is a step of its own.

        Raises:
            CheckpointNotFoundError: one of them does not belong to this user; nothing was changed.
            CheckpointUnavailableError: in an outage, or while the journal holds something of one of them.
        """
        if user_id is not None and not isinstance(thread_ids, str):
            await self._threads.require([text_of(one, "thread_ids") for one in thread_ids], user_id, as_owner=True)
        await self._threads.saver.aprune(thread_ids, strategy=strategy)

    prune_sync = _sync(prune)

    async def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints that name these runs (`run_id` in their metadata), in whichever thread they are.

        Only those stay that the delta channels of a later checkpoint are rebuilt from. Every thread is looked at.

        Raises:
            CheckpointUnavailableError: in an outage, or while the journal holds anything.
        """
        if isinstance(run_ids, str):
            raise TypeError("run_ids must be a sequence of run ids, not a text")
        await self._threads.saver.adelete_for_runs(run_ids)

    delete_for_runs_sync = _sync(delete_for_runs)

    async def mark_completed(self, thread_id: str, *, user_id: str | None = None) -> None:
        """Say that a thread is over, so that retention keeps it for as long as completed ones, from now on.

        When it goes on it is active again. In an outage the mark is journaled.

        Raises:
            CheckpointNotFoundError: there is no such thread.
            CheckpointUnavailableError: in an outage, when the thread's newest checkpoint is not known.
        """
        await self._mark(thread_id, COMPLETED, user_id)

    mark_completed_sync = _sync(mark_completed)

    async def mark_failed(self, thread_id: str, *, user_id: str | None = None) -> None:
        """Say that a thread has failed and is given up; else as `mark_completed`."""
        await self._mark(thread_id, FAILED, user_id)

    mark_failed_sync = _sync(mark_failed)

    async def run_retention(self, policy: RetentionPolicy | None = None, *, dry_run: bool = False) -> Sweep:
        """Look at all threads once, delete the old ones and shorten the others; by default as the settings say.

        With `dry_run` nothing is changed, and the result names what would be. Where another process is just at it,
        nothing is done. An outage ends it early, which the result says.
        """
        threads = self._threads
        return await threads.bridge.bring(lambda: threads.sweeper.run(policy, dry_run=dry_run))

    run_retention_sync = _sync(run_retention)

    async def _mark(self, thread_id: str, status: str, user_id: str | None) -> None:
        threads, thread_id = self._threads, text_of(thread_id, "thread_id")
        await threads.require([thread_id], user_id)
        await threads.bridge.bring(threads.marks.mark, thread_id, status)


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


def _cursor(before: str | Mapping[str, Any] | None) -> Cursor | None:
    if before is None:
        return None
    if not isinstance(before, Mapping):
        return Cursor(text_of(before, "checkpoint_id"))
    return Cursor(text_of(before["checkpoint_id"], "checkpoint_id"), text_of(before["thread_id"], "thread_id"))
