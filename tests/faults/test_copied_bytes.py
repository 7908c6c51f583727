"""What is stored is copied with the bytes that it has, whatever their tag; what cannot be is refused by name."""

from __future__ import annotations

import json
import pickle
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import ormsgpack
import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from enhanced_checkpointing import CheckpointCorruptionError
from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.backends.stored_values import comparable
from enhanced_checkpointing.operations import Operation, Put
from enhanced_checkpointing.serialization import Serialized
from enhanced_checkpointing.threads.migrate import migrate
from tests.support.backends import config_of, opened_backend, put
from tests.support.checkpointer import opened, saver_of
from tests.support.checkpoints import Thread
from tests.support.cipher import StreamCipher

NUMBER = UUID(int=7)
OLD_NUMBER = {"lc": 2, "type": "constructor", "id": ["uuid", "UUID"], "method": None, "args": [NUMBER.hex]}
OLD_TIME = {"lc": 2, "type": "constructor", "id": ["datetime", "datetime"], "method": "fromisoformat", "args": ["2024"]}
"""Today's LangGraph reads this as None. Its bytes are copied all the same."""
FORMS = {
    "an object whose class is nowhere": Serialized(
        "msgpack",
        ormsgpack.packb(ormsgpack.Ext(5, ormsgpack.packb(["gone", "Order", {"n": 1}, "model_validate_json"]))),
    ),
    "an enum whose class is nowhere": Serialized(
        "msgpack", ormsgpack.packb([ormsgpack.Ext(0, ormsgpack.packb(["gone", "Mode", "fast"]))])
    ),
    "a list": Serialized("msgpack", ormsgpack.packb([1, "a", None])),
    "bytes": Serialized("bytes", b"\x00\x01"),
    "none": Serialized("null", b""),
    "a list of old": Serialized("json", b'["a",  1.50, "\\u00e9"]'),
    "a time of old": Serialized("json", json.dumps(OLD_TIME).encode()),
    "a number of old": Serialized("json", json.dumps(OLD_NUMBER).encode()),
    "a text of old": Serialized("json", b'"a text"'),
}
OF_OLD = [name for name in FORMS if name.endswith("of old")]
OF_TODAY = [name for name in FORMS if name not in OF_OLD]


class Unlike(JsonPlusSerializer):
    """An application's own: what it seals differs each time, and nothing else can open it."""

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        tag, data = super().dumps_typed(obj)
        return f"{tag}:own", bytes(16) + StreamCipher(b"own").encrypt(data)[1]

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        return super().loads_typed((data[0].removesuffix(":own"), StreamCipher(b"own").decrypt("stream", data[1][16:])))


async def opened_with(
    stack: AsyncExitStack, values: dict[str, Serialized], kinds: list[tuple[str, str]], folder: Path, serde: Any
) -> tuple[list[Backend], Put]:
    """Backends of these kinds and URLs, of which the first has a checkpoint with these values."""
    backends: list[Backend] = []
    for kind, url in kinds:
        config = config_of(kind, url, folder, serde=serde, deadline=10.0)
        backends.append(await stack.enter_async_context(opened_backend(config)))
    made = replace(put("thread", 1, values=dict.fromkeys(values, "")), values=values)
    await backends[0].apply_all([made], {})
    return backends, made


async def stored_in(backend: Backend) -> dict[str, Any]:
    found: list[Operation] = [one async for chunk in backend.read_thread("thread") for one in chunk]
    assert isinstance(found[0], Put)
    return dict(found[0].values)


async def read_in(backend: Backend) -> dict[str, Any]:
    found, _ = await backend.get({"configurable": {"thread_id": "thread", "checkpoint_ns": ""}})
    assert found is not None
    return dict(found.checkpoint["channel_values"])


@pytest.mark.parametrize("names", [OF_TODAY, OF_OLD, ["a list of old", "none"]], ids=["today", "old", "both"])
@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
async def test_values_go_from_postgresql_to_sqlite_and_back_with_their_bytes(
    sealed: bool, names: list[str], database_url: str, twin_database_url: str, tmp_path: Path
) -> None:
    cipher = StreamCipher(b"a key")
    serde: SerializerProtocol = EncryptedSerializer(cipher) if sealed else JsonPlusSerializer()

    def sealing(value: Serialized) -> Serialized:
        return Serialized(f"{value.tag}+stream", cipher.encrypt(value.data)[1]) if sealed else value

    def opened(value: Any) -> Any:
        return Serialized(value.tag.removesuffix("+stream"), cipher.decrypt("stream", value.data)) if sealed else value

    values = {name: sealing(FORMS[name]) for name in names}
    kinds = [("postgres", database_url), ("sqlite", ""), ("postgres", twin_database_url)]
    async with AsyncExitStack() as stack:
        (first, between, last), _ = await opened_with(stack, values, kinds, tmp_path, serde)
        for source, target in ((first, between), (between, last)):
            tally = await migrate(source, target)
            assert tally.complete, tally.problems
            assert {one.value: count for one, count in tally.outcomes.items()} == {"copied": 1}
        after = await stored_in(last)
        for name, value in (await stored_in(first)).items():
            if name in ("none", "a text of old"):  # a plain value, which PostgreSQL keeps beside the others
                assert comparable(after[name], first.serializer) == comparable(value, first.serializer)
            else:
                assert opened(after[name]) == opened(value) == FORMS[name]
        assert await read_in(last) == await read_in(between) == await read_in(first)
        if "a number of old" in names:
            assert (await read_in(between))["a number of old"] == NUMBER


@pytest.mark.parametrize(
    ("values", "serde"),
    [
        ({"odd": Serialized("pickle", pickle.dumps({1, 2}))}, JsonPlusSerializer(pickle_fallback=True)),
        ({"odd": FORMS["a time of old"], "list": FORMS["a list"]}, JsonPlusSerializer()),
        ({"odd": Serialized("tea", b"leaves"), "list": FORMS["a list"]}, JsonPlusSerializer()),
        ({"odd": Serialized(*Unlike().dumps_typed([1]))}, Unlike()),
    ],
    ids=["pickled", "two forms", "unknown", "a serializer of its own"],
)
async def test_value_that_sqlite_cannot_keep_as_it_is_is_refused_by_name_and_nothing_of_it_is_written(
    values: dict[str, Serialized], serde: SerializerProtocol, database_url: str, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        kinds = [("postgres", database_url), ("sqlite", "")]
        (source, target), made = await opened_with(stack, values, kinds, tmp_path, serde)
        tally = await migrate(source, target)
        (problem,) = tally.problems
        assert problem.outcome.value == "failed"
        assert made.checkpoint_id in problem.reasons[0]
        assert "is stored with the tag" in problem.reasons[0]
        assert await target.thread_ids(None, 10) == []


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_value_without_the_seal_is_refused_unless_it_is_accepted_for_a_time(
    kind: str, database_url: str, tmp_path: Path
) -> None:
    serde = EncryptedSerializer(StreamCipher(b"a key"))
    asked: RunnableConfig = {"configurable": {"thread_id": "thread", "checkpoint_ns": ""}}
    async with AsyncExitStack() as stack:
        await opened_with(stack, {"list": FORMS["a list"]}, [(kind, database_url)], tmp_path, None)
    for accept in (False, True):
        config = config_of(kind, database_url, tmp_path, serde=serde, accept_unencrypted=accept)
        async with opened(config) as manager:
            saver = saver_of(manager)
            if accept:
                found = await saver.aget_tuple(asked)
                assert found is not None
                assert found.checkpoint["channel_values"]["list"] == [1, "a", None]
            else:
                with pytest.raises(CheckpointCorruptionError, match="CHECKPOINT_ACCEPT_UNENCRYPTED"):
                    await saver.aget_tuple(asked)
                with pytest.raises(CheckpointCorruptionError, match="without the encryption"):
                    _ = [one async for one in saver.alist(asked)]
            thread = Thread(saver, f"sealed-{accept}")
            await thread.put()
            assert await saver.aget_tuple(thread.config) is not None
            assert manager.health_status["overall_status"] == "healthy"
