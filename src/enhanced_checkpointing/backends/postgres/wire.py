"""Statements to the server and back, by the libpq that psycopg wraps.

A cursor makes a query of its text, adapts parameters, decides whether to prepare, and on Python 3.11 starts a task to
wait for the answer. Our statements are few and their parameters are bytes already: none of that is needed. Errors and
broken connections are psycopg's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

import psycopg
from psycopg import AsyncConnection
from psycopg.errors import InvalidSqlStatementName, error_from_result
from psycopg.pq import ExecStatus, Format, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.rows import DictRow

Statement = tuple[str, Sequence[bytes | None]]
"""SQL, in which `$1` and so on stand for parameters, and those in binary form."""

Row = Sequence[bytes | None]
"""The values of a row, in binary form."""

_names: dict[str, bytes] = {}
"""The name under which each text is prepared: the same on every connection."""

_prepared: WeakKeyDictionary[AsyncConnection[DictRow], set[str]] = WeakKeyDictionary()


async def execute(connection: AsyncConnection[DictRow], prepared: Sequence[Statement]) -> None:
    """Execute statements that return nothing that matters: one transaction by themselves, and one round trip.

    No other call may use the connection meanwhile. Each is prepared on its first use unless the connection's
    `prepare_threshold` forbids that, or they are part of a greater transaction, which could not be tried again by
    itself: psycopg drops whatever is prepared after a rollback.

    Raises:
        psycopg.Error: as `AsyncConnection.execute` does, for the first that failed; none of them was done.
    """
    await _perform(connection, prepared, lambda _: None)


async def fetch(connection: AsyncConnection[DictRow], statement: Statement) -> list[Row]:
    """Execute a statement as `execute` does, and return its rows."""
    rows: list[Row] = []

    def take(result: PGresult) -> None:
        columns = range(result.nfields)
        rows.extend([result.get_value(row, column) for column in columns] for row in range(result.ntuples))

    await _perform(connection, [statement], take)
    return rows


async def stream(connection: AsyncConnection[DictRow], statement: Statement) -> AsyncGenerator[Row, None]:
    """Execute a statement as `execute` does, and give its rows one at a time, as the server makes them.

    Who stops before the last row has no use for the connection any more: the server is still sending.
    """
    pgconn = connection.pgconn
    result = await _begin(connection, statement)
    if result is not None and isinstance(_error_of(result), InvalidSqlStatementName):
        _prepared.pop(connection, None)  # another client dropped it; nothing was done
        await _end(pgconn, failed=True)
        result = await _begin(connection, statement)
    while result is not None:
        if (error := _error_of(result)) is not None:
            await _end(pgconn, failed=True)
            raise error
        columns = range(result.nfields)
        for row in range(result.ntuples):
            yield [result.get_value(row, column) for column in columns]
        result = await _next_result(pgconn)
    await _end(pgconn, failed=False)


async def _begin(connection: AsyncConnection[DictRow], statement: Statement) -> PGresult | None:
    """Send a statement whose rows are to come one at a time, and return the first.

    As a pipeline of one: outside of any, libpq would keep that way of receiving for the first statement of the next.
    """
    pgconn = connection.pgconn
    steps = [_unprepared(pgconn, statement, _ignore)]
    if _may_prepare(connection):
        known = _prepared.setdefault(connection, set())
        steps = [*_steps(pgconn, [statement], known, _ignore)]
    *preparing, step = steps
    if preparing:
        await _carry_out(pgconn, preparing)
    pgconn.enter_pipeline_mode()
    step.send()
    pgconn.set_single_row_mode()
    pgconn.pipeline_sync()
    await _flush(pgconn)
    return await _next_result(pgconn)


async def _end(pgconn: PGconn, *, failed: bool) -> None:
    """Leave the pipeline of a statement that has nothing more to give."""
    if failed:
        await _next_result(pgconn)  # there is none, which ends the statement
    await _next_result(pgconn)  # of the sync
    pgconn.exit_pipeline_mode()


def _error_of(result: PGresult) -> psycopg.Error | None:
    there = result.status in (ExecStatus.SINGLE_TUPLE, ExecStatus.TUPLES_OK)
    return None if there else error_from_result(result)


def _ignore(_: PGresult) -> None:
    """What is prepared has no rows."""


async def _perform(
    connection: AsyncConnection[DictRow], prepared: Sequence[Statement], take: Callable[[PGresult], None]
) -> None:
    pgconn = connection.pgconn
    if not _may_prepare(connection):
        await _carry_out(pgconn, [_unprepared(pgconn, statement, take) for statement in prepared])
        return
    known = _prepared.setdefault(connection, set())
    try:
        await _carry_out(pgconn, [*_steps(pgconn, prepared, known, take)])
    except InvalidSqlStatementName:  # another client dropped it; nothing was done
        known.clear()
        await _carry_out(pgconn, [*_steps(pgconn, prepared, known, take)])


def _may_prepare(connection: AsyncConnection[DictRow]) -> bool:
    idle = connection.pgconn.transaction_status == TransactionStatus.IDLE
    return connection.prepare_threshold is not None and idle


@dataclass(frozen=True, slots=True)
class _Step:
    """Something to send, and what to do with the result when the server has done it."""

    send: Callable[[], None]
    take: Callable[[PGresult], None]


def _unprepared(pgconn: PGconn, statement: Statement, take: Callable[[PGresult], None]) -> _Step:
    text, parameters = statement
    formats = [Format.BINARY] * len(parameters)

    def send() -> None:
        pgconn.send_query_params(text.encode(), parameters, param_formats=formats, result_format=Format.BINARY)

    return _Step(send, take)


def _steps(
    pgconn: PGconn, prepared: Sequence[Statement], known: set[str], take: Callable[[PGresult], None]
) -> Iterator[_Step]:
    """Each text is prepared once, by the first statement that has it."""
    begun = {*known}
    for text, parameters in prepared:
        name = _names.setdefault(text, f"enhanced_checkpointing_{len(_names)}".encode())
        if text not in begun:
            begun.add(text)
            yield _Step(partial(pgconn.send_prepare, name, text.encode()), partial(_note, known, text))
        formats = [Format.BINARY] * len(parameters)
        send = partial(pgconn.send_query_prepared, name, parameters, param_formats=formats, result_format=Format.BINARY)
        yield _Step(send, take)


def _note(known: set[str], text: str, _: PGresult) -> None:
    known.add(text)


async def _carry_out(pgconn: PGconn, steps: Sequence[_Step]) -> None:
    """Send all steps at once; what fails undoes all of them."""
    if len(steps) == 1:
        steps[0].send()
        await _flush(pgconn)
        error = await _outcome(pgconn, steps[0])
    else:
        pgconn.enter_pipeline_mode()
        for step in steps:
            step.send()
        pgconn.pipeline_sync()
        await _flush(pgconn)
        errors = [await _outcome(pgconn, step) for step in steps]
        await _next_result(pgconn)  # of the sync
        pgconn.exit_pipeline_mode()
        error = next(filter(None, errors), None)
    if error is not None:
        raise error


async def _flush(pgconn: PGconn) -> None:
    while pgconn.flush():
        if await _ready(pgconn.socket, writing=True):
            pgconn.consume_input()  # a server that waits to be read does not read


async def _outcome(pgconn: PGconn, step: _Step) -> psycopg.Error | None:
    """How a step ended. What comes after one that failed was not tried and has no error of its own."""
    error = None
    while (result := await _next_result(pgconn)) is not None:
        if result.status in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
            step.take(result)
        elif result.status != ExecStatus.PIPELINE_ABORTED:
            error = error_from_result(result)
    return error


async def _next_result(pgconn: PGconn) -> PGresult | None:
    while pgconn.is_busy():
        await _ready(pgconn.socket, writing=False)
        pgconn.consume_input()
    return pgconn.get_result()


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
