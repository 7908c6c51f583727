"""The library's metrics: their names, units and boundaries, and how current values are read."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from enhanced_checkpointing.telemetry.events import Gauges
from enhanced_checkpointing.telemetry.shield import LOGGER_NAME, Shield

GaugeSource = Callable[[], Gauges]

# The boundaries that OpenTelemetry's conventions give for database calls, in seconds; the SDK's own are milliseconds.
_SECONDS_BOUNDARIES = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)

# name, unit, description, how it is read, how several managers of one process are combined
_GAUGES: tuple[tuple[str, str, str, Callable[[Gauges], float], Callable[[list[float]], float]], ...] = (
    ("checkpointer.state", "", "0 healthy, 1 draining, 2 outage", lambda now: int(now.state), max),
    ("checkpointer.journal.pending", "{operation}", "Not yet in the primary", lambda now: now.journal_pending, sum),
    ("checkpointer.journal.oldest_age", "s", "Age of the oldest of them", lambda now: now.journal_oldest_age, max),
    (
        "checkpointer.journal.writable",
        "1",
        "Whether it takes writes",
        lambda now: int(now.journal_writable),
        min,
    ),
    ("checkpointer.journal.size", "By", "Bytes of the journal", lambda now: now.journal_size, sum),
    ("checkpointer.standby.size", "By", "Bytes of the warm copy", lambda now: now.standby_size, sum),
)
# An instrument cannot be created while the SDK collects (it holds its lock), so the pool's names are fixed here.
_POOL_GAUGES = {
    "min": ("{connection}", "Connections kept open"),
    "max": ("{connection}", "Connections allowed"),
    "size": ("{connection}", "Connections open or being opened"),
    "available": ("{connection}", "Connections idle in the pool"),
    "waiting": ("{request}", "Calls that wait for a connection"),
}


class Instruments:
    """Every instrument, made once per meter provider.

    The SDK ignores the callback of an observable gauge whose name it already has, so a second manager in the process
    would stay dark with gauges of its own: all of them share these, and `sources` says who is read.
    """

    def __init__(self, meter: Meter) -> None:
        self.sources: tuple[GaugeSource, ...] = ()
        self._shield = Shield(logging.getLogger(LOGGER_NAME).warning)
        self.duration = meter.create_histogram(
            "checkpointer.operation.duration",
            unit="s",
            description="Time of one live call",
            explicit_bucket_boundaries_advisory=_SECONDS_BOUNDARIES,
        )
        self.probe_duration = meter.create_histogram(
            "checkpointer.probe.duration",
            unit="s",
            description="Time of one probe of the primary",
            explicit_bucket_boundaries_advisory=_SECONDS_BOUNDARIES,
        )
        counter = meter.create_counter
        self.operations = counter("checkpointer.operations", "{operation}", "Live calls")
        self.retries = counter("checkpointer.retries", "{retry}", "Repeated attempts")
        self.failovers = counter("checkpointer.failovers", "{operation}", "Journaled as the primary could not")
        self.reconciled = counter("checkpointer.reconcile.operations", "{operation}", "Written from the journal")
        self.divergences = counter("checkpointer.reconcile.divergences", "{divergence}", "Heads that moved meanwhile")
        self.dead_letters = counter("checkpointer.reconcile.dead_letters", "{operation}", "Refused for good")
        for name, unit, description, read, combine in _GAUGES:
            meter.create_observable_gauge(name, [self._callback(read, combine)], unit, description)
        for key, (unit, description) in _POOL_GAUGES.items():
            callback = self._callback(partial(_pool_value, key), sum)
            meter.create_observable_gauge(f"checkpointer.pool.{key}", [callback], unit, description)

    def _callback(
        self, read: Callable[[Gauges], float | None], combine: Callable[[list[float]], float]
    ) -> Callable[[CallbackOptions], list[Observation]]:
        def observe(_options: CallbackOptions) -> list[Observation]:
            values: list[float] = []
            for source in self.sources:
                with self._shield:
                    value = read(source())
                    if value is not None:
                        values.append(value)
            return [Observation(combine(values))] if values else []

        return observe


def _pool_value(key: str, now: Gauges) -> int | None:
    return now.pool.get(key)
