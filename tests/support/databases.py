"""Databases for one test after another: one that is left as it was made, but for its tables, is emptied and used again.

Making and dropping one costs a fifth of a second, most of it in a checkpoint that holds up whatever else runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from tests.support.postgres import create_database, drop_database

_END_SESSIONS = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""

_SURROUNDINGS = """
SELECT
  (SELECT ROW(datacl, datconnlimit, datdba)::text FROM pg_database WHERE datname = current_database()),
  (SELECT count(*) FROM pg_db_role_setting JOIN pg_database ON pg_database.oid = setdatabase
    WHERE datname = current_database()),
  (SELECT ROW(nspowner, nspacl)::text FROM pg_namespace WHERE nspname = 'public'),
  (SELECT array_agg(nspname ORDER BY nspname)::text FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp_'),
  (SELECT count(*) FROM pg_extension), (SELECT count(*) FROM pg_event_trigger), (SELECT count(*) FROM pg_default_acl),
  (SELECT count(*) FROM pg_publication), (SELECT count(*) FROM pg_subscription), (SELECT count(*) FROM pg_cast),
  (SELECT count(*) FROM pg_largeobject_metadata)
"""
"""What a test may change in a database beside what is in its schema `public`."""

_EMPTY = """
DO $$ BEGIN
  DROP SCHEMA public CASCADE;
  CREATE SCHEMA public AUTHORIZATION pg_database_owner;
  GRANT USAGE ON SCHEMA public TO PUBLIC;
END $$
"""


class Databases:
    """Databases on the server of a superuser's URL."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._free: list[str] = []
        self._surroundings: tuple[object, ...] | None = None
        """Those of a database that has just been made."""

    @contextmanager
    def one(self) -> Iterator[str]:
        """The URL of an empty database of one's own, for as long as the block runs."""
        url = self._free.pop() if self._free else self._made()
        try:
            yield url
        finally:
            if self._is_clean(url):
                self._free.append(url)
            else:
                drop_database(url)

    def remove(self) -> None:
        while self._free:
            drop_database(self._free.pop())

    def _made(self) -> str:
        url = create_database(self._url)
        if self._surroundings is None:
            with psycopg.connect(url, autocommit=True) as connection:
                self._surroundings = connection.execute(_SURROUNDINGS).fetchone()
        return url

    def _is_clean(self, url: str) -> bool:
        """Empty a database; False if that is not enough to make it what it was."""
        try:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("SET lock_timeout = '5s'")
                connection.execute(_END_SESSIONS)
                if connection.execute(_SURROUNDINGS).fetchone() != self._surroundings:
                    return False
                connection.execute(_EMPTY)
        except psycopg.Error:  # whatever is wrong with it, it is no one to use again
            return False
        return True
