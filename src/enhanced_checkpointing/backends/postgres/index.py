"""Our one index on the official saver's tables, by which a user's newest checkpoints are found.

Nothing depends on it but the speed of a listing, so nothing fails for want of it.
"""

from __future__ import annotations

from psycopg import AsyncConnection, sql
from psycopg import Error as PsycopgError
from psycopg.rows import DictRow

from enhanced_checkpointing.backends.postgres.connections import PostgresConnections
from enhanced_checkpointing.backends.postgres.directory import OF_ROOT_WITH_USER, THREAD_ORDER, USER_KEY
from enhanced_checkpointing.errors import redact

INDEX = "checkpoints_newest_of_user_idx"
CREATE_SQL = f"""
CREATE INDEX {{}} IF NOT EXISTS {INDEX}
ON checkpoints ({USER_KEY}, checkpoint_id, {THREAD_ORDER}) WHERE {OF_ROOT_WITH_USER}
"""
DROP_SQL = f"DROP INDEX CONCURRENTLY IF EXISTS {INDEX}"
STATE_SQL = f"""
SELECT indisvalid AS valid, pg_relation_size('checkpoints') AS size
FROM (VALUES (true)) AS always LEFT JOIN (
    SELECT indisvalid FROM pg_index JOIN pg_class ON pg_class.oid = pg_index.indexrelid
    WHERE pg_index.indrelid = 'checkpoints'::regclass AND pg_class.relname = '{INDEX}'
) AS found ON true
"""

# As with the tables: by the simple protocol, and only ever tried. Two that build at once would wait for each other.
TRY_LOCK_SQL = "SELECT pg_try_advisory_xact_lock(hashtextextended(current_schema(), 4937)) AS locked"

SMALL_TABLE = 16 * 2**20
"""Bytes. An index of so much is made in a moment, so that writes may wait for it."""


class ThreadIndex:
    """Makes the index in one process at a time, without keeping writes waiting."""

    def __init__(self, connections: PostgresConnections) -> None:
        self._connections = connections
        self.missing_because: str | None = None
        """Why it could not be made, without secrets; None when it was, or nobody has tried."""

    async def is_there(self) -> bool:
        async with self._connections.alone() as connection, self._connections.in_schema(connection):
            return await is_valid(connection)

    async def make(self, seconds: float | None) -> bool:
        """Make it in at most so many seconds, unless it is there; False if it is not there then."""
        try:
            async with self._connections.alone() as connection:
                self.missing_because = await self._make(connection, seconds)
        except PsycopgError as error:
            self.missing_because = redact(error)
        return self.missing_because is None

    async def _make(self, connection: AsyncConnection[DictRow], seconds: float | None) -> str | None:
        if self._connections.behind_pooler:
            return await self._make_in_one_transaction(connection, seconds)
        if await is_valid(connection):
            return None
        async with self._connections.alone() as keeper, keeper.transaction():
            if not await _got_lock(keeper):
                return "another process is making it"
            await _limit(connection, "SET", seconds)
            if not await is_valid(connection):
                await connection.execute(DROP_SQL)  # what is left of an attempt that was broken off
                await connection.execute(CREATE_SQL.format("CONCURRENTLY"))
        return None

    async def _make_in_one_transaction(self, connection: AsyncConnection[DictRow], seconds: float | None) -> str | None:
        """Behind a transaction pooler, where writes wait meanwhile."""
        async with self._connections.in_schema(connection), connection.transaction():
            state = await _state(connection)
            if state["valid"]:
                return None
            if state["size"] > SMALL_TABLE:
                return "the table is large, and behind a transaction pooler writes would wait: use a direct connection"
            if not await _got_lock(connection):
                return "another process is making it"
            await _limit(connection, "SET LOCAL", seconds)
            await connection.execute(CREATE_SQL.format(""))
        return None


async def _limit(connection: AsyncConnection[DictRow], scope: str, seconds: float | None) -> None:
    if seconds is not None:
        milliseconds = max(1, int(1000 * seconds))
        await connection.execute(sql.SQL("{} statement_timeout = {}").format(sql.SQL(scope), milliseconds))


async def _got_lock(connection: AsyncConnection[DictRow]) -> bool:
    row = await (await connection.execute(TRY_LOCK_SQL)).fetchone()
    return row is not None and bool(row["locked"])


async def is_valid(connection: AsyncConnection[DictRow]) -> bool:
    """Whether the index is there and can be used; the tables must be there."""
    return bool((await _state(connection))["valid"])


async def _state(connection: AsyncConnection[DictRow]) -> DictRow:
    row = await (await connection.execute(STATE_SQL)).fetchone()
    assert row is not None
    return row
