"""Takes over what processes leave that end while this one runs, so that nothing waits for the next start."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from enhanced_checkpointing.errors import CheckpointerError
from enhanced_checkpointing.journal.api import UNKNOWN, BaseHead, Journal, JournalEntry
from enhanced_checkpointing.operations import Operation, Put
from enhanced_checkpointing.resilience.breaker import Clock
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.standby.cache import Standby

LOOK_SECONDS = 2.0
"""The shortest time between two looks: each of them asks for the lock of every other process's log."""

CALL_LOOK_SECONDS = 0.25
"""The same where calls wait for what an ended process may have held."""

WARM_TOGETHER = 64
"""Records that are read at once."""


async def warm_from(journal: Journal, standby: Standby) -> None:
    """Let the warm copy know what earlier processes journaled: nobody else can tell it before that is drained.

    Threads of which records may be lost stay cold: what is left of them must not be taken for all.
    """
    refused: dict[str, list[JournalEntry]] = {}
    for letter in journal.dead_letters():
        refused.setdefault(letter.entry.thread_id, []).append(letter.entry)
    for thread_id in journal.held_threads():
        entries = [*refused.get(thread_id, ()), *journal.entries(thread_id)]
        for start in range(0, len(entries), WARM_TOGETHER):
            if journal.is_damaged(thread_id):
                standby.forget(thread_id)
                break
            try:
                records = await journal.read(entries[start : start + WARM_TOGETHER])
            except CheckpointerError:
                standby.forget(thread_id)  # the journal has said why
                break
            for record in records:
                standby.apply(record.operation)


def set_right(standby: Standby, thread_id: str, operations: Sequence[Operation] | None) -> None:
    """Let the warm copy of a thread be what another process journaled; None: that cannot be told.

    What this process knew of it is older, or another branch. Where that has shown a newer checkpoint, the thread stays
    cold until it is drained: what it shows must not go backwards.
    """
    puts = [operation for operation in operations or () if isinstance(operation, Put)]
    shown = [standby.base_head(put) for put in puts]
    standby.forget(thread_id)
    for operation in operations or ():
        standby.apply(operation)
    if any(_is_newer(before, standby.base_head(put)) for before, put in zip(shown, puts, strict=True)):
        standby.forget(thread_id)


def _is_newer(one: BaseHead, other: BaseHead) -> bool:
    return one not in (None, UNKNOWN) and other not in (None, UNKNOWN) and str(one) > str(other)


class Takeover:
    """Looks when it is told to; a disk that does not answer within `seconds` is not waited for.

    A write of such a thread may be with the primary just then. It is safe there, and what was taken over grew without
    it: the drain compares the primary's head with the one that the oldest record grew from, and finds two branches,
    which are kept and reported. What is written from now on is journaled, behind what was taken over.
    """

    def __init__(
        self,
        journal: Journal,
        standby: Standby,
        clock: Clock,
        seconds: float,
        *,
        undrained: Callable[[str], Awaitable[None]],
        wake: Callable[[], None],
    ) -> None:
        self._journal = journal
        self._standby = standby
        self._clock = clock
        self._seconds = seconds
        self._undrained = undrained
        self._wake = wake
        self._looked_at = clock()
        self._looking: asyncio.Task[None] | None = None

    async def look(self) -> None:
        """Take over what is there, unless the last look was just now, or goes on."""
        await self._look_again(LOOK_SECONDS, Deadline(self._clock, self._seconds))

    async def take_over(self, deadline: Deadline) -> None:
        """The same for a call that waits for a thread, which an ended process may have held."""
        await self._look_again(CALL_LOOK_SECONDS, deadline)

    async def _look_again(self, every: float, deadline: Deadline) -> None:
        looking = self._looking
        if looking is None:
            if self._clock() - self._looked_at < every:
                return
            looking = self._looking = asyncio.create_task(self._look(), name="takeover")
        if await deadline.wait_for(looking) and self._looking is looking:
            self._looking = None
            self._looked_at = self._clock()
            looking.result()

    async def close(self) -> None:
        """End a look under way; what it has not taken stays for the next process."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})

    async def _look(self) -> None:
        await self._journal.take_over(
            self._undrained, lambda thread_id, operations: set_right(self._standby, thread_id, operations)
        )
        if self._journal.anything_waits():
            self._wake()
