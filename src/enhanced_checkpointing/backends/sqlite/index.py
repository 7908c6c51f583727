"""Our one index on the official saver's tables, by which a user's newest checkpoints are found.

Nothing depends on it but the speed of a listing, so nothing fails for want of it.
"""

from __future__ import annotations

import sqlite3
import time

import aiosqlite

from enhanced_checkpointing.backends.sqlite.directory import OF_ROOT_WITH_USER, USER_KEY

INDEX = "checkpoints_newest_of_user"
CREATE_SQL = f"CREATE INDEX IF NOT EXISTS {INDEX} ON checkpoints ({USER_KEY}, checkpoint_id) WHERE {OF_ROOT_WITH_USER}"
IS_THERE_SQL = f"SELECT 1 FROM sqlite_master WHERE type = 'index' AND name = '{INDEX}'"

LOOK_EVERY = 10_000
"""Steps of SQLite's machine between two looks at the clock: about a millisecond."""


async def is_there(connection: aiosqlite.Connection) -> bool:
    return bool([*await connection.execute_fetchall(IS_THERE_SQL)])


async def make(connection: aiosqlite.Connection, seconds: float | None) -> str | None:
    """Make the index, on a connection that nobody else uses; why it is not there after so many seconds, or None.

    Writes wait meanwhile, for SQLite has one writer at a time.
    """
    ends_at = time.monotonic() + seconds if seconds is not None else float("inf")
    await connection.set_progress_handler(lambda: int(time.monotonic() > ends_at), LOOK_EVERY)
    try:
        while True:
            try:
                await connection.execute(CREATE_SQL)
                return None
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > ends_at:
                    return str(error)
    finally:
        await connection.set_progress_handler(None, 0)  # type: ignore[arg-type]  # as sqlite3 takes it
