"""A listing in an outage selects what the database selects, and raises what it raises: FAULTS row 59."""

from __future__ import annotations

import asyncio
import enum
import itertools
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointMetadata, CheckpointTuple

from enhanced_checkpointing.backends import base as selection
from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.backends.postgres.saver import selection as postgres_selection
from enhanced_checkpointing.errors import CheckpointUnavailableError
from enhanced_checkpointing.standby.cache import Standby
from tests.support.backends import BACKENDS, checkpoint_id, config_of, opened_backend, put
from tests.support.checkpointer import recovered, saver_of, switched
from tests.support.checkpoints import Thread


class Mode(str, enum.Enum):  # noqa: UP042  # as most applications write it
    FAST = "fast"


EVERY_BACKEND = pytest.mark.parametrize("name", BACKENDS)
KEYS = st.sampled_from(["a", "b", "a.b", "a b", 'a"b', "a'b", "a[0]", "é", "", "a-b", "$", "#", "a\n", "1"])
NUMBERS = st.sampled_from(
    [0, 1, 2, -1, 0.0, -0.0, 1.0, 0.1, 1e16, 1e17, 10**17, 2**53 + 1, 2.0**53, 1e-7, 2**63, 2**64]
)
TEXTS = st.sampled_from(["", "a", "1", "1.0", "true", "null", "é", "\0", "\ud800", "fast", "[1]", '{"a":1}'])
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS | st.sampled_from([Mode.FAST, float("nan"), float("inf")])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(KEYS, inner, max_size=2),
    max_leaves=4,
)
METADATA = st.dictionaries(KEYS, VALUES, max_size=3)
ODD = st.sampled_from([[1], "a", {1: 1}, {"a": {1}}, {"a": object()}, {"a": 2**70}, {"a": b"a"}])
BEFORE = st.none() | st.sampled_from(
    [{}, {"configurable": {}}, *({"configurable": {"checkpoint_id": one}} for one in (None, "", checkpoint_id(1)))]
)
LIMITS = st.sampled_from([0, 1, 2, -1, -5, True, 1.0, 1.5, "1", "a", 2**63, 2**70])
QUESTIONS = st.one_of(
    st.tuples(st.none() | METADATA, BEFORE, st.none() | st.integers(0, 3)),
    st.tuples(ODD, st.none(), st.none()),  # of two things that are wrong, the one that is met first is told
    st.tuples(st.none(), st.none(), LIMITS),
)
"""Filter, before and limit."""


async def outcome(listing: Any) -> Any:
    """The ids that are listed; or what is said instead, in which place and words are no part of the rule."""
    try:
        return [found.checkpoint["id"] for found in await listing]
    except Exception as error:  # noqa: BLE001  # which one it is, is what this is about
        return type(error)


async def check(backend: Backend, thread_id: str, metadata: list[dict[str, Any]], **arguments: Any) -> None:
    """Ask the database, and the warm copy of what it took, the same question."""
    config: RunnableConfig = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
    standby = Standby(backend.serializer, 10_000_000, lambda _: False)
    standby.note_empty(thread_id, "")
    for number, one in enumerate(metadata):
        operation = put(thread_id, number)
        accepted = {key: text.replace("\0", "") if isinstance(text, str) else text for key, text in one.items()}
        operation.metadata = cast("CheckpointMetadata", accepted)  # LangGraph leaves NUL out before any saver sees it
        try:
            await backend.apply(operation)
        except Exception:  # noqa: BLE001, S112  # what the database refuses, nobody lists
            continue
        operation.metadata = backend.form_of_metadata(operation.metadata)
        try:
            standby.apply(operation)
        except Exception:  # noqa: BLE001  # it is told, and the thread is cold then
            return

    async def of_primary(saver: BaseCheckpointSaver[Any]) -> list[CheckpointTuple]:
        return [found async for found in saver.alist(config, **arguments)]

    async def of_standby() -> list[CheckpointTuple]:
        taken = backend.selection(arguments["filter"], arguments["before"], arguments["limit"])
        return [found for found in standby.history(config, taken) if found is not None]

    assert await outcome(of_standby()) == await outcome(backend.ask(of_primary)), (metadata, arguments)


@EVERY_BACKEND
def test_listing_of_the_warm_copy_selects_what_the_database_selects(
    name: str, database_url: str, tmp_path: Path
) -> None:
    numbers = itertools.count()
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        backend = runner.run(stack.enter_async_context(opened_backend(config_of(name, database_url, tmp_path))))

        @settings(max_examples=80, deadline=None, suppress_health_check=[*HealthCheck])
        @example([{"a": 1}, {"a": True}, {"a": None}, {}], ({"a": None}, None, None))
        @example([{"a": 1}, {"a": True}, {"a": 1.0}, {"a": "1"}], ({"a": 1}, None, None))
        @example([{"a": 1}, {"a": True}, {"a": 1.0}], ({"a": True}, None, None))
        @example([{"a": [1, {"b": 2, "a": 1}]}, {"a": [1]}, {"a": 1}], ({"a": [{"b": 2}]}, None, None))
        @example([{"a": {"b": 1}}, {"a.b": 1}, {"a b": 1}], ({"a.b": 1}, None, None))
        @example([{"a": 1}] * 3, ({"a b": 1}, None, None))
        @example([{"a": 1}] * 3, (None, {"configurable": {}}, None))
        @example([{"a": 1}] * 3, (None, None, -1))
        @example([{"a": 1e17}, {"a": 10**17}, {"a": "fast"}], ({"a": Mode.FAST}, None, None))
        @given(st.lists(METADATA, max_size=3), QUESTIONS)
        def examples(metadata: list[dict[str, Any]], asked: tuple[Any, Any, Any]) -> None:
            arguments = dict(zip(("filter", "before", "limit"), asked, strict=True))
            runner.run(check(backend, f"thread-{next(numbers)}", metadata, **arguments))

        @settings(max_examples=40, deadline=None, suppress_health_check=[*HealthCheck])
        @given(st.data())
        def what_is_there(data: st.DataObject) -> None:
            """Filters that mostly match something: parts of the metadata itself."""
            metadata = data.draw(st.lists(METADATA, min_size=1, max_size=3))
            whole = data.draw(st.sampled_from(metadata))
            keys = data.draw(st.sets(st.sampled_from(sorted(whole)), max_size=2)) if whole else ()
            filter = {key: whole[key] for key in keys}
            runner.run(check(backend, f"thread-{next(numbers)}", metadata, filter=filter, before=None, limit=None))

        try:
            examples()
            what_is_there()
        finally:
            runner.run(stack.aclose())


@EVERY_BACKEND
async def test_filters_and_limits_mean_in_an_outage_what_they_mean_before_and_after(
    name: str, database_url: str, tmp_path: Path
) -> None:
    questions: list[dict[str, Any]] = [
        {"filter": {"tags": {"a": 1}}},
        {"filter": {"done": None}},
        {"filter": {"done": True}},
        {"filter": {"done": 1}},
        {"filter": {"no such": 1}},
        {"before": {"configurable": {}}},
        {"limit": 1},
        {"limit": 0},
        {"limit": -1},
        {"limit": "many"},
    ]
    async with switched(name, database_url, tmp_path / "one.sqlite") as on:
        saver = saver_of(on.manager)
        thread = Thread(saver, "filtered")
        assert await saver.aget_tuple(thread.config) is None

        async def answers() -> list[Any]:
            async def ask(question: dict[str, Any]) -> list[CheckpointTuple]:
                return [found async for found in saver.alist(thread.config, **question)]

            return [await outcome(ask(question)) for question in questions]

        await thread.put(tags={"a": 1, "b": 2}, done=True)
        await thread.put(tags={"a": 2}, done=1)
        await thread.put(done=None)
        await on.off()
        await thread.put(tags=["a"])
        answered = await answers()
        await on.on()
        await recovered(on.manager)
        assert answered == await answers()


def test_rule_that_nobody_knows_is_left_to_the_primary() -> None:
    named: Any = {"configurable": {"checkpoint_id": "1"}}
    taken = selection.plain({"a": "b"}, named, 1)
    assert taken.matches({"a": "b", "c": 1})
    assert not taken.matches({"a": "c"})
    assert (taken.below("0"), taken.below("1"), taken.limit) == (True, False, 1)
    odd: list[tuple[Any, Any, Any]] = [
        ({"a": 1}, None, None),
        ({"a": None}, None, None),
        ({"a b": "c"}, None, None),
        ([1], None, None),
        (None, {"configurable": {}}, None),
        (None, None, 0),
        (None, None, -1),
    ]
    for arguments in odd:
        with pytest.raises(CheckpointUnavailableError, match="only the primary knows"):
            selection.plain(*arguments)
    with pytest.raises(CheckpointUnavailableError, match="in which order"):
        postgres_selection(None, named, None).below(checkpoint_id(1))
