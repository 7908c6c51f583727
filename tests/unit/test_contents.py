"""Comparing two copies of a thread as they are read, and what is decided upon it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from enhanced_checkpointing.backends.reading import Chunks
from enhanced_checkpointing.operations import Operation, Put, PutWrites
from enhanced_checkpointing.serialization import SharingSerializer
from enhanced_checkpointing.threads.comparison import Comparison, compare
from enhanced_checkpointing.threads.contents import Digest, Entry, entries
from enhanced_checkpointing.threads.migrate import Orders, Outcome, decide
from tests.support.author import Author

SERIALIZER = SharingSerializer()


def history(count: int = 3) -> list[Operation]:
    """Checkpoints, each with an ordinary write and an interrupt."""
    author = Author()
    found: list[Operation] = []
    for number in range(count):
        put = author.put({"log": [number], "count": number})
        found += [put, author.writes(("__interrupt__", number), task_id="a"), author.writes(("log", number))]
    return found


async def chunks(operations: Sequence[Operation], size: int = 2) -> Chunks:
    for start in range(0, len(operations), size):
        yield operations[start : start + size]


def read(operations: Sequence[Operation]) -> AsyncGenerator[Entry, None]:
    return entries(chunks(operations), SERIALIZER)


async def compared(source: Sequence[Operation], target: Sequence[Operation], everything: bool = True) -> Comparison:
    return await compare(read(source), read(target), everything=everything)


async def digest(operations: Sequence[Operation], everything: bool = True) -> bytes:
    found = Digest(everything=everything)
    async for entry in read(operations):
        found.add(entry)
    return found.value()


def changed(operations: Sequence[Operation], place: int, **fields: Any) -> list[Operation]:
    copy = list(operations)
    copy[place] = replace(copy[place], **fields)
    return copy


async def test_equal_copies_are_equal_and_counted_however_they_are_chunked() -> None:
    thread = history()
    one, other = entries(chunks(thread, 1), SERIALIZER), entries(chunks(thread, 7), SERIALIZER)
    found = await compare(one, other, everything=True)
    assert found.equal
    assert (found.source.checkpoints, found.source.writes) == (3, 6)
    assert found.source == found.target
    assert await digest(thread) == await digest(list(thread))


async def test_everything_that_a_saver_shows_makes_a_difference() -> None:
    thread = history()
    put, writes = thread[0], thread[2]
    assert isinstance(put, Put)
    assert isinstance(writes, PutWrites)
    others = [
        changed(thread, 0, values={**put.values, "count": 7}),
        changed(thread, 0, values={"count": 0}),
        changed(thread, 0, metadata={"source": "input"}),
        changed(thread, 0, skeleton={**put.skeleton, "ts": "later"}),
        changed(thread, 3, parent_checkpoint_id=None),
        changed(thread, 2, writes=(*writes.writes, *writes.writes)),
        changed(thread, 2, writes=(("other", writes.writes[0][1]),)),
        changed(thread, 2, task_id="other"),
        thread[:-1],
        thread[3:],
    ]
    for other in others:
        assert not (await compared(thread, other)).equal
        assert await digest(thread) != await digest(other)


async def test_path_of_a_task_counts_only_where_both_sides_can_tell_it() -> None:
    thread = history(1)
    other = changed(thread, 2, task_path="~pull, a")
    assert not (await compared(thread, other)).equal
    assert (await compared(thread, other, everything=False)).equal
    assert await digest(thread) != await digest(other)
    assert await digest(thread, everything=False) == await digest(other, everything=False)


async def test_numbers_and_orders_that_postgresql_changes_make_no_difference() -> None:
    thread = history(1)
    put = thread[0]
    assert isinstance(put, Put)
    ours = changed(thread, 0, metadata={"source": "loop", "a": 1e20, "b": [-0.0, {"c": 1.5}], "e+": 2})
    theirs = changed(
        thread,
        0,
        metadata={"e+": 2, "b": (0.0, {"c": 1.5}), "a": 10**20, "source": "loop"},
        skeleton=dict(reversed([*put.skeleton.items()])),
        values=dict(reversed([*put.values.items()])),
    )
    assert (await compared(ours, theirs)).equal


async def test_what_only_one_side_has_is_told_apart() -> None:
    thread = history()
    assert (await compared(thread, thread[:3])).missing == 2
    lacking = await compared(thread, [])
    assert (lacking.missing, lacking.unknown, lacking.changed) == (3, 0, 0)
    ahead = await compared(thread[:3], thread)
    assert (ahead.missing, ahead.unknown, ahead.changed) == (0, 2, 0)
    assert "is in the target only" in ahead.examples[0]
    answered = await compared(thread[:-1], thread)
    assert (answered.missing, answered.unknown, answered.changed) == (0, 1, 0)
    other = await compared(thread, changed(thread, 0, metadata={}))
    assert (other.missing, other.unknown, other.changed, other.contested) == (0, 0, 0, 1)
    assert "differs in the target" in other.examples[0]
    partial = await compared(thread, thread[:-1])
    assert (partial.missing, partial.unknown, partial.changed, partial.contested) == (0, 0, 1, 0)
    assert "lacks something there" in partial.examples[0]


async def test_writes_without_their_checkpoint_are_never_taken_for_newer_ones() -> None:
    thread = history(2)
    alone = [*thread[:3], *thread[4:]]
    found = await compared(thread[:3], alone)
    assert (found.missing, found.unknown, found.changed) == (0, 0, 1)
    assert (await compared(alone, thread[:3])).missing == 1
    assert (await compared(alone, alone)).equal
    assert (await compared(thread[:3], alone, everything=False)).equal
    assert await digest(alone) != await digest(thread[:3])


async def test_many_differences_are_counted_and_few_are_named() -> None:
    found = await compared(history(20), [])
    assert found.missing == 20
    assert len(found.examples) == 5


@pytest.mark.parametrize(
    ("found", "orders", "outcome"),
    [
        (Comparison(), Orders(), Outcome.EQUAL),
        (Comparison(), Orders(overwrite=True), Outcome.EQUAL),
        (Comparison(), Orders(compare_only=True), Outcome.EQUAL),
        (Comparison(missing=1), Orders(), Outcome.COMPLETED),
        (Comparison(changed=1), Orders(), Outcome.COMPLETED),
        (Comparison(missing=1), Orders(overwrite=True), Outcome.COMPLETED),
        (Comparison(changed=1), Orders(overwrite=True), Outcome.REPLACED),
        (Comparison(missing=1, unknown=1), Orders(), Outcome.REFUSED),
        (Comparison(contested=1), Orders(), Outcome.REFUSED),
        (Comparison(missing=1, contested=1), Orders(), Outcome.REFUSED),
        (Comparison(contested=1), Orders(overwrite=True), Outcome.REPLACED),
        (Comparison(contested=1), Orders(compare_only=True), Outcome.DIFFERENT),
        (Comparison(unknown=1), Orders(overwrite=True), Outcome.REPLACED),
        (Comparison(missing=1), Orders(compare_only=True), Outcome.DIFFERENT),
    ],
)
def test_nothing_that_only_the_target_has_is_lost_unless_that_is_asked_for(
    found: Comparison, orders: Orders, outcome: Outcome
) -> None:
    assert decide(found, orders) is outcome
