"""A checkpointer without its background: it takes over what ended processes left, and drains when it is told to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from enhanced_checkpointing.audit import Notes, named
from enhanced_checkpointing.backends.registry import find_backend
from enhanced_checkpointing.cli.configuration import UsageError
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import CheckpointUnavailableError, quoted, redact
from enhanced_checkpointing.journal.api import DeadLetter, Journal
from enhanced_checkpointing.journal.opening import open_journal
from enhanced_checkpointing.journal.recovery import MEMORY
from enhanced_checkpointing.observability.events import (
    NOTHING,
    ConfigurationFault,
    Diverged,
    Event,
    Gauges,
    Notice,
    OperationScope,
)
from enhanced_checkpointing.operations import DeleteThread
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.resilience.failures import CallFailed
from enhanced_checkpointing.serialization import SharingSerializer
from enhanced_checkpointing.upkeep.assembly import assemble
from enhanced_checkpointing.upkeep.components import Components
from enhanced_checkpointing.upkeep.reconciler import Reconciler

__all__ = ["Foreground", "opened_foreground"]

PAUSE = 0.5
"""Seconds between two tries while the primary takes no writes."""


@dataclass(slots=True)
class Told:
    """Keeps what is out of the ordinary, each line once: that there is a backlog is known to whoever drains it."""

    lines: list[str] = field(default_factory=list)

    def operation(self, scope: OperationScope) -> AbstractContextManager[object]:
        return NOTHING

    def observe(self, gauges: Callable[[], Gauges]) -> None:
        """Nothing reads gauges here."""

    def close(self) -> None:
        """Nothing is open."""

    def emit(self, event: Event) -> None:
        line = ""
        if isinstance(event, Notice) and event.level == "ERROR":
            line = event.message
        elif isinstance(event, ConfigurationFault):
            line = f"the primary refuses: {event.error}. {event.fix}"
        elif isinstance(event, Diverged):
            line = (
                f"thread {quoted(event.thread_id)} was written by somebody else meanwhile: both branches are kept, "
                f"this one as {event.kept_as!r}"
            )
        if line and line not in self.lines:
            self.lines.append(line)


class Foreground:
    """Drains what its journal holds, for as long as the caller waits."""

    def __init__(self, parts: Components, journal: Journal, reconciler: Reconciler, told: Told, home: str) -> None:
        self._parts = parts
        self._journal = journal
        self._reconciler = reconciler
        self.told = told
        self.home = home
        self._found = {thread_id: journal.entries(thread_id) for thread_id in journal.held_threads()}

    async def note(self, action: str) -> None:
        """Note in the audit trail what went from the journal to the primary, if anything."""
        gone = {thread_id: {*found} - {*self._journal.entries(thread_id)} for thread_id, found in self._found.items()}
        deleted = [one for one, entries in gone.items() if any(entry.name == DeleteThread.name for entry in entries)]
        if threads := [thread_id for thread_id, entries in gone.items() if entries]:
            operations = sum(map(len, gone.values()))
            await self._parts.note(action, threads=threads, operations=operations, deleted=named(deleted))

    @property
    def pending(self) -> int:
        """Operations that wait, those of frozen threads included."""
        return self._journal.status().pending

    @property
    def drained(self) -> int:
        return self._reconciler.drained

    @property
    def divergences(self) -> int:
        return self._reconciler.divergences

    @property
    def dead_letters(self) -> list[DeadLetter]:
        return list(self._journal.dead_letters())

    @property
    def frozen_threads(self) -> tuple[str, ...]:
        """Threads that cannot be drained now, for whatever reason."""
        return self._journal.status().frozen_threads

    async def prove(self) -> None:
        """See that the primary takes writes.

        Raises:
            CheckpointUnavailableError: it does not.
        """
        try:
            await self._parts.prober.prove()
        except CallFailed as failed:
            reason = " ".join(redact(failed.error).split())
            fix = failed.failure.fix or "`checkpointing doctor` looks for the cause."
            raise CheckpointUnavailableError(f"The primary takes no writes ({reason}). {fix}") from None

    async def drain(self, deadline: Deadline) -> None:
        """Drain all that can be drained, until the deadline."""
        while self._journal.anything_waits() and deadline.remaining():
            if await self._takes_writes():
                await deadline.wait_for(asyncio.ensure_future(self._reconciler.drain_all()))
            if self._journal.anything_waits():
                await asyncio.sleep(min(PAUSE, deadline.remaining()))

    async def drain_thread(self, thread_id: str, deadline: Deadline) -> bool:
        """Drain one thread; False if something of it stays: it froze again, or the deadline was over."""
        while self._journal.holds(thread_id) and not self._journal.is_frozen(thread_id) and deadline.remaining():
            if await self._takes_writes() and await self._reconciler.drain_first(thread_id, deadline):
                return True
            if not self._journal.is_frozen(thread_id):
                await asyncio.sleep(min(PAUSE, deadline.remaining()))
        return not self._journal.holds(thread_id)

    async def _takes_writes(self) -> bool:
        if self._parts.breaker.is_open:
            await self._parts.prober.probe()
        return not self._parts.breaker.is_open


@asynccontextmanager
async def opened_foreground(config: CheckpointerConfig) -> AsyncIterator[Foreground]:
    """Take over what ended processes left for the primary of a configuration; give back at the end what is left of it.

    Raises:
        UsageError: the primary is memory, in which everything would be lost.
        CheckpointerConfigurationError: the primary or the journal cannot be opened.
    """
    config = config.with_overrides(journal="durable")
    told, serializer = Told(), SharingSerializer(config.serde)
    async with AsyncExitStack() as stack:
        backend = find_backend(config.backend_name)(config, serializer)
        home = backend.home()
        if home == MEMORY:
            raise UsageError(
                "The primary is memory, so what is drained would be gone when this command ends. Nothing was changed. "
                "Name the database: --database-url, --sqlite, or CHECKPOINT_ENVIRONMENT=production with DATABASE_URL."
            )
        stack.push_async_callback(backend.close)
        await backend.open()
        journal = await open_journal(config, serializer, told, home=home)
        assert journal is not None  # it was asked for
        stack.push_async_callback(journal.close)
        parts = await assemble(
            stack,
            config=config,
            backend=backend,
            journal=journal,
            serializer=serializer,
            telemetry=told,
            note=Notes(config, home, told),
        )
        assert parts.reconciler is not None  # there is a journal
        yield Foreground(parts, journal, parts.reconciler, told, home)


def within(seconds: float) -> Deadline:
    """A deadline from now on."""
    return Deadline(time.monotonic, seconds)
