"""What a journal is: an ordered log of operations that were acknowledged and are not yet in the primary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from enhanced_checkpointing.operations import Operation
from enhanced_checkpointing.resilience.deadline import Deadline


class Unknown(Enum):
    """The one value `UNKNOWN`: this process never saw the primary's head."""

    UNKNOWN = "unknown"


UNKNOWN = Unknown.UNKNOWN

BaseHead = str | None | Unknown
"""The primary's newest checkpoint of a namespace when a thread was first journaled; None: it was empty."""


@dataclass(frozen=True, slots=True)
class JournalRecord:
    """One acknowledged operation.

    `sequence` counts all records of the journal without gaps, `thread_sequence` those of one thread; `journaled_at` is
    wall-clock time in seconds; `size` is bytes.
    """

    sequence: int
    thread_sequence: int
    operation: Operation
    base_head: BaseHead
    journaled_at: float
    size: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that the primary refused for good, and why. Its thread stays on the journal until it is mended."""

    record: JournalRecord
    error: str


@dataclass(frozen=True, slots=True)
class JournalStatus:
    """What a journal holds now. Sizes are bytes; `oldest_at` is wall-clock time, None when nothing waits."""

    pending: int
    oldest_at: float | None
    size: int
    capacity: int
    dead_letters: int
    frozen_threads: tuple[str, ...]


class Journal(Protocol):
    """The durable journal and the one in memory keep the same promises; only `durable` tells them apart.

    All methods are called on the manager's event loop. A thread is *held* from the moment an append of its operation
    begins until its last record is marked applied; one with a dead letter stays held, and frozen.
    """

    @property
    def durable(self) -> bool:
        """Whether what is acknowledged survives the process."""

    async def open(self) -> None:
        """Take the journal into use, with what an earlier process left in it."""

    async def append(self, operation: Operation, base_head: BaseHead, deadline: Deadline) -> JournalRecord:
        """Store one operation; it is acknowledged when this returns. While full, wait for room until the deadline.

        Raises:
            JournalFullError: there was no room in time; nothing was stored.
        """

    def holds(self, thread_id: str) -> bool:
        """Whether anything of this thread is in the journal: its operations must not go to the primary then."""

    def is_frozen(self, thread_id: str) -> bool:
        """Whether a dead letter keeps this thread from being drained."""

    def waiting_threads(self) -> Sequence[str]:
        """The threads that can be drained, in the order of their oldest record; frozen ones are left out."""

    async def next_record(self, thread_id: str) -> JournalRecord | None:
        """The oldest record of a thread that is not applied yet; None when there is none, or the thread is frozen."""

    async def records(self, thread_id: str) -> Sequence[JournalRecord]:
        """All records of a thread that are not applied yet, oldest first."""

    async def mark_applied(self, record: JournalRecord) -> None:
        """Forget a record that the primary has committed. Only the oldest record of a thread can be marked."""

    async def bury(self, record: JournalRecord, error: str) -> None:
        """Make a dead letter of the oldest record of a thread, and freeze the thread."""

    def status(self) -> JournalStatus:
        """What the journal holds now, without I/O."""

    async def close(self) -> None:
        """Give everything back. What is still pending stays for the next process, where the journal is durable."""
