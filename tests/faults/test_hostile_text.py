"""Ids and errors that somebody else chose, made to move a terminal: every command shows them, and none obeys them."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from enhanced_checkpointing.recovery.divergence import APART
from tests.support.answering_application import application
from tests.support.backends import config_of, opened_backend, put
from tests.support.journals import add, opened_journal
from tests.support.terminal import command

EVIL = "ev\x1b[31mil\u202e"
SHOWN = r"ev\x1b[31mil\u202e"
FILE, JOURNAL, DAMAGED = Path("checkpoints.sqlite"), Path("journal"), Path("damaged")
FORBID = """
CREATE TRIGGER rule BEFORE INSERT ON checkpoints WHEN CAST(NEW.metadata AS TEXT) LIKE '%forbidden%'
BEGIN SELECT RAISE(ABORT, 'this is forbidden here'); END
"""


async def fill(home: str) -> None:
    """Old threads of that id, and journals that hold operations of others, which the database will refuse for good."""
    async with opened_backend(config_of("sqlite", "", Path())) as primary:
        for thread_id in (EVIL, f"{EVIL}{APART}1"):
            await primary.apply(put(thread_id, -100_000_000, metadata={"user_id": EVIL, "thread_status": "completed"}))
    for directory in (JOURNAL, DAMAGED):
        async with opened_journal(directory, home=home) as journal:
            for number in (1, 2):
                await add(journal, put(f"{EVIL}{directory}", number, metadata={"forbidden": True}))


def break_one_journal() -> None:
    (file,) = DAMAGED.glob("*.journal")
    data = bytearray(file.read_bytes())
    data[data.index(b"forbidden")] ^= 1
    file.write_bytes(data)
    with closing(sqlite3.connect(FILE, isolation_level=None)) as connection:
        connection.execute(FORBID)


def said_by(*arguments: object, code: int) -> str:
    """What a command printed, in which nothing is left that a terminal would obey."""
    ended = command(*arguments)
    said = ended.out + ended.err
    assert ended.code == code, said
    assert not [sign for sign in said if not sign.isprintable() and sign != "\n"], (arguments, said)
    return said


def test_id_of_a_thread_is_shown_by_every_command_and_moves_no_terminal() -> None:
    asyncio.run(fill(str(FILE.resolve())))
    break_one_journal()
    database, held = ("--sqlite", FILE), ("--journal-dir", JOURNAL)
    damaged = ("--journal-dir", DAMAGED)
    for code, arguments in (
        (1, ("journal", "drain", *database, *held)),
        (1, ("journal", "retry", "--all", *database, *held)),
        (1, ("journal", "dead-letters", *held)),
        (1, ("doctor", *database, *held)),
        (1, ("doctor", *database, *damaged)),
        (1, ("journal", "quarantine", *damaged)),
        (1, ("journal", "quarantine", "--branches", *database, *damaged)),
        (0, ("retention", "run", "--dry-run", *database, "--journal-dir", "none")),
        (0, ("threads", "list", *database)),
        (0, ("threads", "list", "--limit", "1", *database)),
        (0, ("threads", "show", EVIL, *database)),
        (0, ("threads", "history", EVIL, *database)),
        (0, ("threads", "prune", EVIL, "--dry-run", *database)),
        (1, ("threads", "show", f"{EVIL}?", *database)),
        (0, ("threads", "copy", EVIL, f"{EVIL}2", *database)),
    ):
        said = said_by(*arguments, code=code)
        assert SHOWN in said or "history" in arguments, (arguments, said)


@pytest.mark.parametrize("status", ["healthy", EVIL])
def test_health_shows_what_an_application_says_and_lets_it_move_no_terminal(status: str) -> None:
    report = {
        "overall_status": status,
        "primary_checkpointer": {"healthy": False, "backend": EVIL, "error": EVIL},
        "journal": {"mode": EVIL, "error": EVIL, "foreign": [{"books": 1, "home": EVIL}]},
        EVIL: {"healthy": False, "error": EVIL},
    }
    with application(200, json.dumps(report).encode()) as url:
        said = said_by("health", "--url", url, code=0 if status == "healthy" else 1)
    assert said.count(SHOWN) == 7 + (status == EVIL)
