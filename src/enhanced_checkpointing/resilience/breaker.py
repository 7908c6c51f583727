"""The breaker: whether live calls may touch the primary now. Pure: no I/O, no timer, the clock is injected."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

Clock = Callable[[], float]
"""Seconds from any fixed point, never going back: `time.monotonic`, or a fake one."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """Permission for one call; its outcome counts only while the breaker is in the same generation."""

    generation: int


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """When to open: so many failures in a row, or this share of at least `minimum_calls` within `window` seconds.

    A success that took `slow_after` seconds or longer counts as a failure.
    """

    failures_in_row: int = 3
    failure_share: float = 0.5
    minimum_calls: int = 5
    window: float = 10.0
    slow_after: float = 2.5


@dataclass(slots=True)
class _Second:
    """The outcomes of one second."""

    number: int
    calls: int = 0
    failures: int = 0


class Breaker:
    """Closed or open. Failures open it; only a passed probe closes it, through `close()`.

    `on_transition(opened, reason)` is called once per transition.
    """

    def __init__(self, clock: Clock, settings: BreakerSettings, on_transition: Callable[[bool, str], None]) -> None:
        self._clock = clock
        self._settings = settings
        self._on_transition = on_transition
        self._generation = 0
        self._ticket = Ticket(0)
        self.is_open = False
        """Whether live calls must not touch the primary; moved by `_transition` alone."""
        self._failures_in_row = 0
        self._seconds: deque[_Second] = deque()
        self._changed_at = clock()

    def __repr__(self) -> str:
        state = "open" if self.is_open else "closed"
        return f"<Breaker {state}, generation {self._generation}, {self._failures_in_row} failures in a row>"

    @property
    def seconds_in_state(self) -> float:
        """Seconds since the last transition."""
        return self._clock() - self._changed_at

    def admit(self) -> Ticket | None:
        """Return a ticket for one call, or None while open."""
        return None if self.is_open else self._ticket

    def succeeded(self, ticket: Ticket, seconds: float) -> None:
        """Report a success that took `seconds`; a slow one counts as a failure."""
        if seconds >= self._settings.slow_after:
            self.failed(ticket, f"calls take {seconds:.1f} s")
        elif ticket.generation == self._generation:
            self._failures_in_row = 0
            self._count(failed=False)

    def failed(self, ticket: Ticket, reason: str, *, definite: bool = False) -> None:
        """Report a failure; a `definite` one (the server says that it cannot serve) opens at once."""
        if ticket.generation != self._generation:
            return
        self._failures_in_row += 1
        self._count(failed=True)
        if definite or self._failures_in_row >= self._settings.failures_in_row or self._share_reached():
            self._transition(opened=True, reason=reason)

    def trip(self, reason: str) -> None:
        """Open now, whatever was counted."""
        if not self.is_open:
            self._transition(opened=True, reason=reason)

    def close(self) -> None:
        """A probe proved that a write works. Called by the prober alone."""
        if self.is_open:
            self._transition(opened=False, reason="a probe proved that a write works")

    def _transition(self, *, opened: bool, reason: str) -> None:
        self.is_open = opened
        self._generation += 1
        self._ticket = Ticket(self._generation)
        self._failures_in_row = 0
        self._seconds.clear()
        self._changed_at = self._clock()
        self._on_transition(opened, reason)

    def _count(self, *, failed: bool) -> None:
        number = int(self._clock())
        if not self._seconds or self._seconds[-1].number != number:
            self._seconds.append(_Second(number))
        self._seconds[-1].calls += 1
        self._seconds[-1].failures += failed
        while self._seconds[0].number <= number - self._settings.window:
            self._seconds.popleft()

    def _share_reached(self) -> bool:
        calls = sum(second.calls for second in self._seconds)
        failures = sum(second.failures for second in self._seconds)
        return calls >= self._settings.minimum_calls and failures >= calls * self._settings.failure_share
