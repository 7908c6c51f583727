"""What PostgreSQL tells of threads, and our one index on the official saver's tables, by which a user's are found.

Nothing depends on that index but the speed of a listing, so nothing fails without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from psycopg import AsyncConnection, sql
from psycopg import Error as PsycopgError
from psycopg.rows import DictRow

from enhanced_checkpointing.backends.listing import Cursor, ThreadOwner, ThreadTotal, Top, note, top_of
from enhanced_checkpointing.backends.postgres.connections import PostgresConnections, got_lock
from enhanced_checkpointing.backends.stored_values import is_unicode
from enhanced_checkpointing.errors import redact
from enhanced_checkpointing.identifiers import USER_ID

# A hash, since an entry of an index has a greatest size, and no checkpoint is to be refused for the user that it names.
USER_KEY = f"hashtextextended(metadata ->> '{USER_ID}', 0)"
OF_ROOT_WITH_USER = f"checkpoint_ns = '' AND metadata ->> '{USER_ID}' IS NOT NULL"
"""The condition of our index; a look that does not say it does not find it."""

THREAD_ORDER = 'thread_id COLLATE "C"'
"""The order of threads that have a checkpoint's id in common: that of Python."""

NAMES_A_USER = f"""(
    jsonb_typeof(metadata -> '{USER_ID}') = 'string'
    OR jsonb_typeof(metadata -> '{USER_ID}') = 'number' AND metadata ->> '{USER_ID}' NOT LIKE '%%.%%'
)"""

# From one thread to the next by the primary key, which is one step for each however many checkpoints it has.
THREAD_IDS_SQL = """
WITH RECURSIVE threads AS (
    (SELECT thread_id, 1 AS number FROM checkpoints {start} ORDER BY thread_id LIMIT 1)
    UNION ALL
    SELECT next.thread_id, threads.number + 1
    FROM threads CROSS JOIN LATERAL (
        SELECT thread_id FROM checkpoints
        WHERE checkpoints.thread_id > threads.thread_id ORDER BY thread_id LIMIT 1
    ) AS next
    WHERE threads.number < %(limit)s
)
SELECT thread_id FROM threads ORDER BY number
"""
FIRST_THREAD_IDS_SQL = THREAD_IDS_SQL.format(start="")
NEXT_THREAD_IDS_SQL = THREAD_IDS_SQL.format(start="WHERE thread_id > %(after)s")

NAMING_SQL = f"""
SELECT checkpoint_id, thread_id FROM checkpoints
WHERE {USER_KEY} = hashtextextended(%(user_id)s::text, 0) AND {OF_ROOT_WITH_USER}
    {{behind}}
ORDER BY checkpoint_id DESC, {THREAD_ORDER} DESC LIMIT %(limit)s
"""
FIRST_NAMING_SQL = NAMING_SQL.format(behind="")
NAMING_BELOW_SQL = NAMING_SQL.format(behind="AND checkpoint_id < %(checkpoint_id)s")
NAMING_BEHIND_SQL = NAMING_SQL.format(
    behind=f"AND (checkpoint_id, {THREAD_ORDER}) < (%(checkpoint_id)s::text, %(thread_id)s::text)"
)
# Another plan collects all that a user, or a thread, has and sorts it, which the planner takes to be as good where it
# takes that to be little.
IN_ORDER_SQL = "SELECT set_config('enable_bitmapscan', 'off', true), set_config('enable_sort', 'off', true)"

NEWEST_SQL = """
SELECT wanted.thread_id, coalesce(
    (SELECT max(checkpoint_id) FROM checkpoints WHERE thread_id = wanted.thread_id AND checkpoint_ns = ''),
    (SELECT max(checkpoint_id) FROM checkpoints WHERE thread_id = wanted.thread_id)
) AS checkpoint_id
FROM unnest(%(thread_ids)s::text[]) AS wanted (thread_id)
"""
TOPS_SQL = """
SELECT
    wanted.thread_id,
    coalesce(root.checkpoint_id, other.checkpoint_id) AS checkpoint_id,
    coalesce(root.metadata, other.metadata)::text AS metadata,
    root.checkpoint_id IS NOT NULL AS of_root,
    coalesce(root.timestamp, other.timestamp) AS timestamp
FROM unnest(%(thread_ids)s::text[]) AS wanted (thread_id)
LEFT JOIN LATERAL (
    SELECT checkpoint_id, metadata, checkpoint ->> 'ts' AS timestamp FROM checkpoints
    WHERE checkpoints.thread_id = wanted.thread_id AND checkpoint_ns = ''
    ORDER BY checkpoint_id DESC LIMIT 1
) AS root ON true
LEFT JOIN LATERAL (
    SELECT checkpoint_id, metadata, checkpoint ->> 'ts' AS timestamp FROM checkpoints
    WHERE root.checkpoint_id IS NULL AND checkpoints.thread_id = wanted.thread_id
    ORDER BY checkpoint_id DESC LIMIT 1
) AS other ON true
"""

OWNERS_SQL = f"""
SELECT wanted.thread_id, naming.checkpoint_id, naming.user_id
FROM unnest(%(thread_ids)s::text[]) AS wanted (thread_id)
CROSS JOIN LATERAL (
    SELECT checkpoint_id, metadata ->> '{USER_ID}' AS user_id FROM checkpoints
    WHERE checkpoints.thread_id = wanted.thread_id AND checkpoint_ns = '' AND {NAMES_A_USER}
    ORDER BY checkpoint_id DESC LIMIT 1
) AS naming
"""

# The size of a value that is stored apart from its row is known without reading it.
TOTALS_SQL = """
SELECT
    wanted.thread_id, of_checkpoints.checkpoints,
    of_checkpoints.size + coalesce(of_blobs.size, 0) + coalesce(of_writes.size, 0) AS size
FROM unnest(%(thread_ids)s::text[]) AS wanted (thread_id)
CROSS JOIN LATERAL (
    SELECT count(*) AS checkpoints, sum(pg_column_size(checkpoint) + pg_column_size(metadata))::bigint AS size
    FROM checkpoints WHERE checkpoints.thread_id = wanted.thread_id
) AS of_checkpoints
CROSS JOIN LATERAL (
    SELECT sum(pg_column_size(blob))::bigint AS size
    FROM checkpoint_blobs WHERE checkpoint_blobs.thread_id = wanted.thread_id
) AS of_blobs
CROSS JOIN LATERAL (
    SELECT sum(pg_column_size(blob))::bigint AS size
    FROM checkpoint_writes WHERE checkpoint_writes.thread_id = wanted.thread_id
) AS of_writes
WHERE of_checkpoints.checkpoints > 0
"""


class PostgresThreads:
    """The looks of `listing`, each a statement on a connection of the pool."""

    def __init__(self, connections: PostgresConnections) -> None:
        self._connections = connections
        self.unreadable: dict[str, str] = {}

    async def thread_ids(self, after: str | None, limit: int) -> Sequence[str]:
        if limit < 1:
            return []
        text = FIRST_THREAD_IDS_SQL if after is None else NEXT_THREAD_IDS_SQL
        return [row["thread_id"] for row in await self._ask(text, after=after, limit=limit)]

    async def naming(self, user_id: str, before: Cursor | None, limit: int) -> Sequence[Cursor]:
        if "\0" in user_id or not is_unicode(user_id):
            return []
        text, values = FIRST_NAMING_SQL, dict[str, Any]()
        if before is not None:
            text = NAMING_BELOW_SQL if before.thread_id is None else NAMING_BEHIND_SQL
            values = {"checkpoint_id": before.checkpoint_id, "thread_id": before.thread_id}
        rows = await self._ask(text, in_order=True, user_id=user_id, limit=limit, **values)
        return [Cursor(row["checkpoint_id"], row["thread_id"]) for row in rows]

    async def newest(self, thread_ids: Sequence[str]) -> Mapping[str, str]:
        rows = await self._about(NEWEST_SQL, thread_ids)
        return {row["thread_id"]: row["checkpoint_id"] for row in rows if row["checkpoint_id"] is not None}

    async def tops(self, thread_ids: Sequence[str]) -> Mapping[str, Top]:
        rows = await self._about(TOPS_SQL, thread_ids)
        tops = {
            row["thread_id"]: top_of(row["checkpoint_id"], row["metadata"], row["of_root"], row["timestamp"])
            for row in rows
            if row["checkpoint_id"] is not None
        }
        return note(self.unreadable, thread_ids, tops)

    async def owners(self, thread_ids: Sequence[str]) -> Mapping[str, ThreadOwner]:
        rows = await self._about(OWNERS_SQL, thread_ids, in_order=True)
        return {row["thread_id"]: ThreadOwner(row["user_id"], row["checkpoint_id"]) for row in rows}

    async def totals(self, thread_ids: Sequence[str]) -> Mapping[str, ThreadTotal]:
        rows = await self._about(TOTALS_SQL, thread_ids)
        return {row["thread_id"]: ThreadTotal(row["checkpoints"], row["size"]) for row in rows}

    async def _about(self, text: str, thread_ids: Sequence[str], *, in_order: bool = False) -> list[DictRow]:
        possible = [one for one in dict.fromkeys(thread_ids) if "\0" not in one and is_unicode(one)]
        return await self._ask(text, in_order=in_order, thread_ids=possible) if possible else []

    async def _ask(self, text: str, *, in_order: bool = False, **values: Any) -> list[DictRow]:
        async with self._connections.borrow() as connection, connection.pipeline():  # one transaction by itself
            if in_order:
                await connection.execute(IN_ORDER_SQL, prepare=False)
            # Not prepared: a plan for any values could be one that looks at all checkpoints of a user.
            cursor = await connection.execute(text, values, prepare=False)
            return await cursor.fetchall()


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
        """Why it could not be made, without secrets; None when it was, or before the first try."""

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
        """Behind a transaction pooler all of it is one transaction, for which writes wait."""
        in_one = self._connections.behind_pooler
        if not in_one and await is_valid(connection):
            return None
        async with (
            self._connections.keeper(connection) as keeper,
            self._connections.in_schema(keeper),
            keeper.transaction(),
        ):
            state = await _state(connection)
            if state["valid"]:
                return None
            if in_one and state["size"] > SMALL_TABLE:
                return "the table is large, and behind a transaction pooler writes would wait: use a direct connection"
            if not await got_lock(keeper, TRY_LOCK_SQL):
                return "another process is making it"
            await _limit(connection, "SET LOCAL" if in_one else "SET", seconds)
            if in_one:
                await connection.execute(CREATE_SQL.format(""))
            elif not await is_valid(connection):
                await connection.execute(DROP_SQL)  # what is left of an attempt that was broken off
                await connection.execute(CREATE_SQL.format("CONCURRENTLY"))
        return None


async def _limit(connection: AsyncConnection[DictRow], scope: str, seconds: float | None) -> None:
    if seconds is not None:
        milliseconds = max(1, int(1000 * seconds))
        await connection.execute(sql.SQL("{} statement_timeout = {}").format(sql.SQL(scope), milliseconds))


async def is_valid(connection: AsyncConnection[DictRow]) -> bool:
    """Whether the index is there and can be used; the tables must be there."""
    return bool((await _state(connection))["valid"])


async def _state(connection: AsyncConnection[DictRow]) -> DictRow:
    row = await (await connection.execute(STATE_SQL)).fetchone()
    assert row is not None
    return row
