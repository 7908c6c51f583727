"""Which threads are drained, and when: what waits in the journal goes to the recovered primary, thread by thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator

from enhanced_checkpointing.backends.contract import Backend
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.journal.api import Journal
from enhanced_checkpointing.observability.events import Telemetry
from enhanced_checkpointing.resilience.breaker import Breaker, Clock
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.resilience.guard import Guard
from enhanced_checkpointing.serialization import SharingSerializer
from enhanced_checkpointing.standby.cache import Standby
from enhanced_checkpointing.upkeep.branches import Branches
from enhanced_checkpointing.upkeep.drain_calls import DrainCalls
from enhanced_checkpointing.upkeep.replay import Drain, Replay

SHORTEST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
"""Seconds between passes while the primary takes calls but refuses to be drained."""


class Reconciler:
    """The only one who writes to the primary on behalf of a thread that the journal holds."""

    def __init__(
        self,
        *,
        config: CheckpointerConfig,
        backend: Backend,
        guard: Guard,
        breaker: Breaker,
        journal: Journal,
        standby: Standby,
        serializer: SharingSerializer,
        telemetry: Telemetry,
        on_drained: Callable[[], None],
        on_quarantined: Callable[[str], None] = lambda _: None,
        on_thread_drained: Callable[[str], None] = lambda _: None,
        live_calls: Callable[[], int] = lambda: 0,
        clock: Clock = time.monotonic,
    ) -> None:
        self._config = config
        self._breaker = breaker
        self._journal = journal
        self._on_drained = on_drained
        self._clock = clock
        calls = DrainCalls(backend, guard, clock, config.deadline)
        self._branches = Branches(
            backend=backend,
            calls=calls,
            journal=journal,
            serializer=serializer,
            telemetry=telemetry,
            apart=config.on_divergence == "quarantine",
            on_quarantined=on_quarantined,
        )
        self._replay = Replay(
            backend=backend,
            calls=calls,
            branches=self._branches,
            journal=journal,
            standby=standby,
            telemetry=telemetry,
            on_drained=on_thread_drained,
            live_calls=live_calls,
            clock=clock,
        )
        self._woken = asyncio.Event()
        self._changed = asyncio.Event()
        self.before_drain: Callable[[str], Awaitable[bool]] = _nothing_first
        """Awaited before each drain of a thread; False: nothing may be drained now."""
        self._draining: dict[str, asyncio.Task[Drain]] = {}

    @property
    def drained(self) -> int:
        """Operations replayed so far."""
        return self._replay.operations

    @property
    def dead_letters(self) -> int:
        """Operations so far that the primary refused for good."""
        return self._replay.dead_letters

    @property
    def divergences(self) -> int:
        """Threads of which the primary had another branch so far."""
        return self._branches.diverged

    def wake(self) -> None:
        """There is something to drain, or the primary is back: whoever closes the breaker wakes again."""
        if not self._breaker.is_open:
            self._woken.set()

    async def run(self) -> None:
        """Drain for ever, whenever there is something to drain and the primary takes calls."""
        pause = SHORTEST_PAUSE
        while True:
            pause = await self._drain_once(pause)

    async def _drain_once(self, pause: float) -> float:
        """Drain as soon as there is a reason to; returns the pause after the next time that something stays behind."""
        if self._breaker.is_open or not self._journal.anything_waits():
            if not await self._is_woken():
                return SHORTEST_PAUSE
            pause = SHORTEST_PAUSE
        if await self.drain_all() or self._breaker.is_open:
            return SHORTEST_PAUSE
        await asyncio.sleep(pause)
        return min(2 * pause, LONGEST_PAUSE)

    async def _is_woken(self) -> bool:
        """Wait until somebody wakes this one, but not for ever: a record that its disk took too late for its caller is
        stored without anybody telling."""
        woken = asyncio.ensure_future(self._woken.wait())
        try:
            await asyncio.wait({woken}, timeout=LONGEST_PAUSE)
        finally:
            woken.cancel()
        was_woken = self._woken.is_set()
        self._woken.clear()
        return was_woken

    async def drain_all(self) -> bool:
        """Drain what waits now, several threads at a time, oldest first; True when nothing is left waiting."""
        waiting = iter(self._journal.waiting_threads())
        await asyncio.gather(*(self._drain_each(waiting) for _ in range(self._config.drain_concurrency)))
        done = not self._breaker.is_open and not self._journal.anything_waits()
        if done:
            self._on_drained()
        return done

    async def drain_first(self, thread_id: str, deadline: Deadline) -> bool:
        """Drain one thread ahead of the others, for a read that waits; True when the journal holds nothing of it."""
        if not self._breaker.is_open:
            await deadline.wait_for(self._start(thread_id))
        return not self._journal.holds(thread_id)

    async def wait_drained(self, timeout: float) -> bool:
        """Wait until nothing waits to be drained; False when `timeout` seconds were over before, or a thread froze."""
        deadline = Deadline(self._clock, timeout)
        while self._draining or self._journal.anything_waits():
            self._changed.clear()
            changed = asyncio.ensure_future(self._changed.wait())
            try:
                if not await deadline.wait_for(changed):
                    return False
            finally:
                changed.cancel()
        return self._journal.status().pending == 0 and not self._journal.status().frozen_threads

    async def undrained(self, thread_id: str) -> None:
        """Return at a moment when a thread is not being drained."""
        while (draining := self._draining.get(thread_id)) is not None:
            await asyncio.wait({draining})

    async def close(self) -> None:
        """End drains under way; a record that is just being replayed stays in the journal and is replayed again."""
        draining = list(self._draining.values())
        for task in draining:
            task.cancel()
        if draining:
            await asyncio.wait(draining)

    async def _drain_each(self, waiting: Iterator[str]) -> None:
        for thread_id in waiting:
            if self._breaker.is_open or await asyncio.shield(self._start(thread_id)) is Drain.PAUSED:
                return

    def _start(self, thread_id: str) -> asyncio.Task[Drain]:
        """Drain a thread once, however many ask for it at the same time."""
        task = self._draining.get(thread_id)
        if task is None:
            task = asyncio.create_task(self._drain(thread_id), name=f"drain {thread_id}")
            self._draining[thread_id] = task
            task.add_done_callback(lambda _: self._ended(thread_id))
        return task

    async def _drain(self, thread_id: str) -> Drain:
        return await self._replay.drain(thread_id) if await self.before_drain(thread_id) else Drain.PAUSED

    def _ended(self, thread_id: str) -> None:
        del self._draining[thread_id]
        self._changed.set()


async def _nothing_first(_: str) -> bool:
    """By default a thread is drained as it is."""
    return True
