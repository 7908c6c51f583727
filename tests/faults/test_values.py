"""Values keep their type and content whatever happens to the primary: FAULTS row 57."""

from __future__ import annotations

import asyncio
import enum
import itertools
import json
import os
import pickle
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import ormsgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import START, StateGraph
from langgraph.types import Command, interrupt
from pydantic import BaseModel

from enhanced_checkpointing import CheckpointCorruptionError, CheckpointerConfig
from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.journal.codec import decode, encode
from enhanced_checkpointing.operations import Operation, Put, accept_put, accept_writes
from enhanced_checkpointing.serialization import Opaque, Serialized, SharingSerializer
from enhanced_checkpointing.standby.cache import Standby
from tests.support.author import Author, config_of
from tests.support.backends import config_of as configuration_of
from tests.support.backends import opened_backend
from tests.support.checkpointer import opened, postgres, recovered, saver_of, sqlite, switched
from tests.support.checkpoints import Thread
from tests.support.cipher import StreamCipher
from tests.support.exact import exact_checkpoint
from tests.support.journals import add, opened_journal
from tests.support.terminal import command
from tests.support.two_processes import Log, off, one_node


class Mode(str, enum.Enum):  # noqa: UP042  # as most applications write it
    FAST = "fast"


class Level(enum.IntEnum):
    HIGH = 3


class Profile(BaseModel):
    name: str


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


def forged(thread_id: str, payload: tuple[str, str, Any]) -> Put:
    """A checkpoint that asks whoever makes objects of it to call a function."""
    call = Opaque(0, ormsgpack.packb(payload))
    honest = Author(thread_id).put({"n": 1})
    metadata: Any = {**honest.metadata, "user_id": call, "deep": [{"a": call}]}
    return replace(
        honest, values={"n": 1, "plain": call}, metadata=metadata, skeleton={**honest.skeleton, "more": call}
    )


class Pickled(SerializerProtocol):
    """What a forger writes into a record: a tag and bytes."""

    def __init__(self, tag: str, data: bytes) -> None:
        self._record = tag, data

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        return self._record

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        raise AssertionError("a forger reads nothing")


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, line: str) -> None:
        self._line = line

    def __reduce__(self) -> Any:
        return os.system, (self._line,)


async def forge(directory: Path, home: str, line: str) -> None:
    """A journal left by a process that ended, whose records run a command wherever they are made into objects."""
    lc = {"lc": 2, "type": "constructor", "id": ["os", "system"], "args": [line]}
    tags = {"pickle": pickle.dumps(Runs(line)), "json": json.dumps({"values": [], "metadata": lc}).encode()}
    async with opened_journal(directory, home=home) as journal:
        await add(journal, forged("extensions", ("os", "system", line)))
        call = Serialized("msgpack", ormsgpack.packb(ormsgpack.Ext(0, ormsgpack.packb(("os", "system", line)))))
        author = Author("writes")
        for operation in (author.put({}), replace(author.writes(("n", 1)), writes=(("n", call),))):
            await add(journal, operation)
    for tag, data in tags.items():
        async with opened_journal(directory, home=home, serializer=SharingSerializer(Pickled(tag, data))) as journal:
            await add(journal, Author(tag).put({"n": 1}))


def test_forged_record_in_the_journal_runs_nothing_at_a_start_nor_in_any_command(tmp_path: Path) -> None:
    ran, file, directory = tmp_path / "ran", tmp_path / "primary.sqlite", tmp_path / "forged"
    asyncio.run(forge(directory, str(file), f"touch {ran}"))
    at = ("--journal-dir", directory)
    for arguments in (
        ("journal", "status", *at),
        ("doctor", "--sqlite", file, *at),
        ("journal", "quarantine", *at),
        ("journal", "drain", "--sqlite", file, *at),
        ("journal", "dead-letters", *at),
        ("journal", "retry", "--all", "--sqlite", file, *at),
    ):
        command(*arguments)
        assert not ran.exists(), arguments

    async def start() -> None:
        serde = JsonPlusSerializer(pickle_fallback=True)
        async with opened(sqlite(file, journal_dir=directory, serde=serde)) as manager:
            await manager.wait_drained(3)
            await manager.health_check()
            assert not ran.exists()

    asyncio.run(start())
    asyncio.run(forge(directory, str(file), f"touch {ran}"))
    asyncio.run(start())


@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "encrypting"])
def test_drain_before_a_graph_has_widened_the_allow_list_stores_no_dict_for_an_object(
    sealed: bool, tmp_path: Path
) -> None:
    """Strict mode, SQLite, an outage, a process that ends in it, and a start without the graph."""

    def serde() -> Any:
        strict = JsonPlusSerializer(allowed_msgpack_modules=None)
        return EncryptedSerializer(StreamCipher(b"a key"), strict) if sealed else strict

    allowed = [(__name__, "Profile")]
    config: Any = {"configurable": {"thread_id": "strict", "checkpoint_ns": ""}}
    file, directory = tmp_path / "primary.sqlite", tmp_path / "left"

    async def in_an_outage() -> None:
        async with switched("sqlite", "", file, journal_dir=directory, serde=serde()) as primary:
            saver = saver_of(primary.manager).with_allowlist(allowed)
            await off(primary)
            await Thread(saver, "strict").put_values({"profile": Profile(name="Ada"), "raw": bytearray(b"x")})
            await primary.manager.cleanup()

    async def drained() -> None:
        async with opened(sqlite(file, journal_dir=directory, serde=serde())) as manager:
            await recovered(manager)

    async def read() -> Any:
        async with AsyncSqliteSaver.from_conn_string(str(file)) as bare:
            bare.serde = serde()
            found = await bare.with_allowlist(allowed).aget_tuple(config)
            assert found is not None
            return found.checkpoint["channel_values"]

    asyncio.run(in_an_outage())
    asyncio.run(drained())
    assert asyncio.run(read()) == {"profile": Profile(name="Ada"), "raw": b"x"}


@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
async def test_value_that_the_key_does_not_open_is_told_as_damage_with_what_to_do(
    backend: str, database_url: str, tmp_path: Path
) -> None:
    def config(key: bytes) -> CheckpointerConfig:
        fields: dict[str, Any] = {"serde": EncryptedSerializer(StreamCipher(key))}
        return sqlite(tmp_path / "file", **fields) if backend == "sqlite" else postgres(database_url, **fields)

    newest: RunnableConfig = {"configurable": {"thread_id": "sealed", "checkpoint_ns": ""}}
    async with opened(config(b"one key")) as manager:
        await Thread(saver_of(manager), "sealed").put_values({"n": ["a value"]})
    async with opened(config(b"another key")) as manager:
        for read in (saver_of(manager).aget_tuple, lambda asked: saver_of(manager).alist(asked).__anext__()):
            with pytest.raises(CheckpointCorruptionError, match=r"cannot be decrypted.*another key.*Give the") as told:
                await read(newest)
            assert "the key is another one" in str(told.value.__cause__)
        assert manager.health_status["overall_status"] == "healthy"
