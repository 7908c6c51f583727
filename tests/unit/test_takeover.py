"""What processes that are gone have left: who takes it over, in which order, and what is left alone."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from enhanced_checkpointing.errors import CheckpointCorruptionError
from enhanced_checkpointing.journal import codec
from enhanced_checkpointing.journal import format as frames
from enhanced_checkpointing.journal.disk import RealDisk
from enhanced_checkpointing.journal.durable import DurableJournal
from enhanced_checkpointing.journal.log_file import ProcessLog
from enhanced_checkpointing.journal.recovery import Orphans, take_over
from enhanced_checkpointing.journal.workers import TABLE_NAME
from enhanced_checkpointing.observability.events import Notice
from enhanced_checkpointing.operations import DeleteThread, Operation, Put
from enhanced_checkpointing.serialization import SharingSerializer
from enhanced_checkpointing.testing import FakeClock
from tests.support.author import Author
from tests.support.cipher import encrypting
from tests.support.faulty_disk import Died, FaultyDisk
from tests.support.journal_files import record
from tests.support.journals import add, durable_journal, opened_journal, operations_in
from tests.support.recorder import Recorder

HERE = Path("journal")


def logs() -> set[str]:
    return {name.partition(".")[0] for name in RealDisk(HERE).names() if name != TABLE_NAME}


def files(pattern: str = "*") -> list[Path]:
    return sorted(path for path in HERE.glob(pattern) if path.is_file())


def contents() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in files() if path.name != TABLE_NAME}


def earlier_release(journal: DurableJournal) -> DurableJournal:
    """A journal that tells other processes nothing of its threads."""
    journal.workers = None
    return journal


def notices(journal: DurableJournal, level: str) -> list[str]:
    telemetry = journal._telemetry
    assert isinstance(telemetry, Recorder)
    return [notice.message for notice in telemetry.of(Notice) if notice.level == level]


class Takeover:
    """Adopts as a running process does, and keeps what it is told."""

    def __init__(self, journal: DurableJournal) -> None:
        self._journal = journal
        self.waited_for: list[str] = []
        self.taken: dict[str, Sequence[Operation] | None] = {}

    async def take_over(self) -> None:
        async def undrained(thread_id: str) -> None:
            self.waited_for.append(thread_id)

        await self._journal.take_over(undrained, self.taken.__setitem__)


async def killed(journal: DurableJournal) -> None:
    """End a journal as SIGKILL does: its files stay as they are, and nobody has their locks."""
    log = journal._logs.own
    assert log is not None
    await journal._logs.run(log.release)
    for adopted in journal._logs.taken_over:
        await journal._logs.run(adopted.release)


async def left_by(clock: FakeClock, *threads: str, home: str | None = None) -> None:
    """What a process leaves that wrote into these threads, one a second."""
    journal = durable_journal(wall_clock=clock, home=home)
    await journal.open()
    for thread_id in threads:
        await add(journal, thread_id)
        clock.advance(1.0)
    await killed(journal)


# All or none


async def test_process_adopts_nothing_while_another_one_adopts_and_all_of_it_later() -> None:
    for number in range(3):
        async with opened_journal() as one:
            await add(one, f"{number}")
    with RealDisk(HERE).alone() as alone:
        assert alone
        late = durable_journal()
        await late.open()
        assert late.held_threads() == []
        await Takeover(late).take_over()
        assert late.held_threads() == []
    await Takeover(late).take_over()
    assert late.held_threads() == ["0", "1", "2"]
    await late.close()


def test_only_one_process_at_a_time_is_alone_in_a_directory(tmp_path: Path) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with RealDisk(tmp_path).alone() as one, RealDisk(tmp_path).alone() as other:
        assert (one, other) == (True, False)
    with RealDisk(tmp_path).alone() as again:
        assert again
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_directory_is_not_locked_by_a_child_that_was_forked_meanwhile(tmp_path: Path) -> None:
    with RealDisk(tmp_path).alone():
        # A child that does nothing but keep the descriptors.
        handles = {int(name) for name in os.listdir("/proc/self/fd")}
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=handles - {0, 1, 2})
    try:
        with RealDisk(tmp_path).alone() as alone:
            assert alone
    finally:
        child.communicate(b"\n")


STARTER = """
import asyncio, sys
from pathlib import Path
from tests.support.journals import durable_journal

async def start():
    journal = durable_journal(Path(sys.argv[1]))
    sys.stdin.readline()
    await journal.open()
    print(len(journal.held_threads()), flush=True)
    sys.stdin.readline()

asyncio.run(start())
"""


def adopted_by_starters(count: int) -> list[int]:
    """Of how many threads each of some processes adopts something that start at the same time."""
    root = Path(__file__).parents[2]
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", STARTER, str(HERE.absolute())],
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    try:
        for starter in starters:
            assert starter.stdin is not None
            starter.stdin.write("\n")
            starter.stdin.flush()
        return [int(starter.stdout.readline()) for starter in starters if starter.stdout is not None]
    finally:
        for starter in starters:
            starter.kill()
            starter.communicate()


@pytest.mark.thorough
async def test_processes_that_start_together_do_not_split_what_was_left() -> None:
    for number in range(40):
        async with opened_journal() as journal:
            await add(journal, f"{number}")
    assert sorted(adopted_by_starters(4)) == [0, 0, 0, 40]


# In order


async def test_records_of_several_books_come_in_the_order_in_which_they_were_written() -> None:
    """Two processes wrote one thread; the one that began first deleted it last."""
    clock = FakeClock(1000.0)
    early, late = (earlier_release(durable_journal(wall_clock=clock)) for _ in range(2))
    await early.open()
    await late.open()
    put = Author("a").put({"n": 1})
    await add(late, put)
    clock.advance(1.0)
    await add(early, DeleteThread("a"))
    await killed(early)
    await killed(late)
    async with opened_journal() as journal:
        assert await operations_in(journal, "a") == [put.replayable(), DeleteThread("a")]


async def test_each_book_keeps_its_own_order_although_the_clock_jumped_back_in_it() -> None:
    clock = FakeClock(5000.0)
    one, other = (earlier_release(durable_journal(wall_clock=clock)) for _ in range(2))
    await one.open()
    await other.open()
    author = Author("a")
    puts = [author.put({"n": step}) for step in range(4)]
    for journal, put, stamp in zip([one, one, other, one], puts, [5000.0, 1000.0, 5500.0, 6000.0], strict=True):
        clock.advance(stamp - clock())
        await add(journal, put)
    await killed(one)
    await killed(other)
    async with opened_journal() as journal:
        assert await operations_in(journal, "a") == [put.replayable() for put in puts]
        await journal.mark_applied(journal.entries("a"))
        assert not journal.holds("a")
    assert logs() == set()


async def test_what_a_running_process_adopts_takes_its_place_before_what_it_wrote_later_itself() -> None:
    clock = FakeClock(1000.0)
    other = earlier_release(durable_journal(wall_clock=clock))
    async with opened_journal(wall_clock=clock) as running:
        await other.open()
        put = Author("a").put({"n": 1})
        await add(other, put)
        clock.advance(1.0)
        await add(running, DeleteThread("a"))
        await killed(other)
        takeover = Takeover(running)
        await takeover.take_over()
        assert takeover.waited_for == ["a"], "nothing is put in front of what is being drained"
        assert await operations_in(running, "a") == [put.replayable(), DeleteThread("a")]
        assert takeover.taken == {"a": None}, "some of it is its own"
        await running.mark_applied(running.entries("a"))
    assert logs() == set()


# While a process runs


async def test_running_process_adopts_what_others_leave_and_tells_of_each_thread() -> None:
    async with opened_journal() as running:
        takeover = Takeover(running)
        async with opened_journal() as other:
            await add(other, "a")
            await add(other, "b")
            await takeover.take_over()
            assert takeover.taken == {}, "it is alive"
        await takeover.take_over()
        assert takeover.taken == {"a": [DeleteThread("a")], "b": [DeleteThread("b")]}
        assert running.waiting_threads() == ["a", "b"]
        assert notices(running, "WARNING") == ["2 operations that an earlier process acknowledged wait in the journal"]
        await takeover.take_over()
        assert running.status().pending == 2, "once"
        for thread_id in "ab":
            await running.mark_applied(running.entries(thread_id))
        descriptors = len(os.listdir("/proc/self/fd"))
        assert len(logs()) == 2
        await takeover.take_over()
        assert len(logs()) == 1, "what is done goes at once"
        assert len(os.listdir("/proc/self/fd")) == descriptors - 2, "the lock, and the file with the marks"
    assert logs() == set()


async def test_book_with_a_mark_on_its_way_is_not_given_back() -> None:
    async with opened_journal() as journal:
        await add(journal, "a")
    async with opened_journal() as journal:
        await journal.redirect("a", "sibling")
        marking = asyncio.ensure_future(journal.mark_applied(journal.entries("a")))
        await asyncio.sleep(0)
        await Takeover(journal).take_over()
        assert len(journal._logs.taken_over) == 1
        await marking
        await journal._committer.settle(1.0)
        await Takeover(journal).take_over()
        assert journal._logs.taken_over == []
    assert logs() == set()


async def test_what_an_encrypted_backlog_says_is_not_known_without_its_key() -> None:
    async with opened_journal() as running:
        async with opened_journal(serializer=encrypting()) as other:
            await add(other, Author("a", "", encrypting()).put({"n": 1}))
        takeover = Takeover(running)
        await takeover.take_over()
        assert takeover.taken == {"a": None}
        with pytest.raises(CheckpointCorruptionError):
            await running.read(running.entries("a"))


async def test_running_process_is_told_of_damage_and_freezes_what_may_lack_something() -> None:
    async with opened_journal() as running:
        async with opened_journal() as other:
            await add(other, Author("a").put({"n": ["needle"]}))
            await add(other, "b")
        for path in files("*.journal"):
            path.write_bytes(path.read_bytes().replace(b"needle", b"noodle"))
        takeover = Takeover(running)
        await takeover.take_over()
        assert takeover.taken == {"b": [DeleteThread("b")], "a": None}
        assert running.is_damaged("a")
        assert running.status().damages == 1
        assert len(notices(running, "ERROR")) == 1


async def test_adoption_that_fails_takes_nothing_says_so_once_and_is_tried_again() -> None:
    disk = FaultyDisk(HERE)
    async with opened_journal(disk=disk) as running:
        for number in range(2):
            async with opened_journal() as other:
                await add(other, f"{number}")
        for fault in ("open", "alone"):
            disk.failing = {fault}
            for _ in range(2):
                await Takeover(running).take_over()
                assert running.held_threads() == []
        (told,) = notices(running, "ERROR")
        assert told.endswith("cannot be taken over now, and is left as it is (Input/output error)")
        disk.heal()
        async with opened_journal() as next_one:
            assert next_one.held_threads() == ["0", "1"], "it kept no lock of what it did not take"
        await Takeover(running).take_over()
        assert running.held_threads() == ["0", "1"]


async def test_newer_format_is_left_alone_by_a_running_process(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened_journal() as running:
        monkeypatch.setattr(frames, "FORMAT", frames.FORMAT + 2)
        async with opened_journal() as newer:
            await add(newer, "a")
        monkeypatch.setattr(frames, "FORMAT", frames.FORMAT - 2)
        await Takeover(running).take_over()
        assert running.held_threads() == []
        (what,) = notices(running, "ERROR")
        assert "is of format 3" in what
        for path in files(f"{max(logs())}*"):
            path.unlink()


async def test_adopted_file_that_somebody_removed_freezes_its_threads_when_it_is_read() -> None:
    async with opened_journal() as journal:
        await add(journal, "a")
    async with opened_journal() as journal:
        for path in files("*.journal")[:1]:
            path.unlink()
        with pytest.raises(CheckpointCorruptionError, match="not what was written"):
            await journal.read(journal.entries("a"))
        assert journal.is_frozen("a")
        assert journal.status().damages == 1


# Nothing in it


async def test_books_without_anything_in_them_go_when_they_are_adopted() -> None:
    together = [durable_journal() for _ in range(3)]
    for journal in together:
        await journal.open()
    for journal in together:
        await killed(journal)
    assert len(logs()) == 3
    async with opened_journal() as journal:
        assert logs() == {journal._logs.own.identity if journal._logs.own is not None else None}


async def test_empty_book_that_cannot_be_removed_is_no_fault_and_keeps_nothing_open() -> None:
    await left_by(FakeClock(1000.0))
    disk = FaultyDisk(HERE)
    disk.failing = {"remove"}
    gc.collect()  # what killed processes of other tests had open
    descriptors = len(os.listdir("/proc/self/fd"))
    async with opened_journal(disk=disk) as journal:
        assert journal.status().damages == 0
        disk.heal()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    async with opened_journal():
        pass
    assert logs() == set()


async def test_start_that_dies_while_it_removes_an_empty_book_leaves_that_to_the_next_one() -> None:
    for step in itertools.count(1):
        await left_by(FakeClock(1000.0))
        disk = FaultyDisk(HERE, fails_at=step, error=None)
        with suppress(Died):
            take_over(disk, FakeClock(1000.0), lambda home: True)
        assert take_over(RealDisk(HERE), FakeClock(1000.0), lambda home: True) == Orphans([], {}, [])
        assert logs() == set()
        if disk.counted < step:  # it was done before
            break
    assert "remove" in disk.calls


MANY = """
import asyncio, resource, sys
from pathlib import Path
from tests.support.journals import opened_journal

async def start():
    async with opened_journal(Path(sys.argv[1])) as journal:
        print(journal.status().pending, len(list(Path(sys.argv[1]).glob("*.spare"))), flush=True)

resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
asyncio.run(start())
"""


@pytest.mark.thorough
def test_hundreds_of_processes_that_were_killed_do_not_end_a_start_with_few_descriptors() -> None:
    disk = RealDisk(HERE)
    disk.prepare()
    for number in range(300):
        identity = f"{number:032x}"
        lock = disk.lock(f"{identity}.lock")
        assert lock is not None
        log = ProcessLog(disk, identity, lock, time.time)
        log.check()
        if number % 3:
            log.append([record("a", codec.encode(DeleteThread("a"), None, SharingSerializer()))])
        log.release()
    found = subprocess.run(
        [sys.executable, "-c", MANY, str(HERE.absolute())],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.stdout, found.returncode) == ("200 201\n", 0), found.stderr


# Not ours


async def test_files_that_are_not_ours_are_ignored_and_named_once() -> None:
    async with opened_journal() as journal:
        await add(journal, "a")
    (file,) = files("*.journal")
    identity = file.name.partition(".")[0]
    strays = [
        f"{identity}.000001 (copy).journal",
        f"{identity}.journal",
        f"{identity}.4294967296.journal",
        f"{identity}.00000\u0661.journal",
        f"{'z' * 32}.lock",
        f"{identity}.journal.bak",
        "README.md",
    ]
    for name in (*strays, ".gitignore"):
        (HERE / name).touch()
    async with opened_journal() as journal:
        assert journal.held_threads() == ["a"]
        assert journal.status().damages == 0
        await Takeover(journal).take_over()
        what, *others = [message for message in notices(journal, "WARNING") if "files" in message]
        assert others == []
        assert all(repr(name) in what for name in sorted(strays)[:5])
        assert what.endswith("and 2 more")
        assert "gitignore" not in what
        (HERE / "another").touch()
        await Takeover(journal).take_over()
        assert notices(journal, "WARNING")[-1].endswith("are ignored: 'another'")
        await journal.mark_applied(journal.entries("a"))
    assert sorted(path.name for path in files()) == sorted([*strays, ".gitignore", "another"])


# Another home


async def test_backlog_of_another_database_is_not_adopted_stays_as_it_is_and_is_told() -> None:
    clock = FakeClock(1000.0)
    await left_by(clock, "a", home="postgres://prod")
    await left_by(clock, "b", home="postgres://prod")
    before = contents()
    async with opened_journal(home="postgres://staging") as journal:
        assert journal.held_threads() == []
        assert journal.status().foreign == (("postgres://prod", 2),)
        (what,) = notices(journal, "ERROR")
        assert "backlogs of 2 ended processes of another database (postgres://prod)" in what
        assert "CHECKPOINT_JOURNAL_ADOPT=all" in what
        await Takeover(journal).take_over()
        assert len(notices(journal, "ERROR")) == 1
        async with opened_journal(home="postgres://prod") as theirs:
            assert theirs.held_threads() == ["a", "b"]
            await Takeover(journal).take_over()
            assert journal.status().foreign == (), "somebody drains it"
        await Takeover(journal).take_over()
        assert journal.status().foreign == (("postgres://prod", 2),)
    assert contents() == before
    async with opened_journal(home="postgres://prod") as journal:
        assert journal.held_threads() == ["a", "b"]
        assert journal.status().foreign == ()


async def test_backlog_of_a_database_that_has_moved_is_adopted_when_that_is_said() -> None:
    await left_by(FakeClock(1000.0), "a", home="postgres://old")
    async with opened_journal(home="postgres://new", takes_over_all=True) as journal:
        assert journal.held_threads() == ["a"]
        await journal.redirect("a", "sibling")  # which writes its lock file again
    async with opened_journal(home="postgres://new") as journal:
        assert journal.status().foreign == (("postgres://old", 1),)


async def test_memory_takes_nothing_that_was_not_meant_for_it() -> None:
    clock = FakeClock(1000.0)
    await left_by(clock, "a", home="postgres://prod")
    await left_by(clock, "b")
    await left_by(clock, "c", home="memory")
    async with opened_journal(home="memory", takes_over_all=True) as journal:
        assert journal.held_threads() == ["c"]
        assert dict(journal.status().foreign) == {
            "postgres://prod": 1,
            "an earlier release, which did not say": 1,
        }


async def test_backlog_that_does_not_say_whose_it_is_counts_as_ours() -> None:
    await left_by(FakeClock(1000.0), "a")
    async with opened_journal(home="postgres://prod") as journal:
        assert journal.held_threads() == ["a"]
        assert journal.status().foreign == ()


async def test_backlog_whose_home_is_damaged_is_left_alone_until_somebody_decides() -> None:
    await left_by(FakeClock(1000.0), "a", home="postgres://prod")
    (lock,) = files("*.lock")
    lock.write_bytes(lock.read_bytes().replace(b"prod", b"pr0d"))
    async with opened_journal(home="postgres://pr0d") as journal:
        assert journal.held_threads() == []
        assert journal.status().foreign == (("unknown: the lock file is damaged", 1),)
    async with opened_journal(home="postgres://prod", takes_over_all=True) as journal:
        assert journal.held_threads() == ["a"]
        assert journal.status().damages == 1


async def test_damaged_or_newer_backlog_of_another_database_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(1000.0)
    await left_by(clock, "needle", home="one")
    for path in files("*.journal"):
        path.write_bytes(path.read_bytes().replace(b"needle", b"noodle", 1))
    monkeypatch.setattr(frames, "FORMAT", frames.FORMAT + 2)
    await left_by(clock, "b", home="two")
    monkeypatch.setattr(frames, "FORMAT", frames.FORMAT - 2)
    before = contents()
    async with opened_journal(home="three") as journal:
        assert journal.held_threads() == []
        assert dict(journal.status().foreign) == {"one": 1, "two": 1}
        assert journal.status().damages == 0
    assert contents() == before
    assert not (HERE / "quarantine").exists()


async def test_empty_book_of_another_database_goes_and_is_not_told() -> None:
    await left_by(FakeClock(1000.0), home="postgres://prod")
    async with opened_journal(home="postgres://staging") as journal:
        assert journal.status().foreign == ()
        assert notices(journal, "ERROR") == []
        assert len(logs()) == 1


async def test_dead_letter_that_a_running_process_adopts_is_tried_again() -> None:
    async with opened_journal() as running:
        async with opened_journal() as other:
            put: Put = Author("a").put({"n": 1})
            await other.dead_letter(await add(other, put), "refused")
            await add(other, "a")
        takeover = Takeover(running)
        await takeover.take_over()
        assert takeover.taken == {"a": [put.replayable(), DeleteThread("a")]}
        assert running.waiting_threads() == ["a"]
        assert running.dead_letters() == []
