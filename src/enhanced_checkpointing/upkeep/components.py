"""Everything that is open between a manager's start and its end, and what is true of it now, without I/O."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from enhanced_checkpointing.audit import Notes
from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.journal.api import Journal, JournalStatus
from enhanced_checkpointing.observability import health
from enhanced_checkpointing.observability.events import Gauges, SystemState
from enhanced_checkpointing.recovery.drain import Reconciler
from enhanced_checkpointing.recovery.outages import Counts, Outages
from enhanced_checkpointing.recovery.prober import JournalCheck, Prober
from enhanced_checkpointing.resilience.breaker import Breaker
from enhanced_checkpointing.resilience.guard import Guard
from enhanced_checkpointing.saver.event_loop import LoopBridge
from enhanced_checkpointing.saver.read_path import Engine
from enhanced_checkpointing.saver.saver import FailoverSaver
from enhanced_checkpointing.standby.cache import Standby
from enhanced_checkpointing.threads.methods import ThreadComponents
from enhanced_checkpointing.threads.sweeper import RetentionScheduler, Sweeper

NO_JOURNAL = JournalStatus(pending=0, oldest_at=None, size=0, capacity=0, dead_letters=0, frozen_threads=())


@dataclass(frozen=True, slots=True)
class Components:
    """One of each; without a journal there is nothing to reconcile, and by default nothing is retired."""

    loop: asyncio.AbstractEventLoop
    backend: Backend
    breaker: Breaker
    guard: Guard
    journal: Journal | None
    journal_check: JournalCheck | None
    standby: Standby
    engine: Engine
    bridge: LoopBridge
    saver: FailoverSaver
    threads: ThreadComponents
    prober: Prober
    reconciler: Reconciler | None
    outages: Outages
    sweeper: Sweeper
    scheduler: RetentionScheduler | None
    note: Notes

    def primary_healthy(self) -> bool:
        """Whether the primary takes live calls, and the newest probe found nothing wrong."""
        return not self.breaker.is_open and self.prober.last_error is None

    def counts(self) -> Counts:
        """Totals since the start."""
        if self.reconciler is None:
            return Counts(self.engine.journaling.journaled, 0, 0, 0)
        reconciler = self.reconciler
        return Counts(
            self.engine.journaling.journaled, reconciler.drained, reconciler.dead_letters, reconciler.divergences
        )

    def gauges(self) -> Gauges:
        """The current values of the metrics; called from the metric reader's thread."""
        journal = self._journal_status()
        state = SystemState.OUTAGE if self.breaker.is_open else SystemState.HEALTHY
        if state is SystemState.HEALTHY and journal.pending:
            state = SystemState.DRAINING
        return Gauges(
            state=state,
            journal_pending=journal.pending,
            journal_oldest_age=_age(journal),
            journal_size=journal.size,
            journal_writable=self._writable(),
            journal_utilization=_own_size(journal) / journal.capacity if journal.capacity else 0.0,
            journal_dead_letters=journal.dead_letters,
            journal_frozen_threads=len(journal.frozen_threads),
            journal_damages=journal.damages,
            standby_size=self.standby.size,
            pool=self.backend.gauges(),
            breaker_openings=self.outages.openings,
        )

    def report(self, config: CheckpointerConfig, companions: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """The health report of an open manager."""
        journal = self._journal_status()
        started_at = self.outages.started_at
        return health.report(
            primary=health.PrimaryHealth(
                backend=self.backend.name,
                healthy=self.primary_healthy(),
                breaker_open=self.breaker.is_open,
                outage_seconds=None if started_at is None else time.time() - started_at,
                error=self.prober.last_error or self.outages.reason,
                outstanding_attempts=self.guard.outstanding,
                pool=self.backend.gauges(),
                notes=self.backend.notes(),
                unreadable=len(self.backend.unreadable),
            ),
            journal=health.JournalHealth(
                mode=self._mode(),
                durable=self.journal is not None and self.journal.durable,
                accepts=config.on_outage == "journal" and self._writable(),
                pending=journal.pending,
                oldest_age=_age(journal),
                size=journal.size,
                capacity=journal.capacity,
                dead_letters=journal.dead_letters,
                frozen_threads=journal.frozen_threads,
                damages=journal.damages,
                error=self._error(),
                foreign=journal.foreign,
            ),
            standby=health.StandbyHealth(threads=len(self.standby), size=self.standby.size),
            divergences=self.counts().divergences,
            parts={"audit": {"healthy": self.note.error is None, "error": self.note.error}, **companions},
        )

    def dead_letters(self) -> list[dict[str, Any]]:
        """What the primary refused for good, as plain JSON types."""
        letters = self.journal.dead_letters() if self.journal is not None else ()
        return [
            {
                "thread_id": letter.entry.thread_id,
                "operation": letter.entry.name,
                "journaled_at": letter.entry.journaled_at,
                "error": letter.error,
            }
            for letter in letters
        ]

    def _journal_status(self) -> JournalStatus:
        return self.journal.status() if self.journal is not None else NO_JOURNAL

    def _mode(self) -> str:
        if self.journal is None:
            return "off"
        return "durable" if self.journal.durable else "memory"

    def _error(self) -> str | None:
        """Why the journal could not take a write now."""
        if self.journal_check is not None and self.journal_check.silent:
            return "its disk does not answer"
        return self._journal_status().error

    def _writable(self) -> bool:
        journal = self._journal_status()
        return self.journal is not None and self._error() is None and _own_size(journal) < journal.capacity


def _own_size(journal: JournalStatus) -> int:
    """What this process's own writes take; those of others that it adopted take none of its room."""
    return journal.size - journal.adopted_size


def _age(journal: JournalStatus) -> float:
    return 0.0 if journal.oldest_at is None else max(0.0, time.time() - journal.oldest_at)
