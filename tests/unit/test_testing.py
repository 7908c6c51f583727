"""The parts that ship for users' own tests, first of all the way in which a user writes an outage test."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from enhanced_checkpointing import (
    CheckpointerConfigurationError,
    CheckpointerError,
    EnhancedCheckpointerManager,
    create_memory_checkpointer,
    create_sqlite_checkpointer,
    initialize_enhanced_checkpointing,
)
from enhanced_checkpointing.testing import FakeClock, FlakySaver, make_flaky
from tests.support.author import config_of
from tests.support.graphs import counting_chain

FAST: dict[str, Any] = {"deadline": 0.2, "probe_interval": 0.02, "probe_backoff_min": 0.01, "probe_backoff_max": 0.02}
DOWN = ConnectionRefusedError("the database is down")


async def test_an_application_tests_its_own_outage() -> None:
    manager = await initialize_enhanced_checkpointing(custom_config=create_memory_checkpointer(**FAST))
    primary = make_flaky(manager)
    graph = counting_chain().compile(checkpointer=manager.get_checkpointer())
    config = manager.create_thread_config()
    await graph.ainvoke({"question": "why"}, config)

    primary.fail_with(DOWN)
    during = await graph.ainvoke({"question": "what"}, config)
    assert manager.health_status["overall_status"] == "degraded"

    primary.heal()
    assert await manager.wait_drained(5)
    direct = counting_chain().compile(checkpointer=primary.inner)
    assert (await direct.aget_state(config)).values == during
    await manager.cleanup()


async def test_configuration_may_be_given_first() -> None:
    config = create_memory_checkpointer(**FAST)
    async with await initialize_enhanced_checkpointing(config, retries=1) as manager:
        assert manager.config == config.with_overrides(retries=1)
    with pytest.raises(CheckpointerConfigurationError, match="two configurations"):
        await initialize_enhanced_checkpointing(config, config)


async def test_what_was_written_before_the_primary_was_made_flaky_is_known_in_the_outage_too() -> None:
    async with EnhancedCheckpointerManager(create_memory_checkpointer(**FAST, on_unknown_thread="raise")) as manager:
        graph = counting_chain().compile(checkpointer=manager.get_checkpointer())
        config = manager.create_thread_config("one", new=True)
        before = await graph.ainvoke({"question": "why"}, config)
        history = [state async for state in graph.aget_state_history(config)]
        primary = make_flaky(manager)
        primary.fail_with(DOWN)
        assert (await graph.aget_state(config)).values == before
        assert [state async for state in graph.aget_state_history(config)] == history
        primary.heal()


async def test_primary_that_hangs_does_not_stop_the_graph_either() -> None:
    async with EnhancedCheckpointerManager(create_memory_checkpointer(**FAST)) as manager:
        primary = make_flaky(manager)
        graph = counting_chain().compile(checkpointer=manager.get_checkpointer())
        config = manager.create_thread_config()
        primary.hang()
        started_at = time.monotonic()
        during = await graph.ainvoke({"question": "why"}, config)
        assert time.monotonic() - started_at < 2.0
        primary.heal()
        assert await manager.wait_drained(5)
        direct = counting_chain().compile(checkpointer=primary.inner)
        assert (await direct.aget_state(config)).values == during


def test_program_without_a_loop_tests_its_own_outage() -> None:
    """The primary lives on the manager's loop in another thread; it fails and heals from this one."""
    with EnhancedCheckpointerManager(create_memory_checkpointer(**FAST)) as manager:
        primary = make_flaky(manager)
        graph = counting_chain().compile(checkpointer=manager.get_checkpointer())
        config = manager.create_thread_config()
        primary.hang()
        during = graph.invoke({"question": "why"}, config)
        assert manager.health_status["journal"]["pending"] > 0
        primary.heal()
        deadline = time.monotonic() + 5
        while manager.health_status["journal"]["pending"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert counting_chain().compile(checkpointer=primary.inner).get_state(config).values == during


async def test_real_connections_need_real_faults(tmp_path: Path) -> None:
    config = create_sqlite_checkpointer(tmp_path / "file.sqlite", **FAST)
    async with EnhancedCheckpointerManager(config) as manager:
        with pytest.raises(CheckpointerError, match=r"The sqlite primary .* must be real"):
            make_flaky(manager)


async def test_only_an_open_manager_has_a_primary_to_fail() -> None:
    with pytest.raises(CheckpointerError, match="not open"):
        make_flaky(EnhancedCheckpointerManager(create_memory_checkpointer()))


async def test_primary_is_made_flaky_once() -> None:
    async with EnhancedCheckpointerManager(create_memory_checkpointer(**FAST)) as manager:
        assert make_flaky(manager) is make_flaky(manager)


def test_clock_stands_still_until_it_is_advanced() -> None:
    clock = FakeClock(10.0)
    assert (clock(), clock()) == (10.0, 10.0)
    clock.advance(2.5)
    assert clock() == 12.5
    assert FakeClock()() == 0.0


class Everything(InMemorySaver):
    """A saver with the maintenance methods too; it notes their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[tuple[Any, ...]] = []

    def delete_for_runs(self, run_ids: Any) -> None:
        self.log.append(("delete_for_runs", run_ids))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        self.log.append(("copy_thread", source_thread_id, target_thread_id))

    def prune(self, thread_ids: Any, *, strategy: str = "keep_latest") -> None:
        self.log.append(("prune", thread_ids, strategy))

    async def adelete_for_runs(self, run_ids: Any) -> None:
        self.log.append(("adelete_for_runs", run_ids))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        self.log.append(("acopy_thread", source_thread_id, target_thread_id))

    async def aprune(self, thread_ids: Any, *, strategy: str = "keep_latest") -> None:
        self.log.append(("aprune", thread_ids, strategy))


class Calls:
    """One call of every method of a saver, with the arguments that LangGraph gives; what they answered, by name."""

    def __init__(self, saver: BaseCheckpointSaver[Any]) -> None:
        self.saver: Any = saver  # some methods return nothing, and that is compared too
        self.checkpoint = empty_checkpoint()
        self.config = config_of("thread", "", self.checkpoint["id"])

    async def asynchronous(self) -> dict[str, Any]:
        saver, config = self.saver, self.config
        return {
            "aput": await saver.aput(config_of("thread"), self.checkpoint, {"step": 1}, {}),
            "aput_writes": await saver.aput_writes(config, [("n", 1)], "task", "~1"),
            "aget_tuple": await saver.aget_tuple(config_of("thread")),
            "alist": [found async for found in saver.alist(config_of("thread"), filter={"step": 1}, limit=1)],
            "aget_delta_channel_history": await saver.aget_delta_channel_history(config=config, channels=["n"]),
            "adelete_for_runs": await saver.adelete_for_runs(["run"]),
            "acopy_thread": await saver.acopy_thread("thread", "copy"),
            "aprune": await saver.aprune(["thread"], strategy="delete"),
            "adelete_thread": await saver.adelete_thread("thread"),
        }

    def synchronous(self) -> dict[str, Any]:
        saver, config = self.saver, self.config
        return {
            "put": saver.put(config_of("thread"), self.checkpoint, {"step": 1}, {}),
            "put_writes": saver.put_writes(config, [("n", 1)], "task", "~1"),
            "get_tuple": saver.get_tuple(config_of("thread")),
            "list": list(saver.list(config_of("thread"), filter={"step": 1}, limit=1)),
            "get_delta_channel_history": saver.get_delta_channel_history(config=config, channels=["n"]),
            "delete_for_runs": saver.delete_for_runs(["run"]),
            "copy_thread": saver.copy_thread("thread", "copy"),
            "prune": saver.prune(["thread"], strategy="delete"),
            "delete_thread": saver.delete_thread("thread"),
        }


async def both(calls: Calls) -> dict[str, Any]:
    return await calls.asynchronous() | calls.synchronous()


async def test_every_method_does_what_the_inner_saver_does_and_is_counted() -> None:
    inner, plain = Everything(), Everything()
    flaky = FlakySaver(inner)
    direct = Calls(plain)
    through = Calls(flaky)
    through.checkpoint, through.config = direct.checkpoint, direct.config
    expected = await both(direct)
    assert await both(through) == expected
    assert inner.log == plain.log
    assert len(plain.log) == 6
    assert expected["list"]
    assert flaky.calls == dict.fromkeys(expected, 1)
    assert (inner.storage, inner.writes) == ({}, {})


def test_every_method_of_a_saver_is_written_out() -> None:
    """One that a new LangGraph adds would pass by the faults unseen, and so must be added here."""
    inherited = {"serde", "config_specs", "get", "aget"}  # the last two call get_tuple and aget_tuple
    needed = {name for name in vars(BaseCheckpointSaver) if not name.startswith("_")} - inherited
    assert needed <= vars(FlakySaver).keys()
    for name in needed:
        theirs = inspect.signature(getattr(BaseCheckpointSaver, name)).parameters
        assert list(inspect.signature(getattr(FlakySaver, name)).parameters) == list(theirs), name


METHODS = [
    "aput", "aput_writes", "aget_tuple", "alist", "aget_delta_channel_history",
    "adelete_for_runs", "acopy_thread", "aprune", "adelete_thread",
]  # fmt: skip
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "put": (config_of("t"), empty_checkpoint(), {}, {}),
    "put_writes": (config_of("t", "", "c"), [], "task"),
    "get_tuple": (config_of("t"),),
    "list": (None,),
    "get_delta_channel_history": (),
    "delete_for_runs": ([],),
    "copy_thread": ("t", "u"),
    "prune": ([],),
    "delete_thread": ("t",),
}


async def call(saver: FlakySaver, name: str) -> None:
    """Call one method, and take all of it where it is a listing."""
    arguments = ARGUMENTS[name.removeprefix("a")]
    keywords = {"config": config_of("t"), "channels": ["n"]} if name.endswith("_history") else {}
    answer = getattr(saver, name)(*arguments, **keywords)
    if name == "alist":
        async for _ in answer:
            pass
    elif name == "list":
        list(answer)
    elif inspect.isawaitable(answer):
        await answer


@pytest.mark.parametrize("name", [*METHODS, *(name.removeprefix("a") for name in METHODS)])
async def test_every_method_fails_without_touching_the_inner_saver_until_it_heals(name: str) -> None:
    inner = Everything()
    flaky = FlakySaver(inner)
    flaky.fail_with(DOWN)
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError, match="the database is down"):
            await call(flaky, name)
    assert (inner.log, inner.storage) == ([], {})
    flaky.heal()
    await call(flaky, name)
    assert flaky.calls == {name: 3}


@pytest.mark.parametrize("name", METHODS)
async def test_every_asynchronous_method_hangs_until_it_heals(name: str) -> None:
    inner = Everything()
    flaky = FlakySaver(inner)
    flaky.hang()
    hanging = asyncio.ensure_future(call(flaky, name))
    await asyncio.sleep(0.01)
    assert not hanging.done()
    assert (inner.log, inner.storage) == ([], {})
    flaky.heal()
    await asyncio.wait_for(hanging, 1.0)
    await call(flaky, name)


@pytest.mark.parametrize("name", [name.removeprefix("a") for name in METHODS])
async def test_every_synchronous_method_hangs_until_it_heals(name: str) -> None:
    flaky = FlakySaver(Everything())
    flaky.hang()
    hanging = asyncio.ensure_future(asyncio.to_thread(asyncio.run, call(flaky, name)))
    await asyncio.sleep(0.02)
    assert not hanging.done()
    flaky.heal()
    await asyncio.wait_for(hanging, 1.0)


async def test_call_that_is_cancelled_while_it_hangs_ends_alone() -> None:
    inner = InMemorySaver()
    flaky = FlakySaver(inner)
    flaky.hang()
    cancelled, patient = (asyncio.ensure_future(call(flaky, "aput")) for _ in range(2))
    await asyncio.sleep(0.01)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    flaky.hang()
    await asyncio.sleep(0.01)
    assert not patient.done()
    assert inner.storage == {}
    flaky.heal()
    await asyncio.wait_for(patient, 1.0)
    assert "t" in inner.storage


async def test_call_that_hangs_fails_when_the_hang_becomes_a_failure() -> None:
    inner = InMemorySaver()
    flaky = FlakySaver(inner)
    flaky.hang()
    hanging = asyncio.ensure_future(call(flaky, "aput"))
    await asyncio.sleep(0.01)
    flaky.fail_with(DOWN)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.wait_for(hanging, 1.0)
    assert inner.storage == {}


async def test_faults_may_be_switched_from_another_thread() -> None:
    flaky = FlakySaver(InMemorySaver())
    flaky.hang()
    hanging = asyncio.ensure_future(call(flaky, "aget_tuple"))
    await asyncio.sleep(0.01)
    thread = threading.Thread(target=flaky.heal)
    thread.start()
    await asyncio.wait_for(hanging, 1.0)
    thread.join()


async def test_same_error_may_be_raised_many_times_without_growing() -> None:
    flaky = FlakySaver(InMemorySaver())
    error = ConnectionRefusedError("down")
    flaky.fail_with(error)
    lengths = []
    for _ in range(5):
        with pytest.raises(ConnectionRefusedError):
            await flaky.aget_tuple(config_of("t"))
        depth, traceback = 0, error.__traceback__
        while traceback is not None:
            depth, traceback = depth + 1, traceback.tb_next
        lengths.append(depth)
    assert len(set(lengths)) == 1


def test_versions_and_serializer_are_those_of_the_inner_saver() -> None:
    inner = InMemorySaver()
    flaky = FlakySaver(inner)
    assert flaky.serde is inner.serde
    assert flaky.get_next_version("3.5", None).startswith(f"{4:032}.")


async def test_copy_with_a_wider_allow_list_fails_and_heals_with_its_original() -> None:
    flaky = FlakySaver(InMemorySaver(serde=JsonPlusSerializer(allowed_msgpack_modules=None)))
    clone = flaky.with_allowlist([("some.module", "SomeType")])
    assert clone is not flaky
    assert clone.serde is clone.inner.serde is not flaky.serde
    flaky.fail_with(DOWN)
    with pytest.raises(ConnectionRefusedError):
        await clone.aget_tuple(config_of("t"))
    clone.heal()
    assert await flaky.aget_tuple(config_of("t")) is None
    assert flaky.calls == clone.calls == {"aget_tuple": 2}
