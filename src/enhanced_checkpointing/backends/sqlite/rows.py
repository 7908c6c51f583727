"""Operations as rows of the tables of the official SQLite saver, and what that saver lists. Nothing is opened here.

The rows are byte for byte those that `langgraph-checkpoint-sqlite` writes, so that either can read the other's data; a
test compares the two.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import WRITES_IDX_MAP, get_checkpoint_id
from langgraph.checkpoint.sqlite.utils import search_where
from ormsgpack import Fragment

from enhanced_checkpointing.backends.base import Metadata, Selection
from enhanced_checkpointing.backends.reading import StoredMetadata
from enhanced_checkpointing.backends.stored_values import VALUES, JsonForm, inline, seal_like, take_apart
from enhanced_checkpointing.errors import CheckpointerError
from enhanced_checkpointing.operations import Operation, Put, PutWrites, StoredWrite, texts_of
from enhanced_checkpointing.serialization import (
    BYTEARRAY,
    BYTES,
    JSON,
    MSGPACK,
    NULL,
    Serialized,
    SharingSerializer,
    has_known_format,
    plain_parts,
    unsealed,
)

Row = tuple[Any, ...]
Statement = tuple[str, list[Row]]
"""The text and the rows of one `executemany`."""

PUT_SQL = """
INSERT OR REPLACE INTO checkpoints
    (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata)
VALUES (?, ?, ?, ?, ?, ?, ?)
"""

PUT_WRITES_SQL = """
INSERT OR {conflict} INTO writes
    (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, value)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
KEEP_FIRST_SQL = PUT_WRITES_SQL.format(conflict="IGNORE")
KEEP_LAST_SQL = PUT_WRITES_SQL.format(conflict="REPLACE")

_encoder = json.JSONEncoder(ensure_ascii=False)
_make_encoder = getattr(json.encoder, "c_make_encoder", None)
_as_text = json.encoder.encode_basestring

DELETE_CHECKPOINTS_SQL = "DELETE FROM checkpoints WHERE thread_id = ?"
DELETE_WRITES_SQL = "DELETE FROM writes WHERE thread_id = ?"


JSON_TEXT = JsonForm(lambda text: text.encode("utf-8", "ignore").decode(), lambda number: number)
"""Metadata is text in UTF-8, without halves of characters."""


def needs_objects(operation: Operation, serializer: SharingSerializer) -> bool:
    """Whether a row cannot be made of the bytes that there are."""
    if not isinstance(operation, Put):
        return False
    return not has_known_format(serializer.inner) or _joined(operation, serializer) is None


def the_write_that_stays(before: StoredWrite, after: StoredWrite, *, special: bool) -> StoredWrite:
    """As `INSERT OR REPLACE` for calls of special writes alone; else `INSERT OR IGNORE`."""
    return after if special else before


def statements(operations: Iterable[Operation], serializer: SharingSerializer) -> list[Statement]:
    """What to execute, in this order; neighbours with the same text are one statement of many rows.

    Raises whatever the serializer raises for a value that it cannot take.
    """
    found: list[Statement] = []
    for operation in operations:
        for text, rows in _statements(operation, serializer):
            if found and found[-1][0] == text:
                found[-1][1].extend(rows)
            elif rows:
                found.append((text, rows))
    return found


def check(operation: Operation) -> None:
    """Return if SQLite may take this operation.

    Raises:
        UnicodeEncodeError, TypeError, ValueError: it would not, as these ids are no text, or this metadata no JSON.
    """
    "".join(texts_of(operation)).encode()
    if isinstance(operation, Put):
        metadata_bytes(operation.metadata)


def _statements(operation: Operation, serializer: SharingSerializer) -> tuple[Statement, ...]:
    if isinstance(operation, Put):
        return ((PUT_SQL, [_put(operation, serializer)]),)
    if isinstance(operation, PutWrites):
        special = all(channel in WRITES_IDX_MAP for channel, _ in operation.writes)
        return ((KEEP_LAST_SQL if special else KEEP_FIRST_SQL, _writes(operation)),)
    key = (operation.thread_id,)
    return (DELETE_CHECKPOINTS_SQL, [key]), (DELETE_WRITES_SQL, [key])


def _put(put: Put, serializer: SharingSerializer) -> Row:
    tag, data = _checkpoint(put, serializer)
    return (
        put.thread_id,
        put.checkpoint_ns,
        put.checkpoint_id,
        put.parent_checkpoint_id,
        tag,
        data,
        metadata_bytes(put.metadata),
    )


def metadata_bytes(metadata: Mapping[str, Any]) -> bytes:
    """Metadata as it is stored."""
    return as_json(metadata).encode("utf-8", "ignore")


def as_json(value: Any) -> str:
    """As `json.dumps(value, ensure_ascii=False)` makes it, in half the time: most of its own goes into what it prepares
    for each call, not knowing that it has an encoder in C."""
    if _make_encoder is None:
        return _encoder.encode(value)
    # A new one for each call, as one that was interrupted by an error would take parts of the next value for circular.
    encode = _make_encoder({}, _encoder.default, _as_text, None, ": ", ", ", False, False, True)
    return "".join(encode(value, 0))


def _writes(operation: PutWrites) -> list[Row]:
    return [
        (
            operation.thread_id,
            operation.checkpoint_ns,
            operation.checkpoint_id,
            operation.task_id,
            operation.task_path,
            WRITES_IDX_MAP.get(channel, position),
            channel,
            value.tag,
            value.data,
        )
        for position, (channel, value) in enumerate(operation.writes)
    ]


def _checkpoint(put: Put, serializer: SharingSerializer) -> tuple[str, bytes]:
    """The whole checkpoint, which is one blob here, made of the bytes that there are already where that is possible.

    Raises:
        CheckpointerError: a value of a copy has a form that cannot be a part of it as it is.
    """
    is_copied = isinstance(put.metadata, StoredMetadata)
    if has_known_format(serializer.inner):
        values = _joined(put, serializer)
        if values is not None:
            try:
                return plain_parts(_with_values(put, values), serializer)
            except TypeError as error:  # an integer that is too large, which the serializer may still know how to store
                if is_copied:
                    raise CheckpointerError(f"Checkpoint {put.checkpoint_id} cannot be kept: {error}.") from error
        else:
            plain = _plain_values(put, serializer)
            if any(type(value) is Serialized and value.tag == JSON for value in plain.values()):
                return _checkpoint_in_json(put, plain, serializer)
            if is_copied:
                odd = next(one for one in plain.items() if type(one[1]) is Serialized and _is_odd(one[1]))
                raise _not_a_part(put, odd)
    # Not of the live values, which their node may have changed since.
    thawed = {channel: serializer.thaw(value) for channel, value in put.values.items()}
    try:
        if is_copied:
            _see_that_it_makes_the_same(put, thawed, serializer)
        return serializer.dumps_typed(_with_values(put, thawed))
    except TypeError as error:
        if is_copied:
            raise CheckpointerError(f"Checkpoint {put.checkpoint_id} cannot be kept: {error}.") from error
        raise


def _see_that_it_makes_the_same(put: Put, thawed: Mapping[str, Any], serializer: SharingSerializer) -> None:
    """A serializer with a format of its own makes the values of a copy anew: each must be what it was, alone and taken
    out of the whole again.

    Raises:
        CheckpointerError: one of them is not.
    """
    copied = {channel: value for channel, value in put.values.items() if type(value) is Serialized}
    for channel, value in copied.items():
        if serializer.dumps_typed(thawed[channel]) != (value.tag, value.data):
            raise _not_a_part(put, (channel, value))
    there = take_apart(Serialized(*serializer.dumps_typed(_with_values(put, thawed))), serializer).values
    for channel, value in copied.items():
        if there[channel] != value:
            raise _not_a_part(put, (channel, value))


def _plain_values(put: Put, serializer: SharingSerializer) -> dict[str, Any]:
    """The values as bytes that are not sealed, or as they are."""
    return {
        channel: unsealed(value, serializer) if type(value) is Serialized and "+" in value.tag else value
        for channel, value in put.values.items()
    }


def _joined(put: Put, serializer: SharingSerializer) -> dict[str, Any] | None:
    """The values as parts of a whole; None unless a value looks within the checkpoint as it does alone, which is known
    of LangGraph's serializers, but not of what they pickle."""
    values: dict[str, Any] = {}
    for channel, value in put.values.items():
        if type(value) is Serialized and "+" in value.tag:
            value = unsealed(value, serializer)
        if type(value) is not Serialized:
            values[channel] = value
        elif value.tag == MSGPACK:
            values[channel] = Fragment(value.data)
        elif value.tag in (BYTES, BYTEARRAY):
            values[channel] = value.data
        elif value.tag == NULL:
            values[channel] = None
        else:
            return None
    return values


def _is_odd(plain: Serialized) -> bool:
    return plain.tag not in (MSGPACK, BYTES, BYTEARRAY, NULL)


def _checkpoint_in_json(put: Put, plain: Mapping[str, Any], serializer: SharingSerializer) -> tuple[str, bytes]:
    """A checkpoint with values of LangGraph's first releases, in the form of those: it is read by the same rules."""
    values: dict[str, str] = {}
    for channel, value in plain.items():
        short = inline(value) if type(value) is Serialized else value
        if type(short) is Serialized and short.tag != JSON:
            raise _not_a_part(put, (channel, short))
        values[channel] = short.data.decode() if type(short) is Serialized else as_json(short)
    parts = {key: _object(values) if key == VALUES else as_json(part) for key, part in _with_values(put, {}).items()}
    sealed = next((one.tag for one in put.values.values() if type(one) is Serialized and "+" in one.tag), "")
    whole = seal_like(sealed, Serialized(JSON, _object(parts).encode()), serializer)
    return whole.tag, whole.data


def _object(parts: Mapping[str, str]) -> str:
    return f"{{{', '.join(f'{as_json(key)}: {text}' for key, text in parts.items())}}}"


def _not_a_part(put: Put, odd: tuple[str, Serialized]) -> CheckpointerError:
    channel, value = odd
    return CheckpointerError(
        f"Channel {channel!r} of checkpoint {put.checkpoint_id} is stored with the tag {value.tag!r}. A SQLite file "
        "keeps a checkpoint in one piece, of which it cannot be a part as it is. Nothing of the checkpoint was written."
    )


def _with_values(put: Put, values: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint with its keys in LangGraph's order, on which the bytes depend."""
    checkpoint: dict[str, Any] = {}
    for key, part in put.skeleton.items():
        if key == "channel_versions":
            checkpoint["channel_values"] = values
        checkpoint[key] = part
    return checkpoint


def selection(filter: Mapping[str, Any] | None, before: RunnableConfig | None, limit: int | None) -> Selection:
    """What a listing takes.

    Raises:
        sqlite3.Error, TypeError, ValueError, KeyError, OverflowError: what the saver would raise.
    """
    where, values = search_where(None, cast("dict[str, Any] | None", filter), None)
    end = get_checkpoint_id(before) if before is not None else None
    most = None
    if limit is not None:
        _ask("SELECT 1 LIMIT ?", [limit])
        most = int(limit) if int(limit) >= 0 else None
    if where:
        _ask(f"SELECT 1 FROM (SELECT NULL AS metadata) {where} AND 0", values)

    def matches(metadata: Metadata) -> bool:
        return not where or _ask(f"SELECT 1 FROM (SELECT ? AS metadata) {where}", [metadata_bytes(metadata), *values])

    def below(checkpoint_id: str) -> bool:
        return before is None or (end is not None and checkpoint_id < end)

    return Selection(matches, below, most)


def _ask(text: str, values: Sequence[Any]) -> bool:
    with closing(sqlite3.connect(":memory:")) as connection:
        return connection.execute(text, values).fetchone() is not None
