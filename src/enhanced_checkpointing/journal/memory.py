"""The journal without the disk: the same contract, gone with the process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence

from enhanced_checkpointing.journal.api import (
    Appending,
    BaseHead,
    DeadLetter,
    JournalEntry,
    JournalRecord,
    JournalStatus,
    Taken,
    Undrained,
    entry_of,
)
from enhanced_checkpointing.journal.index import Index
from enhanced_checkpointing.journal.workers import Workers
from enhanced_checkpointing.operations import Operation, frozen_size
from enhanced_checkpointing.resilience.deadline import Deadline


class MemoryJournal:
    """Keeps records in memory, up to `capacity` bytes. Never durable: what is pending when the process ends is lost."""

    durable = False
    workers: Workers | None = None
    identities: Collection[str] = ()

    def __init__(self, capacity: int, wall_clock: Callable[[], float] = time.time) -> None:
        self._wall_clock = wall_clock
        self._index = Index(capacity)
        self._operations: dict[int, Operation] = {}
        self.holds = self._index.holds
        self.is_frozen = self._index.is_frozen
        self.is_damaged = self._index.is_damaged
        self.anything_waits = self._index.anything_waits
        self.waiting_threads = self._index.waiting_threads
        self.held_threads = self._index.held_threads
        self.entries = self._index.entries
        self.dead_letters: Callable[[], Sequence[DeadLetter]] = self._index.dead_letters
        self.redirected = self._index.redirected

    async def open(self) -> None:
        """Nothing to do: a new journal in memory is empty."""

    async def take_over(self, undrained: Undrained, taken: Taken) -> None:
        """Nothing to do: nobody leaves anything in memory."""

    def begin(self, operation: Operation, base_head: BaseHead) -> Appending | None:
        size = frozen_size(operation)
        if not self._index.takes_at_once(operation.thread_id, size):
            return None
        appending = Appending(operation, asyncio.get_running_loop().create_future())
        appending.ended.set_result(None)
        appending.entry = self._add(operation, base_head, size, self._index.reserve(operation.thread_id, size))
        return appending

    async def append(self, operation: Operation, base_head: BaseHead, deadline: Deadline) -> JournalEntry:
        size = frozen_size(operation)
        thread_sequence = await self._index.begin(operation.thread_id, size, deadline)
        return self._add(operation, base_head, size, thread_sequence)

    def _add(self, operation: Operation, base_head: BaseHead, size: int, thread_sequence: int) -> JournalEntry:
        entry = entry_of(
            operation,
            base_head,
            sequence=self._index.next_sequence(),
            thread_sequence=thread_sequence,
            journaled_at=self._wall_clock(),
            size=size,
        )
        self._operations[entry.sequence] = operation.replayable().detached()
        self._index.add(entry)
        return entry

    async def read(self, entries: Sequence[JournalEntry]) -> Sequence[JournalRecord]:
        return [JournalRecord(entry, self._operations[entry.sequence]) for entry in entries]

    async def mark_applied(self, entries: Sequence[JournalEntry]) -> None:
        self._index.remove(entries)
        for entry in entries:
            del self._operations[entry.sequence]

    async def dead_letter(self, entry: JournalEntry, error: str) -> None:
        self._index.dead_letter(entry, error)

    async def redirect(self, thread_id: str, target: str) -> None:
        self._index.redirect(thread_id, target)

    def forget(self, thread_id: str, is_gone: Callable[[JournalEntry], bool]) -> int:
        gone = self._index.erase(thread_id, is_gone)
        for entry in gone:
            del self._operations[entry.sequence]
        return len(gone)

    async def rewrite(self) -> None:
        """Nothing to do: what is forgotten is nowhere."""

    async def check(self) -> None:
        """Memory can always be written."""

    def status(self) -> JournalStatus:
        return self._index.status()

    async def close(self) -> None:
        """Nothing to give back; the manager says how much is lost."""
