"""The connections of the PostgreSQL backend: one pool for live calls, single ones for probes, and the fence.

The pool is psycopg's, set up so that nothing about an outage waits for its back-off: it grows on demand, gives a
failed connection up at once, tells waiting calls why the server cannot be reached, and is replaced on recovery.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
from psycopg import AsyncConnection, conninfo, sql
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool

from enhanced_checkpointing.backends.postgres.failures import STALE_PLAN, says_too_many
from enhanced_checkpointing.backends.postgres.fence import LostSessions
from enhanced_checkpointing.backends.postgres.hosts import with_addresses
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.resilience.attempts import Attempt, current_attempt
from enhanced_checkpointing.telemetry.log import PoolNoiseFilter

Connection = AsyncConnection[DictRow]

DESCRIBE_SESSION = "SELECT pg_backend_pid() AS process_id, current_setting('synchronous_commit') AS commit"

CLOSE_SECONDS = 1.0
"""How long the pool's own workers may take to end by themselves; one that hangs in a connect is cancelled then."""


class PostgresConnections:
    """Owns every connection to the server. All methods run on one event loop."""

    def __init__(self, config: CheckpointerConfig) -> None:
        assert config.connection_string is not None
        self._config = config
        self._conninfo = config.connection_string.get_secret_value()
        self._parameters = _parameters(self._conninfo, config.deadline)
        self._pool: AsyncConnectionPool[Connection] | None = None
        self._pools_made = 0
        self._borrowed = 0
        self._being_made = 0
        """Connections that a pool counts already and nobody can use yet."""
        self._waiting: dict[asyncio.Task[Any], BaseException | None] = {}
        self._lost = LostSessions()
        self._used_at: WeakKeyDictionary[Connection, float] = WeakKeyDictionary()
        self._broke_at = float("-inf")
        self._closing: set[asyncio.Task[None]] = set()
        self._name = f"enhanced-checkpointing-{id(self):x}"
        self._noise = PoolNoiseFilter(self._name)
        self.behind_pooler = False
        self._acknowledges_early = False
        """The server would acknowledge commits that a crash of it still loses."""

    async def open(self) -> None:
        """Open the pool without waiting for a connection."""
        self._noise.install()
        self._pool = await self._new_pool()

    async def renew(self) -> None:
        """Replace the pool after an outage, so that no call meets a dead connection or waits for a hanging connect."""
        stale, self._pool = self._pool, await self._new_pool()
        if stale is not None:
            task = asyncio.create_task(_close_pool(stale), name="close a stale pool")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await _close_pool(pool)
        if self._closing:
            await asyncio.wait(set(self._closing))
        self._noise.remove()

    @asynccontextmanager
    async def borrow(self) -> AsyncIterator[Connection]:
        """A connection for one attempt. When the attempt is late, its connection is cut and its session remembered."""
        pool = self._pool
        if pool is None:
            raise psycopg.OperationalError("connection failed: the checkpointer is closed")
        while True:
            async with self._held(pool, await self._acquire(pool)) as connection:
                if await self._is_usable(connection):
                    if self.behind_pooler:
                        async with self.in_schema(connection):
                            yield connection
                    else:
                        yield connection
                    return

    @asynccontextmanager
    async def _held(self, pool: AsyncConnectionPool[Connection], connection: Connection) -> AsyncIterator[Connection]:
        """A connection in the hands of the running attempt, given back to the pool at the end, whatever its state."""
        attempt, process_id = current_attempt.get(), connection.info.backend_pid
        self._borrowed += 1
        try:
            if attempt is not None:
                attempt.hold(lambda: self._sever(connection, process_id, attempt))
            yield connection
        except psycopg.Error as error:
            if error.sqlstate == STALE_PLAN:
                cut(connection)  # what it has prepared stays as it is
            elif connection.broken:
                self._broke_at = time.monotonic()
                if attempt is not None and attempt.writes:
                    self._lost.remember(process_id, attempt.subjects)
            raise
        finally:
            self._borrowed -= 1
            self._used_at[connection] = time.monotonic()
            if attempt is not None:
                attempt.let_go()
            await pool.putconn(connection)

    async def _is_usable(self, connection: Connection) -> bool:
        """Whether a connection still lives. Asked only of those that were idle when another one broke: what broke it,
        a restart or a firewall, may have broken them all, and each would cost a call one of its retries."""
        if self._used_at.get(connection, 0.0) >= self._broke_at:
            return True
        try:
            await connection.execute("")
        except psycopg.Error:
            return False
        return True

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[Connection]:
        """A connection outside the pool, for a probe or for setting up; cut when the running attempt is late."""
        connection: Connection = await _Connection.connect(
            self._conninfo, autocommit=True, prepare_threshold=None, row_factory=dict_row, **self._parameters
        )
        attempt = current_attempt.get()
        if attempt is not None:
            attempt.hold(lambda: cut(connection))
        try:
            await self._configure(connection)
            yield connection
        except BaseException:
            cut(connection)  # closing a connection politely could wait for a server that hangs
            raise
        finally:
            if attempt is not None:
                attempt.let_go()
            await connection.close()

    @asynccontextmanager
    async def alone_if_possible(self) -> AsyncIterator[Connection]:
        """A connection outside the pool; one of the pool's where the server has none left but those."""
        async with AsyncExitStack() as stack:
            try:
                connection = await stack.enter_async_context(self.alone())
            except psycopg.OperationalError as error:
                if not says_too_many(error) or not self._any_open():
                    raise
                connection = await stack.enter_async_context(self.borrow())
            yield connection

    @asynccontextmanager
    async def in_schema(self, connection: Connection) -> AsyncIterator[None]:
        """Where our settings hold: a connection has them for good, but behind a transaction pooler the next transaction
        may meet another session, and so they are part of each."""
        if self.behind_pooler and (self._config.postgres_schema or self._acknowledges_early):
            async with connection.transaction():
                await self._set(connection, local=True)
                yield
        else:
            yield

    @property
    def saturated(self) -> bool:
        """Whether all connections that there may be are in the hands of our own calls: made, and not idle.

        Not what is borrowed: a connection that goes from one call to the next is in nobody's hands for a moment.
        """
        statistics = self._pool.get_stats() if self._pool is not None else {}
        in_use = statistics.get("pool_size", 0) - self._being_made - statistics.get("pool_available", 0)
        return in_use >= self._config.pool_max_size

    def gauges(self) -> dict[str, int]:
        """Sizes of the pool, as its own statistics tell them."""
        statistics = self._pool.get_stats() if self._pool is not None else {}
        return {
            "min": self._config.pool_min_size,
            "max": self._config.pool_max_size,
            "size": statistics.get("pool_size", 0),
            "available": statistics.get("pool_available", 0),
            "borrowed": self._borrowed,
            "waiting": statistics.get("requests_waiting", 0),
            "lost_sessions": len(self._lost),
        }

    def may_still_write(self, thread_id: str) -> bool:
        """Whether a write to this thread was left behind on a session that is not known to be gone."""
        return self._lost.may_still_write(thread_id)

    async def fence(self, thread_id: str) -> bool:
        """End the sessions that writes to `thread_id` were left behind on; True when none can commit any more.

        Behind a transaction pooler the process id that a client sees is not the server's, and terminating it could hit
        a stranger: there, nothing is fenced.
        """
        if self.behind_pooler:
            self._lost.forget_all()
        if not self._lost.may_still_write(thread_id):
            return True
        async with self.alone() as connection:
            return await self._lost.end(thread_id, connection)

    async def _acquire(self, pool: AsyncConnectionPool[Connection]) -> Connection:
        task = asyncio.current_task()
        assert task is not None
        self._waiting[task] = None
        try:
            # The guard bounds the wait: the pool's own time-out only has to be longer.
            return await pool.getconn(timeout=2 * self._config.deadline + 1)
        except asyncio.CancelledError:
            reason = self._waiting[task]
            if reason is None:
                raise
            task.uncancel()
            raise reason from None
        finally:
            del self._waiting[task]

    def _connect_failed(self, error: psycopg.Error) -> None:
        """Tell the calls that wait for a connection why there is none, unless another call will hand one back."""
        if self._borrowed or (says_too_many(error) and self._any_open()):
            return
        for task, reason in list(self._waiting.items()):
            if reason is None:
                self._waiting[task] = error
                task.cancel()

    def _any_open(self) -> bool:
        """Whether there is any connection of ours: idle, being configured, or a probe's that is about to end."""
        return any(not connection.closed for connection in self._used_at)

    def _sever(self, connection: Connection, process_id: int, attempt: Attempt) -> None:
        if attempt.writes:
            self._lost.remember(process_id, attempt.subjects)
        self._broke_at = time.monotonic()
        cut(connection)

    async def _new_pool(self) -> AsyncConnectionPool[Connection]:
        self._pools_made += 1
        pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            self._conninfo,
            connection_class=_reporting_connection(self._connecting),
            kwargs={
                "autocommit": True,
                "prepare_threshold": self._config.postgres_prepare_threshold,
                "row_factory": dict_row,
                **self._parameters,
            },
            min_size=self._config.pool_min_size,
            max_size=self._config.pool_max_size,
            open=False,
            configure=self._configure_pooled,
            name=f"{self._name}-{self._pools_made}",
            timeout=self._config.deadline,
            reconnect_timeout=0.0,
        )
        await pool.open()
        return pool

    async def _configure_pooled(self, connection: Connection) -> None:
        with self._connecting():
            await self._configure(connection)

    @contextmanager
    def _connecting(self) -> Iterator[None]:
        """Around what makes a connection of the pool."""
        self._being_made += 1
        try:
            yield
        except psycopg.Error as error:
            self._connect_failed(error)
            raise
        finally:
            self._being_made -= 1

    async def _configure(self, connection: Connection) -> None:
        self._used_at[connection] = time.monotonic()
        self._noise.claim(connection)
        # Not prepared: behind a pooler another client's statement of that name may already be in the session.
        cursor = await connection.execute(DESCRIBE_SESSION, prepare=False)
        row = await cursor.fetchone()
        if connection.info.parameter_status("client_encoding") != "UTF8":  # arrays carry their texts in it
            await connection.execute("SET client_encoding TO 'UTF8'")
        # A pooler hands out process ids of its own making.
        self.behind_pooler = row is not None and row["process_id"] != connection.info.backend_pid
        self._acknowledges_early = row is not None and row["commit"] == "off"
        if self.behind_pooler:
            connection.prepare_threshold = None
        else:
            await self._set(connection, local=False)

    async def _set(self, connection: Connection, *, local: bool) -> None:
        """Set what every statement of ours needs, for the session or for a transaction."""
        scope = sql.SQL("SET LOCAL" if local else "SET")
        if self._config.postgres_schema:
            name = sql.Identifier(self._config.postgres_schema)
            await connection.execute(scope + sql.SQL(" search_path TO ") + name)
        if self._acknowledges_early:
            await connection.execute(scope + sql.SQL(" synchronous_commit TO 'on'"))


def cut(connection: Connection) -> None:
    """End a connection without a word to the server, so that whoever waits on it wakes at once.

    The socket is shut down, not closed: closing it would free the number of a file that the event loop still watches.
    """
    if connection.closed:
        return
    duplicate = socket.socket(fileno=os.dup(connection.fileno()))
    try:
        duplicate.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the other side was faster: it is cut already
    finally:
        duplicate.close()


class _Connection(AsyncConnection[DictRow]):
    """A connection whose host is looked up in a thread of its own."""

    @classmethod
    async def _get_connection_params(cls, conninfo: str, **kwargs: Any) -> Any:
        return await with_addresses(await super()._get_connection_params(conninfo, **kwargs))


def _reporting_connection(connecting: Callable[[], AbstractContextManager[None]]) -> type[Connection]:
    """A connection class that tells of every connect: the pool keeps it, and why one failed, to itself."""

    class CheckpointConnection(_Connection):
        @classmethod
        async def connect(cls, *arguments: Any, **parameters: Any) -> Any:
            with connecting():
                return await super().connect(*arguments, **parameters)

    return CheckpointConnection


def _parameters(conninfo_text: str, deadline: float) -> dict[str, Any]:
    """Connection parameters that make a dead network show, where the URL does not set them itself."""
    wanted: dict[str, Any] = {
        "application_name": "enhanced-checkpointing",
        "connect_timeout": max(2, math.ceil(deadline)),
        "keepalives": 1,
        "keepalives_idle": 15,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": int(2 * deadline * 1000),
    }
    given = conninfo.conninfo_to_dict(conninfo_text)
    return {name: value for name, value in wanted.items() if name not in given}


async def _close_pool(pool: AsyncConnectionPool[Connection]) -> None:
    """Close a pool within bounds: workers that hang in a connect are cancelled, for the pool would leave them."""
    workers = [task for task in asyncio.all_tasks() if task.get_name().startswith(f"{pool.name}-")]
    closing = asyncio.create_task(pool.close(timeout=CLOSE_SECONDS), name="close a pool")
    done, _ = await asyncio.wait({closing}, timeout=CLOSE_SECONDS / 2)
    if not done:
        for worker in workers:
            worker.cancel()
    await asyncio.wait({closing, *workers}, timeout=2 * CLOSE_SECONDS)
