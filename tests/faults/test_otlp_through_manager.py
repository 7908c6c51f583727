"""What a real OTLP endpoint receives from an application whose PostgreSQL goes away in mid-conversation and comes back.

The application is a process of its own, as the SDK's providers are global; it asks this one for the faults.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.application_faults import Faults
from tests.support.fault_proxy import ThreadedFaultProxy
from tests.support.otlp import METRIC_UNITS, SPAN_NAMES, Endpoint, attributes, environment_of, points, serving
from tests.support.postgres import PostgresServer, fresh_database

APPLICATION = """
import asyncio, sys
from datetime import UTC, datetime, timedelta
from opentelemetry import metrics, trace
from enhanced_checkpointing import EnhancedCheckpointerManager
from enhanced_checkpointing.telemetry.configure import configure_telemetry
from enhanced_checkpointing.threads.retention import RetentionPolicy
from tests.support.checkpointer import eventually, postgres, saver_of
from tests.support.graphs import GRAPHS

shutdown = configure_telemetry("shop-agent")
tracer = trace.get_tracer("shop")

def ask(fault):
    print(fault, flush=True)
    assert sys.stdin.readline()

async def run():
    async with EnhancedCheckpointerManager(postgres(sys.argv[1], retries=5)) as manager:
        graph = GRAPHS["counting_chain"].builder().compile(checkpointer=saver_of(manager))

        async def turn(thread, question="why"):
            with tracer.start_as_current_span("turn", attributes={"thread": thread}):
                await graph.ainvoke({"question": question}, {"configurable": {"thread_id": thread}})

        await turn("healthy")
        with tracer.start_as_current_span("look back"):
            assert [state async for state in graph.aget_state_history({"configurable": {"thread_id": "healthy"}})]
            await manager.delete_thread("healthy")
        ask("terminate")
        await turn("shared")
        ask("cut")
        await turn("shared")
        await turn("refused")
        await manager.health_check()
        metrics.get_meter_provider().force_flush()
        ask("diverge")
        ask("heal")
        await eventually(lambda: manager.health_status["primary_healthy"])
        await manager.wait_drained(10.0)
        await turn("after")
        manager.components.sweeper.now = lambda: datetime.now(UTC) + timedelta(days=1)
        assert (await manager.run_retention(RetentionPolicy(keep=1))).pruned
        metrics.get_meter_provider().force_flush()
    shutdown()

asyncio.run(run())
"""


@pytest.fixture(scope="module")
def received(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """What one application's whole life sends."""
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    with fresh_database(postgres_server.url()) as url, serving() as endpoint:
        parts = urlsplit(url)
        with ThreadedFaultProxy(str(parts.hostname), parts.port or 5432) as proxy:
            faults = Faults(url, proxy)
            process = subprocess.Popen(
                [sys.executable, "-c", APPLICATION, proxy.url(url)],
                env=environment_of(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint.url, PYTHONPATH=path),
                cwd=tmp_path_factory.mktemp("application"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            faults.serve(process)
        yield endpoint


def spans_of(received: Endpoint, name: str) -> list[Any]:
    return [span for span in received.all_spans() if span.name == name]


def total(metric: Any, **labels: str) -> float:
    """The sum of the points with these attributes."""
    return float(sum(point.as_int for point in points(metric) if labels.items() <= attributes(point).items()))


def test_every_span_arrives_with_its_attributes(received: Endpoint) -> None:
    spans = [span for span in received.all_spans() if span.name.startswith("checkpoint.")]
    assert {span.name for span in spans} == SPAN_NAMES | {"checkpoint.retention"}
    for span in spans:
        found = attributes(span)
        assert found["checkpoint.backend"] == "postgres"
        assert found["db.system.name"] == "postgresql"
        assert {"checkpoint.route", "checkpoint.outcome"} <= found.keys(), span


def test_parent_context_of_a_traced_run_is_kept(received: Endpoint) -> None:
    turns = {span.span_id: span for span in spans_of(received, "turn")}
    assert len(turns) == 5
    for name in ("checkpoint.put", "checkpoint.put_writes", "checkpoint.get"):
        inside = [span for span in spans_of(received, name) if span.parent_span_id in turns]
        assert {span.parent_span_id for span in inside} == turns.keys(), name
        for span in inside:
            turn = turns[span.parent_span_id]
            assert span.trace_id == turn.trace_id
            assert attributes(span)["checkpoint.thread_id"] == attributes(turn)["thread"]
            assert turn.start_time_unix_nano <= span.start_time_unix_nano
            assert span.end_time_unix_nano <= turn.end_time_unix_nano
    (look_back,) = spans_of(received, "look back")
    for name in ("checkpoint.list", "checkpoint.delete"):
        assert spans_of(received, name)[0].parent_span_id == look_back.span_id


def test_calls_of_the_outage_say_where_they_went(received: Endpoint) -> None:
    puts = [attributes(span) for span in spans_of(received, "checkpoint.put")]
    outcomes = {(found["checkpoint.thread_id"], found["checkpoint.outcome"]) for found in puts}
    assert {("healthy", "primary"), ("shared", "primary"), ("shared", "journaled")} <= outcomes
    assert {outcome for thread, outcome in outcomes if thread == "refused"} == {"journaled"}
    assert {outcome for thread, outcome in outcomes if thread == "after"} == {"primary"}


def test_terminated_session_shows_as_a_retry_of_the_call_that_met_it(received: Endpoint) -> None:
    retried = [span for span in received.all_spans() for event in span.events if event.name == "checkpoint.retry"]
    assert "primary" in {attributes(span)["checkpoint.outcome"] for span in retried}


def test_outage_is_one_span_with_its_counts_its_transitions_and_its_drains(received: Endpoint) -> None:
    (outage,) = spans_of(received, "checkpoint.outage")
    found = attributes(outage)
    assert outage.parent_span_id == b""
    assert found["checkpoint.outcome"] == "drained"
    assert found["checkpoint.journaled"] > found["checkpoint.drained"] > 0
    assert (found["checkpoint.dead_letters"], found["checkpoint.divergences"]) == (1, 1)
    opened, recovered, *rest = (event.name for event in outage.events)
    assert (opened, recovered) == ("checkpoint.breaker_opened", "checkpoint.primary_recovered")
    assert set(rest) == {"checkpoint.divergence", "checkpoint.dead_letter"}
    drains = spans_of(received, "checkpoint.drain")
    assert {(attributes(span)["checkpoint.thread_id"], attributes(span)["checkpoint.outcome"]) for span in drains} == {
        ("shared", "drained"),
        ("refused", "frozen"),
    }
    assert {span.parent_span_id for span in drains} == {outage.span_id}
    assert sum(attributes(span)["checkpoint.operations"] for span in drains) == found["checkpoint.drained"]


def test_every_metric_arrives_with_its_unit_and_without_a_thread(received: Endpoint) -> None:
    metrics = received.metrics()
    assert {name: metric.unit for name, metric in metrics.items()} == METRIC_UNITS
    for metric in metrics.values():
        assert points(metric)
        for point in points(metric):
            assert not any("thread" in key for key in attributes(point))
            assert not {"healthy", "shared", "refused", "after"} & set(map(str, attributes(point).values()))


def test_gauges_show_the_outage_and_what_stays_behind(received: Endpoint) -> None:
    exports = received.all_metrics()
    states = [points(export["checkpointer.state"])[0].as_int for export in exports if "checkpointer.state" in export]
    assert 2 in states
    assert states[-1] == 1  # the refused thread is frozen on the journal
    outage = next(
        export
        for export in exports
        if "checkpointer.state" in export and points(export["checkpointer.state"])[0].as_int == 2
    )
    for name in ("journal.pending", "journal.oldest_age", "journal.size", "standby.size"):
        (point,) = points(outage[f"checkpointer.{name}"])
        assert max(point.as_int, point.as_double) > 0, name


def test_counters_agree_with_the_span_of_the_outage(received: Endpoint) -> None:
    metrics = received.metrics()
    found = attributes(spans_of(received, "checkpoint.outage")[0])
    assert total(metrics["checkpointer.failovers"]) == found["checkpoint.journaled"]
    assert total(metrics["checkpointer.operations"], outcome="journaled") == found["checkpoint.journaled"]
    assert total(metrics["checkpointer.reconcile.operations"]) == found["checkpoint.drained"]
    assert total(metrics["checkpointer.reconcile.dead_letters"]) == found["checkpoint.dead_letters"]
    assert total(metrics["checkpointer.reconcile.divergences"]) == found["checkpoint.divergences"]
    assert total(metrics["checkpointer.retries"]) >= 1
    durations = points(metrics["checkpointer.operation.duration"])
    assert sum(point.count for point in durations) == total(metrics["checkpointer.operations"])
    probes = points(metrics["checkpointer.probe.duration"])
    assert {attributes(point)["outcome"] for point in probes} == {"primary", "error"}
