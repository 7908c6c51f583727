"""`checkpointing journal …` on what real processes left, while others run: nothing is lost, and nobody is robbed."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.serde.base import SerializerProtocol

from benchmarks.journal import NOBODY
from enhanced_checkpointing.audit import HEAD, LOG
from enhanced_checkpointing.cli import output
from enhanced_checkpointing.cli.threads import list as threads_list
from enhanced_checkpointing.journal import workers as thread_table
from enhanced_checkpointing.recovery.divergence import APART
from tests.support.checkpointer import eventually, opened, postgres, recovered, saver_of, sqlite
from tests.support.checkpoints import Thread
from tests.support.cipher import encrypting
from tests.support.disks import bound_by_modes, folder_without_root, set_modes
from tests.support.journals import add, opened_journal
from tests.support.terminal import Ended, command

FILE = Path("checkpoints.sqlite")
JOURNAL = Path(".checkpoints/journal")
FORBID = """
CREATE TRIGGER rule BEFORE INSERT ON checkpoints WHEN CAST(NEW.metadata AS TEXT) LIKE '%forbidden%'
BEGIN SELECT RAISE(ABORT, 'this is forbidden here'); END
"""
PUTS = 5


def journal(*arguments: object, **environment: str | None) -> Ended:
    return command("journal", *arguments, "--json", **environment)


def execute(statement: str) -> None:
    with closing(sqlite3.connect(FILE, isolation_level=None)) as connection:
        connection.execute(statement)


def set_up() -> None:
    assert command("setup", "--sqlite", FILE).code == 0


def leave(*names: str, serde: SerializerProtocol | None = None, **metadata: Any) -> dict[str, list[str]]:
    """Let a process end in an outage of the file; returns the checkpoints that it acknowledged, by thread."""
    blocker = sqlite3.connect(FILE, isolation_level=None)
    threads: dict[str, list[str]] = {}

    async def write() -> None:
        async with opened(sqlite(FILE, deadline=1.0, breaker_failures=1, serde=serde)) as manager:
            blocker.execute("BEGIN EXCLUSIVE")
            for name in names:
                manager.create_thread_config(name, new=True)
                thread = Thread(saver_of(manager), name)
                for _ in range(PUTS):
                    await thread.put(**metadata)
                threads[name] = thread.ids

    with closing(blocker):
        asyncio.run(write())
    return threads


def stored(thread_id: str) -> list[str]:
    query = "SELECT checkpoint_id FROM checkpoints WHERE thread_id = ? ORDER BY checkpoint_id"
    with closing(sqlite3.connect(FILE)) as connection:
        return [str(row[0]) for row in connection.execute(query, (thread_id,))]


def contents() -> dict[str, bytes]:
    """All of it but the table that processes meet in, which each of them changes."""
    files = (path for path in JOURNAL.rglob("*") if path.is_file() and path.name != thread_table.TABLE_NAME)
    return {str(path): path.read_bytes() for path in files}


@pytest.fixture(autouse=True)
def tables() -> None:
    set_up()


def test_directory_that_is_not_there_is_empty() -> None:
    for name in ("status", "dead-letters", "quarantine", "drain"):
        ended = journal(name)
        assert (ended.code, JOURNAL.exists()) == (0, False), name


def test_directory_that_is_named_and_is_not_there_is_not_taken_for_one_in_which_nothing_waits() -> None:
    ended = command("journal", "status", "--journal-dir", "jurnal")
    assert (ended.code, "no directory" in ended.err, "jurnal" in ended.err) == (2, True, True)


def test_backlog_of_an_ended_process_is_shown_without_a_change_and_drained() -> None:
    threads = leave("a", "b")
    before = contents()
    ended = journal("status")
    (book,) = ended.report["books"]
    assert (ended.code, ended.report["pending"], book["owner"], book["threads"]) == (1, 2 * PUTS, "dead", 2)
    assert book["home"] == str(FILE.resolve())
    assert "10 operations wait" in command("journal", "status").words
    assert contents() == before
    ended = journal("drain", "--sqlite", FILE)
    assert (ended.code, ended.report["drained"], ended.report["left"]) == (0, 2 * PUTS, [])
    assert {name: stored(name) for name in threads} == threads
    assert set(os.listdir(JOURNAL)) == {HEAD, LOG}  # what was drained is in the audit trail
    assert command("journal", "status").words.endswith("Nothing waits, nothing is damaged.")


def test_drain_into_postgres_brings_everything_and_is_harmless_to_repeat(database_url: str) -> None:
    async def write() -> list[str]:
        async with opened(postgres(NOBODY)) as manager:
            manager.create_thread_config("thread", new=True)
            thread = Thread(saver_of(manager), "thread")
            for _ in range(PUTS):
                await thread.put()
            return thread.ids

    async def read() -> list[str]:
        async with opened(postgres(database_url)) as manager:
            return await Thread(saver_of(manager), "thread").stored_ids()

    ids = asyncio.run(write())
    ended = journal("drain", "--database-url", database_url)
    assert (ended.code, ended.report["drained"]) == (1, 0)
    assert "for another database (postgres://127.0.0.1:1/nowhere)" in ended.report["left"][0]
    for drained in (PUTS, 0):
        ended = journal("drain", "--database-url", database_url, CHECKPOINT_JOURNAL_ADOPT="all")
        assert (ended.code, ended.report["drained"]) == (0, drained)
    assert asyncio.run(read()) == ids


def test_journal_of_a_running_process_is_left_to_it() -> None:
    set_up()

    async def run(look: Callable[[], None]) -> None:
        blocker = sqlite3.connect(FILE, isolation_level=None, check_same_thread=False)
        with closing(blocker):
            async with opened(sqlite(FILE, deadline=0.6)) as manager:
                blocker.execute("BEGIN EXCLUSIVE")
                manager.create_thread_config("mine", new=True)
                thread = Thread(saver_of(manager), "mine")
                await thread.put()
                await asyncio.to_thread(look)
                blocker.rollback()
                await recovered(manager)
                assert stored("mine") == thread.ids

    def look() -> None:
        (book,) = journal("status").report["books"]
        assert (book["owner"], book["process_ids"], book["pending"]) == ("alive", [os.getpid()], 1)
        ended = journal("drain", "--sqlite", FILE)
        assert (ended.code, ended.report["drained"]) == (1, 0)
        assert f"process {os.getpid()}" in ended.report["left"][0]
        assert [each["pending"] for each in journal("status").report["books"]] == [1]

    asyncio.run(run(look))


def test_drain_into_memory_or_into_a_database_that_is_down_changes_nothing() -> None:
    leave("a")
    before = contents()
    ended = command("journal", "drain")
    assert (ended.code, "The primary is memory" in ended.err) == (2, True)
    with closing(sqlite3.connect(FILE, isolation_level=None)) as blocker:
        blocker.execute("BEGIN EXCLUSIVE")
        ended = journal("drain", "--sqlite", FILE, CHECKPOINT_DEADLINE="0.3")
    assert (ended.code, ended.report["drained"]) == (1, 0)
    assert "takes no writes (database is locked)" in ended.report["error"]
    assert contents() == before


def test_drain_ends_when_its_time_is_over_and_says_what_still_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    leave("a")
    from enhanced_checkpointing.backends.sqlite.backend import SqliteBackend

    async def never(*arguments: object) -> bool:
        await asyncio.sleep(60)
        return True

    monkeypatch.setattr(SqliteBackend, "apply_all", never)
    ended = journal("drain", "--sqlite", FILE, "--timeout", "0.5", CHECKPOINT_DEADLINE="0.3")
    assert (ended.code, ended.report["drained"], ended.report["journal"]["pending"]) == (1, 0, PUTS)
    assert "5 operations wait still" in ended.report["left"][0]
    assert ended.seconds < 10


def test_journal_that_an_application_encrypts_is_left_to_it_as_it_is() -> None:
    ids = leave("secret", serde=encrypting())["secret"]
    before = contents()
    ended = journal("drain", "--sqlite", FILE)
    assert (ended.code, ended.report["drained"]) == (1, 0)
    assert "that application drains" in ended.report["left"][0]
    assert contents() == before

    async def drain() -> None:
        async with opened(sqlite(FILE, serde=encrypting())) as manager:
            await recovered(manager)

    asyncio.run(drain())
    assert stored("secret") == ids


# Dead letters


def poison(*names: str) -> dict[str, list[str]]:
    """Let the first operation of each of these threads be refused for good, by a drain."""
    threads = leave(*names, forbidden=True)
    execute(FORBID)
    ended = journal("drain", "--sqlite", FILE)
    assert ended.code == 1
    assert {letter["thread_id"] for letter in ended.report["refused"]} == set(names)
    assert all(told.startswith("Refused: thread ") for told in ended.report["left"][: len(names)])
    assert "then: checkpointing journal retry --all" in ended.report["left"][0]
    return threads


def test_dead_letters_are_listed_and_retried_once_the_cause_is_mended() -> None:
    threads = poison("a", "b")
    ended = journal("dead-letters")
    first, second = ended.report["dead_letters"]
    assert (ended.code, first["thread_id"], second["thread_id"]) == (1, "a", "b")
    assert (first["operation"], first["checkpoint_id"]) == ("put", threads["a"][0])
    assert "this is forbidden here" in first["error"]
    words = command("journal", "dead-letters").words
    assert f"put of checkpoint {threads['a'][0]}" in words
    assert "journal retry" in words
    ended = journal("retry", "--all", "--sqlite", FILE)
    assert (ended.code, len(ended.report["refused"])) == (1, 2)
    assert ended.report["left"][0].startswith("Refused again: thread ")
    execute("DROP TRIGGER rule")
    ended = journal("retry", "a", "--sqlite", FILE)
    assert (ended.code, ended.report["drained"]) == (0, PUTS)
    assert (stored("a"), stored("b")) == (threads["a"], [])
    assert [letter["thread_id"] for letter in journal("dead-letters").report["dead_letters"]] == ["b"]
    assert journal("retry", "--all", "--sqlite", FILE).code == 0
    assert stored("b") == threads["b"]
    assert set(os.listdir(JOURNAL)) == {HEAD, LOG}  # what was drained is in the audit trail


def test_json_of_journal_commands_is_bounded_in_bytes_and_says_what_was_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    home = str(FILE.resolve())

    async def bury_many() -> None:
        async with opened_journal(JOURNAL, home=home) as journal:
            for number in range(60):
                await journal.dead_letter(await add(journal, f"{number:04}" + "x" * 4_000), "refused " + "y" * 20_000)

    asyncio.run(bury_many())
    set_up()
    whole = journal("dead-letters")
    assert len(whole.report["dead_letters"]) == 60
    assert "cut" not in whole.report
    monkeypatch.setattr(output, "MOST_JSON", 100_000)
    ended = journal("dead-letters")
    assert len(ended.out) <= 100_000
    cut = ended.report
    assert cut["cut"] == {"dead_letters": 60}
    first, shown = whole.report["dead_letters"][0], cut["dead_letters"][0]
    assert (shown.keys(), shown["thread_id"]) == (first.keys(), first["thread_id"])
    for name in ("status", "quarantine", "drain"):
        assert len(journal(name, *(("--sqlite", FILE) if name == "drain" else ())).out) <= 100_000


def test_page_of_threads_ends_where_it_grows_too_large_and_the_next_one_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def write() -> None:
        async with opened(sqlite(FILE)) as manager:
            for number in range(30):
                await Thread(saver_of(manager), f"thread {number:02}").put(note="x" * 9_000)

    asyncio.run(write())
    monkeypatch.setattr(threads_list, "MOST_JSON", 100_000)
    seen: list[str] = []
    before: tuple[object, ...] = ()
    for _ in range(5):
        page = command("threads", "list", "--sqlite", FILE, "--json", *before)
        assert len(page.out) < 100_000
        seen += [one["thread_id"] for one in page.report["threads"]]
        before = ("--before", page.report["next"])
        if page.report["next"] is None:
            break
    assert seen == [f"thread {number:02}" for number in reversed(range(30))]


def test_retry_without_a_dead_letter_or_without_a_thread_is_wrong_usage() -> None:
    assert journal("retry", "nobody", "--sqlite", FILE).code == 2
    assert journal("retry", "--all", "--sqlite", FILE).code == 0
    assert journal("retry").code == 2
    ended = command("journal", "retry", "a", "--all")
    assert (ended.code, "a thread was named, and --all was given" in " ".join(ended.err.split())) == (2, True)


def test_dead_letters_of_a_running_process_are_refused_to_others() -> None:
    poison("a")

    def look() -> None:
        ended = command("journal", "retry", "a", "--sqlite", FILE)
        assert (ended.code, "restart that process" in ended.err, str(os.getpid()) in ended.err) == (2, True, True)
        assert "restart the running process" in command("journal", "dead-letters").words

    async def run() -> None:
        async with opened(sqlite(FILE)) as manager:
            await eventually(lambda: manager.health_status["journal"]["dead_letters"] == 1)
            await asyncio.to_thread(look)

    asyncio.run(run())


# Damage


def test_damage_is_shown_with_what_can_be_done_and_can_be_copied_out() -> None:
    leave("a", "b")
    (file,) = JOURNAL.glob("*.journal")
    data = bytearray(file.read_bytes())
    at = data.index(b'"name": "put"', data.index(b'"name": "put"') + 1)
    data[at] ^= 1
    file.write_bytes(data)
    before = contents()
    ended = journal("quarantine")
    (damaged,) = ended.report["damaged"]
    assert (ended.code, damaged["frozen_threads"]) == (1, ["a"])
    assert "is not what was written" in damaged["faults"][0]
    words = command("journal", "quarantine").words
    assert "--copy-to" in words
    assert f"First: checkpointing journal drain. {PUTS} operations of threads that are not frozen" in words
    assert contents() == before
    ended = journal("drain", "--sqlite", FILE)
    assert (ended.code, len(stored("a")), len(stored("b"))) == (1, 0, PUTS)
    assert any("checkpointing journal quarantine" in left for left in ended.report["left"])
    assert "First of all" not in command("journal", "quarantine").words
    ended = journal("quarantine", "--copy-to", "saved")
    kept = {path.name for path in Path("saved").rglob("*") if path.is_file()}
    assert (file.name in kept, f"quarantine/{file.name}" in ended.report["copied"]) == (True, True)
    assert journal("quarantine", "--copy-to", "saved").code == 2
    for name in ended.report["damaged"][0]["files"]:
        (JOURNAL / name).unlink()
    ended = journal("quarantine")
    assert (ended.code, ended.report["damaged"], len(ended.report["quarantined"])) == (0, [], 1)


async def put_aside() -> None:
    async with opened(sqlite(FILE)) as manager:
        for name in ("a", f"a{APART}1", "b"):
            await Thread(saver_of(manager), name).put()


def test_branches_that_were_put_aside_are_listed() -> None:
    assert journal("quarantine", "--branches", "--sqlite", "missing.sqlite").report["branches"] == []
    assert "No branch" in command("journal", "quarantine", "--branches", "--sqlite", FILE).words
    asyncio.run(put_aside())
    ended = journal("quarantine", "--branches", "--sqlite", FILE)
    assert (ended.code, ended.report["branches"]) == (0, [f"a{APART}1"])
    assert (
        "1 branch of an outage was put aside" in command("journal", "quarantine", "--branches", "--sqlite", FILE).words
    )
    FILE.write_bytes(b"no database")
    assert journal("quarantine", "--branches", "--sqlite", FILE).code == 2


# Rights


def test_directory_of_another_user_is_neither_read_nor_written_by_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give a directory away")
    leave("a")
    os.chown(JOURNAL, 65534, 65534)
    for words in (["status"], ["drain", "--sqlite", FILE]):
        ended = command("journal", *words)
        assert (ended.code, "or run as the one that it belongs to" in ended.err) == (2, True)


def test_directory_that_may_not_be_read_is_said_to_be_so() -> None:
    with folder_without_root() as folder:
        asyncio.run(leave_in(folder / "journal"))
        set_modes(folder / "journal", 0o600, 0o700)
        os.chown(folder / "journal", 0, 0)
        with bound_by_modes():
            ended = command("journal", "status", "--journal-dir", folder / "journal")
    assert (ended.code, "Run this as the user" in ended.err) == (2, True)


async def leave_in(directory: Path) -> None:
    async with opened_journal(directory) as left:
        await add(left, "a")
