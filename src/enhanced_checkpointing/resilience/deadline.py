"""One total deadline per call, and waiting for a task until then without ever waiting for its cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

from enhanced_checkpointing.resilience.breaker import Clock

LOOK_EVERY = 0.25
"""Seconds between looks at the clock while a call waits; short enough to see that the event loop stood still."""

STALL = 0.05
"""A wake-up that comes this many seconds late means that the event loop stood still, not that the server is slow."""


MOMENT = 0.001
"""Seconds that are not worth a wait of their own; a clock may not even tell them."""

TICK = 0.005
"""Seconds by which a shared timer may be late: a twentieth of what a call may be."""

NEVER = float("inf")

Wake = Callable[[], None]


class Alarm:
    """Wakes whoever waits when their time is over, at most a tick late. All of them, on one event loop, share one timer
    of it: a wait that ends well ends long before, and a timer of its own is one of the dearest things about a call."""

    def __init__(self) -> None:
        self._waiting: dict[int, dict[Wake, None]] = {}
        """By the tick at which their time is over."""
        self._next = NEVER
        """The tick at which the timer rings."""
        self._timer: asyncio.TimerHandle | None = None

    def set(self, wake: Wake, seconds: float) -> Callable[[], object]:
        """Call `wake` once in so many seconds, unless what this returns is called before."""
        loop = asyncio.get_running_loop()
        tick = int((loop.time() + seconds) / TICK) + 1
        waiting = self._waiting.get(tick)
        if waiting is None:
            waiting = self._waiting[tick] = {}
            if tick < self._next:
                self._arm(loop, tick)
        waiting[wake] = None
        return partial(waiting.pop, wake, None)

    def _arm(self, loop: asyncio.AbstractEventLoop, tick: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = tick
        self._timer = loop.call_at(tick * TICK, self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        now = max(self._next, loop.time() / TICK)
        self._next, self._timer = NEVER, None
        over = [waiting for tick, waiting in self._waiting.items() if tick <= now]
        self._waiting = {tick: waiting for tick, waiting in self._waiting.items() if tick > now and waiting}
        for waiting in over:
            for wake in waiting:
                wake()
        if self._waiting:
            self._arm(loop, min(self._waiting))


class Deadline:
    """The end of one call: everything it waits for, locks, pool and retries, shares it.

    Time in which the event loop stood still is not charged: the answer may have been there all along.
    """

    __slots__ = ("_clock", "_ends_at", "_excused_until", "_whole", "seconds", "stalled")

    def __init__(self, clock: Clock, seconds: float, whole: Deadline | None = None) -> None:
        self._clock = clock
        self._whole = whole
        self.seconds = seconds
        self._excused_until = clock()
        """When it began, or the last standstill that was excused ended."""
        self._ends_at = self._excused_until + seconds
        self.stalled = 0.0

    @staticmethod
    def first(deadlines: Sequence[Deadline]) -> Deadline:
        """The one that is over first."""
        return min(deadlines, key=attrgetter("_ends_at"))

    def sparing(self, seconds: float) -> Deadline:
        """An earlier deadline, which leaves `seconds` of this one for what comes after."""
        earlier = Deadline(self._clock, max(0.0, self.remaining() - seconds), whole=self)
        earlier.seconds = self.seconds
        return earlier

    def remaining(self) -> float:
        """Seconds left, never below zero."""
        return max(0.0, self._ends_at - self._clock())

    def now_and_left(self) -> tuple[float, float]:
        """The clock's time, and the seconds left, which may be below zero."""
        now = self._clock()
        return now, self._ends_at - now

    def overdue(self) -> float:
        """Seconds since the end, below zero before it."""
        return self._clock() - self._ends_at

    def time(self) -> float:
        """The clock's time, to compare moments of different calls."""
        return self._clock()

    def now(self) -> float:
        """The clock's time less all stalls: differences of it measure the backend, not the event loop."""
        return self._clock() - self.stalled

    def excuse(self, seconds: float) -> None:
        """Put the end off by `seconds` in which the event loop stood still."""
        self.stalled += seconds
        self._ends_at += seconds
        self._excused_until = self._clock()
        if self._whole is not None:
            self._whole.excuse(seconds)

    def forgive(self, other: Deadline) -> None:
        """Excuse what the event loop stood still during another call, as far as it comes after the beginning of this
        one and after what is excused already: calls of several batches tell of the same standstill."""
        seconds = min(other.stalled, other._excused_until - self._excused_until)
        if seconds > 0:
            self.excuse(seconds)
            self._excused_until = other._excused_until

    async def wait_for(
        self,
        future: asyncio.Future[Any],
        on_wait: Callable[[Wake], bool] = lambda _: False,
        early: float = 0.0,
        on_early: Callable[[], None] = lambda: None,
        alarm: Alarm | None = None,
    ) -> bool:
        """Wait until `future` is done or the deadline is over; tell whether it is done. It is not cancelled.

        `on_wait` is given a function that ends the wait, and says if it is sure to be called when `future` is done: a
        task that calls it as the last thing it does spares its waiter a turn of the event loop. `on_early` is called
        once if only `early` seconds are left, and a while. Many waits may share an `alarm`.
        """
        loop = asyncio.get_running_loop()
        while not future.done():
            started_at = self._clock()
            left = self._ends_at - started_at
            if left <= 0:
                return False
            if early and left - early < MOMENT:
                early = 0.0
                on_early()
            pause = min(left - early, LOOK_EVERY)
            waiter = loop.create_future()
            wake = partial(_wake, waiter)
            turn_off = loop.call_later(pause, wake).cancel if alarm is None else alarm.set(wake, pause)
            try:  # `asyncio.wait` for one future at a fraction of its cost
                if not on_wait(wake):
                    future.add_done_callback(wake)
                await waiter
            finally:
                turn_off()
                future.remove_done_callback(wake)
            late = self._clock() - started_at - pause
            if late > STALL:
                self.excuse(late)
        return True


def _wake(waiter: asyncio.Future[None], _: object = None) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def acquire(lock: asyncio.Lock, deadline: Deadline) -> bool:
    """Wait for a lock in one's turn, but not longer than the deadline; tell whether it is held now."""
    acquiring = asyncio.ensure_future(lock.acquire())
    try:
        in_time = await deadline.wait_for(acquiring)
    except asyncio.CancelledError:
        if not acquiring.cancel() and not acquiring.cancelled():
            lock.release()
        raise
    if not in_time:
        acquiring.cancel()
    return in_time
