"""A pool of connections and the one that replaced it: what happens in one is no matter of the other."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import psycopg
import pytest

from enhanced_checkpointing import CheckpointerConfig
from enhanced_checkpointing.backends.postgres.connections import Connection, ConnectionPool, PostgresConnections
from enhanced_checkpointing.observability.log import PoolNoiseFilter
from tests.support.checkpointer import eventually, postgres
from tests.support.fault_proxy import FaultProxy
from tests.support.leaks import LeakWatch


def proxy_of(database_url: str) -> FaultProxy:
    parts = urlsplit(database_url)
    return FaultProxy(str(parts.hostname), parts.port or 5432)


async def connections_of(stack: AsyncExitStack, config: CheckpointerConfig) -> PostgresConnections:
    connections = PostgresConnections(config)
    stack.push_async_callback(connections.close)
    await connections.open()
    return connections


async def test_connect_that_hangs_in_a_replaced_pool_does_not_hide_that_the_new_one_is_full(
    database_url: str, no_leaks: LeakWatch
) -> None:
    async with proxy_of(database_url) as proxy, AsyncExitStack() as stack:
        proxy.black_hole()
        connections = await connections_of(stack, postgres(proxy.url(database_url), pool_max_size=1))
        await eventually(lambda: proxy.connections == 1)
        assert not connections.saturated
        proxy.forward_only_new()
        await connections.renew()
        async with connections.borrow():
            assert connections.saturated
        assert not connections.saturated


async def test_call_is_told_at_once_that_nobody_answers_although_another_holds_a_connection_of_a_replaced_pool(
    database_url: str, no_leaks: LeakWatch
) -> None:
    async with proxy_of(database_url) as proxy, AsyncExitStack() as stack:
        connections = await connections_of(stack, postgres(proxy.url(database_url), pool_max_size=1, deadline=5.0))
        async with connections.borrow():
            proxy.refuse()
            await connections.renew()
            started_at = time.monotonic()
            with pytest.raises(psycopg.OperationalError, match="refused"):
                async with connections.borrow():
                    pass
            assert time.monotonic() - started_at < 2.0  # the pool's own patience is 11 s
            assert connections.gauges()["borrowed"] == 0


async def test_connect_that_fails_in_a_replaced_pool_is_not_told_to_the_calls_of_the_new_one(
    database_url: str, no_leaks: LeakWatch
) -> None:
    async def ready(_: Connection) -> None:
        pass

    noise = PoolNoiseFilter("pool")  # of what is logged, pytest would keep the errors, and they the connections

    async def pool_at(proxy: FaultProxy, name: str) -> ConnectionPool:
        config = postgres(proxy.url(database_url), deadline=5.0)
        pool = ConnectionPool(config, name, configure=ready, any_open=lambda: False)
        stack.push_async_callback(pool.close)
        await pool.open()
        return pool

    async with proxy_of(database_url) as dead, proxy_of(database_url) as slow, AsyncExitStack() as stack:
        noise.install()
        stack.callback(noise.remove)
        dead.black_hole()
        slow.delay(0.2)
        await pool_at(dead, "pool-old")
        await eventually(lambda: dead.connections == 1)
        new = await pool_at(slow, "pool-new")
        acquiring = asyncio.ensure_future(new.acquire())
        await eventually(lambda: slow.connections >= 1)
        dead.reset()
        await dead.settled()
        connection = await acquiring
        assert not connection.closed
        await new.take_back(connection)
