"""Our rows are those of the official PostgreSQL saver: either can read, and go on with, what the other wrote."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

from tests.support.checkpointer import opened, postgres, saver_of
from tests.support.checkpoints import Thread
from tests.support.comparison import assert_equal_dumps
from tests.support.dump import dump_postgres
from tests.support.graphs import GRAPHS, Durability, GraphCase, run_case

CASES = pytest.mark.parametrize("case", GRAPHS.values(), ids=GRAPHS)


@asynccontextmanager
async def bare(url: str) -> AsyncIterator[BaseCheckpointSaver[str]]:
    async with AsyncPostgresSaver.from_conn_string(url) as saver:
        await saver.setup()
        yield saver


@CASES
@pytest.mark.parametrize("durability", ["sync", "exit"])
@pytest.mark.usefixtures("form_of_statements")
async def test_healthy_run_leaves_the_rows_of_the_bare_saver(
    case: GraphCase, durability: Durability, database_url: str, twin_database_url: str
) -> None:
    async with opened(postgres(database_url)) as manager, bare(twin_database_url) as saver:
        ours = await run_case(case, saver_of(manager), "thread", durability=durability)
        assert ours == await run_case(case, saver, "thread", durability=durability)
    assert_equal_dumps(dump_postgres(database_url), dump_postgres(twin_database_url))


@CASES
async def test_either_saver_goes_on_with_what_the_other_wrote(case: GraphCase, database_url: str) -> None:
    async with opened(postgres(database_url)) as manager, bare(database_url) as saver:
        for writer, reader in ((saver_of(manager), saver), (saver, saver_of(manager))):
            thread_id = f"written-by-{type(writer).__name__}"
            result = await run_case(case, writer, thread_id)
            graph = case.builder().compile(checkpointer=reader)
            config = {"configurable": {"thread_id": thread_id}}
            assert (await graph.aget_state(config)).values == result  # type: ignore[arg-type]
            read = [found async for found in reader.alist(config)]  # type: ignore[arg-type]
            assert read == [found async for found in writer.alist(config)]  # type: ignore[arg-type]
            for found in read:
                assert await reader.aget_tuple(found.config) == await writer.aget_tuple(found.config) == found
            assert await reader.aget_tuple(config) == read[0]  # type: ignore[arg-type]


async def test_checkpoint_of_an_older_format_is_migrated_as_the_bare_saver_does(database_url: str) -> None:
    case = GRAPHS["send_map"]
    async with opened(postgres(database_url)) as manager, bare(database_url) as saver:
        await run_case(case, saver, "thread")
        with psycopg.connect(database_url) as connection:
            connection.execute("UPDATE checkpoints SET checkpoint = jsonb_set(checkpoint, '{v}', '3')")
            connection.execute("UPDATE checkpoint_writes SET channel = '__pregel_tasks' WHERE idx = 0")
        found = [found async for found in saver.alist({"configurable": {"thread_id": "thread"}})]
        assert len(found) > 3
        for each in found:
            assert await saver_of(manager).aget_tuple(each.config) == await saver.aget_tuple(each.config)


@pytest.mark.usefixtures("form_of_statements")
async def test_repeated_writes_leave_the_rows_of_the_bare_saver(database_url: str, twin_database_url: str) -> None:
    async with opened(postgres(database_url)) as manager, bare(twin_database_url) as saver:
        for target in (saver_of(manager), saver):
            thread = Thread(target, "thread")
            await thread.put()
            config = {**thread.config["configurable"], "checkpoint_id": thread.ids[-1]}
            for value in ("first", "second"):
                await target.aput_writes(
                    {"configurable": config}, [("__interrupt__", value), ("__interrupt__", value + "!")], "task"
                )
                await target.aput_writes({"configurable": config}, [("log", value), ("log", value + "!")], "task")
                await target.aput_writes({"configurable": config}, [], "task")
            await target.adelete_thread("another")
    ours, theirs = dump_postgres(database_url), dump_postgres(twin_database_url)
    assert [row["value"] for row in ours["checkpoint_writes"]] == ["second!", "first", "first!"]
    assert_equal_dumps(ours, theirs)


@pytest.mark.parametrize("value", [2.0**70, 2**64, -(2**70)])
async def test_number_that_messagepack_cannot_hold_is_kept_warm_and_read_as_the_bare_saver_does(
    value: float, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """PostgreSQL gives a large float back as an integer of more than 64 bits."""
    async with opened(postgres(database_url)) as manager:
        await Thread(saver_of(manager), "large").put(score=value)
    async with opened(postgres(database_url)) as manager, bare(database_url) as saver:
        config = {"configurable": {"thread_id": "large", "checkpoint_ns": ""}}
        for _ in range(2):
            found = await saver_of(manager).aget_tuple(config)  # type: ignore[arg-type]
            assert found == await saver.aget_tuple(config)  # type: ignore[arg-type]
            assert found is not None
            assert float(found.metadata["score"]) == float(value)  # type: ignore[typeddict-item]
        assert manager.components.standby.size > 0
    assert "cannot be kept warm" not in caplog.text
