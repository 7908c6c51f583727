"""The health report: plain JSON types, made of given values. Pure, and without secrets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from enhanced_checkpointing.errors import shortened

_HOMES = 20
_LONGEST = 500
"""Databases that are named, and characters of a text: reports are polled, so they stay small."""

Overall = Literal["healthy", "degraded", "unhealthy"]


@dataclass(frozen=True, slots=True)
class PrimaryHealth:
    """The state of the primary. `error` is redacted; `outage_seconds` is None without an outage."""

    backend: str
    healthy: bool
    breaker_open: bool
    outage_seconds: float | None
    error: str | None
    outstanding_attempts: int
    pool: dict[str, int]
    notes: dict[str, Any]
    unreadable: int = 0
    """Threads that listings leave out, because their metadata is unreadable."""


@dataclass(frozen=True, slots=True)
class JournalHealth:
    """The state of the journal; `mode` is "durable", "memory" or "off" (then all figures are zero).

    `error` says why it cannot take a write now; `damages` counts the damaged places in its files. `foreign` are the
    backlogs in its directory that belong to other databases: the id of each, and how many.
    """

    mode: str
    durable: bool
    accepts: bool
    pending: int
    oldest_age: float
    size: int
    capacity: int
    dead_letters: int
    frozen_threads: tuple[str, ...]
    damages: int = 0
    error: str | None = None
    foreign: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class StandbyHealth:
    """The state of the standby; `size` is bytes."""

    threads: int
    size: int


def overall(primary: PrimaryHealth, journal: JournalHealth, parts_healthy: bool) -> Overall:
    """Healthy: nothing to do. Degraded: agents keep running; investigate. Unhealthy: writes are refused."""
    if not primary.healthy and not journal.accepts:
        return "unhealthy"
    quiet = journal.pending == 0 and not journal.frozen_threads and not journal.damages and journal.error is None
    quiet = quiet and not journal.foreign and not primary.unreadable
    return "healthy" if primary.healthy and quiet and parts_healthy else "degraded"


def report(
    *,
    primary: PrimaryHealth,
    journal: JournalHealth,
    standby: StandbyHealth,
    divergences: int,
    parts: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """The whole report; `parts` are the health of attached resources by name, each with `healthy`."""
    parts_healthy = all(part["healthy"] for part in parts.values())
    return {
        "overall_status": overall(primary, journal, parts_healthy),
        "primary_healthy": primary.healthy,
        "primary_checkpointer": {
            "healthy": primary.healthy,
            "backend": primary.backend,
            "breaker": "open" if primary.breaker_open else "closed",
            "outage_seconds": _rounded(primary.outage_seconds),
            "error": primary.error,
            "outstanding_attempts": primary.outstanding_attempts,
            "pool": dict(primary.pool),
            "unreadable_threads": primary.unreadable,
            **primary.notes,
        },
        "fallback_checkpointer": {
            "healthy": journal.accepts,
            "warm_threads": standby.threads,
            "size_bytes": standby.size,
        },
        "journal": {
            "healthy": journal.accepts and not journal.frozen_threads and not journal.damages,
            "mode": journal.mode,
            "durable": journal.durable,
            "pending": journal.pending,
            "oldest_age_seconds": _rounded(journal.oldest_age),
            "size_bytes": journal.size,
            "capacity_bytes": journal.capacity,
            "dead_letters": journal.dead_letters,
            "frozen_threads": len(journal.frozen_threads),
            "damages": journal.damages,
            "error": journal.error,
            "foreign": _foreign(journal.foreign),
        },
        "divergences": {"healthy": divergences == 0, "count": divergences},
        **parts,
    }


def _foreign(found: tuple[tuple[str, int], ...]) -> list[dict[str, Any]]:
    """The first databases by name, all others as one: a directory may hold backlogs for any number of them."""
    named = [{"home": shortened(home, _LONGEST), "books": books} for home, books in found[:_HOMES]]
    if others := found[_HOMES:]:
        named.append({"home": f"and {len(others)} others", "books": sum(books for _, books in others)})
    return named


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def report_closed(companions: dict[str, dict[str, Any]], *, enabled: bool) -> dict[str, Any]:
    """The report of a manager that is not open, which is healthy with `enabled=False`."""
    closed = {"healthy": not enabled, "error": "the checkpointer is not initialized" if enabled else None}
    return {
        "overall_status": "unhealthy" if enabled else "healthy",
        "primary_healthy": not enabled,
        "primary_checkpointer": closed,
        "fallback_checkpointer": dict(closed),
        "journal": {**closed, "pending": 0, "durable": False},
        "divergences": {"healthy": True, "count": 0},
        **companions,
    }
