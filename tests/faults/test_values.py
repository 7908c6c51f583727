"""Values keep their type and content whatever happens to the primary: FAULTS row 57."""

from __future__ import annotations

import asyncio
import enum
import itertools
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import START, StateGraph
from langgraph.types import Command, interrupt

from enhanced_checkpointing.backends.contract import Backend
from enhanced_checkpointing.failover.standby import Standby
from enhanced_checkpointing.journal.codec import decode, encode
from enhanced_checkpointing.operations import Operation, accept_put, accept_writes
from tests.support.author import config_of
from tests.support.backends import config_of as configuration_of
from tests.support.backends import opened_backend
from tests.support.checkpointer import recovered, saver_of, switched
from tests.support.cipher import StreamCipher
from tests.support.exact import exact_checkpoint
from tests.support.two_processes import Log, off, one_node


class Mode(str, enum.Enum):  # noqa: UP042  # as most applications write it
    FAST = "fast"


class Level(enum.IntEnum):
    HIGH = 3


class Name(str):
    __slots__ = ()


class Count(int):
    pass


class Share(float):
    pass


TEXTS = st.text(st.characters(), max_size=4) | st.sampled_from(["\0", "\ud800", "\ud83d\ude00", "é", "'\\u0000"])
NUMBERS = (
    st.integers(-(2**70), 2**70)
    | st.sampled_from([10**400, 2**63, 2**64])
    | st.floats()
    | st.sampled_from([-0.0, 1e15, 1e16, 1e17, 1.5e300, 5e-324, 1e-7, 123456789012345678.0])
)
SMALL = st.none() | st.booleans() | TEXTS | NUMBERS
OF_OTHER_CLASSES = st.sampled_from([Mode.FAST, Level.HIGH, Name("Ada"), Count(2**65), Share(1e17), Share(-0.0)])
WITH_NUMPY = OF_OTHER_CLASSES | st.sampled_from([numpy.float64(1e17), numpy.float64(0.5), numpy.str_("é")])
LARGER = st.binary(max_size=3) | st.binary(max_size=3).map(bytearray) | st.lists(SMALL, max_size=2)
PLAIN = st.recursive(
    SMALL | WITH_NUMPY,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.tuples(inner)
        | st.dictionaries(TEXTS | st.integers() | st.floats() | st.booleans() | st.none(), inner, max_size=2)
    ),
    max_leaves=4,
)
CHANNELS = st.sampled_from(["__error__", "__interrupt__", "__resume__", "a", "b"])
CALLS = st.lists(
    st.tuples(
        st.sampled_from(["task", "other"]),
        st.sampled_from(["~1", "~2"]),
        st.lists(st.tuples(CHANNELS, st.integers(0, 9)), min_size=1, max_size=3),
    ),
    max_size=4,
)

threads = map(str, itertools.count())


@contextmanager
def running_backend(name: str, database_url: str, folder: Path) -> Iterator[tuple[asyncio.Runner, Backend]]:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        config = configuration_of(name, database_url, folder)
        backend = runner.run(stack.enter_async_context(opened_backend(config)))
        try:
            yield runner, backend
        finally:
            runner.run(stack.aclose())


async def assert_read_alike(backend: Backend, operations: list[Operation]) -> None:
    """The warm copy gives what the primary gives, if it takes the operations, and so does one behind the journal."""
    for operation in operations:
        try:
            await backend.apply(operation)
        except Exception:
            if isinstance(operation, type(operations[0])):
                return
            raise
    warm, warm_from_journal = (
        Standby(backend.serializer, 1_000_000, lambda _: False, write_that_stays=backend.write_that_stays)
        for _ in range(2)
    )
    for operation in operations:
        warm.apply(operation)
        body = encode(operation, None, backend.serializer)
        warm_from_journal.apply(decode(operation.thread_id, body, backend.serializer))
    config = config_of(operations[0].thread_id)
    expected = exact_checkpoint((await backend.get(config))[0])
    assert exact_checkpoint(warm.get_tuple(config)) == expected
    assert exact_checkpoint(warm_from_journal.get_tuple(config)) == expected


@pytest.mark.parametrize("name", ["postgres", "sqlite", "memory"])
def test_warm_copy_gives_values_metadata_and_writes_back_as_its_primary_does(
    name: str, database_url: str, tmp_path: Path
) -> None:
    with running_backend(name, database_url, tmp_path) as (runner, backend):

        @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
        @given(
            st.dictionaries(st.sampled_from("abc"), SMALL | WITH_NUMPY | LARGER, max_size=3),
            st.dictionaries(st.sampled_from(["x", "writes", "é"]), PLAIN, max_size=2),
            st.dictionaries(st.sampled_from(["p", "q"]), SMALL | WITH_NUMPY, max_size=2),
            CALLS,
        )
        def alike(values: dict[str, Any], metadata: dict[str, Any], configurable: dict[str, Any], calls: Any) -> None:
            config = config_of(f"{name}-{next(threads)}")
            config["configurable"] |= configurable
            checkpoint = empty_checkpoint()
            checkpoint |= {"id": str(uuid6()), "channel_values": values, "channel_versions": dict.fromkeys(values, "1")}
            try:
                put = accept_put(
                    config,
                    checkpoint,
                    {"source": "loop", **metadata},  # type: ignore[typeddict-item]  # any metadata
                    dict.fromkeys(values, "1"),
                    freeze=backend.freeze,
                    known_blob=lambda *_: None,
                    form_of=backend.form_of_metadata,
                )
            except TypeError:
                return  # the bare saver raises it too: MessagePack knows no such value
            stored = put.stored_config()
            operations: list[Operation] = [put]
            for task_id, task_path, writes in calls:
                operations.append(accept_writes(stored, writes, task_id, task_path, serializer=backend.serializer))
            runner.run(assert_read_alike(backend, operations))

        alike()


class Plain:
    """Has no `__eq__`: nothing is equal to its own copy."""

    def __init__(self, content: Any) -> None:
        self.content = content


class Frame(Plain):
    """Compares item by item, as a data frame does."""

    def __eq__(self, other: object) -> Any:
        return numpy.array([True, False])

    __hash__ = None  # type: ignore[assignment]  # as that of a data frame


class Own(SerializerProtocol):
    """A serializer with a class of its own, of which nothing is known."""

    def __init__(self, inner: SerializerProtocol) -> None:
        self._inner = inner

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        return self._inner.dumps_typed(obj)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        return self._inner.loads_typed(data)


UNEQUAL: dict[str, Any] = {
    "NaN": float("nan"),
    "array": numpy.array([1.0, float("nan")]),
    "frame": Frame({"a": [1]}),
    "plain object": Plain([float("nan")]),
}


@pytest.mark.parametrize("kind", UNEQUAL)
@pytest.mark.parametrize("sealed", ["", "by LangGraph's serializer", "by one of the application"])
async def test_interrupt_in_a_subgraph_is_resumed_in_an_outage_whatever_it_asks(
    kind: str, sealed: str, tmp_path: Path
) -> None:
    """What it asks is read from the primary, and is not another process's because it is not equal to its own copy."""
    serializer: Any = JsonPlusSerializer(pickle_fallback=True)
    if sealed:
        serializer = EncryptedSerializer(StreamCipher(b"a key"), serializer)
    if sealed == "by one of the application":
        serializer = Own(serializer)

    def ask(_: Log) -> Log:
        return {"log": [interrupt({"question": UNEQUAL[kind]})]}

    steps = one_node("ask", RunnableLambda(ask)).compile()
    graph = StateGraph(Log).add_node("steps", steps).add_edge(START, "steps")
    config: RunnableConfig = {"configurable": {"thread_id": "asked"}}
    async with switched("sqlite", "", tmp_path / "values.sqlite", serde=serializer) as primary:
        compiled = graph.compile(checkpointer=saver_of(primary.manager))
        await compiled.ainvoke({"log": ["go"]}, config)
        await compiled.aget_state(config)
        await off(primary)
        answer = await compiled.ainvoke(Command(resume="yes"), config)
        assert answer["log"] == ["go", "go", "yes"]
        await primary.on()
        await recovered(primary.manager)
