"""The network between us and a healthy server fails: FAULTS rows 7 to 10 and 12."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from enhanced_checkpointing import EnhancedCheckpointerManager
from tests.support.checkpointer import eventually, opened, postgres, recovered, saver_of
from tests.support.checkpoints import Thread
from tests.support.fault_proxy import FaultProxy
from tests.support.leaks import LeakWatch
from tests.support.twins import assert_equals_twin, run_graphs

DEADLINE = 1.0
LATE = 0.1
NOISE = 0.1
GRAPHS = ["counting_chain", "parallel", "send_map", "unchanged_channel"]


@asynccontextmanager
async def behind_proxy(
    database_url: str, **fields: Any
) -> AsyncIterator[tuple[EnhancedCheckpointerManager, FaultProxy]]:
    parts = urlsplit(database_url)
    async with (
        FaultProxy(str(parts.hostname), parts.port or 5432) as proxy,
        opened(postgres(proxy.url(database_url), **{"deadline": DEADLINE, **fields})) as manager,
    ):
        yield manager, proxy
        proxy.forward()


async def test_black_hole_after_connecting_bounds_every_call(database_url: str, no_leaks: LeakWatch) -> None:
    no_leaks.grace_seconds = 5.0
    async with behind_proxy(database_url) as (manager, proxy):
        thread = Thread(saver_of(manager), "black-hole")
        await thread.put()
        proxy.black_hole()
        took = [await thread.timed_put() for _ in range(20)]
        assert took[0] <= DEADLINE + LATE + NOISE
        assert max(took[1:]) <= 0.1
        proxy.forward()
        await recovered(manager)
        assert await thread.stored_ids() == thread.ids


async def test_black_hole_under_many_calls_at_once_bounds_them_all(database_url: str) -> None:
    async with behind_proxy(database_url, pool_max_size=4) as (manager, proxy):
        threads = [Thread(saver_of(manager), f"thread-{number}") for number in range(40)]
        await asyncio.gather(*(thread.put() for thread in threads))
        proxy.black_hole()
        took = await asyncio.gather(*(thread.timed_put() for thread in threads))
        assert max(took) <= DEADLINE + LATE + NOISE
        assert max(await asyncio.gather(*(thread.timed_put() for thread in threads))) <= 0.3
        proxy.forward()
        await recovered(manager)
        for thread in threads:
            assert await thread.stored_ids() == thread.ids


async def test_black_hole_on_connecting_bounds_start_and_calls(database_url: str) -> None:
    async with opened(postgres(database_url)) as set_up:
        assert set_up.health_status["primary_healthy"]
    parts = urlsplit(database_url)
    async with FaultProxy(str(parts.hostname), parts.port or 5432) as proxy:
        proxy.black_hole()
        started_at = time.perf_counter()
        async with opened(postgres(proxy.url(database_url))) as manager:
            assert time.perf_counter() - started_at <= 5.0
            assert not manager.health_status["primary_healthy"]
            thread = Thread(saver_of(manager), "late")
            assert await thread.timed_put() <= 0.1
            proxy.forward()
            await recovered(manager)
            assert await thread.stored_ids() == thread.ids


async def test_reset_in_mid_reply_loses_nothing(database_url: str, twin_database_url: str) -> None:
    async with behind_proxy(database_url) as (manager, proxy):

        async def cut(turn: int) -> None:
            proxy.cut_after(3 + 40 * turn)

        for name in GRAPHS:
            await run_graphs(saver_of(manager), [name], cut)
            await recovered(manager)
    await assert_equals_twin(database_url, twin_database_url, GRAPHS)


async def test_reply_that_is_lost_after_the_commit_makes_no_duplicate(
    database_url: str, twin_database_url: str
) -> None:
    async with behind_proxy(database_url) as (manager, proxy):

        async def lose(turn: int) -> None:
            proxy.drop_replies(b"INSERT")

        for name in GRAPHS:
            await run_graphs(saver_of(manager), [name], lose)
            await recovered(manager)
    await assert_equals_twin(database_url, twin_database_url, GRAPHS)


@pytest.mark.parametrize("calls_at_once", [1, 10])
async def test_slow_calls_open_the_breaker(database_url: str, calls_at_once: int) -> None:
    async with behind_proxy(database_url, retries=0, probe_interval=60.0) as (manager, proxy):
        threads = [Thread(saver_of(manager), f"slow-{number}") for number in range(calls_at_once)]
        await asyncio.gather(*(thread.put() for thread in threads))
        proxy.delay(0.3)  # each way: a call of one round trip takes 0.6 s of the deadline's 1 s
        for _ in range(5):
            took = await asyncio.gather(*(thread.timed_put() for thread in threads))
            assert max(took) <= DEADLINE + LATE + NOISE
        assert not manager.health_status["primary_healthy"]
        assert max(await asyncio.gather(*(thread.timed_put() for thread in threads))) <= 0.1
        await asyncio.sleep(0.5)
        assert not manager.health_status["primary_healthy"], "a probe closed the breaker of a server that is slow"
        proxy.forward()
        await recovered(manager)
        for thread in threads:
            assert await thread.stored_ids() == thread.ids


async def test_small_latency_opens_nothing(database_url: str) -> None:
    async with behind_proxy(database_url) as (manager, proxy):
        proxy.delay(0.02)
        threads = [Thread(saver_of(manager), f"steady-{number}") for number in range(10)]
        for _ in range(5):
            await asyncio.gather(*(thread.put() for thread in threads))
        assert manager.components.engine.journaling.journaled == 0
        assert manager.health_status["overall_status"] == "healthy"


async def test_recovery_from_refused_connections_is_noticed_within_two_seconds_after_a_long_outage(
    database_url: str,
) -> None:
    fields = {"probe_backoff_min": 0.5, "probe_backoff_max": 15.0}
    async with behind_proxy(database_url, **fields) as (manager, proxy):
        thread = Thread(saver_of(manager), "long")
        await thread.put()
        proxy.refuse()
        await thread.put()
        await asyncio.sleep(6.0)
        proxy.forward()
        started_at = time.monotonic()
        await eventually(lambda: bool(manager.health_status["primary_healthy"]))
        assert time.monotonic() - started_at <= 2.0
        await recovered(manager)
        assert await thread.stored_ids() == thread.ids
