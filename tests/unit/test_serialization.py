"""Stored values read without making objects: whatever the bytes say, nothing runs, and they go back as they were."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any
from uuid import uuid4

import ormsgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.types import Send

from enhanced_checkpointing.errors import CheckpointerError
from enhanced_checkpointing.serialization import (
    Opaque,
    Serialized,
    SharingSerializer,
    dump_plain,
    has_known_format,
    has_large_integer,
    load_plain,
    unsealed,
)
from tests.support.cipher import StreamCipher


@dataclass
class Order:
    """Something of an application's own."""

    number: int


class Mode(Enum):
    """Likewise."""

    FAST = "fast"


class Compressing(JsonPlusSerializer):
    """A subclass with a format of its own."""

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        return "own", b"own:" + super().dumps_typed(obj)[1]

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        return super().loads_typed(("msgpack", data[1].removeprefix(b"own:")))


class Renamed(JsonPlusSerializer):
    """A subclass that keeps LangGraph's format."""


objects = st.sampled_from(
    [
        *(Order(1), Mode.FAST, Decimal("1.5"), Path("a"), uuid4(), datetime.now(UTC), {1, 2}),
        *(HumanMessage("hello"), Send("node", Order(2)), b"bytes", 1.5, None, "text"),
    ]
)
values = st.recursive(
    objects | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(-(2**63), 2**64 - 1), inner, max_size=4)
    ),
    max_leaves=8,
)
SERIALIZERS = (
    *(JsonPlusSerializer(), Renamed()),
    *(EncryptedSerializer(StreamCipher(b"a key")), EncryptedSerializer(StreamCipher(b"a key"), Renamed())),
)
serializers = st.sampled_from(SERIALIZERS)


@given(values, serializers)
def test_a_value_that_was_read_plain_goes_back_byte_for_byte(value: Any, inner: SerializerProtocol) -> None:
    serializer = SharingSerializer(inner)
    stored = Serialized(*serializer.dumps_typed(value))
    again = dump_plain(load_plain(stored, serializer), serializer)
    assert again.tag == stored.tag
    assert unsealed(again, serializer) == unsealed(stored, serializer)


def test_what_the_bytes_say_does_not_run(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    called = ormsgpack.packb(("os", "mkdir", str(proof)))
    hostile = ormsgpack.packb({"a": ormsgpack.Ext(0, called)})
    constructor = json.dumps({"lc": 2, "type": "constructor", "id": ["os", "mkdir"], "args": [str(proof)]}).encode()
    serializer = SharingSerializer()
    assert load_plain(Serialized("msgpack", hostile), serializer) == {"a": Opaque(0, called)}
    assert load_plain(Serialized("json", constructor), serializer)["id"] == ["os", "mkdir"]
    assert not proof.exists()
    serializer.loads_typed(("msgpack", hostile))  # an application's own read, whose setting allows it
    assert proof.exists()


@pytest.mark.parametrize("tag", ["pickle", "own", "msgpack+aes"])
def test_a_tag_that_makes_objects_or_is_not_known_is_refused(tag: str) -> None:
    with pytest.raises(CheckpointerError, match="not read without making objects"):
        load_plain(Serialized(tag, pickle.dumps(1)), SharingSerializer(JsonPlusSerializer(pickle_fallback=True)))


@pytest.mark.parametrize(
    "stored",
    [
        *(("msgpack", b"\x91" * 100_000 + b"\xc0"), ("msgpack", b"\xc1"), ("msgpack", b"")),
        *(("json", b"[" * 100_000), ("json", b"\xff"), ("json", b"1" * 5_000)),
    ],
)
def test_bytes_that_are_not_what_the_tag_says_are_a_value_error(stored: tuple[str, bytes]) -> None:
    with pytest.raises(ValueError, match=r"UTF-8|codec|too deep|limit|Reserved|end of|digits|input"):
        load_plain(Serialized(*stored), SharingSerializer())


def test_a_serializer_with_a_format_of_its_own_is_asked() -> None:
    serializer = SharingSerializer(Compressing())
    stored = Serialized(*serializer.dumps_typed([1]))
    assert not has_known_format(serializer.inner)
    assert load_plain(stored, serializer) == [1]
    assert dump_plain([1], serializer) == stored


def test_what_is_none_or_bytes_keeps_its_tag() -> None:
    for inner in SERIALIZERS:
        serializer = SharingSerializer(inner)
        for value in (None, b"bytes", bytearray(b"array")):
            again = dump_plain(value, serializer)
            assert again.tag == serializer.dumps_typed(value)[0]
            assert load_plain(again, serializer) == value


def test_an_object_that_was_not_read_plain_is_not_stored() -> None:
    with pytest.raises(TypeError, match="not msgpack serializable: Order"):
        dump_plain([Order(1)], SharingSerializer())


class Level(IntEnum):
    HIGH = 1


def test_integer_of_another_class_is_looked_at_and_not_searched_for() -> None:
    assert not has_large_integer({"level": [Level.HIGH]})
    assert has_large_integer({"level": [2**64]})
    assert has_large_integer({"level": [-(2**63) - 1]})
