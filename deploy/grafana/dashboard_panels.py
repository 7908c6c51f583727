"""What the dashboard shows: its rows, their panels and the queries of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

OF = '{job=~"$job", instance=~"$instance"}'
"""Stands after the name of a metric: of what is chosen at the top of the dashboard."""

# What a caller sees as an error; "refused" is for what the caller asked.
FAILED = '{job=~"$job", instance=~"$instance", outcome=~"unavailable|error"}'

GREEN, BLUE, YELLOW, RED = "green", "blue", "yellow", "red"
STATES = {"0": ("healthy", GREEN), "1": ("draining", BLUE), "2": ("outage", RED)}
YES_OR_NO = {"0": ("no", RED), "1": ("yes", GREEN)}


@dataclass(frozen=True)
class Panel:
    """One picture. `queries` are PromQL and legend; `steps` are the values from which on a colour holds."""

    title: str
    meaning: str
    queries: Sequence[tuple[str, str]]
    kind: str = "timeseries"
    unit: str = "short"
    width: int = 8
    height: int = 8
    steps: Sequence[tuple[float, str]] = ()
    names: dict[str, tuple[str, str]] = field(default_factory=dict)
    bars: bool = False


@dataclass(frozen=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: Sequence[Panel]


def now(title: str, meaning: str, query: str, **rest: Any) -> Panel:
    """One number, as it is now."""
    return Panel(title, meaning, [(query, "")], kind="stat", width=4, height=4, **rest)


def per_second(counters: str, by: str) -> str:
    """The rate of counters, added up by labels."""
    return f"sum by ({by}) (rate({counters}[$__rate_interval]))"


def times(histogram: str) -> list[tuple[str, str]]:
    """The median, and what one in a hundred exceeds."""
    buckets = per_second(f"{histogram}_bucket{OF}", by="le")
    return [(f"histogram_quantile({share}, {buckets})", name) for share, name in ((0.5, "median"), (0.99, "99%"))]


ROWS = (
    Row(
        "Is everything that was acknowledged safe?",
        (
            now(
                "State",
                "Of the process that is worst off. Outage: writes go to the journal, not to the database. Draining: it "
                "is back, and the journal is being written to it.",
                f"max(checkpointer_state{OF})",
                names=STATES,
            ),
            now(
                "Operations in journals only",
                "Acknowledged, synced to the disk of one process, not in the database yet.",
                f"sum(checkpointer_journal_pending{OF})",
                steps=((1, YELLOW),),
            ),
            now(
                "Oldest of them",
                "How long the oldest has been waiting for the database.",
                f"max(checkpointer_journal_oldest_age_seconds{OF})",
                unit="s",
                steps=((60, YELLOW), (3600, RED)),
            ),
            now(
                "Fullest journal",
                "At 100% that process refuses writes until the database is back.",
                f"max(checkpointer_journal_utilization{OF})",
                unit="percentunit",
                steps=((0.5, YELLOW), (0.8, RED)),
            ),
            now(
                "Every journal takes writes",
                "Tried every few seconds, also while nobody needs it. No: the next outage would refuse writes.",
                f"min(checkpointer_journal_writable{OF})",
                names=YES_OR_NO,
            ),
            now(
                "Alerts that fire",
                "Each has a section in docs/operations.md.",
                'count(ALERTS{alertname=~"Checkpointer.*", alertstate="firing"}) or vector(0)',
                steps=((1, RED),),
            ),
            now(
                "Dead letters",
                "Journaled operations that the database refuses for good. Their threads wait in the journal.",
                f"sum(checkpointer_journal_dead_letters{OF})",
                steps=((1, RED),),
            ),
            now(
                "Frozen threads",
                "Threads that a dead letter or damage keeps in the journal until somebody mends them.",
                f"sum(checkpointer_journal_frozen_threads{OF})",
                steps=((1, RED),),
            ),
            now(
                "Damaged places",
                "In the files of the journals. What may be lost by them is frozen and kept.",
                f"sum(checkpointer_journal_damages{OF})",
                steps=((1, RED),),
            ),
            now(
                "Divergences since the start",
                "Threads that another process wrote to in an outage. Both branches are kept.",
                f"sum(checkpointer_reconcile_divergences_total{OF}) or vector(0)",
                steps=((1, YELLOW),),
            ),
            now(
                "Openings today",
                "How often a process gave the database up and began to journal.",
                f"sum(increase(checkpointer_breaker_openings_total{OF}[24h]))",
                steps=((1, YELLOW), (10, RED)),
            ),
            now(
                "Processes that report",
                "Fewer than you run: some are not seen, and their alerts cannot fire.",
                f"count(checkpointer_state{OF}) or vector(0)",
                steps=((1, GREEN),),
            ),
            Panel(
                "State of each process",
                "Red is an outage, blue the drain after it.",
                [(f"checkpointer_state{OF}", "{{instance}}")],
                kind="state-timeline",
                names=STATES,
                width=24,
                height=5,
            ),
        ),
    ),
    Row(
        "The journal",
        (
            Panel(
                "Operations in the journal",
                "Rises in an outage, falls to 0 in the drain after it.",
                [(f"checkpointer_journal_pending{OF}", "{{instance}}")],
            ),
            Panel(
                "Journaled and drained since the start",
                "Journaled: what the database could not take. Drained: written to it from the journal.",
                [
                    (f"sum(checkpointer_failovers_total{OF}) or vector(0)", "journaled"),
                    (f"sum(checkpointer_reconcile_operations_total{OF}) or vector(0)", "drained"),
                ],
            ),
            Panel(
                "Size",
                "Of the files of the journal, and of the warm copy of recent threads in memory.",
                [
                    (f"checkpointer_journal_size_bytes{OF}", "journal of {{instance}}"),
                    (f"checkpointer_standby_size_bytes{OF}", "warm copy of {{instance}}"),
                ],
                unit="bytes",
            ),
        ),
    ),
    Row(
        "Calls",
        (
            Panel(
                "Calls per second, by what became of them",
                "primary: the database answered. journaled, standby: the journal or the warm copy did. unavailable and "
                "error: the caller got an error. refused: the caller's own fault.",
                [(per_second(f"checkpointer_operations_total{OF}", by="outcome"), "{{outcome}}")],
                unit="ops",
                bars=True,
            ),
            Panel(
                "Calls that fail per second",
                "What agents, and their users, see of an outage.",
                [
                    (
                        per_second(f"checkpointer_operations_total{FAILED}", by="operation, outcome"),
                        "{{operation}}: {{outcome}}",
                    )
                ],
                unit="ops",
            ),
            Panel(
                "Time of a call",
                "The median, and what one call in a hundred exceeds. Never above CHECKPOINT_DEADLINE + 0.1 s.",
                times("checkpointer_operation_duration_seconds"),
                unit="s",
            ),
        ),
    ),
    Row(
        "The database, as this library sees it",
        (
            Panel(
                "Probes per second",
                "Each proves that a write works. Errors: it does not.",
                [(per_second(f"checkpointer_probe_duration_seconds_count{OF}", by="outcome"), "{{outcome}}")],
                unit="ops",
                bars=True,
            ),
            Panel(
                "Time of a probe",
                "The median, and what one probe in a hundred exceeds.",
                times("checkpointer_probe_duration_seconds"),
                unit="s",
            ),
            Panel(
                "Connections",
                "Open, idle and allowed at most, of all processes; and the calls that wait for one.",
                [
                    (f"sum(checkpointer_pool_size{OF})", "open"),
                    (f"sum(checkpointer_pool_available{OF})", "idle"),
                    (f"sum(checkpointer_pool_max{OF})", "allowed"),
                    (f"sum(checkpointer_pool_waiting{OF})", "calls that wait"),
                ],
            ),
            Panel(
                "Repeated attempts per second",
                "Transient failures that were tried again within the deadline.",
                [(per_second(f"checkpointer_retries_total{OF}", by="operation"), "{{operation}}")],
                unit="ops",
                width=12,
            ),
            Panel(
                "Openings of the breaker",
                "In a quarter of an hour. Three or more: the database comes and goes.",
                [(f"increase(checkpointer_breaker_openings_total{OF}[15m])", "{{instance}}")],
                width=12,
                steps=((3, RED),),
            ),
        ),
    ),
)
