"""An operation is data: what it takes from its caller, and what it does to a saver."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from enhanced_checkpointing.errors import CheckpointerError
from enhanced_checkpointing.operations import (
    DeleteThread,
    Operation,
    PutWrites,
    accept_put,
    accept_writes,
    apply_shared,
    apply_to_saver,
    checkpoint_id_of,
    frozen_size,
    namespace_of,
    operations_of,
    thread_of,
)
from enhanced_checkpointing.serialization import Serialized, SharingSerializer, widen_allowlist
from tests.support.author import Author, config_of


class CountingSerializer(JsonPlusSerializer):
    """Counts how often values are made into bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.dumped: list[Any] = []

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        self.dumped.append(obj)
        return super().dumps_typed(obj)


@dataclass
class Note:
    """A type that no serializer knows by itself."""

    text: str


@pytest.mark.parametrize("value", ["text", 7, 2.5, True, None])
def test_small_immutable_values_stay_as_they_are(value: object) -> None:
    serializer = SharingSerializer()
    assert serializer.freeze(value) is value
    assert serializer.thaw(value) is value


@pytest.mark.parametrize("value", [[1, "two"], {"a": {"b": 3}}, b"bytes"])
def test_all_other_values_become_bytes_and_live_again(value: object) -> None:
    serializer = SharingSerializer()
    frozen = serializer.freeze(value)
    assert isinstance(frozen, Serialized)
    assert frozen.tag == JsonPlusSerializer().dumps_typed(value)[0]
    assert serializer.thaw(frozen) == value


def test_bytes_that_were_made_are_passed_through_and_not_made_again() -> None:
    inner = CountingSerializer()
    serializer = SharingSerializer(inner)
    frozen = serializer.freeze(["value"])
    assert serializer.dumps_typed(frozen) == (frozen.tag, frozen.data)
    assert inner.dumped == [["value"]]
    assert serializer.loads_typed(serializer.dumps_typed(frozen)) == ["value"]


def test_default_is_the_serializer_of_langgraph() -> None:
    assert isinstance(SharingSerializer().inner, JsonPlusSerializer)


def test_put_carries_every_channel_whether_it_changed_or_not() -> None:
    author = Author()
    author.put({"profile": ["Ada"], "n": 1})
    put = author.put({"profile": ["Ada"], "n": 2})
    assert set(put.values) == {"profile", "n"}
    assert set(put.new_versions) == {"n"}
    assert author.serializer.thaw(put.values["profile"]) == ["Ada"]
    assert "channel_values" not in put.skeleton


def test_put_does_not_see_what_a_node_changes_in_place_afterwards() -> None:
    checkpoint = empty_checkpoint()
    messages = ["hello"]
    checkpoint["channel_values"] = {"messages": messages}
    checkpoint["channel_versions"] = {"messages": "1"}
    checkpoint["versions_seen"] = {"node": {"messages": "1"}}
    versions: dict[str, str | int | float] = {"messages": "1"}
    serializer = SharingSerializer()
    put = accept_put(
        config_of("thread"), checkpoint, {}, versions, freeze=serializer.freeze, known_blob=lambda *_: None
    )
    messages.append("changed")
    versions["messages"] = checkpoint["channel_versions"]["messages"] = "2"
    checkpoint["versions_seen"]["node"]["messages"] = "2"
    checkpoint["channel_values"]["more"] = 1
    assert serializer.thaw(put.values["messages"]) == ["hello"]
    assert put.new_versions == {"messages": "1"}
    assert put.skeleton["channel_versions"] == {"messages": "1"}
    assert put.skeleton["versions_seen"] == {"node": {"messages": "1"}}
    assert put.live_values is not None
    assert "more" not in put.live_values


def accept(
    values: dict[str, Any], versions: dict[str, Any], new: dict[str, Any], known: Serialized | None
) -> list[Any]:
    """The bytes that were asked for, and the values of the put."""
    asked: list[tuple[str, str, str, object]] = []

    def known_blob(thread_id: str, checkpoint_ns: str, channel: str, version: str | int | float) -> Serialized | None:
        asked.append((thread_id, checkpoint_ns, channel, version))
        return known

    inner = CountingSerializer()
    checkpoint = empty_checkpoint()
    checkpoint["channel_values"], checkpoint["channel_versions"] = values, versions
    config = config_of("thread", "ns")
    put = accept_put(config, checkpoint, {}, new, freeze=SharingSerializer(inner).freeze, known_blob=known_blob)
    return [asked, inner.dumped, dict(put.values)]


def test_unchanged_channel_takes_its_bytes_from_the_warm_copy() -> None:
    warm = Serialized("msgpack", b"warm")
    asked, dumped, values = accept({"profile": ["Ada"]}, {"profile": "4"}, {}, warm)
    assert asked == [("thread", "ns", "profile", "4")]
    assert dumped == []
    assert values == {"profile": warm}


def test_unchanged_channel_that_is_not_warm_is_serialized() -> None:
    _, dumped, values = accept({"profile": ["Ada"]}, {"profile": "4"}, {}, None)
    assert dumped == [["Ada"]]
    assert isinstance(values["profile"], Serialized)


@pytest.mark.parametrize(
    ("values", "versions", "new"),
    [
        ({"changed": ["x"]}, {"changed": "2"}, {"changed": "2"}),
        ({"unversioned": ["x"]}, {}, {}),
        ({"inline": "x"}, {"inline": "2"}, {}),
    ],
)
def test_what_the_warm_copy_cannot_have_is_not_asked_of_it(
    values: dict[str, Any], versions: dict[str, Any], new: dict[str, Any]
) -> None:
    asked, _, _ = accept(values, versions, new, Serialized("msgpack", b"wrong"))
    assert asked == []


def test_put_names_its_delta_snapshots() -> None:
    put = Author().put({"log": _DeltaSnapshot(["a"]), "n": 1})
    assert put.snapshot_channels == {"log"}
    assert isinstance(put.values["log"], Serialized)


def test_put_takes_metadata_from_the_config_as_langgraph_does() -> None:
    config = config_of("thread")
    config["configurable"]["user_id"] = "ada"
    put = accept_put(
        config, empty_checkpoint(), {"step": 3}, {}, freeze=SharingSerializer().freeze, known_blob=lambda *_: None
    )
    assert put.metadata == {"step": 3, "user_id": "ada"}


def test_configs_of_a_put_name_its_parent_and_itself() -> None:
    author = Author("thread", "ns")
    first = author.put({"n": 1})
    second = author.put({"n": 2})
    assert first.config() == config_of("thread", "ns")
    assert second.config() == config_of("thread", "ns", first.checkpoint_id)
    assert second.stored_config() == config_of("thread", "ns", second.checkpoint_id)
    assert author.writes(("n", 3)).config() == config_of("thread", "ns", second.checkpoint_id)


def test_replayable_put_gives_every_channel_that_has_a_value_or_lost_it_a_version() -> None:
    author = Author()
    author.put({"profile": ["Ada"], "gone": 1, "old": 1})
    author.put({"profile": ["Ada"], "gone": 1})
    put = author.put({"profile": ["Ada"]}, bumped=["gone"])
    versions = put.skeleton["channel_versions"]
    assert set(versions) == {"profile", "gone", "old"}
    replayable = put.replayable()
    assert replayable.new_versions == {"profile": versions["profile"], "gone": versions["gone"]}
    assert replayable.live_values is None
    assert put.live_values is not None


def test_writes_and_deletions_can_be_replayed_as_they_are() -> None:
    author = Author()
    author.put({"n": 1})
    writes = author.writes(("n", 2))
    delete = DeleteThread("thread")
    assert writes.replayable() is writes
    assert delete.replayable() is delete


def test_writes_without_a_checkpoint_are_refused() -> None:
    with pytest.raises(CheckpointerError, match=r"checkpoint_id.*nothing was written"):
        accept_writes(config_of("thread"), [("n", 1)], "task", "", serializer=SharingSerializer())


@pytest.mark.parametrize("config", [{}, {"configurable": {}}, {"configurable": {"thread_id": None}}])
def test_config_without_a_thread_is_refused_with_what_to_do(config: Any) -> None:
    with pytest.raises(CheckpointerError, match=r"names no thread.*create_thread_config"):
        thread_of(config)


def test_parts_of_a_config_have_their_defaults() -> None:
    assert thread_of({"configurable": {"thread_id": 7}}) == "7"
    assert namespace_of({"configurable": {"thread_id": 7}}) == ""
    assert checkpoint_id_of({"configurable": {"thread_id": 7, "checkpoint_id": ""}}) is None
    assert checkpoint_id_of(config_of("7", "", "c")) == "c"


def test_size_counts_values_and_a_flat_part() -> None:
    put = Author().put({"text": "1234567890", "n": 1, "none": None, "list": ["x" * 1000]})
    frozen = put.values["list"]
    described = len(repr(put.skeleton)) + len(repr(put.metadata))
    assert frozen_size(put) == 512 + described + 10 + 16 + 16 + len(frozen.data)
    wordy = replace(put, metadata={**put.metadata, "note": "x" * 10_000})  # type: ignore[typeddict-unknown-key]
    assert frozen_size(wordy) > frozen_size(put) + 10_000
    writes = PutWrites(
        "t", "", "c", (("a", Serialized("msgpack", b"123")), ("b", Serialized("msgpack", b"45"))), "task"
    )
    assert frozen_size(writes) == 512 + 5
    assert frozen_size(DeleteThread("t")) == 512


def history(author: Author) -> list[Operation]:
    first = author.put({"profile": ["Ada"], "n": 1})
    first_writes = author.writes(("n", 2), ("other", [1]), task_id="b", task_path="~1")
    special = author.writes(("__error__", "oops"), task_id="z", task_path="~0")
    return [first, first_writes, special, author.put({"profile": ["Ada"], "n": 2})]


async def dump(saver: BaseCheckpointSaver[Any], thread_id: str = "thread") -> list[tuple[Any, ...]]:
    return [
        (found.config, found.checkpoint, found.metadata, found.parent_config, found.pending_writes)
        async for found in saver.alist({"configurable": {"thread_id": thread_id}})
    ]


async def test_shared_and_live_application_leave_the_same_in_a_saver() -> None:
    author = Author()
    shared, live, replayed = InMemorySaver(serde=author.serializer), InMemorySaver(), InMemorySaver()
    for operation in history(author):
        await apply_shared(shared, operation)
        await apply_to_saver(live, operation, author.serializer)
        await apply_to_saver(replayed, operation.replayable(), author.serializer)
    expected = await dump(live)
    assert len(expected) == 2
    assert expected[0][1]["channel_values"] == {"profile": ["Ada"], "n": 2}
    assert expected[1][4] == [("z", "__error__", "oops"), ("b", "n", 2), ("b", "other", [1])]
    assert await dump(shared) == expected
    assert await dump(replayed) == expected


async def test_replay_gives_a_channel_to_a_primary_that_lacks_earlier_checkpoints() -> None:
    author = Author()
    *_, newest = history(author)
    saver = InMemorySaver()
    await apply_to_saver(saver, newest.replayable(), author.serializer)
    found = await saver.aget_tuple(author.config())
    assert found is not None
    assert found.checkpoint["channel_values"] == {"profile": ["Ada"], "n": 2}


async def test_applying_everything_twice_changes_nothing() -> None:
    author = Author()
    operations, once, twice = history(author), InMemorySaver(), InMemorySaver()
    for operation in operations:
        await apply_to_saver(once, operation, author.serializer)
    for operation in [*operations, *operations]:
        await apply_to_saver(twice, operation.replayable(), author.serializer)
    assert await dump(twice) == await dump(once)


@pytest.mark.parametrize("shared", [True, False])
async def test_deletion_removes_the_thread_and_no_other(shared: bool) -> None:
    serializer = SharingSerializer()
    saver = InMemorySaver(serde=serializer)
    for thread_id in ("thread", "other"):
        for operation in history(Author(thread_id, serializer=serializer)):
            await apply_shared(saver, operation)
    delete = DeleteThread("thread")
    await (apply_shared(saver, delete) if shared else apply_to_saver(saver, delete, serializer))
    assert await dump(saver) == []
    assert len(await dump(saver, "other")) == 2


async def test_live_values_reach_a_saver_that_serializes_by_itself_without_a_round_trip() -> None:
    author, marker = Author(), object()
    put = author.put({"live": ["frozen"]})
    assert put.live_values is not None
    dict.__setitem__(put.live_values, "live", marker)  # type: ignore[index]
    seen: list[Any] = []

    class Saver(InMemorySaver):
        async def aput(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
            seen.append(checkpoint["channel_values"]["live"])

    await apply_to_saver(Saver(), put, author.serializer)
    await apply_to_saver(Saver(), put.replayable(), author.serializer)
    assert seen == [marker, ["frozen"]]


async def test_what_was_read_can_be_written_again_to_another_saver() -> None:
    author = Author()
    source, copy = InMemorySaver(), InMemorySaver()
    for operation in history(author):
        await apply_to_saver(source, operation, author.serializer)
    for found in reversed([found async for found in source.alist(author.config())]):
        for operation in operations_of(found, author.serializer):
            await apply_to_saver(copy, operation, author.serializer)
    assert await dump(copy) == await dump(source)


async def test_read_snapshot_is_known_as_one_and_a_root_has_no_parent() -> None:
    author = Author()
    saver = InMemorySaver()
    await apply_to_saver(saver, author.put({"log": _DeltaSnapshot([1])}), author.serializer)
    found = await saver.aget_tuple(author.config())
    assert found is not None
    (put,) = operations_of(found._replace(pending_writes=None), author.serializer)
    assert not isinstance(put, PutWrites | DeleteThread)
    assert put.snapshot_channels == {"log"}
    assert put.parent_checkpoint_id is None


def test_wider_allow_list_reaches_the_shared_serializer() -> None:
    serializer = SharingSerializer(JsonPlusSerializer(allowed_msgpack_modules=None))
    stored = serializer.dumps_typed(Note("kept"))
    before = serializer.inner
    wider = widen_allowlist(serializer, [(Note.__module__, "Note")])
    assert serializer.inner is wider
    assert wider is not before
    assert serializer.loads_typed(stored) == Note("kept")
