"""What the PostgreSQL backend commits as one step: all of it or nothing, and only upon the heads it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from enhanced_checkpointing.backends.base import Heads
from enhanced_checkpointing.backends.postgres.backend import PostgresBackend
from enhanced_checkpointing.operations import DeleteThread, Operation
from enhanced_checkpointing.serialization import SharingSerializer
from tests.support.author import Author
from tests.support.checkpointer import postgres
from tests.support.dump import dump_postgres

NEVER = None, "00000000-0000-6000-8000-000000000000"
"""No checkpoint, and one that nobody has made."""


@asynccontextmanager
async def backend_of(url: str, **fields: Any) -> AsyncIterator[PostgresBackend]:
    backend = PostgresBackend(postgres(url, **fields), SharingSerializer())
    await backend.open()
    await backend.setup()
    try:
        yield backend
    finally:
        await backend.close()


def rows(url: str) -> int:
    return sum(len(table) for table in dump_postgres(url).values())


PREPARED = pytest.mark.parametrize("fields", [{}, {"postgres_prepare_threshold": None}], ids=["prepared", "unprepared"])


@PREPARED
async def test_writes_upon_the_expected_heads_are_made_and_upon_others_are_not(
    fields: dict[str, Any], database_url: str
) -> None:
    outer, inner = Author("it's", ""), Author("it's", 'inner:"1"')
    first, second, third, fourth = outer.put({"n": 1}), inner.put({"n": 2}), outer.put({"n": 3}), inner.put({"n": 4})
    fitting = {"": frozenset({first.checkpoint_id, *NEVER}), inner.checkpoint_ns: frozenset({second.checkpoint_id})}
    moved: list[Heads] = [
        fitting | {"": frozenset(NEVER)},
        fitting | {inner.checkpoint_ns: frozenset(NEVER)},
        fitting | {"empty": frozenset({first.checkpoint_id})},
        {"": frozenset({second.checkpoint_id})},
    ]
    async with backend_of(database_url, **fields) as backend:
        assert await backend.apply_all([first, second], {"": {None}, inner.checkpoint_ns: {None}})
        before = rows(database_url)
        for heads in moved:
            assert not await backend.apply_all([third, fourth], heads)
            assert not await backend.apply_all([DeleteThread("it's")], heads)
            assert rows(database_url) == before
        assert await backend.apply_all([third, fourth], fitting | {"empty": frozenset({None})})
        assert rows(database_url) == 2 * before
        assert await backend.apply_all([DeleteThread("it's")], {"": {third.checkpoint_id}})
        assert rows(database_url) == 0


@PREPARED
async def test_of_two_who_write_upon_the_same_head_at_once_one_is_told_that_it_moved(
    fields: dict[str, Any], database_url: str
) -> None:
    async with backend_of(database_url, **fields) as backend, backend_of(database_url) as another:
        for number in range(20):
            ours, theirs = (Author(f"thread-{number}", "").put({"by": name}) for name in ("us", "them"))
            written = await asyncio.gather(
                backend.apply_all([ours], {"": {None}}), another.apply_all([theirs], {"": {None}})
            )
            assert sorted(written) == [False, True]
    assert len(dump_postgres(database_url)["checkpoints"]) == 20


async def server_process(backend: PostgresBackend) -> int:
    """Which process of the server the one connection of a pool has."""
    async with backend._connections.borrow() as connection:
        return connection.info.backend_pid


@pytest.mark.parametrize("heads", [{}, {"": frozenset({None})}])
@pytest.mark.usefixtures("form_of_statements")
async def test_step_of_which_one_statement_fails_leaves_nothing_and_the_connection_goes_on(
    heads: Heads, database_url: str
) -> None:
    async with backend_of(database_url, pool_max_size=1) as backend:
        before = await server_process(backend)
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("ALTER TABLE checkpoint_blobs ADD CONSTRAINT refused CHECK (channel <> 'refused')")
        author = Author("thread", "")
        step: list[Operation] = [author.put({"taken": [1]}), DeleteThread("another"), author.put({"refused": [1]})]
        for _ in range(2):
            with pytest.raises(psycopg.errors.CheckViolation):
                await backend.apply_all(step, heads)
            assert rows(database_url) == 0
        assert await backend.apply_all(step[:2], heads)
        assert rows(database_url) == 2
        assert await server_process(backend) == before, "a failure must not cost a connection"


@pytest.mark.parametrize("heads", [{}, {"": frozenset({None})}])
async def test_statement_that_somebody_dropped_is_prepared_anew(heads: Heads, database_url: str) -> None:
    async with backend_of(database_url, pool_max_size=1) as backend:
        for number in range(3):
            author = Author(f"thread-{number}", "")
            assert await backend.apply_all([author.put({"n": [number]}), DeleteThread("another")], heads)
            async with backend._connections.borrow() as connection:
                await connection.execute("DEALLOCATE ALL")
    assert rows(database_url) == 6


async def test_large_step_is_sent_while_the_server_answers(database_url: str) -> None:
    """Neither side may wait for the other to read."""
    async with backend_of(database_url, deadline=30.0) as backend:
        author = Author("thread", "")
        step: list[Operation] = []
        for number in range(4):
            step += [author.put({"large": bytes([number]) * 8_000_000}), DeleteThread(f"another-{number}")]
        assert await backend.apply_all(step, {"": {None}})
    assert len(dump_postgres(database_url)["checkpoints"]) == 4


@pytest.mark.usefixtures("form_of_statements")
async def test_two_statements_of_one_text_in_a_step_are_prepared_once(database_url: str) -> None:
    """In the order of their ids: a put, a deletion, a put."""
    async with backend_of(database_url, pool_max_size=1) as backend:
        for _ in range(2):
            step: list[Operation] = [Author("a", "").put({"n": [1]}), DeleteThread("b")]
            step.append(Author("c", "").put({"n": [1]}))
            await backend.apply_batch(step)
    assert [row["thread_id"] for row in dump_postgres(database_url)["checkpoints"]] == ["a", "a", "c", "c"]


@pytest.mark.usefixtures("form_of_statements")
async def test_put_that_is_refused_is_refused_although_another_one_with_its_id_follows(database_url: str) -> None:
    async with backend_of(database_url) as backend:
        author = Author("thread", "")
        parent = author.put({"n": 0})
        good = author.put({"n": 1})
        bad = replace(good, parent_checkpoint_id=None, metadata={**good.metadata, "text": "\0"})  # type: ignore[typeddict-unknown-key]
        with pytest.raises(psycopg.errors.UntranslatableCharacter):
            await backend.apply_batch([parent, bad, good])
        assert rows(database_url) == 0
        await backend.apply_batch([parent, good, replace(good, parent_checkpoint_id=None)])
    stored = dump_postgres(database_url)["checkpoints"]
    assert [row["parent_checkpoint_id"] for row in stored] == [None, parent.checkpoint_id], "that of the first stays"
