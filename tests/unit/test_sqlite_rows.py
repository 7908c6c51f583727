"""Operations as rows: in which order, of which bytes, and when values are serialized again."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from enhanced_checkpointing.backends.sqlite import rows as sqlite_rows
from enhanced_checkpointing.backends.sqlite.rows import (
    DELETE_CHECKPOINTS_SQL,
    DELETE_WRITES_SQL,
    KEEP_FIRST_SQL,
    KEEP_LAST_SQL,
    PUT_SQL,
    Row,
    as_json,
    statements,
)
from enhanced_checkpointing.operations import DeleteThread, Operation, Put
from enhanced_checkpointing.serialization import Serialized, SharingSerializer
from tests.support.author import Author


def rows_of(operation: Operation, serializer: SharingSerializer | None = None) -> list[Row]:
    ((_, rows),) = statements([operation], serializer or SharingSerializer())
    return rows


def stored(put: Put, serializer: SharingSerializer | None = None) -> tuple[str, bytes]:
    """The type and the bytes of the checkpoint."""
    ((*_, tag, data, _),) = rows_of(put, serializer)
    return tag, data


class Noting(JsonPlusSerializer):
    """Counts what it serializes, and is another class than the one whose bytes may be joined."""

    count = 0

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        self.count += 1
        return super().dumps_typed(obj)


def test_put_is_one_row_that_names_its_parent() -> None:
    author = Author("thread", "ns")
    root, child = author.put({"n": 1}), author.put({"n": 2})
    ((thread_id, checkpoint_ns, checkpoint_id, parent, tag, _, metadata),) = rows_of(child)
    assert (thread_id, checkpoint_ns, checkpoint_id, parent) == (
        "thread",
        "ns",
        child.checkpoint_id,
        root.checkpoint_id,
    )
    assert (tag, metadata) == ("msgpack", b'{"source": "loop", "step": 2}')
    assert rows_of(root)[0][3] is None


def test_checkpoint_is_one_blob_with_its_keys_in_the_order_of_langgraph() -> None:
    put = Author().put({"log": ["a"], "n": 1, "raw": b"b", "delta": _DeltaSnapshot({1}), "none": None})
    found = JsonPlusSerializer().loads_typed(stored(put))
    assert found == put.checkpoint({"log": ["a"], "n": 1, "raw": b"b", "delta": _DeltaSnapshot({1}), "none": None})
    assert list(found) == list(empty_checkpoint())


def test_bytes_that_there_are_become_part_of_the_blob_whatever_became_of_the_live_value() -> None:
    put = Author().put({"log": ["a"]})
    before = stored(put)
    assert put.live_values is not None
    put.live_values["log"].append("changed in place, later")
    assert stored(put) == before == stored(replace(put, live_values=None))


def test_other_serializer_is_given_the_whole_checkpoint_with_its_live_values() -> None:
    noting = Noting()
    serializer = SharingSerializer(noting)
    put = Author(serializer=serializer).put({"log": ["a"], "n": 1})
    noting.count = 0
    assert stored(put, serializer) == stored(put)
    assert noting.count == 1


def test_other_serializer_is_given_values_made_of_their_bytes_where_there_are_no_live_ones() -> None:
    serializer = SharingSerializer(Noting())
    put = Author(serializer=serializer).put({"log": ["a"], "n": 1})
    assert stored(replace(put, live_values=None), serializer) == stored(put)


@pytest.mark.parametrize("value", [2**70, ["a"]])
def test_serializer_that_may_fall_back_to_pickle_is_given_whole_values(value: object) -> None:
    serializer = SharingSerializer(JsonPlusSerializer(pickle_fallback=True))
    put = Author(serializer=serializer).put({"log": ["a"], "value": value})
    found = stored(put, serializer)
    assert found[0] == ("pickle" if value == 2**70 else "msgpack")
    assert serializer.loads_typed(found)["channel_values"] == {"log": ["a"], "value": value}


@pytest.mark.parametrize("inner", [JsonPlusSerializer(), JsonPlusSerializer(pickle_fallback=True), Noting()])
def test_node_that_goes_on_changing_its_state_changes_nothing_of_the_row(inner: JsonPlusSerializer) -> None:
    serializer, log = SharingSerializer(inner), ["a"]
    put = Author(serializer=serializer).put({"log": log})
    log.append("b")
    assert serializer.loads_typed(stored(put, serializer))["channel_values"] == {"log": ["a"]}


def test_value_that_is_an_array_of_bytes_is_not_joined() -> None:
    put = Author().put({"raw": bytearray(b"a"), "log": ["a"]})
    assert isinstance(put.values["raw"], Serialized)
    assert put.values["raw"].tag == "bytearray"
    assert stored(put) == JsonPlusSerializer().dumps_typed(
        {**JsonPlusSerializer().loads_typed(stored(put)), "channel_values": {"raw": bytearray(b"a"), "log": ["a"]}}
    )


def test_metadata_that_is_no_json_is_refused() -> None:
    put = Author().put({"n": 1})
    with pytest.raises(TypeError, match="JSON"):
        rows_of(replace(put, metadata={**put.metadata, "made": object()}))  # type: ignore[typeddict-unknown-key]


def test_ordinary_writes_are_numbered_in_their_order_and_special_ones_have_their_own_place() -> None:
    author = Author("thread", "ns")
    put = author.put({"n": 1})
    writes = author.writes(("log", ["a"]), ("__error__", "oops"), ("n", 2), task_id="task", task_path="~1")
    assert statements([writes], author.serializer) == [
        (
            KEEP_FIRST_SQL,
            [
                ("thread", "ns", put.checkpoint_id, "task", "~1", index, channel, value.tag, value.data)
                for index, (channel, value) in zip((0, -1, 2), writes.writes, strict=True)
            ],
        )
    ]


def test_special_writes_replace_what_is_there() -> None:
    author = Author()
    author.put({"n": 1})
    ((text, rows),) = statements([author.writes(("__interrupt__", "a"), ("__resume__", "b"))], author.serializer)
    assert (text, [row[5] for row in rows]) == (KEEP_LAST_SQL, [-3, -4])


def test_no_writes_are_no_statement() -> None:
    author = Author()
    author.put({"n": 1})
    assert statements([author.writes()], author.serializer) == []


def test_neighbours_of_one_kind_are_one_statement_and_the_order_stays() -> None:
    author = Author("thread")
    operations: list[Operation] = [
        author.put({"n": 1}),
        author.put({"n": 2}),
        author.writes(("n", 1)),
        author.writes(),
        author.writes(("n", 2)),
        author.writes(("__error__", 1)),
        DeleteThread("thread"),
        author.put({"n": 3}),
    ]
    found = statements(operations, author.serializer)
    assert [(text, len(rows)) for text, rows in found] == [
        (PUT_SQL, 2),
        (KEEP_FIRST_SQL, 2),
        (KEEP_LAST_SQL, 1),
        (DELETE_CHECKPOINTS_SQL, 1),
        (DELETE_WRITES_SQL, 1),
        (PUT_SQL, 1),
    ]
    assert found[0][1] == [*rows_of(operations[0]), *rows_of(operations[1])]


# Metadata

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda parts: st.lists(parts) | st.dictionaries(st.text() | st.integers() | st.booleans() | st.none(), parts),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), PLAIN))
def test_json_is_that_of_the_standard_library(value: dict[str, Any]) -> None:
    assert as_json(value) == json.dumps(value, ensure_ascii=False)


def test_json_is_the_same_where_python_has_no_encoder_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"step": 1, "parents": {}, "says": "grüß dich", "score": float("nan")}
    in_c = as_json(value)
    monkeypatch.setattr(sqlite_rows, "_make_encoder", None)
    assert as_json(value) == in_c


def test_value_that_is_no_json_is_refused_and_the_next_one_is_not() -> None:
    parents: dict[str, Any] = {"known": "parent"}
    with pytest.raises(TypeError, match="not JSON serializable"):
        as_json({"parents": parents, "extra": object()})
    parents["itself"] = parents
    with pytest.raises(ValueError, match="Circular"):
        as_json({"parents": parents})
    del parents["itself"]
    assert as_json({"parents": parents}) == '{"parents": {"known": "parent"}}'
