"""Values as they are stored, told apart and taken out of a checkpoint without making objects of them. Pure.

A class that cannot be imported here would come back as plain data, and be stored as that from then on. Bytes that
nobody looks into stay what they are, and nothing of the application is run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ormsgpack
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import EXT_DELTA_SNAPSHOT, JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from enhanced_checkpointing.backends.msgpack_parts import array_items, binary, extension, is_simple, map_entries
from enhanced_checkpointing.errors import CheckpointerError
from enhanced_checkpointing.identifiers import INTEGERS
from enhanced_checkpointing.serialization import (
    BYTEARRAY,
    BYTES,
    MSGPACK,
    NULL,
    Serialized,
    SharingSerializer,
    unsealed,
)

LARGEST_EXACT = 1e16
"""Python writes greater floats without a decimal point, and whoever reads that back gets an integer."""
VALUES = "channel_values"
NOTHING = b"\xc0"


@dataclass(frozen=True, slots=True)
class Parts:
    """A checkpoint without its values, the values, and which of them are snapshots of delta channels."""

    skeleton: dict[str, Any]
    values: dict[str, Any]
    snapshots: frozenset[str]


def take_apart(stored: Serialized, serializer: SharingSerializer) -> Parts:
    """Take the values out of a checkpoint that is stored as one piece.

    Each keeps the bytes that it has there. Only what another serializer than LangGraph's has stored is read, and
    serialized again.

    Raises:
        CheckpointerError: this serializer is not the one that stored it.
        ValueError: it is no checkpoint.
    """
    plain = unsealed(stored, serializer)
    if plain.tag != MSGPACK or type(_innermost(serializer)) is not JsonPlusSerializer:
        return _take_apart_live(load(stored, serializer), serializer)
    places = dict(map_entries(plain.data, 0))
    values_at = places.pop(VALUES, None)
    raw: dict[str, bytes] = {}
    if values_at is not None and plain.data[values_at] != NOTHING:
        raw = {channel: plain.data[place] for channel, place in map_entries(plain.data, values_at.start)}
    return Parts(
        {key: load(Serialized(MSGPACK, plain.data[place]), serializer) for key, place in places.items()},
        {channel: _kept(value, stored, serializer) for channel, value in raw.items()},
        frozenset(channel for channel, value in raw.items() if extension(value) == EXT_DELTA_SNAPSHOT),
    )


def is_snapshot(value: Any, serializer: SharingSerializer) -> bool:
    """Whether a value is what LangGraph stores now and then of a whole delta channel."""
    if type(value) is not Serialized:
        return False
    plain = unsealed(value, serializer)
    return plain.tag == MSGPACK and extension(plain.data) == EXT_DELTA_SNAPSHOT


def inline(value: Serialized) -> Any:
    """The value itself, if it is one that LangGraph's PostgreSQL saver keeps in the checkpoint's JSON and that comes
    back from there as it was; else its bytes, as every saver can keep them."""
    if value.tag == NULL:
        return None
    if value.tag != MSGPACK or not is_simple(value.data):
        return value
    try:
        live = ormsgpack.unpackb(value.data)
    except ormsgpack.MsgpackDecodeError:
        return value  # a text that is not UTF-8: whoever reads it is told so
    return live if survives_json(live) else value


def from_json(value: Any, serializer: SharingSerializer) -> Any:
    """A value that PostgreSQL keeps in the checkpoint's JSON, such that every saver can take it.

    An integer that MessagePack cannot hold was a float before PostgreSQL wrote it without a point.
    """
    if isinstance(value, int) and value not in INTEGERS:
        try:
            number = float(value)
        except OverflowError:
            return value
        return Serialized(*serializer.dumps_typed(number)) if number == value else value
    return value


def survives_json(value: Any) -> bool:
    """Whether a simple value comes back from a JSON column of PostgreSQL as it was."""
    if isinstance(value, float):
        return abs(value) < LARGEST_EXACT and (value != 0 or math.copysign(1, value) > 0)
    return not isinstance(value, str) or ("\0" not in value and is_unicode(value))


def settled(frozen: Any, serializer: SharingSerializer) -> Any:
    """A frozen value; as bytes if every saver can keep it only so."""
    if type(frozen) is Serialized or survives_json(frozen):
        return frozen
    return Serialized(*serializer.dumps_typed(frozen))


def comparable(value: Any, serializer: SharingSerializer) -> bytes:
    """The same bytes for the same value, however it is kept: inline or not, sealed or not."""
    value = settled(value, serializer)
    if type(value) is not Serialized:
        return b"json:" + json.dumps(value).encode()
    plain = unsealed(value, serializer)
    if plain.tag not in (MSGPACK, BYTES, BYTEARRAY, NULL):
        plain = _restored(plain, serializer)
    short = inline(plain)
    if type(short) is not Serialized:
        return b"json:" + json.dumps(short).encode()
    # In a checkpoint of SQLite the two are the same.
    return (BYTES if plain.tag == BYTEARRAY else plain.tag).encode() + b":" + plain.data


def items_of(value: Serialized, serializer: SharingSerializer) -> list[Serialized] | None:
    """The items of a list, each as it would be kept by itself, not sealed; None where there is none to be seen."""
    plain = unsealed(value, serializer)
    if plain.tag not in (MSGPACK, BYTES, BYTEARRAY, NULL):
        plain = _restored(plain, serializer)
    if plain.tag != MSGPACK:
        return None
    try:
        return [_alone(plain.data[place]) for place in array_items(plain.data)]
    except ValueError:
        return None


def load(value: Serialized, serializer: SharingSerializer) -> Any:
    """The live value.

    Raises:
        CheckpointerError: the serializer does not know such bytes.
    """
    try:
        return serializer.loads_typed((value.tag, value.data))
    except NotImplementedError as error:
        raise CheckpointerError(
            f"It is stored with the tag {value.tag!r}, which the serializer in use does not know: give the one that "
            "stored it. Nothing of it was read."
        ) from error


def _kept(part: bytes, checkpoint: Serialized, serializer: SharingSerializer) -> Any:
    """A part of a checkpoint as it would be stored by itself; sealed if the checkpoint was."""
    alone = _alone(part)
    inner = serializer.inner
    if "+" in checkpoint.tag and type(inner) is EncryptedSerializer:
        cipher, data = inner.cipher.encrypt(alone.data)
        return Serialized(f"{alone.tag}+{cipher}", data)
    return inline(alone)


def _alone(part: bytes) -> Serialized:
    content = binary(part)
    if content is not None:
        return Serialized(BYTES, content)
    return Serialized(NULL, b"") if part == NOTHING else Serialized(MSGPACK, part)


def _take_apart_live(checkpoint: Mapping[str, Any], serializer: SharingSerializer) -> Parts:
    live = checkpoint.get(VALUES) or {}
    return Parts(
        {key: part for key, part in checkpoint.items() if key != VALUES},
        {channel: settled(serializer.freeze(value), serializer) for channel, value in live.items()},
        frozenset(channel for channel, value in live.items() if isinstance(value, _DeltaSnapshot)),
    )


def _restored(value: Serialized, serializer: SharingSerializer) -> Serialized:
    """What is kept in a form of old, in that of now; as it is where nobody knows that form."""
    try:
        return Serialized(*_innermost(serializer).dumps_typed(serializer.loads_typed((value.tag, value.data))))
    except NotImplementedError:
        return value


def _innermost(serializer: SharingSerializer) -> SerializerProtocol:
    inner = serializer.inner
    return inner.serde if type(inner) is EncryptedSerializer else inner


def is_unicode(text: str) -> bool:
    """Whether a text has no half characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
