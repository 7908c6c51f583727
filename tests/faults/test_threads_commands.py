"""`checkpointing threads …` on what real graphs stored through the official savers, and beside a journal."""

from __future__ import annotations

import asyncio
import os
import pty
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from psycopg import sql

from tests.support.checkpointer import opened, recovered, saver_of, sqlite
from tests.support.checkpoints import Thread
from tests.support.conversations import QUESTION, State, converse
from tests.support.graphs import GRAPHS, run_case
from tests.support.journals import add, opened_journal
from tests.support.postgres import PostgresServer, fresh_database
from tests.support.terminal import Ended, command
from tests.support.threads import bare_postgres, bare_sqlite

FILE = Path("checkpoints.sqlite")
JOURNAL = Path(".checkpoints/journal")


async def fill(place: tuple[str, str]) -> None:
    option, name = place
    async with bare_sqlite(name) if option == "--sqlite" else bare_postgres(name) as saver:
        await converse(saver)


@contextmanager
def filled(kind: str, folder: Path, server: PostgresServer) -> Iterator[tuple[str, str]]:
    if kind == "sqlite":
        place = "--sqlite", str(folder / FILE)
        asyncio.run(fill(place))
        yield place
    else:
        with fresh_database(server.url()) as url:
            asyncio.run(fill(("--database-url", url)))
            yield "--database-url", url


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def told(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer
) -> Iterator[tuple[str, str]]:
    """A database with conversations, for tests that only look."""
    with filled(request.param, tmp_path_factory.mktemp("told"), postgres_server) as place:
        yield place


@pytest.fixture
def place(told: tuple[str, str], tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A copy of it, of a test's own, for tests that change something."""
    option, name = told
    if option == "--sqlite":
        yield option, str(shutil.copy(name, tmp_path))
    else:
        with copied_database(name) as url:
            yield option, url


@contextmanager
def copied_database(url: str) -> Iterator[str]:
    with psycopg.connect(url) as connection:
        name = connection.info.dbname
    with fresh_database(url) as own:
        target = psycopg.conninfo.conninfo_to_dict(own)["dbname"]
        with psycopg.connect(own.replace(f"/{target}", "/postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(str(target))))
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(str(target)), sql.Identifier(name))
            )
        yield own


def threads(*arguments: object, **environment: str | None) -> Ended:
    return command("threads", *arguments, **environment)


def ids(ended: Ended) -> list[str]:
    return [each["thread_id"] for each in ended.report["threads"]]


def history(place: tuple[str, str], thread_id: str, *arguments: object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = threads("history", thread_id, *arguments, *place, "--json").report["checkpoints"]
    return found


def leave_in_journal(thread_id: str, home: str) -> None:
    async def leave() -> None:
        async with opened_journal(JOURNAL, home=home) as journal:
            await add(journal, thread_id)

    asyncio.run(leave())


def test_list_pages_through_all_threads_newest_first_and_filters(told: tuple[str, str]) -> None:
    whole = ids(threads("list", *told, "--json"))
    assert whole[-1] == "waiting"
    assert set(whole) >= {"forked", "broken", "subgraph"}
    paged, before = [], None
    while True:
        ended = threads("list", *told, "--limit", 2, *(["--before", before] if before else []), "--json")
        paged += ids(ended)
        before = ended.report["next"]
        if before is None:
            break
        assert f"--before '{before}'" in threads("list", *told, "--limit", len(paged)).words
    assert paged == whole
    assert ids(threads("list", *told, "--user", "alice", "--json")) == ["waiting"]
    assert ids(threads("list", *told, "--metadata", "tenant=7", "--json")) == ["waiting"]
    assert ids(threads("list", *told, "--metadata", 'tenant="7"', "--json")) == []
    assert ids(threads("list", *told, "--user", "bob", "--status", "active", "--json")) == ["forked", "broken"]
    assert ids(threads("list", *told, "--status", "failed", "--json")) == []
    assert "There is no thread that fits." in threads("list", *told, "--user", "nobody").words
    assert threads("list", *told, "--metadata", "tenant").code == 2
    assert threads("list", *told, "--status", "lost").code == 2


def test_show_tells_a_conversation_and_what_it_waits_for(told: tuple[str, str]) -> None:
    ended = threads("show", "waiting", *told)
    assert ended.code == 0
    assert f"WAITS question: {QUESTION}" in ended.words
    for part in (
        "user alice",
        "step 3, loop",
        "5 checkpoints",
        '{"tenant": 7}',
        'order: Order(number=7, item="hat")',
        "next approve",
        "system Be kind.",
        "human What is the weather in Paris?",
        'ai Let me look. -> get_weather(city="Paris")',
        "tool get_weather: 22 °C \\x1b[31m",
        "ai It is sunny. Take a hat.",
    ):
        assert part in ended.words, part
    assert "\x1b" not in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80
    report = threads("show", "waiting", *told, "--json").report
    assert (report["is_newest"], report["user_id"], report["next"]) == (True, "alice", ["approve"])
    assert report["interrupts"][0]["value"]["question"] == QUESTION
    assert report["channels"]["order"] == {"tests.support.conversations.Order": {"number": 7, "item": "hat"}}
    assert [message["role"] for message in report["messages"]["messages"]] == ["system", "human", "ai", "tool", "ai"]


def test_show_tells_an_error_and_other_checkpoints_by_the_beginning_of_their_ids(told: tuple[str, str]) -> None:
    assert "ERROR a task failed: ValueError('the mail server said no')" in threads("show", "broken", *told).words
    first = history(told, "waiting")[-1]["checkpoint_id"]
    ended = threads("show", "waiting", "--checkpoint", first[:13], *told)
    assert ended.code == 0
    assert f"{first} (not the newest)" in ended.words
    ended = threads("show", "waiting", "--checkpoint", first[:4], *told)
    assert (ended.code, "Several checkpoints" in ended.err) == (1, True)
    ended = threads("show", "waiting", "--checkpoint", "0000", *told, "--json")
    assert (ended.code, "has no checkpoint whose id begins with '0000'" in ended.report["error"]) == (1, True)
    ended = threads("show", "nope", *told)
    assert (ended.code, "There is no thread 'nope'" in ended.err) == (1, True)


def test_show_never_imports_what_the_application_stored(told: tuple[str, str]) -> None:
    program = (
        "import sys; sys.argv = ['checkpointing', *sys.argv[1:]]\n"
        "from enhanced_checkpointing.cli.app import app\n"
        "try: app()\n"
        "finally: assert 'tests.support.conversations' not in sys.modules, 'imported'"
    )
    arguments = [sys.executable, "-c", program, "threads", "show", "waiting", *told]
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, "Order(number=7" in ended.stdout) == (0, True), ended.stderr


@pytest.mark.skipif("delta_channel" not in GRAPHS, reason="this LangGraph has no delta channels")
def test_delta_channel_is_rebuilt_where_only_writes_are_stored(told: tuple[str, str]) -> None:
    rebuilt = 0
    for entry in history(told, "delta_channel"):
        report = threads("show", "delta_channel", "--checkpoint", entry["checkpoint_id"], *told, "--json").report
        ran = [word.split(":")[0] for word in report["channels"].get("log") or []]
        assert ran == (["first", "second", "third"] * 3)[: len(ran)]
        rebuilt += report["rebuilt_channels"] == ["log"]
        assert len(ran) == 3 * ((entry["step"] + 1) // 5) + max(0, (entry["step"] + 1) % 5 - 1)
    assert rebuilt >= 6


def test_history_draws_forks_and_pages_and_names_what_ran(told: tuple[str, str]) -> None:
    entries = history(told, "forked")
    by_id = {entry["checkpoint_id"]: entry for entry in entries}
    parents = [entry["parent_checkpoint_id"] for entry in entries]
    (fork,) = {parent for parent in parents if parents.count(parent) > 1}
    assert by_id[fork]["next"] == ["tools"]
    assert sorted(by_id[each]["source"] for each in by_id if by_id[each]["parent_checkpoint_id"] == fork) == [
        "loop",
        "update",
    ]
    assert entries[0]["ran"] == ["agent"]
    assert entries[0]["changed"] == ["messages", "order"]
    assert [entry["changed"] for entry in entries if entry["source"] == "update"] == [["messages"]]
    assert len([entry for entry in entries if entry["is_leaf"]]) == 2
    out = threads("history", "forked", *told).out
    assert "\n|/\n" in out
    assert "WAITS  question: Shall I send" in out
    assert "ERROR  ValueError('the mail server said no')" in out
    paged: list[str] = []
    before: str | None = None
    while True:
        more = ["--before", before] if before else []
        ended = threads("history", "forked", "--limit", 3, *more, *told, "--json")
        paged += [entry["checkpoint_id"] for entry in ended.report["checkpoints"]]
        if (before := ended.report["next"]) is None:
            break
    assert paged == [entry["checkpoint_id"] for entry in entries]


def test_subgraphs_are_shown_on_demand(told: tuple[str, str]) -> None:
    assert {entry["checkpoint_ns"] for entry in history(told, "subgraph")} == {""}
    every = history(told, "subgraph", "--all")
    namespaces = sorted({entry["checkpoint_ns"] for entry in every})
    assert len(namespaces) == 5
    assert f"subgraph {namespaces[1]}" in threads("history", "subgraph", "--all", *told).words
    ended = threads("show", "subgraph", "--namespace", namespaces[1], *told)
    assert (ended.code, "notes" in ended.words) == (0, True)
    assert "--namespace" in threads("show", "subgraph", *told).words
    assert threads("show", "subgraph", "--namespace", "other", *told).code == 1


def test_diff_names_messages_and_values_that_changed(told: tuple[str, str]) -> None:
    words = threads("diff", "waiting", *told).words
    assert "messages (changed) + ai: It is sunny. Take a hat." in words
    assert "order (added)" in words
    assert "next - agent + approve" in words
    newest, *_, first = [entry["checkpoint_id"] for entry in history(told, "waiting")]
    for arguments in ([first, newest], [f"{first[:13]}..{newest[:13]}"], [f"{first}.."]):
        report = threads("diff", "waiting", *arguments, *told, "--json").report
        assert (report["before"]["checkpoint_id"], report["after"]["checkpoint_id"]) == (first, newest)
        (messages,) = [each for each in report["channels"] if each["channel"] == "messages"]
        assert [change["before"] for change in messages["messages"]] == [None] * 5
    back = threads("diff", "waiting", newest, first, *told).words
    assert "order (removed) - Order(number=7" in back
    assert "nothing: this is the first checkpoint" in threads("diff", "waiting", first, *told).words
    assert threads("diff", "waiting", "a..b", "c", *told).code == 2


def test_delete_takes_threads_away_and_says_how_much(place: tuple[str, str]) -> None:
    before = ids(threads("list", *place, "--json"))
    ended = threads("delete", "waiting", "nope", *place)
    assert (ended.code, "Nothing was changed" in ended.err) == (2, True)
    assert ids(threads("list", *place, "--json")) == before
    ended = threads("delete", "waiting", "nope", "--yes", *place, "--json")
    assert (ended.code, ended.report["missing"]) == (1, ["nope"])
    assert [(each["thread_id"], each["checkpoints"]) for each in ended.report["deleted"]] == [("waiting", 5)]
    assert ids(threads("list", *place, "--json")) == [each for each in before if each != "waiting"]
    assert "Deleted: 2 threads with" in threads("delete", "forked", "broken", "--yes", *place).words


def test_copy_is_equal_and_never_goes_into_another_thread(place: tuple[str, str]) -> None:
    ended = threads("copy", "forked", *place, "--json")
    target = ended.report["target"]["thread_id"]
    assert ended.code == 0
    assert history(place, target) == history(place, "forked")
    ended = threads("copy", "forked", "waiting", *place)
    assert (ended.code, "nothing was copied" in ended.err) == (1, True)
    assert threads("copy", "nope", *place).code == 1
    assert threads("copy", "forked", "forked", *place).code == 2


@pytest.mark.parametrize("thread_id", ["forked", "subgraph", "delta_channel"])
def test_prune_does_what_its_rehearsal_says_and_the_state_stays(place: tuple[str, str], thread_id: str) -> None:
    if thread_id == "delta_channel" and thread_id not in GRAPHS:
        pytest.skip("this LangGraph has no delta channels")
    shown = threads("show", thread_id, *place, "--json").report
    (rehearsed,) = threads("prune", thread_id, "--keep", 2, "--dry-run", *place, "--json").report["threads"]
    assert rehearsed["checkpoints"] == shown["checkpoints"] == len(history(place, thread_id, "--all"))
    assert threads("prune", thread_id, *place).code == 2
    ended = threads("prune", thread_id, "--keep", 2, "--yes", *place, "--json")
    assert (ended.code, ended.report["dropped"]) == (0, rehearsed["dropped"])
    assert rehearsed["dropped"] > 0
    assert len(history(place, thread_id, "--all")) == rehearsed["checkpoints"] - rehearsed["dropped"]
    after = threads("show", thread_id, *place, "--json").report
    same = ("checkpoint_id", "messages", "channels", "interrupts", "next", "metadata")
    assert {name: after[name] for name in same} == {name: shown[name] for name in same}


def test_threads_that_the_journal_holds_are_shown_with_a_warning_and_never_changed() -> None:
    place = "--sqlite", str(FILE)
    asyncio.run(fill(place))
    before = FILE.read_bytes()
    leave_in_journal("waiting", str(FILE.resolve()))
    kept = {path: path.read_bytes() for path in JOURNAL.iterdir()}
    for arguments in (["delete", "broken", "waiting", "--yes"], ["prune", "waiting", "--yes"], ["copy", "waiting"]):
        ended = threads(*arguments, *place)
        assert ended.code == 1, arguments
        assert "The journal holds of thread 'waiting': 1 operation" in ended.err
        assert "Run `checkpointing journal drain`" in ended.err
    assert threads("copy", "forked", "waiting", *place, "--json").report["journal"][0]["waiting"] == 1
    for arguments in (["show", "waiting"], ["history", "waiting"], ["diff", "waiting"]):
        ended = threads(*arguments, *place)
        assert (ended.code, "WARN The journal holds of thread 'waiting'" in ended.words) == (0, True)
    assert "WARN" not in threads("show", "broken", *place).words
    assert {path: path.read_bytes() for path in JOURNAL.iterdir()} == kept
    assert FILE.read_bytes() == before
    assert threads("prune", "forked", "--yes", *place).code == 0


def test_commands_work_beside_a_running_application_and_leave_its_journal_to_it() -> None:
    place = "--sqlite", str(FILE)

    async def run() -> None:
        async with opened(sqlite(FILE, deadline=0.6)) as manager:
            await converse(saver_of(manager))
            await asyncio.to_thread(look)
            with closing(sqlite3.connect(FILE, isolation_level=None)) as blocker:
                blocker.execute("BEGIN EXCLUSIVE")
                manager.create_thread_config("young", new=True)
                await Thread(saver_of(manager), "young").put()
                blocker.rollback()
                blocker.execute("BEGIN IMMEDIATE")  # others read, the application cannot drain
                await asyncio.to_thread(look_in_the_outage)
                blocker.rollback()
            await recovered(manager)
            assert await asyncio.to_thread(lambda: threads("show", "young", *place).code) == 0

    def look() -> None:
        assert "WAITS" in threads("show", "waiting", *place).words
        assert threads("delete", "broken", "--yes", *place).code == 0

    def look_in_the_outage() -> None:
        ended = threads("delete", "young", "--yes", *place)
        assert (ended.code, f"(process {os.getpid()})" in ended.err) == (1, True)
        assert "The running process drains it" in ended.err

    asyncio.run(run())


def test_status_of_a_thread_is_told() -> None:
    place = "--sqlite", str(FILE)

    async def write() -> None:
        async with opened(sqlite(FILE)) as manager:
            await converse(saver_of(manager))
            await manager.mark_completed("waiting")

    asyncio.run(write())
    assert ids(threads("list", *place, "--status", "completed", "--json")) == ["waiting"]
    assert "waiting" not in ids(threads("list", *place, "--status", "active", "--json"))
    assert "completed" in threads("list", *place).words
    assert "status completed" in threads("show", "waiting", *place).words
    assert 'metadata {"tenant": 7}' in threads("show", "waiting", *place).words


def test_journal_for_a_database_of_another_name_keeps_a_thread_from_being_changed() -> None:
    """It may be the same one: what that journal has would come to a thread that is gone, or cut short."""
    place = "--sqlite", str(FILE)
    asyncio.run(fill(place))
    before = FILE.read_bytes()
    leave_in_journal("waiting", "db.example:5432/chat")
    leave_in_journal("new", "db.example:5432/chat")
    for arguments in (
        ["delete", "broken", "waiting", "--yes"],
        ["prune", "waiting", "--yes"],
        ["copy", "waiting"],
        ["copy", "forked", "new"],
    ):
        ended = threads(*arguments, *place)
        assert ended.code == 1, arguments
        assert "does not have yet (ended process, for db.example:5432/chat)." in ended.err
        assert "That may be this database under another name" in ended.err
        assert "CHECKPOINT_JOURNAL_ADOPT=all" in ended.err
    (held,) = threads("delete", "waiting", "--yes", *place, "--json").report["journal"]
    assert (held["waiting"], held["other_home"]) == (1, "db.example:5432/chat")
    assert FILE.read_bytes() == before
    assert "WARN" not in threads("show", "waiting", *place).words
    assert threads("delete", "broken", "--yes", *place).code == 0


def test_thread_that_is_in_the_journal_only_is_not_called_missing_without_a_word() -> None:
    place = "--sqlite", str(FILE)
    asyncio.run(fill(place))
    leave_in_journal("new", str(FILE.resolve()))
    for name in ("show", "history"):
        ended = threads(name, "new", *place)
        assert (ended.code, "The journal holds of thread 'new'" in ended.err) == (1, True)


def test_sealed_values_are_shown_with_the_application_s_serializer_only() -> None:
    Path("sealing.py").write_text(
        "from tests.support.cipher import *\n"
        "from langgraph.checkpoint.serde.encrypted import EncryptedSerializer\n"
        "seal = EncryptedSerializer(StreamCipher(b'key'))\n"
        "other = EncryptedSerializer(StreamCipher(b'another key'))\n"
    )
    sys.path.insert(0, os.getcwd())
    try:
        from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
        from sealing import seal  # type: ignore[import-not-found]

        async def write() -> None:
            async with bare_sqlite(FILE) as bare:
                assert isinstance(bare, AsyncSqliteSaver)
                await run_case(GRAPHS["counting_chain"], AsyncSqliteSaver(bare.conn, serde=seal), "secret")

        asyncio.run(write())
        ended = threads("show", "secret", "--sqlite", FILE)
        assert (ended.code, "--serde" in ended.err) == (1, True)
        ended = threads("show", "secret", "--sqlite", FILE, "--serde", "sealing:seal")
        assert (ended.code, "first: why None" in ended.words) == (0, True)
        for name in ("show", "history", "diff"):
            ended = threads(name, "secret", "--sqlite", FILE, "--serde", "sealing:other")
            assert (ended.code, "it was encrypted with another key" in ended.err, "doctor" in ended.err) == (
                1,
                True,
                False,
            )
        assert threads("prune", "secret", "--yes", "--sqlite", FILE).code == 0
    finally:
        sys.path.remove(os.getcwd())
        sys.modules.pop("sealing", None)


def test_long_history_and_conversation_are_shortened_and_full_shows_all() -> None:
    async def write() -> None:
        async with bare_sqlite(FILE) as saver:
            await talk(saver)

    async def talk(saver: BaseCheckpointSaver[Any]) -> None:
        builder: StateGraph[Any, Any, Any, Any] = StateGraph(State)
        builder.add_node("say", lambda state: {"messages": [("ai", "word " * 300)]})
        builder.add_edge(START, "say")
        builder.add_edge("say", END)
        graph = builder.compile(checkpointer=saver)
        for number in range(15):
            await graph.ainvoke({"messages": [("human", f"question {number}")]}, {"configurable": {"thread_id": "a"}})

    asyncio.run(write())
    ended = threads("show", "a", "--sqlite", FILE)
    assert "messages (30), the last 20; --full shows all" in ended.words
    assert "more characters)" in ended.words
    assert "question 0" not in ended.words
    ended = threads("show", "a", "--full", "--sqlite", FILE)
    assert "question 0" in ended.words
    assert ended.words.count("word") == 15 * 300
    assert len(history(("--sqlite", str(FILE)), "a", "--limit", 45)) == 45


def test_nothing_is_made_where_there_is_no_database() -> None:
    ended = threads("list", "--sqlite", "missing.sqlite", "--json")
    assert (ended.code, "There is no file" in ended.report["error"]) == (2, True)
    assert not Path("missing.sqlite").exists()
    assert threads("list").code == 2  # memory
    ended = threads("list", "--database-url", "postgresql://nobody:tr0ub4dor@127.0.0.1:1/x")
    assert (ended.code, "cannot be asked" in ended.err, "tr0ub4dor" in ended.err) == (2, True, False)


def test_delete_asks_on_a_terminal(tmp_path: Path) -> None:
    asyncio.run(fill(("--sqlite", str(FILE))))
    answers = {}
    for answer in ("n", "y"):
        ours, theirs = pty.openpty()
        program = "from enhanced_checkpointing.cli.entry import main; main()"
        arguments = [sys.executable, "-c", program, "threads", "delete", "waiting", "--sqlite", str(FILE)]
        with subprocess.Popen(arguments, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            os.write(ours, f"{answer}\n".encode())
            _, error = process.communicate(timeout=60)
        os.close(ours)
        os.close(theirs)
        assert b"Delete 1 thread with 5 checkpoints" in error
        answers[answer] = process.returncode, "waiting" in ids(threads("list", "--sqlite", FILE, "--json"))
    assert answers == {"n": (2, True), "y": (0, False)}
