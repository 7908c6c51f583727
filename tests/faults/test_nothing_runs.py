"""Nothing that is read is trusted: only the application's own read makes objects of what a database or a file says."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import ormsgpack
import pytest
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import TASKS

from enhanced_checkpointing import CheckpointerConfig, EnhancedCheckpointerManager
from enhanced_checkpointing.backends.registry import find_backend
from enhanced_checkpointing.errors import CheckpointerError
from enhanced_checkpointing.journal.api import Journal, JournalEntry
from enhanced_checkpointing.operations import PutWrites
from enhanced_checkpointing.serialization import Opaque, SharingSerializer
from enhanced_checkpointing.threads.retention import RetentionPolicy
from tests.support.backends import opened_backend, put
from tests.support.checkpointer import opened, postgres, recovered, saver_of, sqlite, switched
from tests.support.hostile import (
    MODULE,
    PERMISSIVE,
    TAGGED,
    THREADS,
    Trap,
    hostile_export,
    plant_in_postgres,
    plant_in_sqlite,
)
from tests.support.journals import add, opened_journal
from tests.support.terminal import Ended
from tests.support.threads import bare_postgres, bare_sqlite
from tests.support.watched import CHANGING, START, Watched, watched

SERDE = ("--serde", "tests.support.hostile:PERMISSIVE")
SLOWEST = 20.0
"""Seconds that a command may take here; it needs less than one."""

EXPECTED = re.compile(
    r"(primary|other)\.sqlite.*|file:|export\.jsonl.*|journal|out|quarantine|/dev/null"
    r"|[0-9a-f]{32}\.(\d{6}\.journal|lock|spare)(\.partial)?|\.(threads|audit\.(jsonl|head)|erased.*)|\.checkpointing-\w{8}"
)
"""What a command may open to write or change, of the working directory and in the journal's."""

kinds = pytest.mark.parametrize("kind", ["sqlite", "postgres"])


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trap:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    return Trap(tmp_path)


def config_of(kind: str, database_url: str, folder: Path) -> CheckpointerConfig:
    fields: dict[str, Any] = {"serde": PERMISSIVE, "journal_dir": folder / "journal", "deadline": 5.0}
    return sqlite(folder / "primary.sqlite", **fields) if kind == "sqlite" else postgres(database_url, **fields)


async def planted(kind: str, database_url: str, folder: Path, trap: Trap) -> CheckpointerConfig:
    """A database with the corpus in it."""
    config = config_of(kind, database_url, folder)
    async with opened_backend(config):
        pass
    plant_in_sqlite(folder / "primary.sqlite", trap) if kind == "sqlite" else plant_in_postgres(database_url, trap)
    return config


@kinds
async def test_application_that_reads_these_rows_itself_runs_what_they_say_unless_it_is_strict(
    kind: str, database_url: str, tmp_path: Path, trap: Trap
) -> None:
    """The corpus is live: without this, the other tests would say nothing."""
    config = await planted(kind, database_url, tmp_path, trap)
    of_msgpack = {*(f"extension {code}" for code in (0, 1, 2, 4, 5, 6, 7)), "imported"}
    live: dict[str, set[str]] = dict.fromkeys(("value", "write", "sent"), of_msgpack)
    live |= {"key": of_msgpack if kind == "sqlite" else set(), "metadata": set()}
    live |= {"json 1": set(), "json 2": {"json 2"}, "pickle": {"pickle"}}
    async with (
        opened(config) as manager,
        bare_sqlite(tmp_path / "primary.sqlite") if kind == "sqlite" else (bare_postgres(database_url)) as bare,
    ):
        for saver in (bare, saver_of(manager)):
            saver.serde = PERMISSIVE if saver is bare else saver.serde
            for thread in THREADS:
                sys.modules.pop(MODULE, None)
                with suppress(ValueError) if thread == "json 1" else nullcontext():  # LangChain refuses all of it
                    await saver.aget_tuple({"configurable": {"thread_id": thread}})
                assert trap.sprung() == live[thread], (saver, thread)
        bare.serde = JsonPlusSerializer(allowed_msgpack_modules=None)
        for thread in {*THREADS} - {*TAGGED}:
            await bare.aget_tuple({"configurable": {"thread_id": thread}})
            assert trap.sprung() == set(), thread


@kinds
async def test_no_method_of_the_manager_runs_what_rows_say(
    kind: str, database_url: str, tmp_path: Path, trap: Trap
) -> None:
    config = await planted(kind, database_url, tmp_path, trap)
    refused: set[str] = set()

    async def calm(name: str, call: Callable[[], Awaitable[object]]) -> None:
        try:
            async with asyncio.timeout(SLOWEST):
                await call()
        except CheckpointerError:
            refused.add(name)
        assert trap.sprung() == set(), name

    async with opened(config) as manager:
        await calm("start", lambda: asyncio.sleep(0))
        assert {one["thread_id"] for one in await manager.list_threads()} == {*THREADS}
        await calm("list", lambda: manager.list_threads(step=2))
        await calm("health", manager.health_check)
        for thread in THREADS:
            for name, call in calls(manager, thread).items():
                await calm(f"{name} {thread}", call)
        await calm("delete_for_runs", lambda: manager.delete_for_runs(["run"]))
        for policy in (RetentionPolicy(active_days=100_000, keep=1), RetentionPolicy(active_days=0)):
            await calm("retention", lambda policy=policy: manager.run_retention(policy))  # type: ignore[misc]
        for thread in THREADS:
            await calm(f"delete {thread}", lambda thread=thread: manager.delete_thread(thread))  # type: ignore[misc]
        assert await manager.list_threads() == []
        assert trap.sprung() == set()
    assert refused <= ({"mark_completed pickle", "mark_failed pickle"} if kind == "sqlite" else set())


@kinds
async def test_mark_in_an_outage_and_its_drain_run_nothing_either(
    kind: str, database_url: str, tmp_path: Path, trap: Trap
) -> None:
    await planted(kind, database_url, tmp_path, trap)
    path, fields = tmp_path / "primary.sqlite", {"serde": PERMISSIVE, "journal_dir": tmp_path / "journal"}
    async with switched(kind, database_url, path, **fields) as primary:
        manager = primary.manager
        readable = [thread for thread in THREADS if thread != "json 1"]
        for thread in readable:
            await saver_of(manager).aget_tuple({"configurable": {"thread_id": thread}})
        trap.sprung()
        await primary.off()
        for thread in readable:
            await manager.mark_completed(thread)
            assert trap.sprung() == set(), thread
        await primary.on()
        await recovered(manager)
        assert trap.sprung() == set()
        statuses = {one["thread_id"]: one["status"] for one in await manager.list_threads()}
        assert statuses == {**dict.fromkeys(readable, "completed"), "json 1": "active"}


def calls(manager: EnhancedCheckpointerManager, thread: str) -> dict[str, Callable[[], Awaitable[object]]]:
    return {
        "get": lambda: manager.get_thread(thread),
        "copy": lambda: manager.copy_thread(thread, f"copy of {thread}"),
        "prune": lambda: manager.prune([f"copy of {thread}"]),
        "mark_completed": lambda: manager.mark_completed(thread),
        "mark_failed": lambda: manager.mark_failed(thread),
        "delete": lambda: manager.delete_thread(f"copy of {thread}"),
    }


def calm(process: Watched, folder: Path, trap: Trap, *words: object, code: int = 0) -> Ended:
    """Run a command, or a start, in the watched process: it ends well and in time, began no process, imported nothing
    of the attacker's, and changed no files but the database's, the journal's and those that it was told to make."""
    ended, events = process.run(*words)
    assert trap.sprung() == set(), words
    assert "Traceback" not in ended.out + ended.err, (words, ended.err)
    assert ended.seconds < SLOWEST, words
    assert ended.code == code, (words, ended.out, ended.err)
    for event, *arguments in events:
        if event == "import":
            assert arguments[0].partition(".")[0] != MODULE, words
            assert not arguments[1].startswith(str(folder)), (words, arguments)
        else:
            assert event in ("open", "sqlite3.connect", *CHANGING), (words, event, arguments)
            for path in (folder / one for one in arguments if not one.lstrip("-").isdigit() and one != "None"):
                inside = path.relative_to(folder).parts[0] if path.is_relative_to(folder) else str(path)
                assert EXPECTED.fullmatch(inside), (words, event, arguments)
    return ended


def damage(directory: Path) -> None:
    (file,) = directory.glob("*.journal")
    file.write_bytes(file.read_bytes()[:-1] + b"x")


async def planted_journal(directory: Path, home: str, trap: Trap) -> None:
    """What an ended process left: the corpus in the records of each thread, a dead letter and a damaged file of it."""
    extensions = ormsgpack.unpackb(trap.packed().data, ext_hook=Opaque)
    values = {"note": trap.packed().data}

    async def add_all(journal: Journal, suffix: str) -> list[JournalEntry]:
        entries = []
        for number, (thread, metadata) in enumerate({"plain": {}, "hostile": {"more": extensions}}.items()):
            one = put(f"{thread}{suffix}", number + 3, values=values, metadata=metadata)
            one.skeleton = {**one.skeleton, "one more": extensions}
            entries.append(await add(journal, one))
            for tag, value in (("packed", trap.packed()), ("json", trap.in_json()), ("pickle", trap.pickled())):
                writes = (("note", value), (TASKS, value))
                await add(journal, PutWrites(one.thread_id, "", one.checkpoint_id, writes, tag))
        return entries

    async with opened_journal(directory, home=home) as journal:
        await add_all(journal, " damaged")
    damage(directory)
    async with opened_journal(directory, home=home) as journal:
        await add_all(journal, " waiting")
        for entry in await add_all(journal, " refused"):
            await journal.dead_letter(entry, "refused for good")


@kinds
def test_no_command_on_the_journal_and_no_start_runs_what_its_records_say(
    kind: str, database_url: str, tmp_path: Path, trap: Trap
) -> None:
    asyncio.run(planted(kind, database_url, tmp_path, trap))
    path, directory = tmp_path / "primary.sqlite", tmp_path / "journal"
    where = ["--sqlite", str(path)] if kind == "sqlite" else ["--database-url", database_url]
    where += ["--journal-dir", str(directory)]
    config = config_of(kind, database_url, tmp_path)
    home = find_backend(config.backend_name)(config, SharingSerializer(PERMISSIVE)).database_id()
    asyncio.run(planted_journal(directory, home, trap))
    fields: dict[str, object] = {"journal_dir": str(directory), "checkpointer_type": kind}
    fields |= {"database_path": str(path)} if kind == "sqlite" else {"connection_string": database_url}
    with watched(tmp_path) as process:
        run = partial(calm, process, tmp_path, trap)
        for name in ("status", "dead-letters", "quarantine"):
            run("journal", name, *where[2:], code=1)
        run("journal", "quarantine", "--copy-to", tmp_path / "out", *where[2:], code=1)
        run("doctor", *where, code=1)
        run("threads", "show", "plain waiting", *where, *SERDE, code=1)
        run("journal", "drain", *where, code=1)
        run("journal", "retry", "--all", *where, code=1)
        run(START, json.dumps(fields))
        for thread in ("plain waiting", "hostile damaged", "pickle"):
            run("erase", "--thread", thread, "--dry-run", *where)
            run("erase", "--thread", thread, "--yes", *where)
        run("erase", "--user", "ada", "--yes", *where)
        run("audit", "show", *where[2:])
        run("audit", "verify", *where[2:])


@kinds
def test_no_command_runs_what_rows_or_the_lines_of_an_export_say(
    kind: str, database_url: str, twin_database_url: str, tmp_path: Path, trap: Trap
) -> None:
    asyncio.run(planted(kind, database_url, tmp_path, trap))
    (tmp_path / "journal").mkdir(mode=0o700)
    path = tmp_path / "primary.sqlite"
    source = str(path) if kind == "sqlite" else database_url
    where = ["--sqlite", str(path)] if kind == "sqlite" else ["--database-url", database_url]
    where += ["--journal-dir", str(tmp_path / "journal")]
    exported, forged = tmp_path / "export.jsonl", tmp_path / "forged.jsonl"
    forged.write_bytes(hostile_export(trap))

    with watched(tmp_path) as process:
        run = partial(calm, process, tmp_path, trap)
        run("doctor", *where, code=0)
        run("health", *where, code=0)
        run("setup", *where[:2])
        run("journal", "status", *where[2:])
        run("threads", "list", *where[:2])
        for thread in THREADS:
            code = 1 if thread == "pickle" and kind == "sqlite" else 0
            run("threads", "show", thread, *where, *SERDE, code=code)
            run("threads", "history", thread, *where, code=code)
            run("threads", "diff", thread, *where, *SERDE, code=code)
        run("export", source, exported, *SERDE, code=1 if kind == "sqlite" else 0)
        for target in (tmp_path / "other.sqlite", twin_database_url):
            for orders in ((), ("--overwrite",)):
                refused = int(kind == "sqlite" or target != twin_database_url)  # what is pickled
                run("migrate", source, target, *SERDE, *orders, code=refused)
                run("import", exported, target, *SERDE, *orders, code=refused)
                run("import", forged, target, *SERDE, *orders, code=1)
            run("import", forged, target, code=1)
        run("threads", "copy", "value", "copy", *where)
        run("threads", "prune", "copy", "json 2", "--yes", *where)
        run("threads", "delete", "copy", "write", "pickle", "--yes", *where)
        run("retention", "run", "--active-days", "30000", "--keep", "1", *where)
        run("retention", "run", "--active-days", "0", *where)
