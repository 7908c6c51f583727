"""Operations as statements on the tables of the official PostgreSQL saver, and their parameters. Pure: no I/O.

Few operations are a statement each, many are one: sent together they are one transaction and one round trip either way.
Of many rows each column is one array, so that one text does for any number of them. Of few rows each value is a
parameter of its own: the server has nothing to unfold and takes half the time, but every number of rows is a text of
its own, which has to be prepared on each connection.

The rows are those that `langgraph-checkpoint-postgres` writes, so that either can read the other's data; a test
compares the two against a real server.
"""

from __future__ import annotations

import json
import math
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from itertools import count, groupby
from typing import Any, cast

from langgraph.checkpoint.base import WRITES_IDX_MAP, CheckpointMetadata
from psycopg import Error

from enhanced_checkpointing.backends.base import Heads
from enhanced_checkpointing.backends.postgres.wire import Statement
from enhanced_checkpointing.backends.reading import StoredMetadata
from enhanced_checkpointing.backends.stored_values import LARGEST_EXACT, JsonForm, is_unicode
from enhanced_checkpointing.identifiers import is_old
from enhanced_checkpointing.operations import DeleteThread, Operation, Put, PutWrites, StoredWrite
from enhanced_checkpointing.serialization import Opaque, Serialized, SharingSerializer

_HEAD = struct.Struct(">iiIii")
"""Dimensions, whether there are nulls, the type of the elements, their number, the index of the first."""
_DIMENSIONS = struct.Struct(">iii")
"""Dimensions, whether there are nulls, the type of the elements; for each dimension follow its length and begin."""
_LENGTH = struct.Struct(">i")
_NULL = _LENGTH.pack(-1)

TEXT_OID, BYTEA_OID, INTEGER_OID = 25, 17, 23
"""Object identifiers of types, the same in every PostgreSQL (pg_type.dat)."""


def text_array(values: Sequence[bytes | None]) -> bytes:
    """Of texts in UTF-8, which must be the encoding of the connection."""
    return _array(TEXT_OID, values)


def bytea_array(values: Sequence[bytes | None]) -> bytes:
    return _array(BYTEA_OID, values)


def integer_array(values: Sequence[int]) -> bytes:
    return _array(INTEGER_OID, [integer(value) for value in values])


def integer(value: int) -> bytes:
    return _LENGTH.pack(value)


def _array(element: int, values: Sequence[bytes | None]) -> bytes:
    parts = [_HEAD.pack(1, None in values, element, len(values), 1)]
    for value in values:
        if value is None:
            parts.append(_NULL)
        else:
            parts += (_LENGTH.pack(len(value)), value)
    return b"".join(parts)


def rows_of(array: bytes | None) -> list[list[bytes | None]]:
    """The rows of an array of two dimensions; without any, and for NULL, there are none."""
    if array is None or _DIMENSIONS.unpack_from(array)[0] == 0:
        return []
    (width,) = _LENGTH.unpack_from(array, _DIMENSIONS.size + 2 * _LENGTH.size)
    values: list[bytes | None] = []
    at = _DIMENSIONS.size + 4 * _LENGTH.size
    while at < len(array):
        (length,) = _LENGTH.unpack_from(array, at)
        at += _LENGTH.size
        if length < 0:
            values.append(None)
        else:
            values.append(array[at : at + length])
            at += length
    return [values[start : start + width] for start in range(0, len(values), width)]


def text_of(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def json_of(value: bytes | None) -> Any:
    """The binary form of jsonb is its text behind the number of its version."""
    return None if value is None else json.loads(value[1:])


TEXT, BYTEA, INTEGER, JSON = "text", "bytea", "integer", "jsonb"

WRITES_INTO = (
    "checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)"
)
WRITES_KINDS = (TEXT, TEXT, TEXT, TEXT, TEXT, INTEGER, TEXT, TEXT, BYTEA)
WRITES_KEY = "(thread_id, checkpoint_ns, checkpoint_id, task_id, idx)"


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one table: where they go, what kind each column is, and what becomes of a row that is there already."""

    into: str
    kinds: tuple[str, ...]
    conflict: str


PARTS = {
    "checkpoints": Part(
        "checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)",
        (TEXT, TEXT, TEXT, TEXT, JSON, JSON),
        "(thread_id, checkpoint_ns, checkpoint_id)"
        " DO UPDATE SET checkpoint = EXCLUDED.checkpoint, metadata = EXCLUDED.metadata",
    ),
    "blobs": Part(
        "checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)",
        (TEXT, TEXT, TEXT, TEXT, TEXT, BYTEA),
        "(thread_id, checkpoint_ns, channel, version) DO NOTHING",
    ),
    "writes": Part(WRITES_INTO, WRITES_KINDS, f"{WRITES_KEY} DO NOTHING"),
    "special_writes": Part(
        WRITES_INTO,
        WRITES_KINDS,
        f"{WRITES_KEY} DO UPDATE SET channel = EXCLUDED.channel, type = EXCLUDED.type, blob = EXCLUDED.blob",
    ),
}
"""The parts of a statement, in the order in which the server carries them out."""

DELETE_SQL = """
WITH blobs AS (DELETE FROM checkpoint_blobs WHERE thread_id = ANY($1::text[])),
     writes AS (DELETE FROM checkpoint_writes WHERE thread_id = ANY($1::text[]))
DELETE FROM checkpoints WHERE thread_id = ANY($1::text[])
"""


def carried(kind: str) -> str:
    """The type of the parameters in which values of a kind travel."""
    return TEXT if kind == JSON else kind


@cache
def arrays_sql(parts: tuple[str, ...]) -> str:
    """One statement of these parts, with an array as parameter for each column of each."""
    numbers = count(1)
    return _statement({name: _unfolded(PARTS[name], numbers) for name in parts})


@cache
def values_sql(shape: tuple[tuple[str, int], ...]) -> str:
    """One statement of these parts and so many rows of each, with a parameter for each value."""
    numbers = count(1)
    return _statement({name: _listed(PARTS[name], rows, numbers) for name, rows in shape})


def _unfolded(part: Part, numbers: Iterator[int]) -> str:
    arrays = ", ".join(f"${next(numbers)}::{carried(kind)}[]" for kind in part.kinds)
    names = [f"c{position}" for position, _ in enumerate(part.kinds)]
    values = ", ".join(
        f"{name}::{kind}" if kind == JSON else name for name, kind in zip(names, part.kinds, strict=True)
    )
    return f"SELECT {values} FROM unnest({arrays}) AS row ({', '.join(names)})"


def _listed(part: Part, rows: int, numbers: Iterator[int]) -> str:
    def row() -> str:
        values = (f"${next(numbers)}::{carried(kind)}" + ("::jsonb" if kind == JSON else "") for kind in part.kinds)
        return f"({', '.join(values)})"

    return f"VALUES {', '.join(row() for _ in range(rows))}"


def _statement(sources: Mapping[str, str]) -> str:
    """The first part is the main one, the others go along."""
    made = {
        name: f"INSERT INTO {PARTS[name].into} {source} ON CONFLICT {PARTS[name].conflict}"
        for name, source in sources.items()
    }
    (_, main), *others = made.items()
    along = ", ".join(f"{name}_part AS ({text})" for name, text in others)
    return f"WITH {along} {main}" if along else main


Row = tuple[Any, ...]

APART = 6
"""So many operations, or fewer, are a statement each: that costs the server less than one of arrays does. With 8 it is
the same, with more it costs more (`python -m benchmarks --only statements`)."""
FEW_ROWS = 16
"""A statement with more rows is of arrays whatever it is of, so that the texts that are prepared stay few."""

ARRAYS: dict[str, Callable[[Sequence[Any]], bytes]] = {TEXT: text_array, BYTEA: bytea_array, INTEGER: integer_array}


def _joined_halves(text: str) -> str:
    """JSON is sent escaped, and two halves of a character that stand side by side are one for PostgreSQL."""
    try:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        return text


def _as_numeric(number: float) -> float | int:
    """Python writes greater floats without a decimal point, and PostgreSQL keeps all digits, and no negative zero."""
    if not math.isfinite(number) or abs(number) < LARGEST_EXACT:
        return number or 0.0
    return int(Decimal(repr(number)))


JSONB = JsonForm(_joined_halves, _as_numeric)


def frozen_inline(value: Any, serializer: SharingSerializer) -> Any:
    """A value that belongs in the checkpoint's JSON as it comes back from there; its bytes, if JSONB cannot hold it."""
    if type(value) is str and value.isascii() and "\0" not in value:
        return value  # nearly always
    form = JSONB.of(value)
    if isinstance(form, float):
        fits = math.isfinite(form)
    else:
        fits = not isinstance(form, str) or ("\0" not in form and is_unicode(form))
    return form if fits and type(form) is not Opaque else Serialized(*serializer.dumps_typed(form))


def form_of_metadata(metadata: CheckpointMetadata) -> CheckpointMetadata:
    """Metadata as the official saver gives it back; it leaves the writes that callers name out."""
    if "writes" in metadata:
        return JSONB.of_metadata({key: value for key, value in metadata.items() if key != "writes"})
    return JSONB.of_metadata(metadata)


def the_write_that_stays(before: StoredWrite, after: StoredWrite, *, special: bool) -> StoredWrite:
    """As `ON CONFLICT DO UPDATE`, which leaves the path, for calls of special writes alone; else `DO NOTHING`."""
    return (*after[:3], before[3]) if special else before


def statements(operations: Sequence[Operation], *, apart: int = APART) -> list[Statement]:
    """What does all of these, as one transaction; those of one thread in their order, of several in that of their ids.

    That order is the same in every process, so that two seldom wait for each other's rows.
    """
    by_thread = sorted(operations, key=lambda operation: operation.thread_id)
    if len(by_thread) <= apart:
        return [*filter(None, map(_alone, by_thread))]
    made: list[Statement] = []
    for deletes, group in groupby(by_thread, lambda operation: isinstance(operation, DeleteThread)):
        if deletes:
            made.append(_delete(operation.thread_id for operation in group))
        else:
            for piece in _without_repeats(cast("Iterable[Put | PutWrites]", group)):
                rows = _rows(piece)
                made += [in_arrays(rows)] if rows else []
    return made


def probe_statement(thread_id: str, checkpoint_id: str) -> Statement:
    """An empty checkpoint, by a statement that has all parts: it fails wherever a put or writes would."""
    row = thread_id.encode(), b"", checkpoint_id.encode(), None, b"{}", b"{}"
    return in_arrays({name: [row] if name == "checkpoints" else [] for name in PARTS})


def _delete(thread_ids: Iterable[str]) -> Statement:
    return DELETE_SQL, [text_array([thread_id.encode() for thread_id in thread_ids])]


def _alone(operation: Operation) -> Statement | None:
    if isinstance(operation, DeleteThread):
        return _delete([operation.thread_id])
    rows = _rows([operation])
    if not rows:
        return None
    return in_values(rows) if sum(map(len, rows.values())) <= FEW_ROWS else in_arrays(rows)


def _without_repeats(operations: Iterable[Put | PutWrites]) -> Iterator[list[Put | PutWrites]]:
    """The same operations in pieces: of two puts with one id each is to be tried, and the last one's row is to stay."""
    piece: list[Put | PutWrites] = []
    seen: set[tuple[str, str, str]] = set()
    for operation in operations:
        if isinstance(operation, Put):
            key = operation.thread_id, operation.checkpoint_ns, operation.checkpoint_id
            if key in seen:
                yield piece
                piece = []
                seen.clear()
            seen.add(key)
        piece.append(operation)
    yield piece


def _rows(operations: Iterable[Put | PutWrites]) -> dict[str, Sequence[Row]]:
    """The rows of each part that has any, in the order of `PARTS`."""
    rows: dict[str, dict[Row, Row]] = {name: {} for name in PARTS}
    for operation in operations:
        if isinstance(operation, Put):
            _add_put(rows, operation)
        else:
            _add_writes(rows, operation)
    return {name: [*rows[name].values()] for name in PARTS if rows[name]}


def in_values(rows: Mapping[str, Sequence[Row]]) -> Statement:
    """One statement with a parameter for each value."""
    parameters: list[bytes | None] = []
    for name, some in rows.items():
        kinds = PARTS[name].kinds
        for row in some:
            parameters += row if INTEGER not in kinds else map(_binary, row)
    return values_sql(tuple((name, len(some)) for name, some in rows.items())), parameters


def in_arrays(rows: Mapping[str, Sequence[Row]]) -> Statement:
    """One statement with a parameter for each column."""
    parameters: list[bytes | None] = []
    for name, some in rows.items():
        kinds = PARTS[name].kinds
        columns = zip(*some, strict=True) if some else [()] * len(kinds)
        parameters += (ARRAYS[carried(kind)](column) for kind, column in zip(kinds, columns, strict=True))
    return arrays_sql(tuple(rows)), parameters


def _binary(value: bytes | int | None) -> bytes | None:
    return integer(value) if isinstance(value, int) else value


def _add_put(rows: dict[str, dict[Row, Row]], put: Put) -> None:
    blobs = {channel: value for channel, value in put.values.items() if type(value) is Serialized}
    thread, namespace = put.thread_id.encode(), put.checkpoint_ns.encode()
    for channel, version in put.new_versions.items():
        if channel in blobs:
            value = blobs[channel]
            row = thread, namespace, channel.encode(), str(version).encode(), value.tag.encode(), value.data
            rows["blobs"].setdefault(row[:4], row)
    key = thread, namespace, put.checkpoint_id.encode()
    parent = put.parent_checkpoint_id.encode() if put.parent_checkpoint_id is not None else None
    described = (json.dumps(document).encode() for document in documents(put))
    rows["checkpoints"][key] = (*key, parent, *described)


def documents(put: Put) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is stored as JSON: the checkpoint with its inline values, and the metadata."""
    inline: dict[str, Any] = {
        channel: True if channel in put.snapshot_channels else value
        for channel, value in put.values.items()
        if type(value) is not Serialized or channel in put.snapshot_channels
    }
    # The official saver keeps the writes that callers name out; a thread that is moved has had them all the time.
    left_out = () if isinstance(put.metadata, StoredMetadata) else ("writes",)
    metadata = {key: value for key, value in cast("dict[str, Any]", put.metadata).items() if key not in left_out}
    return {**put.skeleton, "channel_values": inline}, metadata


def _add_writes(rows: dict[str, dict[Row, Row]], operation: PutWrites) -> None:
    # Of two special writes of a task to one channel the last stays, of two others the first; special ones win.
    special = all(channel in WRITES_IDX_MAP for channel, _ in operation.writes)
    task = (
        operation.thread_id.encode(),
        operation.checkpoint_ns.encode(),
        operation.checkpoint_id.encode(),
        operation.task_id.encode(),
    )
    path = operation.task_path.encode()
    for position, (channel, value) in enumerate(operation.writes):
        index = WRITES_IDX_MAP.get(channel, position)
        key, row = (*task, index), (*task, path, index, channel.encode(), value.tag.encode(), value.data)
        if special:  # what is there keeps its path
            before = rows["writes"].pop(key, None) or rows["special_writes"].get(key)
            rows["special_writes"][key] = row if before is None else (*before[:5], *row[5:])
        elif key not in rows["special_writes"]:
            rows["writes"].setdefault(key, row)


# A write that goes on with an old thread changes the row that it goes on from, in the same transaction, so that a
# deletion of the thread just then finds it changed. Otherwise a value that is there already, and so is not inserted
# with the new checkpoint that has it too, could be deleted before that is committed.
WAKE_SQL = """
UPDATE checkpoints SET metadata = metadata
WHERE thread_id = $1::text AND checkpoint_ns = $2::text AND checkpoint_id = $3::text
"""


def wake(operations: Sequence[Operation]) -> list[Statement]:
    """What is to come, in the same transaction, before statements that go on with old threads."""
    now = time.time()
    woken = sorted(
        {
            (operation.thread_id, operation.checkpoint_ns, str(operation.parent_checkpoint_id))
            for operation in operations
            if isinstance(operation, Put) and is_old(operation.parent_checkpoint_id, now)
        }
    )
    return [(WAKE_SQL, [part.encode() for part in key]) for key in woken]


MOVED = "another process has written to this thread since"
"""What the server says, and logs, when a head is not one of those expected."""

# Two processes that drain the same thread at once must each see what the other has written. A statement sees what was
# committed before it began, so that the lock and the look at the heads cannot be one.
LOCK_THREAD = "SELECT pg_advisory_xact_lock(hashtextextended($1::text, 0))"

# An error is what keeps the statements after it from being done. The text is made of rows, lest it be cast beforehand.
CHECK_HEADS = f"""
SELECT (CASE WHEN bool_and(fits) THEN '0' ELSE '{MOVED}' END)::integer
FROM (
    SELECT bool_or(head IS NOT DISTINCT FROM (
        SELECT max(checkpoint_id) FROM checkpoints
        WHERE thread_id = $1::text AND checkpoint_ns = namespace
    )) AS fits
    FROM unnest($2::text[], $3::text[]) AS expected (namespace, head)
    GROUP BY namespace
) AS namespaces
"""


def upon_heads(thread_id: str, heads: Heads) -> list[Statement]:
    """What is to come before statements that are done only if each namespace's newest checkpoint is an expected one."""
    thread = thread_id.encode()
    expected = [(namespace.encode(), head) for namespace, known in heads.items() for head in known]
    namespaces = text_array([namespace for namespace, _ in expected])
    found = text_array([None if head is None else head.encode() for _, head in expected])
    return [(LOCK_THREAD, [thread]), (CHECK_HEADS, [thread, namespaces, found])]


def says_moved(error: Error) -> bool:
    """Whether this is the error of a head that is not one of those expected."""
    return MOVED in (error.diag.message_primary or "")
