"""Where an operation goes, and the queue of each thread."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress

import pytest

from enhanced_checkpointing.failover import routes
from enhanced_checkpointing.failover.routes import (
    Lanes,
    Route,
    Verdict,
    after_failed_read,
    after_failed_write,
    route_of,
)
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.resilience.failure_kinds import FailureKind


@pytest.mark.parametrize(
    ("breaker_open", "journal_holds", "route"),
    [
        (False, False, Route.PRIMARY),
        (False, True, Route.JOURNAL),
        (True, False, Route.JOURNAL),
        (True, True, Route.JOURNAL),
    ],
)
def test_primary_is_the_route_only_when_it_is_up_and_nothing_waits(
    breaker_open: bool, journal_holds: bool, route: Route
) -> None:
    assert route_of(breaker_open=breaker_open, journal_holds=journal_holds) is route


@pytest.mark.parametrize(
    ("kind", "write", "read"),
    [
        (FailureKind.TRANSIENT, Verdict.JOURNAL, Verdict.JOURNAL),
        (FailureKind.UNKNOWN, Verdict.JOURNAL, Verdict.JOURNAL),
        (FailureKind.OUTAGE, Verdict.JOURNAL, Verdict.JOURNAL),
        (FailureKind.SATURATED, Verdict.JOURNAL, Verdict.UNAVAILABLE),
        (FailureKind.CONFIGURATION, Verdict.JOURNAL, Verdict.JOURNAL),
        (FailureKind.DATA, Verdict.RAISE, Verdict.RAISE),
        (FailureKind.CORRUPTION, Verdict.RAISE, Verdict.RAISE),
    ],
)
def test_every_kind_of_failure_has_its_verdict(kind: FailureKind, write: Verdict, read: Verdict) -> None:
    assert after_failed_write(kind, may_journal=True) is write
    assert after_failed_read(kind) is read


@pytest.mark.parametrize("kind", list(FailureKind))
def test_without_a_journal_nothing_is_journaled(kind: FailureKind) -> None:
    its_own_fault = kind in (FailureKind.DATA, FailureKind.CORRUPTION)
    assert after_failed_write(kind, may_journal=False) is (Verdict.RAISE if its_own_fault else Verdict.UNAVAILABLE)


def deadline(seconds: float = 5.0) -> Deadline:
    return Deadline(time.monotonic, seconds)


class Occupied:
    """Somebody who is in the lane until told to leave."""

    def __init__(self, lanes: Lanes, thread_id: str = "thread") -> None:
        self._leave = asyncio.Event()
        self._inside = asyncio.Event()
        self._task = asyncio.ensure_future(self._stay(lanes, thread_id))

    async def _stay(self, lanes: Lanes, thread_id: str) -> None:
        async with lanes.turn(thread_id, deadline()):
            self._inside.set()
            await self._leave.wait()

    async def entered(self) -> Occupied:
        await self._inside.wait()
        return self

    def tell(self) -> None:
        self._leave.set()

    async def leave(self) -> None:
        self.tell()
        await self._task


async def take_turn(lanes: Lanes, log: list[str], name: str, seconds: float = 5.0) -> None:
    async with lanes.turn("thread", deadline(seconds)):
        log.append(name)


async def test_turns_are_first_come_first_served_and_the_lane_goes_with_the_last() -> None:
    lanes, log = Lanes(), list[str]()
    first = await Occupied(lanes).entered()
    waiting = [asyncio.ensure_future(take_turn(lanes, log, name)) for name in "abcd"]
    await asyncio.sleep(0.01)
    assert log == []
    assert len(lanes) == 1
    await first.leave()
    await asyncio.gather(*waiting)
    assert log == ["a", "b", "c", "d"]
    assert len(lanes) == 0


async def test_threads_do_not_wait_for_each_other() -> None:
    lanes = Lanes()
    first, other = await Occupied(lanes, "one").entered(), await Occupied(lanes, "other").entered()
    assert len(lanes) == 2
    await first.leave()
    await other.leave()
    assert len(lanes) == 0


async def test_turn_that_does_not_come_in_time_raises_and_the_next_one_still_gets_it() -> None:
    lanes, log = Lanes(), list[str]()
    first = await Occupied(lanes).entered()
    started_at = time.monotonic()
    impatient = asyncio.ensure_future(take_turn(lanes, log, "impatient", 0.03))
    patient = asyncio.ensure_future(take_turn(lanes, log, "patient"))
    with pytest.raises(TimeoutError, match="another call of this thread"):
        await impatient
    assert time.monotonic() - started_at < 0.03 + 0.1
    await first.leave()
    await patient
    assert log == ["patient"]
    assert len(lanes) == 0


async def test_turn_that_comes_a_moment_after_the_deadline_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "HAND_OVER_SECONDS", 5.0)
    lanes, log = Lanes(), list[str]()
    first = await Occupied(lanes).entered()
    late = asyncio.ensure_future(take_turn(lanes, log, "late", 0.02))
    await asyncio.sleep(0.05)
    assert not late.done()
    await first.leave()
    await late
    assert log == ["late"]


async def test_free_lane_is_entered_even_when_the_deadline_is_over() -> None:
    lanes, log = Lanes(), list[str]()
    await take_turn(lanes, log, "alone", 0.0)
    assert log == ["alone"]


@pytest.mark.parametrize("seconds", [5.0, 0.02])
async def test_caller_cancelled_while_waiting_leaves_the_lane_to_the_next(
    monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """Before its deadline, and in the moment after it in which the call in front may still hand over."""
    monkeypatch.setattr(routes, "HAND_OVER_SECONDS", 5.0)
    lanes, log = Lanes(), list[str]()
    first = await Occupied(lanes).entered()
    cancelled = asyncio.ensure_future(take_turn(lanes, log, "cancelled", seconds))
    patient = asyncio.ensure_future(take_turn(lanes, log, "patient"))
    await asyncio.sleep(0.05)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    await first.leave()
    await asyncio.wait_for(patient, 1.0)
    assert log == ["patient"]
    assert len(lanes) == 0


@pytest.mark.parametrize("ticks", range(6))
async def test_caller_cancelled_just_as_its_turn_comes_leaves_the_lane_to_the_next(ticks: int) -> None:
    lanes, log = Lanes(), list[str]()
    first = await Occupied(lanes).entered()
    cancelled = asyncio.ensure_future(take_turn(lanes, log, "cancelled"))
    patient = asyncio.ensure_future(take_turn(lanes, log, "patient"))
    await asyncio.sleep(0.01)
    first.tell()
    for _ in range(ticks):
        await asyncio.sleep(0)
    cancelled.cancel()
    with suppress(asyncio.CancelledError):
        await cancelled
    await asyncio.wait_for(patient, 1.0)
    assert log[-1] == "patient"
    assert len(lanes) == 0


@pytest.mark.parametrize("ticks", range(6))
async def test_caller_that_comes_between_two_turns_is_bounded_too(ticks: int) -> None:
    """The lane is free for a moment when it is handed over, and belongs to the next in line all the same."""
    lanes, log = Lanes(), list[str]()
    first = await Occupied(lanes).entered()
    second = Occupied(lanes)
    await asyncio.sleep(0.01)
    first.tell()
    for _ in range(ticks):
        await asyncio.sleep(0)
    with pytest.raises(TimeoutError, match="another call of this thread"):
        await asyncio.wait_for(take_turn(lanes, log, "impatient", 0.01), 1.0)
    await second.leave()
    assert log == []
    assert len(lanes) == 0


async def test_error_inside_a_turn_gives_the_lane_back() -> None:
    lanes = Lanes()
    with pytest.raises(ValueError, match="inside"):
        async with lanes.turn("thread", deadline()):
            raise ValueError("inside")
    assert len(lanes) == 0


@pytest.mark.parametrize("seed", range(10))
async def test_no_two_are_inside_and_nobody_waits_for_ever_whatever_is_cancelled(seed: int) -> None:
    chance, lanes, inside, most = random.Random(seed), Lanes(), 0, 0

    async def visit() -> None:
        nonlocal inside, most
        async with lanes.turn("thread", deadline(chance.choice([0.001, 0.01, 5.0]))):
            inside += 1
            most = max(most, inside)
            try:
                await asyncio.sleep(chance.choice([0, 0, 0.001]))
            finally:
                inside -= 1

    visits = []
    for _ in range(40):
        visits.append(asyncio.ensure_future(visit()))
        if chance.random() < 0.3:
            await asyncio.sleep(0)
        if chance.random() < 0.3:
            chance.choice(visits).cancel()
    async with asyncio.timeout(5):
        await asyncio.gather(*visits, return_exceptions=True)
    assert most == 1
    assert len(lanes) == 0
