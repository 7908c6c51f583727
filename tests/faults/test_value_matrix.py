"""One graph for each kind of value, by each serializer and each backend: FAULTS row 57.

What the bare saver keeps of it is what ours keeps: healthy, in an outage, after the drain, moved elsewhere and back.
"""

from __future__ import annotations

import enum
import re
import zlib
from collections import deque
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar
from uuid import UUID

import numpy
import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import START, StateGraph
from langgraph.types import Send
from pydantic import BaseModel

from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.backends.stored_values import comparable
from enhanced_checkpointing.operations import Put, PutWrites
from enhanced_checkpointing.serialization import Serialized, unsealed
from enhanced_checkpointing.threads.migrate import migrate
from tests.support.backends import config_of, opened_backend
from tests.support.checkpointer import opened, recovered, saver_of, switched
from tests.support.cipher import StreamCipher
from tests.support.exact import exact
from tests.support.two_processes import off

T = TypeVar("T")


class Mode(str, enum.Enum):  # noqa: UP042  # as most applications write it
    FAST = "fast"


class Level(enum.IntEnum):
    HIGH = 3


class Outer:
    class Inner(enum.Enum):
        ONE = 1


class Profile(BaseModel):
    name: str
    mode: Mode = Mode.FAST


class Page(BaseModel, Generic[T]):
    items: list[T]


class Point(NamedTuple):
    x: int
    y: float


@dataclass
class Answer:
    text: str
    profile: Profile


KINDS: dict[str, Any] = {
    "nothing": None,
    "string enum": Mode.FAST,
    "integer enum": Level.HIGH,
    "nested enum": [Outer.Inner.ONE],
    "enums in a list": [Mode.FAST, {"level": Level.HIGH}],
    "large float": 1e17,
    "very large float": 1.5e300,
    "negative zero": -0.0,
    "small float": 5e-324,
    "NaN": float("nan"),
    "infinity": float("-inf"),
    "NaN in a list": [float("nan"), -0.0, 1e17],
    "large integer": 2**64 - 1,
    "integer of 70 bits": 2**70,
    "truth": True,
    "text": "é\U0001f600'\\u0000\"",
    "NUL": "a\0b",
    "NUL in a list": ["a\0b"],
    "half a surrogate": "a\ud800b",
    "numpy number": numpy.float64(0.5),
    "numpy integer": numpy.int64(5),
    "numpy array": numpy.array([[1.0, float("nan")]]),
    "bytes": b"\0\xff",
    "bytearray": bytearray(b"x"),
    "bytearray in a list": [bytearray(b"x")],
    "pydantic": Profile(name="Ada"),
    "generic model": Page[int](items=[1]),
    "dataclass": Answer("yes", Profile(name="Ada")),
    "named tuple": Point(1, 2.0),
    "decimal": Decimal("1.10"),
    "datetime": datetime(2026, 1, 1, tzinfo=UTC),
    "uuid": UUID(int=7),
    "set": {3, 1, 2},
    "frozen set": frozenset({"a"}),
    "deque": deque([1, 2]),
    "path": Path("/tmp/a"),
    "messages": [HumanMessage("hello", id="1"), AIMessage("there", id="2")],
    "send": [Send("node", {"a": Mode.FAST})],
    "keys": {1: "a", None: "b", 2.5: "c"},
}
FAILING = ["numpy number", "numpy integer", "integer of 70 bits"]
"""As values of channels: MessagePack knows no such values, so that the bare savers refuse what a task writes."""
REFUSED_BY_POSTGRES = ["NaN", "infinity", "NUL", "half a surrogate"]
"""As plain values by the bare saver, which puts them into JSON; ours keeps them as bytes."""
GRAPHS = {
    "most": [kind for kind in KINDS if kind not in (*FAILING, *REFUSED_BY_POSTGRES)],
    "no JSON": REFUSED_BY_POSTGRES,
    **{kind: [kind] for kind in FAILING},
}
"""Each kind of value has a channel of its own."""
CHANGED_IN_PLACE = "bytearray"


class Squeezed(JsonPlusSerializer):
    """One that an application has made of LangGraph's, with a format of its own."""

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        tag, data = super().dumps_typed(obj)
        return f"squeezed-{tag}", zlib.compress(data)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        return super().loads_typed((data[0].removeprefix("squeezed-"), zlib.decompress(data[1])))


OWN = tuple((__name__, kind) for kind in ("Mode", "Level", "Profile", "Answer", "Point"))


def serializer(name: str, allowed: Collection[tuple[str, str]] | None = OWN) -> SerializerProtocol:
    if name == "subclassed":
        return Squeezed() if allowed else Squeezed(allowed_msgpack_modules=None)
    plain = JsonPlusSerializer(allowed_msgpack_modules=None if name == "strict" else allowed)
    return EncryptedSerializer(StreamCipher(b"a key"), plain) if name == "encrypting" else plain


def graph(kinds: list[str], saver: BaseCheckpointSaver[str]) -> Any:
    """Gives all values, looks at them, and changes one in place."""

    def give(_: Any) -> Any:
        return {kind: bytearray(KINDS[kind]) if kind == CHANGED_IN_PLACE else KINDS[kind] for kind in kinds}

    def see(state: Any) -> Any:
        seen = repr([exact(state[kind]) for kind in kinds])
        if CHANGED_IN_PLACE in kinds:
            state[CHANGED_IN_PLACE].extend(b" changed in place")
        return {"seen": seen}

    schema: Any = TypedDict("State", dict.fromkeys([*kinds, "seen"], Any), total=False)  # type: ignore[misc]
    builder: StateGraph[Any] = StateGraph(schema)
    builder.add_node("give", RunnableLambda(give)).add_node("see", RunnableLambda(see))
    return builder.add_edge(START, "give").add_edge("give", "see").compile(checkpointer=saver)


PLAIN = {"share": 0.5, "mode": Mode.FAST, "level": Level.HIGH, "zero": -0.0}
ONLY_IN_JSON = {"large": 10**20, "numpy": numpy.float64(1e17)}
"""What people put beside the thread in a config, which becomes metadata."""


async def run_all(saver: BaseCheckpointSaver[str], prefix: str, database: str) -> dict[str, str]:
    """Run each graph; the errors."""
    errors = {}
    for name, kinds in GRAPHS.items():
        try:
            config: Any = {"configurable": {"thread_id": prefix + name, **PLAIN}}
            config["configurable"] |= ONLY_IN_JSON if database != "memory" else {}
            await graph(kinds, saver).ainvoke({}, config, durability="sync")
        except Exception as error:  # noqa: BLE001  # whichever: ours is to be the bare saver's
            errors[name] = type(error).__name__
    return errors


async def read_all(saver: BaseCheckpointSaver[str], prefix: str) -> dict[str, Any]:
    """What each checkpoint of each graph says, oldest first: of each channel, of its metadata, and its writes."""
    found: dict[str, Any] = {}
    for name in GRAPHS:
        config: Any = {"configurable": {"thread_id": prefix + name, "checkpoint_ns": ""}}
        checkpoints = [one async for one in saver.alist(config)]
        if checkpoints:
            newest = await saver.aget_tuple(config)
            assert newest is not None
            assert exact(newest.checkpoint) == exact(checkpoints[0].checkpoint)
        for number, one in enumerate(reversed(checkpoints)):
            for channel, value in one.checkpoint["channel_values"].items():
                found[f"{name}, {number}, {channel}"] = exact(value)
            for key, value in one.metadata.items():
                if key != "thread_id":
                    found[f"{name}, {number}, metadata {key}"] = exact(value)
            for _, channel, value in one.pending_writes or ():
                found[f"{name}, {number}, written to {channel}"] = exact(value)
    return found


async def stored_by(backend: Backend, prefix: str, *, in_any_form: bool = False) -> dict[str, Any]:
    """What is stored of each graph, as the bytes that were sealed; `in_any_form`: beside others or by itself."""

    def plain(value: Any) -> Any:
        if in_any_form:
            return comparable(value, backend.serializer)
        if type(value) is not Serialized:
            return exact(value)
        found = unsealed(value, backend.serializer)
        return found.tag, found.data

    found: dict[str, Any] = {}
    for name in GRAPHS:
        operations = [one async for chunk in backend.read_thread(prefix + name) for one in chunk]
        for number, operation in enumerate(operations):
            if isinstance(operation, Put):
                found |= {f"{name}, {number}, {channel}": plain(value) for channel, value in operation.values.items()}
            elif isinstance(operation, PutWrites):
                found |= {f"{name}, {number}, {channel}": plain(value) for channel, value in operation.writes}
    return found


@asynccontextmanager
async def bare_saver(name: str, url: str, path: Path, serde: Any) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    if name == "memory":
        yield InMemorySaver(serde=serde)
        return
    saving: Any = AsyncPostgresSaver.from_conn_string(url)
    if name == "sqlite":
        saving = AsyncSqliteSaver.from_conn_string(str(path))
    async with saving as saver:
        saver.serde = serde
        await saver.setup()
        yield saver


async def moved_and_back(backend: Backend, url: str, folder: Path) -> tuple[dict[str, Any], list[Any]]:
    """What is read of the threads when they were moved to a database of another kind, and from there to one of the same
    kind; and what is stored there otherwise than before."""
    kind, serde = backend.name, backend.serializer.inner
    there = config_of("sqlite" if kind == "postgres" else "postgres", url, folder, serde=serde, deadline=10.0)
    again = config_of(kind, url, folder / "again", serde=serde, deadline=10.0)
    again = again.with_overrides(postgres_schema="again") if kind == "postgres" else again
    async with opened_backend(there) as between, opened(again) as manager:
        last = manager.components.backend
        for source, target in ((backend, between), (between, last)):
            tally = await migrate(source, target)
            cannot = (
                ["70 bits", *(["most", "no JSON"] if type(serde) is Squeezed else [])] if kind == "postgres" else []
            )
            refused = [one for one in tally.problems if not one.thread_id.endswith(tuple(cannot))]
            assert not refused
            assert all(re.search("cannot be (kept|a part)", one.reasons[0]) for one in tally.problems)
        before = await stored_by(backend, "healthy ", in_any_form=True)
        after = await stored_by(last, "healthy ", in_any_form=True)
        return await read_all(saver_of(manager), "healthy "), differences(after, {key: before[key] for key in after})


def differences(left: Mapping[str, Any], right: Mapping[str, Any], *besides: str) -> list[Any]:
    return [
        (key, left.get(key), right.get(key))
        for key in sorted({*left, *right})
        if left.get(key) != right.get(key) and not key.endswith(besides or ("\n",))
    ]


@pytest.mark.parametrize("name", ["plain", "strict", "encrypting", "subclassed"])
@pytest.mark.parametrize("database", ["postgres", "sqlite", "memory"])
async def test_values_of_every_kind_are_those_of_the_bare_saver_whatever_happens_to_the_primary(
    database: str, name: str, database_url: str, twin_database_url: str, tmp_path: Path
) -> None:
    async with bare_saver(database, twin_database_url, tmp_path / "bare.sqlite", serializer(name)) as saver:
        refused = await run_all(saver, "bare ", database)
        expected = await read_all(saver, "bare ")
    if database == "postgres":
        assert refused.pop("no JSON")
        expected = {key: value for key, value in expected.items() if not key.startswith("no JSON")}
    async with switched(database, database_url, tmp_path / "ours.sqlite", serde=serializer(name)) as primary:
        ours = saver_of(primary.manager)
        assert await run_all(ours, "healthy ", database) == refused
        healthy = await read_all(ours, "healthy ")
        for graph_name in GRAPHS:
            config: Any = {"configurable": {"thread_id": f"outage {graph_name}", "checkpoint_ns": ""}}
            assert await ours.aget_tuple(config) is None
        await off(primary)
        assert await run_all(ours, "outage ", database) == refused
        outage = await read_all(ours, "outage ")
        await primary.on()
        await recovered(primary.manager)
        drained = await read_all(ours, "outage ")
        backend = primary.manager.components.backend
        stored, stored_after = await stored_by(backend, "healthy "), await stored_by(backend, "outage ")
        moved, stored_otherwise = await moved_and_back(backend, twin_database_url, tmp_path)
    as_bare = {key: value for key, value in healthy.items() if database != "postgres" or not key.startswith("no JSON")}
    # The bare savers of memory and SQLite store what a node has changed in place as if it had been so before.
    assert differences(as_bare, expected, *((CHANGED_IN_PLACE,) if database != "postgres" else ())) == []
    assert differences(outage, healthy) == []
    assert differences(drained, healthy) == []
    assert differences(stored_after, stored) == []
    # In a checkpoint of SQLite, bytes and a bytearray are the same; PostgreSQL writes the numbers of metadata its way.
    lost = (CHANGED_IN_PLACE, "very large float") if database == "postgres" else ()
    here = {key: value for key, value in healthy.items() if key in moved and not (" metadata " in key and not lost)}
    assert len(here) > 50
    assert differences({key: moved[key] for key in here}, here, *lost) == []
    assert stored_otherwise == []
    kept = [value for key, value in outage.items() if key.endswith(f", {CHANGED_IN_PLACE}")]
    assert kept, "there is a checkpoint with it"
    assert not [value for value in kept if "changed" in repr(value)]


@pytest.mark.parametrize("name", ["strict", "encrypting", "subclassed"])
@pytest.mark.parametrize("database", ["postgres", "sqlite", "memory"])
async def test_mark_of_an_outage_leaves_the_stored_bytes_of_what_could_not_be_made_an_object(
    database: str, name: str, database_url: str, tmp_path: Path
) -> None:
    """The warm copy of a thread that was only read has plain data where the allow-list does not have a class."""
    serde = serializer(name, None)
    async with switched(database, database_url, tmp_path / "ours.sqlite", serde=serde) as primary:
        ours, backend = saver_of(primary.manager), primary.manager.components.backend
        await run_all(ours, "healthy ", database)
        for one in ("most", "no JSON"):
            await ours.acopy_thread(f"healthy {one}", f"copied {one}")
            config: Any = {"configurable": {"thread_id": f"copied {one}", "checkpoint_ns": ""}}
            assert await ours.aget_tuple(config) is not None
        before = await stored_by(backend, "copied ")
        await off(primary)
        for one in ("most", "no JSON"):
            await primary.manager.mark_failed(f"copied {one}")
        await primary.on()
        await recovered(primary.manager)
        found = {one["thread_id"]: one["status"] for one in await primary.manager.list_threads()}
        assert {found[f"copied {one}"] for one in ("most", "no JSON")} == {"failed"}
        assert differences(await stored_by(backend, "copied "), before) == []
