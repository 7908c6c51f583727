"""Keeps away what any process of the journal's directory has erased: from this process's warm copy and its journal."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from enhanced_checkpointing.errors import CheckpointUnavailableError, redact
from enhanced_checkpointing.journal.api import Journal, JournalEntry
from enhanced_checkpointing.operations import DeleteThread
from enhanced_checkpointing.resilience.cooperative import in_thread_of_its_own
from enhanced_checkpointing.saver.owner_check import OwnerCheck
from enhanced_checkpointing.standby.cache import Standby
from enhanced_checkpointing.tombstones import Tombstones


class ErasedThreads:
    """Honours tombstones, on the manager's loop. `undrained` waits until a thread is not being drained; `tell` hears of
    tombstones that cannot be read within `seconds`."""

    def __init__(
        self,
        tombstones: Tombstones,
        owners: OwnerCheck,
        standby: Standby,
        journal: Journal | None,
        *,
        undrained: Callable[[str], Awaitable[None]],
        tell: Callable[[str], None],
        seconds: float,
    ) -> None:
        self.tombstones = tombstones
        self._owners = owners
        self._standby = standby
        self._journal = journal
        self._undrained = undrained
        self._tell = tell
        self._seconds = seconds
        self._unread = True
        self._is_blind = False
        """What was erased could not be read at the last look."""
        self.behind = False
        """The disk still has what the journal has forgotten."""

    async def look(self) -> None:
        """Honour what other processes have erased since the last look."""
        if await self._refreshed() and self.tombstones.has_any:
            known = {*self._standby.thread_ids(), *(self._journal.held_threads() if self._journal else ())}
            await self.forget([one for one in known if self.tombstones.erased_at(one) is not None], rewrite=True)
        elif self.behind:
            await self._rewrite()

    async def before_drain(self, thread_id: str) -> bool:
        """Honour it for a thread that is about to be drained, by the drain itself; False: what was erased cannot be
        read, so that nothing may be drained."""
        refreshed = await self._refreshed()
        if refreshed is None:
            return False
        if refreshed:
            self._unread = True  # the others are looked at by the next look
        if self.tombstones.erased_at(thread_id) is not None and self._drop(thread_id):
            await self._rewrite()
        return True

    async def _refreshed(self) -> bool | None:
        """Whether there is news of what was erased; None if that cannot be read."""
        if self.tombstones.directory is None:
            return False
        reading = asyncio.ensure_future(in_thread_of_its_own(self.tombstones.refresh, "read what was erased"))
        done, _ = await asyncio.wait({reading}, timeout=self._seconds)
        error = reading.exception() if done else TimeoutError("the disk does not answer")
        if error is not None:
            if not self._is_blind:
                self._tell(
                    f"What was erased cannot be read ({redact(error)}), so nothing of the journal is drained: it might "
                    "bring back what was erased. Mend the file .erased in CHECKPOINT_JOURNAL_DIR"
                )
            self._is_blind = self._unread = True
            return None
        unread, self._unread, self._is_blind = self._unread, False, False
        return reading.result() or unread

    async def forget(self, thread_ids: Sequence[str], *, rewrite: bool) -> int:
        """Forget what this process has of erased threads; returns how many records of its journal that were."""
        count = 0
        for thread_id in thread_ids:
            await self._undrained(thread_id)
            count += self._drop(thread_id)
        if rewrite or count:
            await self._rewrite()
        return count

    def _drop(self, thread_id: str) -> int:
        at = self.tombstones.erased_at(thread_id) or 0.0

        def is_gone(entry: JournalEntry) -> bool:
            if entry.name == DeleteThread.name:
                return False  # it does no harm, and is what erases the thread in the database
            base = entry.base_head if isinstance(entry.base_head, str) else None
            return entry.journaled_at <= at or self.tombstones.forbids(thread_id, entry.checkpoint_id, base)

        self._owners.forget([thread_id])
        self._standby.forget(thread_id)
        return self._journal.forget(thread_id, is_gone) if self._journal is not None else 0

    async def _rewrite(self) -> None:
        if self._journal is None:
            return
        try:
            await self._journal.rewrite()
            self.behind = False
        except CheckpointUnavailableError:
            self.behind = True
