"""What becomes of threads that the target has already, that change meanwhile, or that one side cannot take."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.serde.types import TASKS
from langgraph.types import Send

from enhanced_checkpointing import create_memory_checkpointer
from enhanced_checkpointing.backends import reading
from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.backends.memory.backend import MemoryBackend
from enhanced_checkpointing.backends.postgres.saver import CHECKPOINTS
from enhanced_checkpointing.backends.sqlite import saver as sqlite_reading
from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres
from enhanced_checkpointing.operations import DeleteThread, Operation, Put, PutWrites
from enhanced_checkpointing.serialization import SharingSerializer
from enhanced_checkpointing.threads import migrate as migrate_module
from enhanced_checkpointing.threads.migrate import MigrationStopped, Orders, Tally, count_threads, migrate
from tests.support.author import Author
from tests.support.checkpointer import postgres, sqlite
from tests.support.cipher import encrypting
from tests.support.pgbouncer import PgBouncer
from tests.support.threads import Step, backend_of, bare_postgres, bare_sqlite, shown, write_thread

OVERWRITE = Orders(overwrite=True)


@asynccontextmanager
async def pair(database_url: str, folder: Path) -> AsyncIterator[tuple[Backend, Backend]]:
    """SQLite to move from, PostgreSQL to move to."""
    config = sqlite(folder / "source.sqlite", deadline=10.0)
    async with backend_of(config) as source, backend_of(postgres(database_url, deadline=10.0)) as target:
        yield source, target


async def apply(backend: Backend, *operations: Operation) -> None:
    await backend.apply_all(operations, {})


async def read(backend: Backend, thread_id: str = "thread") -> list[Operation]:
    return [operation async for chunk in backend.read_thread(thread_id) for operation in chunk]


def outcomes(tally: Tally) -> dict[str, int]:
    return {outcome.value: count for outcome, count in tally.outcomes.items()}


async def test_moved_thread_is_left_alone_and_one_that_went_on_is_completed(database_url: str, tmp_path: Path) -> None:
    author = Author()
    async with pair(database_url, tmp_path) as (source, target):
        await apply(source, author.put({"log": [1]}), author.put({"log": [2]}))
        assert outcomes(await migrate(source, target)) == {"copied": 1}
        assert outcomes(await migrate(source, target)) == {"equal": 1}
        await apply(source, author.writes(("__interrupt__", "why?"), ("__resume__", ["so"])))
        assert outcomes(await migrate(source, target)) == {"completed": 1}
        await apply(source, author.writes(("__interrupt__", "really?"), ("__resume__", ["so", "yes"])))
        tally = await migrate(source, target)
        assert outcomes(tally) == {"completed": 1}, "a write that was replaced is seen although none was added"
        assert (tally.count.checkpoints, tally.count.writes) == (2, 2)
        await apply(source, author.put({"log": [3]}))
        assert outcomes(await migrate(source, target)) == {"completed": 1}
        assert await read(source) == await read(target)


@pytest.mark.parametrize("ahead", ["checkpoint", "write"])
async def test_thread_that_went_on_in_the_target_is_refused_and_replaced_only_when_told(
    ahead: str, database_url: str, tmp_path: Path
) -> None:
    author = Author()
    async with pair(database_url, tmp_path) as (source, target):
        await apply(source, author.put({"log": [1]}), Author("other").put({}))
        await migrate(source, target)
        newer = author.put({"log": [2]}) if ahead == "checkpoint" else author.writes(("__resume__", "yes"))
        await apply(target, newer)
        tally = await migrate(source, target)
        assert outcomes(tally) == {"refused": 1, "equal": 1}
        assert not tally.complete
        (problem,) = tally.problems
        assert problem.thread_id == "thread"
        assert "the target has gone on by itself" in problem.reasons[-1]
        assert newer.checkpoint_id in " ".join(problem.reasons)
        assert len(await read(target)) == 2, "nothing was changed"
        assert outcomes(await migrate(source, target, OVERWRITE)) == {"replaced": 1, "equal": 1}
        assert await read(source) == await read(target)


async def test_thread_with_other_contents_under_the_same_ids_is_told_and_replaced_only_when_told(
    database_url: str, tmp_path: Path
) -> None:
    author = Author()
    async with pair(database_url, tmp_path) as (source, target):
        put, writes = author.put({"log": [1]}), author.writes(("log", 1))
        await apply(source, put, writes)
        await apply(target, put, author.writes(("log", 2)))
        tally = await migrate(source, target)
        assert outcomes(tally) == {"refused": 1}
        assert "may have gone on by itself" in tally.problems[0].reasons[-1]
        assert "unless it is told to overwrite" in tally.problems[0].reasons[-1]
        assert outcomes(await migrate(source, target, OVERWRITE)) == {"replaced": 1}
        assert await read(source) == await read(target)


async def test_half_of_a_thread_and_writes_without_their_checkpoint_are_completed(
    database_url: str, tmp_path: Path
) -> None:
    """What a killed migration, or a killed application, leaves."""
    author, inner = Author(), Author(checkpoint_ns="sub|graph")
    puts = [author.put({"log": [number]}) for number in range(3)]
    last = author.writes(("log", 3), ("branch", None), task_path="~pull, x")
    async with pair(database_url, tmp_path) as (source, target):
        await apply(source, *puts, last, inner.put({}))
        await apply(target, puts[0], last)
        assert outcomes(await migrate(source, target)) == {"completed": 1}
        found = await read(target)
        assert found == await read(source)
        assert found[-2] == last


async def test_writes_whose_checkpoint_is_not_there_are_moved_too(database_url: str, tmp_path: Path) -> None:
    author = Author()
    put = author.put({"log": [1]})
    author.put({"log": [2]})
    alone = author.writes(("log", 3), task_path="~pull, x")
    async with pair(database_url, tmp_path) as (source, target):
        await apply(source, put, alone)
        assert outcomes(await migrate(source, target)) == {"copied": 1}
        assert (await read(target))[-1] == alone
        back = MemoryBackend(create_memory_checkpointer(), SharingSerializer())
        assert outcomes(await migrate(target, back)) == {"copied": 1}
        assert (await read(back))[-1] == alone


async def test_rehearsal_and_comparison_change_nothing(database_url: str, tmp_path: Path) -> None:
    author = Author()
    async with pair(database_url, tmp_path) as (source, target):
        await apply(source, author.put({"log": [1]}))
        assert outcomes(await migrate(source, target, Orders(rehearse=True))) == {"copied": 1}
        compared = await migrate(source, target, Orders(compare_only=True))
        assert outcomes(compared) == {"different": 1}
        assert compared.problems[0].reasons[0] == (
            "the source has 1 checkpoint and 0 writes, the target 0 checkpoints and 0 writes"
        )
        assert await count_threads(target) == 0
        await migrate(source, target)
        await apply(target, author.put({"log": [2]}))
        before = await read(target)
        assert outcomes(await migrate(source, target, Orders(rehearse=True, overwrite=True))) == {"replaced": 1}
        assert outcomes(await migrate(source, target, Orders(rehearse=True))) == {"refused": 1}
        assert await read(target) == before


async def test_thread_that_the_target_does_not_take_is_named_and_all_others_go_on(
    database_url: str, tmp_path: Path
) -> None:
    async with pair(database_url, tmp_path) as (source, target):
        for thread_id in ("first", "nul\0", "last"):
            await apply(source, Author(thread_id).put({"log": [1]}))
        tally = await migrate(source, target)
        assert outcomes(tally) == {"copied": 2, "failed": 1}
        (problem,) = tally.problems
        assert problem.thread_id == "nul\0"
        assert "the target fails on it" in problem.reasons[0]
        assert "0x00" in problem.reasons[0]


async def test_thread_that_is_damaged_in_the_source_is_named_and_all_others_go_on(
    database_url: str, tmp_path: Path
) -> None:
    async with pair(database_url, tmp_path) as (source, target):
        for thread_id in ("first", "second"):
            await apply(source, Author(thread_id).put({"log": [1]}))
        async with bare_sqlite(tmp_path / "source.sqlite") as saver:
            await saver.conn.execute(  # type: ignore[attr-defined]
                "UPDATE checkpoints SET checkpoint = substr(checkpoint, 1, 20) WHERE thread_id = 'first'"
            )
            await saver.conn.commit()  # type: ignore[attr-defined]
        tally = await migrate(source, target)
        assert outcomes(tally) == {"copied": 1, "failed": 1}
        assert "the source fails on it" in tally.problems[0].reasons[0]


async def test_two_branches_with_one_version_which_postgresql_cannot_hold_are_told(
    database_url: str, tmp_path: Path
) -> None:
    """Whole numbers as versions, as old savers made them, are the same on both sides of a fork."""
    async with pair(database_url, tmp_path) as (source, target):
        history = Author()
        root = history.put({"log": [0]})
        for value in (1, 2):
            history.head, history._step = root.checkpoint_id, 1
            await apply(source, history.put({"log": [value]}))
        await apply(source, root)
        tally = await migrate(source, target)
        assert outcomes(tally) == {"different": 1}


async def test_metadata_keeps_the_writes_that_old_versions_put_there(database_url: str, tmp_path: Path) -> None:
    async with pair(database_url, tmp_path) as (source, target), bare_sqlite(tmp_path / "source.sqlite") as saver:
        await write_thread(saver, "thread", {"": [Step({"log": [1]}, {"writes": {"node": {"log": [1]}}})]})
        assert (await migrate(source, target)).complete
        async with bare_postgres(database_url) as other:
            assert await shown(other, "thread") == await shown(saver, "thread")


async def test_sends_of_an_old_format_which_postgresql_rebuilds_are_kept_elsewhere(
    database_url: str, tmp_path: Path
) -> None:
    async with pair(database_url, tmp_path) as (back, source), bare_postgres(database_url) as saver:
        sends = [(TASKS, Send("node", {"item": number})) for number in range(2)]
        await write_thread(saver, "thread", {"": [Step({"log": [1]}, calls=[("a", "", sends)]), Step({"log": [2]})]})
        async with await psycopg.AsyncConnection.connect(database_url) as connection:
            await connection.execute("UPDATE checkpoints SET checkpoint = jsonb_set(checkpoint, '{v}', '3')")
        assert (await migrate(source, back)).complete
        async with bare_sqlite(tmp_path / "source.sqlite") as other:
            seen = await shown(other, "thread")
            assert seen == await shown(saver, "thread")
            assert TASKS in seen[1]["values"]


@pytest.mark.parametrize("sealed_first", [True, False])
async def test_sealed_values_stay_sealed_and_open_with_the_key(
    sealed_first: bool, database_url: str, tmp_path: Path
) -> None:
    serializer = encrypting(b"the key")
    config, url = sqlite(tmp_path / "source.sqlite"), postgres(database_url, deadline=10.0)
    values = {"log": ["secret"], "text": "secret", "none": None, "raw": b"secret"}
    async with backend_of(config, serializer) as one, backend_of(url, serializer) as other:
        source, target = (one, other) if sealed_first else (other, one)
        author = Author(serializer=serializer)
        await apply(source, author.put(values), author.writes(("log", "secret")))
        for _ in range(2):
            tally = await migrate(source, target)
            assert tally.complete, tally.problems
        found, _ = await target.get(author.config())
        assert found is not None
        assert found.checkpoint["channel_values"] == values
        assert found.pending_writes == [("task", "log", "secret")]
        put, writes = await read(target)
        assert isinstance(put, Put)
        assert isinstance(writes, PutWrites)
        assert all(
            b"secret" not in getattr(value, "data", b"") for value in (*put.values.values(), writes.writes[0][1])
        )


class Borrowed(MemoryBackend):
    """A third-party backend, which has nothing but its saver."""

    name = "borrowed"
    reads_everything = False

    def read_thread(self, thread_id: str) -> Any:
        return Backend.read_thread(self, thread_id)


async def test_third_party_backend_is_a_source_and_a_target_with_nothing_but_its_saver(
    database_url: str, tmp_path: Path
) -> None:
    author, inner = Author(), Author(checkpoint_ns="sub")
    async with pair(database_url, tmp_path) as (source, target):
        await apply(source, inner.put({"a": 1}), inner.writes(("x", 1), task_path="~pull, z"))
        for number in range(3):
            await apply(source, author.put({"log": [number], "odd": 1e20, "none": None}))
            for task_id, task_path in (("a", "~pull, z"), ("b", "~pull, a")):
                await apply(source, author.writes(("log", task_id), ("x", 1), task_id=task_id, task_path=task_path))
        borrowed = Borrowed(create_memory_checkpointer(), SharingSerializer())
        for way in ((source, borrowed), (borrowed, target)):
            for expected in ("copied", "equal"):
                tally = await migrate(*way)
                assert outcomes(tally) == {expected: 1}, tally.problems
        async with bare_sqlite(tmp_path / "source.sqlite") as one, bare_postgres(database_url) as other:
            assert await shown(other, "thread") == await shown(one, "thread")


async def test_every_thread_is_moved_whatever_the_concurrency(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate_module, "PAGE", 7)
    told: list[str] = []
    async with pair(database_url, tmp_path) as (source, target):
        for number in range(30):
            await apply(source, Author(f"thread {number}").put({"log": [number]}))
        assert await count_threads(source) == 30
        tally = await migrate(source, target, concurrency=5, tell=lambda report: told.append(report.thread_id))
        assert outcomes(tally) == {"copied": 30}
        assert sorted(told) == sorted(f"thread {number}" for number in range(30))
        assert await count_threads(target) == 30


def _named(operation: Operation) -> tuple[str, str]:
    assert not isinstance(operation, DeleteThread)
    return operation.name, operation.checkpoint_id


@pytest.mark.parametrize("size", [1, 3000])
async def test_each_operation_is_read_once_whatever_the_size_of_a_page(
    size: int, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    author, inner = Author(), Author(checkpoint_ns="sub|graph")
    given: list[Operation] = []
    for number in range(5):
        given += [author.put({"log": ["x" * 1000, number]}), author.writes(("log", number))]
    given += [inner.put({"log": [number]}) for number in range(5)]
    memory = MemoryBackend(create_memory_checkpointer(), SharingSerializer())
    async with pair(database_url, tmp_path) as (one, other):
        for backend in (one, other, memory):
            await apply(backend, *given)
            with monkeypatch.context() as patch:
                patch.setattr(sqlite_reading, "CHUNK_BYTES", size)
                patch.setattr(reading, "CHUNK_BYTES", size)
                chunks = [chunk async for chunk in backend.read_thread("thread")]
            assert len(chunks) > 3
            found = [operation for chunk in chunks for operation in chunk]
            assert [_named(operation) for operation in found] == [_named(operation) for operation in given]


async def test_reading_that_is_given_up_halfway_costs_one_connection_at_most(database_url: str) -> None:
    async with backend_of(postgres(database_url, deadline=10.0, pool_max_size=1)) as backend:
        author = Author()
        for number in range(8):
            await apply(backend, author.put({"log": ["x" * 1_000_000, number]}))
        for _ in range(3):
            chunks = backend.read_thread("thread")
            assert await anext(chunks)
            await chunks.aclose()
            assert len(await read(backend)) == 8
            assert backend.gauges()["borrowed"] == 0


@pytest.mark.parametrize("postgres_schema", [None, "agents"])
async def test_threads_are_moved_through_a_transaction_pooler(
    postgres_schema: str | None, database_url: str, tmp_path: Path
) -> None:
    with PgBouncer(database_url) as pooler:
        config = postgres(pooler.url, postgres_schema=postgres_schema, deadline=10.0)
        source_config, back_config = sqlite(tmp_path / "source.sqlite"), sqlite(tmp_path / "back.sqlite")
        async with (
            backend_of(source_config) as source,
            backend_of(config) as target,
            backend_of(back_config) as back,
        ):
            for number in range(10):
                author = Author(f"thread-{number}")
                await apply(source, author.put({"log": [number]}), author.writes(("log", 1)), author.put({"log": []}))
            assert outcomes(await migrate(source, target)) == {"copied": 10}
            assert outcomes(await migrate(target, back)) == {"copied": 10}
            assert await read(back, "thread-7") == await read(source, "thread-7")


async def test_connection_that_was_read_from_serves_everything_else_afterwards(database_url: str) -> None:
    """Rows that come one at a time are a state of a connection, which must end with them."""
    async with backend_of(postgres(database_url, deadline=10.0, pool_max_size=1)) as backend:
        author = Author()
        puts = [author.put({"log": [number]}) for number in range(3)]
        await apply(backend, puts[0])
        assert len(await read(backend)) == 1
        assert await backend.thread_ids(None, 10) == ["thread"]
        assert len(await read(backend)) == 1
        assert await backend.apply_all([puts[1]], {"": [puts[0].checkpoint_id]})
        assert await read(backend, "nobody") == []
        assert not await backend.apply_all([puts[2]], {"": [puts[0].checkpoint_id]})
        async with backend._connections.borrow() as connection:  # type: ignore[attr-defined]
            await connection.execute("ALTER TABLE checkpoint_writes RENAME TO hidden")
        with pytest.raises(psycopg.errors.UndefinedTable):
            await read(backend)
        assert await backend.thread_ids(None, 10) == ["thread"]


async def test_dropped_statement_is_prepared_again(database_url: str) -> None:
    async with backend_of(postgres(database_url, deadline=10.0, pool_max_size=1)) as backend:
        await apply(backend, Author().put({"log": [1]}))
        assert len(await read(backend)) == 1
        async with backend._connections.borrow() as connection:  # type: ignore[attr-defined]
            await connection.execute("DEALLOCATE ALL", prepare=False)
        assert len(await read(backend)) == 1


async def test_thread_is_read_as_it_was_at_one_moment_although_it_changes(private_postgres: LocalPostgres) -> None:
    """Checkpoints that come while a thread is read are not seen half."""
    async with backend_of(postgres(private_postgres.url(), deadline=10.0)) as backend:
        author = Author()
        await apply(backend, *(author.put({"log": ["x" * 100_000, number]}) for number in range(60)))
        chunks = backend.read_thread("thread")
        found = [*await anext(chunks)]
        await apply(backend, author.put({"log": ["new"]}))
        found += [operation async for chunk in chunks for operation in chunk]
        assert len(found) == 60


async def test_rows_are_made_when_they_are_sent(database_url: str) -> None:
    async with backend_of(postgres(database_url, deadline=10.0)) as backend:
        author = Author()
        await apply(backend, *(author.put({"log": [number]}) for number in range(50)))
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        for preparation in ("SELECT 1", "ANALYZE"):
            await connection.execute(preparation)
            text = CHECKPOINTS.replace("$1", "%s")
            rows = await (await connection.execute(f"EXPLAIN {text}", ["thread"])).fetchall()
            assert str(rows[0][0]).startswith("Subquery Scan"), "a sort here would hold the whole thread"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate_module, "LONGEST_PAUSE", 0.05)


@pytest.mark.usefixtures("impatient")
async def test_target_that_is_gone_for_good_stops_the_migration_and_the_next_one_goes_on(
    private_postgres: LocalPostgres, tmp_path: Path
) -> None:
    async with pair(private_postgres.url(), tmp_path) as (source, target):
        for number in range(20):
            await apply(source, Author(f"thread-{number:02}").put({"log": [number]}))

        def kill_halfway(_: Any) -> None:
            if len(told) == 9:
                private_postgres.kill()
            told.append("")

        told: list[str] = []
        with pytest.raises(MigrationStopped, match=r"The target cannot be used: .*goes on where it was"):
            await migrate(source, target, concurrency=1, tell=kill_halfway)
        await asyncio.to_thread(private_postgres.start)
        await target.renew()
        tally = await migrate(source, target)
        assert outcomes(tally) == {"equal": 10, "copied": 10}


async def test_target_that_restarts_is_waited_for(private_postgres: LocalPostgres, tmp_path: Path) -> None:
    async with pair(private_postgres.url(), tmp_path) as (source, target):
        for number in range(20):
            await apply(source, Author(f"thread-{number:02}").put({"log": [number]}))
        restarts: list[asyncio.Task[None]] = []

        def restart_halfway(_: Any) -> None:
            if not restarts:
                private_postgres.kill()
                restarts.append(asyncio.get_running_loop().create_task(asyncio.to_thread(private_postgres.start)))

        tally = await migrate(source, target, concurrency=2, tell=restart_halfway)
        await restarts[0]
        assert tally.complete
        assert tally.threads == 20
        assert await count_threads(target) == 20


@pytest.mark.usefixtures("impatient")
async def test_source_without_tables_stops_the_migration_and_says_so(database_url: str, tmp_path: Path) -> None:
    async with pair(database_url, tmp_path) as (target, source):
        async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
            await connection.execute("DROP TABLE checkpoints")
        with pytest.raises(MigrationStopped, match="The source cannot be used: UndefinedTable"):
            await migrate(source, target)
