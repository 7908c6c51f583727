"""A look into the journal's directory: it sees all logs, whoever has them, and changes and holds up nothing."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest

from enhanced_checkpointing.journal import inspect as module
from enhanced_checkpointing.journal.disk import RealDisk, holders, holders_in
from enhanced_checkpointing.journal.inspect import Owner, Survey, SurveyedLog, held_in, survey
from enhanced_checkpointing.journal.workers import TABLE_NAME as THREADS_OF_ALL
from tests.support.held_directory import held_by_another_process
from tests.support.journals import add, opened_journal
from tests.support.leaks import LeakWatch

DIRECTORY = Path("journal")
HOME = "postgres://db:5432/prod"


async def leave(*threads: str, directory: Path = DIRECTORY) -> None:
    """Let a process end that has journaled an operation of each of these threads."""
    async with opened_journal(directory, home=HOME) as journal:
        for thread_id in threads:
            await add(journal, thread_id)


def contents() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in DIRECTORY.rglob("*") if path.is_file()}


def the_file(suffix: str) -> Path:
    (found,) = DIRECTORY.glob(f"*{suffix}")
    return found


def only_log(found: Survey) -> SurveyedLog:
    (log,) = found.logs
    return log


def test_directory_that_is_not_there_is_no_fault_and_is_not_made() -> None:
    assert survey(DIRECTORY) == Survey(DIRECTORY, exists=False)
    assert not DIRECTORY.exists()


async def test_book_of_an_ended_process_shows_what_waits_whose_it_is_and_since_when(no_leaks: LeakWatch) -> None:
    began = time.time()
    await leave("a", "b", "a")
    before = contents()
    log = only_log(survey(DIRECTORY))
    assert (log.owner, log.process_ids, log.home, log.faults) == (Owner.DEAD, (), HOME, ())
    assert (log.pending, dict(log.waiting)) == (3, {"a": 2, "b": 1})
    assert log.oldest_at is not None
    assert began <= log.begun_at <= log.oldest_at <= time.time()
    of_the_log = {Path(name).name: data for name, data in before.items() if Path(name).name != THREADS_OF_ALL}
    assert set(log.files) == set(of_the_log)
    assert log.size == sum(map(len, of_the_log.values()))
    assert contents() == before


async def test_book_of_a_running_process_is_seen_while_that_writes_and_is_not_taken_from_it() -> None:
    async with opened_journal(DIRECTORY) as journal:
        entry = await add(journal, "a")
        log = only_log(survey(DIRECTORY))
        assert (log.owner, log.pending, log.process_ids) == (Owner.ALIVE, 1, (os.getpid(),))
        await journal.mark_applied([entry])
        assert only_log(survey(DIRECTORY)).pending == 0
    assert survey(DIRECTORY).logs == ()


async def test_start_that_meets_a_survey_adopts_all_the_same() -> None:
    await leave("a")
    stop = False

    def look_again_and_again() -> None:
        while not stop:
            survey(DIRECTORY)

    looking = asyncio.create_task(asyncio.to_thread(look_again_and_again))
    for _ in range(20):
        async with opened_journal(DIRECTORY) as journal:
            assert journal.holds("a")
    stop = True
    await looking


async def test_dead_letter_is_told_with_its_operation_and_error_and_is_not_among_what_waits() -> None:
    async with opened_journal(DIRECTORY) as journal:
        await journal.dead_letter(await add(journal, "a"), "a value is too long")
        await add(journal, "a")
    log = only_log(survey(DIRECTORY))
    (letter,) = log.dead_letters
    assert (letter.thread_id, letter.operation, letter.error) == ("a", "delete", "a value is too long")
    assert (letter.checkpoint_id, letter.checkpoint_ns) == (None, None)
    assert log.pending == 1
    assert (survey(DIRECTORY).frozen_threads, survey(DIRECTORY).drainable(log)) == (frozenset("a"), 0)


async def test_damage_is_told_with_the_threads_that_may_lack_something_and_nothing_is_put_into_quarantine() -> None:
    await leave("a", "b")
    file = the_file(".journal")
    data = bytearray(file.read_bytes())
    data[data.index(b"delete")] ^= 1
    file.write_bytes(data)
    found = survey(DIRECTORY)
    log = only_log(found)
    assert "the body of a record is not what was written" in log.faults[0]
    assert log.damaged_threads == ("a",)
    assert (found.frozen_threads, found.drainable(log)) == (frozenset("a"), 1)
    assert (found.quarantined, sorted(os.listdir())) == ((), ["journal"])


async def test_copies_in_quarantine_and_files_of_strangers_are_told() -> None:
    await leave("a")
    identity = only_log(survey(DIRECTORY)).identity
    (DIRECTORY / "quarantine").mkdir()
    (DIRECTORY / "quarantine" / f"{identity}.000001.journal").write_bytes(b"12345")
    (DIRECTORY / "quarantine" / "notes.txt").write_bytes(b"")
    (DIRECTORY / "backup.tar").touch()
    found = survey(DIRECTORY)
    assert [(file.log, file.size) for file in found.quarantined] == [(identity, 5), (None, 0)]
    assert found.strays == ("backup.tar",)


async def test_threads_that_any_journal_holds_are_told_waiting_refused_or_damaged_whatever_the_database_is_called() -> (
    None
):
    assert held_in(DIRECTORY) == frozenset()
    await leave("waiting", "damaged")
    file = the_file(".journal")
    data = bytearray(file.read_bytes())
    data[data.rindex(b"delete")] ^= 1
    file.write_bytes(data)
    async with opened_journal(DIRECTORY, home=HOME) as journal:
        await journal.dead_letter(await add(journal, "refused"), "a value is too long")
        async with opened_journal(DIRECTORY, home="postgres://db:5432/other") as others:
            await add(others, "of another database")
            assert held_in(DIRECTORY) == {"waiting", "damaged", "refused", "of another database"}


async def test_book_without_its_lock_file_is_read_as_an_adoption_would_read_it() -> None:
    await leave("a")
    lock = the_file(".lock")
    lock.unlink()
    log = only_log(survey(DIRECTORY))
    assert (log.owner, log.pending, log.home) == (Owner.DEAD, 1, None)
    assert not lock.exists()


async def test_process_that_adopts_for_too_long_is_named_and_nobody_is_taken_for_dead() -> None:
    await leave("a")
    with held_by_another_process(DIRECTORY) as process_id:
        began = time.monotonic()
        found = survey(DIRECTORY, patience=0.1)
        assert time.monotonic() - began < 1.0
        log = only_log(found)
        assert (log.owner, log.pending, found.adopting) == (Owner.UNKNOWN, 1, (process_id,))


async def test_book_that_goes_while_it_is_read_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    await leave("a")
    owners = module._owners

    def remove_meanwhile(*arguments: Any) -> dict[str, Owner]:
        found = owners(*arguments)
        for path in DIRECTORY.iterdir():
            path.unlink()
        return found

    monkeypatch.setattr(module, "_owners", remove_meanwhile)
    assert survey(DIRECTORY).logs == ()


async def test_file_that_a_running_process_removes_while_it_is_read_is_not_taken_for_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with opened_journal(DIRECTORY) as journal:
        await add(journal, "a")
        names = RealDisk.names
        gone = [f"{only_log(survey(DIRECTORY)).identity}.000099.journal"]
        monkeypatch.setattr(RealDisk, "names", lambda disk: [*names(disk), *gone[:1]])
        monkeypatch.setattr(module, "time", _Sleeper(lambda: gone.clear()))
        assert only_log(survey(DIRECTORY)).faults == ()


async def test_file_that_can_never_be_read_leaves_the_book_out(monkeypatch: pytest.MonkeyPatch) -> None:
    await leave("a")
    identity = only_log(survey(DIRECTORY)).identity
    names = RealDisk.names
    monkeypatch.setattr(RealDisk, "names", lambda disk: [*names(disk), f"{identity}.000099.journal"])
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    assert survey(DIRECTORY).logs == ()


async def test_what_looks_like_damage_in_the_book_of_a_running_process_is_looked_at_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with opened_journal(DIRECTORY) as journal:
        await add(journal, "a")
        file = the_file(".journal")
        whole = file.read_bytes()
        data = bytearray(whole)
        data[data.index(b"delete")] ^= 1
        file.write_bytes(data)
        monkeypatch.setattr(module, "time", _Sleeper(lambda: file.write_bytes(whole)))
        assert only_log(survey(DIRECTORY)).faults == ()
        file.write_bytes(data)
        monkeypatch.setattr(module, "time", _Sleeper(lambda: None))
        assert only_log(survey(DIRECTORY)).faults != ()
        file.write_bytes(whole)


class _Sleeper:
    """The module `time`, in which something happens while somebody sleeps."""

    def __init__(self, happens: Any) -> None:
        self._happens = happens
        self.time, self.monotonic = time.time, time.monotonic

    def sleep(self, seconds: float) -> None:
        self._happens()


LOCKS = """\
1: POSIX  ADVISORY  WRITE 11 fe:00:77 0 EOF
2: FLOCK  ADVISORY  WRITE 12 fe:00:77 0 EOF
2: -> FLOCK  ADVISORY  WRITE 13 fe:00:77 0 EOF
3: FLOCK  ADVISORY  READ 14 fe:01:77 0 EOF
4: FLOCK  ADVISORY  WRITE 15 fe:00:78 0 EOF
5: FLOCK  ADVISORY  WRITE -1 fe:00:77 0 EOF
garbage
"""


def stat_of(inode: int, device: int) -> os.stat_result:
    return os.stat_result((0, inode, device, 1, 0, 0, 0, 0, 0, 0))


def test_holders_are_those_who_have_the_file_by_flock_and_of_its_device_where_that_can_be_told() -> None:
    assert holders_in(LOCKS, stat_of(77, os.makedev(0xFE, 0))) == (12, 13)
    assert holders_in(LOCKS, stat_of(77, os.makedev(0, 50))) == (12, 13, 14)
    assert holders_in(LOCKS, stat_of(79, os.makedev(0xFE, 0))) == ()


def test_machine_without_a_list_of_locks_names_nobody(tmp_path: Path) -> None:
    assert holders(tmp_path, tmp_path / "not there") == ()
