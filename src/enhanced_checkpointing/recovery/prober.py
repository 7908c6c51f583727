"""Asks the primary, on a connection of its own, whether it can be written; the only one who closes the breaker.
And asks the journal the same while all is well, so that a journal that is broken shows before it is needed.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum

from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import CheckpointUnavailableError, JournalFullError, redact
from enhanced_checkpointing.journal.api import Journal
from enhanced_checkpointing.observability.events import ConfigurationFault, Notice, ProbeFinished, Telemetry
from enhanced_checkpointing.resilience.breaker import Breaker, Clock
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.resilience.failures import CallFailed, FailureKind
from enhanced_checkpointing.resilience.guard import Guard

SETUP_PATIENCE = 12
"""How many deadlines the first setup may take: an index on a large table is not made in one."""

UNREACHED_PAUSE = 1.0
"""The longest pause, in seconds, while nothing answers: such a probe burdens no server, so there is no cause to wait
longer, and a server that comes back is noticed within this time."""


class Finding(Enum):
    """What a probe found."""

    HEALTHY = "healthy"
    REFUSING = "refusing"
    """The server answered that it cannot serve."""
    SILENT = "silent"
    """Nothing answered in time."""
    UNREACHED = "unreached"
    """Nobody is there, or a lock is in the way: asking again soon burdens nobody."""


def next_pause(
    finding: Finding, last_pause: float, *, outage: bool, interval: float, shortest: float, longest: float
) -> float:
    """Seconds until the next probe, before jitter. Pure.

    A server that answers with a refusal is spared by growing pauses. One that is silent has had its pause: the probe
    itself waited for its whole deadline, and the next one should be there when the server wakes.
    """
    if finding is Finding.HEALTHY:
        return interval
    if not outage or finding is Finding.SILENT:
        return shortest
    grown = max(shortest, min(2 * last_pause, longest))
    return min(grown, max(shortest, UNREACHED_PAUSE)) if finding is Finding.UNREACHED else grown


class Prober:
    """Probes at intervals, sets the primary up when that had to wait, and brings it back after an outage.

    After each probe it does what is to be done `besides`, one after another.
    """

    def __init__(
        self,
        *,
        config: CheckpointerConfig,
        backend: Backend,
        guard: Guard,
        breaker: Breaker,
        telemetry: Telemetry,
        on_contact: Callable[[], None] = lambda: None,
        besides: Sequence[Callable[[], Awaitable[None]]] = (),
        clock: Clock = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._config = config
        self._backend = backend
        self._guard = guard
        self._breaker = breaker
        self._telemetry = telemetry
        self._on_contact = on_contact
        self._besides = besides
        self._clock = clock
        self._jitter = jitter
        self._set_up = False
        self._hurried = asyncio.Event()
        self._doubting: asyncio.Task[None] | None = None
        self.last_error: str | None = None
        """What the newest probe found wrong, without secrets; None when it passed."""

    def hurry(self) -> None:
        """The breaker opened: start over with short pauses."""
        self._hurried.set()

    def doubt(self) -> None:
        """Somebody waits long for an answer: look now whether others would get one."""
        if self._doubting is None or self._doubting.done():
            self._doubting = asyncio.create_task(self.look(), name="checkpoint doubt")

    async def close(self) -> None:
        """End a look that is under way."""
        if self._doubting is not None and not self._doubting.done():
            self._doubting.cancel()
            await asyncio.wait({self._doubting})

    async def run(self) -> None:
        """Probe for ever."""
        pause = self._config.probe_interval
        while True:
            if await self._sleep(pause):
                pause = self._config.probe_backoff_min
                continue
            finding = await self.probe()
            for work in self._besides:
                await work()
            pause = next_pause(
                finding,
                pause,
                outage=self._breaker.is_open,
                interval=self._config.probe_interval,
                shortest=self._config.probe_backoff_min,
                longest=self._config.probe_backoff_max,
            )

    async def probe(self) -> Finding:
        """Probe once; when a write works, close the breaker."""
        try:
            seconds = await self.prove()
        except CallFailed as failed:
            return self._found_wrong(failed)
        # A server that takes this long for a probe would open the breaker again at once.
        if self._breaker.is_open and seconds < self._config.deadline / 2:
            await self._backend.renew()
            self._breaker.close()
        return Finding.HEALTHY if not self._breaker.is_open else Finding.REFUSING

    async def look(self) -> None:
        """Probe once for a health report: what it finds is kept in `last_error`, the breaker is not closed by it.

        Before the setup there is nothing to probe, and `last_error` says why; a setup may take long, a report may not.
        """
        if not self._set_up:
            return
        try:
            await self.prove()
        except CallFailed as failed:
            self._found_wrong(failed)

    async def prove(self) -> float:
        """Set up if that is still to be done, prove that a write works, and return the seconds that took.

        Raises:
            CallFailed: it does not work, or an error of the setup.
        """
        started_at, begun = time.time(), self._clock()
        error_type: str | None = None
        try:
            if not self._set_up:
                patience = Deadline(self._clock, SETUP_PATIENCE * self._config.deadline)
                await self._guard.once("setup", self._backend.setup, deadline=patience)
                self._set_up = True
            deadline = Deadline(self._clock, self._config.deadline)
            begun = deadline.now()
            await self._guard.once("probe", self._backend.probe, deadline=deadline, counts=True)
            seconds = deadline.now() - begun
        except CallFailed as failed:
            error_type = type(failed.error).__name__
            self.last_error = redact(failed.error)
            raise
        finally:
            self._telemetry.emit(ProbeFinished(self._backend.name, started_at, self._clock() - begun, error_type))
        self.last_error = None
        self._on_contact()
        return seconds

    def _found_wrong(self, failed: CallFailed) -> Finding:
        if failed.kind is FailureKind.CONFIGURATION:
            self._telemetry.emit(
                ConfigurationFault(self._backend.name, redact(failed.error), failed.failure.fix or "See the message.")
            )
        if failed.timed_out:
            return Finding.SILENT
        refusing = failed.failure.answered and failed.kind is not FailureKind.TRANSIENT
        return Finding.REFUSING if refusing else Finding.UNREACHED

    async def _sleep(self, pause: float) -> bool:
        """Pause, with a tenth of jitter; True when the breaker opened meanwhile, so that the pause starts anew."""
        try:
            async with asyncio.timeout(pause * (0.9 + 0.2 * self._jitter())):
                await self._hurried.wait()
        except TimeoutError:
            return False
        self._hurried.clear()  # only here: an opening while a probe was under way, or before the first, counts too
        return True


class JournalCheck:
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
