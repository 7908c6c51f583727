"""An outage, from the breaker's opening until nothing waits any more."""

from __future__ import annotations

import time

from enhanced_checkpointing.observability.events import OutageEnded, OutageStarted, PrimaryRecovered
from enhanced_checkpointing.recovery.outages import Counts, Outages
from enhanced_checkpointing.testing import FakeClock
from tests.support.recorder import Recorder


class Setting:
    """Outages on a clock of their own, over totals that a test sets."""

    def __init__(self) -> None:
        self.clock = FakeClock(500.0)
        self.recorder = Recorder()
        self.totals = Counts(0, 0, 0, 0)
        self.outages = Outages("test", self.recorder, lambda: self.totals, self.clock)


def test_opening_starts_an_outage_with_its_reason_and_the_time_of_day() -> None:
    setting = Setting()
    assert setting.outages.started_at is None
    before = time.time()
    setting.outages.opened("connection refused")
    assert setting.outages.reason == "connection refused"
    assert setting.outages.started_at is not None
    assert before <= setting.outages.started_at <= time.time()
    assert setting.recorder.events == [OutageStarted("test", "connection refused", setting.outages.started_at)]


def test_opening_again_while_draining_goes_on_with_the_same_outage() -> None:
    setting = Setting()
    setting.outages.opened("refused")
    started_at = setting.outages.started_at
    setting.clock.advance(10)
    setting.outages.recovered(pending=4)
    setting.outages.opened("hangs")
    assert setting.outages.reason == "hangs"
    assert setting.outages.started_at == started_at
    setting.clock.advance(10)
    setting.outages.recovered(pending=7)
    assert len(setting.recorder.of(OutageStarted)) == 1
    assert setting.outages.openings == 2
    assert setting.recorder.of(PrimaryRecovered) == [
        PrimaryRecovered("test", 10.0, 4),
        PrimaryRecovered("test", 20.0, 7),
    ]


def test_end_tells_what_this_outage_cost_and_not_what_earlier_ones_did() -> None:
    setting = Setting()
    setting.outages.opened("first")
    setting.totals = Counts(journaled=5, drained=5, dead_letters=0, divergences=0)
    setting.outages.drained()
    setting.outages.opened("second")
    setting.clock.advance(42)
    setting.totals = Counts(journaled=12, drained=11, dead_letters=1, divergences=2)
    setting.outages.drained()
    first, second = setting.recorder.of(OutageEnded)
    assert (first.journaled, first.outage_seconds) == (5, 0.0)
    assert (second.journaled, second.drained, second.dead_letters, second.divergences) == (7, 6, 1, 2)
    assert (second.backend, second.outage_seconds) == ("test", 42.0)


def test_calls_that_failed_before_the_breaker_opened_belong_to_the_outage() -> None:
    setting = Setting()
    setting.totals = Counts(3, 3, 0, 0)
    setting.outages.drained()
    setting.totals = Counts(5, 3, 0, 0)
    setting.outages.opened("refused")
    setting.totals = Counts(6, 6, 0, 0)
    setting.outages.drained()
    (ended,) = setting.recorder.of(OutageEnded)
    assert (ended.journaled, ended.drained) == (3, 3)


def test_drained_without_an_outage_says_nothing() -> None:
    setting = Setting()
    setting.outages.drained()
    setting.outages.recovered(pending=0)
    assert setting.recorder.events == []


def test_nothing_of_an_outage_is_left_after_its_end() -> None:
    setting = Setting()
    setting.outages.opened("refused")
    setting.outages.drained()
    assert (setting.outages.reason, setting.outages.started_at) == (None, None)
    setting.outages.drained()
    assert len(setting.recorder.of(OutageEnded)) == 1
