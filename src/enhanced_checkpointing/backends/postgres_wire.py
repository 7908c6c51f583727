"""One statement to the server and back, by the libpq that psycopg wraps.

A cursor makes a query of its text, adapts parameters, decides whether to prepare, and on Python 3.11 starts a task to
wait for the answer. Our statements are few and their parameters are bytes already: none of that is needed. Errors and
broken connections are psycopg's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from psycopg import AsyncConnection, AsyncRawCursor
from psycopg.adapt import Buffer, Dumper
from psycopg.errors import InvalidSqlStatementName, error_from_result
from psycopg.pq import ExecStatus, Format, TransactionStatus
from psycopg.pq.abc import PGconn
from psycopg.rows import DictRow

_names: dict[str, bytes] = {}
"""The name under which each text is prepared: the same on every connection."""

_prepared: WeakKeyDictionary[AsyncConnection[DictRow], set[str]] = WeakKeyDictionary()


async def execute(connection: AsyncConnection[DictRow], sql: str, parameters: Sequence[bytes]) -> None:
    """Execute a statement that returns nothing; `$1` and so on stand for parameters in binary form.

    Nobody else may use the connection meanwhile. It is prepared on its first use unless the connection's
    `prepare_threshold` forbids that, or it is part of a transaction, which could not be tried again by itself: psycopg
    drops whatever is prepared after a rollback.

    Raises:
        psycopg.Error: as `AsyncConnection.execute` does.
    """
    pgconn = connection.pgconn
    formats = [Format.BINARY] * len(parameters)
    if connection.prepare_threshold is None or pgconn.transaction_status != TransactionStatus.IDLE:
        pgconn.send_query_params(sql.encode(), parameters, param_formats=formats)
        await _result(pgconn)
        return
    known = _prepared.setdefault(connection, set())
    name = _names.setdefault(sql, f"enhanced_checkpointing_{len(_names)}".encode())
    if sql in known:
        pgconn.send_query_prepared(name, parameters, param_formats=formats)
        try:
            await _result(pgconn)
        except InvalidSqlStatementName:  # somebody dropped it; nothing was done
            known.clear()
        else:
            return
    pgconn.send_prepare(name, sql.encode())
    await _result(pgconn)
    known.add(sql)
    pgconn.send_query_prepared(name, parameters, param_formats=formats)
    await _result(pgconn)


def register(connection: AsyncConnection[DictRow]) -> None:
    """Let a connection take what `execute_within` gives it."""
    connection.adapters.register_dumper(_Parameter, _AsItIs)


async def execute_within(connection: AsyncConnection[DictRow], sql: str, parameters: Sequence[bytes]) -> None:
    """Execute such a statement as a part of psycopg's pipeline, where the connection is not ours alone to read from."""
    await AsyncRawCursor(connection).execute(sql, [_Parameter(parameter) for parameter in parameters])


class _Parameter(bytes):
    """A parameter that is in binary form already; the statement says of what type it is."""


class _AsItIs(Dumper):
    format = Format.BINARY

    def dump(self, obj: Any) -> Buffer | None:
        return bytes(obj)


async def _result(pgconn: PGconn) -> None:
    """Send what is not sent yet and read until the server is ready for the next statement."""
    while pgconn.flush():
        if await _ready(pgconn.socket, writing=True):
            pgconn.consume_input()  # a server that waits to be read does not read
    error = None
    while True:
        while pgconn.is_busy():
            await _ready(pgconn.socket, writing=False)
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            break
        if result.status not in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
            error = error_from_result(result)
    if error is not None:
        raise error


async def _ready(socket: int, *, writing: bool) -> bool:
    """Wait until a socket can be read, or written too; tells whether it can be read."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[bool] = loop.create_future()

    def tell(readable: bool) -> None:
        if not ready.done():
            ready.set_result(readable)

    loop.add_reader(socket, tell, True)
    try:
        if writing:
            loop.add_writer(socket, tell, False)
        return await ready
    finally:
        loop.remove_reader(socket)
        if writing:
            loop.remove_writer(socket)
