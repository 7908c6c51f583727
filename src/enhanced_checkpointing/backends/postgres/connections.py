"""The connections of the PostgreSQL backend: one pool for live calls, single ones for probes, and the fence.

The pool is psycopg's, set up so that nothing about an outage waits for its back-off: it grows on demand, gives a failed
connection up at once, tells waiting calls why the server cannot be reached, and ends within bounds. After an outage it
is replaced by another one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
from psycopg import AsyncConnection, conninfo, sql
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool
from pydantic import SecretStr

from enhanced_checkpointing.backends.postgres.failures import STALE_PLAN, says_too_many
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.observability.log import PoolNoiseFilter
from enhanced_checkpointing.resilience.attempts import Attempt, current_attempt
from enhanced_checkpointing.resilience.cooperative import in_thread_of_its_own

Parameters = dict[str, Any]


async def with_addresses(parameters: Parameters) -> Parameters:
    """Connection parameters with the addresses of all hosts, each host as often as it has addresses.

    The names stay: certificates and password files are looked up by them.

    Raises:
        psycopg.OperationalError: no host has an address.
    """
    hosts = str(parameters.get("host") or "").split(",")
    if parameters.get("hostaddr") or not any(map(_is_name, hosts)):
        return parameters
    ports = str(parameters.get("port") or "5432").split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    found: list[tuple[str, str, str]] = []
    errors: list[str] = []
    for host, port in zip(hosts, ports, strict=False):
        try:
            addresses = await _addresses(host, port) if _is_name(host) else [host]
        except OSError as error:
            errors.append(f"{host!r}: {error.strerror or error}")
            continue
        found += [(host, address, port) for address in addresses]
    if not found:
        raise psycopg.OperationalError(f"failed to resolve host {'; '.join(errors)}")
    names, numbers, of_ports = (",".join(column) for column in zip(*found, strict=True))
    return {**parameters, "host": names, "hostaddr": numbers, "port": of_ports}


async def _addresses(host: str, port: str) -> list[str]:
    infos = await in_thread_of_its_own(
        lambda: socket.getaddrinfo(host, port or "5432", proto=socket.IPPROTO_TCP, type=socket.SOCK_STREAM),
        name=f"look up {host}",
    )
    return [str(info[4][0]) for info in infos]


def _is_name(host: str) -> bool:
    """Whether a host is neither an address nor the directory of a socket."""
    if not host or host.startswith(("/", "@")):
        return False
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return True
    return False


Connection = AsyncConnection[DictRow]


class HostsApartConnection(AsyncConnection[DictRow]):
    """A connection whose host is looked up in a thread of its own, and whose errors do not carry the password."""

    @classmethod
    async def connect(cls, *arguments: Any, **parameters: Any) -> Any:
        try:
            return await super().connect(*arguments, **parameters)
        except BaseException as error:  # noqa: BLE001  # raised below
            failed = error
        # Error trackers keep the local variables of all frames: those of psycopg's have the password, and so had ours.
        arguments, parameters = (), {}
        failed.__cause__ = failed.__context__ = None
        raise failed.with_traceback(None)

    @classmethod
    async def _get_connection_params(cls, conninfo: str, **kwargs: Any) -> Any:
        return await with_addresses(await super()._get_connection_params(conninfo, **kwargs))


def connection_parameters(connection_string: SecretStr, deadline: float) -> dict[str, Any]:
    """Connection parameters that make a dead network show, where the URL does not set them itself.

    `deadline` is that of a call, in seconds.
    """
    wanted: dict[str, Any] = {
        "application_name": "enhanced-checkpointing",
        "connect_timeout": max(2, math.ceil(deadline)),
        "keepalives": 1,
        "keepalives_idle": 15,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": int(2 * deadline * 1000),
    }
    given = conninfo.conninfo_to_dict(connection_string.get_secret_value())
    return {name: value for name, value in wanted.items() if name not in given}


def cut(connection: Connection) -> None:
    """End a connection without a word to the server, so that its waiting calls wake at once.

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


DESCRIBE_SESSION = "SELECT pg_backend_pid() AS process_id, current_setting('synchronous_commit') AS commit"


class SessionSettings:
    """Sets sessions, and owns what is known of the server through them."""

    def __init__(self, schema: str | None) -> None:
        self._schema = schema
        self.behind_pooler = False
        self._acknowledges_early = False
        """The server would acknowledge commits that a crash of it still loses."""

    async def configure(self, connection: Connection) -> None:
        """Find out whom a new connection leads to, and set its session."""
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

    @asynccontextmanager
    async def hold(self, connection: Connection) -> AsyncIterator[None]:
        """Where our settings hold: a connection has them for good, but behind a transaction pooler the next transaction
        may meet another session, and so they are part of each."""
        if self.behind_pooler and (self._schema or self._acknowledges_early):
            async with connection.transaction():
                await self._set(connection, local=True)
                yield
        else:
            yield

    async def _set(self, connection: Connection, *, local: bool) -> None:
        """Set what every statement of ours needs, for the session or for a transaction."""
        scope = sql.SQL("SET LOCAL" if local else "SET")
        if self._schema:
            await connection.execute(scope + sql.SQL(" search_path TO ") + sql.Identifier(self._schema))
        if self._acknowledges_early:
            await connection.execute(scope + sql.SQL(" synchronous_commit TO 'on'"))


TERMINATE_MILLISECONDS = 1000
"""How long the server is given to end one session."""


@dataclass(frozen=True, slots=True)
class LostSession:
    """A server session that may still commit a write to these threads, until it is known to be gone."""

    process_id: int
    thread_ids: frozenset[str]
    lost_at: float


async def _terminate(connection: AsyncConnection[DictRow], session: LostSession) -> bool:
    """End one session and tell whether it is gone; a newer session that got the same process id is left alone."""
    cursor = await connection.execute(
        "SELECT pg_terminate_backend(pid, %s) AS ended FROM pg_stat_activity "
        "WHERE pid = %s AND pid <> pg_backend_pid() AND backend_start < clock_timestamp() - make_interval(secs => %s)",
        (TERMINATE_MILLISECONDS, session.process_id, time.monotonic() - session.lost_at),
    )
    row = await cursor.fetchone()
    return row is None or bool(row["ended"])


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
        """Connections that the pool counts already and that cannot be used yet."""
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

        Not what is lent: a connection that goes from one call to the next is lent to none for a moment.
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


class PostgresConnections:
    """Owns every connection to the server. All methods run on one event loop."""

    def __init__(self, config: CheckpointerConfig) -> None:
        assert config.connection_string is not None
        self._config = config
        self._connection_string = config.connection_string
        self._settings = SessionSettings(config.postgres_schema)
        self._pool: ConnectionPool | None = None
        self._pools_made = 0
        self._lost: list[LostSession] = []
        """Sessions on which a write was left behind, and which are not known to be gone."""
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
                    self.note_lost(process_id, attempt.subjects)
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

    @asynccontextmanager
    async def keeper(self, connection: Connection) -> AsyncIterator[Connection]:
        """A connection whose transaction may hold a lock while `connection`, from `alone`, does what cannot be done in
        one. Behind a transaction pooler a session lasts no longer than a transaction, and it is `connection` itself."""
        if self.behind_pooler:
            yield connection
            return
        async with self.alone() as keeper:
            yield keeper

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

    def note_lost(self, process_id: int, thread_ids: Collection[str]) -> None:
        """A write to these threads was left behind on this session just now."""
        self._lost.append(LostSession(process_id, frozenset(thread_ids), time.monotonic()))

    def may_still_write(self, thread_id: str) -> bool:
        """Whether a write to this thread was left behind on a session that is not known to be gone."""
        return any(thread_id in session.thread_ids for session in self._lost)

    async def fence(self, thread_id: str) -> bool:
        """End the sessions that writes to `thread_id` were left behind on; True when none can commit any more.

        Behind a transaction pooler the process id that a client sees is not the server's, and terminating it could hit
        a stranger: there, nothing is fenced.
        """
        if self.behind_pooler:
            self._lost.clear()
        if not self.may_still_write(thread_id):
            return True
        async with self.alone() as connection:
            mine = [session for session in self._lost if thread_id in session.thread_ids]
            gone = [session for session in mine if await _terminate(connection, session)]
            self._lost = [session for session in self._lost if session not in gone]
            return len(gone) == len(mine)

    def _any_open(self) -> bool:
        """Whether there is any connection of ours: idle, being configured, or a probe's that is about to end."""
        return any(not connection.closed for connection in self._used_at)

    def _sever(self, connection: Connection, process_id: int, attempt: Attempt) -> None:
        if attempt.writes:
            self.note_lost(process_id, attempt.subjects)
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


async def got_lock(connection: Connection, attempt: str | sql.SQL | sql.Composed) -> bool:
    """Whether a statement that tries a lock, and says `locked`, got it."""
    row = await (await connection.execute(attempt)).fetchone()
    return row is not None and bool(row["locked"])
