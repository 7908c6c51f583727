"""A drain that is interrupted, or finds that somebody else wrote meanwhile: FAULTS rows 23, 31 and 39."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from random import Random

import psycopg
import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.base.id import uuid6

from benchmarks.journal import NOBODY
from enhanced_checkpointing import audit
from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres
from tests.support.checkpointer import eventually, opened, postgres, recovered, saver_of, switched
from tests.support.checkpoints import Thread
from tests.support.dump import assert_equal_dumps, dump_postgres

ROOT = Path(__file__).parents[2]

DRAIN_AND_DIE = """
import asyncio, os, signal, sys
from pathlib import Path
from enhanced_checkpointing.journal.durable import DurableJournal
from tests.support.checkpointer import opened, postgres

url, journal_dir, when, marks_before = sys.argv[1:]
mark_applied, left = DurableJournal.mark_applied, int(marks_before)

async def die_at_the_mark(self, entries):
    global left
    left -= 1
    if left >= 0 or when == "after":
        await mark_applied(self, entries)
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)

async def drain():
    DurableJournal.mark_applied = die_at_the_mark
    async with opened(postgres(url, journal_dir=Path(journal_dir), journal_adopt="all")) as manager:
        await manager.wait_drained(30.0)

asyncio.run(drain())
"""


async def write_and_delete(saver: BaseCheckpointSaver[str]) -> None:
    """Fill a thread, delete it, and begin it anew: what is applied twice, or not at all, shows in the end."""
    for name in ("one", "two"):
        thread = Thread(saver, name)
        for step in range(3):
            await thread.put()
            await thread.put_writes(f"task-{step}")
        await saver.adelete_thread(name)
        again = Thread(saver, name)
        for step in range(4):
            await again.put()
            await again.put_writes(f"task-{step}")


@pytest.mark.parametrize("when", ["before", "after"])
async def test_process_that_is_killed_at_the_mark_of_each_step_leaves_what_its_twin_leaves(
    when: str, database_url: str, twin_database_url: str, tmp_path: Path
) -> None:
    journal_dir = tmp_path / "journal"
    async with opened(postgres(twin_database_url)) as twin:
        await write_and_delete(saver_of(twin))
    async with opened(postgres(NOBODY, journal_dir=journal_dir)) as manager:
        await write_and_delete(saver_of(manager))
    for marks_before in range(3):
        command = [sys.executable, "-c", DRAIN_AND_DIE, database_url, str(journal_dir), when, str(marks_before)]
        ended = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
    async with opened(postgres(database_url, journal_dir=journal_dir, journal_adopt="all")) as manager:
        await recovered(manager)
        assert manager.health_status["divergences"]["count"] == 0, "our own checkpoints are not another branch"
    assert_equal_dumps(dump_postgres(database_url), dump_postgres(twin_database_url))
    assert [path for path in journal_dir.iterdir() if path.name not in (audit.LOG, audit.HEAD)] == []


ARRIVALS = """
CREATE TABLE arrivals (number bigserial, thread_id text, checkpoint_id text);
CREATE FUNCTION arrived() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
INSERT INTO arrivals (thread_id, checkpoint_id) VALUES (NEW.thread_id, NEW.checkpoint_id); RETURN NEW; END $$;
CREATE TRIGGER arrived AFTER INSERT OR UPDATE ON checkpoints FOR EACH ROW EXECUTE FUNCTION arrived()
"""


class Together:
    """Some threads that go on at the same time, step by step."""

    def __init__(self, saver: BaseCheckpointSaver[str]) -> None:
        self.threads = [Thread(saver, f"thread-{number:02}") for number in range(12)]

    async def steps(self, count: int) -> None:
        await asyncio.gather(*(self._steps(thread, count) for thread in self.threads))

    async def _steps(self, thread: Thread, count: int) -> None:
        for _ in range(count):
            await thread.put()
            await thread.put_writes(f"task-{len(thread.ids)}")


@pytest.mark.parametrize("seed", [1, 2])
async def test_second_outage_at_a_random_operation_of_a_drain_keeps_order_and_equality(
    seed: int, private_postgres: LocalPostgres, twin_database_url: str
) -> None:
    outages, random = 4, Random(seed)
    async with opened(postgres(twin_database_url)) as twin:
        await Together(saver_of(twin)).steps(1 + 20 + outages)
    async with opened(postgres(private_postgres.url())) as manager:
        together = Together(saver_of(manager))
        await together.steps(1)
        with psycopg.connect(private_postgres.url()) as connection:
            connection.execute(ARRIVALS)
        await asyncio.to_thread(private_postgres.kill)
        await together.steps(20)
        reconciler = manager.components.reconciler
        assert reconciler is not None
        for _ in range(outages):
            reached = reconciler.drained + random.randint(1, 40)
            await asyncio.to_thread(private_postgres.start)
            await eventually(lambda reached=reached: reconciler.drained >= reached)  # type: ignore[misc]
            private_postgres.kill()  # at this very operation: the event loop stands still meanwhile
            assert manager.health_status["journal"]["pending"] > 0
            await together.steps(1)
        await asyncio.to_thread(private_postgres.start)
        await recovered(manager)
    with psycopg.connect(private_postgres.url()) as connection:
        rows = connection.execute("SELECT thread_id, checkpoint_id FROM arrivals ORDER BY number").fetchall()
    first_arrivals: dict[str, dict[str, None]] = defaultdict(dict)
    for thread_id, checkpoint_id in rows:
        first_arrivals[thread_id].setdefault(checkpoint_id)
    for thread in together.threads:
        assert list(first_arrivals[thread.thread_id]) == thread.ids[1:]
    assert_equal_dumps(dump_postgres(private_postgres.url()), dump_postgres(twin_database_url))


@pytest.mark.parametrize("on_divergence", ["newest_wins", "quarantine"])
async def test_branches_of_two_processes_of_which_one_was_cut_off_are_both_kept_and_reported(
    on_divergence: str, database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        switched("postgres", database_url, tmp_path, on_divergence=on_divergence) as cut_off,
        opened(postgres(database_url)) as connected,
    ):
        ours, theirs = Thread(saver_of(cut_off.manager), "shared"), Thread(saver_of(connected), "shared")
        for _ in range(2):
            await ours.put()
        theirs.go_on_from(ours)
        await theirs.timed_get()
        await cut_off.off()
        for _ in range(3):
            await ours.put()
            await theirs.put()
        await ours.put_writes("ours")
        await theirs.put_writes("theirs")
        assert cut_off.manager.health_status["journal"]["pending"] == 4
        await cut_off.on()
        await recovered(cut_off.manager)
        assert cut_off.manager.health_status["divergences"] == {"healthy": False, "count": 1}
        (line,) = [text for record in caplog.records if (text := record.getMessage()).startswith("divergence: ")]
        sibling = f"shared~outage~{ours.ids[2]}"
        kept_as = {"newest_wins": "shared", "quarantine": sibling}[on_divergence]
        assert f"head {theirs.ids[-1]} instead of {ours.ids[1]}" in line
        assert line.endswith(f"as {kept_as}")
    async with opened(postgres(database_url)) as fresh:
        for branch, thread_id, task in ((ours, kept_as, "ours"), (theirs, "shared", "theirs")):
            found = {item.checkpoint["id"]: item for item in await Thread(saver_of(fresh), thread_id).stored()}
            if on_divergence == "quarantine":
                assert list(found) == branch.ids, "nothing of the other branch"
            for number, checkpoint_id in enumerate(branch.ids):
                assert found[checkpoint_id].checkpoint["channel_values"] == {"count": [number], "profile": ["Ada"]}
            assert found[branch.ids[-1]].pending_writes == [(task, "count", "written")]


@pytest.mark.parametrize("on_divergence", ["newest_wins", "quarantine"])
async def test_late_deletion_does_not_erase_what_another_process_wrote_since(
    on_divergence: str, database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fields = {"journal_dir": tmp_path / "journal", "on_divergence": on_divergence}
    async with switched("postgres", database_url, tmp_path, **fields) as cut_off:
        ours = Thread(saver_of(cut_off.manager), "shared")
        await ours.put()
        await cut_off.off()
        await cut_off.manager.delete_thread("shared")
        assert cut_off.manager.health_status["journal"]["pending"] == 1
    async with opened(postgres(database_url, journal_dir=tmp_path / "another")) as connected:
        theirs = Thread(saver_of(connected), "shared")
        theirs.go_on_from(ours)
        for _ in range(2):
            await theirs.put()
    async with opened(postgres(database_url, **fields, journal_adopt="all")) as manager:  # the proxy's port
        await recovered(manager)
        assert manager.health_status["divergences"]["count"] == 1
        (line,) = [text for record in caplog.records if (text := record.getMessage()).startswith("divergence: ")]
        assert f"head {theirs.ids[-1]} instead of {ours.ids[0]}. The deletion was not applied" in line
        assert line.endswith("delete the thread again")
        thread = Thread(saver_of(manager), "shared")
        assert await thread.stored_ids() == theirs.ids
        await manager.delete_thread("shared")
        assert await thread.stored_ids() == []


async def test_young_thread_that_another_process_began_too_has_both_branches_and_is_reported(
    database_url: str, tmp_path: Path
) -> None:
    async with (
        switched("postgres", database_url, tmp_path, on_unknown_thread="raise") as cut_off,
        opened(postgres(database_url)) as connected,
    ):
        await Thread(saver_of(cut_off.manager), "contact").put()
        await cut_off.off()
        young = str(uuid6())
        ours, theirs = Thread(saver_of(cut_off.manager), young), Thread(saver_of(connected), young)
        await theirs.put()
        assert await saver_of(cut_off.manager).aget_tuple(ours.config) is None
        await ours.put()
        await cut_off.on()
        await recovered(cut_off.manager)
        assert cut_off.manager.health_status["divergences"]["count"] == 1
        assert await ours.stored_ids() == sorted(ours.ids + theirs.ids)
