"""The journal's own thread."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from enhanced_checkpointing.journal.log_files import JournalThread


async def test_work_runs_one_piece_after_another_on_a_thread_of_its_own() -> None:
    worker = JournalThread()
    seen: list[tuple[int, str]] = []

    def work(number: int) -> int:
        time.sleep(0.01 * (3 - number))
        seen.append((number, threading.current_thread().name))
        return number

    assert await asyncio.gather(*(worker.run(lambda number=number: work(number)) for number in range(3))) == [0, 1, 2]  # type: ignore[misc]
    assert seen == [(number, "checkpoint journal") for number in range(3)]
    worker.close()


async def test_what_the_work_raises_belongs_to_whoever_waits_for_it() -> None:
    worker = JournalThread()

    def fail() -> None:
        raise OSError("no disk")

    with pytest.raises(OSError, match="no disk"):
        await worker.run(fail)
    assert await worker.run(lambda: "goes on") == "goes on"
    worker.close()


async def test_loop_goes_on_while_the_work_hangs() -> None:
    worker, gate = JournalThread(), threading.Event()
    hanging = worker.run(gate.wait)
    await asyncio.sleep(0.02)
    assert not hanging.done()
    gate.set()
    assert await hanging
    worker.close()


async def test_work_whose_waiter_gave_up_is_done_nevertheless() -> None:
    worker, gate = JournalThread(), threading.Event()
    done: list[str] = []

    def fail() -> None:
        done.append("failed")
        raise OSError("nobody hears it")

    worker.run(gate.wait)
    abandoned = [worker.run(lambda: done.append("done")), worker.run(fail)]
    for future in abandoned:
        future.cancel()
    gate.set()
    await worker.run(lambda: None)
    assert done == ["done", "failed"]
    worker.close()


async def test_thread_ends_when_it_has_done_what_it_was_given() -> None:
    before = set(threading.enumerate())
    worker = JournalThread()
    (thread,) = set(threading.enumerate()) - before
    assert thread.daemon, "a disk that hangs must not hold up the end of the process"
    last = worker.run(lambda: "last")
    worker.close()
    assert await last == "last"
    thread.join(1.0)
    assert not thread.is_alive()


def test_loop_that_was_closed_meanwhile_is_not_told() -> None:
    gate, ran = threading.Event(), threading.Event()

    async def leave() -> JournalThread:
        worker = JournalThread()
        worker.run(gate.wait)
        worker.run(ran.set)
        return worker

    worker = asyncio.run(leave())
    gate.set()
    assert ran.wait(1.0), "the thread survives that nobody hears of it"
    worker.close()
