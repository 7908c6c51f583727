"""The tests' own parts that need no server: graphs, dumps and their comparison, the watch for leaks."""

from __future__ import annotations

import asyncio
import copy
import os
import re
import socket
import threading
from pathlib import Path

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from tests.support.dump import Dump, assert_equal_dumps, dump_memory, dump_sqlite, normalise
from tests.support.fault_proxy import FaultProxy
from tests.support.graphs import GRAPHS, Durability, GraphCase, on_node, run_case, run_case_sync
from tests.support.leaks import LeakWatch
from tests.support.postgres import GivenPostgres, require_or_skip

CASES = pytest.mark.parametrize("case", GRAPHS.values(), ids=GRAPHS)
UNSTABLE = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[1-9a-f][0-9a-f]{3}-|[0-9a-f]{32}|0\.\d{10}")


async def memory_run(case: GraphCase, durability: Durability = "sync") -> Dump:
    saver = InMemorySaver()
    await run_case(case, saver, "thread", durability=durability)
    return dump_memory(saver)


@CASES
@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_two_runs_in_memory_leave_equal_dumps(case: GraphCase, durability: Durability) -> None:
    assert_equal_dumps(await memory_run(case, durability), await memory_run(case, durability))


@CASES
async def test_two_runs_in_sqlite_leave_equal_dumps(case: GraphCase, tmp_path: Path) -> None:
    for name in ("actual", "twin"):
        async with AsyncSqliteSaver.from_conn_string(str(tmp_path / name)) as saver:
            await run_case(case, saver, "thread")
    dump = dump_sqlite(tmp_path / "actual")
    assert dump["checkpoints"]
    assert dump["checkpoint_writes"]
    assert_equal_dumps(dump, dump_sqlite(tmp_path / "twin"))


@CASES
async def test_normal_dump_has_no_identifier_that_differs_between_runs(case: GraphCase) -> None:
    dump = await memory_run(case)
    assert UNSTABLE.search(repr(dump))
    assert UNSTABLE.search(repr(normalise(dump))) is None


@CASES
async def test_synchronous_run_stores_what_the_asynchronous_one_stores(case: GraphCase) -> None:
    saver = InMemorySaver()
    values = run_case_sync(case, saver, "thread")
    assert values == await run_case(case, InMemorySaver(), "thread")
    assert_equal_dumps(dump_memory(saver), await memory_run(case))


@pytest.mark.thorough
@CASES
async def test_any_row_that_is_missing_or_doubled_is_seen(case: GraphCase) -> None:
    twin = await memory_run(case)
    for table, rows in twin.items():
        for number in range(len(rows)):
            lacking = twin | {table: rows[:number] + rows[number + 1 :]}
            with pytest.raises(AssertionError, match="the dumps differ, first here"):
                assert_equal_dumps(lacking, twin)


async def test_any_changed_value_is_seen_and_named() -> None:
    twin = await memory_run(GRAPHS["counting_chain"])
    actual = copy.deepcopy(twin)
    changed = next(row for row in actual["checkpoint_blobs"] if row["channel"] == "log" and row["value"])
    changed["value"][0] = "never said"
    with pytest.raises(AssertionError, match=r"'log'.*'never said'.*the twin has.*'first: why None'"):
        assert_equal_dumps(actual, twin)


async def test_runs_call_between_before_each_turn_and_on_node_in_each_node() -> None:
    turns: list[int] = []
    nodes: list[str] = []

    async def between(number: int) -> None:
        turns.append(number)

    async def hook(name: str) -> None:
        nodes.append(name)

    token = on_node.set(hook)
    await run_case(GRAPHS["subgraph"], InMemorySaver(), "thread", between=between)
    on_node.reset(token)
    assert turns == [0, 1]
    assert nodes == ["supervisor", "read", "look_up", "check", "write", "review"] * 2


def test_synchronous_run_calls_its_hooks_and_refuses_an_asynchronous_one() -> None:
    turns: list[int] = []
    nodes: list[str] = []
    loop = asyncio.new_event_loop()
    token = on_node.set(nodes.append)
    run_case_sync(GRAPHS["counting_chain"], InMemorySaver(), "thread", between=turns.append)
    assert turns == [0, 1, 2]
    assert nodes == ["first", "second", "third"] * 3
    on_node.set(lambda _: asyncio.Future(loop=loop))
    with pytest.raises(TypeError, match="cannot await"):
        run_case_sync(GRAPHS["counting_chain"], InMemorySaver(), "thread")
    on_node.reset(token)
    loop.close()


def test_cases_say_whether_they_resume() -> None:
    assert [name for name, case in GRAPHS.items() if case.resumes] == ["interrupting"]


def test_leak_of_a_descriptor_is_named() -> None:
    left: list[socket.socket] = []
    with pytest.raises(AssertionError, match=r"left behind: \['descriptor \d+ -> socket:"):
        LeakWatch(0.05).run(lambda: left.append(socket.socket()), {})
    left.pop().close()


def test_leak_of_a_thread_is_named() -> None:
    release = threading.Event()
    with pytest.raises(AssertionError, match=r"left behind: \['thread forgotten"):
        LeakWatch(0.05).run(lambda: threading.Thread(target=release.wait, name="forgotten").start(), {})
    release.set()


def test_leak_of_a_task_is_named() -> None:
    async def forgets() -> None:
        forgotten.append(asyncio.create_task(asyncio.sleep(60), name="forgotten"))

    forgotten: list[asyncio.Task[None]] = []
    with pytest.raises(AssertionError, match=r"left behind: .*forgotten"):
        LeakWatch(0.05).run(forgets, {})


def test_clean_test_passes_the_watch_within_the_grace() -> None:
    async def cleans_up_late() -> None:
        kept.append(asyncio.create_task(asyncio.sleep(0.05)))
        threading.Timer(0.1, os.close, [os.dup(0)]).start()

    kept: list[asyncio.Task[None]] = []
    LeakWatch(2.0).run(cleans_up_late, {})


def test_urls_change_only_in_host_and_port_or_in_the_database() -> None:
    url = "postgresql://me:p%40ss@db.example:5432/app?sslmode=disable"
    proxy = FaultProxy("127.0.0.1", 5432)
    assert proxy.url(url) == f"postgresql://me:p%40ss@127.0.0.1:{proxy.port}/app?sslmode=disable"
    assert proxy.url("postgresql://db.example/app") == f"postgresql://127.0.0.1:{proxy.port}/app"
    assert GivenPostgres(url).url("a b") == "postgresql://me:p%40ss@db.example:5432/a%20b?sslmode=disable"


def test_missing_part_fails_in_ci_and_skips_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="install it"):
        require_or_skip("install it")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="install it"):
        require_or_skip("install it")
