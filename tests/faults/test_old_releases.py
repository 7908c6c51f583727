"""What old releases of LangGraph's savers stored is read, gone on with and moved, as it was.

The files are in `tests/data/old_releases`; `tests.support.make_old_releases` made them.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import TASKS

from enhanced_checkpointing import CheckpointerConfig
from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.backends.stored_values import comparable
from enhanced_checkpointing.operations import DeleteThread, Put, PutWrites
from enhanced_checkpointing.threads.migrate import migrate
from tests.support import old_application as old
from tests.support.checkpointer import opened, postgres, saver_of, sqlite
from tests.support.old_application import ENDED, WAITING, Colour, Point, Profile
from tests.support.threads import Saver, backend_of, bare_postgres, bare_sqlite

DATA = Path(__file__).parents[1] / "data" / "old_releases"
RELEASES = ("sqlite-1.0.0", "postgres-2.0.8", "postgres-2.0.21")
PLANNED: dict[str, Any] = {
    "note": None,
    "raw": b"\x00raw",
    "buffer": bytearray(b"buffer"),
    "when": datetime(2024, 8, 1, 12, 30, tzinfo=UTC),
    "profile": Profile(name="Ada", age=36),
    "point": Point(1, 2),
    "colour": Colour.RED,
    "count": 3,
}
SEND = ("langgraph", "constants", "Send")
APPLICATIONS = JsonPlusSerializer(
    allowed_json_modules=[SEND, *((*Profile.__module__.split("."), kind.__name__) for kind in (Profile, Point, Colour))]
)
"""Without, today's LangGraph makes no objects of what its first releases stored as JSON."""
RESULTS = [(1, 1), (2, 2)]

every_release = pytest.mark.parametrize("release", RELEASES)


@pytest.fixture
def where(release: str, database_url: str, tmp_path: Path) -> str:
    """The path or URL of a database as a release left it."""
    if release.startswith("sqlite"):
        path = tmp_path / "old.sqlite"
        shutil.copy(DATA / f"{release}.sqlite", path)
        return str(path)
    with psycopg.connect(database_url, autocommit=True) as session:
        for statement in (DATA / f"{release}.sql").read_text(encoding="utf-8").split(";\n"):
            session.execute(statement.encode())
    return database_url


def config_at(where: str) -> CheckpointerConfig:
    return (postgres if where.startswith("postgres") else sqlite)(where, deadline=10.0, serde=APPLICATIONS)


@asynccontextmanager
async def saver_at(where: str, kind: str) -> AsyncIterator[Saver]:
    """LangGraph's own saver of today, or ours."""
    is_sqlite = not where.startswith("postgres")
    async with AsyncExitStack() as stack:
        if kind == "bare":
            saver = await stack.enter_async_context(bare_sqlite(where) if is_sqlite else bare_postgres(where))
            saver.serde = APPLICATIONS
            yield saver
        else:
            yield saver_of(await stack.enter_async_context(opened(config_at(where))))


async def check_as_it_was(saver: Saver, release: str, *, through_sqlite: bool = False) -> None:
    """Both threads have the values of old, with their types, and go on."""
    graph = old.builder().compile(checkpointer=saver)
    ended, waiting = [(await graph.aget_state(old.config_of(one))).values for one in (ENDED, WAITING)]
    for found in (ended, waiting):
        for name, value in PLANNED.items():
            kept = found[name]
            if name == "buffer" and through_sqlite:
                value = bytes(value)  # a SQLite file tells the two apart in no checkpoint, nor does LangGraph's saver
            if release == "sqlite-1.0.0" and name in ("raw", "buffer", "when"):
                # Of JSON that says "call this method", today's bare saver makes an object no more.
                assert kept is None if name == "when" else kept["args"] == [bytes(value).hex()]
                continue
            assert (type(kept), kept) == (type(value), value), name
        assert [message.content for message in found["messages"]] == ["question", "planned"]
    assert sorted(map(tuple, ended["results"])) == RESULTS
    state = await graph.aget_state(old.config_of(WAITING))
    assert [task.name for task in state.tasks] == ["work", "work"], "the Sends that were pending"
    went_on = await graph.ainvoke(None, old.config_of(WAITING))
    assert sorted(map(tuple, went_on["results"])) == RESULTS


@every_release
@pytest.mark.parametrize("kind", ["bare", "ours"])
async def test_what_an_old_release_stored_is_read_and_gone_on_with(kind: str, where: str, release: str) -> None:
    async with saver_at(where, kind) as saver:
        await check_as_it_was(saver, release)


async def stored_in(backend: Backend, thread_id: str) -> dict[tuple[str, ...], Any]:
    """Everything of a thread: documents, and values by their bytes."""
    found: dict[tuple[str, ...], Any] = {}
    async for chunk in backend.read_thread(thread_id):
        for one in chunk:
            if isinstance(one, Put):
                values = {name: comparable(value, backend.serializer) for name, value in one.values.items()}
                found[one.checkpoint_id,] = one.skeleton, values, dict(one.metadata), one.parent_checkpoint_id
            elif isinstance(one, PutWrites):
                writes = [(channel, comparable(value, backend.serializer)) for channel, value in one.writes]
                found[one.checkpoint_id, one.task_id] = writes
    return found


@every_release
@pytest.mark.parametrize("target", ["sqlite", "postgres"])
async def test_what_an_old_release_stored_is_moved_with_its_bytes_and_back(
    target: str, where: str, release: str, twin_database_url: str, tmp_path: Path
) -> None:
    """Into the other kind, on into a file, and home, where it was deleted meanwhile: there its values have the rows of
    the old release, and it is gone on with as at first, with its pending Sends."""
    between = str(tmp_path / "between.sqlite") if target == "sqlite" else twin_database_url
    on = str(tmp_path / "on.sqlite")
    async with (
        backend_of(config_at(where)) as first,
        backend_of(config_at(between)) as second,
        backend_of(config_at(on)) as third,
    ):
        expected = {thread_id: await stored_in(first, thread_id) for thread_id in (ENDED, WAITING)}
        rows = rows_in(where)
        for start, end in ((first, second), (second, third), (second, first)):
            if end is first:
                for thread_id in expected:
                    await first.apply(DeleteThread(thread_id))
            tally = await migrate(start, end)
            assert tally.complete, tally.problems
            assert {one.value: count for one, count in tally.outcomes.items()} == {"copied": 2}
            for thread_id, content in expected.items():
                assert await stored_in(end, thread_id) == content
    if not release.startswith("sqlite"):
        before, after = rows, rows_in(where)
        if target == "sqlite":  # which tells a bytearray from bytes in no checkpoint
            before["checkpoint_blobs"] = [
                tuple("bytes" if part == "bytearray" else part for part in row) for row in rows["checkpoint_blobs"]
            ]
        assert after["checkpoint_writes"] == before["checkpoint_writes"]
        kept = {row for row in after["checkpoint_blobs"] if row[2] != TASKS}  # as today's release keeps pending Sends
        assert kept <= {*before["checkpoint_blobs"]}
        # What is gone had no value, or is short and stands in the checkpoint, as today's release puts it there.
        gone = [row for row in before["checkpoint_blobs"] if row not in kept]
        assert all(len(blob or b"") < 40 for *_, blob in gone)
    for place in (between, on, where):
        async with saver_at(place, "bare") as saver:
            await check_as_it_was(saver, release, through_sqlite=place == on or target == "sqlite")


def rows_in(where: str) -> dict[str, list[tuple[Any, ...]]]:
    """The values' rows in a PostgreSQL database; none for a file."""
    if not where.startswith("postgres"):
        return {}
    with psycopg.connect(where) as session:
        tables = ("checkpoint_blobs", "checkpoint_writes")
        return {table: sorted(session.execute(f"SELECT * FROM {table}").fetchall(), key=repr) for table in tables}
