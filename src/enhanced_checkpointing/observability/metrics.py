"""The library's metrics: names, units, boundaries, and the events that they count. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from enhanced_checkpointing.observability.events import (
    DeadLettered,
    Diverged,
    Event,
    FailedOver,
    Gauges,
    ProbeFinished,
    RetryScheduled,
    ThreadDrained,
    ThreadRetired,
)

# The boundaries that OpenTelemetry's conventions give for database calls, in seconds; the SDK's own are milliseconds.
SECONDS_BOUNDARIES = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)

OPERATION_DURATION = "checkpointer.operation.duration"
OPERATIONS = "checkpointer.operations"
PROBE_DURATION = "checkpointer.probe.duration"

# name, description; all are seconds
HISTOGRAMS = ((OPERATION_DURATION, "Time of one live call"), (PROBE_DURATION, "Time of one probe of the primary"))
# name, unit, description
COUNTERS = (
    (OPERATIONS, "{operation}", "Live calls"),
    ("checkpointer.retries", "{retry}", "Repeated attempts"),
    ("checkpointer.failovers", "{operation}", "Journaled as the primary could not"),
    ("checkpointer.reconcile.operations", "{operation}", "Written from the journal"),
    ("checkpointer.reconcile.divergences", "{divergence}", "Heads that moved meanwhile"),
    ("checkpointer.reconcile.dead_letters", "{operation}", "Refused for good"),
    ("checkpointer.retention.threads", "{thread}", "Old threads that were deleted or pruned, or could not be"),
)


@dataclass(frozen=True, slots=True)
class Observed:
    """A value that is read when metrics are collected: the field of `Gauges` with the metric's name, or that key of its
    pool. `combine` is for several managers of one process; `total` says that it only grows."""

    name: str
    unit: str
    description: str
    combine: Callable[[list[float]], float] = sum
    total: bool = False

    def read(self, gauges: Gauges) -> float | None:
        """The value now; None where there is none."""
        group, _, key = self.name.removeprefix("checkpointer.").partition(".")
        found = gauges.pool.get(key) if group == "pool" else getattr(gauges, f"{group}_{key}".rstrip("_"))
        return int(found) if isinstance(found, int) else found  # enums and booleans become integers


# What has no unit has none here: of a gauge whose unit is "1" a Collector makes a name that ends in "_ratio", and the
# exporter of Python does not.
OBSERVED = (
    Observed("checkpointer.state", "", "0 healthy, 1 draining, 2 outage", max),
    Observed("checkpointer.breaker.openings", "{opening}", "Openings", total=True),
    Observed("checkpointer.journal.pending", "{operation}", "Not yet in the primary"),
    Observed("checkpointer.journal.oldest_age", "s", "Age of the oldest of them", max),
    Observed("checkpointer.journal.writable", "", "Whether it takes writes", min),
    Observed("checkpointer.journal.size", "By", "Bytes of the journal"),
    Observed("checkpointer.journal.utilization", "", "Share taken of its room", max),
    Observed("checkpointer.journal.dead_letters", "{operation}", "Refused for good and kept"),
    Observed("checkpointer.journal.frozen_threads", "{thread}", "Threads that are not drained until they are mended"),
    Observed("checkpointer.journal.damages", "{place}", "Damaged places"),
    Observed("checkpointer.standby.size", "By", "Bytes of the warm copy"),
    # An instrument cannot be created while the SDK collects (it holds its lock), so the pool's names are fixed here.
    Observed("checkpointer.pool.min", "{connection}", "Connections kept open"),
    Observed("checkpointer.pool.max", "{connection}", "Connections allowed"),
    Observed("checkpointer.pool.size", "{connection}", "Connections open or being opened"),
    Observed("checkpointer.pool.available", "{connection}", "Connections idle in the pool"),
    Observed("checkpointer.pool.waiting", "{request}", "Calls that wait for a connection"),
)

Labels = dict[str, str]


@dataclass(frozen=True, slots=True)
class Measured:
    """The amount that one event adds to a counter, or records in a histogram."""

    name: str
    amount: float
    labels: Labels


_COUNTED: dict[type[Event], tuple[str, tuple[str, ...]]] = {
    RetryScheduled: ("checkpointer.retries", ("operation", "backend")),
    FailedOver: ("checkpointer.failovers", ("operation", "backend")),
    ThreadDrained: ("checkpointer.reconcile.operations", ("backend",)),
    ThreadRetired: ("checkpointer.retention.threads", ("backend", "outcome")),
    Diverged: ("checkpointer.reconcile.divergences", ("backend",)),
    DeadLettered: ("checkpointer.reconcile.dead_letters", ("backend", "operation")),
}
"""The counter of an event, and the fields of the event that are its labels."""


def measured(event: Event) -> Measured | None:
    """The metric of an event; None if no metric counts it."""
    if isinstance(event, ProbeFinished):
        labels = {"backend": event.backend, "outcome": "error" if event.error_type else "primary"}
        return Measured(PROBE_DURATION, event.seconds, labels)
    if (counted := _COUNTED.get(type(event))) is None:
        return None
    counter, fields = counted
    amount = event.operations if isinstance(event, ThreadDrained) else 1
    return Measured(counter, amount, {field: getattr(event, field) for field in fields})
