"""A manager that brings its own event loop: for programs without one, and for calls that block the one there is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from enhanced_checkpointing import (
    CheckpointerConfigurationError,
    CheckpointerError,
    EnhancedCheckpointerManager,
    create_memory_checkpointer,
    initialize_enhanced_checkpointing,
)
from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres
from tests.support.checkpointer import postgres, saver_of
from tests.support.dump import assert_equal_dumps, dump_postgres
from tests.support.graphs import GRAPHS, run_case, run_case_sync
from tests.support.leaks import LeakWatch

CASE = GRAPHS["counting_chain"]


def expected(url: str) -> dict[str, Any]:
    """What the graph ends with, run once more without faults, on a database that is compared afterwards."""
    with EnhancedCheckpointerManager(postgres(url)) as twin:
        return run_case_sync(CASE, saver_of(twin), "thread")


def test_with_statement_works_in_a_program_without_a_loop(
    database_url: str, twin_database_url: str, no_leaks: LeakWatch
) -> None:
    with EnhancedCheckpointerManager(postgres(database_url)) as manager:
        assert manager.health_status["overall_status"] == "healthy"
        found = run_case_sync(CASE, saver_of(manager), "thread")
    assert found == expected(twin_database_url)
    assert_equal_dumps(dump_postgres(database_url), dump_postgres(twin_database_url))
    with pytest.raises(CheckpointerError, match="not open"):
        manager.get_checkpointer()


def test_with_statement_survives_an_outage_in_a_program_without_a_loop(
    private_postgres: LocalPostgres, twin_database_url: str, no_leaks: LeakWatch
) -> None:
    def between(turn: int) -> None:
        if turn == 1:
            private_postgres.kill()
        elif turn == 2:
            private_postgres.start()

    with EnhancedCheckpointerManager(postgres(private_postgres.url(), shutdown_grace=10.0)) as manager:
        found = run_case_sync(CASE, saver_of(manager), "thread", between=between)
    assert found == expected(twin_database_url)
    assert_equal_dumps(dump_postgres(private_postgres.url()), dump_postgres(twin_database_url))


async def test_with_statement_works_inside_a_running_loop(database_url: str, no_leaks: LeakWatch) -> None:
    with EnhancedCheckpointerManager(postgres(database_url)) as manager:
        run_case_sync(CASE, saver_of(manager), "synchronous")
        await run_case(CASE, saver_of(manager), "asynchronous")


async def test_enable_async_false_lets_synchronous_calls_block_the_callers_loop(
    database_url: str, twin_database_url: str, no_leaks: LeakWatch
) -> None:
    manager = await initialize_enhanced_checkpointing(custom_config=postgres(database_url, enable_async=False))
    assert (await manager.health_check())["overall_status"] == "healthy"
    found = run_case_sync(CASE, saver_of(manager), "thread")
    assert await manager.wait_drained(1.0)
    await manager.cleanup()
    assert found == await asyncio.to_thread(expected, twin_database_url)
    assert_equal_dumps(dump_postgres(database_url), dump_postgres(twin_database_url))


async def test_enable_async_false_serves_asynchronous_calls_too(database_url: str, no_leaks: LeakWatch) -> None:
    async with EnhancedCheckpointerManager(postgres(database_url, enable_async=False)) as manager:
        await run_case(CASE, saver_of(manager), "thread")
        assert [item["thread_id"] for item in await manager.list_threads()] == ["thread"]
        assert await manager.delete_thread("thread") is True


def test_enable_async_false_may_be_opened_and_closed_by_loops_that_ended(
    database_url: str, no_leaks: LeakWatch
) -> None:
    manager = EnhancedCheckpointerManager(postgres(database_url, enable_async=False))
    assert asyncio.run(manager.initialize()) is True
    run_case_sync(CASE, saver_of(manager), "thread")
    asyncio.run(manager.cleanup())


@pytest.mark.parametrize("enable_async", [True, False])
def test_with_statement_that_cannot_start_leaves_no_thread(
    enable_async: bool, database_url: str, no_leaks: LeakWatch
) -> None:
    config = postgres(database_url, auto_setup=False, enable_async=enable_async)
    with (
        pytest.raises(CheckpointerConfigurationError, match="CHECKPOINT_AUTO_SETUP"),
        EnhancedCheckpointerManager(config),
    ):
        pass


def test_disabled_manager_hands_out_none_and_starts_nothing(no_leaks: LeakWatch) -> None:
    before = threading.enumerate()
    with EnhancedCheckpointerManager(create_memory_checkpointer(enabled=False)) as manager:
        assert manager.get_checkpointer() is None
        assert manager.health_status["overall_status"] == "healthy"
    assert threading.enumerate() == before


async def test_graph_runs_without_persistence_when_disabled(no_leaks: LeakWatch) -> None:
    # The address is nobody's: nothing is connected to.
    config = postgres("postgresql://nobody@127.0.0.1:1/nothing", enabled=False, enable_async=False)
    manager = await initialize_enhanced_checkpointing(custom_config=config)
    graph = CASE.builder().compile(checkpointer=manager.get_checkpointer())
    assert (await graph.ainvoke(CASE.turns[0]))["log"]
    assert (await manager.health_check())["overall_status"] == "healthy"
    await manager.cleanup()


class ProactorLoop(asyncio.SelectorEventLoop):
    """Stands for Windows' loop: what matters here is only that it is not the one that psycopg runs on."""


class WindowsPolicy(asyncio.DefaultEventLoopPolicy):
    """The loop that a program gets on Windows when it asks for none in particular."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return ProactorLoop()


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("enhanced_checkpointing.backends.postgres.backend.sys.platform", "win32")
    monkeypatch.setattr(asyncio, "ProactorEventLoop", ProactorLoop, raising=False)
    asyncio.set_event_loop_policy(WindowsPolicy())
    yield
    asyncio.set_event_loop_policy(None)


def test_windows_proactor_loop_is_refused_with_the_fix(windows: None, database_url: str) -> None:
    with pytest.raises(CheckpointerConfigurationError, match="WindowsSelectorEventLoopPolicy") as refused:
        asyncio.run(EnhancedCheckpointerManager(postgres(database_url)).initialize())
    assert "enable_async=False" in str(refused.value)


def test_loop_of_its_own_works_on_windows(windows: None, database_url: str) -> None:
    async def start_and_stop() -> bool:
        async with EnhancedCheckpointerManager(postgres(database_url, enable_async=False)) as manager:
            return bool(manager.health_status["primary_healthy"])

    assert asyncio.run(start_and_stop())


def test_cleanup_inside_a_plain_with_is_harmless() -> None:
    with EnhancedCheckpointerManager(create_memory_checkpointer()) as manager:
        asyncio.run(manager.cleanup())
    assert manager.health_status["overall_status"] == "unhealthy"
