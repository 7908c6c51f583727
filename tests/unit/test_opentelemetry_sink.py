"""The sink against the real SDK with in-memory exporters: what a collector would get."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import timeit
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, Metric
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from enhanced_checkpointing.observability.events import (
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
    SystemState,
    ThreadDrained,
    ThreadRetired,
)
from enhanced_checkpointing.observability.otel import OpenTelemetrySink
from tests.support.gauges import GAUGES

DEAD_LETTER = DeadLettered("postgres", "thread-1", "put", "password=hunter2 refused")
DIVERGED = Diverged("postgres", "thread-1", "", "a", "b", "thread-1--quarantine")
OUTAGE_ENDED = OutageEnded("postgres", 1000.0, 42.0, journaled=7, drained=6, dead_letters=1, divergences=2)


@dataclass
class Collector:
    """A sink over a real SDK, and what came out of it."""

    tracer_provider: TracerProvider
    meter_provider: MeterProvider
    exporter: InMemorySpanExporter
    reader: InMemoryMetricReader
    sink: OpenTelemetrySink

    def span(self, name: str) -> ReadableSpan:
        (found,) = [span for span in self.exporter.get_finished_spans() if span.name == name]
        return found

    def metrics(self) -> dict[str, Metric]:
        data = self.reader.get_metrics_data()
        resources = data.resource_metrics if data is not None else []
        return {metric.name: metric for r in resources for scope in r.scope_metrics for metric in scope.metrics}

    def point(self, name: str) -> Any:
        (found,) = self.metrics()[name].data.data_points
        return found


@pytest.fixture
def collector() -> Iterator[Collector]:
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracer_provider, meter_provider = TracerProvider(shutdown_on_exit=False), MeterProvider([reader])
    tracer_provider.add_span_processor(SimpleSpanProcessor(exporter))
    sink = OpenTelemetrySink(tracer_provider, meter_provider)
    yield Collector(tracer_provider, meter_provider, exporter, reader, sink)
    sink.close()
    meter_provider.shutdown()
    tracer_provider.shutdown()


def attributes(span: ReadableSpan) -> Mapping[str, Any]:
    assert span.attributes is not None
    return span.attributes


def event_names(span: ReadableSpan) -> list[str]:
    return [event.name for event in span.events]


@pytest.mark.parametrize("operation", ["put", "put_writes", "get", "list", "delete", "copy_thread"])
def test_operation_makes_one_span_with_the_final_state_of_its_scope(collector: Collector, operation: str) -> None:
    scope = OperationScope(operation, "postgres", "thread-1")
    with collector.sink.operation(scope):
        scope.route, scope.outcome, scope.error_type = "journal", "journaled", "OperationalError"
    span = collector.span(f"checkpoint.{operation}")
    assert attributes(span) == {
        "checkpoint.backend": "postgres",
        "checkpoint.route": "journal",
        "checkpoint.outcome": "journaled",
        "checkpoint.thread_id": "thread-1",
        "db.system.name": "postgresql",
        "error.type": "OperationalError",
    }
    assert span.status.status_code is StatusCode.UNSET


def test_operation_without_thread_or_error_leaves_both_attributes_out(collector: Collector) -> None:
    scope = OperationScope("list", "sqlite", None, outcome="primary")
    with collector.sink.operation(scope):
        pass
    span = collector.span("checkpoint.list")
    assert attributes(span)["db.system.name"] == "sqlite"
    assert not {"checkpoint.thread_id", "error.type"} & attributes(span).keys()


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        ("primary", StatusCode.UNSET),
        ("standby", StatusCode.UNSET),
        ("refused", StatusCode.UNSET),
        ("cancelled", StatusCode.UNSET),
        ("error", StatusCode.ERROR),
        ("unavailable", StatusCode.ERROR),
    ],
)
def test_span_status_is_an_error_only_where_the_caller_got_no_answer(
    collector: Collector, outcome: str, status: StatusCode
) -> None:
    with collector.sink.operation(OperationScope("get", "memory", "thread-1", outcome=outcome)):
        pass
    assert collector.span("checkpoint.get").status.status_code is status


def test_operation_span_lies_below_the_callers_span_and_above_the_drivers(collector: Collector) -> None:
    tracer = collector.tracer_provider.get_tracer("test")
    with (
        tracer.start_as_current_span("request") as request,
        collector.sink.operation(OperationScope("put", "postgres", "thread-1")),
        tracer.start_as_current_span("SELECT"),
    ):
        pass
    put, statement = collector.span("checkpoint.put"), collector.span("SELECT")
    assert put.parent == request.get_span_context()
    assert statement.parent == put.context
    assert not trace.get_current_span().get_span_context().is_valid


def test_concurrent_operations_keep_their_own_spans(collector: Collector) -> None:
    async def call(thread_id: str) -> None:
        with collector.sink.operation(OperationScope("put", "postgres", thread_id, outcome="primary")):
            await asyncio.sleep(0.01)
            collector.sink.emit(RetryScheduled("put", "postgres", 1, 0.1, thread_id))

    async def main() -> None:
        await asyncio.gather(*(call(f"thread-{number}") for number in range(5)))

    asyncio.run(main())
    spans = collector.exporter.get_finished_spans()
    assert len(spans) == 5
    for span in spans:
        assert span.parent is None
        (retry,) = span.events
        assert retry.attributes is not None
        assert retry.attributes["error.type"] == attributes(span)["checkpoint.thread_id"]


def test_exception_passes_through_and_its_message_is_not_recorded(collector: Collector) -> None:
    with (
        pytest.raises(ValueError, match="hunter2"),
        collector.sink.operation(OperationScope("put", "postgres", "t", error_type="ValueError")),
    ):
        raise ValueError("password=hunter2")
    span = collector.span("checkpoint.put")
    assert span.status.status_code is StatusCode.ERROR
    assert "hunter2" not in span.to_json()


def test_operation_left_in_another_context_ends_quietly(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    operation = collector.sink.operation(OperationScope("list", "postgres", "t"))
    contextvars.Context().run(operation.__enter__)
    with caplog.at_level(logging.DEBUG):
        contextvars.Context().run(operation.__exit__, None, None, None)
    assert collector.span("checkpoint.list").end_time is not None
    assert caplog.records == []


def test_retries_and_abandoned_attempts_are_events_of_the_running_call(collector: Collector) -> None:
    with collector.sink.operation(OperationScope("put", "postgres", "thread-1")):
        collector.sink.emit(RetryScheduled("put", "postgres", 1, 0.05, "OperationalError"))
        collector.sink.emit(AttemptAbandoned("put", "postgres", 5.0, 1))
        collector.sink.emit(FailedOver("postgres", "put", "postgresql://me:hunter2@db/x is gone"))
    span = collector.span("checkpoint.put")
    assert event_names(span) == ["checkpoint.retry", "checkpoint.attempt_abandoned", "checkpoint.failed_over"]
    assert "hunter2" not in span.to_json()


def test_attempt_that_reports_after_its_call_ended_is_no_warning(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async def late() -> None:
            await asyncio.sleep(0.01)
            collector.sink.emit(AttemptAbandoned("put", "postgres", 5.0, 1))

        with collector.sink.operation(OperationScope("put", "postgres", "thread-1")):
            task = asyncio.create_task(late())
        await task

    asyncio.run(main())
    assert event_names(collector.span("checkpoint.put")) == []
    assert caplog.records == []


def test_probe_and_drain_are_spans_with_their_own_times(collector: Collector) -> None:
    collector.sink.emit(ProbeFinished("postgres", 1000.0, 0.25, None))
    collector.sink.emit(ThreadDrained("postgres", "thread-1", 1001.0, 2.5, 12, "drained"))
    probe, drain = collector.span("checkpoint.probe"), collector.span("checkpoint.drain")
    assert (probe.start_time, probe.end_time) == (1000 * 10**9, 1000_250_000_000)
    assert (drain.start_time, drain.end_time) == (1001 * 10**9, 1003_500_000_000)
    assert attributes(drain)["checkpoint.thread_id"] == "thread-1"
    assert attributes(drain)["checkpoint.operations"] == 12
    assert probe.parent is None
    assert drain.parent is None


@pytest.mark.parametrize(
    ("event", "name"),
    [
        (ProbeFinished("postgres", 1000.0, 0.25, "ConnectionTimeout"), "checkpoint.probe"),
        (ThreadDrained("postgres", "thread-1", 1000.0, 0.25, 3, "frozen"), "checkpoint.drain"),
    ],
)
def test_failed_probe_and_frozen_thread_are_errors(collector: Collector, event: Event, name: str) -> None:
    collector.sink.emit(event)
    assert collector.span(name).status.status_code is StatusCode.ERROR


def test_outage_is_one_root_span_with_transitions_and_counts(collector: Collector) -> None:
    sink = collector.sink
    with collector.tracer_provider.get_tracer("test").start_as_current_span("request"):
        sink.emit(OutageStarted("postgres", "password=hunter2", 1000.0))
    sink.emit(ProbeFinished("postgres", 1002.0, 0.1, None))
    sink.emit(PrimaryRecovered("postgres", 40.0, 7))
    sink.emit(OutageStarted("postgres", "gone again", 1020.0))
    sink.emit(DEAD_LETTER)
    sink.emit(DIVERGED)
    sink.emit(ConfigurationFault("postgres", "no such table", "run setup"))
    sink.emit(OUTAGE_ENDED)
    outage = collector.span("checkpoint.outage")
    assert outage.parent is None
    assert outage.start_time == 1000 * 10**9
    assert event_names(outage) == [
        "checkpoint.breaker_opened",
        "checkpoint.primary_recovered",
        "checkpoint.breaker_opened",
        "checkpoint.dead_letter",
        "checkpoint.divergence",
        "checkpoint.configuration_fault",
    ]
    assert attributes(outage) == {
        "checkpoint.backend": "postgres",
        "checkpoint.route": "journal",
        "checkpoint.outcome": "drained",
        "checkpoint.journaled": 7,
        "checkpoint.drained": 6,
        "checkpoint.dead_letters": 1,
        "checkpoint.divergences": 2,
        "checkpoint.outage_seconds": 42.0,
        "db.system.name": "postgresql",
    }
    assert "hunter2" not in outage.to_json()
    assert collector.span("checkpoint.probe").parent == outage.context


def test_drain_caused_by_a_read_lies_below_that_read(collector: Collector) -> None:
    collector.sink.emit(OutageStarted("postgres", "gone", 1000.0))
    with collector.sink.operation(OperationScope("get", "postgres", "thread-1")):
        collector.sink.emit(ThreadDrained("postgres", "thread-1", 1001.0, 2.5, 12, "drained"))
    assert collector.span("checkpoint.drain").parent == collector.span("checkpoint.get").context


def test_close_ends_an_open_outage_and_says_that_it_is_unfinished(collector: Collector) -> None:
    collector.sink.emit(OutageStarted("postgres", "gone", 1000.0))
    collector.sink.close()
    collector.sink.close()
    assert attributes(collector.span("checkpoint.outage"))["checkpoint.outcome"] == "unfinished"


def test_outage_whose_start_was_not_seen_still_becomes_a_span(collector: Collector) -> None:
    collector.sink.emit(OUTAGE_ENDED)
    assert collector.span("checkpoint.outage").start_time == 1000 * 10**9


def test_operation_metrics_carry_operation_backend_and_outcome_and_no_thread(collector: Collector) -> None:
    with collector.sink.operation(OperationScope("put", "postgres", "thread-1", outcome="primary")):
        pass
    assert collector.metrics()["checkpointer.operation.duration"].unit == "s"
    duration, operations = (collector.point(f"checkpointer.{name}") for name in ("operation.duration", "operations"))
    assert duration.attributes == {"operation": "put", "backend": "postgres", "outcome": "primary"}
    assert operations.attributes == duration.attributes
    assert operations.value == 1
    assert 0 < duration.sum < 1
    assert duration.explicit_bounds[0] < 0.01, "boundaries are seconds, not the SDK's milliseconds"


@pytest.mark.parametrize(
    ("event", "name", "value", "labels"),
    [
        (
            RetryScheduled("put", "postgres", 1, 0.1, "E"),
            "checkpointer.retries",
            1,
            {"operation": "put", "backend": "postgres"},
        ),
        (
            FailedOver("postgres", "put", "gone"),
            "checkpointer.failovers",
            1,
            {"operation": "put", "backend": "postgres"},
        ),
        (
            ThreadDrained("postgres", "t", 0.0, 1.0, 12, "drained"),
            "checkpointer.reconcile.operations",
            12,
            {"backend": "postgres"},
        ),
        (DIVERGED, "checkpointer.reconcile.divergences", 1, {"backend": "postgres"}),
        (
            ThreadRetired("postgres", "t", "pruned"),
            "checkpointer.retention.threads",
            1,
            {"backend": "postgres", "outcome": "pruned"},
        ),
        (DEAD_LETTER, "checkpointer.reconcile.dead_letters", 1, {"operation": "put", "backend": "postgres"}),
    ],
)
def test_event_counts_once_and_never_names_a_thread(
    collector: Collector, event: Event, name: str, value: int, labels: dict[str, str]
) -> None:
    collector.sink.emit(event)
    point = collector.point(name)
    assert (point.value, point.attributes) == (value, labels)


def test_probe_duration_is_a_histogram_in_seconds(collector: Collector) -> None:
    collector.sink.emit(ProbeFinished("postgres", 1000.0, 0.25, None))
    assert collector.metrics()["checkpointer.probe.duration"].unit == "s"
    assert collector.point("checkpointer.probe.duration").sum == 0.25


GAUGE_VALUES = {
    "checkpointer.state": 2,
    "checkpointer.journal.pending": 3,
    "checkpointer.journal.oldest_age": 1.5,
    "checkpointer.journal.size": 4096,
    "checkpointer.journal.writable": 1,
    "checkpointer.journal.utilization": 0.25,
    "checkpointer.journal.dead_letters": 5,
    "checkpointer.journal.frozen_threads": 2,
    "checkpointer.journal.damages": 1,
    "checkpointer.breaker.openings": 7,
    "checkpointer.standby.size": 2048,
    "checkpointer.pool.size": 2,
    "checkpointer.pool.available": 1,
    "checkpointer.pool.waiting": 0,
    "checkpointer.pool.min": 1,
    "checkpointer.pool.max": 10,
}


def values(collector: Collector) -> dict[str, float]:
    return {name: metric.data.data_points[0].value for name, metric in collector.metrics().items()}  # type: ignore[union-attr]


def test_gauges_report_what_is_true_at_collection(collector: Collector) -> None:
    current = GAUGES
    collector.sink.observe(lambda: current)
    assert values(collector) == GAUGE_VALUES
    current = replace(GAUGES, state=SystemState.HEALTHY, pool={})
    without_pool = {name: value for name, value in GAUGE_VALUES.items() if ".pool." not in name}
    assert values(collector) == without_pool | {"checkpointer.state": 0}


def test_closed_sink_reports_no_gauges_and_the_next_manager_does(collector: Collector) -> None:
    collector.sink.observe(lambda: GAUGES)
    collector.sink.close()
    assert values(collector) == {}
    successor = OpenTelemetrySink(collector.tracer_provider, collector.meter_provider)
    successor.observe(lambda: GAUGES)
    assert values(collector) == GAUGE_VALUES
    successor.close()


def test_two_managers_of_one_process_add_up(collector: Collector) -> None:
    other = OpenTelemetrySink(collector.tracer_provider, collector.meter_provider)
    collector.sink.observe(lambda: GAUGES)
    other.observe(lambda: Gauges(journal_pending=4, journal_oldest_age=9.0, journal_utilization=0.75))
    both = values(collector)
    other.close()
    assert both["checkpointer.state"] == 2
    assert both["checkpointer.journal.pending"] == 7
    assert both["checkpointer.journal.oldest_age"] == 9.0
    assert both["checkpointer.journal.utilization"] == 0.75, "the fullest is the first to refuse"
    assert both["checkpointer.journal.writable"] == 0, "one that takes no writes is not hidden by another"


def test_errors_of_telemetry_never_reach_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    class BrokenProvider(TracerProvider):
        def get_tracer(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("password=hunter2")

    sink = OpenTelemetrySink(BrokenProvider(shutdown_on_exit=False))
    with sink.operation(OperationScope("put", "postgres", "t")):
        sink.emit(DEAD_LETTER)
    sink.observe(Gauges)
    sink.close()
    assert "telemetry failed" in caplog.text
    assert "hunter2" not in caplog.text


def test_broken_span_processor_does_not_cost_the_metrics(collector: Collector) -> None:
    class BrokenProcessor(SimpleSpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            raise RuntimeError("no span today")

    collector.tracer_provider.add_span_processor(BrokenProcessor(InMemorySpanExporter()))
    with collector.sink.operation(OperationScope("put", "postgres", "t")):
        pass
    assert collector.point("checkpointer.operations").value == 1


def test_failing_gauge_source_costs_only_its_own_values(collector: Collector) -> None:
    other = OpenTelemetrySink(collector.tracer_provider, collector.meter_provider)
    other.observe(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    collector.sink.observe(lambda: GAUGES)
    assert values(collector) == GAUGE_VALUES
    other.close()


def test_operation_without_providers_is_a_shared_no_op_that_costs_next_to_nothing(collector: Collector) -> None:
    idle, scope = OpenTelemetrySink(), OperationScope("put", "postgres", "thread-1")

    def cost_of(sink: OpenTelemetrySink) -> float:
        def call() -> None:
            with sink.operation(scope):
                pass

        return min(timeit.repeat(call, number=500, repeat=5))

    assert idle.operation(scope) is idle.operation(scope)
    # Measured: 1 microsecond against 80 with an SDK; a ratio holds on a slow machine and under coverage too.
    assert cost_of(idle) * 5 < cost_of(collector.sink)


def test_disabled_sdk_is_as_cheap_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    sink = OpenTelemetrySink(TracerProvider(shutdown_on_exit=False), MeterProvider(shutdown_on_exit=False))
    scope = OperationScope("put", "postgres", "thread-1")
    assert sink.operation(scope) is sink.operation(scope)


def test_metrics_without_traces_are_recorded(collector: Collector) -> None:
    sink = OpenTelemetrySink(None, collector.meter_provider)
    with sink.operation(OperationScope("get", "memory", "t", outcome="primary")):
        pass
    assert collector.point("checkpointer.operations").value == 1
    assert collector.exporter.get_finished_spans() == ()


def test_closed_sink_holds_nothing_of_its_manager(collector: Collector) -> None:
    class Manager:
        def gauges(self) -> Gauges:
            return GAUGES

    manager = Manager()
    collector.sink.observe(manager.gauges)
    collector.sink.close()
    manager_type = type(manager)
    del manager
    gc.collect()
    assert not [found for found in gc.get_objects() if type(found) is manager_type]


def test_opentelemetry_that_has_changed_inside_fails_no_call(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sink = OpenTelemetrySink()
    monkeypatch.delattr(trace, "_TRACER_PROVIDER")
    with sink.operation(OperationScope("put", "memory", "thread")):
        pass
    assert "telemetry failed and was skipped" in caplog.text
