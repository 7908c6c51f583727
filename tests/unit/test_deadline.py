"""One total time for everything a call waits for, in which a stalled event loop is not charged."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from enhanced_checkpointing.resilience import deadline as deadlines
from enhanced_checkpointing.resilience.deadline import TICK, Alarm, Deadline, acquire
from enhanced_checkpointing.testing import FakeClock
from tests.support.checkpointer import eventually
from tests.support.virtual_time import now, stand_still

pytestmark = pytest.mark.virtual_time


def test_remaining_falls_with_the_clock_and_never_below_zero() -> None:
    clock = FakeClock(50.0)
    deadline = Deadline(clock, 5.0)
    assert deadline.remaining() == 5.0
    clock.advance(3.0)
    assert deadline.remaining() == 2.0
    clock.advance(9.0)
    assert deadline.remaining() == 0.0


def test_excused_seconds_put_the_end_off_and_are_not_measured() -> None:
    clock = FakeClock(50.0)
    deadline = Deadline(clock, 1.0)
    before = deadline.now()
    clock.advance(3.0)
    deadline.excuse(2.5)
    assert deadline.remaining() == 0.5
    assert deadline.now() - before == 0.5
    assert deadline.stalled == 2.5


async def test_what_is_done_already_counts_even_when_the_deadline_is_over() -> None:
    clock = FakeClock()
    deadline = Deadline(clock, 1.0)
    clock.advance(2.0)
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    done.set_result(None)
    assert await deadline.wait_for(done)


async def test_wait_ends_with_the_deadline_and_leaves_the_future_alone() -> None:
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    started_at = now()
    assert not await Deadline(now, 0.05).wait_for(never)
    assert now() - started_at == pytest.approx(0.05)
    assert not never.done()


async def test_wait_ends_as_soon_as_the_future_is_done() -> None:
    soon = asyncio.ensure_future(asyncio.sleep(0.02))
    started_at = now()
    assert await Deadline(now, 5.0).wait_for(soon)
    assert now() - started_at == pytest.approx(0.02)


async def test_wait_over_several_looks_still_ends_with_the_future(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "LOOK_EVERY", 0.01)
    assert await Deadline(now, 5.0).wait_for(asyncio.ensure_future(asyncio.sleep(0.05)))


@pytest.mark.parametrize(("stall", "in_time"), [(0.5, True), (0.05, False)])
async def test_only_a_long_standstill_of_the_loop_is_excused(
    monkeypatch: pytest.MonkeyPatch, stall: float, in_time: bool
) -> None:
    """The clock jumps while the first look waits; an answer in the second look is in time only if excused."""
    monkeypatch.setattr(deadlines, "LOOK_EVERY", 0.02)
    clock, loop = FakeClock(), asyncio.get_running_loop()
    deadline = Deadline(clock, 0.06)
    answer = asyncio.ensure_future(asyncio.sleep(0.03))
    loop.call_soon(clock.advance, 0.02 + stall)
    assert await deadline.wait_for(answer) is in_time
    assert deadline.stalled == pytest.approx(stall if in_time else 0.0)
    await answer


# A standstill that another call met


def stalled(clock: FakeClock, *, seconds: float) -> Deadline:
    """The deadline of a call in which the loop stood still, just now."""
    other = Deadline(clock, 5.0)
    clock.advance(seconds)
    other.excuse(seconds)
    return other


def test_standstill_of_another_call_is_excused_where_this_one_waited_too() -> None:
    clock = FakeClock(50.0)
    deadline = Deadline(clock, 5.0)
    clock.advance(1.0)
    deadline.forgive(stalled(clock, seconds=10.0))
    assert deadline.remaining() == 4.0
    assert deadline.stalled == 10.0


def test_standstill_that_two_others_met_is_excused_once_and_the_next_one_again() -> None:
    clock = FakeClock(50.0)
    deadline = Deadline(clock, 5.0)
    one, other = Deadline(clock, 5.0), Deadline(clock, 5.0)
    clock.advance(10.0)
    one.excuse(9.5)
    other.excuse(9.75)
    deadline.forgive(one)
    deadline.forgive(other)
    assert deadline.remaining() == 4.5
    clock.advance(1.0)
    deadline.forgive(stalled(clock, seconds=3.0))
    assert deadline.remaining() == 3.5


def test_call_that_began_after_a_standstill_is_not_excused() -> None:
    clock = FakeClock(50.0)
    other = stalled(clock, seconds=10.0)
    deadline = Deadline(clock, 5.0)
    deadline.forgive(other)
    clock.advance(1.0)
    deadline.forgive(other)
    assert deadline.remaining() == 4.0


def test_call_that_met_a_standstill_itself_is_not_excused_twice() -> None:
    clock = FakeClock(50.0)
    deadline = Deadline(clock, 5.0)
    spared = deadline.sparing(1.0)
    clock.advance(10.0)
    spared.excuse(10.0)
    deadline.forgive(spared)
    assert deadline.remaining() == 5.0


def test_without_a_standstill_nothing_is_excused() -> None:
    clock = FakeClock(50.0)
    deadline, other = Deadline(clock, 5.0), Deadline(clock, 5.0)
    clock.advance(2.0)
    deadline.forgive(other)
    assert (deadline.remaining(), deadline.stalled) == (3.0, 0.0)


# A lock


async def take(lock: asyncio.Lock, log: list[str], name: str, seconds: float = 5.0) -> bool:
    if not await acquire(lock, Deadline(now, seconds)):
        return False
    log.append(name)
    lock.release()
    return True


async def test_lock_is_had_first_come_first_served() -> None:
    lock, log = asyncio.Lock(), list[str]()
    await lock.acquire()
    waiting = [asyncio.ensure_future(take(lock, log, name)) for name in "abcd"]
    await asyncio.sleep(0.01)
    assert log == []
    lock.release()
    assert await asyncio.gather(*waiting) == [True] * 4
    assert log == ["a", "b", "c", "d"]
    assert not lock.locked()


async def test_lock_that_does_not_come_in_time_is_left_to_the_next() -> None:
    lock, log = asyncio.Lock(), list[str]()
    await lock.acquire()
    started_at = now()
    impatient = asyncio.ensure_future(take(lock, log, "impatient", 0.03))
    patient = asyncio.ensure_future(take(lock, log, "patient"))
    assert await impatient is False
    assert now() - started_at == pytest.approx(0.03)
    lock.release()
    assert await asyncio.wait_for(patient, 1.0)
    assert log == ["patient"]
    assert not lock.locked()


@pytest.mark.parametrize("turns", range(6))
async def test_caller_cancelled_just_as_its_turn_comes_leaves_the_lock_to_the_next(turns: int) -> None:
    lock, log = asyncio.Lock(), list[str]()
    await lock.acquire()
    cancelled = asyncio.ensure_future(take(lock, log, "cancelled"))
    patient = asyncio.ensure_future(take(lock, log, "patient"))
    await asyncio.sleep(0.01)
    lock.release()
    for _ in range(turns):
        await asyncio.sleep(0)
    cancelled.cancel()
    with suppress(asyncio.CancelledError):
        await cancelled
    assert await asyncio.wait_for(patient, 1.0)
    assert log[-1] == "patient"
    assert not lock.locked()


async def test_caller_cancelled_while_waiting_leaves_the_lock_to_the_next() -> None:
    lock, log = asyncio.Lock(), list[str]()
    await lock.acquire()
    cancelled = asyncio.ensure_future(take(lock, log, "cancelled"))
    await asyncio.sleep(0.01)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    lock.release()
    assert await asyncio.wait_for(take(lock, log, "patient"), 1.0)
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("seed", range(10))
async def test_no_two_have_the_lock_and_nobody_waits_for_ever_whatever_is_cancelled(seed: int) -> None:
    chance, lock, inside, most = random.Random(seed), asyncio.Lock(), 0, 0

    async def visit() -> None:
        nonlocal inside, most
        if not await acquire(lock, Deadline(now, chance.choice([0.001, 0.01, 5.0]))):
            return
        inside += 1
        most = max(most, inside)
        try:
            await asyncio.sleep(chance.choice([0, 0, 0.001]))
        finally:
            inside -= 1
            lock.release()

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
    await asyncio.sleep(0.01)
    assert not lock.locked()


# One timer for many waits


def counted_timers(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the timers ring that the loop is given from now on."""
    loop, timers = asyncio.get_running_loop(), list[float]()
    arm = loop.call_at

    def counted(when: float, *rest: Any, **named: Any) -> asyncio.TimerHandle:
        timers.append(when)
        return arm(when, *rest, **named)

    monkeypatch.setattr(loop, "call_at", counted)
    return timers


async def test_alarm_wakes_each_at_its_own_time_whatever_came_first() -> None:
    alarm, woken = Alarm(), list[str]()
    for name, seconds in (("late", 0.08), ("early", 0.02), ("middle", 0.05)):
        alarm.set(partial(woken.append, name), seconds)
    for expected in ([], ["early"], ["early", "middle"], ["early", "middle", "late"]):
        assert woken == expected
        await asyncio.sleep(0.03)


async def test_thousands_of_waits_are_woken_by_few_timers_and_none_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, timers, late = asyncio.get_running_loop(), counted_timers(monkeypatch), list[float]()
    alarm = Alarm()

    def wait(seconds: float) -> None:
        due = loop.time() + seconds
        alarm.set(lambda: late.append(loop.time() - due), seconds)

    for number in range(5000):
        wait(0.1 + number * 0.00002)
    await eventually(lambda: len(late) == 5000)
    assert min(late) >= -0.001, "a timer of the loop may ring that much too early"
    assert len(timers) < 100, "those of the sleeps above among them"


async def test_waits_that_a_standstill_made_late_are_all_woken_at_once() -> None:
    alarm, woken = Alarm(), list[int]()
    for number in range(10):
        alarm.set(partial(woken.append, number), 0.01 * (number + 1))
    asyncio.get_running_loop().call_soon(stand_still, 0.15)  # the loop stands still
    await asyncio.sleep(0.01)
    assert woken == [*range(10)]


async def test_alarm_that_is_turned_off_wakes_nobody_and_the_others_still() -> None:
    alarm, woken = Alarm(), list[str]()
    turn_off = alarm.set(partial(woken.append, "first"), 0.01)
    alarm.set(partial(woken.append, "second"), 0.02)
    turn_off()
    await asyncio.sleep(0.05)
    assert woken == ["second"]
    turn_off()


async def test_waits_one_after_the_other_share_one_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, timers = asyncio.get_running_loop(), counted_timers(monkeypatch)
    alarm, deadline = Alarm(), Deadline(now, 5.0)
    for _ in range(50):
        answer: asyncio.Future[None] = loop.create_future()
        loop.call_soon(answer.set_result, None)
        assert await deadline.wait_for(answer, alarm=alarm)
    assert len(timers) == 1


async def test_wait_that_shares_a_timer_ends_with_its_deadline() -> None:
    alarm = Alarm()
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def seconds_of(deadline: float) -> float:
        started_at = now()
        assert not await Deadline(now, deadline).wait_for(never, alarm=alarm)
        return now() - started_at

    waited = await asyncio.gather(*(seconds_of(seconds) for seconds in (0.1, 0.05, 0.1)))
    assert waited == pytest.approx([0.1, 0.05, 0.1], abs=1.01 * TICK)
