"""What a journal holds, thread by thread, and in which order: the same for the journal on disk and the one in memory.

Pure state without I/O: whoever stores a record tells the index of it afterwards.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush, merge
from itertools import accumulate, islice
from operator import itemgetter

from enhanced_checkpointing.errors import JournalFullError
from enhanced_checkpointing.journal.api import UNKNOWN, DeadLetter, JournalEntry, JournalStatus
from enhanced_checkpointing.operations import DeleteThread, Put
from enhanced_checkpointing.resilience.deadline import Deadline, acquire

FEW = 64
"""Outdated places in a heap that are not worth a look."""

SHARE = 4
"""No thread fills more than a quarter of the journal. A record that is larger by itself is taken alone, if it fits."""


@dataclass(eq=False, slots=True)
class _Waiting:
    """A record that waits for room; when it is `granted`, that is reserved, and the result is its thread sequence."""

    thread_id: str
    size: int
    granted: asyncio.Future[int]


@dataclass(slots=True)
class _Held:
    """What the journal has of one thread; `appending` counts records on their way into it.

    `size` is bytes of what this process accepted.
    """

    entries: deque[JournalEntry] = field(default_factory=deque)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    appending: int = 0
    appended: int = 0
    size: int = 0
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
        self.capacity = capacity
        """Bytes that it takes at most."""
        self._held: dict[str, _Held] = {}
        self._frozen: dict[str, _Held] = {}
        """Those of them that are frozen, which they stay."""
        self._oldest_first: list[tuple[float, int, str]] = []
        """A heap: when the oldest record of each thread was journaled, its sequence, the thread; and what once was so.
        The first of it is right whenever nothing is being changed, so that no question looks at every thread."""
        self._sequence = 0
        self.own_size = 0
        """Bytes of what this process accepted."""
        self._adopted: dict[int, int] = {}
        """Bytes of the records that other processes accepted, by sequence: they take no room of this one's."""
        self._adopted_size = 0
        self._pending = 0
        self._waiting: list[_Waiting] = []
        """Those that found no room, in the order in which they came."""
        self._door = asyncio.Lock()
        self._at_door = 0

    # Coming in

    @asynccontextmanager
    async def turn(self, deadline: Deadline) -> AsyncIterator[bool]:
        """Wait for one's turn to prepare what all appends need, in the order of their calls; False: it did not come.

        No call waits for room in here: that would hold up the others.
        """
        self._at_door += 1
        try:
            # Not `locked()`: the lock is free for a moment while it is handed over.
            mine = await (acquire(self._door, deadline) if self._at_door > 1 else self._door.acquire())
            try:
                yield mine
            finally:
                if mine:
                    self._door.release()
        finally:
            self._at_door -= 1

    async def begin(self, thread_id: str, size: int, deadline: Deadline) -> int:
        """Hold a thread for a record that is about to be stored, wait for `size` bytes of room, and reserve them.

        Those of one thread come in the order of their calls. Of several threads the first that fits is next: a record
        that does not lets others pass.

        Returns the thread sequence of the record; `add` or `give_up` must follow.

        Raises:
            JournalFullError: there was no room by the deadline, or never can be.
        """
        if size > self.capacity:
            raise self.full(thread_id, size)
        if self._fits(thread_id, size) and not self._waits(thread_id):
            return self.reserve(thread_id, size)
        waiting = _Waiting(thread_id, size, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        try:
            if not await deadline.wait_for(waiting.granted):
                raise self.full(thread_id, size)
        except BaseException:
            self._waiting.remove(waiting)
            if waiting.granted.done():  # the caller was cancelled at that moment
                self.give_up(thread_id, size)
            else:
                self._let_in()
            raise
        self._waiting.remove(waiting)
        self._let_in()
        return waiting.granted.result()

    def takes_at_once(self, thread_id: str, size: int) -> bool:
        """Whether `begin` would neither wait for room nor overtake what its thread has before it."""
        return not self._at_door and self._fits(thread_id, size) and not self._waits(thread_id)

    def _fits(self, thread_id: str, size: int) -> bool:
        held = self._held.get(thread_id)
        return self.own_size + size <= self.capacity and (
            held is None or not held.size or held.size + size <= self.capacity // SHARE
        )

    def _waits(self, thread_id: str) -> bool:
        return bool(self._waiting) and any(waiting.thread_id == thread_id for waiting in self._waiting)

    def _let_in(self) -> None:
        """Reserve room for those who wait and fit, of each thread only the first: its next comes when that has gone."""
        seen: set[str] = set()
        for waiting in self._waiting:
            first = waiting.thread_id not in seen
            seen.add(waiting.thread_id)
            if first and not waiting.granted.done() and self._fits(waiting.thread_id, waiting.size):
                waiting.granted.set_result(self.reserve(waiting.thread_id, waiting.size))

    def reserve(self, thread_id: str, size: int) -> int:
        """`begin` without a wait, where it `takes_at_once`."""
        held = self._held.setdefault(thread_id, _Held())
        held.appending += 1
        held.appended += 1
        held.size += size
        self.own_size += size
        return held.appended

    def give_up(self, thread_id: str, size: int) -> None:
        """The record that `begin` announced was not stored."""
        held = self._held[thread_id]
        held.appending -= 1
        self._free(held, size)
        self._release(thread_id, held)
        self._let_in()

    def add(self, entry: JournalEntry) -> None:
        """The record that `begin` announced is stored."""
        held = self._held[entry.thread_id]
        held.appending -= 1
        held.entries.append(entry)
        self._pending += 1
        if len(held.entries) == 1:
            self._note_oldest(held)

    def next_of(self, thread_id: str) -> int:
        """The thread sequence of a record of another process; `take_over` must follow."""
        held = self._held.setdefault(thread_id, _Held())
        held.appended += 1
        return held.appended

    def take_over(self, thread_id: str, entries: Sequence[JournalEntry]) -> None:
        """Records that other processes left of a thread which is not being drained.

        They take their places among those that are there by the time when they were written; what was in order stays.
        """
        held = self._held.setdefault(thread_id, _Held())
        merged = merge(_by_time(held.entries), _by_time(entries), key=itemgetter(0))
        held.entries = deque(_knowing(entry for _, entry in merged))
        self._pending += len(entries)
        self._adopted |= {entry.sequence: entry.size for entry in entries}
        self._adopted_size += sum(entry.size for entry in entries)
        self._note_oldest(held)

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
            self._gone(held, entry)
        self._note_oldest(held)
        self._release(thread_id, held)
        self._let_in()

    def dead_letter(self, entry: JournalEntry, error: str) -> None:
        """Make a dead letter of the oldest record of a thread; it takes no room any more."""
        self.check_oldest([entry])
        held = self._held[entry.thread_id]
        held.entries.popleft()
        held.dead_letters.append(DeadLetter(entry, error))
        self._pending -= 1
        self._gone(held, entry)
        self._note_oldest(held)
        self._frozen[entry.thread_id] = held
        self._let_in()

    def damage(self, thread_id: str) -> None:
        """Records of this thread are lost or cannot be read: it is frozen from now on."""
        held = self._frozen[thread_id] = self._held.setdefault(thread_id, _Held())
        held.damaged = True

    def redirect(self, thread_id: str, target: str | None) -> None:
        """What is journaled of a thread goes into `target` from now on, or into the thread itself again."""
        if (held := self._held.get(thread_id)) is not None:
            held.target = target

    def erase(self, thread_id: str, is_gone: Callable[[JournalEntry], bool]) -> list[JournalEntry]:
        """Forget records of a thread that is not being drained, dead letters too, and what was said of its damage."""
        held = self._held.get(thread_id)
        if held is None:
            return []
        letters = [letter.entry for letter in held.dead_letters if is_gone(letter.entry)]
        gone = [entry for entry in held.entries if is_gone(entry)]
        held.dead_letters = [letter for letter in held.dead_letters if letter.entry not in letters]
        held.entries = deque(entry for entry in held.entries if entry not in gone)
        held.damaged = False
        self._pending -= len(gone)
        for entry in gone:
            self._gone(held, entry)
        if not held.frozen:
            self._frozen.pop(thread_id, None)
        self._note_oldest(held)
        self._release(thread_id, held)
        self._let_in()
        return [*letters, *gone]

    # What is known

    def holds(self, thread_id: str) -> bool:
        return thread_id in self._held

    def is_frozen(self, thread_id: str) -> bool:
        held = self._held.get(thread_id)
        return held is not None and held.frozen

    def is_damaged(self, thread_id: str) -> bool:
        held = self._held.get(thread_id)
        return held is not None and held.damaged

    def redirected(self, thread_id: str) -> str | None:
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
        return [letter for held in tuple(self._frozen.values()) for letter in held.dead_letters]

    def status(self, damages: int = 0, error: str | None = None) -> JournalStatus:
        frozen = tuple(self._frozen.items())  # in one step: health and metrics are read from other threads, too
        oldest = self._oldest_first[:1]
        return JournalStatus(
            pending=self._pending,
            oldest_at=oldest[0][0] if oldest else None,
            size=self.own_size + self._adopted_size,
            adopted_size=self._adopted_size,
            capacity=self.capacity,
            dead_letters=sum(len(held.dead_letters) for _, held in frozen),
            frozen_threads=tuple(thread_id for thread_id, _ in frozen),
            damages=damages,
            error=error,
        )

    def _note_oldest(self, held: _Held) -> None:
        """The oldest record of a thread may be another one now."""
        heap = self._oldest_first
        if held.entries:
            first = held.entries[0]
            heappush(heap, (first.journaled_at, first.sequence, first.thread_id))
        while heap and not self._is_oldest(*heap[0][1:]):
            heappop(heap)
        if len(heap) > 2 * len(self._held) + FEW:
            self._oldest_first = [one for one in heap if self._is_oldest(*one[1:])]
            heapify(self._oldest_first)

    def _is_oldest(self, sequence: int, thread_id: str) -> bool:
        held = self._held.get(thread_id)
        return held is not None and bool(held.entries) and held.entries[0].sequence == sequence

    def _oldest(self, held: _Held) -> float:
        sequences = [letter.entry.sequence for letter in held.dead_letters]
        if held.entries:
            sequences.append(held.entries[0].sequence)
        return min(sequences, default=self._sequence)

    def _release(self, thread_id: str, held: _Held) -> None:
        if not held.entries and not held.appending and not held.frozen:
            del self._held[thread_id]

    def _gone(self, held: _Held, entry: JournalEntry) -> None:
        if self._adopted.pop(entry.sequence, None) is None:
            self._free(held, entry.size)
        else:
            self._adopted_size -= entry.size

    def _free(self, held: _Held, size: int) -> None:
        held.size -= size
        self.own_size -= size

    def full(self, thread_id: str, size: int) -> JournalFullError:
        """What a write of `size` bytes is told that found no room."""
        held = self._held.get(thread_id)
        fate = (
            f"this write of {size:,} bytes was not accepted: it is neither in the primary nor in the journal. Nothing "
            "older was dropped. Bring the primary back, or raise CHECKPOINT_JOURNAL_MAX_BYTES."
        )
        if size > self.capacity:
            return JournalFullError(f"The whole journal has room for {self.capacity:,} bytes, so {fate}")
        if held is not None and self.own_size + size <= self.capacity:
            share = f"{self.capacity // SHARE:,}"
            return JournalFullError(
                f"This thread holds {held.size:,} of the {share} bytes that one may take of the journal, so {fate}"
            )
        return JournalFullError(f"The journal holds {self.own_size:,} of {self.capacity:,} bytes, so {fate}")


def _by_time(entries: Iterable[JournalEntry]) -> Iterator[tuple[float, JournalEntry]]:
    """Each entry with when it was journaled, never before those in front of it: a clock may have jumped back."""
    entries = list(entries)
    return zip(accumulate((entry.journaled_at for entry in entries), max), entries, strict=True)


def _knowing(entries: Iterable[JournalEntry]) -> Iterator[JournalEntry]:
    """The same entries, where a deletion knows of every checkpoint in front of it: it means those, too, although the
    process that deleted the thread may not have seen what another one had written."""
    newest = ""
    for entry in entries:
        if entry.name == DeleteThread.name:
            knew = "" if entry.base_head is UNKNOWN or entry.base_head is None else entry.base_head
            if entry.base_head is not UNKNOWN and newest > knew:
                entry = replace(entry, base_head=newest)
            newest = ""
        elif entry.name == Put.name and entry.checkpoint_ns == "":
            newest = max(newest, entry.checkpoint_id or "")
        yield entry
