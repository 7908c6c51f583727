"""From stored rows to operations: every index comes back, versions count as new once, and chunks are bounded."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langgraph.checkpoint.base import WRITES_IDX_MAP
from langgraph.checkpoint.memory import InMemorySaver

from enhanced_checkpointing.backends import reading
from enhanced_checkpointing.backends.reading import PutHistory, WriteRow, in_chunks, inherits_snapshot, writes_of
from enhanced_checkpointing.operations import Operation, Put, PutWrites
from enhanced_checkpointing.serialization import Serialized, SharingSerializer
from tests.support.author import Author

channels = st.sampled_from(["log", "branch:to:x", *WRITES_IDX_MAP])
calls = st.lists(
    st.tuples(
        st.sampled_from(["task", "another"]),
        st.sampled_from(["", "~pull, a", "~push, b"]),
        st.lists(channels, min_size=1, max_size=5),
    ),
    max_size=5,
)

Rows = dict[tuple[str, int], tuple[str, str, tuple[str, bytes], str]]
"""Task, channel, value and path, by task and index."""


def value(text: str) -> Serialized:
    return Serialized("msgpack", text.encode())


def row(index: int, channel: str = "log", task_path: str = "") -> WriteRow:
    return WriteRow("task", task_path, index, channel, value(f"{channel}/{index}"))


def stored(operations: Sequence[PutWrites]) -> Rows:
    """What a saver holds after these operations."""
    saver = InMemorySaver(serde=SharingSerializer())
    for operation in operations:
        saver.put_writes(operation.config(), operation.writes, operation.task_id, operation.task_path)
    return dict(saver.writes["thread", "", "checkpoint"])


def left_by(rows: Sequence[WriteRow]) -> Rows:
    return stored(writes_of("thread", "", "checkpoint", rows))


@given(calls)
def test_rows_that_calls_left_are_left_again_with_their_index_and_path(found: list[tuple[str, str, list[str]]]) -> None:
    before = stored(
        [
            PutWrites(
                "thread",
                "",
                "checkpoint",
                tuple((channel, value(f"{number}/{place}")) for place, channel in enumerate(listed)),
                task_id,
                path,
            )
            for number, (task_id, path, listed) in enumerate(found)
        ]
    )
    rows = [
        WriteRow(task_id, path, index, channel, Serialized(*data))
        for (task_id, index), (_, channel, data, path) in before.items()
    ]
    assert left_by(rows) == before
    assert left_by(rows[::-1]) == before


def test_ordinary_writes_are_one_call_in_their_order() -> None:
    (call,) = writes_of("thread", "ns", "1", [row(1), row(0)])
    assert call == PutWrites("thread", "ns", "1", (("log", value("log/0")), ("log", value("log/1"))), "task", "")


def test_gap_that_no_call_could_have_left_is_closed_and_the_order_stays() -> None:
    found = left_by([row(2), row(5)])
    assert [(key, data) for key, (_, _, data, _) in found.items()] == [
        (("task", 0), ("msgpack", b"log/2")),
        (("task", 1), ("msgpack", b"log/5")),
    ]


def test_value_that_has_not_changed_counts_as_new_once_in_its_namespace() -> None:
    history = PutHistory("thread")
    skeleton = {"channel_versions": {"log": "1", "profile": "1", "gone": "1"}}
    values = {"log": value("a"), "profile": value("Ada"), "unversioned": 1}
    arguments: tuple[Any, ...] = (values, {}, frozenset())
    first = history.put("", "1", None, skeleton, *arguments)
    again = history.put("", "2", "1", skeleton, *arguments)
    other = history.put("sub", "3", None, skeleton, *arguments)
    later = {"channel_versions": {"log": "2", "profile": "1"}}
    changed = history.put("sub", "4", "", later, {**values, "log": value("b")}, {}, frozenset())
    assert [put.new_versions for put in (first, again, other, changed)] == [
        {"log": "1", "profile": "1"},
        {},
        {"log": "1", "profile": "1"},
        {"log": "2"},
    ]
    assert [put.parent_checkpoint_id for put in (first, again, other, changed)] == [None, "1", None, None]


def test_other_value_under_the_same_version_counts_as_new() -> None:
    history = PutHistory("thread")
    skeleton = {"channel_versions": {"log": 1}}
    for text in ("a", "b", "b"):
        put = history.put("", text, None, skeleton, {"log": value(text)}, {}, frozenset())
    assert put.new_versions == {}
    assert history.put("", "c", None, skeleton, {"log": value("a")}, {}, frozenset()).new_versions == {"log": 1}


def test_snapshot_is_inherited_only_from_a_parent_with_the_same_version() -> None:
    assert inherits_snapshot("log", {"log": "2"}, {"log": "2"})
    assert not inherits_snapshot("log", {"log": "2"}, {"log": "1"})
    assert not inherits_snapshot("log", {"log": "2"}, {})
    assert not inherits_snapshot("log", {"log": "2"}, None)


async def grouped(groups: Sequence[Sequence[Operation]]) -> AsyncGenerator[Sequence[Operation], None]:
    for group in groups:
        yield group


async def test_chunks_are_bounded_and_hold_all_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    author = Author()
    puts: list[Put] = [author.put({"log": ["x" * 1000] * number}) for number in range(1, 6)]
    large = replace(author.put({"log": ["x" * 10_000]}), checkpoint_id="large")
    groups: list[list[Operation]] = [[put, author.writes(("log", "a"))] for put in (*puts, large, *puts)]
    monkeypatch.setattr(reading, "CHUNK_BYTES", 8_000)
    chunks = [chunk async for chunk in in_chunks(grouped(groups))]
    assert [operation for chunk in chunks for operation in chunk] == [one for group in groups for one in group]
    assert all(isinstance(chunk[0], Put) for chunk in chunks), "what belongs together stays together"
    assert sum(large in chunk for chunk in chunks) == 1
    assert [len(chunk) for chunk in chunks if large in chunk] == [2], "what is too large is a chunk of its own"
    assert 4 < len(chunks) < len(groups)
    assert [chunk async for chunk in in_chunks(grouped([]))] == []
