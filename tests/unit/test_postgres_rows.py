"""An operation as one statement: its parameters, and which values are inline."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from enhanced_checkpointing.backends.postgres_rows import (
    DELETE_SQL,
    PUT_SQL,
    put_with_blobs_sql,
    put_writes_sql,
    statement,
)
from enhanced_checkpointing.operations import DeleteThread, Operation, Put
from enhanced_checkpointing.serialization import Serialized
from tests.support.author import Author


def prepared(operation: Operation) -> tuple[str, dict[str, Any]]:
    found = statement(operation)
    assert found is not None
    return found


def parameters_of(operation: Operation) -> dict[str, Any]:
    return prepared(operation)[1]


def rows_of(operation: Operation, name: str) -> list[Any]:
    """The values of one column, row by row."""
    parameters = parameters_of(operation)
    return [parameters[f"{name}_{row}"] for row in range(len(parameters)) if f"{name}_{row}" in parameters]


def body(put: Put) -> dict[str, Any]:
    checkpoint = parameters_of(put)["checkpoint"].obj
    assert isinstance(checkpoint, dict)
    return checkpoint


def frozen(put: Put, channel: str) -> Serialized:
    value = put.values[channel]
    assert isinstance(value, Serialized)
    return value


def test_put_stores_new_blobs_and_the_checkpoint_in_one_statement() -> None:
    author = Author("thread", "ns")
    author.put({"profile": ["Ada"], "n": 1})
    put = author.put({"profile": ["Ada"], "log": ["a"], "n": 2})
    sql, parameters = prepared(put)
    log = frozen(put, "log")
    assert sql == put_with_blobs_sql(1)
    assert (rows_of(put, "channel"), rows_of(put, "version")) == (["log"], [put.new_versions["log"]])
    assert (rows_of(put, "tag"), rows_of(put, "blob")) == ([log.tag], [log.data])
    assert (parameters["thread_id"], parameters["checkpoint_ns"]) == ("thread", "ns")
    assert (parameters["checkpoint_id"], parameters["parent"]) == (put.checkpoint_id, put.parent_checkpoint_id)
    assert body(put)["channel_values"] == {"n": 2}
    assert body(put)["channel_versions"] == put.skeleton["channel_versions"]
    assert body(put)["id"] == put.checkpoint_id


def test_replayed_put_stores_the_blobs_of_all_channels() -> None:
    author = Author()
    author.put({"profile": ["Ada"]})
    put = author.put({"profile": ["Ada"], "log": ["a"]}).replayable()
    assert sorted(rows_of(put, "channel")) == ["log", "profile"]


def test_root_has_no_parent() -> None:
    assert parameters_of(Author().put({"n": 1}))["parent"] is None


@pytest.mark.parametrize("value", ["text", 7, 2.5, True, None])
def test_small_values_are_inline_and_have_no_blob(value: object) -> None:
    put = Author().put({"value": value})
    assert prepared(put)[0] == PUT_SQL
    assert body(put)["channel_values"] == {"value": value}


def test_snapshot_of_a_delta_channel_is_a_blob_with_a_mark_in_the_checkpoint() -> None:
    put = Author().put({"log": _DeltaSnapshot(["a"]), "flag": True})
    assert body(put)["channel_values"] == {"log": True, "flag": True}
    assert rows_of(put, "channel") == ["log"]
    assert rows_of(put, "blob") == [frozen(put, "log").data]


def test_delta_channel_without_a_value_has_a_version_and_nothing_else() -> None:
    put = Author().put({"n": 1}, bumped=["log"])
    assert prepared(put)[0] == PUT_SQL
    assert body(put)["channel_values"] == {"n": 1}
    assert set(body(put)["channel_versions"]) == {"n", "log"}


def test_version_of_a_blob_is_text_whatever_it_was() -> None:
    put = replace(Author().put({"log": ["a"]}), new_versions={"log": 7})
    assert rows_of(put, "version") == ["7"]


def test_metadata_is_stored_without_the_writes_that_old_versions_kept_there() -> None:
    put = Author().put({"n": 1})
    put = replace(put, metadata={**put.metadata, "writes": {"node": object()}})  # type: ignore[typeddict-unknown-key]
    assert parameters_of(put)["metadata"].obj == {"source": "loop", "step": 1}


def test_operation_is_not_changed_by_being_made_into_a_statement() -> None:
    put = Author().put({"log": _DeltaSnapshot(["a"]), "n": 1})
    before = (dict(put.values), dict(put.skeleton), dict(put.metadata))
    statement(put)
    assert (dict(put.values), dict(put.skeleton), dict(put.metadata)) == before
    assert "channel_values" not in put.skeleton


def test_ordinary_writes_keep_what_is_there_and_are_numbered_in_their_order() -> None:
    author = Author("thread", "ns")
    put = author.put({"n": 1})
    writes = author.writes(("n", 2), ("log", ["a"]), task_id="task", task_path="~1")
    sql, parameters = prepared(writes)
    assert sql == put_writes_sql(2, special=False)
    key = ("thread_id", "checkpoint_ns", "checkpoint_id", "task_id", "task_path")
    assert tuple(parameters[name] for name in key) == ("thread", "ns", put.checkpoint_id, "task", "~1")
    assert (rows_of(writes, "index"), rows_of(writes, "channel")) == ([0, 1], ["n", "log"])
    assert rows_of(writes, "blob") == [value.data for _, value in writes.writes]
    assert rows_of(writes, "tag") == [value.tag for _, value in writes.writes]


def test_special_writes_replace_what_is_there_at_places_of_their_own() -> None:
    author = Author()
    author.put({"n": 1})
    writes = author.writes(("__error__", "oops"), ("__interrupt__", "why"))
    sql, _ = prepared(writes)
    assert sql == put_writes_sql(2, special=True)
    assert rows_of(writes, "index") == [-1, -3]


def test_of_two_special_writes_for_one_place_the_last_stays() -> None:
    author = Author()
    author.put({"n": 1})
    writes = author.writes(("__interrupt__", "first"), ("__interrupt__", "second"))
    last = writes.writes[1][1]
    assert (rows_of(writes, "index"), rows_of(writes, "blob")) == ([-3], [last.data])


def test_special_write_among_ordinary_ones_replaces_nothing() -> None:
    author = Author()
    author.put({"n": 1})
    writes = author.writes(("n", 2), ("__error__", "oops"))
    sql, _ = prepared(writes)
    assert sql == put_writes_sql(2, special=False)
    assert rows_of(writes, "index") == [0, -1]


def test_no_writes_are_no_statement() -> None:
    author = Author()
    author.put({"n": 1})
    assert statement(author.writes()) is None


def test_deletion_is_one_statement_for_one_thread() -> None:
    assert statement(DeleteThread("thread")) == (DELETE_SQL, {"thread_id": "thread"})


@pytest.mark.parametrize(("ordinary", "kept"), [((), ["b"]), ((("n", 2),), ["n", "a"])])
def test_of_two_writes_of_a_special_channel_one_stays_as_one_statement_after_the_other_would_have_it(
    ordinary: tuple[tuple[str, Any], ...], kept: list[str]
) -> None:
    """The last if all are special, else the first; one statement may not meet the same row twice."""
    author = Author()
    author.put({"n": 1})
    writes = author.writes(*ordinary, ("__error__", "a"), ("__error__", "b"))
    data = {value.data: "n" if channel == "n" else author.serializer.thaw(value) for channel, value in writes.writes}
    indexes = rows_of(writes, "index")
    assert [data[blob] for blob in rows_of(writes, "blob")] == kept
    assert len(set(indexes)) == len(indexes)
