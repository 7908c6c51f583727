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

from tests.support import old_application as old
from tests.support.checkpointer import opened, postgres, saver_of, sqlite
from tests.support.old_application import ENDED, WAITING, Colour, Point, Profile
from tests.support.threads import Saver, bare_postgres, bare_sqlite

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
            config = (sqlite if is_sqlite else postgres)(where, deadline=10.0, serde=APPLICATIONS)
            yield saver_of(await stack.enter_async_context(opened(config)))


async def check_as_it_was(saver: Saver, release: str) -> None:
    """Both threads have the values of old, with their types, and go on."""
    graph = old.builder().compile(checkpointer=saver)
    ended, waiting = [(await graph.aget_state(old.config_of(one))).values for one in (ENDED, WAITING)]
    for found in (ended, waiting):
        for name, value in PLANNED.items():
            kept = found[name]
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
