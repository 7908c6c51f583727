"""What each session of ours is set to, directly and behind a transaction pooler."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from psycopg import sql

from enhanced_checkpointing.backends.postgres.connecting import Connection

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
