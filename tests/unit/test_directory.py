"""What is told of a thread, and which threads a query asks for; held against real databases by tests/faults."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from langgraph.checkpoint.base import CheckpointTuple

from enhanced_checkpointing.backends.listing import (
    Cursor,
    HeadGatherer,
    HeadQuery,
    ThreadHead,
    has_all,
    page_of,
    time_of,
    user_of,
)
from enhanced_checkpointing.serialization import SharingSerializer


def head(thread_id: str, checkpoint_id: str, **fields: Any) -> ThreadHead:
    return replace(ThreadHead(thread_id, checkpoint_id, None, {}, 1, 100), **fields)


def listed(query: HeadQuery, *heads: ThreadHead) -> list[str]:
    return [one.thread_id for one in page_of(heads, query)]


@pytest.mark.parametrize(("named", "user"), [("ada", "ada"), ("", ""), (42, "42"), (-1, "-1")])
def test_text_or_whole_number_names_a_user(named: Any, user: str) -> None:
    assert user_of({"user_id": named}) == user


@pytest.mark.parametrize("named", [None, True, 1.0, ["ada"], {"ada": 1}, b"ada"])
def test_nothing_else_names_a_user(named: Any) -> None:
    assert user_of({"user_id": named}) is None
    assert user_of({"name": "ada"}) is None


def test_metadata_that_is_asked_for_must_be_there_even_if_it_is_none() -> None:
    assert has_all({"team": None, "more": 1}, {"team": None})
    assert not has_all({}, {"team": None})
    assert not has_all({"team": "red"}, {"team": "blue"})
    assert has_all({}, {})


def test_time_of_a_checkpoint_is_that_of_its_id_or_else_its_own() -> None:
    assert time_of("1EC9414C-232A-6B00-B3C8-9F6BDECED846", "2030-01-01T00:00:00+00:00") == datetime(
        2022, 2, 22, 19, 22, 22, tzinfo=UTC
    )
    assert time_of("first", "2026-01-01T00:00:00+01:00") == datetime.fromisoformat("2026-01-01T00:00:00+01:00")
    assert time_of("first", "2026-01-01T00:00:00") == datetime(2026, 1, 1, tzinfo=UTC)


def test_time_that_nobody_tells_or_no_calendar_has_is_none() -> None:
    assert time_of("first") is None
    assert time_of("first", "yesterday") is None
    assert time_of("ffffffff-ffff-7fff-bfff-ffffffffffff", "2026-01-01T00:00:00+00:00") is None


@pytest.mark.parametrize(("told", "step"), [(3, 3), (-1, -1), ("3", None), (True, None), (None, None)])
def test_step_is_a_whole_number_or_not_known(told: Any, step: int | None) -> None:
    assert head("a", "1", metadata={"step": told}).step == step


def test_newest_threads_come_first_and_copies_in_an_order_of_their_own() -> None:
    heads = [head("a", "1"), head("c", "2"), head("b", "2"), head("d", "3")]
    assert listed(HeadQuery(10), *heads) == ["d", "c", "b", "a"]
    assert listed(HeadQuery(2), *heads) == ["d", "c"]
    assert listed(HeadQuery(2, before=Cursor("2", "c")), *heads) == ["b", "a"]
    assert listed(HeadQuery(2, before=Cursor("2")), *heads) == ["a"]
    assert listed(HeadQuery(0), *heads) == []


def test_threads_of_a_user_are_ordered_by_the_checkpoints_that_name_the_user() -> None:
    mine = [
        head("kept", "1", user_id="ada", named_by="1"),
        head("continued", "9", user_id="ada", named_by="2"),  # by somebody who did not say for whom
        head("newest", "5", user_id="ada", named_by="5"),
    ]
    others = [head("other", "8", user_id="bob", named_by="8"), head("nobody's", "7")]
    assert listed(HeadQuery(10, "ada"), *mine, *others) == ["newest", "continued", "kept"]


@pytest.mark.parametrize("thread_id", ["continued", None])
def test_next_page_goes_on_behind_a_thread_whose_newest_checkpoint_names_nobody(thread_id: str | None) -> None:
    heads = [
        head("newest", "5", user_id="ada", named_by="5"),
        head("continued", "9", user_id="ada", named_by="2"),
        head("kept", "1", user_id="ada", named_by="1"),
    ]
    assert listed(HeadQuery(10, "ada", before=Cursor("9", thread_id)), *heads) == ["kept"]


def found(thread_id: str, checkpoint_id: str, metadata: Any, namespace: str = "") -> CheckpointTuple:
    config: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": namespace, "checkpoint_id": checkpoint_id}}
    checkpoint: Any = {
        "v": 4,
        "id": checkpoint_id,
        "ts": f"2026-01-0{checkpoint_id}T00:00:00+00:00",
        "channel_values": {"log": ["x" * 100]},
        "channel_versions": {"log": "1"},
        "versions_seen": {},
    }
    return CheckpointTuple(config, checkpoint, metadata, None, [("task", "log", ["y" * 100])])


def gathered(*all_found: CheckpointTuple) -> dict[str, ThreadHead]:
    gatherer = HeadGatherer(SharingSerializer())
    for one in all_found:
        gatherer.add(one)
    return {one.thread_id: one for one in gatherer.heads()}


def test_head_is_the_newest_of_the_root_graph_and_its_owner_the_one_named_last_in_any_order() -> None:
    rows = [
        found("a", "3", {"step": 3}),
        found("a", "1", {"user_id": "ada"}),
        found("a", "9", {"user_id": "eve", "step": 9}, namespace="child:1"),
        found("a", "2", {"user_id": "bob"}),
    ]
    for order in (rows, rows[::-1]):
        one = gathered(*order)["a"]
        assert (one.checkpoint_id, one.step, one.checkpoints) == ("3", 3, 4)
        assert (one.user_id, one.named_by) == ("bob", "2")
        assert one.updated_at == datetime(2026, 1, 3, tzinfo=UTC)


def test_thread_that_has_only_subgraphs_is_nobodys_and_shows_the_newest_of_those() -> None:
    one = gathered(
        found("a", "1", {"user_id": "ada"}, namespace="child:1"), found("a", "2", {"step": 2}, namespace="child:2")
    )["a"]
    assert (one.checkpoint_id, one.step, one.user_id, one.named_by) == ("2", 2, None, None)


def test_size_grows_with_what_is_stored() -> None:
    small, large = gathered(found("a", "1", {})), gathered(found("a", "1", {}), found("a", "2", {}))
    assert 0 < small["a"].size < large["a"].size
