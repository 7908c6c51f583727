"""SQLite as the primary: LangGraph's official saver on a connection that can be replaced when it hangs."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import aiosqlite
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointMetadata, CheckpointTuple
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from enhanced_checkpointing.backends.base import INDEX_DEADLINES, PROBE_THREAD, Heads, Judge, TablesBackend
from enhanced_checkpointing.backends.reading import Chunks
from enhanced_checkpointing.backends.sqlite import listing, maintenance, rows
from enhanced_checkpointing.backends.sqlite import saver as reading
from enhanced_checkpointing.backends.sqlite.file import FileIdentity, check_log, classify_sqlite, is_something_else
from enhanced_checkpointing.backends.sqlite.listing import SqliteThreads
from enhanced_checkpointing.backends.sqlite.maintenance import MaintainedSqliteSaver
from enhanced_checkpointing.backends.sqlite.rows import statements
from enhanced_checkpointing.backends.sqlite.saver import OneHopSaver
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import CheckpointerConfigurationError
from enhanced_checkpointing.journal.recovery import MEMORY
from enhanced_checkpointing.operations import Operation, Put
from enhanced_checkpointing.private_files import create_private, make_private_folder
from enhanced_checkpointing.resilience.attempts import Answer, Attempt, current_attempt
from enhanced_checkpointing.resilience.cooperative import in_thread_of_its_own
from enhanced_checkpointing.resilience.failures import Failure
from enhanced_checkpointing.serialization import SharingSerializer, is_encrypting

T = TypeVar("T")

BUSY_SHARE = 0.4
"""The share of a call's deadline that SQLite waits for another process's lock; two tries fit into one call."""

FOLD_EVERY = 500
"""Operations after which what the -wal file has is folded into the database file, beside the writes that go on."""

FOLD_SQL = "PRAGMA wal_checkpoint(PASSIVE)"

FOLD_AT_PAGES = 4000
"""When the -wal file has so many pages (4 KiB each), a commit folds it in by itself: four times SQLite's default, as it
is a backstop here. Measured in batches of 64, a row costs two thirds of what it costs with the default."""

FAREWELL_SECONDS = 0.05
"""How long the thread of a connection that could not be opened is given to end."""


class SqliteBackend(TablesBackend):
    """A SQLite file in WAL mode with `synchronous=FULL`: a commit is on the disk when it returns."""

    name = "sqlite"
    db_system = "sqlite"
    lanes: ClassVar[int] = 1  # SQLite has one writer at a time
    reads_everything = True

    def __init__(self, config: CheckpointerConfig, serializer: SharingSerializer) -> None:
        super().__init__(config, serializer)
        self._path = str(config.database_path)
        self._in_memory = self._path == ":memory:"
        self._saver: OneHopSaver | None = None
        self._place: FileIdentity | None = None
        """Where the file was when it was last opened."""
        self._retired: set[asyncio.Task[None]] = set()
        self._opening = asyncio.Lock()
        self._threads = SqliteThreads(self._alone, serializer)
        self.unreadable = self._threads.unreadable
        self._index_missing_because: str | None = None
        self._not_folded = 0
        """Operations since the last folding began."""
        self._folding: asyncio.Task[None] | None = None

    async def open(self) -> None:
        if self._in_memory:
            return
        try:
            make_private_folder(Path(self._path).parent)
        except OSError as error:
            raise CheckpointerConfigurationError(
                f"The folder of SQLITE_PATH ({self._path}) cannot be created: {error.strerror}. "
                "Name a path that may be written. Nothing was stored."
            ) from error
        if is_something_else(self._path):
            raise CheckpointerConfigurationError(
                f"SQLITE_PATH ({self._path}) is no regular file. Name another path. Nothing was stored."
            )

    async def setup(self) -> None:
        saver = await self.connected()
        if self.config.auto_setup:
            await saver.setup()
            await self.make_thread_index(INDEX_DEADLINES * self.config.deadline)
            return
        saver.is_setup = True  # the official saver would create the tables on its own at the first call
        await saver.conn.execute_fetchall("SELECT checkpoint_ns FROM checkpoints LIMIT 1")
        await saver.conn.execute_fetchall("SELECT task_path FROM writes LIMIT 1")

    async def connected(self) -> OneHopSaver:
        """The saver on a connection that is open, opening one if the last was given up."""
        if self._saver is not None:
            return self._saver
        async with self._opening:
            if self._saver is None:
                connection = await self._connect()
                place = None if self._in_memory else FileIdentity(self._path)
                self._saver = MaintainedSqliteSaver(connection, self.serializer, place)
                self._place = place
                self._saver.is_setup = not self.config.auto_setup
            return self._saver

    async def probe(self) -> None:
        if self._in_memory:
            return
        self._leave_what_was_moved()
        connection = await self._connect()
        try:
            await connection.execute("BEGIN IMMEDIATE")
            await connection.execute(
                "INSERT OR REPLACE INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id) VALUES (?, '', '')",
                (PROBE_THREAD,),
            )
            # Taken out again and committed: what is rolled back never reaches the disk, and so finds none full.
            await connection.execute("DELETE FROM checkpoints WHERE thread_id = ?", (PROBE_THREAD,))
            await connection.commit()
        finally:
            await connection.close()

    def _leave_what_was_moved(self) -> None:
        """Give a connection up whose file is not at its path any more."""
        saver = self._saver
        if saver is not None and saver.place is not None and not saver.place.is_kept():
            self.retire(saver)

    def freeze(self, value: Any) -> Any:
        """Within a checkpoint MessagePack does not tell a `bytearray` from `bytes`."""
        if isinstance(value, bytearray):
            inner = self.serializer.inner
            innermost = inner.serde if is_encrypting(inner) else inner
            value = bytes(value) if isinstance(innermost, JsonPlusSerializer) else value
        return self.serializer.freeze(value)

    def form_of_metadata(self, metadata: CheckpointMetadata) -> CheckpointMetadata:
        return rows.JSON_TEXT.of_metadata(metadata)

    def lost_types(self, operation: Operation) -> Collection[str]:
        return super().lost_types(operation) if rows.needs_objects(operation, self.serializer) else ()

    write_that_stays = staticmethod(rows.the_write_that_stays)
    selection = staticmethod(rows.selection)

    def database_id(self) -> str:
        return MEMORY if self._in_memory else os.path.realpath(self._path)

    def classify(self, error: BaseException) -> Failure:
        return classify_sqlite(error)

    def check(self, operation: Operation) -> None:
        rows.check(operation)
        if isinstance(operation, Put):
            self._check_numbers([*operation.values.values()])

    async def apply_batch(self, operations: Sequence[Operation]) -> None:
        work = statements(operations, self.serializer)
        async with self._held() as saver:
            await saver.commit(work)
        self._written(len(operations))

    def lone(self, operation: Operation, attempt: Attempt) -> Answer | None:
        saver = self._saver
        if saver is None or self._in_memory or not saver.is_free:
            return None
        try:
            work = statements([operation], self.serializer)
        except Exception:  # noqa: BLE001  # whatever a serializer raises: `apply_batch` meets it again, and raises it
            return None
        answer = Answer(attempt)

        def launch() -> None:
            attempt.hold(lambda: self.retire(saver))
            saver.commit_at_once(work, answer)
            self._written(1)

        attempt.launch = launch
        return answer

    async def apply_all(self, operations: Sequence[Operation], heads: Heads) -> bool:
        await self.apply_batch(operations)
        return True

    async def get(self, config: RunnableConfig) -> tuple[CheckpointTuple | None, bool]:
        async with self._held() as saver:
            return await saver.aget_or_anything(config)

    async def ask(self, question: Callable[[BaseCheckpointSaver[Any]], Awaitable[T]]) -> T:
        async with self._held() as saver:
            return await question(saver)

    def read_thread(self, thread_id: str) -> Chunks:
        return reading.read_thread(self._alone, self.serializer, thread_id)

    async def _alone(self, work: Callable[[sqlite3.Connection], T]) -> T:
        async with self._held() as saver:
            return await saver._alone(work)

    def saver_type(self) -> type[BaseCheckpointSaver[Any]]:
        return MaintainedSqliteSaver

    async def annotate(self, thread_id: str, changes: Mapping[str, Any]) -> bool:
        return await self._alone(lambda connection: maintenance.annotate(connection, thread_id, changes))

    async def delete_if(self, thread_ids: Sequence[str], judge: Judge) -> Sequence[str]:
        serializer = self.serializer
        return await self._alone(lambda one: maintenance.delete_if(one, serializer, thread_ids, judge))

    @asynccontextmanager
    async def sole(self, name: str) -> AsyncIterator[bool]:
        with maintenance.sole(None if self._in_memory else Path(f"{self._path}.{name}.lock")) as is_sole:
            yield is_sole

    async def has_thread_index(self) -> bool:
        async with self._held() as saver:
            return await listing.is_there(saver.conn)

    async def make_thread_index(self, seconds: float | None = None) -> bool:
        if await self.has_thread_index():
            self._index_missing_because = None
        elif self._in_memory:
            self._index_missing_because = await listing.make((await self.connected()).conn, None)
        else:
            connection = await self._connect()
            try:
                self._index_missing_because = await listing.make(connection, seconds)
            finally:
                await connection.close()
        return self._index_missing_because is None

    def notes(self) -> dict[str, Any]:
        missing = self._index_missing_because
        return {"thread_index_missing": missing} if missing is not None else {}

    async def scrub(self) -> Sequence[str]:
        if self._in_memory:
            return []
        busy = await in_thread_of_its_own(partial(_cleaned, self._path, self.config.deadline), "clean the SQLite file")
        return ["the -wal file of the database, which a reader holds: erase again"] if busy else []

    async def fence(self, thread_id: str) -> bool:
        if self._retired:
            await asyncio.wait(set(self._retired), timeout=self.config.deadline)
        return not self._retired

    def retire(self, saver: OneHopSaver) -> None:
        """Give up a connection on which a statement hangs: interrupt it, roll back, close, all in the background."""
        if self._saver is not saver:
            return  # by another call that hung on it; closing a connection of aiosqlite twice would hang for ever
        self._saver = None
        task = asyncio.get_running_loop().create_task(_close_interrupted(saver.conn), name="close a hung SQLite file")
        self._retired.add(task)
        task.add_done_callback(self._retired.discard)

    async def close(self) -> None:
        if self._folding is not None:
            await asyncio.wait([self._folding], timeout=self.config.deadline)
        if self._saver is not None:
            self.retire(self._saver)
        if self._retired:
            await asyncio.wait(set(self._retired), timeout=self.config.deadline)

    def _written(self, operations: int) -> None:
        self._not_folded += operations
        if self._not_folded >= FOLD_EVERY and self._folding is None and not self._in_memory:
            self._not_folded = 0
            self._folding = asyncio.get_running_loop().create_task(self._fold(), name="fold the -wal file in")
            self._folding.add_done_callback(self._folded)

    def _folded(self, _: asyncio.Task[None]) -> None:
        self._folding = None

    async def _fold(self) -> None:
        """Fold in what no reader needs as it was, without holding up any write. It is not needed for anything to be
        right, and commits do it if need be: so an error here, which would be theirs too, is left for them to meet."""
        with suppress(sqlite3.Error):
            await in_thread_of_its_own(partial(_fold_in, self._path), "fold the -wal file in")

    @asynccontextmanager
    async def _held(self) -> AsyncIterator[OneHopSaver]:
        """The saver, such that the running attempt gives its connection up when it is late."""
        saver = await self.connected()
        attempt = current_attempt.get()
        if attempt is None or self._in_memory:  # closing the only connection to :memory: would lose all that is in it
            yield saver
            return
        attempt.hold(lambda: self.retire(saver))
        try:
            yield saver
        finally:
            attempt.let_go()

    async def _connect(self) -> aiosqlite.Connection:
        """A connection of its own.

        Raises:
            MovedError: the file has gone. SQLite would make an empty one in place of the one that may be put back.
            OrphanedLogError: the file had gone before, and has left something.
        """
        if self._place is not None and self._place.is_vacant:
            raise self._place.moved()
        if not self._in_memory:
            check_log(self._path)
            _make_private(self._path)
        milliseconds = int(self.config.deadline * BUSY_SHARE * 1000)
        try:
            connection = await aiosqlite.connect(self._path, timeout=milliseconds / 1000)
        except sqlite3.Error:
            await asyncio.sleep(FAREWELL_SECONDS)  # its thread says good-bye to this loop, which may end right after
            raise
        try:
            # Fetched, since a statement that is not read to its end would keep an interruption from ever ending.
            await connection.execute_fetchall("PRAGMA journal_mode=WAL")
            await connection.execute_fetchall("PRAGMA synchronous=FULL")
            await connection.execute_fetchall(f"PRAGMA wal_autocheckpoint={FOLD_AT_PAGES}")
        except BaseException:
            await connection.close()
            raise
        return connection


def _make_private(path: str) -> None:
    """Make a missing database file, private to its owner: SQLite gives its -wal and -shm files the mode of it, and
    would itself make it as the umask says."""
    with suppress(OSError):  # it is there; or SQLite finds out what is wrong with the path, and says it in its words
        os.close(create_private(os.path.realpath(path)))


def _cleaned(path: str, seconds: float) -> bool:
    """Write a database anew, without what was deleted, and empty its -wal file; True: a reader keeps that."""
    uri = f"{Path(path).absolute().as_uri()}?mode=rw"
    with closing(sqlite3.connect(uri, uri=True, timeout=seconds, isolation_level=None)) as connection:
        connection.execute("VACUUM")
        (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return bool(busy)


def _fold_in(path: str) -> None:
    """Fold the -wal file of a database in. Where its file has gone, no empty one is made."""
    with closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=rw", uri=True)) as connection:
        connection.execute(FOLD_SQL).fetchall()


async def _close_interrupted(connection: aiosqlite.Connection) -> None:
    await connection.interrupt()
    try:
        # Ends the interruption, which it may meet itself. One that met no statement would meet the checkpoint that
        # closing makes, and what was committed last would stay in the -wal file, where a copy of the database file
        # alone misses it.
        with suppress(sqlite3.OperationalError):
            await connection.execute("SELECT 1")
    finally:
        await connection.close()
