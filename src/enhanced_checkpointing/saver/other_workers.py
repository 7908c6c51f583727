"""Waiting for what other workers on this machine hold of a thread, and refusing what they may have gone on with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

from enhanced_checkpointing.errors import CheckpointUnavailableError
from enhanced_checkpointing.journal.workers import Workers
from enhanced_checkpointing.resilience.breaker import Breaker
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.resilience.failures import unavailable

GLANCE = 0.02
"""Seconds between looks at whether another worker still holds a thread."""

LEFT_OVER = 0.2
"""The share of its deadline that a call keeps for the primary, in which other workers are not waited for."""


class OtherWorkers:
    """Asks `workers` for one engine. `take_over` adopts what ended workers left, unless it has just done so."""

    def __init__(self, workers: Workers, breaker: Breaker) -> None:
        self.known = workers
        self.hold = workers.held_elsewhere
        self.take_over: Callable[[Deadline], Awaitable[None]] = _nobody_takes_over
        self._breaker = breaker
        self._waiting: dict[str | None, asyncio.Task[None]] = {}

    async def let_go(self, thread_id: str | None, deadline: Deadline, *, frozen: bool = True) -> bool:
        """Wait until no other worker holds a thread, or for None any; False: one does, and is not waited for longer.
        In an outage it could not drain: only what ended workers left is taken over then.

        Calls of one thread go on in the order in which they came.
        """
        spared = LEFT_OVER * deadline.seconds
        while self.hold(thread_id, frozen=frozen) and deadline.remaining() > spared:
            waiting = self._waiting.get(thread_id)
            if waiting is None:
                waiting = asyncio.create_task(self._wait(thread_id, deadline, frozen), name="other workers")
                self._waiting[thread_id] = waiting
                waiting.add_done_callback(lambda _: self._waiting.pop(thread_id, None))
            await deadline.sparing(spared).wait_for(waiting)
            if waiting.cancelled() or self._breaker.is_open:
                break
            if waiting.done():
                waiting.result()
        return not self.hold(thread_id, frozen=frozen)

    async def _wait(self, thread_id: str | None, deadline: Deadline, frozen: bool) -> None:
        while deadline.remaining() > LEFT_OVER * deadline.seconds:
            await self.take_over(deadline)
            if not self.hold(thread_id, frozen=frozen) or self._breaker.is_open:
                return
            await asyncio.sleep(GLANCE)

    def refuse(self, thread_id: str, *, grows: bool = True) -> None:
        """Refuse what other workers hold, and what is known of a thread if they may have gone on with it.

        Raises:
            CheckpointUnavailableError: it is so.
        """
        try:
            self.known.check(thread_id, grows=grows)
        except CheckpointUnavailableError as error:
            raise unavailable(str(error), "Nothing is lost; try again, or ask that process.") from None

    def changed(self, thread_ids: Collection[str] | None) -> None:
        self.known.note_changed(thread_ids)

    async def close(self) -> None:
        """End the waiting: calls that wait are refused."""
        waiting = list(self._waiting.values())
        for task in waiting:
            task.cancel()
        if waiting:
            await asyncio.wait(waiting)


async def _nobody_takes_over(deadline: Deadline) -> None:
    """By default no orphaned journals are taken over."""
