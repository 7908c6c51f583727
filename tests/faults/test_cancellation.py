"""Callers that are cancelled at any moment leave nothing half done and nothing open: FAULTS row 34."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from enhanced_checkpointing import EnhancedCheckpointerManager
from tests.support.checkpointer import eventually, opened, postgres, recovered, saver_of, switched
from tests.support.checkpoints import Thread
from tests.support.fault_proxy import FaultProxy
from tests.support.leaks import LeakWatch

TURNS = 40
STEPS = [*range(TURNS), *range(TURNS, TURNS + 200, 10)]
"""Moments of the cancellation: so many turns of the event loop, and then so many milliseconds more."""


async def cancelled_after(steps: int, call: Callable[[], Awaitable[object]]) -> bool:
    """Cancel a call at this moment; True if it was cancelled, False if it had ended."""
    task = asyncio.ensure_future(call())
    for _ in range(min(steps, TURNS)):
        await asyncio.sleep(0)
    if steps > TURNS:
        await asyncio.sleep((steps - TURNS) / 1000)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return True
    return False


async def assert_at_rest(manager: EnhancedCheckpointerManager) -> None:
    """Nothing is borrowed, queued, or under way any more."""
    parts = manager.components
    await eventually(lambda: len(parts.engine.writes.gathered) == 0 and parts.guard.outstanding == 0)
    await eventually(lambda: parts.backend.gauges()["borrowed"] == 0 and parts.backend.gauges()["waiting"] == 0)
    names = [task.get_name() for task in asyncio.all_tasks()]
    assert not [name for name in names if name.startswith(("settle", "checkpoint attempt")) and "probe" not in name]


async def test_cancelled_put_is_stored_whole_or_not_at_all_and_the_thread_goes_on(
    database_url: str, no_leaks: LeakWatch
) -> None:
    async with opened(postgres(database_url)) as manager:
        thread = Thread(saver_of(manager), "cancelled")
        await thread.put()
        outcomes = set()
        for steps in STEPS:
            before = list(thread.ids)
            outcomes.add(await cancelled_after(steps, thread.put))
            await assert_at_rest(manager)
            stored = await thread.stored_ids()
            assert stored[: len(before)] == before
            assert len(stored) <= len(before) + 1
            thread.ids = stored
            await thread.put()
        assert outcomes == {True, False}, "the sweep did not reach the end of a call"
        assert manager.health_status["overall_status"] == "healthy"
        assert await thread.stored_ids() == thread.ids


async def test_cancelled_reads_leave_nothing_behind(database_url: str, no_leaks: LeakWatch) -> None:
    async with opened(postgres(database_url)) as manager:
        thread = Thread(saver_of(manager), "read")
        await thread.put()
        outcomes = set()
        for steps in STEPS:
            outcomes.add(await cancelled_after(steps, thread.timed_get))
            outcomes.add(await cancelled_after(steps, thread.stored))
        assert True in outcomes
        await assert_at_rest(manager)
        assert manager.health_status["overall_status"] == "healthy"
        await thread.timed_get()


async def test_delete_after_a_cancelled_put_wins(database_url: str) -> None:
    """The put goes on in the background: the deletion must not overtake it."""
    async with opened(postgres(database_url)) as manager:
        for steps in STEPS:
            thread = Thread(saver_of(manager), f"deleted-{steps}")
            await thread.put()
            await cancelled_after(steps, thread.put)
            await saver_of(manager).adelete_thread(thread.thread_id)
            await assert_at_rest(manager)
            assert await thread.stored_ids() == []


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 8, 13, 21])
async def test_cancellation_in_an_outage_keeps_order_and_equality(
    steps: int, database_url: str, tmp_path: Path
) -> None:
    async with switched("postgres", database_url, tmp_path) as primary:
        manager = primary.manager
        thread = Thread(saver_of(manager), "outage")
        await thread.put()
        await primary.off()
        for _ in range(5):
            before = list(thread.ids)
            await cancelled_after(steps, thread.put)
            await eventually(lambda: len(manager.components.engine.writes.gathered) == 0)
            thread.ids = await thread.stored_ids() if _complete(manager) else [*before, *thread.ids[len(before) :]]
            await thread.put()
        during = await saver_of(manager).aget_tuple(thread.config)
        await primary.on()
        await recovered(manager)
        assert await saver_of(manager).aget_tuple(thread.config) is not None
        assert during is not None
        assert (await thread.stored_ids())[-1] == during.checkpoint["id"] == thread.ids[-1]
        assert len(manager.components.engine.writes.gathered) == 0


def _complete(manager: EnhancedCheckpointerManager) -> bool:
    return manager.components.standby._threads["outage"].complete


async def test_caller_that_is_cancelled_while_the_server_hangs_goes_at_once(
    database_url: str, no_leaks: LeakWatch
) -> None:
    no_leaks.grace_seconds = 5.0
    parts = urlsplit(database_url)
    async with (
        FaultProxy(str(parts.hostname), parts.port or 5432) as proxy,
        opened(postgres(proxy.url(database_url))) as manager,
    ):
        thread = Thread(saver_of(manager), "hanging")
        await thread.put()
        proxy.black_hole()
        loop = asyncio.get_running_loop()
        for call in (thread.put, thread.timed_get):
            task = asyncio.ensure_future(call())
            await asyncio.sleep(0.1)
            started_at = loop.time()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert loop.time() - started_at < 0.1
        proxy.forward()
        await recovered(manager)
        await assert_at_rest(manager)
