"""Where an operation goes next, decided without I/O."""

from __future__ import annotations

from enum import Enum

from enhanced_checkpointing.resilience.failures import FailureKind


class Route(Enum):
    """Where the operations of a thread go: to the journal while it holds anything of that thread, else the primary."""

    PRIMARY = "primary"
    JOURNAL = "journal"


class Verdict(Enum):
    """What becomes of an operation that the primary did not take."""

    JOURNAL = "journal"
    RAISE = "raise"
    UNAVAILABLE = "unavailable"


def route_of(*, breaker_open: bool, journal_holds: bool) -> Route:
    """Nothing of a thread goes to the primary while the journal holds anything of it, so that order is kept."""
    return Route.JOURNAL if breaker_open or journal_holds else Route.PRIMARY


def after_failed_write(kind: FailureKind, *, may_journal: bool) -> Verdict:
    """The caller's own faults and damaged data are raised; all else is kept in the journal, if there is one."""
    if kind in (FailureKind.DATA, FailureKind.CORRUPTION):
        return Verdict.RAISE
    return Verdict.JOURNAL if may_journal else Verdict.UNAVAILABLE


def after_failed_read(kind: FailureKind) -> Verdict:
    """What the primary cannot answer now, the standby may; a saturated pool must not serve a copy that may be old."""
    if kind in (FailureKind.DATA, FailureKind.CORRUPTION):
        return Verdict.RAISE
    return Verdict.UNAVAILABLE if kind is FailureKind.SATURATED else Verdict.JOURNAL
