"""The text for Prometheus, held against what OpenTelemetry's own exporter makes of the same events."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from enhanced_checkpointing.observability.events import (
    Broadcast,
    DeadLettered,
    Diverged,
    Event,
    FailedOver,
    OperationScope,
    ProbeFinished,
    RetryScheduled,
    ThreadDrained,
    ThreadRetired,
)
from enhanced_checkpointing.observability.metrics import COUNTERS, HISTOGRAMS, OBSERVED
from enhanced_checkpointing.observability.otel import OpenTelemetrySink
from enhanced_checkpointing.observability.recent import Recent
from enhanced_checkpointing.web.metrics import exposition
from tests.support.gauges import GAUGES

METRICS = Path(__file__).parents[1] / "data" / "metrics.txt"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

EVENTS: tuple[Event, ...] = (
    RetryScheduled("put", "postgres", 1, 0.1, "OperationalError"),
    FailedOver("postgres", "put", "refused"),
    FailedOver("postgres", "delete", "refused"),
    *(ProbeFinished("postgres", 0.0, seconds, None) for seconds in (0.0005, 0.001, 0.7, 12.0)),
    ProbeFinished("postgres", 0.0, 5.0, "TimeoutError"),
    ThreadDrained("postgres", "thread", 0.0, 0.1, 17, "drained"),
    Diverged("postgres", "thread", "", "a", "b", "c"),
    DeadLettered("postgres", "thread", "put", "refused"),
    ThreadRetired("postgres", "thread", "deleted"),
)


@pytest.fixture
def both() -> Iterator[tuple[str, str]]:
    """What our text and the exporter's say after the same calls and events."""
    recent, meters = Recent(), MeterProvider([PrometheusMetricReader()])
    sinks = Broadcast([OpenTelemetrySink(None, meters), recent])
    sinks.observe(lambda: GAUGES)
    for event in EVENTS:
        sinks.emit(event)
    for operation, outcome in (("put", "primary"), ("put", "journaled"), ("get", "unavailable")):
        scope = OperationScope(operation, "postgres", "thread")
        with sinks.operation(scope):
            scope.outcome = outcome
    yield exposition(recent), generate_latest(REGISTRY).decode()
    sinks.close()
    meters.shutdown()


def families_in(text: str) -> list[Metric]:
    """Those of this library: the exporter's registry has those of the process, too."""
    return [family for family in text_string_to_metric_families(text) if family.name.startswith("checkpointer_")]


def families(text: str) -> dict[str, str]:
    return {family.name: family.type for family in families_in(text)}


def samples(text: str) -> Samples:
    """Every sample but the sums of what was timed twice; without the labels that name the scope of an instrument."""
    found: Samples = {}
    for family in families_in(text):
        for sample in family.samples:
            labels = {key: value for key, value in sample.labels.items() if not key.startswith("otel_scope_")}
            if sample.name != "checkpointer_operation_duration_seconds_sum" and not sample.name.endswith("_created"):
                found[sample.name, frozenset(labels.items())] = sample.value
    return found


def test_text_says_what_the_exporter_of_opentelemetry_says(both: tuple[str, str]) -> None:
    ours, theirs = both
    assert families(ours) == families(theirs)
    assert samples(ours) == samples(theirs)


def test_text_says_what_it_said_before_the_client_library_wrote_it(both: tuple[str, str]) -> None:
    """`metrics.txt` is what our own writer made of the same events; times of calls differ from run to run."""

    def told(text: str) -> list[object]:
        return [
            (family.name, family.type, family.documentation, sample.name, sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if not family.name.startswith("checkpointer_operation")
        ]

    assert told(both[0]) == told(METRICS.read_text(encoding="utf-8"))


def test_every_metric_of_the_library_is_in_the_text(both: tuple[str, str]) -> None:
    assert len(families(both[0])) == len(OBSERVED) + len(COUNTERS) + len(HISTOGRAMS)


def test_family_is_written_in_one_piece_and_the_text_ends_with_a_line(both: tuple[str, str]) -> None:
    ours = both[0]
    heads = [line for line in ours.splitlines() if line.startswith("# TYPE")]
    assert len(heads) == len(set(heads))
    assert ours.endswith("\n")
    assert "\n\n" not in ours


def test_label_is_escaped() -> None:
    recent = Recent()
    name = 'a "quoted" back\\slash\nand a line'
    recent.emit(FailedOver(name, "put", "refused"))
    (family,) = text_string_to_metric_families(exposition(recent))
    assert family.samples[0].labels["backend"] == name


def test_what_was_never_seen_and_is_not_open_is_left_out() -> None:
    assert exposition(Recent()) == ""


APPLICATION = """
import asyncio, opentelemetry.metrics._internal as metrics_internal
from prometheus_client import REGISTRY, generate_latest
{set_up}
from enhanced_checkpointing import EnhancedCheckpointerManager, create_memory_checkpointer
from enhanced_checkpointing.serving import checkpointing_app
from enhanced_checkpointing.web.metrics import exposition

async def run():
    manager = EnhancedCheckpointerManager(create_memory_checkpointer())
    app = checkpointing_app(manager)
    before = metrics_internal._METER_PROVIDER
    async with manager:
        await manager.get_checkpointer().aget_tuple({{"configurable": {{"thread_id": "new"}}}})
        print(exposition(app.state.recent).count("checkpointer_operations_total{{"), end=" ")
        print(generate_latest(REGISTRY).decode().count("checkpointer_operations_total{{"), end=" ")
    print(metrics_internal._METER_PROVIDER is before)

asyncio.run(run())
"""
WITH_ITS_OWN_SDK = """
from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
metrics.set_meter_provider(MeterProvider([PrometheusMetricReader()]))
"""


@pytest.mark.thorough
@pytest.mark.parametrize(("set_up", "theirs"), [("", 0), (WITH_ITS_OWN_SDK, 1)], ids=["no SDK", "its own SDK"])
def test_text_needs_no_sdk_and_leaves_the_application_s_alone(set_up: str, theirs: int) -> None:
    program = APPLICATION.format(set_up=set_up)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.stderr) == (f"1 {theirs} True\n", "")
