"""Values taken out of a stored checkpoint: their bytes stay, and nothing of the application is run."""

from __future__ import annotations

import json
import math
import pickle
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ormsgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import TASKS, _DeltaSnapshot

from enhanced_checkpointing.backends.stored_values import (
    comparable,
    from_json,
    inline,
    is_snapshot,
    items_of,
    list_of,
    survives_json,
    take_apart,
)
from enhanced_checkpointing.errors import CheckpointerError
from enhanced_checkpointing.serialization import Serialized, SharingSerializer, unsealed
from tests.support.cipher import encrypting

simple = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
values = st.recursive(
    simple | st.binary(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@dataclass
class Order:
    """Something of an application's own."""

    number: int


def stored(values: dict[str, Any], serializer: SharingSerializer) -> Serialized:
    return Serialized(*serializer.dumps_typed({"v": 4, "id": "1", "channel_values": values, "channel_versions": {}}))


def alone(value: Any) -> Serialized:
    return Serialized(*JsonPlusSerializer().dumps_typed(value))


@given(st.dictionaries(st.text(max_size=5), values, max_size=5))
def test_each_value_has_the_bytes_that_it_would_have_by_itself(found: dict[str, Any]) -> None:
    serializer = SharingSerializer()
    parts = take_apart(stored(found, serializer), serializer)
    assert parts.skeleton == {"v": 4, "id": "1", "channel_versions": {}}
    assert list(parts.values) == list(found)
    for channel, value in found.items():
        kept = parts.values[channel]
        if type(kept) is Serialized:
            assert kept == alone(value)
        else:
            assert repr(kept) == repr(value)
            assert repr(json.loads(json.dumps(kept))) == repr(value)


def test_object_of_an_unknown_class_keeps_its_bytes_and_its_module_is_not_imported() -> None:
    serializer = SharingSerializer()
    whole = stored({"order": Order(7)}, serializer)
    module = Order.__module__.encode()
    foreign = Serialized(whole.tag, whole.data.replace(module, b"x" * len(module)))
    kept = take_apart(foreign, serializer).values["order"]
    assert kept == Serialized("msgpack", alone(Order(7)).data.replace(module, b"x" * len(module)))


def test_snapshot_of_a_delta_channel_is_known_by_its_bytes() -> None:
    serializer = SharingSerializer()
    parts = take_apart(stored({"log": _DeltaSnapshot(["a"]), "plain": ["a"]}, serializer), serializer)
    assert parts.snapshots == {"log"}
    assert is_snapshot(parts.values["log"], serializer)
    assert not is_snapshot(parts.values["plain"], serializer)
    assert not is_snapshot("text", serializer)


def test_sealed_checkpoint_gives_sealed_values_that_only_the_key_opens() -> None:
    serializer = encrypting(b"the key")
    found = {"text": "secret", "list": ["secret"], "none": None, "bytes": b"secret"}
    parts = take_apart(stored(found, serializer), serializer)
    for channel, value in found.items():
        kept = parts.values[channel]
        assert kept.tag.endswith("+stream")
        assert b"secret" not in kept.data
        assert serializer.loads_typed((kept.tag, kept.data)) == value
        assert unsealed(kept, serializer) == alone(value)
        assert comparable(kept, serializer) == comparable(value if channel == "text" else alone(value), serializer)


def test_sealed_checkpoint_without_its_serializer_is_refused_with_the_tag() -> None:
    whole = stored({"text": "secret"}, encrypting())
    with pytest.raises(CheckpointerError, match=r"'msgpack\+stream'"):
        take_apart(whole, SharingSerializer())


class Backwards(JsonPlusSerializer):
    """Another serializer, whose bytes nobody else knows."""

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        tag, data = super().dumps_typed(obj)
        return tag, data[::-1]

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        return super().loads_typed((data[0], data[1][::-1]))


def test_checkpoint_of_another_serializer_is_read_and_serialized_by_that_one() -> None:
    serializer = SharingSerializer(Backwards())
    parts = take_apart(stored({"list": ["a"], "odd": math.inf, "text": "b"}, serializer), serializer)
    assert parts.values["list"] == Serialized(*Backwards().dumps_typed(["a"]))
    assert parts.values["odd"] == Serialized(*Backwards().dumps_typed(math.inf))
    assert parts.values["text"] == "b"


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, -0.0, 1e16, -1e300, "with \0 in it", "half \ud800 of one"]
)
def test_value_that_json_in_postgresql_would_change_is_kept_as_bytes(value: Any) -> None:
    assert not survives_json(value)


@pytest.mark.parametrize("value", [None, True, 0, 2**63, 0.0, 1.5, 1e15, 5e-324, "", "ü\u2028"])
def test_value_that_survives_is_inline(value: Any) -> None:
    assert repr(inline(alone(value))) == repr(value)


def test_integer_too_large_for_messagepack_becomes_the_float_that_it_was() -> None:
    serializer = SharingSerializer()
    assert from_json(10**20, serializer) == alone(1e20)
    assert from_json(10**20 + 1, serializer) == 10**20 + 1
    assert from_json(10**400, serializer) == 10**400
    assert from_json(2**64 - 1, serializer) == 2**64 - 1
    assert from_json(True, serializer) is True


def test_text_that_is_not_utf_8_is_left_as_it_is() -> None:
    broken = Serialized("msgpack", b"\xa1\xff")
    assert inline(broken) == broken


@pytest.mark.parametrize("value", [None, True, 7, 1.5, 1e300, "text", "nul \0"])
def test_same_value_is_comparable_however_it_is_kept(value: Any) -> None:
    serializer = SharingSerializer()
    assert comparable(value, serializer) == comparable(alone(value), serializer)


def test_other_values_are_told_apart() -> None:
    serializer = SharingSerializer()
    different: list[Any] = [None, True, 1, 1.0, "1", alone([1]), alone([1.0]), alone(b"1"), alone({"1": 1}), "null"]
    assert len({comparable(value, serializer) for value in different}) == len(different)


def test_bytes_and_bytearrays_are_the_same_and_each_other_form_is_one_of_its_own() -> None:
    serializer = SharingSerializer()
    assert comparable(alone(bytearray(b"a")), serializer) == comparable(alone(b"a"), serializer)
    old = Serialized("json", b'{"lc": 2, "type": "constructor", "id": ["builtins", "nothing"], "kwargs": {}}')
    assert comparable(Serialized("json", b'"a"'), serializer) == comparable("a", serializer)
    assert comparable(Serialized("json", b'["a", 1]'), serializer) != comparable(alone(["a", 1]), serializer)
    assert comparable(Serialized("tea", b"x"), serializer) != comparable(old, serializer)


def test_checkpoint_with_messages_is_taken_apart_without_loading_them(monkeypatch: pytest.MonkeyPatch) -> None:
    serializer = SharingSerializer()
    whole = stored({"messages": [HumanMessage("hello", id="1")]}, serializer)
    monkeypatch.setattr(HumanMessage, "__init__", lambda *_, **__: pytest.fail("an object was made"))
    assert type(take_apart(whole, serializer).values["messages"]) is Serialized


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=5), st.booleans(), st.sampled_from([None, 1]))
def test_values_of_a_checkpoint_in_json_keep_their_text(found: dict[str, Any], ascii: bool, indent: int | None) -> None:
    def text(value: Any) -> bytes:
        return json.dumps(value, ensure_ascii=ascii, indent=indent).encode("utf-8", "surrogatepass")

    whole = Serialized("json", text({"v": 1, "channel_values": found, "channel_versions": {}}))
    parts = take_apart(whole, SharingSerializer())
    assert parts.skeleton == {"v": 1, "channel_versions": {}}
    assert list(parts.values) == list(found)
    for channel, kept in parts.values.items():
        if type(kept) is Serialized:
            assert kept.tag == "json"
            assert kept.data in whole.data
            assert json.loads(kept.data) == found[channel]
        else:
            assert kept == found[channel]
            assert type(kept) is type(found[channel])


@given(st.binary(max_size=40) | st.text(alphabet='[]{}",: \\1atrue', max_size=20).map(str.encode))
def test_bytes_that_are_no_checkpoint_in_json_are_refused_and_never_hang(data: bytes) -> None:
    with suppress(ValueError):
        take_apart(Serialized("json", data), SharingSerializer())
    with suppress(ValueError):
        items_of(Serialized("json", data), SharingSerializer())


@given(st.lists(json_values, max_size=4))
def test_items_of_a_list_in_json_are_joined_to_the_same_list(found: list[Any]) -> None:
    serializer = SharingSerializer()
    whole = Serialized("json", json.dumps(found).encode())
    items = items_of(whole, serializer)
    assert items is not None
    assert [json.loads(item.data) for item in items] == found
    if found:
        assert list_of(items, serializer) == whole


@pytest.mark.parametrize("count", [1, 15, 16, 0xFFFF, 0x10000])
def test_items_of_a_list_are_joined_to_the_same_list(count: int) -> None:
    serializer = SharingSerializer()
    assert list_of([alone(7)] * count, serializer) == alone([7] * count)


def test_sealed_items_are_joined_under_a_seal_and_mixed_ones_are_refused() -> None:
    serializer = encrypting(b"the key")
    items = [Serialized(*serializer.dumps_typed(one)) for one in ("a", [1])]
    joined = list_of(items, serializer)
    assert joined.tag == items[0].tag
    assert unsealed(joined, serializer) == alone(["a", [1]])
    with pytest.raises(CheckpointerError, match="cannot be joined"):
        list_of([alone(1), Serialized("json", b"1")], SharingSerializer())


@pytest.mark.parametrize("tag", ["json", "msgpack"])
def test_what_was_sent_to_tasks_of_old_becomes_their_channel(tag: str) -> None:
    sent = [{"node": "one"}, {"node": "two"}]
    checkpoint = {"v": 1, "channel_values": {}, "channel_versions": {"a": "2", "b": "3"}, "pending_sends": sent}
    data = json.dumps(checkpoint).encode() if tag == "json" else ormsgpack.packb(checkpoint)
    parts = take_apart(Serialized(tag, data), SharingSerializer())
    assert parts.skeleton == {"v": 1, "channel_versions": {"a": "2", "b": "3", TASKS: "3"}}
    assert SharingSerializer().thaw(parts.values[TASKS]) == sent
    new = Serialized("msgpack", ormsgpack.packb({**checkpoint, "v": 4}))
    assert take_apart(new, SharingSerializer()).skeleton["pending_sends"] == sent


@pytest.mark.parametrize("tag", ["pickle", "own", "msgpack+aes"])
def test_checkpoint_that_cannot_be_taken_apart_as_it_is_is_refused_by_its_tag(tag: str) -> None:
    with pytest.raises(CheckpointerError, match=re.escape(repr(tag))):
        take_apart(Serialized(tag, pickle.dumps({"channel_values": {}})), SharingSerializer())


@pytest.mark.parametrize("data", [b"", b"\x81", b"\xa4text"])
def test_what_is_no_checkpoint_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"map|MessagePack"):
        take_apart(Serialized("msgpack", data), SharingSerializer())


@given(st.lists(values, max_size=4), st.booleans())
def test_items_of_a_list_are_what_each_would_be_by_itself(found: list[Any], sealed: bool) -> None:
    serializer = encrypting(b"the key") if sealed else SharingSerializer()
    items = items_of(Serialized(*serializer.dumps_typed(found)), serializer)
    assert items is not None
    assert [comparable(item, serializer) for item in items] == [comparable(alone(one), serializer) for one in found]


@pytest.mark.parametrize("value", [None, "text", b"bytes", {"a": 1}, 7])
def test_what_is_no_list_has_no_items(value: Any) -> None:
    assert items_of(alone(value), SharingSerializer()) is None
