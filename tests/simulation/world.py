"""Virtual time, chance and the trace of one run: everything outside of our process hangs on one of these."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from hashlib import blake2b
from random import Random

from tests.support.virtual_time import BEGINNING

LAST, MOST_STEPS = BEGINNING + 200.0, 20_000
"""When a run is said to have no end."""


class Killed(SystemExit):
    """Our process dies at this instruction. Nobody catches it, and it ends the event loop at once."""


class Broken(Exception):
    """A promise was not kept; the message says which one, and how."""


class World:
    """Has the clock, in seconds, and what happens later. What it does is decided by its seed alone."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.now = BEGINNING
        self.wall_offset = 1_700_000_000.0
        """What the wall clock shows more than the other one; a restart may change it."""
        self.fuse: int | None = None
        """How many more steps our process lives."""
        self.problems: list[str] = []
        self.lines: list[str] = []
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._made = 0

    def clock(self) -> float:
        return self.now

    def wall_clock(self) -> float:
        return self.now + self.wall_offset

    def after(self, seconds: float, run: Callable[[], None]) -> None:
        """Let something happen in the world, whether our process lives then or not."""
        self._made += 1
        heapq.heappush(self._later, (self.now + seconds, self._made, run))

    def advance(self, seconds: float | None) -> None:
        """Let time pass, up to the next thing that happens; None: however long that takes."""
        if len(self.lines) > MOST_STEPS or self.now > LAST:
            raise Broken("the run does not end")
        until = self._later[0][0] if seconds is None and self._later else self.now + (seconds or 0.0)
        if seconds is None and not self._later:
            raise Broken("everybody waits, and nothing will happen any more")
        if self._later and self._later[0][0] <= until:
            self.now, _, run = heapq.heappop(self._later)
            run()
        else:
            self.now = until

    def sleep(self, seconds: float) -> None:
        """Let time pass while no process runs."""
        until = self.now + seconds
        while self.now < until:
            self.advance(until - self.now)

    def note(self, what: str) -> None:
        self.lines.append(f"{self.now:11.4f} {what}")

    def step(self, what: str) -> None:
        """Something that our process does to the world, which it may not live to finish."""
        self.note(what)
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                raise Killed(what)

    def problem(self, what: str) -> None:
        """A promise was not kept; the run goes on, as the first one may explain the next."""
        self.note(f"BROKEN: {what}")
        self.problems.append(f"at {self.now:.4f}: {what}")

    def trace_hash(self) -> str:
        return blake2b("\n".join(self.lines).encode(), digest_size=8).hexdigest()
