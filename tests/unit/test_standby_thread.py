"""One warm thread: it answers what it knows for certain, and that as a saver with all data would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple, DeltaChannelHistory
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import INTERRUPT, _DeltaSnapshot

from enhanced_checkpointing.backends.base import by_equality
from enhanced_checkpointing.errors import CheckpointUnavailableError
from enhanced_checkpointing.operations import Put, PutWrites
from enhanced_checkpointing.serialization import Serialized, SharingSerializer
from enhanced_checkpointing.standby.store import CHECKPOINT, THREAD
from enhanced_checkpointing.standby.thread import WarmThread
from tests.support.author import Author, config_of

NEWEST = config_of("thread")


class Setting:
    """A primary that holds everything, and a warm thread that gets of it what a test gives it."""

    def __init__(self) -> None:
        self.author = Author()
        self.serializer = self.author.serializer
        self.primary = InMemorySaver(serde=self.serializer)
        self.warm = WarmThread("thread", self.serializer)

    def store(self, operation: Put | PutWrites) -> Put | PutWrites:
        """At the primary only, as another process would."""
        if isinstance(operation, Put):
            checkpoint = operation.checkpoint(operation.values)
            self.primary.put(operation.config(), checkpoint, operation.metadata, operation.new_versions)
        else:
            self.primary.put_writes(operation.config(), operation.writes, operation.task_id, operation.task_path)
        return operation

    def write(self, operation: Put | PutWrites) -> Put | PutWrites:
        """At the primary and here, as this process does."""
        self.store(operation)
        if isinstance(operation, Put):
            self.warm.put(operation)
        else:
            self.warm.put_writes(operation)
        return operation

    def read(self, config: RunnableConfig = NEWEST) -> CheckpointTuple:
        """Read at the primary, and keep warm what it said."""
        found = self.primary.get_tuple(config)
        assert found is not None
        self.warm.warm(found, newest="checkpoint_id" not in config["configurable"])
        return found


def listed(warm: WarmThread, config: RunnableConfig = NEWEST, **options: Any) -> list[CheckpointTuple]:
    listed = warm.history(config, by_equality(**{"filter": None, "before": None, "limit": None, **options}))
    return [found for found in listed if found is not None]


def test_thread_that_nothing_is_known_of_answers_nothing() -> None:
    warm = Setting().warm
    for ask in (
        lambda: warm.get_tuple(NEWEST),
        lambda: warm.get_tuple(config_of("thread", "", "some-checkpoint")),
        lambda: listed(warm),
        lambda: warm.delta_history(NEWEST, ["log"]),
        lambda: warm.delta_history(config_of("thread", "", "some-checkpoint"), ["log"]),
    ):
        with pytest.raises(CheckpointUnavailableError):
            ask()
    assert not warm.knows_head("")
    assert warm.head("") is None
    assert warm.is_blank


def test_empty_thread_is_empty_in_all_its_namespaces() -> None:
    warm = Setting().warm
    warm.note_empty("")
    assert warm.complete
    assert warm.get_tuple(NEWEST) is None
    assert warm.get_tuple(config_of("thread", "child")) is None
    assert warm.get_tuple(config_of("thread", "", "some-checkpoint")) is None
    assert listed(warm) == []
    assert warm.delta_history(NEWEST, ["log", "n"]) == {"log": {"writes": []}, "n": {"writes": []}}
    assert warm.knows_head("child")


def test_empty_namespace_says_nothing_of_the_others() -> None:
    warm = Setting().warm
    warm.note_empty("child")
    assert warm.get_tuple(config_of("thread", "child")) is None
    assert warm.knows_head("child")
    assert listed(warm, config_of("thread", "child")) == []
    assert not warm.complete
    with pytest.raises(CheckpointUnavailableError):
        warm.get_tuple(NEWEST)
    with pytest.raises(CheckpointUnavailableError):
        listed(warm, {"configurable": {"thread_id": "thread"}})


def test_thread_is_known_to_be_empty_even_after_a_question_that_found_nothing() -> None:
    warm = Setting().warm
    warm.note_empty("child")
    assert warm.get_tuple(config_of("thread", "child", "some-checkpoint")) is None
    warm.note_empty("")
    assert warm.complete


def test_empty_root_of_a_thread_with_a_warm_subgraph_is_only_an_empty_root() -> None:
    setting = Setting()
    child = Author("thread", "child", setting.serializer)
    setting.write(child.put({"n": 1}))
    setting.warm.note_empty("")
    assert not setting.warm.complete
    assert setting.warm.get_tuple(NEWEST) is None
    assert setting.warm.get_tuple(child.config()) is not None
    with pytest.raises(CheckpointUnavailableError):
        listed(setting.warm, child.config())


def test_late_answer_of_empty_does_not_hide_what_was_written_since() -> None:
    setting = Setting()
    setting.write(setting.author.put({"n": 1}))
    setting.warm.note_empty("")
    assert setting.warm.get_tuple(NEWEST) is not None
    assert not setting.warm.is_complete("")


def test_thread_that_began_here_answers_as_the_primary_does() -> None:
    setting = Setting()
    setting.warm.note_empty("")
    child = Author("thread", "child", setting.serializer)
    for step in range(3):
        setting.write(setting.author.put({"n": step, "profile": ["Ada"]}))
        setting.write(setting.author.writes(("n", step + 1), task_id=f"task-{step}"))
        setting.write(child.put({"note": [step]}))
    everything: RunnableConfig = {"configurable": {"thread_id": "thread"}}
    expected = sorted(setting.primary.list(everything), key=lambda item: item.checkpoint["id"], reverse=True)
    assert len(expected) == 6
    assert setting.warm.get_tuple(NEWEST) == setting.primary.get_tuple(NEWEST)
    assert listed(setting.warm, everything) == expected
    assert listed(setting.warm, everything, limit=4) == expected[:4]
    assert listed(setting.warm, NEWEST, filter={"step": 2}) == list(setting.primary.list(NEWEST, filter={"step": 2}))
    before = expected[2].config
    assert listed(setting.warm, NEWEST, before=before) == list(setting.primary.list(NEWEST, before=before))


def test_newest_of_a_thread_that_began_elsewhere_is_known_once_it_was_read() -> None:
    setting = Setting()
    first = setting.store(setting.author.put({"n": 1}))
    second = setting.store(setting.author.put({"n": 2, "profile": ["Ada"]}))
    assert isinstance(first, Put)
    assert isinstance(second, Put)
    found = setting.read()
    assert setting.warm.get_tuple(NEWEST) == found
    assert setting.warm.head("") == second.checkpoint_id
    assert setting.warm.knows_head("")
    with pytest.raises(CheckpointUnavailableError):
        setting.warm.get_tuple(first.stored_config())
    with pytest.raises(CheckpointUnavailableError, match="not all warm"):
        listed(setting.warm)


def test_checkpoint_that_was_asked_for_by_its_id_is_not_the_newest() -> None:
    setting = Setting()
    old = setting.store(setting.author.put({"n": 1}))
    setting.store(setting.author.put({"n": 2}))
    assert isinstance(old, Put)
    found = setting.read(old.stored_config())
    assert setting.warm.get_tuple(old.stored_config()) == found
    assert not setting.warm.knows_head("")
    with pytest.raises(CheckpointUnavailableError, match="no checkpoint of namespace"):
        setting.warm.get_tuple(NEWEST)


def test_newest_never_goes_back_when_an_older_answer_comes_late() -> None:
    setting = Setting()
    setting.store(setting.author.put({"n": 1}))
    late = setting.primary.get_tuple(NEWEST)
    assert late is not None
    newer = setting.write(setting.author.put({"n": 2}))
    assert isinstance(newer, Put)
    setting.warm.warm(late, newest=True)
    assert setting.warm.head("") == newer.checkpoint_id
    found = setting.warm.get_tuple(NEWEST)
    assert found is not None
    assert found.checkpoint["channel_values"] == {"n": 2}


def test_what_did_not_change_is_there_although_the_thread_began_elsewhere() -> None:
    setting = Setting()
    setting.store(setting.author.put({"profile": ["Ada"], "n": 1}))
    setting.read()
    setting.write(setting.author.put({"profile": ["Ada"], "n": 2}))
    assert setting.warm.get_tuple(NEWEST) == setting.primary.get_tuple(NEWEST)


def test_put_alone_carries_every_channel() -> None:
    setting = Setting()
    setting.store(setting.author.put({"profile": ["Ada"], "n": 1}))
    setting.write(setting.author.put({"profile": ["Ada"], "n": 2}))
    found = setting.warm.get_tuple(NEWEST)
    assert found is not None
    assert found.checkpoint["channel_values"] == {"profile": ["Ada"], "n": 2}


def test_checkpoint_is_stored_as_the_memory_saver_stores_it() -> None:
    setting = Setting()
    for put in (
        setting.author.put({"profile": ["Ada"], "text": "inline", "n": 1}),
        setting.author.put({"profile": ["Ada"], "log": _DeltaSnapshot(["a"])}, bumped=["n"]),
    ):
        setting.write(put)
    assert setting.warm.store._saver.storage == setting.primary.storage
    assert setting.warm.store._saver.blobs == setting.primary.blobs


def test_writes_are_stored_as_the_memory_saver_stores_them_and_given_again_count_once() -> None:
    setting = Setting()
    setting.write(setting.author.put({"n": 1}))
    first = setting.author.writes(("n", 2), ("log", ["a"]), (INTERRUPT, "?"), task_path="~a")
    setting.write(first)
    size = setting.warm.size
    setting.write(replace(first, writes=first.writes[:2]))
    assert setting.warm.size == size
    setting.write(setting.author.writes(("n", 3), ("log", ["b"]), (INTERRUPT, "!")))
    setting.write(setting.author.writes(("n", 4), task_id="other"))
    setting.write(setting.author.writes(task_id="nothing"))
    assert setting.warm.store._saver.writes == setting.primary.writes


def test_bytes_of_a_version_are_given_while_they_are_warm() -> None:
    setting = Setting()
    put = setting.author.put({"profile": ["Ada"]}, bumped=["empty"])
    setting.warm.put(put)
    versions = put.skeleton["channel_versions"]
    assert setting.warm.blob(("thread", "", "profile", versions["profile"])) == put.values["profile"]
    assert setting.warm.blob(("thread", "", "empty", versions["empty"])) is None
    assert setting.warm.blob(("thread", "", "profile", "other")) is None


def test_writes_of_tasks_that_were_not_seen_are_added_and_others_stay() -> None:
    setting = Setting()
    setting.write(setting.author.put({"n": 1}))
    setting.write(setting.author.writes(("n", 2), task_id="a"))
    setting.store(setting.author.writes(("n", 3), task_id="b"))
    found = setting.read()
    assert found.pending_writes == [("a", "n", 2), ("b", "n", 3)]
    warm = setting.warm.get_tuple(NEWEST)
    assert warm is not None
    assert warm.pending_writes == found.pending_writes


def test_reading_what_is_warm_already_serializes_nothing() -> None:
    dumped: list[Any] = []

    class Counting(JsonPlusSerializer):
        def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
            dumped.append(obj)
            return super().dumps_typed(obj)

    setting = Setting()
    setting.serializer.inner = Counting()
    setting.write(setting.author.put({"profile": ["Ada"]}))
    setting.write(setting.author.writes(("n", 2)))
    dumped.clear()
    size = setting.warm.size
    setting.read()
    assert dumped == []
    assert setting.warm.size == size


@pytest.mark.parametrize("with_writes", [True, False])
def test_writes_that_come_before_their_checkpoint_make_the_thread_not_blank(with_writes: bool) -> None:
    setting = Setting()
    setting.author.put({"n": 1})
    if with_writes:
        setting.warm.put_writes(setting.author.writes(("n", 2)))
    setting.warm.note_empty("")
    assert setting.warm.complete is not with_writes


@dataclass(eq=False)
class Odd:
    """A value that cannot be compared, as an array cannot."""

    number: int

    def __eq__(self, other: object) -> bool:
        raise ValueError("no truth")

    __hash__ = None  # type: ignore[assignment]  # what has no equals has no hash


CALL = "worker:4ab3|tool:9cd1"


@pytest.mark.parametrize(
    ("checkpoint_ns", "parents", "known"),
    [
        ("worker:4ab3", {"": "ours"}, True),
        ("worker:4ab3", {"": "theirs"}, False),
        ("worker:4ab3", {}, False),
        ("worker:4ab3", None, False),
        ("worker", {"": "ours"}, False),
        (CALL, {"": "ours", "worker:4ab3": "theirs"}, False),
        (CALL, {"": "theirs", "worker:4ab3": "ours"}, True),
        ("worker:4ab3|1", {"": "ours"}, True),
        ("worker:4ab3|1", {"": "theirs"}, False),
        ("worker:4ab3|2|tool:9cd1", {"": "theirs", "worker:4ab3|2": "ours"}, True),
        ("1", {"": "ours"}, False),
    ],
)
def test_call_of_a_subgraph_by_a_step_of_this_process_cannot_exist_elsewhere(
    checkpoint_ns: str, parents: dict[str, str] | None, known: bool
) -> None:
    setting = Setting()
    put = setting.author.put({"n": 1})
    setting.warm.put(put)
    config = config_of("thread", checkpoint_ns)
    if parents is not None:
        ids = {"ours": put.checkpoint_id, "theirs": "1ef"}
        config["configurable"]["checkpoint_map"] = {name: ids[whose] for name, whose in parents.items()}
    if known:
        assert setting.warm.get_tuple(config) is None
    else:
        with pytest.raises(CheckpointUnavailableError):
            setting.warm.get_tuple(config)


def call_of(checkpoint_ns: str, parents: dict[str, str], *, running: bool = True) -> RunnableConfig:
    """What LangGraph asks with for a subgraph that a running task calls, or without one what anybody asks with."""
    config = config_of("thread", checkpoint_ns)
    config["configurable"]["checkpoint_map"] = parents
    if running:
        config["configurable"]["__pregel_task_id"] = checkpoint_ns.rpartition(":")[2]
    return config


def test_call_by_a_checkpoint_that_is_being_made_cannot_exist_elsewhere() -> None:
    setting = Setting()
    setting.store(setting.author.put({"n": 1}))
    setting.read()
    made = setting.author.put({"n": 2})
    assert isinstance(made, Put)
    parents = {"": made.checkpoint_id}
    with pytest.raises(CheckpointUnavailableError):  # somebody may ask for what another process told of
        setting.warm.get_tuple(call_of("worker:4ab3", parents, running=False))
    assert setting.warm.get_tuple(call_of("worker:4ab3", parents)) is None
    inner = {**parents, "worker:4ab3": str(uuid6())}
    assert setting.warm.get_tuple(call_of("worker:4ab3|tool:9cd1", inner)) is None


def test_call_by_a_checkpoint_that_was_read_or_is_not_the_newest_may_exist_elsewhere() -> None:
    setting = Setting()
    unread = setting.store(setting.author.put({"n": 1}))
    read = setting.store(setting.author.put({"n": 2}))
    assert isinstance(unread, Put)
    assert isinstance(read, Put)
    with pytest.raises(CheckpointUnavailableError):  # nothing is known yet of what is newest
        setting.warm.get_tuple(call_of("worker:4ab3", {"": str(uuid6())}))
    setting.read()
    for put in (unread, read):
        with pytest.raises(CheckpointUnavailableError):
            setting.warm.get_tuple(call_of("worker:4ab3", {"": put.checkpoint_id}))


def test_call_by_a_step_of_which_somebody_else_ran_a_task_may_exist_elsewhere() -> None:
    setting = Setting()
    put = setting.store(setting.author.put({"n": 1}))
    assert isinstance(put, Put)
    setting.warm.put(put)
    writes = setting.store(setting.author.writes(("n", 2)))
    assert isinstance(writes, PutWrites)
    assert setting.warm.get_tuple(call_of(f"worker:{writes.task_id}", {"": put.checkpoint_id})) is None
    setting.read()
    for task_id in (writes.task_id, "4ab3"):  # an answer to a question is written for no task, or for another one
        with pytest.raises(CheckpointUnavailableError):
            setting.warm.get_tuple(call_of(f"tool:{task_id}", {"": put.checkpoint_id}))


def test_call_by_a_step_from_which_somebody_else_went_on_may_exist_elsewhere() -> None:
    setting = Setting()
    put = setting.write(setting.author.put({"n": 1}))
    setting.store(setting.author.put({"n": 2}))
    assert setting.warm.get_tuple(call_of("worker:4ab3", {"": put.checkpoint_id})) is None
    setting.read()
    with pytest.raises(CheckpointUnavailableError):
        setting.warm.get_tuple(call_of("tool:9c", {"": put.checkpoint_id}))


@pytest.mark.parametrize("went_on", [True, False])
def test_subgraphs_of_a_graph_that_somebody_else_went_on_with_are_read_anew(went_on: bool) -> None:
    setting = Setting()
    put = setting.write(setting.author.put({"n": 1}))
    inner = setting.write(Author("thread", "worker:4ab3", setting.serializer).put({"k": 1}))
    beside = setting.write(Author("thread", "worker:4ab3|deep:1", setting.serializer).put({"k": 1}))
    assert isinstance(put, Put)
    of_inner, of_deep = call_of("worker:4ab3", {"": put.checkpoint_id}), config_of("thread", "worker:4ab3|deep:1")
    assert setting.warm.get_tuple(of_inner) is not None
    setting.store(setting.author.put({"n": 2}) if went_on else setting.author.writes(("n", 2)))
    setting.read()
    for asked in (of_inner, of_deep):
        with pytest.raises(CheckpointUnavailableError):
            setting.warm.get_tuple(asked)
    setting.read(config_of("thread", "worker:4ab3"))
    found = setting.warm.get_tuple(of_inner)
    assert found is not None
    assert found.checkpoint["id"] == inner.checkpoint_id
    assert setting.warm.get_tuple(config_of("thread", "worker:4ab3|deep:1", beside.checkpoint_id)) is not None


def test_checkpoint_that_is_not_here_may_be_somebody_else_s_also_where_all_that_is_here_began_here() -> None:
    setting = Setting()
    setting.warm.note_empty("")
    assert setting.warm.get_tuple(config_of("thread", "", "some-checkpoint")) is None
    setting.write(setting.author.put({"n": 1}))
    other = setting.store(setting.author.put({"n": 2}))
    with pytest.raises(CheckpointUnavailableError):
        setting.warm.get_tuple(config_of("thread", "", other.checkpoint_id))
    assert setting.warm.get_tuple(config_of("thread", "", "no-id-that-langgraph-makes")) is None
    setting.read()
    with pytest.raises(CheckpointUnavailableError):
        setting.warm.get_tuple(config_of("thread", "", "no-id-that-langgraph-makes"))


def compare(setting: Setting, *, newest: bool = True, whole: bool = True) -> bool:
    listed = [*setting.primary.list(NEWEST)]
    return setting.warm.compare(listed, newest=newest, whole_of=(lambda _: True) if whole else None)


def test_newest_of_a_listing_is_not_forgotten() -> None:
    setting = Setting()
    setting.warm.note_empty("")
    setting.write(setting.author.put({"n": 1}))
    other = setting.store(setting.author.put({"n": 2}))
    assert compare(setting)
    found = setting.warm.get_tuple(NEWEST)
    assert found is not None
    assert found.checkpoint["id"] == other.checkpoint_id
    with pytest.raises(CheckpointUnavailableError):  # there may be more of theirs
        listed(setting.warm)


def test_listing_of_what_is_all_here_changes_nothing() -> None:
    setting = Setting()
    setting.warm.note_empty("")
    setting.write(setting.author.put({"n": 1}))
    setting.write(setting.author.put({"n": 2}))
    size = setting.warm.size
    assert compare(setting)
    assert setting.warm.complete
    assert (len(listed(setting.warm)), setting.warm.size) == (2, size)


def test_older_checkpoint_of_somebody_else_in_a_listing_ends_what_is_known_to_be_complete() -> None:
    setting = Setting()
    setting.warm.note_empty("")
    setting.store(setting.author.put({"n": 1}))
    setting.write(setting.author.put({"n": 2}))
    assert compare(setting, whole=False)
    assert not setting.warm.complete


def test_listing_that_lacks_what_is_here_tells_of_a_pruned_thread_or_a_deleted_one() -> None:
    setting = Setting()
    setting.warm.note_empty("")
    first = setting.write(setting.author.put({"n": 1}))
    setting.write(setting.author.put({"n": 2}))
    del setting.primary.storage["thread"][""][first.checkpoint_id]
    assert compare(setting, whole=False)
    assert setting.warm.complete  # others may have been left out
    assert compare(setting)
    assert not setting.warm.complete
    setting.primary.delete_thread("thread")
    assert compare(setting, whole=False)
    assert not compare(setting)


def test_newest_of_a_listing_from_an_earlier_place_is_not_the_newest() -> None:
    setting = Setting()
    setting.warm.note_empty("")
    setting.store(setting.author.put({"n": 1}))
    compare(setting, newest=False, whole=False)
    assert not setting.warm.knows_head("")


@pytest.mark.parametrize("own_first", [True, False])
def test_order_of_what_two_processes_wrote_to_one_delta_channel_is_not_guessed(own_first: bool) -> None:
    setting = Setting()
    setting.write(setting.author.put({"log": _DeltaSnapshot([])}))
    mine = setting.author.writes(("log", "a"), task_id="a", task_path="~pull, a")
    theirs = setting.author.writes(("log", "b"), task_id="b", task_path="~pull, b")
    operations = [mine, theirs] if own_first else [theirs, mine]
    for operation in operations:
        (setting.write if operation is mine else setting.store)(operation)
        setting.read()
    put = setting.write(setting.author.put({}))
    assert isinstance(put, Put)
    with pytest.raises(CheckpointUnavailableError, match="order"):
        setting.warm.delta_history(put.stored_config(), ["log"])


@pytest.mark.parametrize("own", [True, False])
def test_writes_of_somebody_else_end_what_is_known_to_be_complete(own: bool) -> None:
    setting = Setting()
    setting.warm.note_empty("")
    put = setting.store(setting.author.put({"n": 1}))
    assert isinstance(put, Put)
    setting.warm.put(put)
    assert setting.warm.complete
    writes = setting.store(setting.author.writes(("n", 2)))
    assert isinstance(writes, PutWrites)
    if own:  # they are read back before they are acknowledged
        setting.warm.authorship.note_own(writes)
    setting.read()
    assert setting.warm.complete is own


def test_checkpoint_of_ours_that_is_read_before_it_is_acknowledged_is_not_somebody_else_s() -> None:
    setting = Setting()
    setting.warm.note_empty("")
    put = setting.store(setting.author.put({"n": 1}))
    setting.warm.authorship.note_own(put)
    setting.read()
    assert setting.warm.complete


def test_writes_that_are_settled_are_not_on_their_way_any_more() -> None:
    setting = Setting()
    setting.warm.note_empty("")
    put = setting.write(setting.author.put({"n": 1}))
    assert isinstance(put, Put)
    writes = setting.author.writes(("n", 2))
    setting.warm.authorship.note_own(writes)
    setting.warm.authorship.note_own(writes)
    setting.warm.authorship.note_settled(writes)
    setting.warm.authorship.note_settled(replace(writes, task_id="never noted"))
    setting.store(writes)
    setting.read()
    assert setting.warm.complete, "one of two calls is under way"
    setting.warm.authorship.note_settled(writes)
    setting.store(replace(writes, writes=(("n", 2), ("log", 3))))
    setting.read()
    assert not setting.warm.complete


@pytest.mark.parametrize(
    ("ours", "theirs", "same"), [("a", "a", True), ("a", "b", False), (Odd(1), Odd(1), True), (Odd(1), Odd(2), False)]
)
def test_what_took_the_place_of_a_question_is_noticed_by_its_value(ours: Any, theirs: Any, same: bool) -> None:
    setting = Setting()
    setting.warm.note_empty("")
    setting.write(setting.author.put({"n": 1}))
    asked = setting.author.writes((INTERRUPT, ours))
    setting.write(asked)
    setting.store(replace(asked, writes=((INTERRUPT, theirs),)))
    found = setting.read()
    assert setting.warm.complete is same
    if not isinstance(theirs, Odd):
        assert setting.warm.get_tuple(NEWEST) == found


@pytest.mark.parametrize("put_again", [False, True])
def test_checkpoint_that_was_only_read_may_have_calls_of_other_processes(put_again: bool) -> None:
    setting = Setting()
    put = setting.store(setting.author.put({"n": 1}))
    assert isinstance(put, Put)
    setting.read()
    if put_again:  # as a mark in an outage does
        setting.warm.put(put)
    config = config_of("thread", "worker:4ab3")
    config["configurable"]["checkpoint_map"] = {"": put.checkpoint_id}
    with pytest.raises(CheckpointUnavailableError):
        setting.warm.get_tuple(config)


# Delta channels


def histories(setting: Setting, config: RunnableConfig, channels: Sequence[str] = ("log", "n")) -> list[Any]:
    """What the primary answers, and what the warm thread does; None for "not known"."""
    expected = dict(setting.primary.get_delta_channel_history(config=config, channels=channels))
    try:
        return [expected, dict(setting.warm.delta_history(config, channels))]
    except CheckpointUnavailableError:
        return [expected, None]


def delta_step(setting: Setting, step: int, *, snapshot: bool) -> list[Put | PutWrites]:
    """A checkpoint whose `log` is a snapshot or only its writes, and the writes of two tasks."""
    values: dict[str, Any] = {"n": [step]} if step % 2 else {}
    if snapshot:
        values["log"] = _DeltaSnapshot([f"all before {step}"])
    put = setting.author.put(values, bumped=["log"])
    writes = [
        setting.author.writes(("log", [f"{step}{task}"]), ("n", step), task_id=task, task_path=f"~{9 - index}")
        for index, task in enumerate("ab")
    ]
    return [put, *writes]


def test_delta_history_of_a_thread_that_began_here_goes_back_to_its_root() -> None:
    setting = Setting()
    setting.warm.note_empty("")
    for step in range(4):
        for operation in delta_step(setting, step, snapshot=False):
            setting.write(operation)
    expected, found = histories(setting, NEWEST)
    assert found == expected
    assert [value for _, _, value in found["log"]["writes"]] == [["0b"], ["0a"], ["1b"], ["1a"], ["2b"], ["2a"]]
    assert "seed" not in found["log"]


def test_delta_history_of_a_thread_that_began_elsewhere_is_known_from_a_snapshot_on() -> None:
    setting = Setting()
    for operation in delta_step(setting, 0, snapshot=False):
        setting.store(operation)
    for operation in delta_step(setting, 1, snapshot=False):
        setting.write(operation)
    assert histories(setting, NEWEST, ["log"])[1] is None
    for step in (2, 3):
        for operation in delta_step(setting, step, snapshot=step == 2):
            setting.write(operation)
    expected, found = histories(setting, NEWEST, ["log"])
    assert found == expected
    assert found["log"]["seed"] == _DeltaSnapshot(["all before 2"])


def test_delta_history_that_was_read_is_where_later_steps_go_on_from() -> None:
    setting = Setting()
    for step in range(2):
        for operation in delta_step(setting, step, snapshot=False):
            setting.store(operation)
    found = setting.read()
    history = setting.primary.get_delta_channel_history(config=found.config, channels=["log", "n"])
    setting.warm.warm_history("", found.checkpoint["id"], history)
    for operation in delta_step(setting, 2, snapshot=False):
        setting.write(operation)
    expected, known = histories(setting, NEWEST)
    assert known == expected
    assert len(known["log"]["writes"]) == 4


def test_history_of_a_checkpoint_that_is_not_warm_is_not_known() -> None:
    setting = Setting()
    setting.write(setting.author.put({"n": 1}))
    with pytest.raises(CheckpointUnavailableError, match="leaves what is warm"):
        setting.warm.delta_history(config_of("thread", "", "some-checkpoint"), ["log"])


def test_size_counts_checkpoints_values_writes_and_histories() -> None:
    setting = Setting()
    sizes = [setting.warm.size]
    assert sizes == [THREAD]
    big = ["x" * 10_000]

    def grown() -> int:
        sizes.append(setting.warm.size)
        return sizes[-1] - sizes[-2]

    setting.warm.put(setting.author.put({"big": big}))
    assert 10_000 < grown() < 10_000 + 3 * CHECKPOINT
    setting.warm.put(setting.author.put({"big": big, "n": 1}))
    assert CHECKPOINT <= grown() < 3 * CHECKPOINT, "the same version is held once"
    setting.warm.put_writes(setting.author.writes(("big", big)))
    assert 10_000 < grown() < 10_000 + CHECKPOINT
    history = DeltaChannelHistory(writes=[("task", "log", big)], seed=big)
    setting.warm.warm_history("", "some-checkpoint", {"log": history})
    assert 20_000 < grown() < 20_000 + 2 * CHECKPOINT
    setting.warm.warm_history("", "some-checkpoint", {"log": history})
    assert grown() == 0


def test_what_is_left_of_a_trimmed_thread_is_its_newest_checkpoint_as_it_was() -> None:
    setting = Setting()
    setting.store(setting.author.put({"gone": ["x"], "n": [1]}))
    setting.store(setting.author.put({"n": [1]}, bumped=["gone"]))  # it has lost its value, and has a version still
    setting.store(setting.author.writes(("n", 2)))
    setting.read()
    before = setting.warm.get_tuple(NEWEST)
    size = setting.warm.size
    setting.warm.trim()
    assert setting.warm.get_tuple(NEWEST) == before
    assert setting.warm.size == size


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_delta_history_is_that_of_the_primary_or_not_known_whatever_part_is_warm(
    snapshots: list[bool], data: st.DataObject
) -> None:
    setting = Setting()
    began_here = data.draw(st.booleans())
    if began_here:
        setting.warm.note_empty("")
    for step, snapshot in enumerate(snapshots):
        here = began_here or data.draw(st.booleans())
        for operation in delta_step(setting, step, snapshot=snapshot):
            (setting.write if here else setting.store)(operation)
    everything = list(setting.primary.list(NEWEST))
    for found in data.draw(st.lists(st.sampled_from(everything), max_size=3)):
        setting.read(found.config)
        if data.draw(st.booleans()):
            history = setting.primary.get_delta_channel_history(config=found.config, channels=["log"])
            setting.warm.warm_history("", found.checkpoint["id"], history)
    known = 0
    for found in everything:
        expected, answer = histories(setting, found.config)
        assert answer in (expected, None)
        known += answer is not None
    if began_here:
        assert known == len(everything)


def test_frozen_history_is_not_changed_by_what_a_reducer_does_to_it() -> None:
    setting = Setting()
    written = ["a"]
    setting.warm.warm_history("", "c", {"log": DeltaChannelHistory(writes=[("task", "log", written)], seed=["seed"])})
    written.append("changed")
    first = setting.warm.delta_history(config_of("thread", "", "c"), ["log"])
    first["log"]["writes"][0][2].append("changed")
    again = setting.warm.delta_history(config_of("thread", "", "c"), ["log"])
    assert again == {"log": {"writes": [("task", "log", ["a"])], "seed": ["seed"]}}


def test_thread_of_another_serializer_reads_its_own_bytes() -> None:
    warm = WarmThread("thread", SharingSerializer())
    put = Author().put({"n": ["x"]})
    warm.put(put)
    found = warm.blob(("thread", "", "n", put.skeleton["channel_versions"]["n"]))
    assert isinstance(found, Serialized)


def test_writes_of_a_task_of_which_the_primary_has_more_are_replaced() -> None:
    setting = Setting()
    setting.write(setting.author.put({"n": 1}))
    setting.write(setting.author.writes(("n", "ours"), task_id="task"))
    setting.store(setting.author.writes(("n", "ours"), ("m", "theirs"), task_id="task"))
    found = setting.read()
    assert found.pending_writes is not None
    warm = setting.warm.get_tuple(NEWEST)
    assert warm is not None
    assert warm.pending_writes == found.pending_writes == [("task", "n", "ours"), ("task", "m", "theirs")]
