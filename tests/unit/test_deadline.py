"""One total time for everything a call waits for, in which a stalled event loop is not charged."""

from __future__ import annotations

import asyncio
import time

import pytest

from enhanced_checkpointing.resilience import deadline as deadlines
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.testing import FakeClock


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
    started_at = time.monotonic()
    assert not await Deadline(time.monotonic, 0.05).wait_for(never)
    assert 0.04 < time.monotonic() - started_at < 0.15
    assert not never.done()


async def test_wait_ends_as_soon_as_the_future_is_done() -> None:
    soon = asyncio.ensure_future(asyncio.sleep(0.02))
    started_at = time.monotonic()
    assert await Deadline(time.monotonic, 5.0).wait_for(soon)
    assert time.monotonic() - started_at < 0.15


async def test_wait_over_several_looks_still_ends_with_the_future(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "LOOK_EVERY", 0.01)
    assert await Deadline(time.monotonic, 5.0).wait_for(asyncio.ensure_future(asyncio.sleep(0.05)))


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
