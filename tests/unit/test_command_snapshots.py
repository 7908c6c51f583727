"""The contract with scripts: the exit code and the keys of the JSON of every command, in good states and in bad ones.

What a command says in words may change; its keys, the types of their values and its exit codes may not. After a change
that is meant: `python -m tests.unit.test_command_snapshots --write`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from enhanced_checkpointing.journal.disk import QUARANTINE
from tests.support.checkpointer import opened, saver_of, sqlite
from tests.support.checkpoints import Thread
from tests.support.conversations import converse
from tests.support.journals import add, opened_journal
from tests.support.terminal import Ended, command
from tests.support.threads import bare_sqlite

SNAPSHOTS = Path(__file__).parents[1] / "data" / "command_snapshots.json"
FILE, JOURNAL = Path("agents.sqlite"), Path(".checkpoints/journal")
STATED = ("status", "owner", "outcome", "overall_status")
"""Keys whose values are words that scripts compare with."""
OF_THE_MACHINE = ("machine.", "files.", "journal.directory", "journal.room", "journal.sync")
"""Findings whose status depends on where the test runs."""

COMMANDS: tuple[tuple[str, ...], ...] = (
    ("doctor", "--sqlite", "agents.sqlite"),
    ("health", "--sqlite", "agents.sqlite"),
    ("health", "--url", "http://127.0.0.1:1"),
    ("threads", "show", "forked"),
    ("threads", "prune", "refused", "forked", "--yes"),
    ("journal", "status"),
    ("journal", "dead-letters"),
    ("journal", "quarantine", "--copy-to", "copy"),
    ("journal", "quarantine", "--branches"),
    ("journal", "retry", "none"),
    ("journal", "retry", "--all"),
    ("journal", "drain"),
    ("threads", "list", "--limit", "2"),
    ("threads", "list", "--metadata", "tenant=7", "--user", "alice"),
    ("threads", "show", "waiting"),
    ("threads", "show", "waiting", "--namespace", "none"),
    ("threads", "history", "waiting", "--all", "--limit", "3"),
    ("threads", "diff", "waiting"),
    ("threads", "diff", "waiting", "0..1"),
    ("threads", "copy", "waiting", "copied"),
    ("threads", "prune", "forked", "none", "--dry-run"),
    ("threads", "prune", "forked", "--yes"),
    ("threads", "delete", "broken", "none"),
    ("threads", "delete", "broken", "none", "--yes"),
    ("retention", "run", "--dry-run", "--active-days", "0"),
    ("migrate", "agents.sqlite", "new.sqlite", "--dry-run"),
    ("migrate", "agents.sqlite", "new.sqlite"),
    ("migrate", "agents.sqlite", "new.sqlite", "--verify-only"),
    ("migrate", "agents.sqlite", "agents.sqlite"),
    ("export", "agents.sqlite", "out.jsonl"),
    ("import", "out.jsonl", "other.sqlite", "--dry-run"),
    ("import", "out.jsonl", "other.sqlite"),
    ("erase", "--sqlite", "agents.sqlite"),
    ("erase", "--thread", "waiting", "--dry-run"),
    ("erase", "--thread", "waiting", "--yes"),
    ("audit", "show"),
    ("audit", "verify"),
    ("audit", "verify", "--known", "none"),
    ("setup", "--wait", "0"),
    ("setup", "--sqlite", "agents.sqlite", "--database-url", "postgresql://db/app"),
)


def healthy() -> None:
    """Conversations in a file, and nothing in the journal."""

    async def fill() -> None:
        async with bare_sqlite(FILE) as saver:
            await converse(saver)

    command("setup", "--sqlite", FILE)
    asyncio.run(fill())


def empty() -> None:
    """Neither a file nor a directory."""


def broken_journal() -> None:
    """A journal with a backlog, a dead letter, damage, a copy in quarantine, and another database's backlog."""
    healthy()

    async def leave(thread_id: str, home: str, refused: str | None = None) -> None:
        async with opened_journal(JOURNAL, home=home) as journal:
            entry = await add(journal, thread_id)
            if refused is not None:
                await journal.dead_letter(entry, refused)

    asyncio.run(leave("elsewhere", "postgres://db:5432/prod"))
    (other,) = JOURNAL.glob("*.journal")
    asyncio.run(leave("damaged", str(FILE.resolve())))
    (file,) = set(JOURNAL.glob("*.journal")) - {other}
    data = bytearray(file.read_bytes())
    data[data.index(b"delete")] ^= 1
    file.write_bytes(data)
    quarantine = JOURNAL / QUARANTINE
    quarantine.mkdir(mode=0o700, exist_ok=True)
    (quarantine / file.name).write_bytes(data)
    (quarantine / file.name).chmod(0o600)
    blocker = sqlite3.connect(FILE, isolation_level=None)

    async def write() -> None:
        async with opened(sqlite(FILE, deadline=0.5, breaker_failures=1, shutdown_grace=0.1)) as manager:
            blocker.execute("BEGIN EXCLUSIVE")
            manager.create_thread_config("forked", new=True)
            await Thread(saver_of(manager), "forked").put()

    with closing(blocker):
        asyncio.run(write())
    asyncio.run(leave("refused", str(FILE.resolve()), "a value is too long"))


def broken_database() -> None:
    """A file that is no database, a journal's directory that is a file, an export that is none."""
    FILE.write_text("Dear Ada, " * 100)
    Path("out.jsonl").write_text('{"thread')
    JOURNAL.parent.mkdir()
    JOURNAL.touch()


def wrong_settings() -> None:
    """Settings that do not fit: nothing can be done."""
    healthy()
    os.environ["CHECKPOINT_DEADLINE"] = "soon"


STATES: dict[str, Callable[[], None]] = {
    state.__name__: state for state in (healthy, empty, broken_journal, broken_database, wrong_settings)
}


def run(*arguments: str) -> Ended:
    return command(
        *arguments,
        "--json",
        DEV_USE_SQLITE="true",
        SQLITE_PATH=str(FILE),
        CHECKPOINT_DEADLINE=os.environ.get("CHECKPOINT_DEADLINE"),
        CHECKPOINT_PROBE_BACKOFF_MIN="0.1",
    )


def shape(value: Any, key: str = "") -> Any:
    """The keys of an object and the types of their values; of a list what its items have in common and what not."""
    if isinstance(value, dict):
        if {"name", "status", "what", "means", "fix", "details"} == value.keys():
            if value["name"].startswith(OF_THE_MACHINE):
                return [value["name"], sorted(value["details"])]
            return [value["name"], value["status"], shape(value["details"])]
        return {name: shape(part, name) for name, part in sorted(value.items())}
    if isinstance(value, list):
        shapes = {json.dumps(shape(one), sort_keys=True) for one in value}
        return [json.loads(one) for one in sorted(shapes)]
    if key in STATED:
        return value
    return {bool: "true or false", int: "number", float: "number", str: "text", type(None): "null"}[type(value)]


def snapshot(state: str) -> dict[str, Any]:
    """What every command ends with, one after the other in the same folder."""
    STATES[state]()
    found = {}
    for arguments in COMMANDS:
        if state == "broken_journal" and arguments[0] == "erase" and "--yes" in arguments:
            continue  # it waits for half a minute for what can never be drained
        ended = run(*arguments)
        stream = ended.out or ended.err
        found[" ".join(arguments)] = {"code": ended.code, "json": shape(json.loads(stream))}
    return found


@pytest.mark.thorough
@pytest.mark.parametrize("state", STATES)
def test_exit_codes_and_json_keys_are_those_that_scripts_know(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHECKPOINT_DEADLINE", raising=False)
    expected = json.loads(SNAPSHOTS.read_text())[state]
    try:
        found = snapshot(state)
    finally:
        os.environ.pop("CHECKPOINT_DEADLINE", None)
    assert {name: one for name, one in found.items() if one != expected.get(name)} == {}
    assert found.keys() == expected.keys()


def write() -> None:
    written = {}
    for state in STATES:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            written[state] = snapshot(state)
            os.environ.pop("CHECKPOINT_DEADLINE", None)
            os.chdir("/")
    states = (
        f"{json.dumps(state)}: {{\n"
        + ",\n".join(f"{json.dumps(name)}: {json.dumps(one, sort_keys=True)}" for name, one in found.items())
        + "\n}"
        for state, found in written.items()
    )
    SNAPSHOTS.write_text(f"{{\n{','.join(states)}\n}}\n")


if __name__ == "__main__" and "--write" in sys.argv:
    write()
