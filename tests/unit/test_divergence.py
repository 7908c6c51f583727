"""When two branches of one thread are two, and when one only looks like it."""

from __future__ import annotations

from enhanced_checkpointing.journal.api import UNKNOWN, BaseHead, JournalEntry, entry_of
from enhanced_checkpointing.operations import DeleteThread, Operation, Put
from enhanced_checkpointing.recovery.divergence import (
    Branch,
    diverged,
    is_mark,
    moved_to,
    namespaces_to_check,
    sibling_id,
)
from tests.support.author import Author


def entries_of(*operations: tuple[Operation, BaseHead]) -> list[JournalEntry]:
    return [
        entry_of(operation, base_head, sequence=number, thread_sequence=number, journaled_at=0.0, size=1)
        for number, (operation, base_head) in enumerate(operations, 1)
    ]


def branches(entries: list[JournalEntry], **heads: str | None) -> list[Branch]:
    """The branches, when these are the heads in the primary; `root` is the namespace without a name."""
    named = {"" if name == "root" else name: head for name, head in heads.items()}
    return diverged(entries, namespaces_to_check(entries), named)


def test_primary_that_still_has_the_head_that_was_grown_from_has_not_diverged() -> None:
    author = Author()
    entries = entries_of((author.put({"n": 1}), "base"), (author.put({"n": 2}), "ours"))
    assert branches(entries, root="base") == []


def test_empty_primary_that_was_empty_has_not_diverged() -> None:
    assert branches(entries_of((Author().put({"n": 1}), None)), root=None) == []


def test_head_that_somebody_else_moved_is_a_branch() -> None:
    entries = entries_of((Author().put({"n": 1}), "base"))
    assert branches(entries, root="theirs") == [Branch("", "base", "theirs")]


def test_thread_that_somebody_else_began_or_deleted_is_a_branch() -> None:
    assert branches(entries_of((Author().put({"n": 1}), None)), root="theirs") == [Branch("", None, "theirs")]
    assert branches(entries_of((Author().put({"n": 1}), "base")), root=None) == [Branch("", "base", None)]


def test_checkpoint_of_our_own_that_was_committed_without_a_reply_is_no_branch() -> None:
    author = Author()
    first, second = author.put({"n": 1}), author.put({"n": 2})
    entries = entries_of((first, "base"), (second, first.checkpoint_id))
    assert branches(entries, root=first.checkpoint_id) == []
    assert branches(entries, root=second.checkpoint_id) == []


def test_thread_that_an_interrupted_drain_of_our_own_has_deleted_is_no_branch() -> None:
    author = Author()
    entries = entries_of((author.put({"n": 1}), "base"), (DeleteThread("thread"), None), (author.put({"n": 2}), None))
    assert branches(entries, root=None) == []
    assert branches(entries, root="theirs") == [Branch("", "base", "theirs")]


def test_only_the_oldest_record_of_a_namespace_is_compared() -> None:
    author = Author()
    first, second = author.put({"n": 1}), author.put({"n": 2})
    entries = entries_of((first, "base"), (second, first.checkpoint_id))
    assert namespaces_to_check(entries) == {"": entries[0]}


def test_each_namespace_is_compared_by_itself() -> None:
    root, child = Author("thread", ""), Author("thread", "child")
    entries = entries_of((root.put({"n": 1}), "base"), (child.put({"n": 1}), "child-base"))
    assert namespaces_to_check(entries) == {"": entries[0], "child": entries[1]}
    assert branches(entries, root="base", child="theirs") == [Branch("child", "child-base", "theirs")]


def test_namespace_that_gets_only_writes_cannot_fork() -> None:
    author = Author()
    author.put({"n": 1})
    assert namespaces_to_check(entries_of((author.writes(("n", 2)), "base"))) == {}


def test_mark_on_the_newest_checkpoint_is_no_branch_and_tells_what_was_grown_from() -> None:
    author = Author()
    marked = author.put({"n": 1})
    mark = (marked, marked.checkpoint_id)
    assert is_mark(entries_of(mark)[0])
    assert not is_mark(entries_of((marked, None))[0])
    assert not is_mark(entries_of((author.writes(("n", 1)), author.head))[0])
    assert branches(entries_of(mark), root="theirs") == []
    entries = entries_of(mark, (author.put({"n": 2}), marked.checkpoint_id))
    assert branches(entries, root=marked.checkpoint_id) == []
    assert branches(entries, root="theirs") == [Branch("", marked.checkpoint_id, "theirs")]


def test_writes_before_the_first_checkpoint_tell_the_head_that_was_grown_from() -> None:
    author = Author()
    author.put({"n": 1})
    entries = entries_of((author.writes(("n", 2)), "base"), (author.put({"n": 2}), "base"))
    assert namespaces_to_check(entries) == {"": entries[0]}


def test_head_that_was_never_seen_is_not_compared() -> None:
    author = Author()
    entries = entries_of((author.put({"n": 1}), UNKNOWN), (author.put({"n": 2}), "ours"))
    assert namespaces_to_check(entries) == {}


def test_deleted_thread_makes_what_is_below_not_matter() -> None:
    author = Author()
    entries = entries_of((DeleteThread("thread"), "base"), (author.put({"n": 1}), None))
    assert namespaces_to_check(entries) == {}
    late = entries_of((author.put({"n": 1}), "base"), (DeleteThread("thread"), None), (author.put({"n": 2}), None))
    assert namespaces_to_check(late) == {"": late[0]}


def test_quarantine_has_the_same_name_at_every_try_and_another_for_another_outage() -> None:
    author = Author()
    put, writes, later = author.put({"n": 1}), author.writes(("n", 2)), author.put({"n": 2})
    entries = entries_of((writes, "base"), (put, "base"), (later, put.checkpoint_id))
    assert sibling_id("thread", entries) == f"thread~outage~{put.checkpoint_id}"
    assert sibling_id("thread", entries[2:]) == f"thread~outage~{later.checkpoint_id}"


def test_moved_operation_differs_in_its_thread_only() -> None:
    author = Author()
    put = author.put({"profile": ["Ada"]})
    moved = moved_to(put, "sibling")
    assert isinstance(moved, Put)
    assert moved.thread_id == "sibling"
    assert moved_to(moved, "thread") == put
    assert moved_to(DeleteThread("thread"), "sibling") == DeleteThread("sibling")
