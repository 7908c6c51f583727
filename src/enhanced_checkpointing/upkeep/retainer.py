"""Retires old threads in the background, at intervals."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from enhanced_checkpointing.threads.sweeper import Sweeper

AFTER_AN_OUTAGE = 30.0
"""Seconds until what an outage has stopped is tried again; the interval, if that is shorter."""


class Retainer:
    """Sweeps when the interval is over; of all processes that share a primary, one at a time does so."""

    def __init__(self, sweeper: Sweeper, interval: float, chance: Callable[[], float] = random.random) -> None:
        self._sweeper = sweeper
        self._interval = interval
        self._chance = chance

    async def run(self) -> None:
        """Sweep for ever. The first comes at some time within the interval, not with all processes that start now."""
        pause = self._interval * self._chance()
        while True:
            await asyncio.sleep(pause)
            sweep = await self._sweeper.run(resume=True)
            pause = self._interval if sweep.stopped is None else min(self._interval, AFTER_AN_OUTAGE)
