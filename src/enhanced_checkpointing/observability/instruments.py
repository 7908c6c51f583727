"""The library's metrics: their names, units and boundaries, what counts for them, and how current values are read."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from opentelemetry.metrics import CallbackOptions, Meter, Observation

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
from enhanced_checkpointing.observability.shield import LOGGER_NAME, Shield

GaugeSource = Callable[[], Gauges]


def _pool_value(key: str, now: Gauges) -> int | None:
    return now.pool.get(key)


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
    """What is read when metrics are collected: None says nothing. `combine` is for several managers of one process;
    `total` says that it only grows."""

    name: str
    unit: str
    description: str
    read: Callable[[Gauges], float | None]
    combine: Callable[[list[float]], float] = sum
    total: bool = False


# What has no unit has none here: of a gauge whose unit is "1" a Collector makes a name that ends in "_ratio", and the
# exporter of Python does not.
OBSERVED = (
    Observed("checkpointer.state", "", "0 healthy, 1 draining, 2 outage", lambda now: int(now.state), max),
    Observed("checkpointer.breaker.openings", "{opening}", "Openings", lambda now: now.breaker_openings, total=True),
    Observed("checkpointer.journal.pending", "{operation}", "Not yet in the primary", lambda now: now.journal_pending),
    Observed(
        "checkpointer.journal.oldest_age", "s", "Age of the oldest of them", lambda now: now.journal_oldest_age, max
    ),
    Observed(
        "checkpointer.journal.writable", "", "Whether it takes writes", lambda now: int(now.journal_writable), min
    ),
    Observed("checkpointer.journal.size", "By", "Bytes of the journal", lambda now: now.journal_size),
    Observed(
        "checkpointer.journal.utilization", "", "Share taken of its room", lambda now: now.journal_utilization, max
    ),
    Observed(
        "checkpointer.journal.dead_letters",
        "{operation}",
        "Refused for good and kept",
        lambda now: now.journal_dead_letters,
    ),
    Observed(
        "checkpointer.journal.frozen_threads",
        "{thread}",
        "Threads that are not drained until they are mended",
        lambda now: now.journal_frozen_threads,
    ),
    Observed("checkpointer.journal.damages", "{place}", "Damaged places", lambda now: now.journal_damages),
    Observed("checkpointer.standby.size", "By", "Bytes of the warm copy", lambda now: now.standby_size),
    # An instrument cannot be created while the SDK collects (it holds its lock), so the pool's names are fixed here.
    *(
        Observed(f"checkpointer.pool.{key}", unit, description, partial(_pool_value, key))
        for key, unit, description in (
            ("min", "{connection}", "Connections kept open"),
            ("max", "{connection}", "Connections allowed"),
            ("size", "{connection}", "Connections open or being opened"),
            ("available", "{connection}", "Connections idle in the pool"),
            ("waiting", "{request}", "Calls that wait for a connection"),
        )
    ),
)

Labels = dict[str, str]


@dataclass(frozen=True, slots=True)
class Measured:
    """What one event adds to the counter, or records in the histogram, of this name."""

    name: str
    amount: float
    labels: Labels


def measured(event: Event) -> Measured | None:
    """What an event means for the metrics; None: nothing."""
    match event:
        case RetryScheduled():
            return Measured("checkpointer.retries", 1, {"operation": event.operation, "backend": event.backend})
        case FailedOver():
            return Measured("checkpointer.failovers", 1, {"operation": event.operation, "backend": event.backend})
        case ProbeFinished():
            outcome = "error" if event.error_type else "primary"
            return Measured(PROBE_DURATION, event.seconds, {"backend": event.backend, "outcome": outcome})
        case ThreadDrained():
            return Measured("checkpointer.reconcile.operations", event.operations, {"backend": event.backend})
        case ThreadRetired():
            labels = {"backend": event.backend, "outcome": event.outcome}
            return Measured("checkpointer.retention.threads", 1, labels)
        case Diverged():
            return Measured("checkpointer.reconcile.divergences", 1, {"backend": event.backend})
        case DeadLettered():
            labels = {"backend": event.backend, "operation": event.operation}
            return Measured("checkpointer.reconcile.dead_letters", 1, labels)
        case _:
            return None


class Instruments:
    """Every instrument, made once per meter provider.

    The SDK ignores the callback of an observable gauge whose name it already has, so a second manager in the process
    would stay dark with gauges of its own: all of them share these, and `sources` says who is read.
    """

    def __init__(self, meter: Meter) -> None:
        self.sources: tuple[GaugeSource, ...] = ()
        self._shield = Shield(logging.getLogger(LOGGER_NAME).warning)
        self._histograms = {
            name: meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=SECONDS_BOUNDARIES)
            for name, description in HISTOGRAMS
        }
        self._counters = {name: meter.create_counter(name, unit, text) for name, unit, text in COUNTERS}
        self.duration, self.operations = self._histograms[OPERATION_DURATION], self._counters[OPERATIONS]
        for observed in OBSERVED:
            create = meter.create_observable_counter if observed.total else meter.create_observable_gauge
            create(observed.name, [self._callback(observed)], observed.unit, observed.description)

    def count(self, event: Event) -> None:
        """Add what an event means."""
        if (found := measured(event)) is None:
            return
        if (histogram := self._histograms.get(found.name)) is not None:
            histogram.record(found.amount, found.labels)
        else:
            self._counters[found.name].add(found.amount, found.labels)

    def _callback(self, observed: Observed) -> Callable[[CallbackOptions], list[Observation]]:
        def observe(_options: CallbackOptions) -> list[Observation]:
            values: list[float] = []
            for source in self.sources:
                with self._shield:
                    value = observed.read(source())
                    if value is not None:
                        values.append(value)
            return [Observation(observed.combine(values))] if values else []

        return observe
