"""Exercises the journal while all is well, so that a fallback that is broken shows before it is needed."""

from __future__ import annotations

import asyncio

from enhanced_checkpointing.errors import CheckpointUnavailableError, JournalFullError
from enhanced_checkpointing.journal.api import Journal
from enhanced_checkpointing.observability.events import Notice, Telemetry
from enhanced_checkpointing.resilience.breaker import Clock
from enhanced_checkpointing.resilience.deadline import Deadline


class Canary:
    """Checks the journal when it is told to; one that does not answer within `seconds` counts as broken."""

    def __init__(self, journal: Journal, telemetry: Telemetry, clock: Clock, seconds: float) -> None:
        self._journal = journal
        self._telemetry = telemetry
        self._clock = clock
        self._seconds = seconds
        self._checking: asyncio.Task[None] | None = None
        self.silent = False
        """The journal did not answer in time."""

    async def check(self) -> None:
        """Write, read and remove a record, unless the last one is still on its way."""
        if self._checking is None:
            self._checking = asyncio.create_task(self._check(), name="canary")
        answered = await Deadline(self._clock, self._seconds).wait_for(self._checking)
        if answered:
            self._checking = None
        if self.silent and answered:
            self._telemetry.emit(Notice("INFO", "the journal's disk answers again"))
        elif not answered and not self.silent:
            what = f"the journal's disk did not answer within {self._seconds:g} s: in an outage, writes would fail"
            self._telemetry.emit(Notice("ERROR", what))
        self.silent = not answered

    async def close(self) -> None:
        """End a check under way."""
        if self._checking is not None:
            self._checking.cancel()
            await asyncio.wait({self._checking})

    async def _check(self) -> None:
        try:
            await self._journal.check()
        except (CheckpointUnavailableError, JournalFullError):
            return  # the journal keeps the error in its status, and has said so
