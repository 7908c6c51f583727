"""What is erased is gone from every file, comes back from no process, and what remains is told."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from enhanced_checkpointing import CheckpointNotFoundError, CheckpointUnavailableError, EnhancedCheckpointerManager
from enhanced_checkpointing.audit import AuditTrail
from enhanced_checkpointing.tombstones import Tombstones
from tests.support.checkpointer import eventually, opened, postgres, recovered, saver_of, sqlite, switched
from tests.support.terminal import command
from tests.support.two_processes import off, one_node

SECRET = "the-secret-of-ada-"
OTHERS = "what-bob-said-"


def graph_of(manager: EnhancedCheckpointerManager) -> Any:
    return one_node("say", lambda _: {"log": ["heard"]}).compile(checkpointer=saver_of(manager))


async def say(manager: EnhancedCheckpointerManager, thread_id: str, word: str, user: str | None = None) -> list[str]:
    config = manager.create_thread_config(thread_id, user_id=user)
    said: list[str] = (await graph_of(manager).ainvoke({"log": [word * 20]}, config))["log"]
    return said


async def heard(manager: EnhancedCheckpointerManager, thread_id: str) -> list[str]:
    found = await graph_of(manager).aget_state({"configurable": {"thread_id": thread_id}})
    log: list[str] = found.values.get("log", [])
    return log


def files_with(word: str, *directories: Path) -> list[str]:
    """The files that have a word anywhere in their bytes."""
    files = [path for directory in directories for path in directory.rglob("*") if path.is_file()]
    return [str(path) for path in files if word.encode() in path.read_bytes()]


async def test_no_byte_of_an_erased_thread_is_left_and_all_others_are(tmp_path: Path) -> None:
    data, journal = tmp_path / "data", tmp_path / "journal"
    async with switched("sqlite", "", data / "agents.sqlite", journal_dir=journal) as primary:
        manager = primary.manager
        for _ in range(3):
            await say(manager, "ada", SECRET)
            await say(manager, "bob", OTHERS)
        await off(primary)
        for _ in range(3):
            await say(manager, "ada", SECRET)
            await say(manager, "bob", OTHERS)
        assert files_with(SECRET, data)
        assert files_with(SECRET, journal)
        receipt = await manager.erase(thread_id="ada")
        assert not receipt.complete
        assert receipt.counts["journal records"] >= 3
        assert files_with(SECRET, journal) == []
        assert files_with(OTHERS, journal) != []
        await primary.on()
        await recovered(manager)
        again = await manager.erase(thread_id="ada")
        assert again.complete, again
        assert files_with(SECRET, tmp_path) == []
        assert await heard(manager, "ada") == []
        assert (await heard(manager, "bob")).count(OTHERS * 20) == 6
        assert await say(manager, "ada", "anew") == ["anew" * 20, "heard"]
    assert [entry["action"] for entry in AuditTrail(journal).entries()] == ["erase", "erase"]
    assert files_with('"ada"', journal) == []  # with its quotes: a hash may have those letters


@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
async def test_erased_thread_comes_back_neither_from_this_process_nor_from_another_one_that_has_it_warm(
    backend: str, database_url: str, tmp_path: Path
) -> None:
    file, journal = tmp_path / "agents.sqlite", tmp_path / "journal"
    fields: dict[str, Any] = {"journal_dir": journal, "on_unknown_thread": "start_fresh"}
    async with switched(backend, database_url, file, **fields) as other, opened(other.manager.config) as ours:
        await say(ours, "ada", SECRET)
        await say(other.manager, "ada", SECRET)
        await say(other.manager, "bob", OTHERS)
        turn = await graph_of(other.manager).aget_state({"configurable": {"thread_id": "ada"}})
        await off(other)
        await say(other.manager, "ada", SECRET)  # in its journal, with all values of its warm copy
        await other.manager.erase(thread_id="bob")
        receipt = await ours.erase(thread_id="ada")
        assert receipt.pending
        assert files_with(SECRET, journal) == []
        # It is refused already at its read: the deletion waits in the journal of the process that erased the thread.
        with pytest.raises((CheckpointNotFoundError, CheckpointUnavailableError)):
            await graph_of(other.manager).aupdate_state(turn.config, {"log": [SECRET]})
        await other.on()
        await recovered(other.manager)
        await recovered(ours)
        for manager in (ours, other.manager):
            assert await heard(manager, "ada") == []
            assert await heard(manager, "bob") == []
            with pytest.raises(CheckpointNotFoundError, match="was erased"):
                await graph_of(manager).aupdate_state(turn.config, {"log": [SECRET]})
        assert await say(other.manager, "ada", "anew") == ["anew" * 20, "heard"]


@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
async def test_thread_that_is_deleted_in_an_outage_is_written_back_by_no_warm_copy(
    backend: str, database_url: str, tmp_path: Path
) -> None:
    """Nor by a turn under way in another process of the directory, while the deletion waits and when it was made."""
    file, journal = tmp_path / "agents.sqlite", tmp_path / "journal"
    async with switched(backend, database_url, file, journal_dir=journal, on_unknown_thread="start_fresh") as primary:
        ours = primary.manager
        stays_out = ours.config.with_overrides(probe_backoff_min=60.0, probe_backoff_max=60.0)
        async with opened(stays_out) as other:
            for thread_id in ("here", "there"):
                await say(ours, thread_id, SECRET)
                await say(other, thread_id, SECRET)
            turn = await graph_of(other).aget_state({"configurable": {"thread_id": "there"}})
            await off(primary)
            other.components.breaker.trip("by a test")
            assert await ours.delete_thread("here")
            assert await ours.delete_thread("there")
            assert await say(ours, "here", "anew") == ["anew" * 20, "heard"]
            for _ in range(2):  # while the deletion waits, and once it was made
                with pytest.raises(CheckpointUnavailableError):
                    await say(other, "there", SECRET)
                with pytest.raises(CheckpointUnavailableError):
                    await graph_of(other).aupdate_state(turn.config, {"log": [SECRET]})
                await primary.on()
                await recovered(ours)
            assert other.components.breaker.is_open
        async with opened(ours.config) as other:  # which takes over what that one has left, if anything
            await recovered(other)
            for manager in (ours, other):
                assert await heard(manager, "there") == []
                assert await heard(manager, "here") == ["anew" * 20, "heard"]


async def test_journal_of_the_same_database_under_another_name_is_told(database_url: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"journal_dir": tmp_path}
    async with (
        switched("postgres", database_url, tmp_path, **fields) as other,
        opened(postgres(database_url, **fields)) as ours,
    ):
        await say(other.manager, "ada", SECRET)
        await off(other)
        await say(other.manager, "ada", SECRET)
        receipt = await ours.erase(thread_id="ada")
        assert "under another name" in " ".join(receipt.pending)
        assert any("VACUUM FULL" in remains for remains in receipt.remains)
        await other.on()


async def test_erasure_by_user_takes_what_the_user_owns_or_alone_is_named_by_and_nothing_of_others(
    tmp_path: Path,
) -> None:
    async with opened(sqlite(tmp_path / "agents.sqlite", journal_dir=tmp_path / "journal")) as manager:
        for number in range(5):
            await say(manager, f"ada-{number}", SECRET, "ada")
        bare = {"configurable": {"thread_id": "bare", "user_id": "ada"}}
        await graph_of(manager).ainvoke({"log": [SECRET]}, bare)
        await say(manager, "bobs", OTHERS, "bob")
        with pytest.raises(CheckpointNotFoundError):
            await manager.erase(thread_id="bobs", user_id="ada")
        plan = await manager.erase(user_id="ada", dry_run=True)
        assert len(plan.thread_ids) == 6
        assert (await heard(manager, "ada-1"))[0].startswith(SECRET)
        receipt = await asyncio.to_thread(manager.erase_sync, user_id="ada")
        assert set(receipt.thread_ids) == set(plan.thread_ids)
        assert receipt.complete
        assert await manager.list_threads(user_id="ada") == []
        assert [entry["thread_id"] for entry in await manager.list_threads(user_id="bob")] == ["bobs"]
        assert files_with(SECRET, tmp_path) == []


async def test_in_an_outage_a_user_is_not_erased_by_halves(tmp_path: Path) -> None:
    async with switched("sqlite", "", tmp_path / "agents.sqlite", journal_dir=tmp_path / "journal") as primary:
        await say(primary.manager, "ada", SECRET, "ada")
        await off(primary)
        with pytest.raises(CheckpointUnavailableError):
            await primary.manager.erase(user_id="ada")
        assert not Tombstones(tmp_path / "journal", "").refresh()


KILLED = """
import asyncio, sys
from tests.faults.test_erasure import *
async def main(file, journal):
    async with switched("sqlite", "", Path(file), journal_dir=Path(journal)) as primary:
        for number in range(6):
            await say(primary.manager, f"ada-{number}", SECRET, "ada")
        await say(primary.manager, "bob", OTHERS, "bob")
        await off(primary)
        for number in range(6):
            await say(primary.manager, f"ada-{number}", SECRET, "ada")
        await primary.on()
        print("ready", flush=True)
        await primary.manager.erase(user_id="ada")
        await asyncio.sleep(60)
asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("after", [0.05, 0.3])
async def test_erasure_that_is_killed_is_finished_by_asking_again(after: float, tmp_path: Path) -> None:
    file, journal = tmp_path / "agents.sqlite", tmp_path / "journal"
    arguments = [sys.executable, "-c", KILLED, str(file), str(journal)]
    process: subprocess.Popen[bytes] = await asyncio.to_thread(
        lambda: subprocess.Popen(arguments, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE)
    )
    try:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == b"ready\n"
        await asyncio.sleep(after)
    finally:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        await asyncio.to_thread(process.wait)
        assert process.stdout is not None
        process.stdout.close()
    async with opened(sqlite(file, journal_dir=journal)) as manager:
        await recovered(manager)
        receipt = await manager.erase(user_id="ada")
        assert receipt.complete, receipt
        assert await manager.list_threads(user_id="ada") == []
        assert len(await heard(manager, "bob")) == 2
    assert files_with(SECRET, tmp_path) == []


def test_command_erases_and_names_exports_after_a_question(tmp_path: Path) -> None:
    file, journal = tmp_path / "agents.sqlite", tmp_path / "journal"

    async def talk() -> None:
        async with opened(sqlite(file, journal_dir=journal)) as manager:
            await say(manager, "one", SECRET, "ada")
            await say(manager, "two", OTHERS, "bob")

    asyncio.run(talk())
    variables = {"CHECKPOINT_JOURNAL_DIR": str(journal)}
    assert command("export", file, tmp_path / "out.jsonl", "--thread", "one", **variables).code == 0
    where = ("--sqlite", file)
    assert command("erase", "--user", "ada", *where, **variables).code == 2
    plan = command("erase", "--user", "ada", "--dry-run", "--json", *where, **variables)
    assert (plan.code, plan.report["thread_ids"]) == (0, ["one"])
    assert files_with(SECRET, tmp_path)
    done = command("erase", "--user", "ada", "--yes", "--json", *where, **variables)
    assert (done.code, done.report["status"], done.report["thread_ids"]) == (0, "complete", ["one"])
    assert done.report["exports"] == [str(tmp_path / "out.jsonl")]
    assert any("backups" in remains for remains in done.report["remains"])
    (tmp_path / "out.jsonl").unlink()
    assert files_with(SECRET, tmp_path) == []
    assert "Erased" in command("erase", "--thread", "one", "--yes", *where, **variables).words
    with sqlite3.connect(file) as database:
        assert database.execute("SELECT DISTINCT thread_id FROM checkpoints").fetchall() == [("two",)]
    assert command("erase", "--yes", *where, **variables).code == 2
    assert command("audit", "verify", **variables).code == 0


def test_receipt_names_what_an_export_that_was_killed_has_left(tmp_path: Path) -> None:
    file, journal = tmp_path / "agents.sqlite", tmp_path / "journal"

    async def talk() -> None:
        async with opened(sqlite(file, journal_dir=journal)) as manager:
            for number in range(120):
                await say(manager, f"ada {number}", SECRET, "ada")

    asyncio.run(talk())
    variables = {"CHECKPOINT_JOURNAL_DIR": str(journal)}
    arguments = [sys.executable, "-m", "enhanced_checkpointing.cli.entry", "export", str(file), str(tmp_path / "out")]
    with subprocess.Popen(arguments, env={**os.environ, **variables}) as process:
        until = time.monotonic() + 20
        while not (left := [*tmp_path.glob("out.*.part")]) and time.monotonic() < until:
            time.sleep(0.005)
        process.kill()
    where = ("--sqlite", file)
    receipt = command("erase", "--thread", "ada 1", "--yes", "--json", *where, **variables).report
    assert receipt["exports"] == [str(part) for part in left]
    left[0].unlink()
    receipt = command("erase", "--thread", "ada 2", "--yes", "--json", *where, **variables).report
    assert receipt["exports"] == []


async def test_thread_that_is_only_named_like_a_branch_is_not_erased_for_another_user(tmp_path: Path) -> None:
    async with opened(sqlite(tmp_path / "agents.sqlite").with_overrides(journal_dir=tmp_path / "journal")) as manager:
        await say(manager, "one~outage~1", SECRET, "ada")
        await say(manager, "one", OTHERS, "bob")
        receipt = await manager.erase(thread_id="one", user_id="bob")
        assert receipt.thread_ids == ("one",)
        assert any("other owners" in told for told in receipt.remains)
        assert await heard(manager, "one~outage~1") != []
        assert len((await manager.erase(thread_id="one")).thread_ids) == 2


async def test_branch_in_quarantine_goes_with_its_thread(tmp_path: Path) -> None:
    file, journal = tmp_path / "agents.sqlite", tmp_path / "journal"
    fields: dict[str, Any] = {"journal_dir": journal, "on_divergence": "quarantine"}
    async with switched("sqlite", "", file, **fields) as ours, opened(sqlite(file)) as other:
        await say(ours.manager, "ada", SECRET)
        ours.manager.components.breaker.trip("by a test")
        await say(ours.manager, "ada", SECRET)
        await say(other, "ada", SECRET)
        await recovered(ours.manager)
        await eventually(lambda: bool(ours.manager.health_status))
        assert len(await ours.manager.list_threads()) == 2
        receipt = await ours.manager.erase(thread_id="ada")
        assert len(receipt.thread_ids) == 2
        assert await ours.manager.list_threads() == []


@pytest.mark.parametrize("key", [None, "k" * 32], ids=["unsigned", "signed"])
async def test_records_in_copies_of_damaged_files_are_overwritten_whether_they_are_signed_or_not(
    key: str | None, tmp_path: Path
) -> None:
    journal, file = tmp_path / "journal", tmp_path / "agents.sqlite"
    async with switched("sqlite", "", file, journal_dir=journal, journal_key=key, shutdown_grace=0.01) as primary:
        await off(primary)
        await say(primary.manager, "bob", OTHERS)
        await say(primary.manager, "ada", SECRET)
    (left,) = journal.glob("*.journal")
    left.write_bytes(left.read_bytes().replace(OTHERS.encode(), OTHERS.upper().encode(), 1))
    async with opened(sqlite(file, journal_dir=journal, journal_key=key)) as manager:
        assert files_with(SECRET, journal / "quarantine")
        receipt = await manager.erase(thread_id="ada")
        assert receipt.counts["quarantined records"] >= 2
    assert files_with(SECRET, journal / "quarantine") == []


async def test_nothing_is_drained_while_what_was_erased_cannot_be_read(
    tmp_path: Path, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    journal = tmp_path / "journal"
    async with switched("sqlite", database_url, tmp_path / "file", journal_dir=journal) as primary:
        manager = primary.manager
        await say(manager, "gone", "secret")
        await say(manager, "kept", "one")
        assert (await manager.erase(thread_id="gone")).complete
        await off(primary)
        said = await say(manager, "kept", "two")
        (journal / ".erased").rename(journal / ".away")
        (journal / ".erased").mkdir()
        await primary.on()
        await eventually(lambda: "What was erased cannot be read" in caplog.text)
        assert not await manager.wait_drained(0.5)
        assert manager.health_status["journal"]["pending"] > 0
        (journal / ".erased").rmdir()
        (journal / ".away").rename(journal / ".erased")
        await recovered(manager)
        assert await heard(manager, "kept") == said
