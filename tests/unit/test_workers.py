"""What workers that share a journal directory know of each other: never too little, whatever becomes of the file."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from enhanced_checkpointing.errors import CheckpointUnavailableError
from enhanced_checkpointing.journal import workers as thread_table
from enhanced_checkpointing.journal import workers as workers_module
from enhanced_checkpointing.journal.disk import RealDisk
from enhanced_checkpointing.journal.workers import TABLE_NAME, TABLE_SIZE, WORKERS, Spot, ThreadTable, Workers

HOME = "postgres://database/app"


class Directory:
    """Workers of one directory; the log of one that is alive is named in `logs`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.logs: dict[Workers, str] = {}
        self._numbers = count(1)
        self._ticks = count(1)

    def new(self, home: str = HOME, *, has_log: bool = True) -> Workers:
        worker = Workers(RealDisk(self.path), home, clock=lambda: next(self._ticks) / 1000)
        if has_log:
            self.logs[worker] = f"{next(self._numbers):032x}"
        self.look(worker)
        return worker

    def look(self, worker: Workers, *taken: str) -> None:
        alive = {log for other, log in self.logs.items() if other is not worker}
        worker.settle(self.logs.get(worker), alive, taken)
        for thread_id in taken:
            worker.took_over(thread_id)

    def kill(self, worker: Workers) -> None:
        del self.logs[worker]


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    return Directory(tmp_path)


def read(worker: Workers, thread_id: str) -> None:
    worker.know(thread_id, worker.stamp(thread_id))


def test_worker_that_is_alone_knows_everything(directory: Directory) -> None:
    only = directory.new()
    assert only.is_current("a")
    only.note("a")
    assert only.is_current("a")
    assert not only.held_elsewhere("a")
    assert only.news() == []


def test_thread_that_another_worker_went_on_with_is_not_current_until_it_is_read_again(directory: Directory) -> None:
    one, other = directory.new(), directory.new()
    assert one.is_current("a"), "nobody has written to it"
    one.note("a")
    assert one.is_current("a")
    assert not other.is_current("a"), "it was never read, and another one has written to it"
    other.note("a")
    assert not other.is_current("a")
    assert not one.is_current("a")
    with pytest.raises(CheckpointUnavailableError, match="may have gone on"):
        one.claim("a", grows=True)
    assert not other.held_elsewhere("a"), "what was refused is not held"
    read(one, "a")
    assert one.is_current("a")


def test_answer_that_was_on_its_way_while_another_worker_acknowledged_is_not_current(directory: Directory) -> None:
    one, other = directory.new(), directory.new()
    stamp = one.stamp("a")
    other.note("a")
    one.know("a", stamp)
    assert not one.is_current("a")


def test_what_one_worker_knew_before_the_other_came_stays_current(directory: Directory) -> None:
    one = directory.new()
    one.note("a")
    directory.new()
    assert one.is_current("a")


def test_thread_that_is_held_is_refused_by_all_others_until_it_is_let_go(directory: Directory) -> None:
    one, other = directory.new(), directory.new()
    one.claim("a", grows=False)
    assert other.held_elsewhere("a")
    assert other.held_elsewhere(None)
    assert not one.held_elsewhere("a")
    with pytest.raises(CheckpointUnavailableError, match="has in its journal"):
        other.claim("a", grows=False)
    one.release("a")
    assert not other.held_elsewhere("a")
    assert not other.held_elsewhere(None)


def test_frozen_threads_are_held_but_do_not_hold_up_what_asks_for_all_threads(directory: Directory) -> None:
    one, other = directory.new(), directory.new()
    one.hold("a")
    one.hold("b")
    one.freeze("a")
    assert other.held_elsewhere(None, frozen=False)
    one.release("b")
    assert not other.held_elsewhere(None, frozen=False)
    assert other.held_elsewhere(None)
    assert other.held_elsewhere("a")


def test_what_a_killed_worker_held_stays_held_until_it_is_taken_over(directory: Directory) -> None:
    one, other, third = directory.new(), directory.new(), directory.new()
    one.hold("a")
    directory.kill(one)
    assert other.held_elsewhere("a")
    directory.look(other, "a")
    assert not other.held_elsewhere("a")
    assert other.is_current("a"), "it has what there is"
    assert third.held_elsewhere("a")
    other.release("a")
    assert not third.held_elsewhere("a")


def test_thread_that_is_being_taken_over_is_not_let_go_by_what_was_held_before(directory: Directory) -> None:
    one, other = directory.new(), directory.new()
    one.hold("a")
    one.settle(directory.logs[one], {directory.logs[other]}, ["a"])
    one.release("a")
    assert other.held_elsewhere("a")
    one.took_over("a")
    one.release("a")
    assert not other.held_elsewhere("a")


def test_two_databases_in_one_directory_do_not_disturb_one_another(directory: Directory) -> None:
    one, stranger = directory.new(), directory.new("postgres://database/other")
    assert stranger.news() == []
    read(one, "a")
    stranger.note("a")
    stranger.hold("a")
    assert one.is_current("a")
    assert not one.held_elsewhere("a")
    assert not one.held_elsewhere(None)
    directory.kill(stranger)
    directory.look(one)
    again = directory.new("postgres://database/other")
    assert again.held_elsewhere("a") is False, "it has taken over what there was: that frees the place"
    one.claim("a", grows=True)


def test_dead_worker_of_another_database_keeps_its_place_until_one_of_that_database_looks(directory: Directory) -> None:
    one, stranger, friend = directory.new(), directory.new("other"), directory.new("other")
    stranger.hold("a")
    directory.kill(stranger)
    directory.look(one)
    assert friend.held_elsewhere("a")
    directory.look(friend, "a")
    friend.release("a")
    assert not friend.held_elsewhere(None)


def test_second_worker_of_a_database_is_told_what_that_means(directory: Directory) -> None:
    directory.new()
    assert "another process uses this CHECKPOINT_JOURNAL_DIR" in directory.new().news()[0]
    assert directory.new("other").news() == []


def test_until_a_worker_has_looked_any_thread_may_be_held(directory: Directory) -> None:
    assert Workers(RealDisk(directory.path), HOME).held_elsewhere("a")


@pytest.mark.parametrize("damage", ["emptied", "torn", "removed"])
def test_file_that_was_damaged_is_begun_anew_and_nothing_older_is_answered(damage: str, directory: Directory) -> None:
    one, other = directory.new(), directory.new()
    read(one, "a")
    read(one, "b")
    other.note("a")
    other.hold("b")
    path = directory.path / TABLE_NAME
    if damage == "removed":
        path.unlink()
    else:
        with path.open("r+b") as file:
            file.write(bytes(TABLE_SIZE) if damage == "emptied" else b"\x5a" * TABLE_SIZE)
    third = directory.new()
    directory.look(other)
    directory.look(one)
    assert not one.is_current("a")
    assert one.held_elsewhere("b")
    assert third.held_elsewhere("b")
    assert not third.is_current("a")
    other.release("b")
    assert not one.held_elsewhere("b")


def test_file_is_private_and_goes_with_the_last_worker(directory: Directory) -> None:
    one, other = directory.new(), directory.new()
    assert (directory.path / TABLE_NAME).stat().st_mode & 0o777 == 0o600
    one.leave()
    directory.kill(one)
    one.leave()
    one.note("a")
    one.note_changed(None)
    assert (directory.path / TABLE_NAME).exists()
    other.leave()
    assert not (directory.path / TABLE_NAME).exists()


def test_what_stays_in_the_journal_of_a_worker_that_leaves_stays_held(directory: Directory) -> None:
    one, other = directory.new(), directory.new()
    one.hold("a")
    one.leave()
    directory.kill(one)
    assert other.held_elsewhere("a")
    other.leave()
    assert (directory.path / TABLE_NAME).exists()


def test_one_worker_too_many_may_answer_and_journals_nothing(directory: Directory) -> None:
    holders = [directory.new() for _ in range(WORKERS)]
    late = directory.new()
    holders[-1].hold("a")
    assert late.held_elsewhere("a")
    with pytest.raises(CheckpointUnavailableError, match=f"more than {WORKERS} processes"):
        late.claim("b", grows=False)
    read(holders[0], "b")
    late.note("b")
    assert not holders[0].is_current("b")
    directory.kill(holders.pop(0))
    directory.look(late)
    directory.look(late)
    late.claim("b", grows=False)


def test_worker_whose_log_was_renewed_keeps_its_place(directory: Directory) -> None:
    one, other = directory.new(), directory.new()
    one.hold("a")
    directory.logs[one] = "f" * 32
    directory.look(one)
    directory.look(other)
    assert other.held_elsewhere("a")


def test_worker_without_a_log_tells_of_changes_all_the_same(directory: Directory) -> None:
    one, without = directory.new(), directory.new(has_log=False)
    read(one, "a")
    without.note("a")
    assert not one.is_current("a")


class Broken(RealDisk):
    def share(self, name: str, size: int) -> tuple[int, memoryview]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_without_the_file_nothing_is_answered_from_memory_while_there_are_others(tmp_path: Path) -> None:
    blind = Workers(Broken(tmp_path), HOME)
    blind.settle("1" * 32, [], [])
    assert blind.is_current("a")
    assert not blind.held_elsewhere("a")
    blind.claim("a", grows=True)
    blind.freeze("a")
    blind.release("a")
    for _ in range(2):
        blind.settle("1" * 32, ["2" * 32], [])
    assert len(blind.news()) == 1
    assert not blind.is_current("a")
    with pytest.raises(CheckpointUnavailableError):
        blind.claim("a", grows=True)
    assert blind.begins("a", None)


def test_thread_is_taken_for_new_only_if_no_other_worker_can_have_written_to_it(directory: Directory) -> None:
    ticks = iter(range(1_000, 100_000))
    one, other = directory.new(), Workers(RealDisk(directory.path), HOME, clock=lambda: float(next(ticks)))
    directory.logs[other] = "e" * 32
    directory.look(other)
    assert other.begins("never seen", None)
    assert other.is_current("never seen")
    one.note("a")  # when the other clock says less than a second
    assert not other.begins("a", None)
    assert other.begins("a", 5.0)
    read(one, "b")
    other.note("b")
    assert not one.begins("b", 5.0)


def test_changes_of_all_threads_leave_none_current(directory: Directory) -> None:
    one, other = directory.new(), directory.new()
    for thread_id in "ab":
        read(one, thread_id)
    other.note_changed(["a"])
    assert (one.is_current("a"), one.is_current("b")) == (False, True)
    other.note_changed(None)
    assert not one.is_current("b")


def test_deleted_thread_is_current_where_it_was_deleted(directory: Directory) -> None:
    one, other = directory.new(), directory.new()
    one.note("a", is_all=True)
    assert one.is_current("a")
    assert not other.is_current("a")


def test_threads_that_changed_the_longest_ago_are_forgotten(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "REMEMBERED", 2)
    one, other = directory.new(), directory.new()
    for thread_id in "abc":
        other.note(thread_id)
        read(one, thread_id)
    assert [one.is_current(thread_id) for thread_id in "abc"] == [False, True, True]


# Any order of anything


@dataclass
class Seen:
    """What a worker has of each thread, by the number of the acknowledgement; and what its journal holds."""

    newest: dict[str, int] = field(default_factory=dict)
    holds: set[str] = field(default_factory=set)


THREADS = "abcde"
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["read", "slow read", "write", "journal", "drain", "kill", "start", "look", "damage"]),
        st.integers(0, 2),
        st.sampled_from(THREADS),
    ),
    max_size=40,
)


@settings(max_examples=100, deadline=None)
@given(steps=STEPS, meet=st.booleans())
@example(steps=[("read", 0, "a"), ("start", 1, "a"), ("slow read", 1, "a")], meet=False)
def test_no_worker_answers_what_is_older_than_any_has_acknowledged_in_any_order_of_events(
    steps: list[tuple[str, int, str]], meet: bool
) -> None:
    """`meet`: threads share their stamps and bits."""
    spot = ThreadTable.spot
    with TemporaryDirectory() as path, pytest.MonkeyPatch.context() as patch:
        if meet:
            patch.setattr(
                thread_table.ThreadTable,
                "spot",
                lambda self, home, thread_id: Spot(ord(thread_id) % 2, (ord(thread_id) % 2, 2)),
            )
        else:
            patch.setattr(thread_table.ThreadTable, "spot", spot)
        directory = Directory(Path(path))
        places: list[Workers | None] = [directory.new(), None, None]
        seen: dict[Workers, Seen] = {worker: Seen() for worker in places if worker is not None}
        orphaned: dict[str, int] = {}
        truth = dict.fromkeys(THREADS, 0)
        in_primary = dict.fromkeys(THREADS, 0)
        for what, place, thread_id in steps:
            worker = places[place]
            if worker is None:
                if what == "start":
                    worker = places[place] = directory.new()
                    seen[worker] = Seen()
                    what = "look"
                else:
                    continue
            mine = seen[worker]
            if what in ("read", "slow read") and not worker.held_elsewhere(thread_id) and thread_id not in mine.holds:
                stamp = worker.stamp(thread_id)
                answer = in_primary[thread_id]
                assert answer == truth[thread_id], "the primary is asked only if it has the newest"
                if what == "slow read":
                    for other in filter(None, places):
                        if other is not worker and not other.held_elsewhere(thread_id):
                            knew = seen[other].newest.get(thread_id) == truth[thread_id]
                            other.note(thread_id)
                            truth[thread_id] += 1
                            in_primary[thread_id] = truth[thread_id]
                            if knew:
                                seen[other].newest[thread_id] = truth[thread_id]
                worker.know(thread_id, stamp)
                mine.newest[thread_id] = answer
            elif what == "write" and not worker.held_elsewhere(thread_id) and thread_id not in mine.holds:
                if thread_id not in mine.newest:
                    read(worker, thread_id)
                    mine.newest[thread_id] = truth[thread_id]
                knew = mine.newest[thread_id] == truth[thread_id]
                truth[thread_id] += 1
                in_primary[thread_id] = truth[thread_id]
                worker.note(thread_id)
                if knew:
                    mine.newest[thread_id] = truth[thread_id]
            elif what == "journal":
                try:
                    if thread_id not in mine.holds:
                        worker.claim(thread_id, grows=True)
                except CheckpointUnavailableError:
                    continue
                assert mine.newest.get(thread_id, truth[thread_id]) == truth[thread_id]
                mine.holds.add(thread_id)
                truth[thread_id] += 1
                worker.note(thread_id)
                mine.newest[thread_id] = truth[thread_id]
            elif what == "drain" and thread_id in mine.holds:
                in_primary[thread_id] = mine.newest[thread_id]
                mine.holds.discard(thread_id)
                worker.release(thread_id)
            elif what == "kill":
                orphaned |= {held: mine.newest[held] for held in mine.holds}
                directory.kill(worker)
                places[place] = None
            elif what == "look":
                taken, orphaned = orphaned, {}
                directory.look(worker, *taken)
                mine.newest |= taken
                mine.holds |= taken.keys()
            elif what == "damage" and len(directory.logs) == 1:  # a machine that crashes leaves none of them
                held = mine.holds | orphaned.keys()
                directory.kill(worker)
                (Path(path) / TABLE_NAME).write_bytes(b"\x77" * TABLE_SIZE)
                orphaned |= {each: mine.newest.get(each, orphaned.get(each, 0)) for each in held}
                places[place] = None
            for other in filter(None, places):
                for each in THREADS:
                    if other.is_current(each) and not other.held_elsewhere(each) and each in seen[other].newest:
                        assert seen[other].newest[each] == truth[each]
                    held_by = [one for one in filter(None, places) if one is not other and each in seen[one].holds]
                    if held_by or (each in orphaned and len(directory.logs) > 1):
                        assert other.held_elsewhere(each)
