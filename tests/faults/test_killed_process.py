"""Our own process is killed while it appends and while it replays, or told to end: FAULTS rows 22, 23 and 37."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.journal import NOBODY
from enhanced_checkpointing import audit
from tests.support.checkpointer import opened, postgres, recovered, saver_of, sqlite
from tests.support.checkpoints import Thread

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("TEST_KILLS", "40"))
"""A push takes a few; each night takes 200."""


@pytest.mark.timeout(300 + KILLS)
def test_process_that_is_killed_while_it_appends_and_replays_loses_nothing(database_url: str, tmp_path: Path) -> None:
    # In a process of its own, which forks before it has any thread.
    command = [sys.executable, "-m", "tests.support.killed_process", database_url, "--kills", str(KILLS)]
    ended = subprocess.run(
        [*command, "--journal-dir", str(tmp_path / "journal")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300 + KILLS,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    tally = json.loads(ended.stdout)
    assert tally["killed_appending"] + tally["killed_replaying"] == KILLS
    assert tally["acknowledged"] > KILLS
    assert (tally["lost"], tally["resurrected"], tally["out_of_order"], tally["frozen"]) == ([], [], [], 0)
    assert {*os.listdir(tmp_path / "journal")} <= {audit.LOG, audit.HEAD}, "what it deleted is noted"


WRITE_UNTIL_TERMINATED = """
import asyncio, signal, sys
from pathlib import Path
from tests.support.checkpointer import opened, postgres, saver_of
from tests.support.checkpoints import Thread

url, journal_dir, what = sys.argv[1:]

async def main():
    stop = asyncio.Event()
    if what == "handled":
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with opened(postgres(url, journal_dir=Path(journal_dir), shutdown_grace=0.5)) as manager:
        thread = Thread(saver_of(manager), "terminated")
        while not stop.is_set():
            await thread.put()
            print(thread.ids[-1], flush=True)

asyncio.run(main())
"""


def write_until_terminated(journal_dir: Path, what: str) -> tuple[list[str], int, str, float]:
    """The ids that a process says were acknowledged, its exit code, what it logged, and how long it took to end."""
    command = [sys.executable, "-c", WRITE_UNTIL_TERMINATED, NOBODY, str(journal_dir), what]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        ids = [process.stdout.readline().strip() for _ in range(50)]
        process.terminate()
        terminated_at = time.monotonic()
        # Not `communicate()`: it would leave out what was read ahead behind the last line.
        rest, said = process.stdout.read(), process.stderr.read()
        process.wait(timeout=30)
    return ids + rest.split(), process.returncode, said, time.monotonic() - terminated_at


@pytest.mark.parametrize("what", ["handled", "not handled"])
async def test_terminated_process_ends_soon_and_the_next_start_drains_what_it_acknowledged(
    what: str, database_url: str, tmp_path: Path
) -> None:
    journal_dir = tmp_path / "journal"
    ids, code, said, seconds = await asyncio.to_thread(write_until_terminated, journal_dir, what)
    assert seconds < 0.5 + 1.0 + 1.0, "its grace, a last probe, and its interpreter"
    assert code == (0 if what == "handled" else -signal.SIGTERM), said
    stopped = f"Stopped with {len(ids)} acknowledged operations not in the primary. They stay in the journal"
    assert (stopped in said) is (what == "handled")
    async with opened(postgres(database_url, journal_dir=journal_dir, journal_adopt="all")) as manager:
        await recovered(manager)
        stored = await Thread(saver_of(manager), "terminated").stored_ids()
    assert stored[: len(ids)] == ids
    assert len(stored) <= len(ids) + (what == "not handled"), "one may have been stored without a word"
    assert list(journal_dir.iterdir()) == []


DIE_IN_THE_SECOND_STEP = """
import asyncio, os, sqlite3, sys
from pathlib import Path
from typing import TypedDict

from langgraph.graph import START, StateGraph
from tests.support.checkpointer import opened, saver_of, sqlite

path, journal_dir, durability = sys.argv[1:]
held = []

class State(TypedDict):
    step: str

def first(state):
    held.append(sqlite3.connect(path))
    held[0].execute("BEGIN EXCLUSIVE")  # what follows has to wait, and goes to the journal in the end
    return {"step": "first"}

def second(state):
    os._exit(9)

async def main():
    graph = StateGraph(State).add_node(first).add_node(second).add_edge(START, "first").add_edge("first", "second")
    async with opened(sqlite(path, journal_dir=Path(journal_dir), deadline=1.0)) as manager:
        run = graph.compile(checkpointer=saver_of(manager))
        await run.ainvoke({"step": "input"}, {"configurable": {"thread_id": "run"}}, durability=durability)

asyncio.run(main())
"""


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_step_before_the_one_in_which_a_process_dies_is_kept_by_durability_sync_only(
    durability: str, tmp_path: Path
) -> None:
    path, journal_dir = tmp_path / "primary.sqlite", tmp_path / "journal"
    command = [sys.executable, "-c", DIE_IN_THE_SECOND_STEP, str(path), str(journal_dir), durability]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
    assert await asyncio.wait_for(process.wait(), 30.0) == 9
    async with opened(sqlite(path, journal_dir=journal_dir)) as manager:
        await recovered(manager)
        found = await saver_of(manager).aget_tuple({"configurable": {"thread_id": "run"}})
    values = found.checkpoint["channel_values"] if found is not None else {}
    assert (values.get("step") == "first") is (durability == "sync")
