"""What a journal holds, thread by thread, and in which order: the same for the journal on disk and the one in memory.

Pure state without I/O: whoever stores a record tells the index of it afterwards.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from enhanced_checkpointing.errors import JournalFullError
from enhanced_checkpointing.journal.contract import DeadLetter, JournalEntry, JournalStatus
from enhanced_checkpointing.resilience.deadline import Deadline


@dataclass(slots=True)
class _Held:
    """What the journal has of one thread; `appending` counts records on their way into it."""

    entries: deque[JournalEntry] = field(default_factory=deque)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    appending: int = 0
    appended: int = 0
    damaged: bool = False
    target: str | None = None

    @property
    def frozen(self) -> bool:
        return self.damaged or bool(self.dead_letters)

    @property
    def waits(self) -> bool:
        return bool(self.entries) and not self.frozen


class Index:
    """The one owner of what is pending. `capacity` is bytes."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._held: dict[str, _Held] = {}
        self._sequence = 0
        self._size = 0
        self._pending = 0
        self._room = asyncio.Event()

    # Coming in

    async def begin(self, thread_id: str, size: int, deadline: Deadline) -> int:
        """Hold a thread for a record that is about to be stored, wait for `size` bytes of room, and reserve them.

        Returns the thread sequence of the record; `add` or `give_up` must follow.

        Raises:
            JournalFullError: there was no room by the deadline.
        """
        await self._wait_for_room(size, deadline)
        held = self._held.setdefault(thread_id, _Held())
        held.appending += 1
        held.appended += 1
        self._size += size
        return held.appended

    def give_up(self, thread_id: str, size: int) -> None:
        """The record that `begin` announced was not stored."""
        held = self._held[thread_id]
        held.appending -= 1
        self._freed(size)
        self._release(thread_id, held)

    def add(self, entry: JournalEntry) -> None:
        """The record that `begin` announced is stored."""
        held = self._held[entry.thread_id]
        held.appending -= 1
        held.entries.append(entry)
        self._pending += 1

    def next_of(self, thread_id: str) -> int:
        """The thread sequence of a record of an earlier process; `adopt` or `adopt_letter` must follow."""
        held = self._held.setdefault(thread_id, _Held())
        held.appended += 1
        return held.appended

    def adopt(self, entry: JournalEntry) -> None:
        """A record of an earlier process, which has its place behind those of its thread that were adopted before."""
        self._held[entry.thread_id].entries.append(entry)
        self._pending += 1
        self._size += entry.size

    def adopt_letter(self, letter: DeadLetter) -> None:
        """A dead letter of an earlier process."""
        self._held[letter.entry.thread_id].dead_letters.append(letter)

    def next_sequence(self) -> int:
        """The sequence of the next record."""
        self._sequence += 1
        return self._sequence

    # Going out

    def check_oldest(self, entries: Sequence[JournalEntry]) -> None:
        """See that these are the oldest records of one thread, in their order.

        Raises:
            ValueError: they are not.
        """
        held = self._held.get(entries[0].thread_id)
        if held is None or len(held.entries) < len(entries):
            raise ValueError("these records are not in the journal")
        for entry, oldest in zip(entries, held.entries, strict=False):
            if entry is not oldest:
                raise ValueError(f"record {entry.sequence} is not the oldest of its thread")

    def remove(self, entries: Sequence[JournalEntry]) -> None:
        """The primary has these records: the oldest ones of one thread."""
        self.check_oldest(entries)
        thread_id = entries[0].thread_id
        held = self._held[thread_id]
        for entry in entries:
            held.entries.popleft()
            self._pending -= 1
            self._freed(entry.size)
        self._release(thread_id, held)

    def bury(self, entry: JournalEntry, error: str) -> None:
        """Make a dead letter of the oldest record of a thread; it takes no room any more."""
        self.check_oldest([entry])
        held = self._held[entry.thread_id]
        held.entries.popleft()
        held.dead_letters.append(DeadLetter(entry, error))
        self._pending -= 1
        self._freed(entry.size)

    def damage(self, thread_id: str) -> None:
        """Records of this thread are lost or cannot be read: it is frozen from now on."""
        self._held.setdefault(thread_id, _Held()).damaged = True

    def divert(self, thread_id: str, target: str | None) -> None:
        """What is journaled of a thread goes into `target` from now on, or into the thread itself again."""
        if (held := self._held.get(thread_id)) is not None:
            held.target = target

    # What is known

    def holds(self, thread_id: str) -> bool:
        return thread_id in self._held

    def is_frozen(self, thread_id: str) -> bool:
        held = self._held.get(thread_id)
        return held is not None and held.frozen

    def is_damaged(self, thread_id: str) -> bool:
        held = self._held.get(thread_id)
        return held is not None and held.damaged

    def diverted(self, thread_id: str) -> str | None:
        held = self._held.get(thread_id)
        return held.target if held is not None else None

    def anything_waits(self) -> bool:
        return any(held.waits for held in self._held.values())

    def waiting_threads(self) -> Sequence[str]:
        waiting = [held.entries[0] for held in self._held.values() if held.waits]
        return [entry.thread_id for entry in sorted(waiting, key=lambda entry: entry.sequence)]

    def held_threads(self) -> Sequence[str]:
        return sorted(self._held, key=lambda thread_id: self._oldest(self._held[thread_id]))

    def entries(self, thread_id: str, limit: int | None = None) -> Sequence[JournalEntry]:
        held = self._held.get(thread_id)
        return tuple(islice(held.entries, limit)) if held is not None else ()

    def dead_letters(self) -> Sequence[DeadLetter]:
        return [letter for held in self._held.values() for letter in held.dead_letters]

    def status(self, damages: int = 0, error: str | None = None) -> JournalStatus:
        frozen = tuple(thread_id for thread_id, held in self._held.items() if held.frozen)
        oldest = min((held.entries[0].journaled_at for held in self._held.values() if held.entries), default=None)
        return JournalStatus(
            pending=self._pending,
            oldest_at=oldest,
            size=self._size,
            capacity=self._capacity,
            dead_letters=sum(len(held.dead_letters) for held in self._held.values()),
            frozen_threads=frozen,
            damages=damages,
            error=error,
        )

    @property
    def fill(self) -> float:
        """How full it is, from 0 to 1."""
        return self._size / self._capacity

    def _oldest(self, held: _Held) -> float:
        sequences = [letter.entry.sequence for letter in held.dead_letters]
        if held.entries:
            sequences.append(held.entries[0].sequence)
        return min(sequences, default=self._sequence)

    def _release(self, thread_id: str, held: _Held) -> None:
        if not held.entries and not held.appending and not held.frozen:
            del self._held[thread_id]

    def _freed(self, size: int) -> None:
        self._size -= size
        self._room.set()

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
