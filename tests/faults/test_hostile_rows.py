"""Rows that nobody can read: that thread's trouble, told, and no other thread's."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel

from enhanced_checkpointing import (
    CheckpointCorruptionError,
    CheckpointerConfig,
    EnhancedCheckpointerManager,
    create_memory_checkpointer,
)
from enhanced_checkpointing.backends.listing import DEEPEST, load_metadata
from enhanced_checkpointing.backends.sqlite.backend import SqliteBackend
from tests.support.checkpointer import eventually, opened, postgres, recovered, saver_of, sqlite
from tests.support.checkpoints import Thread
from tests.support.fuzz import examples
from tests.support.terminal import Ended, command

DIGITS, DEEP = "9" * 5_000, 3_000
HOSTILE = {
    "array": "[]",
    "text": '"user_id"',
    "null": "null",
    "many digits": f'{{"step": {DIGITS}}}',
    "many digits of a user": f'{{"user_id": {DIGITS}}}',
    "deep": f'{{"a": {"[" * DEEP}{"]" * DEEP}}}',
    "deep objects": '{"a": ' * DEEP + "1" + "}" * DEEP,
}
HEALTHY = ("sound-1", "sound-2", "sound-3")


def config_of(name: str, database_url: str, tmp_path: Path, **fields: Any) -> CheckpointerConfig:
    fields = {"journal_dir": tmp_path / "journal", "probe_interval": 0.3, "retention_active_days": 0, **fields}
    return sqlite(tmp_path / "primary.sqlite", **fields) if name == "sqlite" else postgres(database_url, **fields)


def make_hostile(config: CheckpointerConfig, rows: dict[str, str]) -> None:
    """Write these texts as metadata, past every library."""
    pairs = [(text, thread_id) for thread_id, text in rows.items()]
    if config.backend_name == "sqlite":
        with closing(sqlite3.connect(config.database_path)) as connection, connection:
            connection.executemany("UPDATE checkpoints SET metadata = ? WHERE thread_id = ?", pairs)
        return
    assert config.connection_string is not None
    with psycopg.connect(config.connection_string.get_secret_value()) as session, session.cursor() as cursor:
        cursor.executemany("UPDATE checkpoints SET metadata = %s::jsonb WHERE thread_id = %s", pairs)


async def filled(manager: EnhancedCheckpointerManager, names: Sequence[str]) -> None:
    for name in names:
        await Thread(saver_of(manager), name).put(note=name)


async def ids_of(manager: EnhancedCheckpointerManager, **asked: Any) -> set[str]:
    return {entry["thread_id"] for entry in await manager.list_threads(**asked)}


@pytest.mark.parametrize("name", ["sqlite", "postgres"])
async def test_row_that_nobody_can_read_is_skipped_counted_and_told_and_stops_nothing_for_others(
    name: str, database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(name, database_url, tmp_path)
    async with opened(config) as manager:
        await filled(manager, [*HEALTHY, *HOSTILE])
        make_hostile(config, HOSTILE)
    async with opened(config) as manager:
        assert await ids_of(manager) == {*HEALTHY}
        assert await ids_of(manager, limit=2) < {*HEALTHY}
        assert len(await manager.list_threads(limit=2)) == 2, "a page is short only if it is the last one"
        assert await ids_of(manager, step=0) | await ids_of(manager, user_id=DIGITS[:4000]) <= {*HEALTHY}
        for thread_id in HOSTILE:
            with pytest.raises(CheckpointCorruptionError, match="its metadata"):
                await manager.get_thread(thread_id)
        health = await manager.health_check()
        assert health["primary_checkpointer"]["unreadable_threads"] == len(HOSTILE)
        assert health["overall_status"] == "degraded"
        await eventually(lambda: "cannot be listed, and retention leaves them alone" in caplog.text)
        swept = await manager.run_retention()
        assert swept.complete
        assert swept.kept["its metadata cannot be read"] == len(HOSTILE)
        assert swept.looked_at == len(HEALTHY) + len(HOSTILE)
        for thread_id in HOSTILE:
            assert await manager.delete_thread(thread_id) is True
        await eventually(lambda: manager.health_status["overall_status"] == "healthy")
        await recovered(manager)


@pytest.mark.parametrize("name", ["sqlite", "postgres"])
async def test_commands_list_the_others_and_name_those_that_cannot_be_read(
    name: str, database_url: str, tmp_path: Path
) -> None:
    config = config_of(name, database_url, tmp_path)
    async with opened(config) as manager:
        await filled(manager, [*HEALTHY, *HOSTILE])
    make_hostile(config, HOSTILE)
    where = ["--sqlite", str(config.database_path)] if name == "sqlite" else ["--database-url", database_url]

    async def run(*words: str) -> Ended:
        ended = await asyncio.to_thread(command, *words, *where)
        assert "Traceback" not in ended.out + ended.err, words
        return ended

    told = json.loads((await run("threads", "list", "--json")).out)
    assert ({one["thread_id"] for one in told["threads"]}, {*told["unreadable"]}) == ({*HEALTHY}, {*HOSTILE})
    assert f"{len(HOSTILE)} threads left out" in " ".join((await run("threads", "list")).out.split())
    for thread_id in HOSTILE:
        for one in ("show", "history"):
            assert (await run("threads", one, thread_id)).code in (1, 2), (one, thread_id)
        assert (await run("threads", "delete", thread_id, "--yes")).code == 0
    told = json.loads((await run("threads", "list", "--json")).out)
    assert ({one["thread_id"] for one in told["threads"]}, "unreadable" in told) == ({*HEALTHY}, False)


@pytest.mark.parametrize("name", ["memory", "sqlite", "postgres"])
async def test_deletion_by_run_leaves_out_a_thread_with_a_row_that_cannot_be_read_and_goes_on(
    name: str, database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = create_memory_checkpointer() if name == "memory" else config_of(name, database_url, tmp_path)
    odd = {"a-array": "[]", "b-digits": HOSTILE["many digits"], "c-deep": HOSTILE["deep"]}
    async with opened(config) as manager:
        for thread_id in (*odd, "d-garbled", "sound"):
            thread = Thread(saver_of(manager), thread_id)
            await thread.put(note="first")
            if name == "memory":
                damage_in_memory(manager, thread_id)
            elif thread_id != "d-garbled":
                make_hostile(config, {one: text for one, text in odd.items() if one == thread_id})
            await thread.put(run_id="the-run")
            if thread_id == "d-garbled" and name != "memory":
                await thread.put()
                garble(config)
        assert {"sound"} <= await ids_of(manager, run_id="the-run") <= {*odd, "d-garbled", "sound"}
        await manager.delete_for_runs(["the-run"])
        assert "sound" not in await ids_of(manager, run_id="the-run"), "the sound thread was gone through"
        assert "sound" in await ids_of(manager)
        for thread_id in (*(odd if name != "postgres" else ()), "d-garbled"):  # there no metadata is read
            assert f"{thread_id}' was left out of a deletion by run: " in caplog.text
        if name == "memory":
            damage_in_memory(manager, "a-array", newest=True)
            assert "a-array" not in await ids_of(manager)
            assert "a-array" in manager.components.backend.unreadable
            assert (await manager.get_thread("sound")) is not None


def garble(config: CheckpointerConfig) -> None:
    """Make documents that are not LangGraph's of checkpoints that say that they have a delta channel."""
    counted = '{"note": 1}'
    if config.backend_name == "sqlite":
        change = "checkpoint = x'c1', metadata = json_set(metadata, '$.counters_since_delta_snapshot', json(?))"
        with closing(sqlite3.connect(config.database_path)) as connection, connection:
            connection.execute(f"UPDATE checkpoints SET {change} WHERE thread_id = 'd-garbled'", (counted,))
        return
    assert config.connection_string is not None
    change = "checkpoint = jsonb_set(checkpoint, '{channel_versions}', '[]')"
    with psycopg.connect(config.connection_string.get_secret_value()) as session:
        session.execute(f"UPDATE checkpoints SET {change} WHERE thread_id = 'd-garbled'")


def damage_in_memory(manager: EnhancedCheckpointerManager, thread_id: str, *, newest: bool = False) -> None:
    """Make bytes of a checkpoint that its serializer cannot read: metadata, or where it is garbled the checkpoint."""
    saver = manager.components.backend.saver
    assert isinstance(saver, InMemorySaver)
    checkpoints = saver.storage[thread_id][""]
    checkpoint_id = (max if newest else min)(checkpoints)
    checkpoint, metadata, parent = checkpoints[checkpoint_id]
    if thread_id == "d-garbled":
        checkpoint = "msgpack", b"\xc1"
    elif thread_id != "sound":
        metadata = {"a-array": ("msgpack", b"\x90"), "b-digits": ("json", b"["), "c-deep": ("other", b"")}[thread_id]
    checkpoints[checkpoint_id] = checkpoint, metadata, parent


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(int("9" * 4_000)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["step", "user_id", "a"]), inner),
    max_leaves=8,
)
documents = json_values.map(json.dumps) | st.sampled_from([*HOSTILE.values(), "", "{", '{"a": 1}x', "\x00", "[" * 600])


async def seen_beside(rows: list[str]) -> None:
    async with opened(sqlite(":memory:", journal="off")) as manager:
        await filled(manager, ["sound", *(f"odd-{number}" for number in range(len(rows)))])
        backend = manager.components.backend
        assert isinstance(backend, SqliteBackend)
        connection = (await backend.connected()).conn
        for number, text in enumerate(rows):
            await connection.execute("UPDATE checkpoints SET metadata = ? WHERE thread_id = ?", (text, f"odd-{number}"))
        await connection.commit()
        found = await ids_of(manager)
        assert "sound" in found
        for number, text in enumerate(rows):
            try:
                load_metadata(text)
            except CheckpointCorruptionError:
                assert f"odd-{number}" in backend.unreadable
            else:
                assert f"odd-{number}" in found


@settings(max_examples=examples(40))
@given(st.lists(documents, min_size=1, max_size=4))
def test_whatever_stands_in_metadata_the_sound_threads_are_listed(rows: list[str]) -> None:
    asyncio.run(seen_beside(rows))


def test_metadata_may_be_nested_as_deep_as_it_is_said() -> None:
    def nested(depth: int) -> str:
        return '{"a": ' * depth + "1" + "}" * depth

    assert load_metadata(nested(DEEPEST)) != {}
    with pytest.raises(CheckpointCorruptionError, match="nested deeper than 500"):
        load_metadata(nested(DEEPEST + 2))


class Order(BaseModel):
    """A type of an application."""

    number: int


@pytest.mark.parametrize("name", ["sqlite", "postgres"])
def test_doctor_recommends_strictness_in_production_and_tells_what_encryption_leaves_readable(
    name: str, database_url: str, tmp_path: Path
) -> None:
    config = config_of(name, database_url, tmp_path)
    where = ["--sqlite", str(config.database_path)] if name == "sqlite" else ["--database-url", database_url]

    async def write() -> None:
        async with opened(config) as manager:
            await Thread(saver_of(manager), "a").put_values({"order": Order(number=1)})
            await Thread(saver_of(manager), "bad").put(note="x")

    def findings(**variables: str) -> dict[str, Any]:
        ended = command("doctor", *where, "--json", CHECKPOINT_ENVIRONMENT="production", **variables)
        return {finding["name"]: finding for finding in json.loads(ended.out)["findings"]}

    asyncio.run(write())
    make_hostile(config, {"bad": "[]"})
    told = findings()
    assert told["settings.strict_msgpack"]["status"] == "warning"
    assert told["settings.strict_msgpack"]["details"]["would_block"] == [f"{__name__}.Order"]
    assert told["database.metadata"]["details"] == {"threads": 1}
    assert "database.encryption" not in told
    told = findings(LANGGRAPH_STRICT_MSGPACK="true", LANGGRAPH_AES_KEY="k" * 32)
    assert "settings.strict_msgpack" not in told
    assert ("plain channels" in told["database.encryption"]["what"]) is (name == "postgres")
