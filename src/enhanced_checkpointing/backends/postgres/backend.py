"""PostgreSQL as the primary: the official saver's tables and reads, over connections that can be left behind."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from hashlib import blake2b
from typing import Any
from uuid import uuid4

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointMetadata, CheckpointTuple
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncConnection, pq, sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import InvalidTextRepresentation
from psycopg.rows import DictRow

from enhanced_checkpointing.backends.base import INDEX_DEADLINES, PROBE_THREAD, Heads, Judge, TablesBackend
from enhanced_checkpointing.backends.postgres import failures, maintenance, rows, saver
from enhanced_checkpointing.backends.postgres.connections import PostgresConnections, got_lock
from enhanced_checkpointing.backends.postgres.failures import LostSessionError, classify_postgres
from enhanced_checkpointing.backends.postgres.listing import PostgresThreads, ThreadIndex, is_valid
from enhanced_checkpointing.backends.postgres.maintenance import MaintainedPooledSaver
from enhanced_checkpointing.backends.postgres.rows import probe_statement, says_moved, statements, upon_heads, wake
from enhanced_checkpointing.backends.postgres.wire import execute
from enhanced_checkpointing.backends.reading import Chunks
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import CheckpointerConfigurationError, quoted
from enhanced_checkpointing.operations import Operation
from enhanced_checkpointing.resilience.failures import Failure
from enhanced_checkpointing.serialization import INLINE_TYPES, Opaque, SharingSerializer

DEFAULT_PORT = "5432"


def home_of(connection_string: str, schema: str | None) -> str:
    """`postgres://host:port/dbname?schema=…`, with several hosts in their order by name.

    What the string leaves out is what libpq takes for it: from the environment, else its default. A database that is
    named after its user is told by a hash of that name.
    """
    given = {key: str(value) for key, value in conninfo_to_dict(connection_string).items() if value}
    defaults = {option.keyword.decode(): (option.val or b"").decode() for option in pq.Conninfo.get_defaults()}

    def value(key: str) -> str:
        return given.get(key) or defaults.get(key, "")

    hosts = (given.get("host") or given.get("hostaddr") or value("host") or "local").split(",")
    ports = (value("port") or DEFAULT_PORT).split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    places = ",".join(sorted(f"{_same(host)}:{port or DEFAULT_PORT}" for host, port in zip(hosts, ports, strict=False)))
    user = blake2b(value("user").encode(), digest_size=4).hexdigest()
    schema = schema or _first_of_search_path(value("options"))
    service = given.get("service")
    marks = [f"schema={schema}"] * bool(schema) + [f"service={service}"] * bool(service)
    return f"postgres://{places}/{value('dbname') or f'~{user}'}{'?' * bool(marks)}{'&'.join(marks)}"


def _same(host: str) -> str:
    """Names of hosts count in any case, paths of sockets do not."""
    return host if host.startswith(("/", "@")) else host.lower()


def _first_of_search_path(options: str) -> str | None:
    found = re.search(r"search_path\s*=\s*([^\s,]+)", options)
    return found[1] if found else None


SETUP_LOCK = 0x454E_4843_4850  # "ENHCHP": the key of the advisory lock under which tables are made
# Without parameters, so that it goes out by the simple protocol: by the extended one its portal, and with it a
# snapshot, would stay until the transaction ends, and `CREATE INDEX CONCURRENTLY` would wait for that.
TRY_SETUP_LOCK = sql.SQL("SELECT pg_try_advisory_xact_lock({}) AS locked").format(SETUP_LOCK)
SETUP_POLL_SECONDS = 0.1

PROBE_LOCK_SHARE = 0.8
"""The share of the deadline for which a probe may wait for a lock on the server."""

# What live calls need. One who may not do it all is told at the start, not by the first call that needs it.
MISSING_PRIVILEGES = """
    SELECT needed.privilege || ' on ' || needed.name AS missing
    FROM (
        SELECT name, privilege
        FROM unnest(ARRAY['checkpoints', 'checkpoint_blobs', 'checkpoint_writes']) AS name,
             unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege
    ) AS needed
    WHERE NOT has_table_privilege(needed.name, needed.privilege)
"""


class PostgresBackend(TablesBackend):
    """Writes, however many, are one transaction and one round trip. Reads find the rows of the official saver."""

    name = "postgres"
    db_system = "postgresql"
    compares_heads = True
    lanes = 2
    reads_everything = True

    def __init__(self, config: CheckpointerConfig, serializer: SharingSerializer) -> None:
        super().__init__(config, serializer)
        self._connections = PostgresConnections(config)
        self._threads = PostgresThreads(self._connections)
        self.unreadable = self._threads.unreadable
        self._thread_index = ThreadIndex(self._connections)

    async def open(self) -> None:
        if sys.platform == "win32" and isinstance(asyncio.get_running_loop(), asyncio.ProactorEventLoop):
            raise CheckpointerConfigurationError(
                "psycopg cannot run on Windows' Proactor event loop, so PostgreSQL cannot be used from it. Before the "
                "loop starts: asyncio.set_event_loop_policy(asyncio.WindowsSelectorEventLoopPolicy()); or give the "
                "manager a loop of its own with enable_async=False. Nothing was opened."
            )
        self.saver = self._pooled = MaintainedPooledSaver(self._connections, self.serializer)
        await self._connections.open()

    async def setup(self) -> None:
        async with self._connections.alone() as connection:
            async with self._connections.in_schema(connection):
                current = await _tables_are_current(connection)
            if not current:
                if not self.config.auto_setup:
                    raise CheckpointerConfigurationError(
                        "The checkpoint tables are missing or of an older version, and CHECKPOINT_AUTO_SETUP=false "
                        "forbids making them. Run `checkpointing setup`, or start once with "
                        "CHECKPOINT_AUTO_SETUP=true, by a user that may create tables. Nothing was stored."
                    )
                await self._migrate(connection)
            async with self._connections.in_schema(connection):
                await _check_privileges(connection)
                listed_fast = await is_valid(connection)
        if self.config.auto_setup and not listed_fast:
            await self.make_thread_index(INDEX_DEADLINES * self.config.deadline)

    async def probe(self) -> None:
        async with (
            self._connections.alone_if_possible() as connection,
            self._connections.in_schema(connection),
            connection.transaction(force_rollback=True),
        ):
            # A session that waits for a lock does not notice that its client has gone: it must end by itself.
            patience = int(PROBE_LOCK_SHARE * self.config.deadline * 1000)
            await connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(max(1, patience)))
            await execute(connection, [probe_statement(PROBE_THREAD, uuid4().hex)])  # no call waits for its row

    def freeze(self, value: Any) -> Any:
        if isinstance(value, INLINE_TYPES) or type(value) is Opaque:
            return rows.frozen_inline(value, self.serializer)
        return self.serializer.freeze(value)

    def form_of_metadata(self, metadata: CheckpointMetadata) -> CheckpointMetadata:
        return rows.form_of_metadata(metadata)

    def lost_types(self, operation: Operation) -> Collection[str]:
        return ()  # it takes bytes as they are

    write_that_stays = staticmethod(rows.the_write_that_stays)
    selection = staticmethod(saver.selection)

    def database_id(self) -> str:
        assert self.config.connection_string is not None
        return home_of(self.config.connection_string.get_secret_value(), self.config.postgres_schema)

    def classify(self, error: BaseException) -> Failure:
        return classify_postgres(error)

    def check(self, operation: Operation) -> None:
        failures.check(operation)

    async def apply_batch(self, operations: Sequence[Operation]) -> None:
        prepared = statements(operations)
        if not prepared:
            return
        await self._await_lost_sessions({operation.thread_id for operation in operations})
        async with self._connections.borrow() as connection:
            await execute(connection, [*wake(operations), *prepared])

    async def apply_all(self, operations: Sequence[Operation], heads: Heads) -> bool:
        if not heads:
            await self.apply_batch(operations)
            return True
        thread_id = operations[0].thread_id
        await self._await_lost_sessions({thread_id})
        try:
            async with self._connections.borrow() as connection:
                woken = wake(operations)
                await execute(connection, [*upon_heads(thread_id, heads), *woken, *statements(operations)])
        except InvalidTextRepresentation as error:
            if says_moved(error):
                return False
            raise
        return True

    async def get(self, config: RunnableConfig) -> tuple[CheckpointTuple | None, bool]:
        return await self._pooled.aget_or_anything(config)

    def read_thread(self, thread_id: str) -> Chunks:
        return saver.read_thread(self._connections, self.serializer, thread_id)

    async def _await_lost_sessions(self, thread_ids: Iterable[str]) -> None:
        for thread_id in thread_ids:
            if self._connections.may_still_write(thread_id) and not await self.fence(thread_id):
                raise LostSessionError(f"a lost session may still write to thread {quoted(thread_id)}")

    async def renew(self) -> None:
        await self._connections.renew()

    async def fence(self, thread_id: str) -> bool:
        return await self._connections.fence(thread_id)

    def saturated(self) -> bool:
        return self._connections.saturated

    def gauges(self) -> dict[str, int]:
        return self._connections.gauges()

    def notes(self) -> dict[str, Any]:
        missing = self._thread_index.missing_because
        return {
            "transaction_pooler": self._connections.behind_pooler,
            **({"thread_index_missing": missing} if missing is not None else {}),
        }

    async def scrub(self) -> Sequence[str]:
        """Plain VACUUM: it lets space be used again, and overwrites nothing."""
        refused: list[str] = []
        if self._connections.behind_pooler:
            refused.append("behind a transaction pooler nothing is vacuumed")
        else:
            async with self._connections.alone() as connection:
                connection.add_notice_handler(lambda told: refused.append(str(told.message_primary)))
                for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes"):
                    await connection.execute(f"VACUUM {table}")
        why = f" ({'; '.join(refused)})" if refused else ""
        return [
            f"freed space in the files of the tables, until it is used again or VACUUM FULL writes them anew{why}",
            "the server's write-ahead log, until it is recycled, and whatever archives it",
        ]

    async def has_thread_index(self) -> bool:
        return await self._thread_index.is_there()

    async def make_thread_index(self, seconds: float | None = None) -> bool:
        return await self._thread_index.make(seconds)

    async def annotate(self, thread_id: str, changes: Mapping[str, Any]) -> bool:
        return await maintenance.annotate(self._connections, thread_id, changes)

    async def delete_if(self, thread_ids: Sequence[str], judge: Judge) -> Sequence[str]:
        await self._await_lost_sessions(thread_ids)
        return await maintenance.delete_if(self._connections, self._pooled, thread_ids, judge)

    @asynccontextmanager
    async def sole(self, name: str) -> AsyncIterator[bool]:
        async with maintenance.sole(self._connections, name, self.config.deadline) as is_sole:
            yield is_sole

    async def close(self) -> None:
        await self._connections.close()

    async def _migrate(self, connection: AsyncConnection[DictRow]) -> None:
        """Run the official migrations in one process at a time.

        The lock is only ever tried, never waited for: `CREATE INDEX CONCURRENTLY` waits for all transactions with a
        snapshot, and a session that waits for a lock has one, so that waiting would be a deadlock.
        """
        async with self._connections.keeper(connection) as keeper:
            while True:
                async with self._connections.in_schema(keeper), keeper.transaction():
                    if await _tables_are_current(connection):
                        return
                    if await got_lock(keeper, TRY_SETUP_LOCK):
                        await self._create_tables(connection)
                        return
                await asyncio.sleep(SETUP_POLL_SECONDS)

    async def _create_tables(self, connection: AsyncConnection[DictRow]) -> None:
        if self.config.postgres_schema:
            schema = sql.Identifier(self.config.postgres_schema)
            await connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS ") + schema)
        saver = AsyncPostgresSaver(connection, serde=self.serializer)
        if self._connections.behind_pooler:  # in a transaction, where writes wait while an index is built
            saver.MIGRATIONS = [migration.replace(" CONCURRENTLY", "") for migration in saver.MIGRATIONS]
        await saver.setup()


async def _tables_are_current(connection: AsyncConnection[DictRow]) -> bool:
    cursor = await connection.execute("SELECT to_regclass('checkpoint_migrations') IS NOT NULL AS there")
    row = await cursor.fetchone()
    if row is None or not row["there"]:
        return False
    cursor = await connection.execute("SELECT max(v) AS newest FROM checkpoint_migrations")
    row = await cursor.fetchone()
    return row is not None and row["newest"] is not None and row["newest"] >= len(AsyncPostgresSaver.MIGRATIONS) - 1


async def _check_privileges(connection: AsyncConnection[DictRow]) -> None:
    cursor = await connection.execute(MISSING_PRIVILEGES)
    if missing := [row["missing"] for row in await cursor.fetchall()]:
        raise CheckpointerConfigurationError(
            f"The database user may not do all that checkpoints need: it lacks {', '.join(missing)}. Grant the user of "
            "DATABASE_URL SELECT, INSERT, UPDATE and DELETE on the checkpoint tables. Nothing was stored."
        )
