"""The outage that goes on now, from the breaker's opening until the journal is drained, and what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from enhanced_checkpointing.observability.events import OutageEnded, OutageStarted, PrimaryRecovered, Telemetry
from enhanced_checkpointing.resilience.breaker import Clock


@dataclass(frozen=True, slots=True)
class Counts:
    """Totals since the start of the process."""

    journaled: int
    drained: int
    dead_letters: int
    divergences: int

    def since(self, earlier: Counts) -> Counts:
        return Counts(
            self.journaled - earlier.journaled,
            self.drained - earlier.drained,
            self.dead_letters - earlier.dead_letters,
            self.divergences - earlier.divergences,
        )


@dataclass(frozen=True, slots=True)
class _Outage:
    started_at: float
    started_on_clock: float


class Outages:
    """Turns the breaker's transitions and the end of draining into the events of an outage."""

    def __init__(self, backend: str, telemetry: Telemetry, totals: Callable[[], Counts], clock: Clock) -> None:
        self._backend = backend
        self._telemetry = telemetry
        self._totals = totals
        self._clock = clock
        self._current: _Outage | None = None
        self._when_quiet = Counts(0, 0, 0, 0)
        """The totals when nothing waited last: calls that failed before the breaker opened belong to the outage too."""
        self.reason: str | None = None
        """Why the breaker opened; None while there is no outage."""
        self.openings = 0
        """How often the breaker opened; a primary that flaps opens it many times in one outage."""

    @property
    def started_at(self) -> float | None:
        """Wall-clock time at which the outage that goes on began."""
        return self._current.started_at if self._current is not None else None

    def opened(self, reason: str) -> None:
        """The breaker opened; while draining this is the same outage."""
        self.reason = reason
        self.openings += 1
        if self._current is None:
            self._current = _Outage(time.time(), self._clock())
            self._telemetry.emit(OutageStarted(self._backend, reason, self._current.started_at))

    def recovered(self, pending: int) -> None:
        """The breaker closed; `pending` operations wait to be drained."""
        if self._current is not None:
            seconds = self._clock() - self._current.started_on_clock
            self._telemetry.emit(PrimaryRecovered(self._backend, seconds, pending))

    def drained(self) -> None:
        """Nothing waits any more while the breaker is closed."""
        totals = self._totals()
        counts, self._when_quiet = totals.since(self._when_quiet), totals
        if self._current is None:
            return
        outage, self._current, self.reason = self._current, None, None
        self._telemetry.emit(
            OutageEnded(
                backend=self._backend,
                started_at=outage.started_at,
                outage_seconds=self._clock() - outage.started_on_clock,
                journaled=counts.journaled,
                drained=counts.drained,
                dead_letters=counts.dead_letters,
                divergences=counts.divergences,
            )
        )
