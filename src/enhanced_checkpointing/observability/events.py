"""Frozen records of what happened, and the protocol of those who listen to them.

The library's logic emits these and knows nothing of OpenTelemetry or logging. Times are seconds; `started_at` is
wall-clock (`time.time()`), so that a span can be made of a record after the fact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import IntEnum
from types import TracebackType
from typing import Protocol


class SystemState(IntEnum):
    """The value of the metric `checkpointer.state`."""

    HEALTHY = 0
    DRAINING = 1
    OUTAGE = 2


@dataclass(slots=True)
class OperationScope:
    """One live call; the engine fills it in while it runs, the sinks read it when it ends.

    `route` is "primary" or "journal"; `outcome` is "primary", "journaled", "standby", "unavailable", "refused" (the
    caller's data), "cancelled" or "error".
    """

    operation: str
    backend: str
    thread_id: str | None
    route: str = "primary"
    outcome: str = "error"
    error_type: str | None = None


@dataclass(frozen=True, slots=True)
class RetryScheduled:
    """A failed attempt will be repeated after `delay` seconds; `attempt` counts from 1."""

    operation: str
    backend: str
    attempt: int
    delay: float
    error_type: str


@dataclass(frozen=True, slots=True)
class AttemptAbandoned:
    """An attempt was late and is left behind; `outstanding` counts those not yet finished, this one included."""

    operation: str
    backend: str
    waited: float
    outstanding: int


@dataclass(frozen=True, slots=True)
class OutageStarted:
    """The breaker opened: live calls no longer touch the primary."""

    backend: str
    reason: str
    started_at: float


@dataclass(frozen=True, slots=True)
class PrimaryRecovered:
    """A probe proved that the primary takes writes again; the breaker closed and draining may begin."""

    backend: str
    outage_seconds: float
    pending: int


@dataclass(frozen=True, slots=True)
class OutageEnded:
    """The journal is drained after an outage. The counts are those of this outage."""

    backend: str
    started_at: float
    outage_seconds: float
    journaled: int
    drained: int
    dead_letters: int
    divergences: int


@dataclass(frozen=True, slots=True)
class FailedOver:
    """One operation was journaled because the primary could not take it."""

    backend: str
    operation: str
    reason: str


@dataclass(frozen=True, slots=True)
class ProbeFinished:
    """One probe of the primary; `error_type` is None when it proved a write."""

    backend: str
    started_at: float
    seconds: float
    error_type: str | None


@dataclass(frozen=True, slots=True)
class ThreadDrained:
    """One thread's journal was replayed, or the attempt stopped; `outcome` is "drained", "paused" or "frozen"."""

    backend: str
    thread_id: str
    started_at: float
    seconds: float
    operations: int
    outcome: str


@dataclass(frozen=True, slots=True)
class ThreadRetired:
    """Retention did something to one thread; `outcome` is "deleted", "pruned" or "failed"."""

    backend: str
    thread_id: str
    outcome: str


@dataclass(frozen=True, slots=True)
class DeadLettered:
    """The primary refused one journaled operation for good; its thread is frozen on the journal until it is mended."""

    backend: str
    thread_id: str
    operation: str
    error: str


@dataclass(frozen=True, slots=True)
class Diverged:
    """The primary's head of a thread moved while this process journaled it; both branches are kept.

    `deletion`: the journaled operation was the deletion of the thread, and was not applied.
    """

    backend: str
    thread_id: str
    checkpoint_ns: str
    expected_head: str | None
    found_head: str | None
    kept_as: str
    deletion: bool = False


@dataclass(frozen=True, slots=True)
class ConfigurationFault:
    """A primary that worked before now refuses for a permanent reason; `fix` says what to do."""

    backend: str
    error: str
    fix: str


@dataclass(frozen=True, slots=True)
class Notice:
    """Any other message for the operator; `level` is a name of the logging module."""

    level: str
    message: str


Event = (
    RetryScheduled
    | AttemptAbandoned
    | OutageStarted
    | PrimaryRecovered
    | OutageEnded
    | FailedOver
    | ProbeFinished
    | ThreadDrained
    | ThreadRetired
    | DeadLettered
    | Diverged
    | ConfigurationFault
    | Notice
)


@dataclass(frozen=True, slots=True)
class Gauges:
    """Current values, read when metrics are collected. Sizes are bytes, ages are seconds.

    `pool` has any of the keys "min", "max", "size", "available" and "waiting". `journal_utilization` is the share taken
    of the room for this process's own writes; at 1 it takes no more. `breaker_openings` counts since the start.
    """

    state: SystemState = SystemState.HEALTHY
    journal_pending: int = 0
    journal_oldest_age: float = 0.0
    journal_size: int = 0
    standby_size: int = 0
    pool: dict[str, int] = field(default_factory=dict)
    journal_writable: bool = False
    journal_utilization: float = 0.0
    journal_dead_letters: int = 0
    journal_frozen_threads: int = 0
    journal_damages: int = 0
    breaker_openings: int = 0


NOTHING: AbstractContextManager[object] = nullcontext()
"""Returned by sinks that ignore single calls."""


class Telemetry(Protocol):
    """A listener. Implementations never raise into the caller and never block; what one leaves out does nothing."""

    def operation(self, scope: OperationScope) -> AbstractContextManager[object]:
        """Enter around one live call; on exit `scope` says how it ended."""
        return NOTHING

    def emit(self, event: Event) -> None:
        """Take note of one event."""

    def observe(self, gauges: Callable[[], Gauges]) -> None:
        """Read `gauges` whenever current values are collected."""
        return

    def close(self) -> None:
        """Forget the gauges and end what is open."""
        return


class _Both:
    """One context within another; an exit stack would cost each call three times as much."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, outer: AbstractContextManager[object], inner: AbstractContextManager[object]) -> None:
        self._outer = outer
        self._inner = inner

    def __enter__(self) -> None:
        self._outer.__enter__()
        self._inner.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._inner.__exit__(kind, error, traceback)
        finally:
            self._outer.__exit__(kind, error, traceback)


class Broadcast:
    """Sends everything to each of several sinks, in order."""

    def __init__(self, sinks: Sequence[Telemetry]) -> None:
        self._sinks: tuple[Telemetry, ...] = ()
        self._watching: tuple[Callable[[OperationScope], AbstractContextManager[object]], ...] = ()
        """The `operation` of each sink that does anything with single calls."""
        self._gauges: Callable[[], Gauges] | None = None
        for sink in sinks:
            self.add(sink)

    def add(self, sink: Telemetry) -> None:
        """Add a sink, which receives everything from now on."""
        self._sinks = (*self._sinks, sink)
        if getattr(type(sink), "operation", None) is not Telemetry.operation:
            self._watching = (*self._watching, sink.operation)
        if self._gauges is not None:
            sink.observe(self._gauges)

    def operation(self, scope: OperationScope) -> AbstractContextManager[object]:
        entered = NOTHING
        for operation in self._watching:
            context = operation(scope)
            if context is not NOTHING:
                entered = context if entered is NOTHING else _Both(entered, context)
        return entered

    def emit(self, event: Event) -> None:
        for sink in self._sinks:
            sink.emit(event)

    def observe(self, gauges: Callable[[], Gauges]) -> None:
        self._gauges = gauges
        for sink in self._sinks:
            sink.observe(gauges)

    def close(self) -> None:
        self._gauges = None
        for sink in self._sinks:
            sink.close()
