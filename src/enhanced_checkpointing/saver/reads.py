"""Which threads this process has read, and when."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from enhanced_checkpointing.resilience.breaker import Clock

MOST = 100_000
"""Threads that are remembered; those that were read the longest ago are forgotten first."""


class Reads:
    """Remembers the last read of each thread. `wall_clock` gives seconds since 1970."""

    def __init__(self, wall_clock: Clock) -> None:
        self._wall_clock = wall_clock
        self._at: dict[str, float] = {}

    def note(self, thread_id: str) -> None:
        self._at.pop(thread_id, None)  # so that it comes last
        self._at[thread_id] = self._wall_clock()
        if len(self._at) > MOST:
            del self._at[next(iter(self._at))]

    def at(self, thread_id: str) -> datetime | None:
        seconds = self._at.get(thread_id)
        return datetime.fromtimestamp(seconds, UTC) if seconds is not None else None

    def all(self) -> Mapping[str, datetime]:
        """All that are remembered, as of now."""
        return {thread_id: datetime.fromtimestamp(seconds, UTC) for thread_id, seconds in self._at.items()}

    def forget(self, thread_id: str, read_at: datetime) -> None:
        """Forget a read that was dealt with, unless there has been another one."""
        if self.at(thread_id) == read_at:
            del self._at[thread_id]
