"""Ids that are no texts, or texts that some database would change: the same text everywhere, or one error."""

from __future__ import annotations

import asyncio
import enum
import uuid
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint
from langgraph.checkpoint.base.id import uuid6

from enhanced_checkpointing.errors import InvalidIdError
from enhanced_checkpointing.identifiers import LONGEST_ID, text_of
from tests.support.backends import BACKENDS
from tests.support.checkpointer import Switched, recovered, saver_of, switched
from tests.support.graphs import counting_chain
from tests.support.terminal import command

EVERY_BACKEND = pytest.mark.parametrize("name", BACKENDS)


class Tenant(str, enum.Enum):  # noqa: UP042  # as applications wrote it before StrEnum: its str() is "Tenant.ADA"
    ADA = "ada"


class Number(int, enum.Enum):
    SEVEN = 7


class Loud(str):
    """Says something else than it is."""

    __slots__ = ()

    def __str__(self) -> str:
        return "LOUD"


ONE = uuid.UUID(int=1)
texts = st.text(max_size=8) | st.text(st.sampled_from("a\0\ud800é"), max_size=4)
ids = st.one_of(
    texts,
    texts.map(Loud),
    st.uuids(),
    st.integers() | st.just(2**70),
    st.sampled_from([*Tenant, *Number, True, 1.0, b"a", [], {}, ("a",), object(), Path("a")]),
    st.sampled_from(["", "a" * LONGEST_ID, "é" * (LONGEST_ID // 2), "a" * (LONGEST_ID + 1), "é" * LONGEST_ID]),
)
"""Ids as people give them; a long one is such that PostgreSQL can compress it, as it could not keep it otherwise."""


@pytest.mark.parametrize(
    ("given_id", "text"),
    [
        ("", ""),
        ("é", "é"),
        (ONE, str(ONE)),
        (7, "7"),
        (Tenant.ADA, "ada"),
        (Number.SEVEN, "7"),
        (Loud("quiet"), "quiet"),
        ("a" * LONGEST_ID, "a" * LONGEST_ID),
    ],
)
def test_id_stands_for_one_text(given_id: object, text: str) -> None:
    found = text_of(given_id, "thread_id")
    assert type(found) is str
    assert found == text


@pytest.mark.parametrize(
    ("given_id", "why"),
    [
        ("a\0b", "contains a NUL"),
        ("a\ud800", "half of a character"),
        ("é" * LONGEST_ID, "8,192 bytes"),
        (Loud("\0"), "contains a NUL"),
        *((value, "is of type") for value in (None, True, 1.0, b"a", [], {}, object(), Path("a"))),
    ],
)
def test_id_that_stands_for_none_is_refused_in_few_words(given_id: object, why: str) -> None:
    with pytest.raises(InvalidIdError, match=rf"^user_id .*{why}.*Nothing was read or written") as refused:
        text_of(given_id, "user_id")
    assert len(str(refused.value)) < 400


def configurable(thread_id: Any, **others: Any) -> Any:
    return {"configurable": {"thread_id": thread_id, **others}}


def stored_user(user_id: Any) -> object:
    """What stands in the metadata: a number stays one, as the official savers store it."""
    return user_id if type(user_id) is int and -(2**63) <= user_id < 2**64 else text_of(user_id, "")


async def lives(saver: BaseCheckpointSaver[str], thread_id: Any, namespace: Any, user_id: Any) -> None:
    """A checkpoint is stored, read, listed, written to, found and deleted under the text of each id."""
    text = text_of(thread_id, "")
    checkpoint = empty_checkpoint()
    checkpoint["id"] = cast("str", uuid6())
    config = configurable(thread_id, checkpoint_ns=namespace, user_id=user_id)
    stored = await saver.aput(config, checkpoint, {"source": "loop", "step": 1}, {})
    of_namespace = "" if namespace is None else text_of(namespace, "")
    assert stored == configurable(text, checkpoint_ns=of_namespace, checkpoint_id=str(checkpoint["id"]))
    named = configurable(thread_id, checkpoint_ns=namespace, checkpoint_id=checkpoint["id"])
    await saver.aput_writes(named, [("channel", 1)], "task")
    for asked in (config, named):
        found = await saver.aget_tuple(asked)
        assert found is not None
        assert found.config["configurable"] | {"user_id": None} == stored["configurable"] | {"user_id": None}
        assert found.pending_writes == [("task", "channel", 1)]
        assert found.metadata.get("user_id") == stored_user(user_id)
        assert [one.config async for one in saver.alist(asked)] == [stored]
        assert await saver.aget_delta_channel_history(config=asked, channels=["channel"]) == {"channel": {"writes": []}}
    before = configurable(thread_id, checkpoint_id=uuid.UUID(str(checkpoint["id"])))
    assert [one async for one in saver.alist(config, before=before)] == []


async def check(on: Switched, ids_given: tuple[Any, Any, Any], *, healthy: bool) -> None:
    manager, saver = on.manager, saver_of(on.manager)
    thread_id, namespace, user_id = ids_given
    try:
        thread, _, user = text_of(thread_id, ""), text_of("" if namespace is None else namespace, ""), user_id
        text_of(user, "")
    except InvalidIdError:
        config = configurable(thread_id, checkpoint_ns=namespace, user_id=user_id)
        with pytest.raises(InvalidIdError):
            await lives(saver, *ids_given)
        for refused in (saver.aget_tuple(config), saver.aput_writes(config, [], "task"), anext(saver.alist(config))):
            with pytest.raises(InvalidIdError):
                await refused
        return
    await lives(saver, *ids_given)
    named = manager.create_thread_config(thread_id, user_id=user_id)["configurable"]
    assert (named["thread_id"], named["user_id"]) == (thread, stored_user(user_id))
    if healthy:
        entry = await manager.get_thread(thread_id)
        assert entry is not None
        assert entry["thread_id"] == thread
        if not namespace:
            assert entry["user_id"] == text_of(user_id, "")
            listed = await manager.list_threads(user_id=user_id, limit=1000)
            assert [one["thread_id"] for one in listed] == [thread]
    await saver.adelete_thread(thread_id)


@EVERY_BACKEND
def test_any_id_is_the_same_text_for_saver_and_manager_or_the_same_error(
    name: str, database_url: str, tmp_path: Path
) -> None:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        on = runner.run(
            stack.enter_async_context(switched(name, database_url, tmp_path / "one.sqlite", journal="memory"))
        )

        def examples(*, healthy: bool) -> None:
            @settings(max_examples=30, deadline=None, suppress_health_check=[*HealthCheck])
            @example((ONE, None, ONE))
            @example((Tenant.ADA, None, Tenant.ADA))
            @example((Number.SEVEN, "child:1", Number.SEVEN))
            @example(("a" * LONGEST_ID, "", "a" * LONGEST_ID))
            @example(("a", None, "a\ud800da"))
            @example(("a", None, "a\0da"))
            @given(st.tuples(ids, st.none() | ids, ids))
            def one_after_the_other(ids_given: tuple[Any, Any, Any]) -> None:
                runner.run(check(on, ids_given, healthy=healthy))

            one_after_the_other()

        try:
            examples(healthy=True)
            runner.run(on.off())
            examples(healthy=False)
            runner.run(on.on())
            runner.run(recovered(on.manager))
            assert runner.run(on.manager.list_threads()) == []
        finally:
            runner.run(stack.aclose())


@EVERY_BACKEND
async def test_method_of_the_manager_refuses_what_is_no_id_and_takes_what_is_one(
    name: str, database_url: str, tmp_path: Path
) -> None:
    async with switched(name, database_url, tmp_path / "one.sqlite") as on:
        manager = on.manager
        graph = counting_chain().compile(checkpointer=saver_of(manager))
        await graph.ainvoke({"question": "why"}, manager.create_thread_config(cast("str", ONE), user_id="ada"))
        for odd in ("a\ud800da", "a\0da", "é" * LONGEST_ID, cast("str", b"ada")):
            for refused in (
                manager.list_threads(user_id=odd),
                manager.list_threads(before=odd),
                manager.get_thread(odd),
                manager.delete_thread(odd),
                manager.copy_thread(odd),
                manager.copy_thread("a", odd),
                manager.mark_completed(odd),
                manager.prune([odd]),
                manager.delete_for_runs([odd]),
            ):
                with pytest.raises(InvalidIdError):
                    await refused
            with pytest.raises(InvalidIdError):
                manager.create_thread_config(odd)
            with pytest.raises(InvalidIdError):
                manager.create_thread_config("a", user_id=odd)
        assert [one["thread_id"] for one in await manager.list_threads(user_id="ada")] == [str(ONE)]
        one = cast("str", ONE)
        await manager.mark_completed(one)
        await manager.prune([one])
        assert await manager.copy_thread(one, cast("str", Tenant.ADA)) == "ada"
        assert await manager.delete_thread(one)
        assert [one["thread_id"] for one in await manager.list_threads(user_id="ada")] == ["ada"]


def test_command_refuses_what_is_no_id_as_the_saver_does(tmp_path: Path) -> None:
    database = ("--sqlite", tmp_path / "one.sqlite")
    assert command("setup", *database).code == 0
    for odd, why in (("a\udcff", "half of a character"), ("a" * (LONGEST_ID + 1), "takes 4,097 bytes")):
        for arguments in (
            ("threads", "list", "--user", odd, *database),
            ("threads", "show", odd, *database),
            ("threads", "show", "a", "--namespace", odd, *database),
            ("threads", "history", odd, *database),
            ("threads", "diff", odd, *database),
            ("threads", "delete", "a", odd, *database),
            ("threads", "copy", "a", odd, *database),
            ("threads", "prune", odd, *database),
            ("journal", "retry", odd, *database, "--journal-dir", tmp_path),
            ("export", f"sqlite:///{tmp_path / 'one.sqlite'}", tmp_path / "out", "--thread", odd),
        ):
            ended = command(*arguments)
            assert ended.code == 2, (arguments, ended)
            assert why in ended.err, (arguments, ended)
            assert len(ended.err) < 500
