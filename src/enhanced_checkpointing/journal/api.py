"""What a journal is: an ordered log of operations that were acknowledged and are not yet in the primary."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from enhanced_checkpointing.errors import CheckpointUnavailableError, quoted
from enhanced_checkpointing.journal.workers import Workers
from enhanced_checkpointing.operations import DeleteThread, Operation
from enhanced_checkpointing.resilience.deadline import Deadline


class Unknown(Enum):
    """The one value `UNKNOWN`: this process never saw the primary's head."""

    UNKNOWN = "unknown"


UNKNOWN = Unknown.UNKNOWN

BaseHead = str | None | Unknown
"""The newest checkpoint of a namespace when an operation was journaled; None: it was empty."""


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """What is known of a record without reading it.

    `sequence` counts all records that this process has seen, in their order, `thread_sequence` those of one thread
    since it was journaled. `checkpoint_ns` and `checkpoint_id` are None for the deletion of a thread. `journaled_at` is
    wall-clock time in seconds; `size` is bytes.
    """

    sequence: int
    thread_sequence: int
    thread_id: str
    name: str
    checkpoint_ns: str | None
    checkpoint_id: str | None
    base_head: BaseHead
    journaled_at: float
    size: int


def entry_of(
    operation: Operation,
    base_head: BaseHead,
    *,
    sequence: int,
    thread_sequence: int,
    journaled_at: float,
    size: int,
) -> JournalEntry:
    """The entry of an operation."""
    return JournalEntry(
        sequence=sequence,
        thread_sequence=thread_sequence,
        thread_id=operation.thread_id,
        name=operation.name,
        checkpoint_ns=None if isinstance(operation, DeleteThread) else operation.checkpoint_ns,
        checkpoint_id=None if isinstance(operation, DeleteThread) else operation.checkpoint_id,
        base_head=base_head,
        journaled_at=journaled_at,
        size=size,
    )


@dataclass(frozen=True, slots=True)
class JournalRecord:
    """One acknowledged operation."""

    entry: JournalEntry
    operation: Operation


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that the primary refused for good, and why. Its thread stays on the journal until it is mended."""

    entry: JournalEntry
    error: str


@dataclass(frozen=True, slots=True)
class JournalStatus:
    """What a journal holds now. Sizes are bytes; `oldest_at` is wall-clock time, None when nothing waits.

    `damages` counts places in its files that were found damaged; `error` says why it cannot be written now.
    `adopted_size` is the part of `size` that other processes accepted, which takes no room of this one's. `foreign` are
    the logs of ended processes that are for other primaries: for each of these its home, and how many.
    """

    pending: int
    oldest_at: float | None
    size: int
    capacity: int
    dead_letters: int
    frozen_threads: tuple[str, ...]
    damages: int = 0
    error: str | None = None
    adopted_size: int = 0
    foreign: tuple[tuple[str, int], ...] = ()


@dataclass(slots=True)
class Appending:
    """An operation on its way into the journal; when it has `ended` well, it has an entry."""

    operation: Operation
    ended: asyncio.Future[None]
    entry: JournalEntry | None = None

    async def stored(self, deadline: Deadline) -> JournalEntry:
        """Wait until the operation is stored, and with that acknowledged.

        Raises:
            CheckpointUnavailableError: the journal could not be written, or did not answer in time.
        """
        if not self.ended.done() and not await deadline.wait_for(self.ended):
            raise CheckpointUnavailableError(
                f"The disk of the journal did not answer in time, so {self.operation.name} on thread "
                f"{quoted(self.operation.thread_id)} is not acknowledged. It may still be stored, and is written to "
                "the primary then; calling again with the same checkpoint is safe."
            )
        self.ended.result()
        assert self.entry is not None
        return self.entry


Undrained = Callable[[str], Awaitable[None]]
"""Returns at a moment when a thread is not being drained."""

Taken = Callable[[str, Sequence[Operation] | None], None]
"""Is told of a thread that was taken over, and all that the journal holds of it; None: that is not known."""


class Journal(Protocol):
    """The durable journal and the one in memory keep the same promises; only `durable` tells them apart.

    All methods are called on the manager's event loop. A thread is *held* from the moment an append of its operation
    begins until its last record is marked applied; one with a dead letter or damage stays held, and frozen.
    """

    @property
    def durable(self) -> bool:
        """Whether what is acknowledged survives the process."""

    @property
    def workers(self) -> Workers | None:
        """What is known of the other workers that share its directory; None: it cannot be shared."""

    async def open(self) -> None:
        """Take the journal into use, with what earlier processes left in it."""

    async def take_over(self, undrained: Undrained, taken: Taken) -> None:
        """Take over what processes left that ended since: each thread when it is `undrained`; `taken` is told.

        What keeps it from that is told to the operator; it is for the next call.
        """

    def begin(self, operation: Operation, base_head: BaseHead) -> Appending | None:
        """Send an operation on its way; None if it would have to wait for others or for room, and is to be appended.

        Raises whatever the serializer raises for metadata that it does not know, and `CheckpointUnavailableError` as
        `append` does for what another worker holds.
        """

    async def append(self, operation: Operation, base_head: BaseHead, deadline: Deadline) -> JournalEntry:
        """Store one operation; it is acknowledged when this returns. While full, wait for room until the deadline.
        What is appended of a thread is stored in the order of the calls. No thread fills more than a quarter of the
        room; a record that does not fit lets those of other threads pass.

        Raises:
            JournalFullError: there was no room in time, or never can be; nothing was stored.
            CheckpointUnavailableError: the journal cannot be written, or did not answer in time; or another worker
                holds the thread, or may have gone on with it.
        """

    def holds(self, thread_id: str) -> bool:
        """Whether anything of this thread is in the journal: its operations must not go to the primary then."""

    def is_frozen(self, thread_id: str) -> bool:
        """Whether a dead letter or damage keeps this thread from being drained."""

    def is_damaged(self, thread_id: str) -> bool:
        """Whether records of this thread are lost or cannot be read."""

    def anything_waits(self) -> bool:
        """Whether any thread can be drained."""

    def waiting_threads(self) -> Sequence[str]:
        """The threads that can be drained, in the order of their oldest record; frozen ones are left out."""

    def held_threads(self) -> Sequence[str]:
        """All threads that are held, in the order of their oldest record."""

    def entries(self, thread_id: str, limit: int | None = None) -> Sequence[JournalEntry]:
        """The records of a thread that are neither applied nor dead letters, oldest first, at most `limit`."""

    def dead_letters(self) -> Sequence[DeadLetter]:
        """All dead letters, in the order of their threads."""

    async def read(self, entries: Sequence[JournalEntry]) -> Sequence[JournalRecord]:
        """The operations of these entries.

        Raises:
            CheckpointCorruptionError: one of them cannot be read; its thread is frozen from then on.
        """

    async def mark_applied(self, entries: Sequence[JournalEntry]) -> None:
        """Forget records that the primary has committed: the oldest ones of one thread. Durable when this returns.

        Raises:
            CheckpointUnavailableError: the mark could not be stored; the records stay, to be applied again.
        """

    async def dead_letter(self, entry: JournalEntry, error: str) -> None:
        """Make a dead letter of the oldest record of a thread, and freeze the thread."""

    async def redirect(self, thread_id: str, target: str) -> None:
        """Remember that what is journaled of a thread goes into the thread `target`, until none of it is left."""

    def redirected(self, thread_id: str) -> str | None:
        """The thread that takes what is journaled of this one, once that was decided."""

    @property
    def identities(self) -> Collection[str]:
        """Of the files that this process writes, or has taken over."""

    def forget(self, thread_id: str, is_gone: Callable[[JournalEntry], bool]) -> int:
        """Forget records of a thread that is not being drained, dead letters too, and its damage; returns how many.
        Until `rewrite` the disk still has them."""

    async def rewrite(self) -> None:
        """Write what is needed anew, so that the disk has nothing of what was forgotten or is done.

        Raises:
            CheckpointUnavailableError: it still has some of that; it may be tried again.
        """

    async def check(self) -> None:
        """Write, read back and remove a record that means nothing.

        Raises:
            CheckpointUnavailableError: the journal could not take an operation now.
        """

    def status(self) -> JournalStatus:
        """What the journal holds now, without I/O."""

    async def close(self) -> None:
        """Give everything back. What is still pending stays for the next process, where the journal is durable."""
