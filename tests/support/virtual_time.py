"""Time that passes only while everybody waits: in it, deadlines are exact, however busy the machine is.

A test marked `virtual_time` runs in such a loop; `now()` is its clock, for `Deadline` and `Breaker` too. Nothing real
may take part: who waits for a thread or a socket there waits for ever, which is told at once.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Mapping
from typing import Any, Protocol

BEGINNING = 1000.0


class Deadlock(AssertionError):
    """Everybody waits, and nothing will happen any more."""


class Timeline(Protocol):
    """Seconds that pass when they are told to."""

    now: float

    def advance(self, seconds: float | None) -> None:
        """Let so many seconds pass; None: until something happens from outside of the event loop."""


class LoneTimeline:
    """The time of one event loop in an empty world."""

    def __init__(self) -> None:
        self.now = BEGINNING

    def advance(self, seconds: float | None) -> None:
        if seconds is None:
            raise Deadlock("everybody waits, and nothing will happen any more")
        self.now += seconds


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that lets virtual time pass instead of sleeping."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        super().__init__(_NoInput(timeline))

    def time(self) -> float:
        return self.timeline.now


class _NoInput(selectors.BaseSelector):
    """Nothing ever arrives from outside: what it waits for is time."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._keys: dict[Any, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = self._keys[fileobj] = selectors.SelectorKey(fileobj, fileobj, events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._timeline.advance(timeout)
        return []


def new_loop() -> VirtualLoop:
    return VirtualLoop(LoneTimeline())


def now() -> float:
    """The virtual time of the loop that runs."""
    return asyncio.get_running_loop().time()


def stand_still(seconds: float) -> None:
    """Let time pass in which the event loop does nothing."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.timeline.advance(seconds)
