"""Where an operation goes."""

from __future__ import annotations

import pytest

from enhanced_checkpointing.resilience.failures import FailureKind
from enhanced_checkpointing.saver.routes import (
    Route,
    Verdict,
    after_failed_read,
    after_failed_write,
    route_of,
)


@pytest.mark.parametrize(
    ("breaker_open", "journal_holds", "route"),
    [
        (False, False, Route.PRIMARY),
        (False, True, Route.JOURNAL),
        (True, False, Route.JOURNAL),
        (True, True, Route.JOURNAL),
    ],
)
def test_primary_is_the_route_only_when_it_is_up_and_nothing_waits(
    breaker_open: bool, journal_holds: bool, route: Route
) -> None:
    assert route_of(breaker_open=breaker_open, journal_holds=journal_holds) is route


@pytest.mark.parametrize(
    ("kind", "write", "read"),
    [
        (FailureKind.TRANSIENT, Verdict.JOURNAL, Verdict.JOURNAL),
        (FailureKind.UNKNOWN, Verdict.JOURNAL, Verdict.JOURNAL),
        (FailureKind.OUTAGE, Verdict.JOURNAL, Verdict.JOURNAL),
        (FailureKind.SATURATED, Verdict.JOURNAL, Verdict.UNAVAILABLE),
        (FailureKind.CONFIGURATION, Verdict.JOURNAL, Verdict.JOURNAL),
        (FailureKind.DATA, Verdict.RAISE, Verdict.RAISE),
        (FailureKind.CORRUPTION, Verdict.RAISE, Verdict.RAISE),
    ],
)
def test_every_kind_of_failure_has_its_verdict(kind: FailureKind, write: Verdict, read: Verdict) -> None:
    assert after_failed_write(kind, may_journal=True) is write
    assert after_failed_read(kind) is read


@pytest.mark.parametrize("kind", list(FailureKind))
def test_without_a_journal_nothing_is_journaled(kind: FailureKind) -> None:
    its_own_fault = kind in (FailureKind.DATA, FailureKind.CORRUPTION)
    assert after_failed_write(kind, may_journal=False) is (Verdict.RAISE if its_own_fault else Verdict.UNAVAILABLE)
