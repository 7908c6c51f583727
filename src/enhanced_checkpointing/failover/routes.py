"""Where an operation goes next, decided without I/O, and the queue of each thread in which it waits for its turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum

from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.resilience.failure_kinds import FailureKind

HAND_OVER_SECONDS = 0.045
"""How long past its deadline a call waits for the one in front of it; it may be 0.1 s late in all."""


class Route(Enum):
    """Where the operations of a thread go: to the journal while it holds anything of that thread, else the primary."""

    PRIMARY = "primary"
    JOURNAL = "journal"


class Verdict(Enum):
    """What becomes of an operation that the primary did not take."""

    JOURNAL = "journal"
    RAISE = "raise"
    UNAVAILABLE = "unavailable"


def route_of(*, breaker_open: bool, journal_holds: bool) -> Route:
    """Nothing of a thread goes to the primary while the journal holds anything of it, so that order is kept."""
    return Route.JOURNAL if breaker_open or journal_holds else Route.PRIMARY


def after_failed_write(kind: FailureKind, *, may_journal: bool) -> Verdict:
    """The caller's own faults and damaged data are raised; all else is kept in the journal, if there is one."""
    if kind in (FailureKind.DATA, FailureKind.CORRUPTION):
        return Verdict.RAISE
    return Verdict.JOURNAL if may_journal else Verdict.UNAVAILABLE


def after_failed_read(kind: FailureKind) -> Verdict:
    """What the primary cannot answer now, the standby may; a saturated pool must not serve a copy that may be old."""
    if kind in (FailureKind.DATA, FailureKind.CORRUPTION):
        return Verdict.RAISE
    return Verdict.UNAVAILABLE if kind is FailureKind.SATURATED else Verdict.JOURNAL


@dataclass(slots=True)
class _Lane:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class Lanes:
    """One queue per thread: its operations are settled, at the primary or in the journal, one after another.

    A lane exists only while somebody is in it, so a million quiet threads cost nothing.
    """

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane] = {}

    def __len__(self) -> int:
        return len(self._lanes)

    @asynccontextmanager
    async def turn(self, thread_id: str, deadline: Deadline) -> AsyncIterator[None]:
        """Wait for this thread's turn, first come first served.

        Raises:
            TimeoutError: the deadline was over before the turn came.
        """
        lane = self._lanes.setdefault(thread_id, _Lane())
        lane.users += 1
        try:
            if lane.users > 1:  # not `locked()`: the lock is free for a moment while it is handed over
                await _acquire(lane.lock, deadline)
            else:
                await lane.lock.acquire()
            try:
                yield
            finally:
                lane.lock.release()
        finally:
            lane.users -= 1
            if lane.users == 0:
                del self._lanes[thread_id]


async def _acquire(lock: asyncio.Lock, deadline: Deadline) -> None:
    acquiring = asyncio.ensure_future(lock.acquire())
    try:
        if await deadline.wait_for(acquiring):
            return
        # The call in front has the same deadline and is just being journaled: it hands over within a moment.
        await asyncio.wait({acquiring}, timeout=HAND_OVER_SECONDS)
    except asyncio.CancelledError:
        if not acquiring.cancel() and not acquiring.cancelled():
            lock.release()
        raise
    if not acquiring.done():
        acquiring.cancel()
        raise TimeoutError("another call of this thread did not end in time")
