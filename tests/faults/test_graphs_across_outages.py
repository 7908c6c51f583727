"""Graphs of every kind run across an outage and end as their twin without faults: FAULTS rows 45 and 46."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psycopg
import pytest

from enhanced_checkpointing import EnhancedCheckpointerManager
from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres
from tests.support.checkpointer import Switched, opened, postgres, recovered, saver_of, sqlite, switched
from tests.support.checkpoints import Thread
from tests.support.comparison import assert_equal_dumps
from tests.support.dump import dump_postgres, dump_sqlite
from tests.support.graphs import GRAPHS, Durability, GraphCase, on_node, run_case, run_case_sync

DURABILITIES: list[Durability] = ["sync", "async", "exit"]
CASES = pytest.mark.parametrize("case", GRAPHS.values(), ids=GRAPHS)


class OutageAtNode:
    """Switches the primary off at the nth node that runs, and on again at a later one, or only at the end."""

    def __init__(self, primary: Switched, off_at: int, on_at: int | None) -> None:
        self._primary = primary
        self._off_at = off_at
        self._on_at = on_at
        self._nodes = 0

    async def __call__(self, name: str) -> None:
        self._nodes += 1
        if self._nodes == self._off_at:
            await self._primary.off()
        if self._nodes == self._on_at:
            await self._primary.on()

    async def end(self, manager: EnhancedCheckpointerManager) -> None:
        await self._primary.on()
        await recovered(manager)


async def twin_of(case: GraphCase, url: str, durability: Durability) -> dict[str, object]:
    async with opened(postgres(url)) as manager:
        return await run_case(case, saver_of(manager), "thread", durability=durability)


@CASES
@pytest.mark.parametrize("durability", DURABILITIES)
async def test_graph_that_an_outage_begins_and_ends_under_equals_its_twin(
    case: GraphCase, durability: Durability, database_url: str, twin_database_url: str, tmp_path: Path
) -> None:
    async with switched("postgres", database_url, tmp_path) as primary:
        outage = OutageAtNode(primary, off_at=2, on_at=5)
        token = on_node.set(outage)
        try:
            result = await run_case(case, saver_of(primary.manager), "thread", durability=durability)
        finally:
            on_node.reset(token)
        assert durability != "sync" or primary.manager.components.engine.journaling.journaled > 0
        await outage.end(primary.manager)
        assert result == await twin_of(case, twin_database_url, durability)
    assert_equal_dumps(dump_postgres(database_url), dump_postgres(twin_database_url))


@CASES
async def test_graph_that_starts_in_an_outage_and_is_drained_after_it_equals_its_twin(
    case: GraphCase, database_url: str, twin_database_url: str, tmp_path: Path
) -> None:
    async with switched("postgres", database_url, tmp_path) as primary:
        await primary.off()
        result = await run_case(case, saver_of(primary.manager), "thread")
        assert primary.manager.health_status["journal"]["pending"] > 0
        await primary.on()
        await recovered(primary.manager)
        assert result == await twin_of(case, twin_database_url, "sync")
    assert_equal_dumps(dump_postgres(database_url), dump_postgres(twin_database_url))


@CASES
async def test_graph_that_goes_on_with_a_new_outage_in_every_turn_equals_its_twin(
    case: GraphCase, database_url: str, twin_database_url: str, tmp_path: Path
) -> None:
    """Interrupted before, resumed during, finished after, and once more."""
    async with switched("postgres", database_url, tmp_path) as primary:

        async def between(turn: int) -> None:
            if turn % 2:
                await primary.off()
            else:
                await primary.on()
                await recovered(primary.manager)

        result = await run_case(case, saver_of(primary.manager), "thread", between=between)
        await primary.on()
        await recovered(primary.manager)
        assert result == await twin_of(case, twin_database_url, "sync")
    assert_equal_dumps(dump_postgres(database_url), dump_postgres(twin_database_url))


@CASES
async def test_graph_on_sqlite_across_a_locked_file_equals_its_twin(case: GraphCase, tmp_path: Path) -> None:
    async with switched("sqlite", "", tmp_path / "primary.sqlite") as primary:
        outage = OutageAtNode(primary, off_at=2, on_at=5)
        token = on_node.set(outage)
        try:
            result = await run_case(case, saver_of(primary.manager), "thread")
        finally:
            on_node.reset(token)
        await outage.end(primary.manager)
    async with opened(sqlite(tmp_path / "twin.sqlite")) as twin:
        assert result == await run_case(case, saver_of(twin), "thread")
    assert_equal_dumps(dump_sqlite(tmp_path / "primary.sqlite"), dump_sqlite(tmp_path / "twin.sqlite"))


@CASES
async def test_graph_that_is_called_synchronously_equals_its_twin(
    case: GraphCase, database_url: str, twin_database_url: str, tmp_path: Path
) -> None:
    async with switched("postgres", database_url, tmp_path) as primary:
        loop = asyncio.get_running_loop()

        def between(turn: int) -> None:
            switch = primary.off if turn % 2 else primary.on
            asyncio.run_coroutine_threadsafe(switch(), loop).result()

        result = await asyncio.to_thread(run_case_sync, case, saver_of(primary.manager), "thread", between=between)
        await primary.on()
        await recovered(primary.manager)
        assert result == await twin_of(case, twin_database_url, "sync")
    assert_equal_dumps(dump_postgres(database_url), dump_postgres(twin_database_url))


async def test_channel_that_never_changes_again_is_kept_through_outage_and_recovery(
    database_url: str, tmp_path: Path
) -> None:
    """The fault of every fallback that starts cold: an unchanged channel is missing from what it saw."""
    case = GRAPHS["unchanged_channel"]
    async with switched("postgres", database_url, tmp_path) as primary:

        async def between(turn: int) -> None:
            if turn == 1:
                await primary.off()

        during = await run_case(case, saver_of(primary.manager), "thread", between=between)
        assert during["profile"] == ["Ada", "Grace"]
        await primary.on()
        await recovered(primary.manager)
        graph = case.builder().compile(checkpointer=saver_of(primary.manager))
        after = await graph.aget_state({"configurable": {"thread_id": "thread"}})
        assert after.values["profile"] == ["Ada", "Grace"]
    async with opened(postgres(database_url)) as fresh:
        graph = case.builder().compile(checkpointer=saver_of(fresh))
        assert (await graph.aget_state({"configurable": {"thread_id": "thread"}})).values == during


@pytest.mark.parametrize("on_divergence", ["newest_wins", "quarantine"])
async def test_two_processes_that_drain_one_thread_at_once_report_every_divergence(
    private_postgres: LocalPostgres, tmp_path: Path, on_divergence: str
) -> None:
    config, elsewhere = (
        postgres(
            private_postgres.url(),
            probe_backoff_min=0.05,
            probe_backoff_max=0.06,
            on_divergence=on_divergence,
            journal_dir=tmp_path / name,  # in one directory they would not branch
        )
        for name in ("one", "other")
    )
    names = [f"thread-{number}" for number in range(20)]
    async with opened(config) as one, opened(elsewhere) as other:
        ours = [Thread(saver_of(one), name) for name in names]
        theirs = [Thread(saver_of(other), name) for name in names]
        await asyncio.gather(*(thread.put() for thread in ours))
        for mine, yours in zip(ours, theirs, strict=True):
            yours.ids, yours._count_version = list(mine.ids), mine._count_version
            await yours.timed_get()
        await asyncio.to_thread(private_postgres.kill)
        await asyncio.gather(*(thread.put() for thread in (*ours, *theirs)))
        await asyncio.to_thread(private_postgres.start)
        await recovered(one)
        await recovered(other)
        reported = sum(manager.health_status["divergences"]["count"] for manager in (one, other))
        assert reported == len(names)
        with psycopg.connect(private_postgres.url()) as connection:
            rows = connection.execute("SELECT thread_id, count(*) FROM checkpoints GROUP BY thread_id").fetchall()
    counts = sorted(count for _, count in rows)
    assert counts == ([3] * len(names) if on_divergence == "newest_wins" else [2] * 2 * len(names))
