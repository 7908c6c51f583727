"""Many warm threads: which of them stay, and what is asked of which."""

from __future__ import annotations

import gc
import tracemalloc
from enum import Enum

import pytest
from langgraph.checkpoint.base import CheckpointTuple, DeltaChannelHistory
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import INTERRUPT, RESUME

from enhanced_checkpointing import create_memory_checkpointer
from enhanced_checkpointing.backends.base import EVERYTHING
from enhanced_checkpointing.errors import CheckpointUnavailableError
from enhanced_checkpointing.journal.api import UNKNOWN
from enhanced_checkpointing.operations import DeleteThread
from enhanced_checkpointing.serialization import SharingSerializer, widen_allowlist
from enhanced_checkpointing.standby.cache import Standby
from enhanced_checkpointing.standby.store import THREAD
from tests.support.author import Author, config_of
from tests.support.checkpointer import opened, saver_of
from tests.support.checkpoints import Thread

BIG = ["x" * 10_000]


class Mode(Enum):
    FAST = "fast"


class Setting:
    """A standby, the authors of its threads, and the threads that are pinned."""

    def __init__(self, max_bytes: int = 10_000_000) -> None:
        self.serializer = SharingSerializer()
        self.pinned: set[str] = set()
        self.standby = Standby(self.serializer, max_bytes, self.pinned.__contains__)
        self._authors: dict[str, Author] = {}

    def author(self, thread_id: str) -> Author:
        return self._authors.setdefault(thread_id, Author(thread_id, serializer=self.serializer))

    def release(self, *thread_ids: str) -> None:
        for thread_id in thread_ids:
            self.pinned.discard(thread_id)
            self.standby.release(thread_id)

    def write(self, *thread_ids: str, value: object = BIG) -> None:
        for thread_id in thread_ids:
            self.standby.apply(self.author(thread_id).put({"value": value}))

    def warm(self) -> list[str]:
        return [thread_id for thread_id in self._authors if self.standby.knows(thread_id)]


def values_of(standby: Standby, thread_id: str) -> dict[str, object]:
    found = standby.get_tuple(config_of(thread_id))
    assert found is not None
    return dict(found.checkpoint["channel_values"])


def test_thread_that_is_not_warm_is_not_known_rather_than_not_found() -> None:
    standby = Setting().standby
    for ask in (
        lambda: standby.get_tuple(config_of("cold")),
        lambda: standby.history(config_of("cold"), EVERYTHING),
        lambda: standby.delta_history(config_of("cold"), ["log"]),
    ):
        with pytest.raises(CheckpointUnavailableError, match="'cold' is not warm"):
            ask()
    assert len(standby) == 0, "asking must not make a thread warm"
    assert standby.blob("cold", "", "n", "1") is None
    assert not standby.knows("cold")


def test_written_checkpoint_and_writes_are_answered() -> None:
    setting = Setting()
    setting.write("a")
    setting.standby.apply(setting.author("a").writes(("n", 2)))
    found = setting.standby.get_tuple(config_of("a"))
    assert found is not None
    assert found.checkpoint["channel_values"] == {"value": BIG}
    assert found.pending_writes == [("task", "n", 2)]


def test_deleted_thread_is_known_to_be_empty() -> None:
    setting = Setting()
    setting.write("a")
    setting.standby.apply(DeleteThread("a"))
    assert setting.standby.get_tuple(config_of("a")) is None
    assert [*setting.standby.history(config_of("a"), EVERYTHING)] == []
    assert setting.standby.size == THREAD


def test_answer_of_the_primary_is_kept_and_so_is_that_there_is_nothing() -> None:
    setting = Setting()
    setting.write("source")
    found = setting.standby.get_tuple(config_of("source"))
    setting.standby.forget("source")
    setting.standby.warm(config_of("source"), found)
    setting.standby.warm(config_of("empty"), None)
    assert setting.standby.get_tuple(config_of("source")) == found
    assert setting.standby.get_tuple(config_of("empty")) is None


def test_missing_old_checkpoint_says_nothing_of_the_thread() -> None:
    standby = Setting().standby
    standby.warm(config_of("a", "", "old-checkpoint"), None)
    assert not standby.knows("a")


def test_history_of_the_newest_checkpoint_is_kept_only_where_it_is_named() -> None:
    standby = Setting().standby
    history = {"log": {"writes": [("task", "log", ["a"])]}}
    standby.warm_history(config_of("a"), history)  # type: ignore[arg-type]  # a TypedDict, written plainly
    assert not standby.knows("a")
    standby.warm_history(config_of("a", "", "c"), history)  # type: ignore[arg-type]
    assert standby.delta_history(config_of("a", "", "c"), ["log"]) == history


def test_base_head_is_the_newest_that_is_known_or_known_to_be_none() -> None:
    setting = Setting()
    put = setting.author("a").put({"n": 1})
    assert setting.standby.base_head(put) is UNKNOWN
    setting.standby.apply(put)
    following = setting.author("a").put({"n": 2})
    assert setting.standby.base_head(following) == put.checkpoint_id
    assert setting.standby.base_head(DeleteThread("a")) == put.checkpoint_id
    child = Author("a", "child", setting.serializer).put({"n": 1})
    assert setting.standby.base_head(child) is UNKNOWN
    setting.standby.note_empty("new", "")
    assert setting.standby.base_head(DeleteThread("new")) is None


def test_bytes_of_an_unchanged_channel_are_found_by_its_version() -> None:
    setting = Setting()
    put = setting.author("a").put({"value": BIG})
    setting.standby.apply(put)
    version = put.skeleton["channel_versions"]["value"]
    assert setting.standby.blob("a", "", "value", version) == put.values["value"]
    assert setting.standby.blob("b", "", "value", version) is None


def test_least_recently_used_threads_leave_when_there_are_too_many_bytes() -> None:
    setting = Setting(max_bytes=48_000)
    setting.write("a", "b", "c")
    assert setting.warm() == ["a", "b", "c"]
    setting.write("d")
    assert setting.warm() == ["b", "c", "d"]
    assert setting.standby.size <= 48_000
    with pytest.raises(CheckpointUnavailableError):
        setting.standby.get_tuple(config_of("a"))


def test_thread_that_is_too_large_by_itself_keeps_its_newest_checkpoints() -> None:
    setting = Setting(max_bytes=48_000)
    setting.write("b", "a")
    inner = Author("a", "inner:4ab3", setting.serializer)
    setting.standby.apply(inner.put({"value": 1}))
    for turn in range(5):
        setting.write("a", value=["x" * 10_000, turn])
        setting.standby.apply(setting.author("a").writes(("n", turn)))
        assert values_of(setting.standby, "a")["value"] == ["x" * 10_000, turn]
        assert setting.standby.size <= 48_000
    found = setting.standby.get_tuple(config_of("a"))
    assert found is not None
    assert found.pending_writes == [("task", "n", 4)]
    assert setting.standby.get_tuple(config_of("a", "inner:4ab3")) is not None
    assert setting.warm() == ["a"]
    with pytest.raises(CheckpointUnavailableError):
        setting.standby.history(config_of("a"), EVERYTHING)
    with pytest.raises(CheckpointUnavailableError):
        setting.standby.get_tuple(config_of("a", "", "an-older-one"))
    assert setting.standby.size == sum(thread.size for thread in setting.standby._threads.values())
    setting.standby.forget("a")
    assert setting.standby.size == 0


def test_history_of_a_delta_channel_that_was_read_stays_with_the_newest_checkpoint() -> None:
    setting = Setting(max_bytes=48_000)
    for turn in range(4):
        setting.write("a", value=["x" * 10_000, turn])
        read = config_of("a", "", setting.author("a").head)
        setting.standby.warm_history(read, {"log": {"writes": [("t", "log", turn)]}})
    assert setting.standby.delta_history(config_of("a"), ["log"]) == {"log": {"writes": [("t", "log", 3)]}}
    assert len(setting.standby._threads["a"].store._histories) < 4


@pytest.mark.parametrize("how", ["read", "history"])
def test_bytes_of_what_a_question_taught_are_counted(how: str) -> None:
    setting = Setting()
    put = setting.author("a").put({"value": 1})
    setting.standby.apply(put)
    asked = config_of("a", "worker:4ab3")
    asked["configurable"]["checkpoint_map"] = {"": put.checkpoint_id}
    before = setting.standby.size
    if how == "read":
        assert setting.standby.get_tuple(asked) is None
    else:
        assert [*setting.standby.history(asked, EVERYTHING)] == []
    assert setting.standby.size == setting.standby._threads["a"].size > before


def test_bytes_of_what_is_replaced_are_not_counted_twice() -> None:
    setting = Setting()
    put, asked = setting.author("a").put({"value": 1}), setting.author("a").writes((INTERRUPT, BIG))
    sizes = []
    for _ in range(2):
        setting.standby.apply(put)
        setting.standby.apply(asked)
        sizes.append(setting.standby.size)
    assert sizes[0] == sizes[1] > len(BIG[0])


async def test_bytes_that_are_counted_are_those_that_small_threads_take() -> None:
    setting = Setting()
    for thread_id in ("warm", "up"):
        setting.write(thread_id, value=["hello"])
    gc.collect()
    tracemalloc.start()
    try:
        before, counted = tracemalloc.get_traced_memory()[0], setting.standby.size
        for number in range(300):
            author = Author(f"thread-{number}", serializer=setting.serializer)
            for step in range(3):
                setting.standby.apply(author.put({"value": ["hello", step]}))
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.7 < (setting.standby.size - counted) / taken < 1.5


@pytest.mark.parametrize("use", ["read", "write", "warm", "history", "writes"])
def test_every_use_keeps_a_thread(use: str) -> None:
    setting = Setting(max_bytes=48_000)
    setting.write("a", "b", "c")
    if use == "read":
        values_of(setting.standby, "a")
    elif use == "write":
        setting.write("a", value=1)
    elif use == "warm":
        setting.standby.warm(config_of("a"), setting.standby.get_tuple(config_of("a")))
    elif use == "history":
        setting.standby.warm_history(config_of("a", "", "c"), {"log": {"writes": []}})
    else:
        setting.standby.apply(setting.author("a").writes(("n", 1)))
    setting.write("d")
    assert setting.warm() == ["a", "c", "d"]


def test_thread_that_the_journal_holds_never_leaves() -> None:
    setting = Setting(max_bytes=32_000)
    setting.pinned |= {"a", "b", "c"}
    setting.write("a", "b", "c")
    assert setting.warm() == ["a", "b", "c"]
    assert setting.standby.size > 25_000, "pinned threads may exceed the bound"
    setting.write("d")
    assert setting.warm() == ["a", "b", "c"]
    setting.release("a", "b", "c")
    assert setting.warm() == ["b", "c"], "more than there is room for leaves at once"
    setting.write("e")
    assert setting.warm() == ["c", "e"]
    assert setting.standby.size <= 32_000
    setting.release("cold")


def test_room_is_made_without_asking_again_about_threads_that_cannot_leave() -> None:
    setting = Setting(max_bytes=32_000)
    names = [f"held-{number}" for number in range(50)]
    setting.pinned |= {*names}
    setting.write(*names)
    asked: list[str] = []

    def pinned(thread_id: str) -> bool:
        asked.append(thread_id)
        return thread_id in setting.pinned

    setting.standby._pinned = pinned
    for number in range(20):
        setting.write(f"other-{number}")
    assert len(asked) <= 20 + 2
    setting.write("held-7")
    assert "held-7" in setting.warm()
    setting.release(*names)
    assert setting.warm() == ["held-48", "held-49"]


def test_checkpoint_that_is_on_its_way_makes_no_cold_thread_known() -> None:
    """Else a thread that is new would not be taken for new."""
    setting = Setting()
    setting.standby.note_own(setting.author("a").put({"n": 1}))
    assert not setting.standby.knows("a")


def test_writes_that_were_refused_are_not_on_their_way_any_more() -> None:
    setting = Setting()
    put = setting.author("a").put({"n": 1})
    writes = setting.author("a").writes(("value", 1))
    setting.standby.note_own(writes)
    setting.standby.note_refused(writes)
    assert not setting.standby.knows("a")
    setting.standby.apply(put)
    thread = setting.standby._threads["a"]
    for settle in (setting.standby.note_refused, setting.standby.apply):
        setting.standby.note_own(writes)
        assert sum(thread.authorship._on_their_way.values()) == 1
        settle(writes)
        assert not thread.authorship._on_their_way


def test_what_a_read_brings_is_not_kept_if_a_question_was_answered_meanwhile() -> None:
    setting = Setting()
    setting.write("a")
    for written, is_stale in (("value", False), (RESUME, True)):
        watch = setting.standby.watch("a")
        setting.standby.apply(setting.author("a").writes((written, 1)))
        assert watch.is_stale is is_stale


async def test_memory_as_the_primary_leaves_no_trace_in_the_warm_copy_that_it_does_not_need() -> None:
    async with opened(create_memory_checkpointer()) as manager:
        thread = Thread(saver_of(manager), manager.create_thread_config("a", new=True)["configurable"]["thread_id"])
        for _ in range(3):
            await thread.put()
            await thread.put_writes("task")
        warm = manager.components.engine._standby._threads["a"]
        assert (len(warm.authorship.own), len(warm.authorship._on_their_way)) == (0, 0)


def test_answer_that_cannot_be_held_makes_its_thread_cold_and_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("enhanced_checkpointing.standby.cache.TOLD_REMEMBERED", 2)
    warnings: list[str] = []
    setting = Setting()
    setting.standby._warn = warnings.append
    setting.write("a", "other")
    found = setting.standby.get_tuple(config_of("a"))
    assert found is not None
    large = found._replace(checkpoint={**found.checkpoint, "id": "later"}, metadata={**found.metadata, "n": object()})  # type: ignore[typeddict-unknown-key]
    before = setting.standby.size
    for _ in range(3):
        setting.standby.warm(config_of("a"), large)
        assert setting.warm() == ["other"]
        assert setting.standby.size < before
    assert len(warnings) == 1
    assert "'a' cannot be kept warm" in warnings[0]
    for name in ("b", "c", "a"):
        setting.standby.warm(config_of(name), large._replace(config=config_of(name)))
    assert len(warnings) == 4, "of the last two it is remembered"
    setting.standby.forget("other")
    assert setting.standby.size == 0


def test_history_that_cannot_be_held_makes_its_thread_cold() -> None:
    setting = Setting()
    setting.write("a", "other")
    found = {"log": DeltaChannelHistory(writes=[], seed=2**70)}
    setting.standby.warm_history(config_of("a", checkpoint_id="some"), found)
    assert setting.warm() == ["other"]


def listing(setting: Setting, thread_id: str, **metadata: object) -> list[CheckpointTuple]:
    """What the primary would list of a thread that went on elsewhere."""
    found = setting.standby.get_tuple(config_of(thread_id))
    assert found is not None
    later = found.checkpoint | {"id": f"{found.checkpoint['id']}-later"}
    return [found._replace(checkpoint=later, metadata={**found.metadata, **metadata}), found]  # type: ignore[typeddict-item]  # more metadata


def test_listing_of_a_cold_thread_leaves_it_cold() -> None:
    setting = Setting()
    setting.write("a")
    setting.standby.warm_listing(config_of("cold"), listing(setting, "a"), newest=True, whole=True)
    assert not setting.standby.knows("cold")


def test_listing_that_cannot_be_held_makes_its_thread_cold() -> None:
    setting = Setting()
    setting.write("a", "other")
    setting.standby.warm_listing(config_of("a"), listing(setting, "a", n=object()), newest=True, whole=True)
    assert setting.warm() == ["other"]


@pytest.mark.parametrize("overtaken", [False, True])
@pytest.mark.parametrize("how", ["read", "listing"])
def test_thread_that_the_primary_says_is_gone_is_forgotten_unless_something_was_acknowledged_meanwhile(
    how: str, overtaken: bool
) -> None:
    setting = Setting()
    setting.write("a", "other")
    watch = setting.standby.watch("a")
    if overtaken:
        setting.write("a", value=2)
    assert watch.overtaken_in == ({""} if overtaken else set())
    if how == "read":
        setting.standby.warm(config_of("a"), None)
    else:
        setting.standby.warm_listing(config_of("a"), [], newest=True, whole=True)
    if overtaken:
        assert values_of(setting.standby, "a") == {"value": 2}
    elif how == "read":
        assert setting.standby.get_tuple(config_of("a")) is None
    else:
        assert setting.warm() == ["other"]


@pytest.mark.parametrize("how", ["read", "listing"])
def test_subgraph_of_ours_that_was_acknowledged_since_a_read_was_begun_is_not_doubted_for_it(how: str) -> None:
    setting = Setting()
    setting.write("elsewhere")
    found = setting.standby.get_tuple(config_of("elsewhere"))
    assert found is not None
    read = found._replace(config=config_of("a", "", found.checkpoint["id"]))
    watch = setting.standby.watch("a")
    setting.standby.note_empty("a", "")
    for number, namespace in enumerate(("before", "since")):
        if number:
            watch.overtaken_in.clear()
        setting.standby.apply(Author("a", namespace, setting.serializer).put({"value": 1}))
    if how == "read":
        setting.standby.warm(config_of("a"), read)
    else:
        setting.standby.warm_listing(config_of("a"), [read], newest=True, whole=True)
    assert setting.standby.get_tuple(config_of("a", "since")) is not None
    with pytest.raises(CheckpointUnavailableError):
        setting.standby.get_tuple(config_of("a", "before"))


def test_subgraph_that_is_said_to_be_gone_makes_its_thread_cold_but_for_that() -> None:
    setting = Setting()
    setting.write("a")
    setting.standby.apply(Author("a", "inner:4ab3", setting.serializer).put({"value": 1}))
    setting.standby.warm(config_of("a", "inner:4ab3"), None)
    assert setting.standby.get_tuple(config_of("a", "inner:4ab3")) is None
    with pytest.raises(CheckpointUnavailableError):
        setting.standby.get_tuple(config_of("a"))


def test_thread_in_doubt_shows_its_newest_checkpoint_and_no_history() -> None:
    setting = Setting()
    setting.standby.note_empty("a", "")
    setting.standby.note_empty("blank", "")
    setting.standby.note_empty("a", "inner:4ab3")
    setting.write("a")
    assert len([*setting.standby.history(config_of("a"), EVERYTHING)]) == 1
    for thread_id in ("a", "blank", "cold"):
        setting.standby.doubt(thread_id)
    assert values_of(setting.standby, "a") == {"value": BIG}
    with pytest.raises(CheckpointUnavailableError):
        setting.standby.history(config_of("a"), EVERYTHING)
    assert not setting.standby.knows("blank")
    assert setting.standby.size == setting.standby._threads["a"].size


def test_metadata_that_was_changed_at_the_primary_is_changed_here() -> None:
    setting = Setting()
    setting.write("a")
    for thread_id in ("a", "cold"):
        setting.standby.annotate(thread_id, {"thread_status": "completed"})
    setting.standby.note_empty("empty", "")
    setting.standby.annotate("empty", {"thread_status": "completed"})
    found = setting.standby.get_tuple(config_of("a"))
    assert found is not None
    assert (found.metadata["step"], found.metadata["thread_status"]) == (1, "completed")  # type: ignore[typeddict-item]  # a mark
    assert setting.standby.get_tuple(config_of("empty")) is None
    assert not setting.standby.knows("cold")
    assert setting.standby.size == sum(thread.size for thread in setting.standby._threads.values())


def test_single_thread_that_is_too_large_leaves_too() -> None:
    setting = Setting(max_bytes=5_000)
    setting.write("a")
    assert setting.warm() == []
    assert setting.standby.size == 0


def test_bound_of_zero_keeps_nothing_but_what_is_pinned() -> None:
    setting = Setting(max_bytes=0)
    setting.pinned.add("held")
    setting.write("held", "other")
    setting.standby.note_empty("empty", "")
    assert setting.warm() == ["held"]
    assert setting.standby.size == setting.standby._threads["held"].size
    assert len(setting.standby) == 1
    assert setting.standby.get_tuple(config_of("empty")) is None


def test_thread_without_room_that_is_known_to_be_empty_can_be_asked_and_begun() -> None:
    setting = Setting(max_bytes=0)
    setting.standby.note_empty("new", "")
    assert len(setting.standby) == 0
    assert setting.standby.knows("new")
    assert setting.standby.get_tuple(config_of("new")) is None
    assert [*setting.standby.history(config_of("new"), EVERYTHING)] == []
    setting.pinned.add("new")
    put = setting.author("new").put({"value": BIG})
    assert setting.standby.base_head(put) is None
    setting.standby.apply(put)
    assert values_of(setting.standby, "new") == {"value": BIG}
    assert len([*setting.standby.history(config_of("new"), EVERYTHING)]) == 1, "it is known from its beginning"


@pytest.mark.parametrize("how", ["by itself", "with others", "with all", "deleted and begun"])
def test_empty_thread_that_is_forgotten_is_not_known_any_more(how: str) -> None:
    setting = Setting(max_bytes=0)
    setting.standby.note_empty("new", "")
    if how == "by itself":
        setting.standby.forget("new")
    elif how == "deleted and begun":
        setting.write("new")  # too large to stay, and not empty any more
    else:
        setting.standby.forget_all(["new"] if how == "with others" else None)
    assert not setting.standby.knows("new")
    with pytest.raises(CheckpointUnavailableError):
        setting.standby.get_tuple(config_of("new"))


def test_empty_threads_are_remembered_up_to_a_number_the_least_recently_asked_leave_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("enhanced_checkpointing.standby.cache.EMPTY_REMEMBERED", 3)
    standby = Setting(max_bytes=0).standby
    for name in ("a", "b", "c"):
        standby.note_empty(name, "")
    standby.get_tuple(config_of("a"))
    standby.note_empty("d", "")
    assert [name for name in ("a", "b", "c", "d") if standby.knows(name)] == ["a", "c", "d"]


def test_part_of_a_thread_that_is_empty_does_not_make_it_an_empty_thread() -> None:
    standby = Setting(max_bytes=0).standby
    standby.note_empty("a", "child")
    assert not standby.knows("a")


def test_threads_that_wait_in_the_journal_and_need_more_room_than_there_is_are_warned_of_once() -> None:
    warnings: list[str] = []
    setting = Setting(max_bytes=32_000)
    setting.standby._warn = warnings.append
    setting.write("other")
    setting.pinned |= {"a", "b", "c", "d"}
    setting.write("a", "b")
    assert warnings == []
    setting.write("c", "d")
    assert len(warnings) == 1
    assert "CHECKPOINT_STANDBY_MAX_BYTES" in warnings[0]
    setting.release("a", "b", "c", "d")
    setting.write("e")
    setting.pinned |= {"a", "b", "c", "d", "e"}
    setting.write("a", "b", "c")
    assert len(warnings) == 2, "another time"
    assert Setting(max_bytes=0).standby._warn("nobody listens") is None


def test_size_is_the_sum_of_what_is_warm_and_nothing_when_all_is_forgotten() -> None:
    setting = Setting()
    for thread_id in ("a", "b"):
        setting.write(thread_id)
        setting.standby.apply(setting.author(thread_id).writes(("n", BIG)))
        setting.standby.warm_history(config_of(thread_id, "", "c"), {"log": {"writes": [("t", "log", BIG)]}})
        setting.standby.warm(config_of(thread_id), setting.standby.get_tuple(config_of(thread_id)))
    both = setting.standby.size
    assert 60_000 < both < 80_000
    setting.standby.forget("a")
    assert setting.standby.size == both // 2
    setting.standby.forget("a")
    setting.standby.forget("b")
    assert (setting.standby.size, len(setting.standby)) == (0, 0)


def test_forgetting_after_maintenance_leaves_pinned_threads() -> None:
    setting = Setting()
    setting.pinned.add("held")
    setting.write("a", "b", "held")
    setting.standby.forget_all(["a", "held", "cold"])
    assert setting.warm() == ["b", "held"]
    setting.standby.forget_all(None)
    assert setting.warm() == ["held"]


@pytest.mark.parametrize("change", ["leaves for others", "is deleted", "is forgotten", "is forgotten with all others"])
def test_answer_that_is_on_its_way_while_its_thread_is_dropped_is_stale(change: str) -> None:
    setting = Setting(max_bytes=5_000)
    watch, other = setting.standby.watch("a"), setting.standby.watch("other")
    assert setting.standby.watch("a") is watch
    if change == "leaves for others":
        setting.write("a")  # too large: it is dropped at once, so that the thread is as cold as before
    elif change == "is deleted":
        setting.standby.apply(DeleteThread("a"))
    else:
        setting.standby.forget_all(["a"] if change == "is forgotten" else None)
    assert watch.is_stale
    assert other.is_stale == (change == "is forgotten with all others")
    assert not setting.standby.watch("a").is_stale, "the next read sees what is true now"


def test_what_was_read_before_the_allow_list_was_widened_is_cold_and_what_was_written_here_is_not() -> None:
    setting = Setting()
    setting.serializer.inner = JsonPlusSerializer(allowed_msgpack_modules=None)
    mode, pinned = Mode.FAST, "in an outage"
    for thread_id in ("read", "own", pinned, "on its way"):
        put = setting.author(thread_id).put({"mode": mode})
        version = put.new_versions["mode"]
        if thread_id == "own":
            setting.standby.apply(put)
            continue
        primary = InMemorySaver(serde=setting.serializer)
        primary.put(put.config(), put.checkpoint({"mode": mode}), put.metadata, put.new_versions)
        found = primary.get_tuple(config_of(thread_id))
        watch = setting.standby.watch(thread_id)
        if thread_id != "on its way":
            setting.standby.warm(config_of(thread_id), found)
    setting.pinned.add(pinned)
    setting.write(pinned, value=mode)
    assert not watch.is_stale
    assert values_of(setting.standby, "read") != {"mode": mode}
    assert setting.standby.blob("read", "", "mode", version) is not None
    widen_allowlist(setting.serializer, [(__name__, "Mode")])
    assert watch.is_stale, "its answer has plain data, too"
    assert values_of(setting.standby, "own") == {"mode": mode}
    for thread_id in ("read", pinned):
        assert setting.standby.blob(thread_id, "", "mode", version) is None, "what is put next is not made of it"
        with pytest.raises(CheckpointUnavailableError):
            setting.standby.get_tuple(config_of(thread_id))
    assert not setting.standby.knows("read")
    assert setting.standby.knows(pinned), "what it grows from is still known"
    widen_allowlist(setting.serializer, [(__name__, "Mode")])
    assert values_of(setting.standby, "own") == {"mode": mode}
