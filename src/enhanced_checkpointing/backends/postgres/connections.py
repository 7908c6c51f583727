"""The connections of the PostgreSQL backend: one pool for live calls, single ones for probes, and the fence."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from weakref import WeakKeyDictionary

import psycopg
from psycopg.rows import dict_row

from enhanced_checkpointing.backends.postgres.connecting import (
    Connection,
    HostsApartConnection,
    connection_parameters,
    cut,
)
from enhanced_checkpointing.backends.postgres.failures import STALE_PLAN, says_too_many
from enhanced_checkpointing.backends.postgres.fence import LostSessions
from enhanced_checkpointing.backends.postgres.pool import NO_POOL, ConnectionPool
from enhanced_checkpointing.backends.postgres.session import SessionSettings
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.observability.log import PoolNoiseFilter
from enhanced_checkpointing.resilience.attempts import Attempt, current_attempt


class PostgresConnections:
    """Owns every connection to the server. All methods run on one event loop."""

    def __init__(self, config: CheckpointerConfig) -> None:
        assert config.connection_string is not None
        self._config = config
        self._connection_string = config.connection_string
        self._settings = SessionSettings(config.postgres_schema)
        self._pool: ConnectionPool | None = None
        self._pools_made = 0
        self._lost = LostSessions()
        self._used_at: WeakKeyDictionary[Connection, float] = WeakKeyDictionary()
        self._broke_at = float("-inf")
        self._closing: set[asyncio.Task[None]] = set()
        self._name = f"enhanced-checkpointing-{id(self):x}"
        self._noise = PoolNoiseFilter(self._name)

    @property
    def behind_pooler(self) -> bool:
        """Whether a transaction pooler is between us and the server, as far as the newest connection knows."""
        return self._settings.behind_pooler

    async def open(self) -> None:
        """Open the pool without waiting for a connection."""
        self._noise.install()
        self._pool = await self._new_pool()

    async def renew(self) -> None:
        """Replace the pool after an outage, so that no call meets a dead connection or waits for a hanging connect."""
        stale, self._pool = self._pool, await self._new_pool()
        if stale is not None:
            task = asyncio.create_task(stale.close(), name="close a stale pool")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()
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
            async with self._held(pool, await pool.acquire()) as connection:
                if await self._is_usable(connection):
                    if self.behind_pooler:
                        async with self._settings.hold(connection):
                            yield connection
                    else:
                        yield connection
                    return

    @asynccontextmanager
    async def _held(self, pool: ConnectionPool, connection: Connection) -> AsyncIterator[Connection]:
        """A connection in the hands of the running attempt, given back to the pool at the end, whatever its state."""
        attempt, process_id = current_attempt.get(), connection.info.backend_pid
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
            self._used_at[connection] = time.monotonic()
            if attempt is not None:
                attempt.let_go()
            await pool.take_back(connection)

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
        connection: Connection = await HostsApartConnection.connect(
            self._connection_string.get_secret_value(),
            autocommit=True,
            prepare_threshold=None,
            row_factory=dict_row,
            **connection_parameters(self._connection_string, self._config.deadline),
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

    def in_schema(self, connection: Connection) -> AbstractAsyncContextManager[None]:
        """Where our settings hold on a connection from `alone`, behind a transaction pooler in one transaction."""
        return self._settings.hold(connection)

    @property
    def saturated(self) -> bool:
        """Whether all connections that there may be are in the hands of our own calls."""
        return self._pool is not None and self._pool.in_use >= self._config.pool_max_size

    def gauges(self) -> dict[str, int]:
        """Sizes of the pool, not of one that it replaced, and of what is left behind."""
        return {
            "min": self._config.pool_min_size,
            "max": self._config.pool_max_size,
            **(self._pool.gauges() if self._pool is not None else NO_POOL),
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

    def _any_open(self) -> bool:
        """Whether there is any connection of ours: idle, being configured, or a probe's that is about to end."""
        return any(not connection.closed for connection in self._used_at)

    def _sever(self, connection: Connection, process_id: int, attempt: Attempt) -> None:
        if attempt.writes:
            self._lost.remember(process_id, attempt.subjects)
        self._broke_at = time.monotonic()
        cut(connection)

    async def _new_pool(self) -> ConnectionPool:
        self._pools_made += 1
        name = f"{self._name}-{self._pools_made}"
        pool = ConnectionPool(self._config, name, configure=self._configure, any_open=self._any_open)
        await pool.open()
        return pool

    async def _configure(self, connection: Connection) -> None:
        self._used_at[connection] = time.monotonic()
        self._noise.claim(connection)
        await self._settings.configure(connection)
