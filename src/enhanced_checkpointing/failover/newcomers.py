"""Which threads may start while the primary cannot be asked whether they exist."""

from __future__ import annotations

from enhanced_checkpointing.failover.standby import Standby
from enhanced_checkpointing.failover.thread_ids import created_at
from enhanced_checkpointing.resilience.breaker import Clock


class Newcomers:
    """Knows when the primary answered last: a thread whose id is younger than that cannot be there."""

    def __init__(self, standby: Standby, *, start_fresh: bool, wall_clock: Clock) -> None:
        self._standby = standby
        self._start_fresh = start_fresh
        self._wall_clock = wall_clock
        self._last_contact: float | None = None

    def contact(self) -> None:
        """The primary answered. The newest time counts: a clock that jumps back must not make old threads look new."""
        now = self._wall_clock()
        self._last_contact = now if self._last_contact is None else max(self._last_contact, now)

    def admit(self, thread_id: str, *, outage: bool) -> None:
        """Take a thread that this process never saw for empty, if its id proves it, or if that is allowed and there is
        an `outage` for certain: one call that came late is none, and what it asked for may well be there."""
        if self._standby.knows(thread_id):
            return
        if (self._start_fresh and outage) or self._is_young(thread_id):
            self._standby.note_empty(thread_id, "")

    def _is_young(self, thread_id: str) -> bool:
        made_at = created_at(thread_id)
        return made_at is not None and self._last_contact is not None and made_at > self._last_contact
