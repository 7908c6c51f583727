"""Which threads may start while the primary cannot be asked whether they exist."""

from __future__ import annotations

from collections.abc import Callable

from enhanced_checkpointing.identifiers import created_at
from enhanced_checkpointing.resilience.breaker import Clock
from enhanced_checkpointing.standby.cache import Standby


class NewThreads:
    """Knows when the primary answered last: a thread whose id is younger than that cannot be there.

    A thread that was only taken for new, by its id or because that is allowed, is forgotten as soon as the primary can
    be asked: `held` tells of a thread that waits to be drained before. `begins` tells whether no other worker on this
    machine can have written to a thread that is so many seconds old.
    """

    def __init__(
        self,
        standby: Standby,
        *,
        start_fresh: bool,
        wall_clock: Clock,
        held: Callable[[str], bool] = lambda _: False,
        begins: Callable[[str, float | None], bool] = lambda thread_id, age: True,
    ) -> None:
        self._standby = standby
        self._start_fresh = start_fresh
        self._wall_clock = wall_clock
        self._held = held
        self._begins = begins
        self._last_contact: float | None = None
        self._presumed: set[str] = set()

    def contact(self) -> None:
        """The primary answered. The newest time counts: a clock that jumps back must not make old threads look new."""
        now = self._wall_clock()
        self._last_contact = now if self._last_contact is None else max(self._last_contact, now)

    def admit(self, thread_id: str, *, outage: bool) -> None:
        """Take a thread that this process never saw for empty, if its id proves it, or if that is allowed and there is
        an `outage` for certain: one call that came late is none, and what it asked for may well be there. What the
        journal holds is not new, although it may not be readable."""
        if self._standby.knows(thread_id) or self._held(thread_id):
            return
        if self.would_admit(thread_id, outage=outage) and self._begins(thread_id, self._age(thread_id)):
            self._presumed.add(thread_id)
            self._standby.note_empty(thread_id, "")

    def would_admit(self, thread_id: str, *, outage: bool) -> bool:
        """Whether a thread could begin now, as far as its id and the setting tell."""
        return (self._start_fresh and outage) or self._age(thread_id) is not None

    def recovered(self) -> None:
        """The primary can be asked again: what was presumed of threads is not known any more."""
        for thread_id in [thread_id for thread_id in self._presumed if not self._held(thread_id)]:
            self._presumed.discard(thread_id)
            self._standby.forget(thread_id)

    def presumes(self, thread_id: str) -> bool:
        """Whether a thread was only taken for empty: nobody has looked."""
        return thread_id in self._presumed

    def drained(self, thread_id: str) -> None:
        """Everything of a thread is in the primary. If something was there before, the warm copy is gone by now; else
        the newest of what is warm is the newest there is, and there may be more."""
        if thread_id in self._presumed:
            self._presumed.discard(thread_id)
            self._standby.doubt(thread_id)

    def _age(self, thread_id: str) -> float | None:
        """Seconds since a thread was made, if its id proves that this was after the last contact. An id from the future
        proves nothing: the clock that made it is not ours."""
        made_at = created_at(thread_id)
        if made_at is None or self._last_contact is None:
            return None
        now = self._wall_clock()
        return now - made_at if self._last_contact < made_at <= now else None
