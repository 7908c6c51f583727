"""The health report: what it says in words, from what is true."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from enhanced_checkpointing.observability.health import (
    JournalHealth,
    PrimaryHealth,
    StandbyHealth,
    report,
    report_closed,
)

PRIMARY = PrimaryHealth(
    backend="postgres",
    healthy=True,
    breaker_open=False,
    outage_seconds=None,
    error=None,
    outstanding_attempts=0,
    pool={"size": 3},
    notes={"transaction_pooler": False},
)
DOWN = replace(PRIMARY, healthy=False, breaker_open=True, outage_seconds=12.34567, error="connection refused")
JOURNAL = JournalHealth("memory", False, True, 0, 0.0, 0, 4096, 0, ())
FULL = replace(JOURNAL, accepts=False, pending=9, size=4096)
STANDBY = StandbyHealth(threads=2, size=1234)


def reported(
    primary: PrimaryHealth = PRIMARY,
    journal: JournalHealth = JOURNAL,
    divergences: int = 0,
    parts: dict[str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    return report(primary=primary, journal=journal, standby=STANDBY, divergences=divergences, parts=parts or {})


@pytest.mark.parametrize(
    ("primary", "journal", "part_healthy", "overall"),
    [
        (PRIMARY, JOURNAL, True, "healthy"),
        (PRIMARY, replace(JOURNAL, pending=1), True, "degraded"),
        (PRIMARY, replace(JOURNAL, frozen_threads=("t",)), True, "degraded"),
        (PRIMARY, replace(JOURNAL, damages=1), True, "degraded"),
        (PRIMARY, replace(JOURNAL, foreign=(("elsewhere", 1),)), True, "degraded"),
        (PRIMARY, replace(JOURNAL, accepts=False, error="disk full"), True, "degraded"),
        (DOWN, replace(JOURNAL, accepts=False, error="disk full"), True, "unhealthy"),
        (PRIMARY, JOURNAL, False, "degraded"),
        (PRIMARY, replace(JOURNAL, accepts=False), True, "healthy"),
        (DOWN, JOURNAL, True, "degraded"),
        (DOWN, FULL, True, "unhealthy"),
        (DOWN, FULL, False, "unhealthy"),
        (PRIMARY, FULL, True, "degraded"),
    ],
)
def test_overall_status_says_whether_somebody_should_look_and_whether_writes_are_refused(
    primary: PrimaryHealth, journal: JournalHealth, part_healthy: bool, overall: str
) -> None:
    found = reported(primary, journal, parts={"store": {"healthy": part_healthy}})
    assert found["overall_status"] == overall
    assert found["primary_healthy"] is primary.healthy


def test_divergence_of_the_past_is_shown_and_does_not_degrade() -> None:
    found = reported(divergences=3)
    assert found["divergences"] == {"healthy": False, "count": 3}
    assert found["overall_status"] == "healthy"


def test_whole_report_of_an_outage() -> None:
    foreign = (("elsewhere", 3),)
    journal = JournalHealth("memory", False, True, 5, 3.14159, 2048, 4096, 1, ("thread",), 2, "disk full", foreign)
    primary = replace(DOWN, outstanding_attempts=2)
    found = reported(primary, journal, divergences=0, parts={"memory_manager": {"healthy": True}})
    assert found == {
        "overall_status": "degraded",
        "primary_healthy": False,
        "primary_checkpointer": {
            "healthy": False,
            "backend": "postgres",
            "breaker": "open",
            "outage_seconds": 12.346,
            "error": "connection refused",
            "outstanding_attempts": 2,
            "pool": {"size": 3},
            "unreadable_threads": 0,
            "transaction_pooler": False,
        },
        "fallback_checkpointer": {"healthy": True, "warm_threads": 2, "size_bytes": 1234},
        "journal": {
            "healthy": False,
            "mode": "memory",
            "durable": False,
            "pending": 5,
            "oldest_age_seconds": 3.142,
            "size_bytes": 2048,
            "capacity_bytes": 4096,
            "dead_letters": 1,
            "frozen_threads": 1,
            "damages": 2,
            "error": "disk full",
            "foreign": [{"home": "elsewhere", "books": 3}],
        },
        "divergences": {"healthy": True, "count": 0},
        "memory_manager": {"healthy": True},
    }
    assert json.loads(json.dumps(found)) == found


def test_healthy_primary_has_a_closed_breaker_and_no_outage() -> None:
    primary = reported()["primary_checkpointer"]
    assert (primary["breaker"], primary["outage_seconds"], primary["error"]) == ("closed", None, None)


@pytest.mark.parametrize(
    ("changed", "fallback", "journal"),
    [
        ({}, True, True),
        ({"accepts": False}, False, False),
        ({"frozen_threads": ("t",)}, True, False),
        ({"damages": 1}, True, False),
    ],
)
def test_fallback_works_while_the_journal_accepts_and_the_journal_is_well_without_frozen_threads_or_damage(
    changed: dict[str, Any], fallback: bool, journal: bool
) -> None:
    found = reported(journal=replace(JOURNAL, **changed))
    assert found["fallback_checkpointer"]["healthy"] is fallback
    assert found["journal"]["healthy"] is journal


def test_closed_manager_is_unhealthy_and_a_disabled_one_is_as_it_should_be() -> None:
    companions = {"store": {"healthy": True}}
    closed, disabled = report_closed(companions, enabled=True), report_closed(companions, enabled=False)
    assert (closed["overall_status"], disabled["overall_status"]) == ("unhealthy", "healthy")
    assert (closed["primary_healthy"], disabled["primary_healthy"]) == (False, True)
    assert closed["primary_checkpointer"]["error"] == "the checkpointer is not initialized"
    assert disabled["primary_checkpointer"]["error"] is None
    assert closed["store"] == disabled["store"] == {"healthy": True}


@pytest.mark.parametrize("enabled", [True, False])
def test_closed_report_has_every_part_that_an_open_one_has(enabled: bool) -> None:
    closed = report_closed({}, enabled=enabled)
    assert closed.keys() == reported().keys()
    assert (closed["journal"]["pending"], closed["journal"]["durable"], closed["divergences"]["count"]) == (0, False, 0)
    assert json.loads(json.dumps(closed)) == closed
