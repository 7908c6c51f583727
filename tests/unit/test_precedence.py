"""Which of two copies of a checkpoint is the older one, by the answers, results and marks in it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest

from enhanced_checkpointing.backends.listing import COMPLETED, FAILED, THREAD_STATUS, TOUCHED_AT
from enhanced_checkpointing.operations import Operation
from enhanced_checkpointing.serialization import SharingSerializer
from enhanced_checkpointing.threads.comparison import RUN, Comparison, compare
from enhanced_checkpointing.threads.contents import Entry, entries
from enhanced_checkpointing.threads.migrate import Orders, Outcome, decide
from tests.support.author import Author
from tests.support.cipher import encrypting

Writes = dict[str, Any]
"""What a task has written, by its channel."""


def copy_of(
    tasks: dict[str, Writes], *, metadata: dict[str, Any] | None = None, serializer: SharingSerializer | None = None
) -> list[Operation]:
    """A checkpoint, always the same one, with the writes of these tasks."""
    author = Author(serializer=serializer)
    put = author.put({})
    put.checkpoint_id = author.head = put.skeleton["id"] = "1"  # type: ignore[index]
    put.skeleton["ts"] = ""  # type: ignore[index]
    put.metadata.update(metadata or {})  # type: ignore[typeddict-item]
    return [put, *(author.writes(*writes.items(), task_id=task_id) for task_id, writes in tasks.items())]


def within(checkpoint_ns: str, tasks: dict[str, Writes]) -> list[Operation]:
    """The same in a subgraph."""
    found = copy_of(tasks)
    for operation in found:
        operation.checkpoint_ns = checkpoint_ns  # type: ignore[union-attr]
    return found


async def compared(
    source: Sequence[Operation], target: Sequence[Operation], serializer: SharingSerializer | None = None
) -> Comparison:
    def read(operations: Sequence[Operation]) -> AsyncGenerator[Entry, None]:
        async def chunks() -> AsyncGenerator[Sequence[Operation], None]:
            yield operations

        return entries(chunks(), serializer or SharingSerializer())

    return await compare(read(source), read(target), everything=True)


def asked(question: int, *answers: Any) -> Writes:
    return {"__interrupt__": f"question {question}"} | ({"__resume__": [*answers]} if answers else {})


def told(answer: Any) -> dict[str, Writes]:
    return {RUN: {"__resume__": answer}}


FURTHER = {
    "one more answer": ({"a": asked(3, "x", "y")} | told("y"), {"a": asked(2, "x")} | told("x")),
    "the first answer": ({"a": asked(2, "x")} | told("x"), {"a": asked(1)}),
    "an answer that no task has taken yet": ({"a": asked(2, "x")} | told("y"), {"a": asked(2, "x")} | told("x")),
    "a result after the second answer": (
        {"a": {**asked(2, "x"), "log": 1}} | told("y"),
        {"a": asked(2, "x")} | told("x"),
    ),
    "an answer of many bytes, nothing and a list": (
        {"a": asked(4, b"x", None, ["y"])} | told(["y"]),
        {"a": asked(3, b"x", None)},
    ),
    "bytes that were taken": ({"a": asked(2, b"x")} | told("y"), {"a": asked(2, b"x")} | told(b"x")),
    "only results": ({"a": {"log": 1}}, {}),
    "a result after another error": ({"a": {"__error__": "late", "log": 1}}, {"a": {"__error__": "early"}}),
    "twenty answers": ({"a": asked(2, *range(20))}, {"a": asked(1, *range(17))}),
}
UNCERTAIN = {
    "another answer": ({"a": asked(2, "x")}, {"a": asked(2, "y")}),
    "another second answer": ({"a": asked(3, "x", "y")}, {"a": asked(3, "x", "z")}),
    "one task here and one there": (
        {"a": asked(2, "x"), "b": asked(2, "x", "y")},
        {"a": asked(2, "x", "y"), "b": asked(2, "x")},
    ),
    "an answer in the target that no task has taken yet": (
        {"a": asked(2, "x")} | told("x"),
        {"a": asked(2, "x")} | told("y"),
    ),
    "an answer in the target that waits, beside a task that went on": (
        {"a": asked(3, "x", "y")} | told("y"),
        {"a": asked(2, "x")} | told("z"),
    ),
    "another question alone": ({"a": asked(2)}, {"a": asked(3)}),
    "another error": ({"a": {"__error__": "late"}}, {"a": {"__error__": "early"}}),
    "another result": ({"a": {"log": 1}}, {"a": {"log": 2}}),
    "another result, and a new answer": ({"a": {"log": 1, **asked(2, "x")}}, {"a": {"log": 2, **asked(1)}}),
}


@pytest.mark.parametrize(("newer", "older"), FURTHER.values(), ids=FURTHER)
async def test_copy_that_the_source_has_gone_on_from_is_completed_and_the_other_way_round_refused(
    newer: dict[str, Writes], older: dict[str, Writes]
) -> None:
    assert decide(await compared(copy_of(newer), copy_of(older)), Orders()) is Outcome.COMPLETED
    assert decide(await compared(copy_of(older), copy_of(newer)), Orders()) is Outcome.REFUSED


@pytest.mark.parametrize(("one", "other"), UNCERTAIN.values(), ids=UNCERTAIN)
async def test_copies_of_which_nothing_tells_the_older_one_are_refused(
    one: dict[str, Writes], other: dict[str, Writes]
) -> None:
    found = await compared(copy_of(one), copy_of(other))
    assert (found.contested, found.changed) == (1, 0)
    assert "may be the newer one" in found.examples[0]
    assert decide(found, Orders()) is Outcome.REFUSED


async def test_sealed_answers_are_compared_by_what_they_say() -> None:
    sealing = encrypting(b"the key")
    newer, older = (copy_of({"a": asked(len(one), *one)}, serializer=sealing) for one in (("x", "y"), ("x",)))
    assert decide(await compared(newer, older, sealing), Orders()) is Outcome.COMPLETED
    assert decide(await compared(older, newer, sealing), Orders()) is Outcome.REFUSED


@pytest.mark.parametrize(
    ("checkpoint_ns", "outcome"),
    [
        ("inner:a", Outcome.COMPLETED),
        ("inner:a|1|deeper:b", Outcome.COMPLETED),
        ("inner", Outcome.COMPLETED),
        ("inner:other", Outcome.REFUSED),
    ],
)
async def test_what_a_graph_shows_of_its_subgraphs_question_is_explained_by_that_subgraph_alone(
    checkpoint_ns: str, outcome: Outcome
) -> None:
    newer = copy_of({"a": asked(3)} | told("y")) + within(checkpoint_ns, {"s": asked(3, "x", "y")})
    older = copy_of({"a": asked(2)} | told("x")) + within(checkpoint_ns, {"s": asked(2, "x")})
    assert decide(await compared(newer, older), Orders()) is outcome
    assert decide(await compared(older, newer), Orders()) is Outcome.REFUSED


async def test_subgraph_that_went_on_explains_no_answer_that_it_has_not_taken() -> None:
    newer = copy_of({"a": asked(3)} | told("y")) + within("inner:a", {"s": asked(3, "x", "y")})
    answered = copy_of({"a": asked(2)} | told("z")) + within("inner:a", {"s": asked(2, "x")})
    assert decide(await compared(newer, answered), Orders()) is Outcome.REFUSED


EARLY, LATE = "2026-01-01T00:00:00+00:00", "2026-01-01T01:30:00+01:00"


@pytest.mark.parametrize(
    ("ours", "theirs", "outcome"),
    [
        ({THREAD_STATUS: COMPLETED, TOUCHED_AT: EARLY}, {}, Outcome.COMPLETED),
        ({THREAD_STATUS: COMPLETED, TOUCHED_AT: LATE}, {TOUCHED_AT: EARLY}, Outcome.COMPLETED),
        ({TOUCHED_AT: LATE}, {TOUCHED_AT: EARLY}, Outcome.COMPLETED),
        (
            {THREAD_STATUS: FAILED, TOUCHED_AT: LATE},
            {THREAD_STATUS: COMPLETED, TOUCHED_AT: EARLY},
            Outcome.COMPLETED,
        ),
        ({}, {THREAD_STATUS: COMPLETED, TOUCHED_AT: EARLY}, Outcome.REFUSED),
        ({TOUCHED_AT: LATE}, {THREAD_STATUS: COMPLETED, TOUCHED_AT: EARLY}, Outcome.REFUSED),
        ({TOUCHED_AT: EARLY}, {TOUCHED_AT: LATE}, Outcome.REFUSED),
        ({TOUCHED_AT: "yesterday"}, {TOUCHED_AT: EARLY}, Outcome.REFUSED),
        ({TOUCHED_AT: LATE}, {TOUCHED_AT: ["a user's own"]}, Outcome.REFUSED),
        ({TOUCHED_AT: LATE, "step": 7}, {TOUCHED_AT: EARLY}, Outcome.REFUSED),
    ],
)
async def test_mark_is_replaced_by_a_later_one_and_by_nothing_else(
    ours: dict[str, Any], theirs: dict[str, Any], outcome: Outcome
) -> None:
    found = await compared(copy_of({}, metadata=ours), copy_of({}, metadata=theirs))
    assert decide(found, Orders()) is outcome
