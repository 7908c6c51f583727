"""The network proxy makes the faults that it names, between psycopg and a real PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, nullcontext

import psycopg
import pytest

from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres
from tests.support.fault_proxy import FaultProxy, ThreadedFaultProxy
from tests.support.leaks import LeakWatch
from tests.support.postgres import PostgresServer


def run(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


async def connect(url: str) -> psycopg.AsyncConnection[tuple[object, ...]]:
    return await psycopg.AsyncConnection.connect(url, autocommit=True)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[psycopg.AsyncConnection[tuple[object, ...]]]:
    """Closes at the end and does nothing else: psycopg's own block would try to commit on a broken connection."""
    connection = await connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def insert(connection: psycopg.AsyncConnection[tuple[object, ...]], in_transaction: bool) -> None:
    async with connection.transaction() if in_transaction else nullcontext():
        await connection.execute("INSERT INTO changes VALUES (1)")


async def insert_in_pipeline(connection: psycopg.AsyncConnection[tuple[object, ...]], count: int) -> None:
    async with connection.pipeline():
        for _ in range(count):
            await connection.execute("INSERT INTO changes VALUES (1)")


def proxy_of(server: PostgresServer) -> FaultProxy:
    return FaultProxy("127.0.0.1", int(server.url().rpartition(":")[2].partition("/")[0]))


async def test_proxy_forwards_much_data_unchanged(
    database_url: str, postgres_server: PostgresServer, no_leaks: LeakWatch
) -> None:
    async with proxy_of(postgres_server) as proxy, connected(proxy.url(database_url)) as connection:
        text = "checkpoint" * 500_000
        assert await (await connection.execute("SELECT %s::text", [text])).fetchone() == (text,)


async def test_refusing_proxy_ends_what_is_open_and_heals_on_the_same_port(
    database_url: str, postgres_server: PostgresServer, no_leaks: LeakWatch
) -> None:
    async with proxy_of(postgres_server) as proxy:
        connection = await connect(proxy.url(database_url))
        proxy.refuse()
        with pytest.raises(psycopg.OperationalError):
            await connection.execute("SELECT 1")
        await connection.close()
        with pytest.raises(psycopg.OperationalError, match="refused"):
            await connect(proxy.url(database_url))
        proxy.forward()
        async with connected(proxy.url(database_url)) as healed:
            assert await (await healed.execute("SELECT 1")).fetchone() == (1,)


async def test_black_hole_keeps_connections_open_and_silent_until_it_heals(
    database_url: str, postgres_server: PostgresServer, no_leaks: LeakWatch
) -> None:
    async with proxy_of(postgres_server) as proxy:
        connection = await connect(proxy.url(database_url))
        proxy.black_hole()
        query = asyncio.ensure_future(connection.execute("SELECT 1"))
        connecting = asyncio.ensure_future(connect(proxy.url(database_url)))
        done, _ = await asyncio.wait({query, connecting}, timeout=0.5)
        assert not done
        assert proxy.connections == 2
        proxy.forward()
        assert await (await query).fetchone() == (1,)
        await (await connecting).close()
        await connection.close()


async def test_reset_ends_open_connections_with_a_reset_and_new_ones_work(
    database_url: str, postgres_server: PostgresServer, no_leaks: LeakWatch
) -> None:
    async with proxy_of(postgres_server) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        async with connected(proxy.url(database_url)) as connection:
            proxy.reset()
            await proxy.settled()
            assert proxy.connections == 0
            with pytest.raises(ConnectionResetError):
                await reader.read()
            with pytest.raises(psycopg.OperationalError):
                await connection.execute("SELECT 1")
        writer.close()
        async with connected(proxy.url(database_url)) as healed:
            assert await (await healed.execute("SELECT 1")).fetchone() == (1,)


async def test_delay_adds_latency_in_each_direction_and_keeps_the_throughput(
    database_url: str, postgres_server: PostgresServer, no_leaks: LeakWatch
) -> None:
    async with proxy_of(postgres_server) as proxy, connected(proxy.url(database_url)) as connection:
        proxy.delay(0.2)
        started = time.monotonic()
        await connection.execute("SELECT 1")
        assert 0.4 <= time.monotonic() - started < 0.8
        started = time.monotonic()
        cursor = await connection.execute(
            "SELECT repeat('x', 20000000)"
        )  # some 300 chunks: a pause for each would show
        assert len(str(await cursor.fetchone())) > 20_000_000
        assert 0.4 <= time.monotonic() - started < 4.0


async def test_reply_is_cut_after_the_given_number_of_bytes(
    database_url: str, postgres_server: PostgresServer, no_leaks: LeakWatch
) -> None:
    async with proxy_of(postgres_server) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        proxy.cut_after(7)
        user = b"user\0postgres\0database\0postgres\0\0"
        writer.write((8 + len(user)).to_bytes(4, "big") + (196_608).to_bytes(4, "big") + user)
        assert len(await reader.readexactly(7)) == 7
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        async with connected(proxy.url(database_url)) as connection:
            proxy.cut_after(100_000)
            with pytest.raises(psycopg.OperationalError):
                await connection.execute("SELECT repeat('x', 200000)")


@pytest.mark.parametrize("in_transaction", [False, True])
async def test_dropped_reply_leaves_the_change_committed(
    in_transaction: bool, database_url: str, postgres_server: PostgresServer, no_leaks: LeakWatch
) -> None:
    run(database_url, "CREATE TABLE changes (number int)")
    async with proxy_of(postgres_server) as proxy, connected(proxy.url(database_url)) as connection:
        proxy.drop_replies(b"COMMIT" if in_transaction else b"")
        with pytest.raises(psycopg.OperationalError):
            await insert(connection, in_transaction)
        assert run(database_url, "SELECT number FROM changes") == [(1,)]
        async with connected(proxy.url(database_url)) as healed:
            assert await (await healed.execute("SELECT 1")).fetchone() == (1,)


async def test_dropped_reply_of_a_pipeline_leaves_all_of_it_committed(
    database_url: str, postgres_server: PostgresServer, no_leaks: LeakWatch
) -> None:
    run(database_url, "CREATE TABLE changes (number int)")
    async with proxy_of(postgres_server) as proxy, connected(proxy.url(database_url)) as connection:
        proxy.drop_replies(b"INSERT")
        with pytest.raises(psycopg.OperationalError):
            await insert_in_pipeline(connection, 50)
        assert run(database_url, "SELECT count(*) FROM changes") == [(50,)]


async def test_connection_through_the_proxy_is_reset_when_the_server_is_gone(
    private_postgres: LocalPostgres, no_leaks: LeakWatch
) -> None:
    async with proxy_of(private_postgres) as proxy, connected(proxy.url(private_postgres.url())) as connection:
        private_postgres.kill()
        with pytest.raises(psycopg.OperationalError):
            await connection.execute("SELECT 1")
        with pytest.raises(psycopg.OperationalError):
            await connect(proxy.url(private_postgres.url()))


@pytest.mark.parametrize(
    "fault",
    [
        ThreadedFaultProxy.refuse,
        ThreadedFaultProxy.reset,
        lambda proxy: proxy.cut_after(3),
        ThreadedFaultProxy.drop_replies,
    ],
)
def test_threaded_proxy_makes_the_same_faults_for_a_synchronous_client(
    fault: Callable[[ThreadedFaultProxy], None], database_url: str, postgres_server: PostgresServer, no_leaks: LeakWatch
) -> None:
    target = proxy_of(postgres_server)
    with ThreadedFaultProxy(target.host, target.target_port) as proxy:
        with closing(psycopg.connect(proxy.url(database_url))) as connection:
            fault(proxy)
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
        proxy.forward()
        assert run(proxy.url(database_url), "SELECT 1") == [(1,)]
        proxy.delay(0.1)
        started = time.monotonic()
        assert run(proxy.url(database_url), "SELECT 1") == [(1,)]
        assert time.monotonic() - started >= 0.4
        proxy.black_hole()
        with pytest.raises(psycopg.OperationalError, match="timeout"):
            psycopg.connect(proxy.url(database_url), connect_timeout=1)
