"""The journal without the disk: the same contract, gone with the process."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from enhanced_checkpointing.errors import JournalFullError
from enhanced_checkpointing.journal.contract import BaseHead, DeadLetter, JournalRecord, JournalStatus
from enhanced_checkpointing.operations import Operation, frozen_size
from enhanced_checkpointing.resilience.deadline import Deadline


@dataclass(slots=True)
class _Held:
    """What the journal has of one thread."""

    records: deque[JournalRecord] = field(default_factory=deque)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    appended: int = 0


class MemoryJournal:
    """Keeps records in memory, up to `capacity` bytes. Never durable: what is pending when the process ends is lost."""

    durable = False

    def __init__(self, capacity: int, wall_clock: Callable[[], float] = time.time) -> None:
        self._capacity = capacity
        self._wall_clock = wall_clock
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._sequence = 0
        self._size = 0
        self._pending = 0
        self._room: asyncio.Event = asyncio.Event()

    async def open(self) -> None:
        """Nothing to do: a new journal in memory is empty."""

    async def append(self, operation: Operation, base_head: BaseHead, deadline: Deadline) -> JournalRecord:
        size = frozen_size(operation)
        await self._wait_for_room(size, deadline)
        held = self._held.setdefault(operation.thread_id, _Held())
        self._sequence += 1
        held.appended += 1
        record = JournalRecord(
            self._sequence, held.appended, operation.replayable(), base_head, self._wall_clock(), size
        )
        held.records.append(record)
        self._size += size
        self._pending += 1
        return record

    def holds(self, thread_id: str) -> bool:
        return thread_id in self._held

    def is_frozen(self, thread_id: str) -> bool:
        held = self._held.get(thread_id)
        return held is not None and bool(held.dead_letters)

    def waiting_threads(self) -> Sequence[str]:
        waiting = [held.records[0] for held in self._held.values() if held.records and not held.dead_letters]
        return [record.operation.thread_id for record in sorted(waiting, key=lambda record: record.sequence)]

    async def next_record(self, thread_id: str) -> JournalRecord | None:
        held = self._held.get(thread_id)
        return held.records[0] if held is not None and held.records and not held.dead_letters else None

    async def records(self, thread_id: str) -> Sequence[JournalRecord]:
        held = self._held.get(thread_id)
        return tuple(held.records) if held is not None else ()

    async def mark_applied(self, record: JournalRecord) -> None:
        held = self._take(record)
        if not held.records and not held.dead_letters:
            del self._held[record.operation.thread_id]

    async def bury(self, record: JournalRecord, error: str) -> None:
        self._take(record).dead_letters.append(DeadLetter(record, error))

    def dead_letters(self) -> Sequence[DeadLetter]:
        """All dead letters, in the order of their threads."""
        return [letter for held in self._held.values() for letter in held.dead_letters]

    def status(self) -> JournalStatus:
        frozen = tuple(thread_id for thread_id, held in self._held.items() if held.dead_letters)
        oldest = min((held.records[0].journaled_at for held in self._held.values() if held.records), default=None)
        return JournalStatus(
            pending=self._pending,
            oldest_at=oldest,
            size=self._size,
            capacity=self._capacity,
            dead_letters=sum(len(held.dead_letters) for held in self._held.values()),
            frozen_threads=frozen,
        )

    async def close(self) -> None:
        """Nothing to give back; the manager says how much is lost."""

    def _take(self, record: JournalRecord) -> _Held:
        held = self._held[record.operation.thread_id]
        if held.records[0] is not record:
            raise ValueError(f"record {record.sequence} is not the oldest of its thread")
        held.records.popleft()
        self._pending -= 1
        self._size -= record.size
        self._room.set()
        return held

    async def _wait_for_room(self, size: int, deadline: Deadline) -> None:
        while self._size + size > self._capacity:
            self._room.clear()
            room = asyncio.ensure_future(self._room.wait())
            try:
                if not await deadline.wait_for(room):
                    raise JournalFullError(
                        f"The journal holds {self._size:,} of {self._capacity:,} bytes, so this write of {size:,} "
                        "bytes was not accepted: it is neither in the primary nor in the journal. Nothing older was "
                        "dropped. Bring the primary back, or raise CHECKPOINT_JOURNAL_MAX_BYTES."
                    )
            finally:
                room.cancel()
