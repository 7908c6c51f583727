"""Names of dependencies that are private, or that nobody promised: this fails when an upgrade changes one of them.

Everything here is asked of the installed packages; the upper bounds in pyproject.toml say how far they may move.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import logging
import re
import sqlite3
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Any

import aiosqlite
import opentelemetry.metrics._internal as metrics_internal
import psycopg
import pytest
from langchain_core.messages import HumanMessage
from langgraph._internal._constants import NULL_TASK_ID
from langgraph.checkpoint.base import WRITES_IDX_MAP, BaseCheckpointSaver, empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.postgres.base import BasePostgresSaver
from langgraph.checkpoint.serde._msgpack import SAFE_MSGPACK_TYPES
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from opentelemetry import metrics, trace
from ormsgpack import Fragment
from psycopg_pool import AsyncConnectionPool
from psycopg_pool.base import AttemptWithBackoff

import enhanced_checkpointing
from enhanced_checkpointing.backends.postgres import rows as postgres_sql
from enhanced_checkpointing.backends.postgres.rows import PARTS, arrays_sql, values_sql
from enhanced_checkpointing.backends.sqlite import rows as sqlite_rows
from enhanced_checkpointing.serialization import BYTES, MSGPACK
from enhanced_checkpointing.threads.comparison import RUN
from tests.support.author import config_of
from tests.support.checkpointer import eventually

SOURCE = Path(enhanced_checkpointing.__file__).parent
NOBODY = "host=127.0.0.1 port=1"
"""Nobody listens on port 1 of the loopback."""


def attributes_of_self(function: Callable[..., Any]) -> set[str]:
    """The attributes of `self` that a function names."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }


def own_functions(kind: type[object]) -> dict[str, Callable[..., Any]]:
    plain = {name: inspect.unwrap(member) for name, member in vars(kind).items() if inspect.isroutine(member)}
    return {name: member for name, member in plain.items() if inspect.isfunction(member)}


def borrowed_in_source() -> set[str]:
    """Every private name of another package that a module of ours imports, or takes from something imported."""
    found: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        imported: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported |= {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith(SOURCE.name):
                imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        named = {
            f"{imported[node.value.id]}.{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imported
        }
        for name in {*imported.values(), *named}:
            parts = name.split(".")
            if parts[0] not in (SOURCE.name, "__future__") and any(is_private(part) for part in parts):
                found.add(name)
    return found


def private_attributes_that_are_not_ours() -> set[str]:
    """Every private attribute that a module of ours takes from anything, and that none of our modules defines."""
    taken: set[str] = set()
    defined: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.Attribute):
                (taken if isinstance(node.ctx, ast.Load) else defined).add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                defined.add(node.id)
    return {name for name in taken - defined if is_private(name)}


def is_private(name: str) -> bool:
    """Named tuples have public methods with an underscore, to keep clear of the names of their fields."""
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__")) and name != "_replace"


def test_types_that_strictness_lets_through_are_pairs_of_module_and_name() -> None:
    assert {("langgraph.types", "Send"), ("langchain_core.messages.human", "HumanMessage")} <= SAFE_MSGPACK_TYPES


def test_no_private_name_of_a_dependency_is_used_that_this_file_does_not_watch() -> None:
    watched = {
        "langgraph.checkpoint.postgres.PostgresSaver._load_checkpoint_tuple",
        "langgraph.checkpoint.serde._msgpack.SAFE_MSGPACK_TYPES",
        "langgraph.checkpoint.serde.types._DeltaSnapshot",
        "opentelemetry.metrics._internal",
        "opentelemetry.metrics._internal._METER_PROVIDER",
        "opentelemetry.trace._TRACER_PROVIDER",
    }
    assert borrowed_in_source() == watched
    telemetry, memory = {"_METER_PROVIDER", "_TRACER_PROVIDER"}, {"_ordered_writes"}
    assert private_attributes_that_are_not_ours() == telemetry | memory | {"_conn", "_execute", "_tx"}


# LangGraph's PostgreSQL saver


def test_postgres_saver_hands_out_cursors_as_it_is_overridden_here() -> None:
    signature = inspect.signature(AsyncPostgresSaver._cursor)
    assert [(name, parameter.kind, parameter.default) for name, parameter in signature.parameters.items()] == [
        ("self", inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty),
        ("pipeline", inspect.Parameter.KEYWORD_ONLY, False),
    ]
    assert "AsyncIterator[AsyncCursor[DictRow]]" in str(signature.return_annotation)


def test_cursor_of_the_postgres_saver_is_an_asynchronous_context_manager() -> None:
    saver = object.__new__(AsyncPostgresSaver)
    assert isinstance(saver._cursor(), AbstractAsyncContextManager)


def test_every_method_of_the_postgres_saver_reaches_the_database_through_that_cursor_alone() -> None:
    users = {
        name
        for kind in (AsyncPostgresSaver, BasePostgresSaver)
        for name, function in own_functions(kind).items()
        if "conn" in attributes_of_self(function)
    }
    assert users == {"__init__", "_cursor"}


def test_synchronous_postgres_saver_loads_a_tuple_without_the_database() -> None:
    """Ours loads tuples by it."""
    loading, awaiting = PostgresSaver._load_checkpoint_tuple, AsyncPostgresSaver._load_checkpoint_tuple
    assert attributes_of_self(loading) == attributes_of_self(awaiting) == {"_load_blobs", "_load_writes"}
    assert [*inspect.signature(loading).parameters] == [*inspect.signature(awaiting).parameters] == ["self", "value"]
    assert not inspect.iscoroutinefunction(loading)


def test_postgres_saver_that_is_not_initialized_by_its_own_init_lacks_nothing() -> None:
    """Ours sets these attributes itself, since the official `__init__` wants a connection."""
    assert attributes_of_self(AsyncPostgresSaver.__init__) == {"conn", "pipe", "lock", "loop", "supports_pipeline"}
    assert "__init__" not in vars(BasePostgresSaver)
    assert attributes_of_self(BaseCheckpointSaver.__init__) == {"serde"}


def test_postgres_saver_can_be_made_on_a_connection_for_setting_up() -> None:
    assert list(inspect.signature(AsyncPostgresSaver.__init__).parameters)[:2] == ["self", "conn"]
    assert "serde" in inspect.signature(AsyncPostgresSaver.__init__).parameters


def inserts(statement: str) -> list[tuple[str, set[str], str, set[str]]]:
    """Each INSERT of a statement: its table, its columns, its key, and what it updates when the key is there."""
    found = []
    for part in " ".join(statement.replace(";", "").split()).split("INSERT INTO ")[1:]:
        table, columns, rest = re.split(r" ?\(|\) ?", part, maxsplit=2)
        conflict = re.search(r"ON CONFLICT \((?P<key>[^)]*)\) DO (?:NOTHING|UPDATE SET (?P<sets>.*?)) ?(?:\)|$)", rest)
        assert conflict is not None, rest
        sets = {part.strip() for part in (conflict["sets"] or "").split(",") if part.strip()}
        found.append((table, {name.strip() for name in columns.split(",")}, conflict["key"], sets))
    return found


def test_our_statements_store_what_those_of_the_postgres_saver_store() -> None:
    """The same columns of the same tables, under the same keys, and in conflict the same row stays."""
    official = AsyncPostgresSaver
    with_blobs = [*inserts(official.UPSERT_CHECKPOINT_BLOBS_SQL), *inserts(official.UPSERT_CHECKPOINTS_SQL)]
    for text_of in (arrays_sql, lambda parts: values_sql(tuple((part, 2) for part in parts))):
        assert inserts(text_of(("checkpoints",))) == inserts(official.UPSERT_CHECKPOINTS_SQL)
        assert inserts(text_of(("checkpoints", "blobs"))) == with_blobs
        assert inserts(text_of(("writes",))) == inserts(official.INSERT_CHECKPOINT_WRITES_SQL)
        assert inserts(text_of(("special_writes",))) == inserts(official.UPSERT_CHECKPOINT_WRITES_SQL)
        every = inserts(text_of(tuple(PARTS)))
        assert {table for table, *_ in every} == {"checkpoints", "checkpoint_blobs", "checkpoint_writes"}


def test_postgres_saver_stores_by_those_statements_alone() -> None:
    assert "UPSERT_CHECKPOINT_BLOBS_SQL" in attributes_of_self(AsyncPostgresSaver.aput)
    assert "UPSERT_CHECKPOINTS_SQL" in attributes_of_self(AsyncPostgresSaver.aput)
    assert inspect.getsource(AsyncPostgresSaver.aput).count("await cur.") == 2
    writing = attributes_of_self(AsyncPostgresSaver.aput_writes)
    assert {"UPSERT_CHECKPOINT_WRITES_SQL", "INSERT_CHECKPOINT_WRITES_SQL"} <= writing
    assert inspect.getsource(AsyncPostgresSaver.aput_writes).count("await cur.") == 1


def test_postgres_saver_deletes_a_thread_from_the_tables_that_we_delete_it_from() -> None:
    deletion = re.compile(r"DELETE FROM (\w+) WHERE thread_id = (?:%s|ANY\(\$1::text\[\]\))")
    theirs = deletion.findall(inspect.getsource(AsyncPostgresSaver.adelete_thread))
    assert len(theirs) == 3
    assert sorted(deletion.findall(postgres_sql.DELETE_SQL)) == sorted(theirs)


def test_migrations_of_the_postgres_saver_are_numbered_by_their_place_in_a_table_of_that_name() -> None:
    migrations = AsyncPostgresSaver.MIGRATIONS
    assert len(migrations) >= 10
    assert "CREATE TABLE IF NOT EXISTS checkpoint_migrations" in migrations[0]
    assert "v INTEGER PRIMARY KEY" in migrations[0]
    assert "MIGRATIONS" in attributes_of_self(AsyncPostgresSaver.setup), "one saver may have migrations of its own"
    source = inspect.getsource(AsyncPostgresSaver.setup)
    assert "INSERT INTO checkpoint_migrations (v)" in source
    for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes"):
        assert any(f"CREATE TABLE IF NOT EXISTS {table} " in migration for migration in migrations), table


# LangGraph's memory saver


def memory_saver_with_one_checkpoint() -> tuple[InMemorySaver, str]:
    saver, checkpoint = InMemorySaver(), empty_checkpoint()
    checkpoint["channel_values"], checkpoint["channel_versions"] = {"n": ["x"]}, {"n": "1", "gone": "2"}
    config = saver.put(config_of("t", "ns", "parent"), checkpoint, {"step": 1}, {"n": "1", "gone": "2"})
    saver.put_writes(config, [("n", 2)], "b", "~1")
    saver.put_writes(config, [("n", 1)], "a", "~0")
    return saver, checkpoint["id"]


def test_memory_saver_stores_checkpoints_by_thread_namespace_and_id_with_their_parent() -> None:
    saver, checkpoint_id = memory_saver_with_one_checkpoint()
    checkpoint, metadata, parent = saver.storage["t"]["ns"][checkpoint_id]
    assert saver.serde.loads_typed(checkpoint)["channel_versions"] == {"n": "1", "gone": "2"}
    assert saver.serde.loads_typed(metadata)["step"] == 1
    assert parent == "parent"


def test_memory_saver_stores_a_blob_per_version_and_marks_empty_ones() -> None:
    saver, _ = memory_saver_with_one_checkpoint()
    assert saver.serde.loads_typed(saver.blobs["t", "ns", "n", "1"]) == ["x"]
    assert saver.blobs["t", "ns", "gone", "2"] == ("empty", b"")


def test_memory_saver_gives_writes_in_order_as_task_channel_bytes_and_path() -> None:
    saver, checkpoint_id = memory_saver_with_one_checkpoint()
    assert set(saver.writes) == {("t", "ns", checkpoint_id)}
    found = saver._ordered_writes("t", "ns", checkpoint_id)
    assert [(task, channel, saver.serde.loads_typed(value), path) for task, channel, value, path in found] == [
        ("a", "n", 1, "~0"),
        ("b", "n", 2, "~1"),
    ]
    assert saver._ordered_writes("t", "ns", "other") == []


# LangGraph's other savers and parts


def test_sqlite_saver_has_a_connection_a_lock_and_a_switch_for_its_setup() -> None:
    async def look() -> None:
        async with aiosqlite.connect(":memory:") as connection:
            saver = AsyncSqliteSaver(connection)
            assert saver.conn is connection
            assert isinstance(saver.lock, asyncio.Lock)
            assert saver.is_setup is False
            saver.is_setup = True
            await saver.setup()
            with pytest.raises(aiosqlite.OperationalError, match="no such table"):
                await connection.execute_fetchall("SELECT 1 FROM checkpoints")
            saver.is_setup = False
            await saver.setup()
            await connection.execute_fetchall("SELECT checkpoint_ns FROM checkpoints LIMIT 1")
            await connection.execute_fetchall("SELECT task_path FROM writes LIMIT 1")

    asyncio.run(look())


def inserts_or(function: Callable[..., Any]) -> set[str]:
    """The statements of a method that insert something, without their line breaks."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {plain(text) for text in texts if text.startswith("INSERT OR")}


def plain(statement: str) -> str:
    return " ".join(statement.split())


def test_our_statements_are_those_of_the_sqlite_saver() -> None:
    assert inserts_or(AsyncSqliteSaver.aput) == {plain(sqlite_rows.PUT_SQL)}
    ours = {plain(sqlite_rows.KEEP_FIRST_SQL), plain(sqlite_rows.KEEP_LAST_SQL)}
    assert inserts_or(AsyncSqliteSaver.aput_writes) == ours
    theirs = re.findall(r"DELETE FROM [^\"]*", inspect.getsource(AsyncSqliteSaver.adelete_thread))
    assert theirs == [sqlite_rows.DELETE_CHECKPOINTS_SQL, sqlite_rows.DELETE_WRITES_SQL]


async def test_sqlite_connection_runs_a_function_on_its_own_thread_after_what_was_queued_before() -> None:
    async with aiosqlite.connect(":memory:") as connection:
        assert isinstance(connection._conn, sqlite3.Connection)
        order: list[tuple[str, int]] = []

        def work(name: str) -> str:
            order.append((name, threading.get_ident()))
            return name

        run: Callable[..., Any] = connection._execute
        assert await asyncio.gather(*(run(work, name) for name in "abc")) == ["a", "b", "c"]
        assert [name for name, _ in order] == ["a", "b", "c"]
        assert {thread for _, thread in order}.isdisjoint({threading.get_ident()})
        with pytest.raises(ZeroDivisionError):
            await run(lambda: 1 / 0)

        answers = [asyncio.get_running_loop().create_future() for _ in range(3)]
        for answer in answers[:2]:
            connection._tx.put_nowait((answer, lambda: work("d")))
        connection._tx.put_nowait((answers[2], lambda: 1 / 0))
        assert await asyncio.gather(*answers[:2]) == ["d", "d"]
        with pytest.raises(ZeroDivisionError):
            await answers[2]
        assert {thread for _, thread in order}.isdisjoint({threading.get_ident()})


def test_serializer_takes_bytes_of_its_own_as_a_part_of_others() -> None:
    serializer = JsonPlusSerializer()
    value = {"a": [HumanMessage("Ada", id="1"), _DeltaSnapshot({1, 2})], "b": b"bytes"}
    tag, data = serializer.dumps_typed(value)
    assert (tag, serializer.dumps_typed(b"bytes")) == (MSGPACK, (BYTES, b"bytes"))
    whole = serializer.dumps_typed({"channel_values": {"first": value, "second": b"bytes"}})
    assert serializer.dumps_typed({"channel_values": {"first": Fragment(data), "second": b"bytes"}}) == whole
    assert serializer.pickle_fallback is False


def test_delta_snapshot_is_a_tuple_of_one_value_that_survives_the_serializer() -> None:
    saver = InMemorySaver()
    snapshot = _DeltaSnapshot(["a"])
    found = saver.serde.loads_typed(saver.serde.dumps_typed(snapshot))
    assert isinstance(found, _DeltaSnapshot)
    assert found == snapshot
    assert _DeltaSnapshot._fields == ("value",)


def test_special_writes_have_negative_places() -> None:
    assert WRITES_IDX_MAP == {"__error__": -1, "__scheduled__": -2, "__interrupt__": -3, "__resume__": -4}


def test_checkpoint_ids_grow() -> None:
    ids = [str(uuid6()) for _ in range(100)]
    assert ids == sorted(set(ids))


def test_derived_savers_are_shallow_copies_with_another_serializer() -> None:
    source = inspect.getsource(BaseCheckpointSaver.with_allowlist)
    assert "copy.copy(self)" in source
    assert "clone.serde" in source


# psycopg and its pool


class Kept(logging.Handler):
    """Keeps all records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def pool_records() -> Iterator[list[logging.LogRecord]]:
    kept, logger = Kept(), logging.getLogger("psycopg.pool")
    logger.addHandler(kept)
    try:
        yield kept.records
    finally:
        logger.removeHandler(kept)


async def test_pool_names_its_workers_after_itself_and_gives_a_failed_connection_up_at_once() -> None:
    with pool_records() as records:
        pool = AsyncConnectionPool(NOBODY, min_size=1, open=False, name="ours", reconnect_timeout=0.0)
        await pool.open()
        workers = {task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("ours-")}
        assert {"ours-worker-0", "ours-worker-1", "ours-worker-2"} <= workers
        await eventually(lambda: pool.get_stats().get("pool_size") == 0, 2.0)
        await pool.close(timeout=1.0)
    warnings = [record for record in records if record.levelno == logging.WARNING]
    assert len(warnings) >= 2
    assert all(isinstance(record.args, tuple) and "ours" in record.args for record in warnings)


def test_pool_with_a_reconnect_time_of_zero_tries_once_more_at_once_and_then_not() -> None:
    attempt = AttemptWithBackoff(timeout=0.0)
    assert not attempt.time_to_give_up(100.0)
    attempt.update_delay(100.0)
    assert attempt.delay == 0.0
    assert attempt.time_to_give_up(100.0)


async def test_statistics_of_the_pool_have_the_names_that_we_read() -> None:
    pool = AsyncConnectionPool(NOBODY, min_size=0, max_size=1, open=False)
    assert {"pool_size", "pool_available", "requests_waiting"} <= pool.get_stats().keys()


def test_pool_takes_the_options_that_we_give() -> None:
    options = {"connection_class", "kwargs", "min_size", "max_size", "open", "configure", "name", "timeout"}
    assert options | {"reconnect_timeout"} <= inspect.signature(AsyncConnectionPool.__init__).parameters.keys()
    assert "timeout" in inspect.signature(AsyncConnectionPool.getconn).parameters


async def test_pool_connects_through_the_method_of_its_connection_class_that_we_override() -> None:
    asked: list[str] = []

    class Asked(psycopg.AsyncConnection[Any]):
        @classmethod
        async def connect(cls, *arguments: Any, **parameters: Any) -> Any:
            asked.append(str(arguments))
            raise psycopg.OperationalError("refused")

    pool = AsyncConnectionPool(NOBODY, connection_class=Asked, min_size=1, open=False, reconnect_timeout=0.0)
    await pool.open()
    await eventually(lambda: bool(asked), 2.0)
    await pool.close(timeout=1.0)


def test_connection_has_what_a_cut_needs() -> None:
    for name in ("fileno", "closed", "broken", "info", "pipeline", "transaction", "prepare_threshold"):
        assert hasattr(psycopg.AsyncConnection, name), name
    assert hasattr(psycopg.ConnectionInfo, "backend_pid")


# OpenTelemetry


def test_global_providers_are_where_we_look_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    tracers, meters = trace.NoOpTracerProvider(), metrics.NoOpMeterProvider()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", tracers)
    monkeypatch.setattr(metrics_internal, "_METER_PROVIDER", meters)
    assert trace.get_tracer_provider() is tracers
    assert metrics.get_meter_provider() is meters


def test_what_comes_from_outside_of_all_tasks_is_written_under_the_task_that_is_known_here() -> None:
    assert RUN == NULL_TASK_ID
