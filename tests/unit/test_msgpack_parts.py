"""Where values begin and end in MessagePack, held against what the real encoder and decoder make of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ormsgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enhanced_checkpointing.backends.stored_values import array_items, binary, end_of, extension, is_simple, map_entries

texts = st.text(max_size=5) | st.sampled_from([31, 32, 255, 256, 65_535, 65_536]).map(lambda size: "x" * size)
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats()
sizes = st.sampled_from([0, 1, 2, 3, 4, 8, 16, 255, 256, 65_535, 65_536])


@dataclass
class Extended:
    """What is encoded as an extension."""

    code: int
    data: bytes


extensions = st.builds(Extended, st.integers(0, 127), sizes.map(bytes))
leaves = st.none() | st.booleans() | numbers | texts | sizes.map(bytes) | extensions
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=17) | st.dictionaries(st.text(max_size=5), inner, max_size=17),
    max_leaves=20,
)
SIMPLE = (type(None), bool, int, float, str)


def packed(value: Any) -> bytes:
    return ormsgpack.packb(
        value, default=lambda one: ormsgpack.Ext(one.code, one.data), option=ormsgpack.OPT_PASSTHROUGH_DATACLASS
    )


@given(values, st.binary(max_size=5))
def test_value_ends_where_the_encoder_ended_whatever_comes_behind(value: Any, behind: bytes) -> None:
    data = packed(value)
    assert end_of(data + behind, 0) == len(data)
    assert end_of(behind + data, len(behind)) == len(behind) + len(data)


@settings(max_examples=50)
@given(st.dictionaries(texts, values, max_size=4))
def test_entries_of_a_map_are_the_bytes_that_were_encoded(value: dict[str, Any]) -> None:
    data = packed(value)
    assert {key: data[place] for key, place in map_entries(data)} == {key: packed(part) for key, part in value.items()}


@given(st.lists(values, max_size=20))
def test_items_of_an_array_are_the_bytes_that_were_encoded(value: list[Any]) -> None:
    data = packed(value)
    assert [data[place] for place in array_items(data)] == [packed(part) for part in value]


@given(values)
def test_kind_of_a_value_is_that_of_what_was_encoded(value: Any) -> None:
    data = packed(value)
    assert is_simple(data) == isinstance(value, SIMPLE)
    assert binary(data) == (value if isinstance(value, bytes) else None)
    assert extension(data) == (value.code if isinstance(value, Extended) else None)


@pytest.mark.parametrize("size", [15, 16, 65_535, 65_536])
def test_long_lists_and_maps_are_followed_to_their_end(size: int) -> None:
    for value in ([None] * size, dict.fromkeys(map(str, range(size)))):
        data = packed(value)
        assert end_of(data, 0) == len(data)
        assert not isinstance(value, list) or len(list(array_items(data))) == size


@given(values, st.data())
def test_value_that_is_cut_off_is_refused(value: Any, data: st.DataObject) -> None:
    whole = packed(value)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(ValueError, match="MessagePack"):
        end_of(cut, 0)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x93\x01", b"\x91\x01", b"\x81\x01\x02", b"\xde\x00"])
def test_what_is_no_map_with_texts_as_keys_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"map|key|MessagePack"):
        list(map_entries(data))


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x93\x01", b"\x81\x01\x02", b"\xdc\x00"])
def test_what_is_no_whole_array_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"array|MessagePack"):
        list(array_items(data))
