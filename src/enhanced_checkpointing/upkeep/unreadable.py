"""Tells of threads whose metadata cannot be read, once each, and finds out when they can be again or are gone."""

from __future__ import annotations

from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.errors import quoted
from enhanced_checkpointing.observability.events import Notice, Telemetry
from enhanced_checkpointing.resilience.breaker import Breaker, Clock
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.resilience.failures import CallFailed
from enhanced_checkpointing.resilience.guard import Guard

LOOKED_AT_ONCE = 25
NAMED = 5


class UnreadableThreads:
    """Looks after each probe. Listings find such threads; without any, this asks the primary for nothing."""

    def __init__(
        self, backend: Backend, guard: Guard, breaker: Breaker, telemetry: Telemetry, clock: Clock, seconds: float
    ) -> None:
        self._backend = backend
        self._clock = clock
        self._seconds = seconds
        self._guard = guard
        self._breaker = breaker
        self._telemetry = telemetry
        self._told: frozenset[str] = frozenset()

    async def look(self) -> None:
        known = self._backend.unreadable
        fresh = {thread_id: why for thread_id, why in known.items() if thread_id not in self._told}
        if fresh:
            named = ", ".join(f"{quoted(one)} ({why})" for one, why in [*fresh.items()][:NAMED])
            more = f" and {len(fresh) - NAMED} more" if len(fresh) > NAMED else ""
            what = (
                f"threads cannot be listed, and retention leaves them alone: {named}{more}. All others are. Mend the "
                "metadata of their newest checkpoint, or delete them: checkpointing threads delete"
            )
            self._telemetry.emit(Notice("WARNING", what))
        self._told = frozenset(known)
        if known and not self._breaker.is_open:
            some = [*known][:LOOKED_AT_ONCE]
            try:
                deadline = Deadline(self._clock, self._seconds)
                await self._guard.once("describe", lambda: self._backend.describe(some), deadline=deadline)
            except CallFailed:
                return  # the next probe says why
