"""Calls from another thread, another event loop, after a fork, and without any loop: FAULTS row 43."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.journal import NOBODY
from enhanced_checkpointing import (
    CheckpointerError,
    EnhancedCheckpointerManager,
    create_memory_checkpointer,
    create_postgres_checkpointer,
    create_sqlite_checkpointer,
)
from tests.support.checkpointer import opened, postgres, recovered, saver_of
from tests.support.checkpoints import Thread
from tests.support.graphs import GRAPHS, run_case, run_case_sync
from tests.support.leaks import LeakWatch

CASE = GRAPHS["parallel"]
ROOT = Path(__file__).parents[2]


async def test_sync_calls_from_many_threads_work_even_when_they_fill_the_default_executor(database_url: str) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(max_workers=4))
    async with opened(postgres(database_url, deadline=10.0)) as manager:
        saver = saver_of(manager)
        expected = await run_case(CASE, saver, "async")
        started = time.monotonic()
        names = [f"thread-{number}" for number in range(8)]
        results = await asyncio.gather(*(asyncio.to_thread(run_case_sync, CASE, saver, name) for name in names))
        assert results == [expected] * len(names)
        assert time.monotonic() - started < 5.0  # nobody waited for a deadline
        assert manager.health_status["primary_checkpointer"]["breaker"] == "closed"


async def test_every_sync_method_on_the_loop_itself_raises_instead_of_waiting_for_ever(database_url: str) -> None:
    async with opened(postgres(database_url)) as manager:
        saver = saver_of(manager)
        thread = Thread(saver, "loop")
        await thread.put()
        found = await saver.aget_tuple(thread.config)
        assert found is not None
        calls: dict[str, Callable[[], object]] = {
            "get_tuple": lambda: saver.get_tuple(thread.config),
            "list": lambda: list(saver.list(thread.config)),
            "put": lambda: saver.put(thread.config, found.checkpoint, {}, {}),
            "put_writes": lambda: saver.put_writes(found.config, [("count", 1)], "task"),
            "delete_thread": lambda: saver.delete_thread("loop"),
            "get_delta_channel_history": lambda: saver.get_delta_channel_history(
                config=found.config, channels=["count"]
            ),
            "prune": lambda: saver.prune(["loop"]),
        }
        for name, call in calls.items():
            with pytest.raises(CheckpointerError, match="wait for itself"):
                call()
            assert name
        assert await thread.stored_ids() == thread.ids


async def test_async_calls_from_another_event_loop_work(database_url: str) -> None:
    async with opened(postgres(database_url, deadline=10.0)) as manager:
        saver = saver_of(manager)
        expected = await run_case(CASE, saver, "home")

        def elsewhere() -> dict[str, object]:
            return asyncio.run(run_case(CASE, saver, "away"))

        assert await asyncio.to_thread(elsewhere) == expected
        healthy = await asyncio.to_thread(lambda: asyncio.run(manager.health_check()))
        assert healthy["overall_status"] == "healthy"


async def test_call_after_a_fork_raises_a_clear_error(database_url: str) -> None:
    async with opened(postgres(database_url)) as manager:
        saver = saver_of(manager)
        thread = Thread(saver, "forked")
        await thread.put()
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                saver.get_tuple(thread.config)
                os.write(writing, b"no error")
            except CheckpointerError as error:
                os.write(writing, str(error).encode())
            except BaseException:  # noqa: BLE001  # a forked child must end here, whatever happens
                os.write(writing, traceback.format_exc().encode())
            finally:
                os._exit(0)
        os.close(writing)
        await asyncio.to_thread(os.waitpid, child, 0)
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read().decode()
        assert "forked" in said
        assert "initialize_enhanced_checkpointing() in the child" in said
        await thread.put()
        assert await thread.stored_ids() == thread.ids


FORK_AND_DIE = """
import asyncio, os, signal, sys, time
from benchmarks.journal import NOBODY
from pathlib import Path
from tests.support.checkpointer import opened, postgres, recovered, saver_of
from tests.support.checkpoints import Thread

async def acknowledge_and_die():
    async with opened(postgres(NOBODY, journal_dir=Path(sys.argv[1]))) as manager:
        await Thread(saver_of(manager), "acknowledged").put()
        child = os.fork()  # as a pool of worker processes does
        if child == 0:
            time.sleep(60)
            os._exit(0)
        print(child, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(acknowledge_and_die())
"""


async def test_forked_child_that_outlives_its_parent_keeps_nothing_of_its_backlog_locked(
    database_url: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", FORK_AND_DIE, str(tmp_path / "journal")]
    child = int(await asyncio.to_thread(run_until_it_is_killed, command))
    try:
        os.kill(child, 0)  # it lives
        fields = {"journal_dir": tmp_path / "journal", "journal_adopt": "all"}
        async with opened(postgres(database_url, **fields)) as manager:
            await recovered(manager)
            thread = Thread(saver_of(manager), "acknowledged")
            assert len(await thread.stored_ids()) == 1
    finally:
        os.kill(child, signal.SIGKILL)


def run_until_it_is_killed(command: list[str]) -> str:
    """What a program says before it is killed; its children may live on."""
    program = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    said = program.stdout.readline()
    assert program.wait(30) == -signal.SIGKILL
    program.stdout.close()
    return said


@pytest.mark.parametrize("end", ["cleanup", "with", "async with", "cleanup of its own loop"])
def test_forked_child_leaves_the_checkpointer_to_its_parent_at_once(end: str, tmp_path: Path) -> None:
    journal_dir = tmp_path / "journal"
    own_loop = end in ("with", "cleanup of its own loop")
    manager = EnhancedCheckpointerManager(postgres(NOBODY, journal_dir=journal_dir, enable_async=not own_loop))
    home = asyncio.new_event_loop()
    if end == "with":
        manager.__enter__()
    else:
        home.run_until_complete(manager.initialize())
    files = sorted(journal_dir.iterdir())
    child = os.fork()
    if child == 0:
        os._exit(ended_in_child(manager, end))
    status = wait_for(child, 10.0)
    assert status is not None, "it hangs"
    assert os.waitstatus_to_exitcode(status) == 0
    assert sorted(journal_dir.iterdir()) == files
    assert manager.health_status["journal"]["healthy"]
    if end == "with":
        manager.__exit__(None, None, None)
    else:
        home.run_until_complete(manager.cleanup())
    home.close()


def ended_in_child(manager: EnhancedCheckpointerManager, end: str) -> int:
    """Leave an inherited manager; 0 if that went well, and if its saver says what is wrong then."""
    try:
        asyncio._set_running_loop(None)
        if end == "with":
            manager.__exit__(None, None, None)
        elif end == "async with":
            asyncio.run(manager.__aexit__(None, None, None))
        else:
            asyncio.run(manager.cleanup())
        saver_of(manager).get_tuple({"configurable": {"thread_id": "thread"}})
    except CheckpointerError as error:
        return 0 if "forked" in str(error) else 2
    except BaseException:  # noqa: BLE001  # a forked child must end here, whatever happens
        return 3
    return 4


def wait_for(child: int, seconds: float) -> int | None:
    """How a child ended; None if it did not in that time, after which it is killed."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


async def test_call_after_cleanup_raises_a_clear_error() -> None:
    async with opened(create_memory_checkpointer()) as manager:
        saver = saver_of(manager)
        thread = Thread(saver, "closed")
        await thread.put()
    with pytest.raises(CheckpointerError, match="closed"):
        await saver.aget_tuple(thread.config)
    with pytest.raises(CheckpointerError, match="not open"):
        manager.get_checkpointer()


@pytest.mark.parametrize("backend", ["memory", "sqlite", "postgres"])
def test_program_without_a_loop_uses_a_plain_with(
    backend: str, database_url: str, tmp_path: Path, no_leaks: LeakWatch
) -> None:
    config = {
        "memory": create_memory_checkpointer(),
        "sqlite": create_sqlite_checkpointer(str(tmp_path / "plain.sqlite")),
        "postgres": create_postgres_checkpointer(database_url),
    }[backend]
    with EnhancedCheckpointerManager(config) as manager:
        first = run_case_sync(CASE, saver_of(manager), "plain")
        assert run_case_sync(CASE, saver_of(manager), "again") == first
        assert manager.health_status["overall_status"] == "healthy"


async def test_loop_of_its_own_lets_sync_calls_come_from_the_running_loop(database_url: str) -> None:
    async with opened(create_postgres_checkpointer(database_url, enable_async=False)) as manager:
        saver = saver_of(manager)
        expected = await run_case(CASE, saver, "async")
        assert run_case_sync(CASE, saver, "sync") == expected  # blocks this loop, as its caller chose
        assert (await manager.health_check())["overall_status"] == "healthy"
        assert await manager.delete_thread("sync")
        assert await manager.wait_drained(1)
