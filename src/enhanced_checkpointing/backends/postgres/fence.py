"""Sessions on which a write was left behind, and how they are ended before they can commit late."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass

from psycopg import AsyncConnection
from psycopg.rows import DictRow

TERMINATE_MILLISECONDS = 1000
"""How long the server is given to end one session."""


@dataclass(frozen=True, slots=True)
class LostSession:
    """A server session that may still commit a write to these threads, until it is known to be gone."""

    process_id: int
    thread_ids: frozenset[str]
    lost_at: float


class LostSessions:
    """Remembers them, and ends those of one thread when that thread is to be written again."""

    def __init__(self) -> None:
        self._sessions: list[LostSession] = []

    def __len__(self) -> int:
        return len(self._sessions)

    def remember(self, process_id: int, thread_ids: Collection[str]) -> None:
        """A write to these threads was left behind on this session just now."""
        self._sessions.append(LostSession(process_id, frozenset(thread_ids), time.monotonic()))

    def forget_all(self) -> None:
        """None of them can be ended from here."""
        self._sessions.clear()

    def may_still_write(self, thread_id: str) -> bool:
        """Whether a session on which a write to this thread was left behind is not known to be gone."""
        return any(thread_id in session.thread_ids for session in self._sessions)

    async def end(self, thread_id: str, connection: AsyncConnection[DictRow]) -> bool:
        """End the sessions of one thread over another connection; True when none of them can commit any more."""
        mine = [session for session in self._sessions if thread_id in session.thread_ids]
        gone = [session for session in mine if await _terminate(connection, session)]
        self._sessions = [session for session in self._sessions if session not in gone]
        return len(gone) == len(mine)


async def _terminate(connection: AsyncConnection[DictRow], session: LostSession) -> bool:
    """End one session and tell whether it is gone; a newer session that got the same process id is left alone."""
    cursor = await connection.execute(
        "SELECT pg_terminate_backend(pid, %s) AS ended FROM pg_stat_activity "
        "WHERE pid = %s AND pid <> pg_backend_pid() AND backend_start < clock_timestamp() - make_interval(secs => %s)",
        (TERMINATE_MILLISECONDS, session.process_id, time.monotonic() - session.lost_at),
    )
    row = await cursor.fetchone()
    return row is None or bool(row["ended"])
