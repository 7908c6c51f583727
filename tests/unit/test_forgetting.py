"""What a journal forgets is on no disk, and all else is where it was: for those who hold it, and the next process."""

from __future__ import annotations

from pathlib import Path

import pytest

from enhanced_checkpointing.errors import CheckpointUnavailableError
from enhanced_checkpointing.journal.api import Journal, JournalEntry
from enhanced_checkpointing.journal.memory import MemoryJournal
from enhanced_checkpointing.operations import DeleteThread, Operation
from enhanced_checkpointing.serialization import SharingSerializer
from enhanced_checkpointing.standby.cache import Standby
from enhanced_checkpointing.tombstones import NAME, Tombstones
from tests.support.author import Author
from tests.support.faulty_disk import FaultyDisk
from tests.support.journals import add, durable_journal, opened_journal, operations_in

HERE = Path("journal")
SECRET = "secret-of-a"


def everything(_: JournalEntry) -> bool:
    return True


def on_disk(word: str = SECRET) -> list[str]:
    return [path.name for path in HERE.rglob("*") if path.is_file() and word.encode() in path.read_bytes()]


async def fill(journal: Journal) -> dict[str, list[Operation]]:
    """Threads a, b and c; of b and c the oldest record is a dead letter or is applied."""
    made: dict[str, list[Operation]] = {"a": [], "b": [], "c": []}
    for number in range(3):
        for thread_id, operations in made.items():
            operation = Author(thread_id).put({"n": [f"secret-of-{thread_id}", number]})
            await add(journal, operation)
            operations.append(operation.replayable())
    await journal.dead_letter(journal.entries("b")[0], "refused")
    await journal.mark_applied(journal.entries("c", 1))
    return {"b": made["b"][1:], "c": made["c"][1:]}


@pytest.mark.parametrize("kind", ["memory", "durable"])
async def test_forgotten_records_are_gone_and_others_go_on_as_before(kind: str) -> None:
    journal: Journal = MemoryJournal(10_000_000) if kind == "memory" else durable_journal()
    await journal.open()
    left = await fill(journal)
    held = journal.entries("c")
    assert journal.forget("a", everything) == 3
    assert journal.forget("unknown", everything) == 0
    await journal.rewrite()
    await journal.rewrite()
    assert on_disk() == []
    assert not journal.holds("a")
    assert await operations_in(journal, "b") == left["b"]
    assert [record.operation for record in await journal.read(held)] == left["c"]
    await journal.mark_applied(held[:1])
    await journal.dead_letter(held[1], "refused later")
    assert {letter.entry.thread_id: letter.error for letter in journal.dead_letters()} == {
        "b": "refused",
        "c": "refused later",
    }
    assert journal.forget("b", everything) == 3
    assert not journal.holds("b")
    assert journal.forget("c", lambda entry: entry.name == "delete") == 0
    assert journal.is_frozen("c")
    await journal.rewrite()
    assert bool(journal.identities) is (kind == "durable")
    status = journal.status()
    assert (status.pending, status.dead_letters, status.frozen_threads) == (0, 1, ("c",))
    await journal.close()


async def test_journal_without_records_is_written_anew_too() -> None:
    async with opened_journal() as journal:
        await journal.rewrite()
        standby = Standby(SharingSerializer(), 10**6, lambda _: False)
        standby.note_empty("a", "")
        assert standby.thread_ids() == ["a"]


async def test_next_process_finds_what_was_not_forgotten_in_its_order_and_none_of_the_rest() -> None:
    async with opened_journal() as journal:
        left = await fill(journal)
        await journal.redirect("a", "sibling")
        journal.forget("a", everything)
        await journal.rewrite()
        await journal.mark_applied(journal.entries("c", 1))
        await add(journal, "a")
    async with opened_journal() as journal:
        assert await operations_in(journal, "a") == [DeleteThread("a")]
        assert len(journal.entries("b")) == 3, "its dead letter is tried again"
        assert await operations_in(journal, "c") == left["c"][1:]
        assert journal.redirected("a") is None
        journal.forget("b", everything)
        journal.forget("c", everything)
        await journal.rewrite()
        assert on_disk("secret-of") == []
        await journal.mark_applied(journal.entries("a"))
    assert on_disk("secret-of") == []


async def test_what_the_disk_did_not_let_go_goes_with_the_next_try() -> None:
    disk = FaultyDisk(HERE)
    async with opened_journal(disk=disk) as journal:
        left = await fill(journal)
        disk.full = True
        journal.forget("a", everything)
        with pytest.raises(CheckpointUnavailableError):
            await journal.rewrite()
        assert on_disk()
        disk.full = False
        assert journal._logs.own is not None
        journal._logs.own.leftovers.add(999)  # as one that could not be removed, and has gone since
        await journal.rewrite()
        assert on_disk() == []
        assert await operations_in(journal, "b") == left["b"]
        for name in disk.names():
            if name.endswith(".journal"):
                disk.remove(name)
        await journal.check()
        await journal.rewrite()  # what is lost stays as it is, until it is closed


def test_tombstones_are_known_to_every_process_of_a_directory_for_one_database(tmp_path: Path) -> None:
    ours, theirs, others = (Tombstones(tmp_path / "j", home) for home in ("db", "db", "another"))
    assert not ours.refresh()
    ours.set(["a"], 5.0)
    ours.add(["a"], 5.0)
    with (tmp_path / "j" / NAME).open("ab") as file:
        file.write(b"a line that its proc")
    ours.add(["b"], 6.0)
    assert theirs.refresh()
    assert not theirs.refresh()
    others.refresh()
    assert (theirs.erased_at("a"), theirs.erased_at("b"), others.erased_at("a")) == (5.0, 6.0, None)
    assert b"a " not in (tmp_path / "j" / NAME).read_bytes().split(b"\n")[1][:2]
    assert (tmp_path / "j" / NAME).stat().st_mode & 0o777 == 0o600
    old, new = "1f0e0000-0000-6000-8000-000000000000", None
    assert theirs.forbids("a", "an id that does not tell")
    assert not theirs.forbids("a", new)
    assert not theirs.forbids("c", old)
    memory = Tombstones(None, "db")
    memory.add(["a"], 1.0)
    assert (memory.refresh(), memory.erased_at("a")) == (False, None)
