"""Spans and metrics as a real OTLP/HTTP endpoint receives them from an application that calls `configure_telemetry()`.

Providers are global and can be set once per process, so each application here is a process of its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.support.otlp import METRIC_UNITS, SPAN_NAMES, Endpoint, attributes, points, run, serving

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
OUTER_SPAN_ID = "b7ad6b7169203331"

APPLICATION = """
from opentelemetry import context, propagate, trace
from enhanced_checkpointing.telemetry.configure import configure_telemetry
from enhanced_checkpointing.observability.events import *
from enhanced_checkpointing.observability.otel import OpenTelemetrySink

sink = OpenTelemetrySink()  # before the providers: they are noticed later
POOL = {"min": 1, "max": 10, "size": 2, "available": 1, "waiting": 0}
sink.observe(lambda: Gauges(SystemState.OUTAGE, 3, 1.5, 4096, 2048, POOL))
shutdown = configure_telemetry("shop-agent")

context.attach(propagate.extract({"traceparent": "00-TRACE_ID-OUTER_SPAN_ID-01"}))
for operation in ("put", "put_writes", "get", "list", "delete"):
    scope = OperationScope(operation, "postgres", "thread-1", outcome="primary")
    with trace.get_tracer("shop").start_as_current_span("node " + operation), sink.operation(scope):
        sink.emit(RetryScheduled(operation, "postgres", 1, 0.05, "OperationalError"))
sink.emit(OutageStarted("postgres", "postgresql://me:hunter2@db/shop is gone", 1000.0))
sink.emit(FailedOver("postgres", "put", "gone"))
sink.emit(ProbeFinished("postgres", 1001.0, 0.25, "ConnectionTimeout"))
sink.emit(PrimaryRecovered("postgres", 2.0, 1))
sink.emit(ThreadDrained("postgres", "thread-1", 1002.0, 0.5, 12, "drained"))
sink.emit(Diverged("postgres", "thread-1", "", "a", "b", "thread-1"))
sink.emit(DeadLettered("postgres", "thread-1", "put", "password=hunter2"))
sink.emit(ThreadRetired("postgres", "thread-1", "deleted"))
sink.emit(OutageEnded("postgres", 1000.0, 3.0, 13, 12, 1, 1))
shutdown()
sink.close()
shutdown()
""".replace("OUTER_SPAN_ID", OUTER_SPAN_ID).replace("TRACE_ID", TRACE_ID)


@pytest.fixture(scope="module")
def received() -> Iterator[Endpoint]:
    """What one application's whole life sends."""
    with serving() as endpoint:
        finished = run(APPLICATION, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint.url)
        assert (finished.returncode, finished.stderr) == (0, "")
        yield endpoint


def test_every_span_arrives_with_its_attributes(received: Endpoint) -> None:
    spans = received.spans()
    assert {name for name in spans if name.startswith("checkpoint.")} == SPAN_NAMES
    for name in SPAN_NAMES:
        found = attributes(spans[name])
        assert found["checkpoint.backend"] == "postgres"
        assert found["db.system.name"] == "postgresql"
        assert {"checkpoint.route", "checkpoint.outcome"} <= found.keys()
    assert attributes(spans["checkpoint.put"])["checkpoint.thread_id"] == "thread-1"
    assert attributes(spans["checkpoint.probe"])["error.type"] == "ConnectionTimeout"


def test_parent_context_of_the_caller_is_kept(received: Endpoint) -> None:
    spans = received.spans()
    for operation in ("put", "put_writes", "get", "list", "delete"):
        node, span = spans[f"node {operation}"], spans[f"checkpoint.{operation}"]
        assert node.parent_span_id.hex() == OUTER_SPAN_ID
        assert span.parent_span_id == node.span_id
        assert span.trace_id.hex() == TRACE_ID
        assert [event.name for event in span.events] == ["checkpoint.retry"]


def test_outage_is_a_trace_of_its_own_with_times_counts_and_transitions(received: Endpoint) -> None:
    spans = received.spans()
    outage = spans["checkpoint.outage"]
    assert outage.parent_span_id == b""
    assert outage.trace_id.hex() != TRACE_ID
    assert outage.start_time_unix_nano == 1000 * 10**9
    assert [event.name for event in outage.events] == [
        "checkpoint.breaker_opened",
        "checkpoint.primary_recovered",
        "checkpoint.divergence",
        "checkpoint.dead_letter",
    ]
    counts = {"checkpoint.journaled": 13, "checkpoint.drained": 12, "checkpoint.dead_letters": 1}
    assert counts.items() <= attributes(outage).items()
    for name, start, end in (("probe", 1001.0, 1001.25), ("drain", 1002.0, 1002.5)):
        span = spans[f"checkpoint.{name}"]
        assert span.parent_span_id == outage.span_id
        assert (span.start_time_unix_nano, span.end_time_unix_nano) == (int(start * 1e9), int(end * 1e9))


def test_every_metric_arrives_with_its_unit(received: Endpoint) -> None:
    assert {name: metric.unit for name, metric in received.metrics().items()} == METRIC_UNITS


def test_metrics_have_their_values_and_never_a_thread(received: Endpoint) -> None:
    metrics = received.metrics()
    durations = points(metrics["checkpointer.operation.duration"])
    assert [attributes(point) for point in durations] == [
        {"operation": operation, "backend": "postgres", "outcome": "primary"}
        for operation in ("put", "put_writes", "get", "list", "delete")
    ]
    assert all(point.count == 1 and 0 < point.sum < 1 for point in durations)
    (drained,) = points(metrics["checkpointer.reconcile.operations"])
    assert drained.as_int == 12
    (state,) = points(metrics["checkpointer.state"])
    assert state.as_int == 2
    for metric in metrics.values():
        assert not any("thread" in key for point in points(metric) for key in attributes(point))


def test_no_secret_is_on_the_wire(received: Endpoint) -> None:
    bodies = [body for sent in received.bodies.values() for body in sent]
    assert len(bodies) >= 2
    assert not any(b"hunter2" in body for body in bodies)


CONFIGURE = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s", stream=sys.stdout)
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from enhanced_checkpointing.errors import CheckpointerConfigurationError
from enhanced_checkpointing.telemetry.configure import configure_telemetry
{before}
try:
    shutdown = configure_telemetry()
except CheckpointerConfigurationError as error:
    print("refused:", error)
else:
    with trace.get_tracer("application").start_as_current_span("work"):
        metrics.get_meter("application").create_counter("checkpointer.work").add(1)
    shutdown()
"""


@pytest.mark.parametrize(
    ("environment", "traces", "metrics"),
    [
        ({}, True, True),
        ({"OTEL_SDK_DISABLED": "true"}, False, False),
        ({"OTEL_TRACES_EXPORTER": "none"}, False, True),
        ({"OTEL_METRICS_EXPORTER": "none"}, True, False),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
          "OTEL_METRICS_EXPORTER": "none"}, True, False),
    ],
)  # fmt: skip
def test_standard_variables_decide_what_is_sent(environment: dict[str, str], traces: bool, metrics: bool) -> None:
    with serving() as endpoint:
        finished = run(
            CONFIGURE.format(before=""),
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint.url,
            OTEL_SERVICE_NAME="shop-agent",
            **environment,
        )
        assert finished.returncode == 0, finished.stderr
        assert ("work" in endpoint.spans(), "checkpointer.work" in endpoint.metrics()) == (traces, metrics)


@pytest.mark.parametrize(
    ("environment", "fix"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER=zipkin is not known here: unset it"),
    ],
)
def test_exporter_that_is_not_spoken_is_refused_with_the_fix(environment: dict[str, str], fix: str) -> None:
    finished = run(CONFIGURE.format(before=""), **environment)
    assert finished.stdout.startswith("refused: ")
    assert fix in finished.stdout


def test_missing_exporter_names_the_extra() -> None:
    hide = "sys.modules['opentelemetry.exporter.otlp.proto.http.trace_exporter'] = None"
    finished = run(CONFIGURE.format(before=hide))
    assert finished.stdout.startswith("refused: ")
    assert "pip install enhanced-checkpointing[otlp]" in finished.stdout


def test_providers_of_the_application_are_left_alone_and_that_is_said() -> None:
    before = """
mine = TracerProvider(), MeterProvider()
trace.set_tracer_provider(mine[0]); metrics.set_meter_provider(mine[1])
"""
    after = "\nassert (trace.get_tracer_provider(), metrics.get_meter_provider()) == mine\n"
    with serving() as endpoint:
        program = CONFIGURE.format(before=before) + after
        finished = run(program, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint.url)
        assert finished.returncode == 0, finished.stderr
        assert endpoint.bodies == {"/v1/traces": [], "/v1/metrics": []}
    assert "the application has set up traces itself" in finished.stdout
    assert "the application has set up metrics itself" in finished.stdout


def test_shutdown_with_a_dead_collector_is_bounded_and_quiet_for_the_caller() -> None:
    with serving() as endpoint:
        dead = endpoint.url
    timed = CONFIGURE.format(before="import time").replace(
        "    shutdown()\n", "    began = time.monotonic(); shutdown(); print('took', time.monotonic() - began)\n"
    )
    began = time.monotonic()
    finished = run(timed, OTEL_EXPORTER_OTLP_ENDPOINT=dead, OTEL_EXPORTER_OTLP_TIMEOUT="2")
    assert finished.returncode == 0, finished.stderr
    took = float(finished.stdout.rsplit("took ", 1)[1])
    assert took < 10.0, json.dumps({"shutdown": took, "process": time.monotonic() - began})
