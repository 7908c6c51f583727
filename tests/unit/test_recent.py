"""The sink that remembers: what it says of calls and events, how much it keeps, and what it costs a call."""

from __future__ import annotations

import sys
import threading
import timeit
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from enhanced_checkpointing import EnhancedCheckpointerManager, create_memory_checkpointer
from enhanced_checkpointing.observability import recent as recent_module
from enhanced_checkpointing.observability.events import (
    NOTHING,
    Broadcast,
    ConfigurationFault,
    Diverged,
    FailedOver,
    Gauges,
    Notice,
    OperationScope,
    OutageEnded,
    OutageStarted,
    PrimaryRecovered,
    ProbeFinished,
    SystemState,
    Telemetry,
)
from enhanced_checkpointing.observability.log import LoggingSink
from enhanced_checkpointing.observability.otel import OpenTelemetrySink
from enhanced_checkpointing.observability.recent import CALLS_KEPT, MESSAGES_KEPT, OUTAGES_KEPT, SAMPLES_KEPT, Recent

PROBE = ProbeFinished("postgres", 0.0, 0.002, None)


class WallClock:
    """Shows the time that it was set to."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> WallClock:
    return WallClock()


@pytest.fixture
def recent(clock: WallClock) -> Recent:
    return Recent(clock)


def call(sink: Telemetry, operation: str = "put", outcome: str = "primary") -> None:
    scope = OperationScope(operation, "postgres", "thread")
    with sink.operation(scope):
        scope.outcome = outcome


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the calls take, in seconds, one after another; they begin at second 100, or when the one before ended."""
    wanted: list[float] = []

    def ticks() -> Iterator[float]:
        now = 100.0
        while True:
            yield now
            now += wanted.pop(0) if wanted else 0.0
            yield now

    monkeypatch.setattr(recent_module, "perf_counter", ticks().__next__)
    return wanted


def test_quantiles_of_an_operation_are_those_of_all_its_outcomes(recent: Recent, times: list[float]) -> None:
    times += [number / 1000 for number in range(100, 0, -1)]
    for number in range(100):
        call(recent, outcome="primary" if number % 4 else "journaled")
    (latency,) = recent.latencies(60.0)
    assert (latency.operation, latency.calls) == ("put", 100)
    assert latency.median == pytest.approx(0.050)
    assert latency.p99 == pytest.approx(0.099)
    assert latency.slowest == pytest.approx(0.100)
    assert latency.outcomes == {"journaled": 25, "primary": 75}


def test_calls_that_ended_earlier_are_not_recent(recent: Recent, times: list[float]) -> None:
    times += [1.0, 2.0, 3.0]
    call(recent, "get")
    call(recent, "put")
    call(recent, "put")
    assert [(latency.operation, latency.calls) for latency in recent.latencies(4.0)] == [("put", 2)]


def test_newest_calls_are_kept_and_all_are_counted(recent: Recent) -> None:
    for _ in range(CALLS_KEPT + 7):
        call(recent)
    assert recent.latencies(60.0)[0].calls == CALLS_KEPT
    assert [total.amount for total in recent.totals() if total.name == "checkpointer.operations"] == [CALLS_KEPT + 7]


def test_value_on_a_boundary_belongs_to_what_lies_below_it(recent: Recent) -> None:
    for seconds in (0.001, 0.0011, 99.0):
        recent.emit(ProbeFinished("postgres", 0.0, seconds, None))
    (total,) = recent.totals()
    assert total.buckets == (1, 1, 0, 0, 0, 0, 0, 0, 0, 1)
    assert total.amount == pytest.approx(99.0021)


def test_outage_is_remembered_from_its_beginning_to_its_end(recent: Recent) -> None:
    recent.emit(OutageStarted("postgres", "refused: postgresql://u:hunter2@db/x", 1_000.0))
    (outage,) = recent.outages()
    assert (outage.started_at, outage.down, outage.seconds) == (1_000.0, None, None)
    assert outage.reason == "refused: postgresql://u:***@db/x"
    recent.emit(PrimaryRecovered("postgres", 30.0, 12))
    recent.emit(OutageEnded("postgres", 1_000.0, 42.0, journaled=12, drained=11, dead_letters=1, divergences=2))
    (outage,) = recent.outages()
    assert (outage.down, outage.seconds) == (30.0, 42.0)
    assert (outage.journaled, outage.drained, outage.dead_letters, outage.divergences) == (12, 11, 1, 2)


def test_outage_that_began_before_anybody_listened_is_known_from_its_end(recent: Recent, clock: WallClock) -> None:
    recent.emit(PrimaryRecovered("postgres", 30.0, 12))
    recent.emit(OutageEnded("postgres", clock.now - 30.0, 31.0, journaled=1, drained=1, dead_letters=0, divergences=0))
    (outage,) = recent.outages()
    assert (outage.started_at, outage.reason, outage.down, outage.seconds) == (clock.now - 30.0, None, 30.0, 31.0)


def test_samples_come_with_probes_but_not_with_every_event_and_at_once_with_transitions(
    recent: Recent, clock: WallClock
) -> None:
    current, asked = Gauges(), []

    def gauges() -> Gauges:
        asked.append(clock.now)
        return current

    recent.observe(gauges)
    for _ in range(100):
        recent.emit(FailedOver("postgres", "put", "refused"))
    assert len(asked) == 1, "an outage with many writes does not look at the journal for each of them"
    current = Gauges(state=SystemState.OUTAGE, journal_pending=5)
    recent.emit(OutageStarted("postgres", "refused", clock.now))
    clock.now += 2.5
    current = Gauges(state=SystemState.OUTAGE, journal_pending=9)
    recent.emit(PROBE)
    assert [(sample.at, sample.state, sample.pending) for sample in recent.samples()] == [
        (1_000_000.0, SystemState.HEALTHY, 0),
        (1_000_000.0, SystemState.OUTAGE, 5),
        (1_000_002.5, SystemState.OUTAGE, 9),
    ]


def test_clock_that_was_set_back_does_not_end_the_samples(recent: Recent, clock: WallClock) -> None:
    recent.observe(Gauges)
    clock.now -= 3_600.0
    recent.emit(PROBE)
    assert len(recent.samples()) == 2


def test_closed_manager_has_no_values_of_now(recent: Recent) -> None:
    recent.observe(Gauges)
    recent.close()
    recent.emit(PROBE)
    assert recent.gauges() is None
    assert len(recent.samples()) == 1


def test_messages_are_those_that_an_operator_should_read_without_secrets_and_once(recent: Recent) -> None:
    recent.emit(Notice("INFO", "all is well"))
    recent.emit(Notice("WARNING", "half full"))
    recent.emit(ConfigurationFault("postgres", "login failed, password=hunter2", "Correct it."))
    recent.emit(Notice("WARNING", "half full"))
    assert [(message.level, message.text) for message in recent.messages()] == [
        ("ERROR", "login failed, password=*** To mend it: Correct it."),
        ("WARNING", "half full"),
    ]


def test_divergences_are_remembered(recent: Recent, clock: WallClock) -> None:
    found = Diverged("postgres", "thread", "", "a", "b", "thread~outage~a")
    recent.emit(found)
    assert recent.divergences() == ((clock.now, found),)


def test_nothing_grows_without_bound(recent: Recent, clock: WallClock) -> None:
    recent.observe(Gauges)
    for number in range(2_000):
        clock.now += 10.0
        recent.emit(Notice("ERROR", f"message {number}"))
        recent.emit(Diverged("postgres", f"thread-{number}", "", "a", "b", "c"))
        recent.emit(OutageStarted("postgres", "refused", clock.now))
        recent.emit(OutageEnded("postgres", clock.now, 1.0, 1, 1, 0, 0))
    kept = (recent.messages(), recent.outages(), recent.samples(), recent.divergences())
    assert [len(things) for things in kept] == [MESSAGES_KEPT, OUTAGES_KEPT, SAMPLES_KEPT, 20]
    assert recent.outages()[-1].started_at == clock.now


def test_gauges_that_cannot_be_read_harm_nobody(recent: Recent) -> None:
    def broken() -> Gauges:
        raise RuntimeError("closing")

    recent.observe(broken)
    recent.emit(OutageStarted("postgres", "refused", 1.0))
    assert len(recent.outages()) == 1


def test_manager_that_nobody_asked_to_remember_does_not(recent: Recent) -> None:
    manager = EnhancedCheckpointerManager(create_memory_checkpointer())
    assert manager._telemetry.operation(OperationScope("put", "memory", "thread")) is NOTHING
    manager.listen(recent)
    assert manager._telemetry.operation(OperationScope("put", "memory", "thread")) is not NOTHING


async def test_manager_tells_a_late_listener_of_calls_and_of_what_is_true_now(recent: Recent) -> None:
    async with EnhancedCheckpointerManager(create_memory_checkpointer()) as manager:
        manager.listen(recent)
        saver = manager.get_checkpointer()
        assert saver is not None
        await saver.aget_tuple({"configurable": {"thread_id": "new"}})
        assert recent.gauges() == Gauges(journal_writable=True)
    assert [latency.operation for latency in recent.latencies(60.0)] == ["get"]
    assert recent.gauges() is None


def test_sinks_that_both_note_a_call_are_entered_one_within_the_other() -> None:
    seen: list[str] = []

    class Noting(Recent):
        def __init__(self, name: str) -> None:
            super().__init__()
            self._name = name

        def operation(self, scope: OperationScope) -> Noting:
            return self

        def __enter__(self) -> None:
            seen.append(f"enter {self._name}")

        def __exit__(self, *_error: object) -> None:
            seen.append(f"exit {self._name}")
            raise ValueError(self._name)

    with pytest.raises(ValueError, match="one"):
        call(Broadcast([Noting("one"), LoggingSink(), Noting("two"), Noting("three")]))
    assert seen == ["enter one", "enter two", "enter three", "exit three", "exit two", "exit one"]


def test_call_costs_a_fraction_of_what_a_second_set_of_instruments_would_cost(recent: Recent) -> None:
    meters = MeterProvider([InMemoryMetricReader()])
    instruments = OpenTelemetrySink(None, meters)

    def cost_of(sink: Telemetry) -> float:
        return min(timeit.repeat(lambda: call(sink), number=200, repeat=50)) / 200

    assert cost_of(recent) < cost_of(instruments) / 4
    meters.shutdown()


def test_everything_can_be_read_from_another_thread_while_calls_are_noted(recent: Recent) -> None:
    ended = threading.Event()

    def write() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            call(recent, f"operation-{number % 50}", f"outcome-{number % 7}")
            recent.emit(Notice("WARNING", f"message {number % 60}"))
            recent.emit(FailedOver("postgres", f"operation-{number % 50}", "refused"))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(100):
            assert len(recent.latencies(60.0)) <= 50
            recent.totals()
            recent.messages()
    finally:
        ended.set()
        writer.join()
        sys.setswitchinterval(before)
