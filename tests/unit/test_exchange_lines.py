"""The lines of an export: readable, exact, and none of them can be changed or lost unnoticed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from enhanced_checkpointing.operations import Operation, Put
from enhanced_checkpointing.serialization import Serialized, SharingSerializer
from enhanced_checkpointing.threads.exchange import Collector
from enhanced_checkpointing.threads.exchange_lines import (
    DamagedLine,
    Reader,
    Whole,
    Writer,
    content_of,
    decoded,
    encoded,
    line_of,
)
from enhanced_checkpointing.threads.migrate import Report, Source
from tests.support.author import Author
from tests.support.cipher import encrypting

leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(max_size=9)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        | st.sets(st.text(max_size=3), max_size=3)
        | st.builds(HumanMessage, st.text(max_size=5))
    ),
    max_leaves=6,
)


def alone(value: Any) -> Serialized:
    return Serialized(*JsonPlusSerializer().dumps_typed(value))


def through(operations: Sequence[Operation], serializer: SharingSerializer | None = None) -> list[Operation]:
    """The operations after they were lines."""
    serializer = serializer or SharingSerializer()
    writer, reader = Writer("thread", serializer), Reader("thread", serializer)
    lines = [line_of(writer.content(operation)) for operation in operations]
    return [reader.operation(content_of(line)) for line in lines]


@given(values)
def test_value_comes_back_with_the_very_bytes_whatever_it_is(value: Any) -> None:
    stored = alone(value)
    line = json.dumps(encoded(stored), allow_nan=False)
    assert decoded(json.loads(line)) == stored


@pytest.mark.parametrize("value", [["a", 1, 1.5, None, True], {"a": {"b": []}}, "text", 7, 0.1])
def test_plain_value_is_plain_json_and_nothing_else(value: Any) -> None:
    assert encoded(alone(value)) == {"type": "msgpack", "json": value}


def test_message_can_be_read_beside_its_bytes() -> None:
    found = encoded(alone([HumanMessage("hello", id="1")]))
    assert found.keys() == {"type", "data", "shows"}
    ((name, fields),) = found["shows"][0].items()
    assert name == "langchain_core.messages.human.HumanMessage"
    assert fields["content"] == "hello"


def test_what_has_no_form_in_json_is_shown_as_near_as_can_be() -> None:
    found = encoded(alone({"nan": math.nan, "raw": b"12", "set": {1}, "snapshot": _DeltaSnapshot([1]), 5: 6}))
    assert found["shows"] == {
        "nan": "nan",
        "raw": "<2 bytes>",
        "set": {"builtins.set": [1]},
        "snapshot": {"snapshot": [1]},
        "5": 6,
    }
    assert encoded(Serialized("msgpack", b"\xa1\xff")) == {"type": "msgpack", "data": "of8="}


def test_sealed_value_shows_nothing() -> None:
    found = encoded(Serialized(*encrypting().dumps_typed(["secret"])))
    assert found.keys() == {"type", "data"}


@settings(deadline=None, max_examples=50)
@given(st.lists(st.dictionaries(st.sampled_from("abc"), values, max_size=3), min_size=1, max_size=4))
def test_thread_comes_back_as_it_was(states: list[dict[str, Any]]) -> None:
    author, other = Author(), Author(checkpoint_ns="sub|graph:1")
    operations: list[Operation] = []
    for writer in (author, other):
        for state in states:
            operations += [writer.put(state), writer.writes(*state.items(), task_path="~pull, a")]
    for before, after in zip(operations, through(operations), strict=True):
        if isinstance(before, Put):
            assert isinstance(after, Put)
            assert json.dumps(after.skeleton) == json.dumps(before.skeleton)
            assert list(after.values) == list(before.values)
            assert {name: _stored(value) for name, value in after.values.items()} == {
                name: _stored(value) for name, value in before.values.items()
            }
            assert (after.metadata, after.parent_checkpoint_id) == (before.metadata, before.parent_checkpoint_id)
            assert after.snapshot_channels == before.snapshot_channels
        else:
            assert after == before


def _stored(value: Any) -> Serialized:
    return value if type(value) is Serialized else alone(value)


def test_value_that_did_not_change_is_not_written_again() -> None:
    author = Author()
    operations = [author.put({"log": ["x" * 100], "n": number}) for number in range(3)]
    writer = Writer("thread", SharingSerializer())
    contents = [writer.content(operation) for operation in operations]
    assert [content["values"]["log"] for content in contents[1:]] == [{"unchanged": True}] * 2
    assert [content["values"]["n"] for content in contents] == [0, 1, 2]


@pytest.mark.parametrize("metadata", [{"score": math.nan}, {"parents": (1, 2)}, {"half": "\ud800"}, {1: 2}])
def test_metadata_that_json_does_not_have_comes_back_too(metadata: dict[Any, Any]) -> None:
    author = Author()
    put = author.put({})
    (found,) = through([replace(put, metadata=metadata)])  # type: ignore[arg-type]  # what the types rule out
    kept = JsonPlusSerializer()
    assert isinstance(found, Put)
    assert kept.dumps_typed(dict(found.metadata)) == kept.dumps_typed(metadata)


@given(st.dictionaries(st.text(), st.text(), max_size=3), st.data())
def test_changed_byte_is_noticed_wherever_it_is(content: dict[str, str], data: st.DataObject) -> None:
    line = line_of(content)
    assert content_of(line) == content
    place = data.draw(st.integers(0, len(line) - 2))
    damaged = bytearray(line)
    damaged[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DamagedLine):
        content_of(bytes(damaged))
    with pytest.raises(DamagedLine):
        content_of(line[:place])


FIRST = line_of({"kind": "export", "format": 1})


def export(threads: int = 3) -> list[bytes]:
    """Every line behind the first one; each thread has four. The last one is as those of old are."""
    lines: list[bytes] = []
    for number in range(threads):
        author = Author(f"thread-{number}")
        writer = Writer(author.thread_id, SharingSerializer())
        operations = author.put({"log": [1]}), author.writes(("log", 1)), author.put({"log": [2]})
        lines += [line_of(writer.content(operation)) for operation in operations]
        lines.append(line_of(writer.end()))
    return [*lines, line_of({"kind": "end of export", "threads": threads})]


def collected(lines: Sequence[bytes]) -> tuple[list[str], list[tuple[str, str]]]:
    """The threads that came out, and what was said of others."""
    collector = Collector(SharingSerializer(), FIRST)
    found = [one for number, line in enumerate(lines, start=2) for one in collector.add(number, line)]
    found += collector.end()
    collector.close()
    good = [one.thread_id for one in found if isinstance(one, Source)]
    for one in found:
        if isinstance(one, Source):
            one.release()
    return good, [(one.thread_id, one.reasons[0]) for one in found if isinstance(one, Report)]


def test_whole_export_gives_every_thread() -> None:
    assert collected(export()) == (["thread-0", "thread-1", "thread-2"], [])


@pytest.mark.parametrize("place", range(4, 8))
def test_damaged_line_costs_its_thread_alone_and_is_named(place: int) -> None:
    lines = export()
    lines[place] = lines[place].replace(b"thread", b"threat", 1)
    good, bad = collected(lines)
    assert good == ["thread-0", "thread-2"]
    assert f"line {place + 2}: its check does not fit" in bad[0][1]
    assert bad[0][0] == ("" if place == 4 else "thread-1")


@pytest.mark.parametrize("place", range(4, 8))
def test_missing_line_costs_its_thread_alone(place: int) -> None:
    lines = export()
    del lines[place]
    good, bad = collected(lines)
    assert good == ["thread-0", "thread-2"]
    assert len(bad) >= 1
    assert f"line {min(place + 2, 9)}" in bad[0][1]


def test_missing_thread_and_cut_off_end_are_noticed() -> None:
    lines = export()
    good, bad = collected([*lines[:4], *lines[8:]])
    assert good == ["thread-0", "thread-2"]
    assert bad == [("", "line 10: 3 threads were exported, here are 2")]
    good, bad = collected(lines[:-1])
    assert len(good) == 3
    assert bad == [("", "the export ends too early, behind line 13: it has no last line")]
    good, bad = collected(lines[:6])
    assert good == ["thread-0"]
    assert bad[0][0] == "thread-1"
    _, bad = collected([*lines, lines[0]])
    assert "behind the end" in bad[0][1]


def whole(lines: Sequence[bytes], first: bytes = FIRST) -> list[bytes]:
    """The same with a last line that vouches for all of them."""
    found = Whole()
    for line in (first, *lines[:-1]):
        found.add(line)
    return [*lines[:-1], line_of({**content_of(lines[-1]), "whole": found.value()})]


def test_lines_of_several_exports_are_noticed() -> None:
    one, other = whole(export()), whole(export())
    assert collected(one)[1] == []
    mixed = [*one[:4], *other[4:]]
    good, bad = collected(mixed)
    assert good == ["thread-0", "thread-1", "thread-2"]
    ((thread_id, reason),) = bad
    assert (thread_id, "as if they were of several exports" in reason) == ("", True)
    assert len(collected(whole(export(), line_of({"kind": "export", "format": 1, "source": "other"})))[1]) == 1
    damaged = [*one[:4], one[4].replace(b"thread", b"threat", 1), *one[5:]]
    assert not any("several exports" in reason for _, reason in collected(damaged)[1]), "its damage is told already"


def test_line_with_a_good_check_that_makes_no_sense_is_damaged() -> None:
    for content in ({"kind": "strange"}, {"thread": "a", "line": 1, "kind": "checkpoint"}, {}):
        good, bad = collected([line_of(content), *export(0)])
        assert good == []
        assert bad[0][1].startswith("line 2: ")


async def test_collected_thread_can_be_read_again_and_again() -> None:
    collector = Collector(SharingSerializer(), FIRST)
    (source,) = [one for number, line in enumerate(export(1)) for one in collector.add(number, line)]
    source = cast("Source", source)
    first = [operation async for chunk in source.read() for operation in chunk]
    assert first == [operation async for chunk in source.read() for operation in chunk]
    assert len(first) == 3
    source.release()
