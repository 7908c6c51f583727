"""What every subject measures with: a PostgreSQL, two ways to it, databases, and the folder of one run."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from benchmarks.delay import DelayProxy
from benchmarks.rounds import Pace
from benchmarks.savers import Pair, postgres_pair
from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres

ONE_WAY = 0.001
LOOPBACK = "loopback"
DELAYED = "2 ms"
WAYS = (LOOPBACK, DELAYED)

PACE = Pace(rounds=5, seconds=0.5, patience=12.0)
QUICK_PACE = Pace(rounds=2, seconds=0.05, patience=1.0)


@dataclass(frozen=True)
class Table:
    """What a subject prints; the first column is the heading of its row."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""


@dataclass
class Result:
    """Tables for people, and figures by name for the promises and the curves."""

    tables: list[Table] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Laboratory:
    """`say` tells what is measured now; `quick` only checks that everything runs, its figures mean nothing."""

    server: LocalPostgres
    proxy: DelayProxy
    quick: bool
    say: Callable[[str], None]
    _names: Iterator[int] = field(default_factory=itertools.count)

    @property
    def pace(self) -> Pace:
        return QUICK_PACE if self.quick else PACE

    @contextmanager
    def folder(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
            yield Path(name)

    def url(self, database: str, way: str = LOOPBACK) -> str:
        url = self.server.url(database)
        return self.proxy.url(url) if way == DELAYED else url

    async def new_database(self) -> str:
        """The name of an empty database."""
        name = f"benchmark_{next(self._names)}"
        async with self.connect("postgres") as connection:
            await connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return name

    async def drop_database(self, name: str) -> None:
        async with self.connect("postgres") as connection:
            await connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    @asynccontextmanager
    async def connect(self, database: str) -> AsyncIterator[AsyncConnection[TupleRow]]:
        """A connection to look at the server with, beside those that are measured."""
        connection = await AsyncConnection.connect(self.server.url(database), autocommit=True)
        async with connection:
            yield connection

    @asynccontextmanager
    async def database(self) -> AsyncIterator[str]:
        """The name of an empty database, dropped at the end."""
        name = await self.new_database()
        try:
            yield name
        finally:
            await self.drop_database(name)

    @asynccontextmanager
    async def postgres_pair(self, way: str) -> AsyncIterator[tuple[Pair, str]]:
        """Both savers on fresh databases, that far away; and the name of the database of ours."""
        with self.folder() as folder:
            async with (
                self.database() as bare,
                self.database() as ours,
                postgres_pair(self.url(bare, way), self.url(ours, way), folder) as pair,
            ):
                yield pair, ours
