"""Recent calls, outages and messages, and totals, in bounded memory: for the status page of this process.

The manager's event loop writes; any thread may read, from copies that are made in one step.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from math import ceil
from time import perf_counter

from enhanced_checkpointing.observability.events import (
    ConfigurationFault,
    Diverged,
    Event,
    Gauges,
    Notice,
    OperationScope,
    OutageEnded,
    OutageStarted,
    PrimaryRecovered,
    SystemState,
)
from enhanced_checkpointing.observability.log import LOGGER_NAME, Shield, one_line
from enhanced_checkpointing.observability.metrics import (
    OPERATION_DURATION,
    OPERATIONS,
    PROBE_DURATION,
    SECONDS_BOUNDARIES,
    Labels,
    measured,
)

CALLS_KEPT = 500
"""Calls kept of each operation and outcome, for percentiles."""

OUTAGES_KEPT = 50
MESSAGES_KEPT = 50
DIVERGENCES_KEPT = 20

SAMPLE_SECONDS = 2.0
"""The shortest time between two samples, except where the state changes."""

SAMPLES_KEPT = 900
"""Half an hour of an outage, in which there are many; more than an hour at the pace of a healthy primary's probes."""


@dataclass(frozen=True, slots=True)
class PastOutage:
    """One outage. Times are seconds, `started_at` is wall-clock.

    `down` is None until the primary takes writes again, `seconds` until the journal is drained; the counts are of then.
    """

    started_at: float
    reason: str | None
    down: float | None = None
    seconds: float | None = None
    journaled: int = 0
    drained: int = 0
    dead_letters: int = 0
    divergences: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """State and backlog `at` a wall-clock time."""

    at: float
    state: SystemState
    pending: int


@dataclass(frozen=True, slots=True)
class Message:
    """A message to the operator; `level` is "WARNING" or "ERROR". Without secrets."""

    at: float
    level: str
    text: str


@dataclass(frozen=True, slots=True)
class Total:
    """The value of one metric and set of labels since `Recent` began to listen.

    With `buckets` it is a histogram: the number of values between each boundary and the one before; `amount` is their
    sum.
    """

    name: str
    labels: Labels
    amount: float
    buckets: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Latency:
    """Recent calls of one operation; times are seconds, `outcomes` says how many ended in each way."""

    operation: str
    calls: int
    median: float
    p99: float
    slowest: float
    outcomes: dict[str, int]


class _Histogram:
    """All values of one set of labels, and the newest `CALLS_KEPT`, each with when it ended."""

    __slots__ = ("amount", "buckets", "newest")

    def __init__(self) -> None:
        self.amount = 0.0
        self.buckets = [0] * (len(SECONDS_BOUNDARIES) + 1)
        self.newest: deque[tuple[float, float]] = deque(maxlen=CALLS_KEPT)

    def add(self, seconds: float, ended: float) -> None:
        self.amount += seconds
        self.buckets[bisect_left(SECONDS_BOUNDARIES, seconds)] += 1
        self.newest.append((ended, seconds))

    def total(self, name: str, labels: Labels) -> Total:
        return Total(name, labels, self.amount, tuple(self.buckets))


_Calls = dict[tuple[str, str, str], _Histogram]
"""By operation, backend and outcome."""


class _Call:
    """Times one live call."""

    __slots__ = ("_begun", "_calls", "_scope")

    def __init__(self, calls: _Calls, scope: OperationScope) -> None:
        self._calls = calls
        self._scope = scope

    def __enter__(self) -> None:
        self._begun = perf_counter()

    def __exit__(self, *_error: object) -> None:
        ended = perf_counter()
        scope = self._scope
        key = (scope.operation, scope.backend, scope.outcome)
        histogram = self._calls.get(key)
        if histogram is None:
            histogram = self._calls[key] = _Histogram()
        histogram.add(ended - self._begun, ended)


class Recent:
    """A sink that remembers; a call costs about a microsecond.

    Its samples need no timer: every probe emits an event.
    """

    def __init__(self, wall_clock: Callable[[], float] = time.time) -> None:
        self._wall_clock = wall_clock
        self._calls: _Calls = {}
        self._counters: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._probes: dict[tuple[tuple[str, str], ...], _Histogram] = {}
        self._outages: deque[PastOutage] = deque(maxlen=OUTAGES_KEPT)
        self._samples: deque[Sample] = deque(maxlen=SAMPLES_KEPT)
        self._messages: deque[Message] = deque(maxlen=MESSAGES_KEPT)
        self._divergences: deque[tuple[float, Diverged]] = deque(maxlen=DIVERGENCES_KEPT)
        self._gauges: Callable[[], Gauges] | None = None
        self._shield = Shield(logging.getLogger(LOGGER_NAME).warning)
        self.since = wall_clock()
        """The wall-clock time at which it began to listen."""

    # Listening

    def operation(self, scope: OperationScope) -> AbstractContextManager[object]:
        return _Call(self._calls, scope)

    def emit(self, event: Event) -> None:
        with self._shield:
            now = self._wall_clock()
            self._count(event)
            self._remember(event, now)
            self._sample(now, at_once=isinstance(event, OutageStarted | PrimaryRecovered | OutageEnded))

    def observe(self, gauges: Callable[[], Gauges]) -> None:
        self._gauges = gauges
        with self._shield:
            self._sample(self._wall_clock(), at_once=True)

    def close(self) -> None:
        self._gauges = None

    def _count(self, event: Event) -> None:
        found = measured(event)
        if found is None:
            return
        labels = tuple(found.labels.items())
        if found.name == PROBE_DURATION:
            self._probes.setdefault(labels, _Histogram()).add(found.amount, perf_counter())
        else:
            key = (found.name, labels)
            self._counters[key] = self._counters.get(key, 0) + found.amount

    def _remember(self, event: Event, now: float) -> None:
        match event:
            case OutageStarted():
                self._outages.append(PastOutage(event.started_at, one_line(event.reason)))
            case PrimaryRecovered():
                self._change_outage(now - event.outage_seconds, down=event.outage_seconds)
            case OutageEnded():
                self._change_outage(
                    event.started_at,
                    seconds=event.outage_seconds,
                    journaled=event.journaled,
                    drained=event.drained,
                    dead_letters=event.dead_letters,
                    divergences=event.divergences,
                )
            case Diverged():
                self._divergences.append((now, event))
            case ConfigurationFault():
                self._tell(now, "ERROR", f"{event.error}. To mend it: {event.fix}")
            case Notice() if event.level in ("WARNING", "ERROR"):
                self._tell(now, event.level, event.message)
            case _:
                pass

    def _tell(self, now: float, level: str, text: str) -> None:
        """Keep a message; a repeated one moves to the end."""
        said = Message(now, level, one_line(text))
        for earlier in [message for message in self._messages if message.text == said.text]:
            self._messages.remove(earlier)
        self._messages.append(said)

    def _change_outage(self, started_at: float, **changes: float) -> None:
        """Change the current outage, which may have begun before this sink listened."""
        if not self._outages or self._outages[-1].seconds is not None:
            self._outages.append(PastOutage(started_at, None))
        self._outages[-1] = replace(self._outages[-1], **changes)  # type: ignore[arg-type]

    def _sample(self, now: float, *, at_once: bool) -> None:
        due = at_once or not self._samples or abs(now - self._samples[-1].at) >= SAMPLE_SECONDS
        gauges = self.gauges() if due else None
        if gauges is not None:
            self._samples.append(Sample(now, gauges.state, gauges.journal_pending))

    # Reading

    def gauges(self) -> Gauges | None:
        """The current values; None while no manager is open."""
        gauges = self._gauges
        return gauges() if gauges is not None else None

    def outages(self) -> tuple[PastOutage, ...]:
        """Oldest first; the last one may go on."""
        return tuple(self._outages)

    def samples(self) -> tuple[Sample, ...]:
        """Oldest first."""
        return tuple(self._samples)

    def messages(self) -> tuple[Message, ...]:
        """Oldest first."""
        return tuple(self._messages)

    def divergences(self) -> tuple[tuple[float, Diverged], ...]:
        """Each with the wall-clock time at which it was found, oldest first."""
        return tuple(self._divergences)

    def latencies(self, seconds: float) -> tuple[Latency, ...]:
        """Of the calls that ended within the last `seconds`, as far as they are kept; by operation."""
        oldest = perf_counter() - seconds
        found: dict[str, dict[str, list[float]]] = {}
        for (operation, _, outcome), histogram in tuple(self._calls.items()):
            times = [took for ended, took in tuple(histogram.newest) if ended >= oldest]
            if times:
                found.setdefault(operation, {}).setdefault(outcome, []).extend(times)
        return tuple(_latency(operation, found[operation]) for operation in sorted(found))

    def totals(self) -> tuple[Total, ...]:
        """Every counter and histogram, by the names of the library's metrics."""
        found = [Total(name, dict(labels), amount) for (name, labels), amount in tuple(self._counters.items())]
        found += [probes.total(PROBE_DURATION, dict(labels)) for labels, probes in tuple(self._probes.items())]
        for (operation, backend, outcome), histogram in tuple(self._calls.items()):
            total = histogram.total(
                OPERATION_DURATION, {"operation": operation, "backend": backend, "outcome": outcome}
            )
            found += [total, Total(OPERATIONS, total.labels, sum(total.buckets))]
        return tuple(found)


def _latency(operation: str, by_outcome: dict[str, list[float]]) -> Latency:
    times = sorted(took for several in by_outcome.values() for took in several)
    return Latency(
        operation=operation,
        calls=len(times),
        median=_quantile(times, 0.5),
        p99=_quantile(times, 0.99),
        slowest=times[-1],
        outcomes={outcome: len(several) for outcome, several in sorted(by_outcome.items())},
    )


def _quantile(times: list[float], share: float) -> float:
    """The smallest of the sorted times that this share of them does not exceed."""
    return times[max(0, ceil(share * len(times)) - 1)]
