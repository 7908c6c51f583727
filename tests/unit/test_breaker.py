"""When the breaker opens, what it ignores, and that only `close()` closes it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enhanced_checkpointing.resilience.breaker import Breaker, BreakerSettings, Ticket
from enhanced_checkpointing.testing import FakeClock


class Watched:
    """A breaker on a clock of its own, and its transitions."""

    def __init__(self, **fields: float) -> None:
        self.clock = FakeClock(1000.0)
        self.transitions: list[tuple[bool, str]] = []
        settings = BreakerSettings(**fields)  # type: ignore[arg-type]  # the two counts are given as whole numbers
        self.breaker = Breaker(self.clock, settings, lambda opened, reason: self.transitions.append((opened, reason)))

    def ticket(self) -> Ticket:
        ticket = self.breaker.admit()
        assert ticket is not None
        return ticket

    def fail(self, times: int = 1) -> None:
        for _ in range(times):
            self.breaker.failed(self.ticket(), "no answer")

    def succeed(self, times: int = 1, seconds: float = 0.01) -> None:
        for _ in range(times):
            self.breaker.succeeded(self.ticket(), seconds)


def test_new_breaker_is_closed_and_admits() -> None:
    watched = Watched()
    assert not watched.breaker.is_open
    assert watched.breaker.admit() == Ticket(0)
    assert watched.transitions == []


def test_third_failure_in_a_row_opens_it_and_not_the_second() -> None:
    watched = Watched()
    watched.fail(2)
    assert not watched.breaker.is_open
    watched.fail()
    assert watched.breaker.is_open
    assert watched.transitions == [(True, "no answer")]
    assert watched.breaker.admit() is None


def test_success_starts_the_count_in_a_row_anew() -> None:
    watched = Watched(failure_share=2.0)
    watched.fail(2)
    watched.succeed()
    watched.fail(2)
    assert not watched.breaker.is_open
    watched.fail()
    assert watched.breaker.is_open


def test_half_of_five_calls_open_it_but_half_of_four_do_not() -> None:
    watched = Watched()
    for _ in range(2):
        watched.fail()
        watched.succeed()
    assert not watched.breaker.is_open
    watched.fail()
    assert watched.breaker.is_open


def test_less_than_half_of_many_calls_do_not_open_it() -> None:
    watched = Watched()
    for _ in range(20):
        watched.succeed(2)
        watched.fail()
    assert not watched.breaker.is_open


@pytest.mark.parametrize(("seconds_later", "opens"), [(9.0, True), (10.0, False)])
def test_share_counts_the_last_ten_seconds_only(seconds_later: float, opens: bool) -> None:
    watched = Watched()
    watched.fail(2)
    watched.succeed(2)
    watched.clock.advance(seconds_later)
    watched.fail()
    assert watched.breaker.is_open is opens


def test_slow_success_counts_as_a_failure() -> None:
    watched = Watched(failure_share=2.0)
    watched.succeed(2, seconds=2.5)
    watched.succeed(seconds=2.49)
    assert not watched.breaker.is_open
    watched.succeed(3, seconds=2.5)
    assert watched.breaker.is_open
    assert watched.transitions == [(True, "calls take 2.5 s")]


def test_definite_failure_opens_it_at_once() -> None:
    watched = Watched()
    watched.breaker.failed(watched.ticket(), "read-only", definite=True)
    assert watched.transitions == [(True, "read-only")]


def test_late_failures_from_before_an_outage_do_not_open_it_again() -> None:
    watched = Watched()
    tickets = [watched.ticket() for _ in range(5)]
    watched.fail(3)
    watched.breaker.close()
    for ticket in tickets:
        watched.breaker.failed(ticket, "late", definite=True)
    assert not watched.breaker.is_open
    watched.fail(2)
    assert not watched.breaker.is_open, "the late failures were counted after all"


def test_late_success_from_before_an_outage_does_not_hide_new_failures() -> None:
    watched = Watched()
    late = watched.ticket()
    watched.fail(3)
    watched.breaker.close()
    watched.fail(2)
    watched.breaker.succeeded(late, 0.01)
    watched.fail()
    assert watched.breaker.is_open


def test_success_does_not_close_an_open_breaker() -> None:
    watched = Watched()
    ticket = watched.ticket()
    watched.breaker.trip("setup failed")
    watched.breaker.succeeded(ticket, 0.01)
    assert watched.breaker.is_open


def test_trip_and_close_are_told_once_each() -> None:
    watched = Watched()
    watched.breaker.close()
    watched.breaker.trip("8 calls hang")
    watched.breaker.trip("9 calls hang")
    watched.breaker.close()
    watched.breaker.close()
    assert watched.transitions == [(True, "8 calls hang"), (False, "a probe proved that a write works")]


def test_failures_from_before_an_outage_are_forgotten_when_it_closes() -> None:
    watched = Watched()
    watched.succeed(2)
    watched.fail(2)
    watched.breaker.trip("hangs")
    watched.breaker.close()
    watched.fail()
    assert not watched.breaker.is_open


def test_seconds_in_state_start_anew_with_each_transition() -> None:
    watched = Watched()
    watched.clock.advance(7)
    assert watched.breaker.seconds_in_state == 7
    watched.breaker.trip("hangs")
    watched.clock.advance(3)
    assert watched.breaker.seconds_in_state == 3


def test_repr_shows_state_generation_and_count() -> None:
    watched = Watched()
    watched.fail(2)
    assert repr(watched.breaker) == "<Breaker closed, generation 0, 2 failures in a row>"
    watched.fail()
    assert repr(watched.breaker) == "<Breaker open, generation 1, 0 failures in a row>"


class Model:
    """What the breaker should do, told over a plain list of outcomes."""

    def __init__(self) -> None:
        self.opened = False
        self.outcomes: list[tuple[float, bool]] = []

    def report(self, now: float, failed: bool) -> None:
        self.outcomes.append((now, failed))
        if not failed:
            return
        in_a_row = [failed for _, failed in self.outcomes[-3:]]
        recent = [failed for at, failed in self.outcomes if int(at) > int(now) - 10]
        self.opened = in_a_row == [True] * 3 or (len(recent) >= 5 and sum(recent) * 2 >= len(recent))
        if self.opened:
            self.outcomes.clear()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(["success", "slow", "failure", "close"]), st.floats(0.0, 4.0)), max_size=60))
def test_it_opens_exactly_when_the_model_does(steps: list[str | float]) -> None:
    watched, model = Watched(), Model()
    for step in steps:
        if isinstance(step, float):
            watched.clock.advance(step)
        elif step == "close":
            watched.breaker.close()
            model.opened = False
        elif not model.opened:
            ticket = watched.ticket()
            if step == "failure":
                watched.breaker.failed(ticket, "no answer")
            else:
                watched.breaker.succeeded(ticket, 9.0 if step == "slow" else 0.1)
            model.report(watched.clock(), failed=step != "success")
        assert watched.breaker.is_open is model.opened
        assert (watched.breaker.admit() is None) is model.opened
    assert [opened for opened, _ in watched.transitions] == [not index % 2 for index in range(len(watched.transitions))]
