"""One pool of connections: psycopg's, set up so that nothing about an outage waits for its back-off.

It grows on demand, gives a failed connection up at once, tells waiting calls why the server cannot be reached, and ends
within bounds. After an outage it is replaced by another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from pydantic import SecretStr

from enhanced_checkpointing.backends.postgres.connecting import (
    Connection,
    HostsApartConnection,
    connection_parameters,
)
from enhanced_checkpointing.backends.postgres.failures import says_too_many
from enhanced_checkpointing.config import CheckpointerConfig

CLOSE_SECONDS = 1.0
"""How long the pool's own workers may take to end by themselves; one that hangs in a connect is cancelled then."""

NO_POOL = {"size": 0, "available": 0, "borrowed": 0, "waiting": 0}
"""The gauges before the first pool is opened, and after the last one."""


class ConnectionPool:
    """Hands connections out, and takes them back. Opened and used on one event loop.

    Each is made ready by `configure`; `any_open` tells whether any connection of ours, of this pool or not, is open.
    """

    def __init__(
        self,
        config: CheckpointerConfig,
        name: str,
        *,
        configure: Callable[[Connection], Awaitable[None]],
        any_open: Callable[[], bool],
    ) -> None:
        assert config.connection_string is not None
        self._configure = configure
        self._any_open = any_open
        self._patience = 2 * config.deadline + 1
        """Seconds: the guard bounds the wait for a connection, the pool's own time-out only has to be longer."""
        self._lent = 0
        self._being_made = 0
        """Connections that the pool counts already and nobody can use yet."""
        self._waiting: dict[asyncio.Task[Any], BaseException | None] = {}
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            "",  # the class of connections has it: nothing of the pool, and so no frame of it, holds the password
            connection_class=_reporting_connection(self._connecting, config.connection_string),
            kwargs={
                "autocommit": True,
                "prepare_threshold": config.postgres_prepare_threshold,
                "row_factory": dict_row,
                **connection_parameters(config.connection_string, config.deadline),
            },
            min_size=config.pool_min_size,
            max_size=config.pool_max_size,
            open=False,
            configure=self._make_ready,
            name=name,
            timeout=config.deadline,
            reconnect_timeout=0.0,
        )

    async def open(self) -> None:
        """Open it without waiting for a connection."""
        await self._pool.open()

    async def acquire(self) -> Connection:
        """A connection, as soon as there is one.

        Raises:
            psycopg.Error: the server cannot be reached, and none is left to wait for.
        """
        task = asyncio.current_task()
        assert task is not None
        self._waiting[task] = None
        try:
            connection = await self._pool.getconn(timeout=self._patience)
        except asyncio.CancelledError:
            reason = self._waiting[task]
            if reason is None:
                raise
            task.uncancel()
            raise reason from None
        finally:
            del self._waiting[task]
        self._lent += 1
        return connection

    async def take_back(self, connection: Connection) -> None:
        """Take a connection back, whatever its state."""
        self._lent -= 1
        await self._pool.putconn(connection)

    @property
    def in_use(self) -> int:
        """How many connections are in the hands of our own calls: made, and not idle.

        Not what is lent: a connection that goes from one call to the next is in nobody's hands for a moment.
        """
        statistics = self._pool.get_stats()
        return statistics.get("pool_size", 0) - self._being_made - statistics.get("pool_available", 0)

    def gauges(self) -> dict[str, int]:
        """How many connections there are, how many of them idle or lent, and how many calls wait for one."""
        statistics = self._pool.get_stats()
        return {
            "size": statistics.get("pool_size", 0),
            "available": statistics.get("pool_available", 0),
            "borrowed": self._lent,
            "waiting": statistics.get("requests_waiting", 0),
        }

    async def close(self) -> None:
        """Close it within bounds: workers that hang in a connect are cancelled, for the pool would leave them."""
        workers = [task for task in asyncio.all_tasks() if task.get_name().startswith(f"{self._pool.name}-")]
        closing = asyncio.create_task(self._pool.close(timeout=CLOSE_SECONDS), name="close a pool")
        done, _ = await asyncio.wait({closing}, timeout=CLOSE_SECONDS / 2)
        if not done:
            for worker in workers:
                worker.cancel()
        await asyncio.wait({closing, *workers}, timeout=2 * CLOSE_SECONDS)

    async def _make_ready(self, connection: Connection) -> None:
        with self._connecting():
            await self._configure(connection)

    @contextmanager
    def _connecting(self) -> Iterator[None]:
        """Around what makes a connection."""
        self._being_made += 1
        try:
            yield
        except psycopg.Error as error:
            self._connect_failed(error)
            raise
        finally:
            self._being_made -= 1

    def _connect_failed(self, error: psycopg.Error) -> None:
        """Tell the calls that wait for a connection why there is none, unless another call will hand one back."""
        if self._lent or (says_too_many(error) and self._any_open()):
            return
        for task, reason in list(self._waiting.items()):
            if reason is None:
                self._waiting[task] = error
                task.cancel()


def _reporting_connection(
    connecting: Callable[[], AbstractContextManager[None]], connection_string: SecretStr
) -> type[Connection]:
    """A connection class that tells of every connect: the pool keeps it, and why one failed, to itself."""

    class CheckpointConnection(HostsApartConnection):
        @classmethod
        async def connect(cls, *_: Any, **parameters: Any) -> Any:
            with connecting():
                return await super().connect(connection_string.get_secret_value(), **parameters)

    return CheckpointConnection
