"""What is true now, read off the open parts without I/O: for health reports and metrics."""

from __future__ import annotations

import time
from typing import Any

from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.journal.api import JournalStatus
from enhanced_checkpointing.observability import health
from enhanced_checkpointing.observability.events import Gauges, SystemState
from enhanced_checkpointing.recovery.outages import Counts
from enhanced_checkpointing.upkeep.components import Components

NO_JOURNAL = JournalStatus(pending=0, oldest_at=None, size=0, capacity=0, dead_letters=0, frozen_threads=())


def primary_healthy(parts: Components) -> bool:
    """Whether the primary takes live calls, and the newest probe found nothing wrong."""
    return not parts.breaker.is_open and parts.prober.last_error is None


def counts(parts: Components) -> Counts:
    """Totals since the start."""
    if parts.reconciler is None:
        return Counts(parts.engine.journaling.journaled, 0, 0, 0)
    reconciler = parts.reconciler
    return Counts(
        parts.engine.journaling.journaled, reconciler.drained, reconciler.dead_letters, reconciler.divergences
    )


def gauges(parts: Components) -> Gauges:
    """The current values of the metrics; called from the metric reader's thread."""
    journal = _journal_status(parts)
    state = SystemState.OUTAGE if parts.breaker.is_open else SystemState.HEALTHY
    if state is SystemState.HEALTHY and journal.pending:
        state = SystemState.DRAINING
    return Gauges(
        state=state,
        journal_pending=journal.pending,
        journal_oldest_age=_age(journal),
        journal_size=journal.size,
        journal_writable=_writable(parts),
        journal_utilization=_own_size(journal) / journal.capacity if journal.capacity else 0.0,
        journal_dead_letters=journal.dead_letters,
        journal_frozen_threads=len(journal.frozen_threads),
        journal_damages=journal.damages,
        standby_size=parts.standby.size,
        pool=parts.backend.gauges(),
        breaker_openings=parts.outages.openings,
    )


def report(parts: Components, config: CheckpointerConfig, companions: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The health report of an open manager."""
    journal = _journal_status(parts)
    started_at = parts.outages.started_at
    return health.report(
        primary=health.PrimaryHealth(
            backend=parts.backend.name,
            healthy=primary_healthy(parts),
            breaker_open=parts.breaker.is_open,
            outage_seconds=None if started_at is None else time.time() - started_at,
            error=parts.prober.last_error or parts.outages.reason,
            outstanding_attempts=parts.guard.outstanding,
            pool=parts.backend.gauges(),
            notes=parts.backend.notes(),
            unreadable=len(parts.backend.unreadable),
        ),
        journal=health.JournalHealth(
            mode=_mode(parts),
            durable=parts.journal is not None and parts.journal.durable,
            accepts=config.on_outage == "journal" and _writable(parts),
            pending=journal.pending,
            oldest_age=_age(journal),
            size=journal.size,
            capacity=journal.capacity,
            dead_letters=journal.dead_letters,
            frozen_threads=journal.frozen_threads,
            damages=journal.damages,
            error=_error(parts),
            foreign=journal.foreign,
        ),
        standby=health.StandbyHealth(threads=len(parts.standby), size=parts.standby.size),
        divergences=counts(parts).divergences,
        parts={"audit": {"healthy": parts.note.error is None, "error": parts.note.error}, **companions},
    )


def dead_letters(parts: Components) -> list[dict[str, Any]]:
    """What the primary refused for good, as plain JSON types."""
    letters = parts.journal.dead_letters() if parts.journal is not None else ()
    return [
        {
            "thread_id": letter.entry.thread_id,
            "operation": letter.entry.name,
            "journaled_at": letter.entry.journaled_at,
            "error": letter.error,
        }
        for letter in letters
    ]


def _journal_status(parts: Components) -> JournalStatus:
    return parts.journal.status() if parts.journal is not None else NO_JOURNAL


def _mode(parts: Components) -> str:
    if parts.journal is None:
        return "off"
    return "durable" if parts.journal.durable else "memory"


def _error(parts: Components) -> str | None:
    """Why the journal could not take a write now."""
    if parts.journal_check is not None and parts.journal_check.silent:
        return "its disk does not answer"
    return _journal_status(parts).error


def _writable(parts: Components) -> bool:
    journal = _journal_status(parts)
    return parts.journal is not None and _error(parts) is None and _own_size(journal) < journal.capacity


def _own_size(journal: JournalStatus) -> int:
    """What this process's own writes take; those of others that it adopted take none of its room."""
    return journal.size - journal.adopted_size


def _age(journal: JournalStatus) -> float:
    return 0.0 if journal.oldest_at is None else max(0.0, time.time() - journal.oldest_at)
