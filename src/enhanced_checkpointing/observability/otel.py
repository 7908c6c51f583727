"""Spans and metrics through opentelemetry-api: the names, units and attributes of the library's telemetry.

Thread ids are on spans only; on metrics they would make one series per conversation.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from time import perf_counter
from weakref import WeakKeyDictionary

import opentelemetry.metrics._internal as metrics_internal
from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, NoOpMeter, Observation
from opentelemetry.trace import NoOpTracer, Span, Status, StatusCode, Tracer, TracerProvider

from enhanced_checkpointing.errors import redact
from enhanced_checkpointing.observability.events import (
    NOTHING,
    AttemptAbandoned,
    ConfigurationFault,
    DeadLettered,
    Diverged,
    Event,
    FailedOver,
    Gauges,
    OperationScope,
    OutageEnded,
    OutageStarted,
    PrimaryRecovered,
    ProbeFinished,
    RetryScheduled,
    ThreadDrained,
)
from enhanced_checkpointing.observability.log import LOGGER_NAME, Shield
from enhanced_checkpointing.observability.metrics import (
    COUNTERS,
    HISTOGRAMS,
    OBSERVED,
    OPERATION_DURATION,
    OPERATIONS,
    SECONDS_BOUNDARIES,
    Observed,
    measured,
)

Attributes = dict[str, str | int | float]
GaugeSource = Callable[[], Gauges]

_INSTRUMENTATION_SCOPE = "enhanced_checkpointing"
_DATABASE_NAMES = {"postgres": "postgresql"}
_FAILED_OUTCOMES = frozenset({"error", "unavailable"})

_SPAN_EVENTS: dict[type[Event], tuple[str, tuple[str, ...]]] = {
    RetryScheduled: ("retry", ("attempt", "delay", "error_type")),
    AttemptAbandoned: ("attempt_abandoned", ("waited", "outstanding")),
    FailedOver: ("failed_over", ("reason",)),
    PrimaryRecovered: ("primary_recovered", ("outage_seconds", "pending")),
    DeadLettered: ("dead_letter", ("thread_id", "operation", "error")),
    Diverged: ("divergence", ("thread_id", "kept_as")),
    ConfigurationFault: ("configuration_fault", ("error", "fix")),
}
"""The span event of an event, and the fields that it shows."""

_SPAN_ATTRIBUTES = {"error_type": "error.type"}
_FREE_TEXT = frozenset({"reason", "error", "fix"})
"""May hold a secret."""


class Instruments:
    """Every instrument, made once per meter provider.

    The SDK ignores the callback of an observable gauge whose name it already has, so a second manager in the process
    would stay dark with gauges of its own: all managers share these, and `sources` are read in turn.
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
        """Record an event."""
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


_instruments_of: WeakKeyDictionary[MeterProvider, Instruments] = WeakKeyDictionary()
_instruments_lock = threading.Lock()


_Providers = tuple[TracerProvider | None, MeterProvider | None]


class _Signals:
    """The tracer and the instruments of one pair of providers; a missing one is a no-op."""

    def __init__(
        self, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None, shield: Shield
    ) -> None:
        self.shield = shield
        self.providers = (tracer_provider, meter_provider)
        self.tracer: Tracer = NoOpTracer()
        if tracer_provider is not None:
            self.tracer = tracer_provider.get_tracer(_INSTRUMENTATION_SCOPE)
        meter: Meter = NoOpMeter(_INSTRUMENTATION_SCOPE)
        if meter_provider is not None:
            meter = meter_provider.get_meter(_INSTRUMENTATION_SCOPE)
        # An SDK switched off by OTEL_SDK_DISABLED hands out no-ops too.
        self.active = not (isinstance(self.tracer, NoOpTracer) and isinstance(meter, NoOpMeter))
        with _instruments_lock:
            shared = _instruments_of.get(meter_provider) if meter_provider is not None else None
            self.instruments = shared or Instruments(meter)
            if meter_provider is not None:
                _instruments_of[meter_provider] = self.instruments

    def observe(self, source: GaugeSource) -> None:
        with _instruments_lock:
            self.instruments.sources = (*self.instruments.sources, source)

    def forget(self, source: GaugeSource) -> None:
        with _instruments_lock:
            self.instruments.sources = tuple(kept for kept in self.instruments.sources if kept is not source)


class _OperationSpan:
    """One live call: its span is current inside, its duration and outcome are recorded at the end."""

    __slots__ = ("_context", "_scope", "_signals", "_span", "_started", "_token")

    def __init__(self, signals: _Signals, scope: OperationScope) -> None:
        self._signals = signals
        self._scope = scope

    def __enter__(self) -> None:
        scope = self._scope
        self._span: Span = trace.INVALID_SPAN
        self._context: otel_context.Context | None = None
        with self._signals.shield:
            attributes = _attributes(scope.backend)
            if scope.thread_id is not None:
                attributes["checkpoint.thread_id"] = scope.thread_id
            self._span = self._signals.tracer.start_span(f"checkpoint.{scope.operation}", attributes=attributes)
            self._context = trace.set_span_in_context(self._span)
            self._token = otel_context.attach(self._context)
        self._started = perf_counter()

    def __exit__(self, *_error: object) -> None:
        seconds = perf_counter() - self._started
        with self._signals.shield:  # before the span ends, so that the sample can point at it
            scope, instruments = self._scope, self._signals.instruments
            labels = {"operation": scope.operation, "backend": scope.backend, "outcome": scope.outcome}
            instruments.duration.record(seconds, labels)
            instruments.operations.add(1, labels)
        with self._signals.shield:
            # An async generator may be closed from another context than it was opened in; there is nothing to detach.
            if self._context is not None and otel_context.get_current() is self._context:
                otel_context.detach(self._token)
            self._end_span()

    def _end_span(self) -> None:
        scope = self._scope
        attributes: Attributes = {"checkpoint.route": scope.route, "checkpoint.outcome": scope.outcome}
        if scope.error_type is not None:
            attributes["error.type"] = scope.error_type
        self._span.set_attributes(attributes)
        if scope.outcome in _FAILED_OUTCOMES:
            self._span.set_status(Status(StatusCode.ERROR, scope.error_type or scope.outcome))
        self._span.end()


class OpenTelemetrySink:
    """Makes spans and metrics of what happens; without configured providers an operation costs about a microsecond.

    `tracer_provider` and `meter_provider` stand for the global ones when None; a global provider that is set later is
    noticed at the next operation or event.
    """

    def __init__(
        self, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
    ) -> None:
        self._own_providers = (tracer_provider, meter_provider)
        self._lock = threading.Lock()
        self._gauges: GaugeSource | None = None
        self._outage: Span | None = None
        self._shield = Shield(logging.getLogger(LOGGER_NAME).warning)
        self._signals = _Signals(None, None, self._shield)
        with self._shield:
            global_providers()
            self._current_signals()

    def operation(self, scope: OperationScope) -> AbstractContextManager[object]:
        """Return the span of one live call, current while it is entered."""
        try:
            own, known = self._own_providers, self._signals
            now = own[0] or trace._TRACER_PROVIDER, own[1] or metrics_internal._METER_PROVIDER
            if not known.active and now == known.providers:
                return NOTHING  # no SDK: the common case, spared the shield
        except Exception:  # noqa: BLE001, S110  # the shield reports it
            pass
        with self._shield:
            signals = self._current_signals()
            if signals.active:
                return _OperationSpan(signals, scope)
        return NOTHING

    def emit(self, event: Event) -> None:
        """Count the event and put it on the span it belongs to."""
        with self._shield:
            signals = self._current_signals()
            if signals.active:
                signals.instruments.count(event)
                self._trace(event, signals)

    def observe(self, gauges: GaugeSource) -> None:
        """Read `gauges` at every collection, from the thread of the metric reader, until `close()`."""
        with self._shield, self._lock:
            self._forget_gauges()
            self._gauges = gauges
            self._signals.observe(gauges)

    def close(self) -> None:
        """Report no gauges any more and end the span of an outage that is still open."""
        with self._shield, self._lock:
            self._forget_gauges()
            outage, self._outage = self._outage, None
            if outage is not None:
                outage.set_attribute("checkpoint.outcome", "unfinished")
                outage.end()

    def _providers(self) -> _Providers:
        tracer_provider, meter_provider = self._own_providers
        # The public getters look into the environment each time, which costs more than all the rest of an idle call.
        return tracer_provider or trace._TRACER_PROVIDER, meter_provider or metrics_internal._METER_PROVIDER

    def _current_signals(self) -> _Signals:
        providers, signals = self._providers(), self._signals
        if signals.providers == providers:
            return signals
        with self._lock:
            gauges = self._gauges
            self._forget_gauges()
            self._signals = signals = _Signals(*providers, self._shield)
            self._gauges = gauges
            if gauges is not None:
                signals.observe(gauges)
        return signals

    def _forget_gauges(self) -> None:
        if self._gauges is not None:
            self._signals.forget(self._gauges)
            self._gauges = None

    def _trace(self, event: Event, signals: _Signals) -> None:
        match event:
            case OutageStarted():
                self._open_outage(signals, event.backend, event.started_at).add_event(
                    "checkpoint.breaker_opened", {"checkpoint.reason": redact(event.reason)}
                )
            case OutageEnded():
                self._end_outage(signals, event)
            case ProbeFinished():
                attributes = _attributes(event.backend, route="primary", outcome="primary")
                if event.error_type:
                    attributes |= {"checkpoint.outcome": "error", "error.type": event.error_type}
                self._past_span("checkpoint.probe", signals, event.started_at, event.seconds, attributes)
            case ThreadDrained():
                attributes = _attributes(event.backend, route="journal", outcome=event.outcome)
                attributes |= {"checkpoint.thread_id": event.thread_id, "checkpoint.operations": event.operations}
                self._past_span("checkpoint.drain", signals, event.started_at, event.seconds, attributes)
            case _:
                self._add_span_event(event)

    def _add_span_event(self, event: Event) -> None:
        """Retries belong to the call that they delay, transitions to the outage."""
        if (found := _SPAN_EVENTS.get(type(event))) is None:
            return
        name, fields = found
        attributes: Attributes = {}
        for field in fields:
            value = getattr(event, field)
            attributes[_SPAN_ATTRIBUTES.get(field, f"checkpoint.{field}")] = (
                redact(value) if field in _FREE_TEXT else value
            )
        of_a_call = isinstance(event, RetryScheduled | AttemptAbandoned | FailedOver)
        span = trace.get_current_span() if of_a_call or self._outage is None else self._outage
        if span.is_recording():  # an abandoned attempt may report after the span of its call has ended
            span.add_event(f"checkpoint.{name}", attributes)

    def _open_outage(self, signals: _Signals, backend: str, started_at: float) -> Span:
        """Return the span of the outage: a breaker that opens again before the journal is drained continues it."""
        with self._lock:
            if self._outage is None:
                self._outage = signals.tracer.start_span(
                    "checkpoint.outage",
                    context=otel_context.Context(),  # a root: the call that met the outage first ends long before it
                    start_time=_nanoseconds(started_at),
                    attributes=_attributes(backend, route="journal", outcome="open"),
                )
            return self._outage

    def _end_outage(self, signals: _Signals, event: OutageEnded) -> None:
        span = self._open_outage(signals, event.backend, event.started_at)
        with self._lock:
            self._outage = None
        for count in ("journaled", "drained", "dead_letters", "divergences", "outage_seconds"):
            span.set_attribute(f"checkpoint.{count}", getattr(event, count))
        span.set_attribute("checkpoint.outcome", "drained")
        span.end()

    def _past_span(
        self, name: str, signals: _Signals, started_at: float, seconds: float, attributes: Attributes
    ) -> None:
        """A span of the past: a child of the call that caused it, else of the outage, else a root."""
        parent = otel_context.get_current()
        if not trace.get_current_span().is_recording():  # background tasks inherit whatever span started them
            parent = otel_context.Context()
            if self._outage is not None:
                parent = trace.set_span_in_context(self._outage, parent)
        span = signals.tracer.start_span(name, parent, attributes=attributes, start_time=_nanoseconds(started_at))
        if attributes["checkpoint.outcome"] in ("error", "frozen"):
            span.set_status(Status(StatusCode.ERROR, str(attributes.get("error.type", "frozen"))))
        span.end(_nanoseconds(started_at + seconds))


def global_providers() -> tuple[TracerProvider | None, MeterProvider | None]:
    """Return the providers that the application has set, None for each that it has not."""
    trace.get_tracer_provider()  # these load a provider named by OTEL_PYTHON_TRACER_PROVIDER or _METER_PROVIDER
    metrics.get_meter_provider()
    return trace._TRACER_PROVIDER, metrics_internal._METER_PROVIDER


def _attributes(backend: str, **more: str) -> Attributes:
    attributes: Attributes = {
        "checkpoint.backend": backend,
        "db.system.name": _DATABASE_NAMES.get(backend, backend),
    }
    for name, value in more.items():
        attributes[f"checkpoint.{name}"] = value
    return attributes


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
