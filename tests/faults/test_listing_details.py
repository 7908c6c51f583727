"""Single things that listings must get right, each in memory, SQLite and PostgreSQL."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.backends.listing import Cursor, HeadQuery
from enhanced_checkpointing.operations import Operation, PutWrites
from enhanced_checkpointing.threads.methods import LEFT_OUT, LISTED_METADATA
from tests.support.backends import BACKENDS, START, checkpoint_id, config_of, opened_backend, put, write
from tests.support.checkpointer import opened

EVERY_BACKEND = pytest.mark.parametrize("name", BACKENDS)


async def listed(backend: Backend, user_id: str | None = None, **fields: Any) -> list[str]:
    return [head.thread_id for head in await backend.heads(HeadQuery(fields.pop("limit", 10), user_id, **fields))]


@EVERY_BACKEND
async def test_thread_whose_newest_checkpoint_names_another_user_is_only_that_users(
    name: str, database_url: str, tmp_path: Path
) -> None:
    async with opened_backend(config_of(name, database_url, tmp_path)) as backend:
        for number in range(5):
            await backend.apply(put("moved", number, metadata={"user_id": "ada"}))
        await backend.apply(put("hers", 5, metadata={"user_id": "ada"}))
        assert await listed(backend, "ada") == ["hers", "moved"]
        await backend.apply(put("moved", 6, metadata={"user_id": "bob"}))
        assert await listed(backend, "ada") == ["hers"]
        assert await listed(backend, "bob") == ["moved"]
        await backend.apply(put("moved", 7))  # by somebody who does not say for whom
        assert await listed(backend, "ada") == ["hers"]
        (moved,) = await backend.heads(HeadQuery(10, "bob"))
        assert (moved.checkpoint_id, moved.step, moved.user_id) == (checkpoint_id(7), 7, "bob")


@EVERY_BACKEND
@pytest.mark.parametrize("by_id", [False, True])
async def test_pages_go_on_behind_a_thread_whose_newest_checkpoint_names_nobody(
    name: str, by_id: bool, database_url: str, tmp_path: Path
) -> None:
    async with opened_backend(config_of(name, database_url, tmp_path)) as backend:
        for number, thread_id in enumerate(["oldest", "continued", "newest"]):
            await backend.apply(put(thread_id, number, metadata={"user_id": "ada"}))
        await backend.apply(put("continued", 9))
        assert await listed(backend, "ada") == ["newest", "continued", "oldest"]
        before = Cursor(checkpoint_id(9), None if by_id else "continued")
        assert await listed(backend, "ada", before=before) == ["oldest"]
        assert await listed(backend, "ada", before=before, limit=1) == ["oldest"]
        assert await listed(backend, "ada", before=Cursor(checkpoint_id(2), None if by_id else "newest")) == [
            "continued",
            "oldest",
        ]


@EVERY_BACKEND
async def test_threads_that_move_ahead_between_two_pages_do_not_come_again(
    name: str, database_url: str, tmp_path: Path
) -> None:
    async with opened_backend(config_of(name, database_url, tmp_path)) as backend:
        for number in range(6):
            await backend.apply(put(f"thread-{number}", number, metadata={"user_id": "ada"}))
        first = await backend.heads(HeadQuery(3, "ada"))
        await backend.apply(put("thread-1", 9, metadata={"user_id": "ada"}))
        end = Cursor(first[-1].checkpoint_id, first[-1].thread_id)
        assert [head.thread_id for head in first] == ["thread-5", "thread-4", "thread-3"]
        assert await listed(backend, "ada", before=end) == ["thread-2", "thread-0"]


@EVERY_BACKEND
async def test_what_no_column_can_hold_is_found_nowhere_and_is_no_error(
    name: str, database_url: str, tmp_path: Path
) -> None:
    async with opened_backend(config_of(name, database_url, tmp_path)) as backend:
        await backend.apply(put("thread", 1, metadata={"user_id": "ada"}))
        assert await backend.describe(["a\0b", "\ud800", "thread", "missing", "thread"]) == await backend.describe(
            ["thread"]
        )
        assert await listed(backend, "a\0da") == []
        assert await listed(backend, "\ud800") == []
        assert await backend.describe([]) == []
        assert await backend.thread_ids(None, 0) == []


@EVERY_BACKEND
async def test_ids_that_tell_no_time_leave_it_to_the_checkpoint(name: str, database_url: str, tmp_path: Path) -> None:
    operation = put("thread", 1)
    own = replace(operation, checkpoint_id="first", skeleton={**operation.skeleton, "id": "first"})
    async with opened_backend(config_of(name, database_url, tmp_path)) as backend:
        await backend.apply(own)
        await backend.apply(replace(own, thread_id="of a subgraph", checkpoint_ns="child:1"))
        await backend.apply(put("timed", 90))
        times = {head.thread_id: head.updated_at for head in await backend.heads(HeadQuery(10))}
    start = datetime.fromtimestamp(START, UTC)
    assert times == {"thread": start, "of a subgraph": start, "timed": start + timedelta(seconds=90)}


@EVERY_BACKEND
async def test_checkpoints_and_bytes_of_all_namespaces_count(name: str, database_url: str, tmp_path: Path) -> None:
    async with opened_backend(config_of(name, database_url, tmp_path)) as backend:
        value, sizes = b"\xc4\xc8" + bytes(range(200)), []
        operations: list[Operation] = [
            put("thread", 1, values={"log": value}),
            put("thread", 2, namespace="child:1", values={"log": value}),
            write("thread", 2, "log", value, namespace="child:1"),
        ]
        for number, operation in enumerate(operations):
            await backend.apply(operation)
            (head,) = await backend.describe(["thread"])
            assert head.checkpoints == min(number + 1, 2)
            sizes.append(head.size)
            assert not isinstance(operation, PutWrites) or sizes[-1] - sizes[-2] >= 200
        assert 200 < sizes[0] < sizes[1] < sizes[2] < 5000


@EVERY_BACKEND
async def test_thread_ids_come_page_by_page_each_once(name: str, database_url: str, tmp_path: Path) -> None:
    async with opened_backend(config_of(name, database_url, tmp_path)) as backend:
        for number in range(30):
            await backend.apply(put(f"thread-{number % 7}", number, namespace="child:1" * (number % 2)))
        found: list[str] = []
        while page := await backend.thread_ids(found[-1] if found else None, 3):
            assert len(page) <= 3
            found += page
        assert sorted(found) == [f"thread-{number}" for number in range(7)]
        assert len(found) == 7


async def test_sqlite_lists_threads_without_metadata_and_leaves_out_those_whose_metadata_is_no_json(
    database_url: str, tmp_path: Path
) -> None:
    odd: list[Any] = [None, b"", b"{", b'{"user_id": "ada"', b'["user_id"]', b"\xff\xfe", '{"user_id": "ada"}', 7]
    async with opened_backend(config_of("sqlite", database_url, tmp_path)) as backend:
        await backend.apply(put("sound", 90, metadata={"user_id": "ada"}))
        with closing(sqlite3.connect(tmp_path / "checkpoints.sqlite")) as connection, connection:
            assert connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL").fetchone()
            for number, metadata in enumerate(odd):
                connection.execute(
                    "INSERT INTO checkpoints VALUES (?, '', ?, NULL, 'msgpack', x'80', ?)",
                    (f"odd-{number}", checkpoint_id(number), metadata),
                )
        heads = {head.thread_id: head.metadata for head in await backend.heads(HeadQuery(20))}
        assert heads == {"sound": heads["sound"], "odd-0": {}, "odd-6": {"user_id": "ada"}}
        assert {*backend.unreadable} == {f"odd-{number}" for number in (1, 2, 3, 4, 5, 7)}
        assert await listed(backend, "ada") == ["sound", "odd-6"]
        assert backend.notes() == {}


@pytest.mark.parametrize("name", ["sqlite", "postgres"])
async def test_no_user_id_is_too_long_or_too_odd_to_be_stored_and_found(
    name: str, database_url: str, tmp_path: Path
) -> None:
    users = ["x" * 100_000, "x" * 99_999 + "y", "a'\"b\\\n", "%s", "漢" * 2000, "9" * 30]
    async with opened_backend(config_of(name, database_url, tmp_path)) as backend:
        for number, user in enumerate(users):
            await backend.apply(put(f"thread-{number}", number, metadata={"user_id": user}))
        for number, user in enumerate(users):
            assert await listed(backend, user) == [f"thread-{number}"]
        assert await backend.has_thread_index()


@EVERY_BACKEND
async def test_metadata_of_one_thread_is_not_the_size_of_a_listing_and_what_is_left_out_is_said(
    name: str, database_url: str, tmp_path: Path
) -> None:
    config = config_of(name, database_url, tmp_path)
    large = {"user_id": "ada", "page": "x" * LISTED_METADATA, "many": [*range(10_000)], "deep": {"a": {"b": "c" * 99}}}
    async with opened(config) as manager:
        for thread_id, metadata in (("large", large), ("small", {"user_id": "ada", "note": "short"})):
            await manager.components.backend.apply(put(thread_id, 1, metadata=metadata))
        found = {one["thread_id"]: one["metadata"] for one in await manager.list_threads(user_id="ada")}
        assert found["small"]["note"] == "short"
        assert LEFT_OUT not in found["small"]
        assert len(json.dumps(found["large"])) < LISTED_METADATA + 200
        assert (found["large"]["user_id"], found["large"]["deep"]) == ("ada", large["deep"])
        assert "page" not in found["large"]
        assert found["large"][LEFT_OUT].startswith("2 of ")
        assert [one["thread_id"] for one in await manager.list_threads(page="x" * LISTED_METADATA)] == ["large"]
        whole = await manager.get_thread("large")
        assert whole is not None
        assert {key: whole["metadata"][key] for key in large} == large
