"""What a manager does with threads: each method for `await`, and with the suffix `_sync` for code without a loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from enhanced_checkpointing.backends.listing import COMPLETED, FAILED
from enhanced_checkpointing.threads.directory import Entry, ThreadDirectory
from enhanced_checkpointing.threads.erasure import ErasureReceipt
from enhanced_checkpointing.threads.retention import RetentionPolicy, Sweep


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
    def _threads(self) -> ThreadDirectory:
        raise NotImplementedError

    async def list_threads(
        self,
        *,
        user_id: str | None = None,
        limit: int = 50,
        before: str | Mapping[str, Any] | None = None,
        **metadata: Any,
    ) -> list[Entry]:
        """The threads of a user, or all, newest first, that have this metadata at their newest checkpoint.

        Each is a dict of plain JSON types: `thread_id`; of its newest checkpoint `checkpoint_id`, `updated_at` (ISO
        8601), `step` and `metadata`; of all of them `checkpoints` (how many) and `size` (about how many bytes);
        `user_id`, whom its newest checkpoint names that names anybody; and `status`: active, completed or failed.

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
        return await self._threads.find(user_id, limit, before, metadata)

    def list_threads_sync(
        self,
        *,
        user_id: str | None = None,
        limit: int = 50,
        before: str | Mapping[str, Any] | None = None,
        **metadata: Any,
    ) -> list[Entry]:
        """`list_threads` for code without a loop."""
        threads = self._threads
        return threads.bridge.wait(lambda: threads.find(user_id, limit, before, metadata))

    async def get_thread(self, thread_id: str, *, user_id: str | None = None) -> Entry | None:
        """One thread, as `list_threads` tells of it; None if it is known that there is none.

        Raises:
            CheckpointNotFoundError: there is none for this user.
            CheckpointUnavailableError: in an outage, or while the journal holds something of the thread.
        """
        return await self._threads.get(thread_id, user_id)

    def get_thread_sync(self, thread_id: str, *, user_id: str | None = None) -> Entry | None:
        """`get_thread` for code without a loop."""
        threads = self._threads
        return threads.bridge.wait(lambda: threads.get(thread_id, user_id))

    async def delete_thread(self, thread_id: str, *, user_id: str | None = None) -> bool:
        """Delete a thread, now or, in an outage, when the journal is drained; False if it is known to be empty.

        Raises:
            CheckpointNotFoundError: there is none that belongs to this user.
            CheckpointUnavailableError: in an outage, for a user, when the owner is unknown.
        """
        return await self._threads.delete(thread_id, user_id)

    def delete_thread_sync(self, thread_id: str, *, user_id: str | None = None) -> bool:
        """`delete_thread` for code without a loop."""
        threads = self._threads
        return threads.bridge.wait(lambda: threads.delete(thread_id, user_id))

    async def erase(
        self, *, thread_id: str | None = None, user_id: str | None = None, dry_run: bool = False
    ) -> ErasureReceipt:
        """Erase one thread, or all threads of a user, from the database, the journal, its dead letters and the copies
        of its damaged files, so that no bytes of what was said stay there; and say what remains elsewhere.

        A user's threads are those that the user owns, and those without an owner that name the user. With both, the
        thread is erased only if it belongs to no other user; with `thread_ownership="record"`, which refuses nothing,
        it is erased whoever owns it. Quarantined branches of an outage go with their thread, but for a user none that
        another user owns.

        In an outage a thread is erased from the journal now, and from the database when that is back: `pending` says
        so. Other processes of the same journal directory forget the thread too, when they next look; a turn of it that
        is under way is refused with `CheckpointNotFoundError`. Asked for again, it finishes what was interrupted.

        Raises:
            CheckpointNotFoundError: the thread belongs to another user, and `thread_ownership` is "enforce".
            CheckpointUnavailableError: in an outage, for all threads of a user, which only the primary knows.
        """
        return await self._threads.erase(thread_id, user_id, dry_run)

    def erase_sync(
        self, *, thread_id: str | None = None, user_id: str | None = None, dry_run: bool = False
    ) -> ErasureReceipt:
        """`erase` for code without a loop."""
        threads = self._threads
        return threads.bridge.wait(lambda: threads.erase(thread_id, user_id, dry_run))

    async def copy_thread(
        self, source_thread_id: str, target_thread_id: str | None = None, *, user_id: str | None = None
    ) -> str:
        """Copy all checkpoints and writes of a thread, as one step; return the id of the copy, by default a new one.

        Raises:
            CheckpointNotFoundError: there is no such thread, or one of the two is another user's.
            CheckpointerError: the target has checkpoints that the source has not; nothing was copied.
            CheckpointUnavailableError: in an outage, or while the journal holds something of either.
        """
        return await self._threads.copy(source_thread_id, target_thread_id, user_id)

    def copy_thread_sync(
        self, source_thread_id: str, target_thread_id: str | None = None, *, user_id: str | None = None
    ) -> str:
        """`copy_thread` for code without a loop."""
        threads = self._threads
        return threads.bridge.wait(lambda: threads.copy(source_thread_id, target_thread_id, user_id))

    async def prune(
        self, thread_ids: Sequence[str], *, strategy: str = "keep_latest", user_id: str | None = None
    ) -> None:
        """Make threads small: `"keep_latest"` keeps the newest checkpoint of each namespace, with what its delta
        channels are rebuilt from; `"delete"` keeps nothing. Each thread is a step of its own.

        Raises:
            CheckpointNotFoundError: one of them does not belong to this user; nothing was changed.
            CheckpointUnavailableError: in an outage, or while the journal holds something of one of them.
        """
        await self._threads.prune(thread_ids, strategy, user_id)

    def prune_sync(
        self, thread_ids: Sequence[str], *, strategy: str = "keep_latest", user_id: str | None = None
    ) -> None:
        """`prune` for code without a loop."""
        threads = self._threads
        threads.bridge.wait(lambda: threads.prune(thread_ids, strategy, user_id))

    async def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints that name these runs (`run_id` in their metadata), in whichever thread they are.

        Only those stay that the delta channels of a later checkpoint are rebuilt from. Every thread is looked at.

        Raises:
            CheckpointUnavailableError: in an outage, or while the journal holds anything.
        """
        await self._threads.delete_for_runs(run_ids)

    def delete_for_runs_sync(self, run_ids: Sequence[str]) -> None:
        """`delete_for_runs` for code without a loop."""
        threads = self._threads
        threads.bridge.wait(lambda: threads.delete_for_runs(run_ids))

    async def mark_completed(self, thread_id: str, *, user_id: str | None = None) -> None:
        """Say that a thread is over, so that retention keeps it for as long as completed ones, from now on.

        When it goes on it is active again. In an outage the mark is journaled.

        Raises:
            CheckpointNotFoundError: there is no such thread.
            CheckpointUnavailableError: in an outage, when nobody knows the thread's newest checkpoint.
        """
        await self._threads.mark(thread_id, COMPLETED, user_id)

    def mark_completed_sync(self, thread_id: str, *, user_id: str | None = None) -> None:
        """`mark_completed` for code without a loop."""
        threads = self._threads
        threads.bridge.wait(lambda: threads.mark(thread_id, COMPLETED, user_id))

    async def mark_failed(self, thread_id: str, *, user_id: str | None = None) -> None:
        """Say that a thread has failed and nobody goes on with it; else as `mark_completed`."""
        await self._threads.mark(thread_id, FAILED, user_id)

    def mark_failed_sync(self, thread_id: str, *, user_id: str | None = None) -> None:
        """`mark_failed` for code without a loop."""
        threads = self._threads
        threads.bridge.wait(lambda: threads.mark(thread_id, FAILED, user_id))

    async def run_retention(self, policy: RetentionPolicy | None = None, *, dry_run: bool = False) -> Sweep:
        """Look at all threads once, delete the old ones and shorten the others; by default as the settings say.

        With `dry_run` nothing is changed, and the result names what would be. Where another process is just at it,
        nothing is done. An outage ends it early, which the result says.
        """
        return await self._threads.retire(policy, dry_run)

    def run_retention_sync(self, policy: RetentionPolicy | None = None, *, dry_run: bool = False) -> Sweep:
        """`run_retention` for code without a loop."""
        threads = self._threads
        return threads.bridge.wait(lambda: threads.retire(policy, dry_run))
